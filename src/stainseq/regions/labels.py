"""Regions that are the labels of a raster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ..core import aggregate as kernels
from ..core.grids import project, tiles
from ..errors import InputError, ScaleError
from ..store.images import levels_of
from ..store.points import to_um
from .model import Box, Geometry, Region

_BLOCK_PX = 2048
_KEPT_BLOCKS = 8
_MANY = 1024
"""Points in a block from which on it is read whole and kept."""
_FIRST_MARGIN_PX = 64


@dataclass(frozen=True, eq=False)
class Labels(Geometry):
    """Labels of a raster.

    Parameters
    ----------
    labels
        [n] int64 label of each region.
    raster
        [h, w] array, usually dask: read block by block.
    matrix
        [3, 3] from px (x, y; the first pixel covers 0 to 1) to microns.
    """

    labels: np.ndarray
    raster: Any
    matrix: np.ndarray
    typical_px: float = field(default=16.0)

    @cached_property
    def lookup(self) -> kernels.Lookup:
        """Position of a label."""
        return kernels.Lookup(self.labels)

    @cached_property
    def block(self) -> Callable[[int, int], np.ndarray]:
        """A block by its upper left pixel; the last few are kept, 16 MB each."""

        @lru_cache(maxsize=_KEPT_BLOCKS)
        def fetch(y0: int, x0: int) -> np.ndarray:
            h, w = self.raster.shape
            return read(self.raster, (y0, min(y0 + _BLOCK_PX, h), x0, min(x0 + _BLOCK_PX, w)))

        return fetch

    def assign(self, xy_um: np.ndarray) -> np.ndarray:
        """See `Geometry.assign`; reads only the blocks that points lie in."""
        px = np.floor(project(np.linalg.inv(self.matrix), xy_um))
        h, w = self.raster.shape
        found = np.full(len(px), -1, dtype=np.int64)
        with np.errstate(invalid="ignore"):
            inside = np.flatnonzero((px[:, 0] >= 0) & (px[:, 1] >= 0) & (px[:, 0] < w) & (px[:, 1] < h))
        x, y = px[inside, 0].astype(np.int64), px[inside, 1].astype(np.int64)
        block = (y // _BLOCK_PX) * (w // _BLOCK_PX + 1) + x // _BLOCK_PX
        order = np.argsort(block, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(block[order]) != 0]) if len(order) else np.zeros(0, np.int64)
        for mine in np.split(order, starts[1:]) if len(order) else []:
            v, u = y[mine], x[mine]
            if len(mine) >= _MANY:
                # Points are stored by place: the next batch lies mostly in the same blocks.
                y0, x0 = int(v[0]) // _BLOCK_PX * _BLOCK_PX, int(u[0]) // _BLOCK_PX * _BLOCK_PX
                part = self.block(y0, x0)
            else:
                y0, x0 = int(v.min()), int(u.min())
                part = read(self.raster, (y0, int(v.max()) + 1, x0, int(u.max()) + 1))
            found[inside[mine]] = part[v - y0, u - x0]
        return np.where(found > 0, self.lookup(found), -1)

    def take(self, index: np.ndarray) -> Labels:
        """See `Geometry.take`."""
        return Labels(self.labels[index], self.raster, self.matrix, self.typical_px)

    def spacing_um(self) -> float:
        """See `Geometry.spacing_um`."""
        return max(1.0, self.typical_px / 8) * float(np.sqrt(abs(np.linalg.det(self.matrix[:2, :2]))))


def read(raster: Any, box: tuple[int, int, int, int]) -> np.ndarray:
    """y0, y1, x0, x1 of a raster as numpy."""
    part = raster[box[0] : box[1], box[2] : box[3]]
    return np.asarray(part.compute() if hasattr(part, "compute") else part)


def blocks(raster: Any) -> Iterator[tuple[int, int, np.ndarray]]:
    """A raster block by block: y0, x0, values."""
    for tile in tiles(raster.shape, size=_BLOCK_PX):
        yield tile.base[0], tile.base[2], read(raster, tile.base)


def load(sdata: Any, name: str) -> Region:
    """Open a labels element as a region.

    Ids come from a table that annotates it (``counts_<name>`` before others, then the one with most rows), joined by
    its column ``label`` or its instance key; else from the shapes of the same things (``cells`` of ``cells_labels``)
    by their column ``label``. Without either the ids are the labels as text, and the raster is read once for the list
    of them.
    """
    element = sdata.labels[name]
    matrix = to_um(element)
    if matrix is None:
        raise ScaleError(
            "no transformation to 'um'",
            where=f"labels {name!r}",
            fix="give the pixel size (mpp) when the slide is made",
        )
    raster = levels_of(element)[0].data
    if raster.ndim != 2 or raster.dtype.kind not in "iu":
        raise InputError("labels are whole numbers in two dimensions", where=f"labels {name!r}", fix="convert them")
    listed = _id_table(sdata, name)
    listed = _id_shapes(sdata, name) if listed is None else listed
    if listed is not None and listed[2] is not None:
        labels, ids, centres = listed
        return Region(name, "labels", np.asarray(centres), Labels(labels, raster, matrix), lambda: ids)
    table = kernels.LabelTable()
    for y0, x0, values in blocks(raster):
        table.add(values, y0, x0)
    found, area, px, _ = table.result()
    typical = float(np.sqrt(np.median(area))) if len(area) else 16.0
    centres = project(matrix, px)
    if listed is None:
        geometry = Labels(found, raster, matrix, typical)
        return Region(name, "labels", centres, geometry, lambda: found.astype(str).astype(object))
    labels, ids, _ = listed
    at = kernels.Lookup(found)(labels)
    mine = np.where((at >= 0)[:, None], centres[np.maximum(at, 0)] if len(centres) else np.nan, np.nan)
    return Region(name, "labels", mine, Labels(labels, raster, matrix, typical), lambda: ids)


def _id_table(sdata: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """Labels, ids and centres of the table that says most about a labels element."""
    from .. import keys

    best = None
    for key, table in sdata.tables.items():
        attrs = table.uns.get("spatialdata_attrs") or {}
        regions = attrs.get("region")
        regions = [regions] if isinstance(regions, str) else list(regions if regions is not None else [])
        if name not in regions:
            continue
        rows = np.asarray(table.obs[attrs["region_key"]].astype(str) == name)
        rank = (key == keys.counts(name), int(rows.sum()), key)
        if best is None or rank > best[0]:
            best = (rank, table, rows, attrs["instance_key"])
    if best is None:
        return None
    _, table, rows, instance_key = best
    column = table.obs["label"] if "label" in table.obs else table.obs[instance_key]
    labels = column[rows].astype(np.int64).to_numpy()
    centres = np.asarray(table.obsm[keys.SPATIAL])[rows].astype(np.float64) if keys.SPATIAL in table.obsm else None
    return labels, np.asarray(table.obs_names[rows], dtype=object), centres


def _id_shapes(sdata: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Labels, ids and centres of the shapes that outline a labels element."""
    import shapely

    of = name.removesuffix("_labels")
    if of == name or of not in sdata.shapes or "label" not in sdata.shapes[of]:
        return None
    shapes = sdata.shapes[of]
    matrix = to_um(shapes)
    shapes = shapes[shapes["label"] > 0]
    labels = shapes["label"].to_numpy(dtype=np.int64)
    if matrix is None or len(np.unique(labels)) < len(labels):
        return None
    centres = shapely.get_coordinates(shapes.geometry.centroid.to_numpy())
    return labels, shapes.index.to_numpy(dtype=object), project(matrix, centres)


