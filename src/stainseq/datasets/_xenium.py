"""Xenium bundles as the vendor's software writes them, with a planted law.

Names, columns, types, attributes and directions follow files of onboard analysis 1.0.2, 1.x, 3.0 and Xenium Ranger
3.1, and spatialdata-io's reader for 2.0 and 4.0. Left out are files that nothing here reads (analysis, the
Explorer's copies). Transcripts are drawn, written and counted strip by strip, so that a slide may have any number.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import InputError, StoreError
from ._planted import Planted, planted
from ._xenium_pictures import write_he, write_morphology
from ._xenium_run import PIXEL, Run, Strip, Tally, happen, strips
from ._xenium_zarr import write_cells_zarr

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

VERSIONS = ("1.0", "1.3", "2.0", "3.0", "4.0")


def xenium(
    folder: str | os.PathLike[str],
    *,
    version: Literal["1.0", "1.3", "2.0", "3.0", "4.0"] = "3.0",
    size: Literal["small", "medium", "large"] = "small",
    n_genes: int = 40,
    counts_per_superpixel: float = 25.0,
    he: bool = True,
    projective: bool = False,
    transcripts: bool = True,
    masks: bool = True,
    seed: int = 0,
) -> Planted:
    """Write a Xenium bundle: real H&E, nuclei where its haematoxylin peaks, expression by a planted law.

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
    counts_per_superpixel
        Mean transcripts on 8 x 8 um of tissue. 25 is a rich panel; a large slide of 230 has 40 million.
    he
        With H&E image and its alignment, turned by -89.5 degrees as 10x's worked example.
    projective
        The alignment is not quite affine.
    transcripts
        False writes cells and counts alone.
    masks
        With cells.zarr.zip.
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
    truth = planted(size=size, n_genes=n_genes, counts_per_superpixel=counts_per_superpixel, seed=seed)
    run = happen(truth, seed, second_nuclei=version >= "2")
    out.mkdir(parents=True)
    numbers = _cell_numbers(len(run.cells), version, seed)
    ids = numbers if version == "1.0" else _cell_ids(numbers)
    tally = _draw(out if transcripts else None, version, truth, run, ids, seed)
    _write_experiment(out, version, run, truth, tally, seed)
    _write_cells(out, version, run, ids, tally)
    rings = _rings(run.nucleus_at, run.nucleus_radius), _rings(run.cells, run.radius)
    _write_outlines(out, version, run, ids, rings)
    if masks:
        write_cells_zarr(out / "cells.zarr.zip", version, run, numbers, rings)
    _write_matrix(out / "cell_feature_matrix.h5", run, ids, tally, version)
    write_morphology(out, version, truth)
    if he:
        write_he(out, truth, projective=projective)
    return truth


def _cell_numbers(n: int, version: str, seed: int) -> np.ndarray:
    """1 and so on in version 1.0; then numbers without an order."""
    if version == "1.0":
        return np.arange(1, n + 1)
    return np.random.default_rng([seed, 12]).permutation(np.arange(n) * 6151 + 0x10000000)


def _cell_ids(numbers: np.ndarray) -> np.ndarray:
    """Eight letters (hexadecimal digits written a to p) and the data set's number."""
    digits = (numbers[:, None] >> (4 * np.arange(7, -1, -1))) & 15
    letters = (digits + ord("a")).astype(np.uint8)
    return np.array([bytes(r).decode() + "-1" for r in letters], dtype=object)


