"""Regions that are the bins of a regular grid: a transformation and the list of bins that are there.

On disk a grid is a points element (x, y of the centres in microns, ``id``, ``row``, ``col``) whose stamp has the
grid's shape and transformation under ``grid``, so that plain spatialdata opens it, and a window reads its part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import keys
from ..core import aggregate as kernels
from ..core.grids import bin_corners, project
from ..errors import InputError
from .model import Box, Geometry, Region

_PARTITION_ROWS = 1_000_000


@dataclass(frozen=True, eq=False)
class Grid(Geometry):
    """Bins of a grid.

    Parameters
    ----------
    rows, cols
        [n] int32.
    shape
        Rows and columns of the whole grid.
    transform
        [3, 3] projective, from (column, row) to microns; bin (r, c) covers [c, c + 1] x [r, r + 1].
    """

    rows: np.ndarray
    cols: np.ndarray
    shape: tuple[int, int]
    transform: np.ndarray

    @cached_property
    def lookup(self) -> kernels.Lookup:
        """Position of a bin, by row * columns + column."""
        return kernels.Lookup(self.rows.astype(np.int64) * self.shape[1] + self.cols)

    def assign(self, xy_um: np.ndarray) -> np.ndarray:
        """See `Geometry.assign`; bins are half open, so that a border belongs to one."""
        return self.lookup(kernels.bins(xy_um, np.linalg.inv(self.transform), self.shape))

    def take(self, index: np.ndarray) -> Grid:
        """See `Geometry.take`."""
        return Grid(self.rows[index], self.cols[index], self.shape, self.transform)

    def pitch_um(self) -> float:
        """Side of a bin at the middle of the grid."""
        return pitch_um(self.shape, self.transform)

    def spacing_um(self) -> float:
        """See `Geometry.spacing_um`."""
        return self.pitch_um() / 8


def pitch_um(shape: tuple[int, int], transform: np.ndarray) -> float:
    """Side of a bin at the middle of a grid, as the root of its area."""
    corners = bin_corners(np.array([shape[0] // 2]), np.array([shape[1] // 2]), transform=transform)[0]
    a, b = corners[2] - corners[0], corners[3] - corners[1]
    return float(np.sqrt(abs(a[0] * b[1] - a[1] * b[0]) / 2))


def facts(sdata: Any, name: str) -> dict[str, Any] | None:
    """Shape and transformation of a grid, or None for points that are none."""
    from .. import store

    stamp = store.stamp_of(sdata, name)
    return None if stamp is None else stamp.get("grid")


def load(sdata: Any, name: str) -> Region:
    """Open a grid element as a region."""
    found = facts(sdata, name)
    if found is None:
        raise InputError("these points are no grid", where=f"points {name!r}", fix="write it with regions.add_grid")
    table = _columns(sdata, name, ["row", "col", "x", "y"])
    rows, cols = (np.asarray(table.column(c)).astype(np.int32) for c in ("row", "col"))
    centres = np.column_stack([np.asarray(table.column("x")), np.asarray(table.column("y"))]).astype(np.float64)
    geometry = Grid(rows, cols, (int(found["shape"][0]), int(found["shape"][1])), np.asarray(found["transform"]))
    return Region(
        name, "grid", centres, geometry, lambda: np.asarray(_columns(sdata, name, ["id"]).column("id"), dtype=object)
    )


def _columns(sdata: Any, name: str, columns: list[str]) -> Any:
    import pyarrow as pa

    from ..store import points

    return pa.Table.from_batches(points.scan(sdata, name, columns=columns))


def add(
    sdata: Any,
    name: str,
    *,
    rows: Any,
    cols: Any,
    ids: Any,
    shape: tuple[int, int],
    transform: Any,
    step: str,
    parameters: dict[str, Any],
    inputs: dict[str, str] | None = None,
    more: dict[str, Any] | None = None,
) -> None:
    """See `stainseq.regions.add_grid`."""
    from .. import store

    element = as_element(rows, cols, ids, shape=shape, transform=transform)
    more = {**(more or {}), **element.attrs[keys.STAMP]}
    store.write_element(sdata, name, element, step=step, parameters=parameters, inputs=inputs, more=more)


def as_element(rows: Any, cols: Any, ids: Any, *, shape: tuple[int, int], transform: Any) -> Any:
    """A grid as a lazy points element that carries its shape and transformation.

    Parameters
    ----------
    rows, cols, ids, shape, transform
        See `stainseq.regions.add_grid`.

    Raises
    ------
    InputError
        Bins outside the grid or listed twice, a transformation that cannot be inverted.
    """
    rows, cols = np.asarray(rows, dtype=np.int32), np.asarray(cols, dtype=np.int32)
    transform = np.asarray(transform, dtype=np.float64)
    _check(rows, cols, ids, shape, transform)
    element = _as_points(rows, cols, ids, transform)
    facts: dict[str, Any] = {"shape": [int(shape[0]), int(shape[1])], "transform": transform.tolist()}
    element.attrs[keys.STAMP] = {"grid": {**facts, "pitch_um": pitch_um(shape, transform)}}
    return element


def _check(rows: np.ndarray, cols: np.ndarray, ids: Any, shape: tuple[int, int], transform: np.ndarray) -> None:
    fix = "correct the list of bins"
    if transform.shape != (3, 3) or not np.isfinite(transform).all() or abs(np.linalg.det(transform)) < 1e-12:
        raise InputError(
            "a grid's transformation is a 3 x 3 matrix that can be inverted", fix="check the scale factors"
        )
    if not len(rows) == len(cols) or (ids is not None and not callable(ids) and len(ids) != len(rows)):
        raise InputError("rows, columns and ids of a grid differ in length", fix=fix)
    if len(rows) == 0:
        raise InputError("a grid without bins", fix=fix)
    if rows.min() < 0 or cols.min() < 0 or rows.max() >= shape[0] or cols.max() >= shape[1]:
        raise InputError(f"bins outside a grid of {shape[0]} rows and {shape[1]} columns", fix=fix)
    key = np.sort(rows.astype(np.int64) * shape[1] + cols)
    if (key[1:] == key[:-1]).any():
        raise InputError("two bins have the same row and column", fix=fix)


def _as_points(rows: np.ndarray, cols: np.ndarray, ids: Any, transform: np.ndarray) -> Any:
    """A lazy points element whose partitions are made when they are written.

    It is not parsed by `PointsModel`, which would compute all partitions to look at their index.
    """
    import dask.dataframe as dd
    import pandas as pd
    from spatialdata.transformations import Identity, set_transformation

    def part(start: int) -> pd.DataFrame:
        mine = slice(start, start + _PARTITION_ROWS)
        r, c = rows[mine], cols[mine]
        xy = project(transform, np.column_stack([c + 0.5, r + 0.5]))
        names = np.char.add(np.char.add(r.astype(str), "_"), c.astype(str)) if ids is None else _slice(ids, r, c, mine)
        text = pd.array(names, dtype="string[pyarrow]")
        index = pd.RangeIndex(start, start + len(r))
        return pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "id": text, "row": r, "col": c}, index=index)

    meta = part(0).iloc[:0]
    frame = dd.from_map(part, list(range(0, len(rows), _PARTITION_ROWS)), meta=meta)
    set_transformation(frame, {keys.UM: Identity()}, set_all=True)
    return frame


def _slice(ids: Any, rows: np.ndarray, cols: np.ndarray, mine: slice) -> Any:
    if callable(ids):
        return ids(rows, cols)
    part = ids[mine]
    return part.to_pandas() if hasattr(part, "to_pandas") else np.asarray(part).astype(object)


def window(sdata: Any, name: str, region: Region | None, box: Box) -> Any:
    """See `stainseq.regions.read_window`; polygons of the bins in the window only."""
    import geopandas as gpd
    import shapely

    from .. import store

    if region is not None:
        bins: Any = region.geometry
        found: dict[str, Any] = {"shape": bins.shape, "transform": bins.transform}
    else:
        found = facts(sdata, name) or {}
        if not found:
            raise InputError("these points are no grid", where=f"points {name!r}", fix="write it with regions.add_grid")
    transform = np.asarray(found["transform"], dtype=np.float64)
    reach = _reach(tuple(found["shape"]), transform)
    wide = (box[0] - reach, box[1] - reach, box[2] + reach, box[3] + reach)
    table = store.read_points_window(sdata, name, wide, columns=["id", "row", "col"])
    rows, cols = np.asarray(table.column("row")), np.asarray(table.column("col"))
    order = np.lexsort((cols, rows))
    corners = bin_corners(rows[order], cols[order], transform=transform)
    geometry = shapely.polygons(corners)
    # Bins with a corner in the window touch it; GEOS is asked about those at its rim alone.
    touching = np.asarray(((corners >= box[:2]) & (corners <= box[2:])).all(-1).any(-1))
    rim = np.flatnonzero(~touching)
    touching[rim] = shapely.intersects(geometry[rim], shapely.box(*box))
    ids = np.asarray(table.column("id"), dtype=object)[order][touching]
    places = {"row": rows[order][touching], "col": cols[order][touching]}
    return gpd.GeoDataFrame(places, geometry=geometry[touching], index=ids)


def _reach(shape: tuple[int, int], transform: np.ndarray) -> float:
    """Largest distance from a bin's centre to its corners, at the grid's corners where a projection is extreme."""
    r, c = np.array([0, 0, shape[0] - 1, shape[0] - 1]), np.array([0, shape[1] - 1, 0, shape[1] - 1])
    corners = bin_corners(r, c, transform=transform)
    centres = project(transform, np.column_stack([c + 0.5, r + 0.5]))
    return float(np.sqrt(((corners - centres[:, None]) ** 2).sum(-1)).max()) * 1.001