def window(sdata: Any, name: str, region: Region | None, box: Box) -> Any:
    """See `stainseq.regions.read_window`; the outlines follow the pixels' edges."""
    import geopandas as gpd
    import shapely

    region = load(sdata, name) if region is None else region
    labels: Any = region.geometry
    area = shapely.box(*box)
    corners = project(np.linalg.inv(labels.matrix), np.array([[box[i], box[j]] for i in (0, 2) for j in (1, 3)]))
    inner = _clip(np.r_[np.floor(corners.min(0)), np.ceil(corners.max(0)) + 1][[1, 3, 0, 2]], labels.raster.shape)
    names, outlines = _complete_outlines(labels.raster, inner)
    at = labels.lookup(names)
    keep = at >= 0
    geometry = shapely.transform(outlines[keep], lambda xy: project(labels.matrix, xy))
    at = at[keep]
    touching = shapely.intersects(geometry, area)
    geometry, at = geometry[touching], at[touching]
    order = np.argsort(at, kind="stable")
    return gpd.GeoDataFrame({"label": labels.labels[at[order]]}, geometry=geometry[order], index=region.ids[at[order]])


def _clip(box: np.ndarray, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    y0, y1, x0, x1 = (int(v) for v in box)
    return max(y0, 0), min(y1, shape[0]), max(x0, 0), min(x1, shape[1])


def _complete_outlines(raster: Any, inner: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Whole outlines, in px, of all labels in a box: more is read until none of them reaches the border."""
    import shapely

    h, w = raster.shape
    if inner[0] >= inner[1] or inner[2] >= inner[3]:
        return np.zeros(0, np.int64), np.zeros(0, object)
    margin = _FIRST_MARGIN_PX
    while True:
        y0, y1, x0, x1 = outer = _clip(np.array(inner) + np.array([-1, 1, -1, 1]) * margin, (h, w))
        part = read(raster, outer)
        mine = np.unique(part[inner[0] - y0 : inner[1] - y0, inner[2] - x0 : inner[3] - x0])
        mine = mine[mine > 0]
        edges = [(part[0], y0 > 0), (part[-1], y1 < h), (part[:, 0], x0 > 0), (part[:, -1], x1 < w)]
        cut = [np.intersect1d(edge, mine).size for edge, counts in edges if counts]
        if not any(cut):
            break
        margin *= 4
    part = np.where(np.isin(part, mine), part, 0)
    names, runs = kernels.label_runs(part)
    boxes = shapely.box(runs[:, 1] + x0, runs[:, 0] + y0, runs[:, 2] + x0, runs[:, 0] + y0 + 1)
    order = np.argsort(names, kind="stable")
    names, boxes = names[order], boxes[order]
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]]) if len(names) else np.zeros(0, np.int64)
    stops = np.r_[starts[1:], len(names)].astype(np.int64)
    merged = [shapely.union_all(boxes[a:b]) for a, b in zip(starts, stops, strict=True)]
    return names[starts].astype(np.int64), np.array(merged, dtype=object)