def _rings(at: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Outlines of 12 corners, closed, float32 [n, 13, 2] um."""
    angle = np.linspace(0, 2 * np.pi, 13)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    ring[-1] = ring[0]
    return (at[:, None, :] + radius[:, None, None] * ring).astype(np.float32)


def _draw(out: Path | None, version: str, truth: Planted, run: Run, ids: np.ndarray, seed: int) -> Tally:
    """Transcripts strip by strip, written where a folder is given, counted."""
    from scipy import sparse

    tally = Tally(sparse.csc_array((len(run.features), len(run.cells)), dtype=np.int32))
    file = None if out is None else _TranscriptFile(out, version)
    for strip in strips(truth, run, seed):
        if file is not None:
            file.add(_transcripts(strip, version, run, ids, first=tally.transcripts))
        tally.add(strip)
    if file is not None:
        file.close()
    return tally


def _write_experiment(out: Path, version: str, run: Run, truth: Planted, tally: Tally, seed: int) -> None:
    area = truth.side_um**2
    told: dict[str, Any] = {"major_version": 5, "minor_version": 0, "patch_version": 0}
    told |= {"run_name": "Planted law", "run_start_time": "2026-01-01T00:00:00Z", "region_name": f"planted_{seed}"}
    told |= {"preservation_method": "ffpe", "num_cells": len(run.cells)}
    per_cell = np.asarray(tally.counts.sum(axis=0)).ravel()
    told |= {"transcripts_per_cell": int(np.median(per_cell)) if len(per_cell) else 0}
    told |= {"transcripts_per_100um": tally.transcripts / area * 1e4, "region_area": area}
    told |= {"total_cell_area": float((np.pi * run.radius**2).sum())}
    told |= {"num_transcripts": tally.transcripts, "num_transcripts_high_quality": tally.good}
    told |= {"fraction_transcripts_assigned": tally.assigned / max(tally.transcripts, 1)}
    told |= {"cassette_name": "N/A", "slide_id": "0000000", "panel_name": "Planted panel", "panel_organism": "Human"}
    told |= {"panel_num_targets_predesigned": len(truth.names), "chemistry_version": "v1", "pixel_size": PIXEL}
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


def _write_cells(out: Path, version: str, run: Run, ids: np.ndarray, tally: Tally) -> None:
    import pandas as pd

    n = len(ids)
    kinds = np.array([kind for _, _, kind in run.features])

    def count(kind: str) -> np.ndarray:
        return np.asarray(tally.counts[kinds == kind].sum(axis=0)).ravel().astype(np.int64)

    frame = pd.DataFrame({"cell_id": ids, "x_centroid": run.cells[:, 0], "y_centroid": run.cells[:, 1]})
    frame["transcript_counts"] = count("Gene Expression")
    frame["control_probe_counts"] = count("Negative Control Probe")
    if version >= "3":
        frame["genomic_control_counts"] = np.zeros(n, dtype=np.int64)
    frame["control_codeword_counts"] = count("Negative Control Codeword")
    frame["unassigned_codeword_counts"] = count("Unassigned Codeword")
    if version >= "3":
        frame["deprecated_codeword_counts"] = np.zeros(n, dtype=np.int64)
    frame["total_counts"] = np.asarray(tally.counts.sum(axis=0)).ravel().astype(np.int64)
    frame["cell_area"] = np.pi * run.radius**2
    area = np.bincount(run.nuclei, weights=np.pi * run.nucleus_radius**2, minlength=n)
    frame["nucleus_area"] = area
    if version >= "2":
        frame["nucleus_count"] = np.bincount(run.nuclei, minlength=n).astype(np.int64)
        frame["segmentation_method"] = "Segmented by nucleus expansion of 5.0µm"
    _write_frame(frame, out, "cells", binary=("cell_id",) if version == "1.3" else (), csv=True)


def _write_outlines(out: Path, version: str, run: Run, ids: np.ndarray, rings: tuple[np.ndarray, ...]) -> None:
    import pandas as pd

    kinds = {"nucleus_boundaries": run.nuclei, "cell_boundaries": np.arange(len(ids))}
    for (name, owner), ring in zip(kinds.items(), rings, strict=True):
        corners = ring.shape[1]
        frame = pd.DataFrame({"cell_id": np.repeat(ids[owner], corners)})
        frame["vertex_x"], frame["vertex_y"] = ring.reshape(-1, 2).T
        if version >= "2":
            frame["label_id"] = np.repeat(np.arange(1, len(owner) + 1), corners).astype(np.int32)
        _write_frame(frame, out, name, binary=("cell_id",) if version == "1.3" else (), csv=version < "2")


def _write_matrix(path: Path, run: Run, ids: np.ndarray, tally: Tally, version: str) -> None:
    """10x HDF5: features by cells, CSC, transcripts of quality 20 and above."""
    import h5py

    shape, matrix = (len(run.features), len(ids)), tally.counts
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


def _transcripts(strip: Strip, version: str, run: Run, ids: np.ndarray, *, first: int) -> pa.Table:
    """Rows of transcripts.parquet."""
    import pyarrow as pa

    binary = {"1.0": ("feature_name", "fov_name"), "1.3": ("feature_name", "fov_name", "cell_id")}.get(version, ())

    def words(name: str, values: list[str], which: np.ndarray) -> pa.Array:
        kind = pa.binary() if name in binary else pa.string() if binary else pa.large_string()
        return pa.DictionaryArray.from_arrays(pa.array(which.astype(np.int32)), pa.array(values)).cast(kind)

    n = len(strip.feature)
    columns: dict[str, Any] = {
        "transcript_id": (281_474_976_710_656 + first + np.arange(n)).astype(np.uint64),
    }
    if version == "1.0":
        columns["cell_id"] = np.where(strip.cell >= 0, ids[strip.cell], -1).astype(np.int32)
    else:
        columns["cell_id"] = words("cell_id", [*ids, "UNASSIGNED"], np.where(strip.cell >= 0, strip.cell, len(ids)))
    columns["overlaps_nucleus"] = strip.in_nucleus.astype(np.uint8)
    columns["feature_name"] = words("feature_name", [f[1] for f in run.features], strip.feature)
    columns |= dict(zip(("x_location", "y_location", "z_location"), np.ascontiguousarray(strip.xyz.T), strict=True))
    columns["qv"] = strip.qv
    columns["fov_name"] = words("fov_name", ["A1"], np.zeros(n))
    columns["nucleus_distance"] = strip.nucleus_distance
    if version >= "3":
        kinds = [f[2] for f in run.features]
        categories = ["predesigned_gene" if k == "Gene Expression" else k.lower().replace(" ", "_") for k in kinds]
        columns["codeword_index"] = strip.feature.astype(np.int32)
        columns["codeword_category"] = words("codeword_category", categories, strip.feature)
        columns["is_gene"] = np.array([k == "Gene Expression" for k in kinds])[strip.feature]
    return pa.table(columns)


class _TranscriptFile:
    """transcripts.parquet, and before version 2 the same as text, written in pieces."""

    def __init__(self, out: Path, version: str) -> None:
        self._out, self._csv = out, version < "2"
        self._writer: Any = None

    def add(self, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._out / "transcripts.parquet", table.schema, compression="snappy")
        self._writer.write_table(table, row_group_size=100_000)
        if self._csv:
            frame = table.to_pandas()
            for name in ("cell_id", "feature_name", "fov_name"):
                frame[name] = [v.decode() if isinstance(v, bytes) else v for v in frame[name]]
            path = self._out / "transcripts.csv.gz"
            frame.to_csv(path, index=False, mode="a", header=not path.exists(), compression="gzip")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
