"""Regions that are circles or polygons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..core import aggregate as kernels
from ..core.grids import project
from ..errors import InputError, ScaleError
from ..store.points import to_um
from .model import Box, Geometry, Region


@dataclass(frozen=True, eq=False)
class Shapes(Geometry):
    """Circles or polygons in microns.

    Parameters
    ----------
    geometry
        [n] shapely points (circles) or polygons.
    radius
        [n] radii of circles, or None.
    """

    geometry: np.ndarray
    radius: np.ndarray | None

    @cached_property
    def outlines(self) -> kernels.Outlines:
        """The shapes, indexed."""
        import shapely

        if self.radius is not None:
            return kernels.outlines_of_circles(shapely.get_coordinates(self.geometry), self.radius)
        parts, owner = shapely.get_parts(self.geometry, return_index=True)
        rings, part = shapely.get_rings(parts, return_index=True)
        points, ring = shapely.get_coordinates(rings, return_index=True)
        ring_starts = np.searchsorted(ring, np.arange(len(rings) + 1))
        shape_starts = np.searchsorted(owner[part], np.arange(len(self.geometry) + 1))
        return kernels.outlines_of_rings(points, ring_starts, shape_starts)

    def assign(self, xy_um: np.ndarray) -> np.ndarray:
        """See `Geometry.assign`."""
        return kernels.first_shape(xy_um, self.outlines)

    def members(self, xy_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Geometry.members`."""
        return kernels.all_shapes(xy_um, self.outlines)

    def take(self, index: np.ndarray) -> Shapes:
        """See `Geometry.take`."""
        return Shapes(self.geometry[index], None if self.radius is None else self.radius[index])

    def spacing_um(self) -> float:
        """See `Geometry.spacing_um`."""
        bounds = self.outlines.bounds
        return float(np.quantile(bounds[:, 2:] - bounds[:, :2], 0.1)) / 8 if len(bounds) else 1.0

    @cached_property
    def tree(self) -> Any:
        """STRtree of the shapes, circles by their boxes."""
        import shapely

        if self.radius is None:
            return shapely.STRtree(self.geometry)
        return shapely.STRtree(shapely.box(*self.outlines.bounds.T))


def load(sdata: Any, name: str) -> Region:
    """Open a shapes element as a region."""
    import shapely

    frame = sdata.shapes[name]
    geometry, radius = in_um(frame, name)
    if not frame.index.is_unique:
        twice = frame.index[frame.index.duplicated()][0]
        raise InputError(f"the id {twice!r} occurs more than once", where=f"shapes {name!r}", fix="make the ids unique")
    empty = shapely.is_empty(geometry) | shapely.is_missing(geometry)
    if empty.any():
        raise InputError(
            f"{int(empty.sum())} regions have no geometry", where=f"shapes {name!r}", fix="drop them from the element"
        )
    centres = shapely.get_coordinates(geometry if radius is not None else shapely.centroid(geometry))
    return Region(name, "shapes", centres, Shapes(geometry, radius), lambda: frame.index.astype(str).to_numpy())


def in_um(frame: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Geometry of a shapes element in microns, and its radii where it has any."""
    import shapely

    matrix = to_um(frame)
    if matrix is None:
        raise ScaleError(
            "no transformation to 'um'",
            where=f"shapes {name!r}",
            fix="give the pixel size (mpp) when the slide is made",
        )
    geometry = np.asarray(frame.geometry)
    radius = frame["radius"].to_numpy(dtype=np.float64) if "radius" in frame.columns else None
    if not np.array_equal(matrix, np.eye(3)):
        geometry = shapely.transform(geometry, lambda xy: project(matrix, xy))
        radius = None if radius is None else radius * np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    if radius is not None and len(geometry) and not (shapely.get_type_id(geometry) == 0).all():
        radius = None  # polygons with a column of that name
    return geometry, radius


def window(sdata: Any, name: str, region: Region | None, box: Box) -> Any:
    """See `stainseq.regions.read_window`."""
    import geopandas as gpd
    import shapely

    region = load(sdata, name) if region is None else region
    shapes: Any = region.geometry
    area = shapely.box(*box)
    near = np.sort(shapes.tree.query(area))
    geometry = shapes.geometry[near]
    if shapes.radius is None:
        near = near[shapely.intersects(geometry, area)]
    else:
        near = near[shapely.distance(geometry, area) <= shapes.radius[near]]
    columns: dict[str, Any] = {} if shapes.radius is None else {"radius": shapes.radius[near]}
    return gpd.GeoDataFrame(columns, geometry=shapes.geometry[near], index=region.ids[near])
