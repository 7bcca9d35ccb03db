"""Xenium bundles as the vendor's software writes them, with a planted law.

Names, columns, types, attributes and directions follow files of onboard analysis 1.0.2, 1.x, 3.0 and Xenium Ranger
3.1, and spatialdata-io's reader for 2.0 and 4.0. Left out are files that nothing here reads (cells.zarr.zip,
analysis, the Explorer's copies).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import InputError, StoreError
from ._planted import PITCH_UM, Planted, planted

if TYPE_CHECKING:
    import pandas as pd

VERSIONS = ("1.0", "1.3", "2.0", "3.0", "4.0")
_PIXEL = 0.2125
_NUCLEUS_UM, _CELL_UM = 3.2, 8.2
_CHANNELS = ("DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin")
_SECOND_NUCLEUS, _LOW_QUALITY, _CONTROLS = 0.02, 0.14, 0.008


@dataclass(frozen=True)
class _Run:
    """What happened on the slide, before it is written in any version's words."""

    cells: np.ndarray  # float64 [cells, 2] um
    radius: np.ndarray  # float64 [cells] um, of the cell
    nuclei: np.ndarray  # int64 [nuclei], cell of each
    nucleus_at: np.ndarray  # float64 [nuclei, 2]
    nucleus_radius: np.ndarray
    xyz: np.ndarray  # float32 [transcripts, 3]
    feature: np.ndarray  # int64 [transcripts], into `features`
    cell: np.ndarray  # int64 [transcripts], -1 in none
    in_nucleus: np.ndarray  # bool
    nucleus_distance: np.ndarray  # float32
    qv: np.ndarray  # float32
    features: list[tuple[str, str, str]]  # id, name, type


def xenium(
    folder: str | os.PathLike[str],
    *,
    version: Literal["1.0", "1.3", "2.0", "3.0", "4.0"] = "3.0",
    size: Literal["small", "medium", "large"] = "small",
    n_genes: int = 40,
    he: bool = True,
    projective: bool = False,
    transcripts: bool = True,
    seed: int = 0,
) -> Planted:
    """Write a small Xenium bundle: real H&E, nuclei where its haematoxylin peaks, expression by a planted law.

    Parameters
    ----------
    folder
        To make.
    version
        Of the onboard analysis whose files are imitated.
    size
        0.4, 1.1 or 4 mm along a side.
    n_genes
        Of the panel; controls come on top.
    he
        With H&E image and its alignment, turned by -89.5 degrees as 10x's worked example.
    projective
        The alignment is not quite affine.
    transcripts
        False writes cells and counts alone.
    seed
        Of the slide; the law is the same for every seed.

    Returns
    -------
    Planted
        The truth, in the microns of the run.

    Raises
    ------
    InputError
        An unknown version or size.
    StoreError
        The folder exists.
    """
    if version not in VERSIONS:
        raise InputError(f"no version {version!r}", fix=f"one of: {', '.join(VERSIONS)}")
    out = Path(folder)
    if out.exists():
        raise StoreError("there is something already", where=out, fix="give another name")
    truth = planted(size=size, n_genes=n_genes, seed=seed)
    run = _happen(truth, seed)
    out.mkdir(parents=True)
    ids = _cell_ids(len(run.cells), version, seed)
    _write_experiment(out, version, run, truth, seed)
    _write_cells(out, version, run, ids)
    _write_outlines(out, version, run, ids)
    _write_matrix(out / "cell_feature_matrix.h5", run, ids, version)
    if transcripts:
        _write_transcripts(out, version, run, ids)
    _write_morphology(out, version, truth)
    if he:
        _write_he(out, truth, projective=projective)
    return truth


