"""Visium HD outputs as Space Ranger 3 and 4 write them, with a planted law."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError, StoreError
from ._planted import PITCH_UM, Planted, planted

_MPP = 0.2738
_SIDES = (2, 8, 16)


def visium_hd(
    folder: str | os.PathLike[str],
    *,
    version: Literal["3", "4"] = "3",
    size: Literal["small", "medium", "large"] = "small",
    n_genes: int = 40,
    seed: int = 0,
) -> Planted:
    """Write a small Visium HD output: real H&E, bins on a turned, mirrored, not quite affine grid, planted expression.

    Bins of 8 um are the superpixels of the law; their counts are split among the bins of 2 um, so that the sums of 2,
    8 and 16 um agree.

    Parameters
    ----------
    folder
        To make: holds ``binned_outputs`` (and ``segmented_outputs`` from version 4 on) and ``microscope_image``.
    version
        Of Space Ranger.
    size
        0.4, 1.1 or 4 mm along a side.
    n_genes
        Genes.
    seed
        Of the slide; the law is the same for every seed.

    Returns
    -------
    Planted
        The truth, in the array's own microns (before it is turned and mirrored onto the picture).

    Raises
    ------
    InputError
        An unknown version or size.
    StoreError
        The folder exists.
    """
    if version not in ("3", "4"):
        raise InputError(f"no version {version!r}", fix="3 or 4")
    out = Path(folder)
    if out.exists():
        raise StoreError("there is something already", where=out, fix="give another name")
    truth = planted(size=size, n_genes=n_genes, seed=seed, counts_per_superpixel=120.0)
    rng = np.random.default_rng([seed, 21])
    fine = _split(truth.draw(seed), rng)
    to_px = _array_to_picture(truth)
    (out / "microscope_image").mkdir(parents=True)
    _write_picture(out / "microscope_image" / "he.tif", truth, to_px)
    for side in _SIDES:
        _write_bins(out / "binned_outputs" / f"square_{side:03d}um", side, fine, truth, to_px)
    if version == "4":
        _write_cells(out / "segmented_outputs", fine, truth, to_px)
    return truth


def _split(counts: np.ndarray, rng: np.random.Generator) -> Any:
    """Counts of 8 um bins among their 16 bins of 2 um: CSR [bins of 2 um, genes], bins row by row."""
    from scipy import sparse

    n, _, genes = counts.shape
    row, column, gene = np.nonzero(counts)
    times = counts[row, column, gene]
    row, column, gene = (np.repeat(v, times) for v in (row, column, gene))
    row, column = 4 * row + rng.integers(0, 4, len(row)), 4 * column + rng.integers(0, 4, len(row))
    ones = np.ones(len(row), dtype=np.int32)
    made = sparse.coo_array((ones, (row * 4 * n + column, gene)), shape=(16 * n * n, genes)).tocsr()
    made.sum_duplicates()
    return made


def _array_to_picture(truth: Planted) -> np.ndarray:
    """Microns of the array to full-resolution pixels: mirrored, turned by 0.87 degrees, a slight homography."""
    angle = np.radians(0.87)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    mirror = np.array([[-1, 0, truth.side_um], [0, 1, 0], [0, 0, 1.0]])
    scale = np.diag([1 / _MPP, 1 / _MPP, 1.0])
    matrix = np.array([[1, 0, 40], [0, 1, 30], [0, 0, 1.0]]) @ scale @ turn @ mirror
    matrix[2, :2] = 2e-8, -1e-8
    return matrix / matrix[2, 2]


def _write_picture(path: Path, truth: Planted, to_px: np.ndarray) -> None:
    import cv2
    import tifffile

    side = round(truth.side_um / _MPP) + 90
    # OpenCV puts pixel centres at whole numbers.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    warp = np.linalg.inv(half) @ to_px @ np.diag([truth.mpp, truth.mpp, 1.0]) @ half
    picture = cv2.warpPerspective(truth.rgb, warp, (side, side), flags=cv2.INTER_LINEAR, borderValue=(238, 236, 240))
    tifffile.imwrite(
        path,
        picture,
        bigtiff=True,
        tile=(512, 512),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 92},
    )


def _write_bins(folder: Path, side: int, fine: Any, truth: Planted, to_px: np.ndarray) -> None:
    import pandas as pd

    from ..core import registration

    (folder / "spatial").mkdir(parents=True)
    n = len(truth.rate) * 8 // side
    counts = _coarsen(fine, 4 * len(truth.rate), side // 2)
    row, column = (v.ravel() for v in np.mgrid[:n, :n])
    names = np.array([f"s_{side:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)])
    xy = registration.apply(to_px, np.column_stack([column + 0.5, row + 0.5]) * side)
    at = np.minimum((np.column_stack([row, column]) * side) // round(PITCH_UM), len(truth.rate) - 1)
    tissue = truth.tissue[at[:, 0], at[:, 1]]
    frame = pd.DataFrame({"barcode": names, "in_tissue": tissue.astype(np.int32), "array_row": row.astype(np.int32)})
    frame["array_col"] = column.astype(np.int32)
    frame["pxl_row_in_fullres"], frame["pxl_col_in_fullres"] = xy[:, 1], xy[:, 0]
    frame.to_parquet(folder / "spatial" / "tissue_positions.parquet", index=False)
    scales = {"spot_diameter_fullres": side / _MPP, "bin_size_um": float(side), "microns_per_pixel": _MPP}
    scales |= {"regist_target_img_scalef": 0.25, "tissue_lowres_scalef": 0.025, "tissue_hires_scalef": 0.25}
    scales |= {"fiducial_diameter_fullres": 330 / _MPP}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(scales))
    _write_h5(folder / "raw_feature_bc_matrix.h5", counts, names, truth.names)
    _write_h5(folder / "filtered_feature_bc_matrix.h5", counts[np.flatnonzero(tissue)], names[tissue], truth.names)


def _coarsen(fine: Any, n: int, factor: int) -> Any:
    """Sums of factor x factor bins, CSR."""
    from scipy import sparse

    if factor == 1:
        return fine
    row, column = np.divmod(np.arange(n * n), n)
    wide = n // factor
    target = np.where((row // factor < wide) & (column // factor < wide), row // factor * wide + column // factor, -1)
    kept = np.flatnonzero(target >= 0)
    join = sparse.coo_array((np.ones(len(kept), dtype=np.int32), (target[kept], kept)), shape=(wide * wide, n * n))
    return sparse.csr_array(join.tocsr() @ fine)


def _write_h5(path: Path, counts: Any, barcodes: Any, genes: tuple[str, ...]) -> None:
    import h5py

    packed: dict[str, Any] = {
        "chunks": (min(80_000, max(1, counts.nnz)),),
        "compression": "gzip",
        "compression_opts": 4,
    }
    with h5py.File(path, "w") as h5:
        h5.attrs.update({"filetype": "matrix", "version": np.int64(2), "software_version": "spaceranger-3.0.0"})
        h5.attrs["chemistry_description"] = "Visium HD v1"
        group = h5.create_group("matrix")
        group.create_dataset("barcodes", data=np.array(barcodes, dtype="S"), compression="gzip")
        group.create_dataset("data", data=counts.data.astype(np.int32), shuffle=True, **packed)
        group.create_dataset("indices", data=counts.indices.astype(np.int64), shuffle=True, **packed)
        group.create_dataset("indptr", data=counts.indptr.astype(np.int64))
        group.create_dataset("shape", data=np.array(counts.shape[::-1], dtype=np.int32))
        features = group.create_group("features")
        columns = {
            "id": [f"ENSG{i:011d}" for i in range(len(genes))],
            "name": list(genes),
            "feature_type": ["Gene Expression"] * len(genes),
            "genome": ["GRCh38"] * len(genes),
        }
        for name, values in columns.items():
            features.create_dataset(name, data=np.array(values, dtype="S"), compression="gzip")
        features.create_dataset("_all_tag_keys", data=np.array(["genome"], dtype="S"))


def _write_cells(folder: Path, fine: Any, truth: Planted, to_px: np.ndarray) -> None:
    """Segmented cells: bins of 2 um to the nucleus within 8 um, outlines in full-resolution pixels."""
    from scipy import sparse
    from scipy.spatial import cKDTree

    from ..core import registration

    folder.mkdir()
    n = 4 * len(truth.rate)
    row, column = np.divmod(np.arange(n * n), n)
    distance, owner = cKDTree(truth.nuclei_um).query(np.column_stack([column + 0.5, row + 0.5]) * 2.0)
    mine = np.flatnonzero(distance <= 8.0)
    cells = len(truth.nuclei_um)
    join = sparse.coo_array((np.ones(len(mine), dtype=np.int32), (owner[mine], mine)), shape=(cells, n * n)).tocsr()
    names = [f"cellid_{i + 1:09d}-1" for i in range(cells)]
    _write_h5(folder / "filtered_feature_cell_matrix.h5", sparse.csr_array(join @ fine), names, truth.names)
    angle = np.linspace(0, 2 * np.pi, 17)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    ring[-1] = ring[0]
    for file, radius in (("cell_segmentations.geojson", 6.0), ("nucleus_segmentations.geojson", 3.0)):
        points = registration.apply(to_px, (truth.nuclei_um[:, None] + radius * ring).reshape(-1, 2)).reshape(
            cells, -1, 2
        )
        features = [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [points[i].round(2).tolist()]},
                "properties": {"cell_id": i + 1},
            }
            for i in range(cells)
        ]
        (folder / file).write_text(json.dumps({"type": "FeatureCollection", "features": features}))
