"""How much of each region lies in each bin of a grid: what means of predictions per cell are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ..core.grids import project
from ..errors import InputError
from . import labels
from .grid import Grid
from .model import Region

_PAIRS_AT_ONCE = 500_000
_CIRCLE_POINTS = 32


def shares(target: Region, source: Region, *, by: str = "area") -> sparse.csr_array:
    """Share of every target region that lies in every source region.

    Parameters
    ----------
    target
        Cells, nuclei, spots or any other regions.
    source
        Bins of a grid; with ``by="centre"`` any regions.
    by
        "area": exact areas of polygons (circles as 128-gons) in squares, pixels of labels. "centre": 1 for the source
        that holds the target's centre.

    Returns
    -------
    scipy.sparse.csr_array
        float64 [targets, sources]; rows add up to the share of the target that the sources cover, at most 1.

    Raises
    ------
    InputError
        Areas in regions that are no grid.
    """
    shape = (len(target), len(source))
    if by == "centre":
        at = source.geometry.assign(target.centres_um)
        rows = np.flatnonzero(at >= 0)
        return sparse.csr_array((np.ones(len(rows)), (rows, at[rows])), shape=shape)
    if by != "area":
        raise InputError(f"no weight {by!r}", fix="one of: area, centre")
    if not isinstance(source.geometry, Grid):
        raise InputError(f"{source.name!r} is no grid, so that areas are not known", fix="weight by centre")
    if isinstance(target.geometry, labels.Labels):
        return _of_labels(target.geometry, source.geometry, shape)
    if isinstance(target.geometry, Grid):
        import shapely

        from ..core.grids import bin_corners

        geometry: Any = target.geometry
        corners = bin_corners(geometry.rows, geometry.cols, transform=geometry.transform)
        return _of_polygons(shapely.polygons(corners), source.geometry, shape)
    return _of_polygons(_polygons(target.geometry), source.geometry, shape)


def _polygons(geometry: Any) -> np.ndarray:
    import shapely

    if geometry.radius is None:
        return np.asarray(geometry.geometry)
    return np.asarray(shapely.buffer(geometry.geometry, geometry.radius, quad_segs=_CIRCLE_POINTS))


def _of_polygons(polygons: np.ndarray, grid: Grid, shape: tuple[int, int]) -> sparse.csr_array:
    """Areas of polygons in the bins that they touch, in the grid's own coordinates: there all bins are unit squares."""
    import shapely

    back = np.linalg.inv(grid.transform)
    inside = shapely.transform(polygons, lambda xy: project(back, xy))
    inside = np.where(shapely.is_valid(inside), inside, shapely.make_valid(inside))
    whole = shapely.area(inside)
    low_x, low_y, high_x, high_y = np.nan_to_num(shapely.bounds(inside).T, nan=-1.0)
    limit = np.array([grid.shape[1], grid.shape[0]])
    first = np.clip(np.floor([low_x, low_y]).T, 0, limit).astype(np.int64)
    last = np.clip(np.ceil([high_x, high_y]).T, 0, limit).astype(np.int64)
    count = np.maximum(last - first, 0)
    pairs = count.prod(axis=1)
    parts = []
    for some in np.split(np.arange(len(polygons)), _cuts(pairs)):
        owner = np.repeat(some, pairs[some])
        within = np.arange(len(owner)) - np.repeat(np.cumsum(pairs[some]) - pairs[some], pairs[some])
        row, col = np.divmod(within, np.maximum(count[owner, 0], 1))
        row, col = row + first[owner, 1], col + first[owner, 0]
        bins = grid.lookup(row * grid.shape[1] + col)
        there = bins >= 0
        owner, row, col, bins = owner[there], row[there], col[there], bins[there]
        area = shapely.area(shapely.intersection(inside[owner], shapely.box(col, row, col + 1, row + 1)))
        some_area = area > 0
        parts.append((owner[some_area], bins[some_area], area[some_area] / whole[owner[some_area]]))
    rows, cols, values = (np.concatenate(v) for v in zip(*parts, strict=True))
    return sparse.csr_array((values, (rows, cols)), shape=shape)


def _cuts(pairs: np.ndarray) -> np.ndarray:
    """Where to cut the polygons, so that no part has many more pairs than are looked at at once."""
    group = np.cumsum(pairs) // _PAIRS_AT_ONCE
    return np.flatnonzero(np.diff(group)) + 1


def _of_labels(target: labels.Labels, grid: Grid, shape: tuple[int, int]) -> sparse.csr_array:
    """Pixels of labels in bins, by their centres."""
    total = np.zeros(shape[0])
    sums = sparse.csr_array(shape)
    for y0, x0, block in labels.blocks(target.raster):
        y, x = np.nonzero(block)
        who = target.lookup(block[y, x].astype(np.int64))
        y, x, who = y[who >= 0], x[who >= 0], who[who >= 0]
        total += np.bincount(who, minlength=shape[0])
        bins = grid.assign(project(target.matrix, np.column_stack([x + x0 + 0.5, y + y0 + 0.5])))
        there = bins >= 0
        ones = np.ones(int(there.sum()))
        sums += sparse.csr_array((ones, (who[there], bins[there])), shape=shape)
    scale = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return sparse.csr_array(sparse.diags_array(scale) @ sums)