def _happen(truth: Planted, seed: int) -> _Run:
    """Cells, transcripts and what the instrument makes of them."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng([seed, 11])
    at = truth.nuclei_um + rng.uniform(-0.05, 0.05, truth.nuclei_um.shape)
    near = cKDTree(at).query(at, k=2)[0][:, 1] if len(at) > 1 else np.full(len(at), 99.0)
    radius = np.minimum(_CELL_UM * rng.uniform(0.9, 1.1, len(at)), near / 2)
    inner = np.minimum(_NUCLEUS_UM * rng.uniform(0.8, 1.2, len(at)), 0.8 * radius)
    nuclei, where, size = np.arange(len(at)), at, inner
    twice = np.flatnonzero(rng.random(len(at)) < _SECOND_NUCLEUS)
    nuclei, size = np.r_[nuclei, twice], np.r_[size, 0.4 * inner[twice]]
    where = np.vstack([where, at[twice] + (0.55 * (inner + radius))[twice, None] * [[1.0, 0.0]]])
    counts = truth.draw(seed)
    row, column, gene = np.nonzero(counts)
    times = counts[row, column, gene]
    row, column, gene = (np.repeat(v, times) for v in (row, column, gene))
    n = len(gene)
    xy = (np.column_stack([column, row]) + rng.random((n, 2))) * PITCH_UM
    features = [(f"ENSG{i:011d}", name, "Gene Expression") for i, name in enumerate(truth.names)]
    extra = [
        ("NegControlProbe_{:05d}", "Negative Control Probe", 8),
        ("NegControlCodeword_{:04d}", "Negative Control Codeword", 12),
    ]
    extra += [("UnassignedCodeword_{:04d}", "Unassigned Codeword", 20)]
    features += [(k.format(i), k.format(i), kind) for k, kind, m in extra for i in range(m)]
    control = rng.random(n) < _CONTROLS
    feature = np.where(control, rng.integers(len(truth.names), len(features), n), gene)
    qv = np.where(rng.random(n) < _LOW_QUALITY, rng.uniform(7, 20, n), rng.uniform(20, 40, n)).astype(np.float32)
    tree = cKDTree(at)
    distance, owner = tree.query(xy) if len(at) else (np.full(n, np.inf), np.zeros(n, dtype=int))
    cell = np.where(distance <= radius[owner], owner, -1) if len(at) else np.full(n, -1)
    gap = np.maximum(distance - inner[owner], 0) if len(at) else distance
    xyz = np.column_stack([xy, rng.uniform(12, 30, n)]).astype(np.float32)
    return _Run(at, radius, nuclei, where, size, xyz, feature, cell, gap == 0, gap.astype(np.float32), qv, features)


def _cell_ids(n: int, version: str, seed: int) -> np.ndarray:
    """Integers in version 1.0; then eight letters (hexadecimal digits written a to p) and the data set's number."""
    if version == "1.0":
        return np.arange(1, n + 1)
    numbers = np.random.default_rng([seed, 12]).permutation(np.arange(n) * 6151 + 0x10000000)
    digits = (numbers[:, None] >> (4 * np.arange(7, -1, -1))) & 15
    letters = (digits + ord("a")).astype(np.uint8)
    return np.array([bytes(r).decode() + "-1" for r in letters], dtype=object)


def _write_experiment(out: Path, version: str, run: _Run, truth: Planted, seed: int) -> None:
    area = truth.side_um**2
    told: dict[str, Any] = {"major_version": 5, "minor_version": 0, "patch_version": 0}
    told |= {"run_name": "Planted law", "run_start_time": "2026-01-01T00:00:00Z", "region_name": f"planted_{seed}"}
    told |= {"preservation_method": "ffpe", "num_cells": len(run.cells)}
    told |= {"transcripts_per_cell": int(np.median(np.bincount(run.cell[run.cell >= 0], minlength=1)))}
    told |= {"transcripts_per_100um": len(run.feature) / area * 1e4, "region_area": area}
    told |= {"total_cell_area": float((np.pi * run.radius**2).sum())}
    told |= {"num_transcripts": len(run.feature), "num_transcripts_high_quality": int((run.qv >= 20).sum())}
    told |= {"fraction_transcripts_assigned": float((run.cell >= 0).mean())}
    told |= {"cassette_name": "N/A", "slide_id": "0000000", "panel_name": "Planted panel", "panel_organism": "Human"}
    told |= {"panel_num_targets_predesigned": len(truth.names), "chemistry_version": "v1", "pixel_size": _PIXEL}
    told |= {"instrument_sn": "N/A", "analysis_sw_version": f"xenium-{version}.0.15", "z_step_size": 3.0}
    focus = {"1": "morphology_focus.ome.tif", "4": "morphology_focus/ch0000_dapi.ome.tif"}
    first = focus.get(version[0], "morphology_focus/morphology_focus_0000.ome.tif")
    told |= {"images": {"morphology_filepath": "morphology.ome.tif", "morphology_focus_filepath": first}}
    (out / "experiment.xenium").write_text(json.dumps(told, indent=2))


