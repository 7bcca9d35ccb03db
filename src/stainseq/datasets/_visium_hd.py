"""Visium HD outputs as Space Ranger 3 and 4 write them, with a planted law."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError, StoreError
from . import _tenx
from ._planted import PITCH_UM, Planted, planted

_MPP = 0.2738
_SIDES = (2, 8, 16)
_CELL_UM, _NUCLEUS_UM = 8.0, 3.0


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
        To make: holds ``binned_outputs``, ``feature_slice.h5``, ``microscope_image``, and from version 4 on
        ``segmented_outputs`` and ``barcode_mappings.parquet``.
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
        _write_bins(out / "binned_outputs" / f"square_{side:03d}um", side, fine, truth, to_px, version)
    wide = 4 * len(truth.rate)
    _tenx.feature_slices(
        out / "feature_slice.h5", fine, (wide, wide), truth.names, tissue=_under_tissue(truth, 2), to_px=to_px
    )
    if version == "4":
        _write_cells(out, fine, truth, to_px)
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


def _write_bins(folder: Path, side: int, fine: Any, truth: Planted, to_px: np.ndarray, version: str) -> None:
    (folder / "spatial").mkdir(parents=True)
    n = len(truth.rate) * 8 // side
    wide = 4 * len(truth.rate)
    counts = _tenx.coarsened(fine, (wide, wide), side // 2)
    row, column = (v.ravel() for v in np.mgrid[:n, :n])
    tissue = _under_tissue(truth, side).ravel()
    places = _tenx.Positions(folder / "spatial", side, to_px, _MPP)
    places.append(row, column, tissue)
    places.close()
    names = _tenx.barcodes(side, row, column)
    for file, kept in (("raw", np.ones(n * n, dtype=bool)), ("filtered", tissue)):
        with _tenx.Matrix(folder / f"{file}_feature_bc_matrix.h5", truth.names, version=f"{version}.0.0") as matrix:
            matrix.append(counts[np.flatnonzero(kept)], names[kept])


def _under_tissue(truth: Planted, side: int) -> np.ndarray:
    """bool [rows, columns] of bins of a size: a bin is, where any of its bins of 2 um is."""
    if side < PITCH_UM:
        k = round(PITCH_UM) // side
        return np.repeat(np.repeat(truth.tissue, k, axis=0), k, axis=1)
    k, n = side // round(PITCH_UM), len(truth.tissue) * round(PITCH_UM) // side
    return np.asarray(truth.tissue[: n * k, : n * k].reshape(n, k, n, k).any(axis=(1, 3)))


def _write_cells(out: Path, fine: Any, truth: Planted, to_px: np.ndarray) -> None:
    """Segmented cells: bins of 2 um to the nucleus within 8 um, those within 3 um in it; outlines in pixels."""
    from scipy import sparse
    from scipy.spatial import cKDTree

    from ..core import registration

    folder = out / "segmented_outputs"
    folder.mkdir()
    n = 4 * len(truth.rate)
    row, column = np.divmod(np.arange(n * n), n)
    distance, owner = cKDTree(truth.nuclei_um).query(np.column_stack([column + 0.5, row + 0.5]) * 2.0)
    mine = np.flatnonzero(distance <= _CELL_UM)
    cells = len(truth.nuclei_um)
    join = sparse.coo_array((np.ones(len(mine), dtype=np.int32), (owner[mine], mine)), shape=(cells, n * n)).tocsr()
    _tenx.mappings(
        out / "barcode_mappings.parquet",
        row,
        column,
        np.where(distance <= _CELL_UM, owner + 1, 0),
        distance <= _NUCLEUS_UM,
    )
    names = [f"cellid_{i + 1:09d}-1" for i in range(cells)]
    with _tenx.Matrix(folder / "filtered_feature_cell_matrix.h5", truth.names, version="4.0.0") as matrix:
        matrix.append(sparse.csr_array(join @ fine), names)
    angle = np.linspace(0, 2 * np.pi, 17)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    ring[-1] = ring[0]
    for file, radius in (("cell_segmentations.geojson", 6.0), ("nucleus_segmentations.geojson", _NUCLEUS_UM)):
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
