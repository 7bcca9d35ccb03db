"""cells.zarr.zip as the vendor's software writes it: masks of nuclei and cells, and their outlines.

https://www.10xgenomics.com/support/software/xenium-onboard-analysis/latest/advanced/xoa-output-zarr
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ._xenium_run import PIXEL, Run

_CHUNK = 1024
_COLUMNS = (
    *("cell_centroid_x", "cell_centroid_y", "cell_area"),
    *("nucleus_centroid_x", "nucleus_centroid_y", "nucleus_area", "z_level", "nucleus_count"),
)


def write_cells_zarr(path: Path, version: str, run: Run, numbers: np.ndarray, rings: tuple[np.ndarray, ...]) -> None:
    """Write cells.zarr.zip (Zarr 2 in a zip), chunk by chunk.

    Parameters
    ----------
    path
        File to make.
    version
        Of the onboard analysis.
    run
        Whose masks to write.
    numbers
        Ids of the cells as numbers [cells]: of version 1.0 whole, later their prefix.
    rings
        float32 [nuclei, corners, 2] and [cells, corners, 2] um, closed.
    """
    import zarr

    with warnings.catch_warnings(), zarr.storage.ZipStore(path, mode="w") as store:
        # A zip file keeps each write; attributes are set when a group is made, so that nothing is written twice.
        warnings.filterwarnings("error", message="Duplicate name")
        root = zarr.create_group(store, zarr_format=2, attributes=_attributes(version, len(numbers)))
        ids = numbers if version == "1.0" else np.column_stack([numbers, np.ones_like(numbers)])
        _put(root, "cell_id", ids.astype(np.uint32))
        _put(root, "cell_summary", _summary(version, run), column_names=list(_COLUMNS[: 7 + (version >= "2")]))
        masks = root.create_group("masks")
        _put(masks, "homogeneous_transform", np.diag([1 / PIXEL, 1 / PIXEL, 1, 1]).astype(np.float32))
        for kind in (0, 1):
            shape, chunks = (run.side, run.side), (min(_CHUNK, run.side), min(_CHUNK, run.side))
            mask = masks.create_array(str(kind), shape=shape, dtype="uint32", chunks=chunks)
            for top in range(0, run.side, _CHUNK):
                bottom = min(top + _CHUNK, run.side)
                mask[top:bottom] = run.mask(kind, top, bottom)
        _write_rings(root, version, run, rings)


def _write_rings(root: Any, version: str, run: Run, rings: tuple[np.ndarray, ...]) -> None:
    flat = [r.reshape(len(r), -1).astype(np.float32) for r in rings]
    corners = [np.full(len(r), r.shape[1], dtype=np.int32) for r in rings]
    if version >= "2":
        sets = root.create_group("polygon_sets")
        for kind, index in enumerate((run.nuclei, np.arange(len(run.cells)))):
            group = sets.create_group(str(kind))
            _put(group, "cell_index", index.astype(np.uint32))
            _put(group, "method", np.zeros(len(index), dtype=np.uint32))
            _put(group, "num_vertices", corners[kind])
            _put(group, "vertices", flat[kind])
        return
    _put(root, "polygon_vertices", np.stack(flat))
    _put(root, "polygon_num_vertices", np.stack(corners))
    if version >= "1.3":
        _put(root, "seg_mask_value", np.arange(1, len(run.cells) + 1, dtype=np.uint32))


def _attributes(version: str, cells: int) -> dict[str, Any]:
    told: dict[str, Any] = {"major_version": int(version[0]) + 1, "minor_version": 0, "number_cells": cells}
    told |= {"name": "CellSegmentationDataset", "spatial_units": "microns"}
    told |= {"polygon_set_names": ["nucleus", "cell"], "polygon_set_display_names": ["Nucleus boundaries", "Cells"]}
    return told | {"polygon_set_descriptions": ["Nuclei by DAPI", "Nuclei expanded"], "segmentation_methods": ["DAPI"]}


def _summary(version: str, run: Run) -> np.ndarray:
    n = len(run.cells)
    area = np.bincount(run.nuclei, weights=np.pi * run.nucleus_radius**2, minlength=n)
    count = np.bincount(run.nuclei, minlength=n)
    found = np.column_stack([run.cells, np.pi * run.radius**2, run.cells, area, np.full(n, 15.0), count])
    return found if version >= "2" else found[:, :7]


def _put(group: Any, name: str, values: np.ndarray, **attributes: Any) -> None:
    chunks = tuple(max(1, s) for s in values.shape)
    array = group.create_array(
        name, shape=values.shape, dtype=values.dtype, chunks=chunks, attributes=attributes or None
    )
    if values.size:
        array[...] = values