def _write_frame(frame: pd.DataFrame, out: Path, name: str, *, binary: tuple[str, ...] = (), csv: bool = False) -> None:
    """Parquet as Arrow writes it; the oldest versions hold text as bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    for i, field in enumerate(table.schema):
        if field.name in binary:
            table = table.set_column(i, field.name, table.column(i).cast(pa.binary()))
        elif pa.types.is_string(field.type) and not binary:
            table = table.set_column(i, field.name, table.column(i).cast(pa.large_string()))
    pq.write_table(table, out / f"{name}.parquet", compression="snappy", row_group_size=100_000)
    if csv:
        frame.to_csv(out / f"{name}.csv.gz", index=False)


def _write_cells(out: Path, version: str, run: _Run, ids: np.ndarray) -> None:
    import pandas as pd

    n = len(ids)
    good = (run.cell >= 0) & (run.qv >= 20)
    kinds = np.array([kind for _, _, kind in run.features])[run.feature]

    def count(kind: str) -> np.ndarray:
        return np.bincount(run.cell[good & (kinds == kind)], minlength=n).astype(np.int64)

    frame = pd.DataFrame({"cell_id": ids, "x_centroid": run.cells[:, 0], "y_centroid": run.cells[:, 1]})
    frame["transcript_counts"] = count("Gene Expression")
    frame["control_probe_counts"] = count("Negative Control Probe")
    if version >= "3":
        frame["genomic_control_counts"] = np.zeros(n, dtype=np.int64)
    frame["control_codeword_counts"] = count("Negative Control Codeword")
    frame["unassigned_codeword_counts"] = count("Unassigned Codeword")
    if version >= "3":
        frame["deprecated_codeword_counts"] = np.zeros(n, dtype=np.int64)
    frame["total_counts"] = np.bincount(run.cell[good], minlength=n).astype(np.int64)
    frame["cell_area"] = np.pi * run.radius**2
    area = np.bincount(run.nuclei, weights=np.pi * run.nucleus_radius**2, minlength=n)
    frame["nucleus_area"] = area
    if version >= "2":
        frame["nucleus_count"] = np.bincount(run.nuclei, minlength=n).astype(np.int64)
        frame["segmentation_method"] = "Segmented by nucleus expansion of 5.0µm"
    _write_frame(frame, out, "cells", binary=("cell_id",) if version == "1.3" else (), csv=True)


def _write_outlines(out: Path, version: str, run: _Run, ids: np.ndarray) -> None:
    import pandas as pd

    angle = np.linspace(0, 2 * np.pi, 13)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    ring[-1] = ring[0]
    kinds = {
        "cell_boundaries": (np.arange(len(ids)), run.cells, run.radius),
        "nucleus_boundaries": (run.nuclei, run.nucleus_at, run.nucleus_radius),
    }
    for name, (owner, centre, radius) in kinds.items():
        order = np.argsort(owner, kind="stable")
        points = centre[order, None, :] + radius[order, None, None] * ring
        frame = pd.DataFrame({"cell_id": np.repeat(ids[owner[order]], 13)})
        frame["vertex_x"], frame["vertex_y"] = points.reshape(-1, 2).astype(np.float32).T
        if version >= "2":
            frame["label_id"] = np.repeat(np.arange(1, len(owner) + 1), 13).astype(np.int32)
        _write_frame(frame, out, name, binary=("cell_id",) if version == "1.3" else (), csv=version < "2")


def _write_matrix(path: Path, run: _Run, ids: np.ndarray, version: str) -> None:
    """10x HDF5: features by cells, CSC, transcripts of quality 20 and above."""
    import h5py
    from scipy import sparse

    good = (run.cell >= 0) & (run.qv >= 20)
    ones = np.ones(int(good.sum()), dtype=np.int32)
    shape = (len(run.features), len(ids))
    matrix = sparse.coo_array((ones, (run.feature[good], run.cell[good])), shape=shape).tocsc()
    matrix.sum_duplicates()
    packed: dict[str, Any] = {
        "chunks": (min(80_000, max(1, matrix.nnz)),),
        "compression": "gzip",
        "compression_opts": 4,
    }
    with h5py.File(path, "w") as h5:
        h5.attrs.update({"filetype": "matrix", "version": np.int64(2), "software_version": f"xenium-{version}.0.15"})
        h5.attrs["chemistry_description"] = "Xenium"
        group = h5.create_group("matrix")
        group.create_dataset("barcodes", data=np.array([str(i) for i in ids], dtype="S"), compression="gzip")
        group.create_dataset("data", data=matrix.data.astype(np.int32), shuffle=True, **packed)
        group.create_dataset("indices", data=matrix.indices.astype(np.int64), shuffle=True, **packed)
        group.create_dataset("indptr", data=matrix.indptr.astype(np.int64))
        group.create_dataset("shape", data=np.array(shape, dtype=np.int32))
        features = group.create_group("features")
        columns = dict(zip(("id", "name", "feature_type"), zip(*run.features, strict=True), strict=True))
        columns["genome"] = ["GRCh38" if t == "Gene Expression" else "" for t in columns["feature_type"]]  # type: ignore[assignment]
        for name, values in columns.items():
            features.create_dataset(name, data=np.array(values, dtype="S"), compression="gzip")
        features.create_dataset("_all_tag_keys", data=np.array(["genome"], dtype="S"))


def _write_transcripts(out: Path, version: str, run: _Run, ids: np.ndarray) -> None:
    import pandas as pd

    n = len(run.feature)
    names, kinds = (np.array([f[i] for f in run.features], dtype=object)[run.feature] for i in (1, 2))
    if version == "1.0":
        owner: Any = np.where(run.cell >= 0, ids[run.cell], -1).astype(np.int32)
    else:
        owner = np.where(run.cell >= 0, ids[run.cell], "UNASSIGNED").astype(object)
    frame = pd.DataFrame({"transcript_id": (281_474_976_710_656 + np.arange(n)).astype(np.uint64), "cell_id": owner})
    frame["overlaps_nucleus"] = run.in_nucleus.astype(np.uint8)
    frame["feature_name"] = names
    frame["x_location"], frame["y_location"], frame["z_location"] = run.xyz.T
    frame["qv"] = run.qv
    frame["fov_name"] = "A1"
    frame["nucleus_distance"] = run.nucleus_distance
    if version >= "3":
        word = {"Gene Expression": "predesigned_gene"}
        frame["codeword_index"] = run.feature.astype(np.int32)
        frame["codeword_category"] = [word.get(k, k.lower().replace(" ", "_")) for k in kinds]
        frame["is_gene"] = kinds == "Gene Expression"
    binary = {"1.0": ("feature_name", "fov_name"), "1.3": ("feature_name", "fov_name", "cell_id")}.get(version, ())
    _write_frame(frame, out, "transcripts", binary=binary, csv=version < "2")


def _write_morphology(out: Path, version: str, truth: Planted) -> None:
    """DAPI (and from version 2 on three more stains) from the H&E's densities, at the instrument's pixels."""
    import cv2

    side = round(truth.side_um / _PIXEL)
    density = -np.log10(
        (cv2.resize(truth.rgb, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.float32) + 1) / 256
    )
    dapi = np.clip(density[..., 0] * 4000, 0, 65535).astype(np.uint16)
    others = [np.clip(density[..., c] * 2500, 0, 65535).astype(np.uint16) for c in (1, 2, 1)]
    _ome(out / "morphology.ome.tif", np.stack([dapi // 2, dapi, dapi // 2]), ["DAPI"] * 3, axes="ZYX")
    if version < "2":
        for name in ("morphology_mip", "morphology_focus"):
            _ome(out / f"{name}.ome.tif", dapi, ["DAPI"], axes="YX")
        return
    folder = out / "morphology_focus"
    folder.mkdir()
    names = [f"morphology_focus_{i:04d}" for i in range(4)]
    if version >= "4":
        names = ["ch0000_dapi", "ch0001_atp1a1_cd45_e-cadherin", "ch0002_18s", "ch0003_alphasma_vimentin"]
    for name, channel, plane in zip(names, _CHANNELS, (dapi, *others), strict=True):
        _ome(folder / f"{name}.ome.tif", plane, [channel], axes="YX")


def _ome(
    path: Path, pixels: np.ndarray, channels: list[str], *, axes: str, mpp: float = _PIXEL, rgb: bool = False
) -> None:
    """OME-TIFF with a pyramid in SubIFDs, halved until a level fits into one tile."""
    import cv2
    import tifffile

    levels = [pixels]
    while max(levels[-1].shape[-3:-1] if rgb else levels[-1].shape[-2:]) > 512:
        last = levels[-1]
        h, w = last.shape[:2] if rgb else last.shape[-2:]
        size = (w // 2, h // 2)
        if last.ndim == 3 and not rgb:
            levels.append(np.stack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in last]))
        else:
            levels.append(cv2.resize(last, size, interpolation=cv2.INTER_AREA))
    metadata: dict[str, Any] = {"axes": axes, "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm"}
    metadata |= {"PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    if axes == "YX":
        metadata["Channel"] = {"Name": channels}
    options: dict[str, Any] = {"tile": (512, 512), "compression": "zlib"}
    if rgb:
        options = {"tile": (512, 512), "compression": "jpeg", "compressionargs": {"level": 92}, "photometric": "rgb"}
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as tif:
        tif.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **options)
        for level in levels[1:]:
            tif.write(level, subfiletype=1, metadata=None, **options)


def _write_he(out: Path, truth: Planted, *, projective: bool) -> None:
    """H&E turned by 89.5 degrees and its alignment: H&E pixels to morphology pixels."""
    import cv2

    mpp, angle = 0.27405, np.radians(-89.5)
    scale = mpp / _PIXEL
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    side = truth.side_um / _PIXEL
    corners = np.array([[0, 0, 1], [side, 0, 1], [0, side, 1], [side, side, 1]]) @ np.linalg.inv(matrix).T
    low = corners[:, :2].min(axis=0)
    matrix[:2, 2] = matrix[:2, :2] @ low
    width, height = np.ceil(corners[:, :2].max(axis=0) - low).astype(int)
    if projective:
        matrix[2, :2] = 8e-7, -9.9e-7
    to_he = np.linalg.inv(matrix) @ np.diag([truth.mpp / _PIXEL, truth.mpp / _PIXEL, 1.0])
    # OpenCV puts pixel centres at whole numbers, the alignment pixel corners.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    warp = np.linalg.inv(half) @ to_he @ half
    turned = cv2.warpPerspective(
        truth.rgb, warp, (int(width), int(height)), flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255)
    )
    _ome(out / "planted_he_image.ome.tif", turned, [], axes="YXS", mpp=mpp, rgb=True)
    lines = [",".join(repr(float(v)) for v in row) for row in matrix]
    (out / "planted_he_imagealignment.csv").write_text("\n".join(lines) + "\n")
