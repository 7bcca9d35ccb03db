"""One model of a region: an id table with one geometry, be it shapes, labels or a grid.

Whatever works per region takes a `Region` and asks it which region holds a point; nothing else needs to know
its kind. All coordinates are microns, and the order of regions is that of the element: of the rows of shapes, of the
id table or the labels, of the stored bins of a grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import keys
from ..errors import InputError, MissingError
from .model import Box, Region
from .overlap import shares

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

__all__ = [
    "Box",
    "Region",
    "add_grid",
    "aggregate",
    "assign",
    "get",
    "measured_um",
    "members",
    "names",
    "pool",
    "read_counts",
    "read_window",
    "shares",
    "table",
]


_MEASURED = (keys.CELLS, keys.NUCLEI, keys.SPOTS, "bins_008um", "bins_016um", "bins_002um")


def names(sdata: SpatialData) -> list[str]:
    """Names of all regions of a slide, sorted."""
    from . import grid

    grids = [name for name in sdata.points if grid.facts(sdata, name) is not None]
    return sorted([*sdata.shapes, *sdata.labels, *grids])


def get(sdata: SpatialData, region: str) -> Region:
    """Open a region.

    Parameters
    ----------
    sdata
        The slide.
    region
        Name of a shapes, labels or grid element.

    Raises
    ------
    MissingError
        No such region; the message lists those there are.
    InputError
        Duplicate ids, empty geometry.
    ScaleError
        The element is not placed in microns.
    """
    opened: Region = _module(sdata, region).load(sdata, region)
    return opened


def measured_um(sdata: SpatialData) -> np.ndarray | None:
    """Where a slide was measured: centres of its cells, nuclei, spots or bins, whichever there are first.

    Returns
    -------
    numpy.ndarray or None
        float64 [n, 2] (x, y) in microns.
    """
    there = set(names(sdata))
    name = next((r for r in _MEASURED if r in there), None)
    if name is None:
        return None
    if name in sdata.shapes:
        import numpy as np

        centres = sdata.shapes[name].geometry.centroid
        return np.column_stack([centres.x, centres.y])
    return get(sdata, name).centres_um


def read_window(sdata: SpatialData, region: str | Region, box_um: Box) -> GeoDataFrame:
    """Read the regions that touch a window.

    Parameters
    ----------
    sdata
        The slide.
    region
        Name of a region, or the opened one, which saves opening shapes and labels again. A grid reads only its part
        of the file either way.
    box_um
        min_x, min_y, max_x, max_y in microns.

    Returns
    -------
    geopandas.GeoDataFrame
        Index: ids. Geometry in microns, whole, not cut at the window: polygons, or points with ``radius`` for
        circles. Labels have a column ``label``, bins ``row`` and ``col``.
    """
    name = region if isinstance(region, str) else region.name
    opened = None if isinstance(region, str) else region
    return _module(sdata, name).window(sdata, name, opened, tuple(float(v) for v in box_um))


def read_counts(sdata: SpatialData, region: str | Region, box_um: Box, *, table: str | None = None) -> AnnData:
    """Read the counts of the regions that touch a window.

    Of a table that is in memory the rows are taken; of one that is not (a slide opened without its tables) only those
    rows are read from disk.

    Parameters
    ----------
    sdata
        The slide.
    region
        Name of a region, or the opened one; see `read_window`.
    box_um
        min_x, min_y, max_x, max_y in microns.
    table
        Any table of these regions; default their counts.

    Returns
    -------
    anndata.AnnData
        The rows of the window, in the order of the table, with ``var`` and ``obsm["spatial"]``; regions that have no
        row are not in it.

    Raises
    ------
    MissingError
        No such region or table.
    InputError
        A table of other regions.
    """
    from .windows import read

    name = region if isinstance(region, str) else region.name
    return read(sdata, name, read_window(sdata, region, box_um), table or keys.counts(name))


def assign(region: Region, xy_um: np.ndarray) -> np.ndarray:
    """Region that holds each point.

    Parameters
    ----------
    region
        The region.
    xy_um
        [m, 2] x, y in microns; NaN is held by none.

    Returns
    -------
    numpy.ndarray
        [m] int64 positions in the region, -1 for none. Where shapes overlap, the one listed first.
    """
    return region.geometry.assign(_points(xy_um))


def members(region: Region, xy_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a point and a region that holds it; as `assign`, for shapes that overlap.

    Returns
    -------
    points, regions : numpy.ndarray
        [k] int64 positions.
    """
    return region.geometry.members(_points(xy_um))


def pool(values: np.ndarray, to_um: np.ndarray, region: Region) -> np.ndarray:
    """Mean of a map under each region.

    Every pixel of the map counts by the part of it that lies under the region, found with sample points that are
    at most an eighth of a typical region apart. A region too small to hold one takes the pixel under its centre.

    Parameters
    ----------
    values
        [ty, tx, d].
    to_um
        [3, 3] from px of the map (x, y; the first pixel covers 0 to 1) to microns.
    region
        The regions; take those in the window first (`Region.within`, `Region.take`).

    Returns
    -------
    numpy.ndarray
        [n, d] float32; NaN for a region outside the map.
    """
    from .pooling import pool as run

    return run(values, to_um, region)


def aggregate(
    sdata: SpatialData,
    region: str | Region,
    points: str,
    *,
    value_column: str = "feature_name",
    keep: Any = None,
    weight_column: str | None = None,
    overlap: str = "first",
    n_jobs: int | None = None,
) -> AnnData:
    """Count points per region and value, such as transcripts per cell and gene.

    Points stream through in the order they are stored; memory holds the result and a few batches.

    Parameters
    ----------
    sdata
        The slide.
    region
        Name of a region, or the opened one.
    points
        Name of a points element, such as "transcripts".
    value_column
        Column to count by.
    keep
        A `pyarrow.compute` expression on the points' columns, such as ``pc.field("qv") >= 20``.
    weight_column
        Column to sum instead of counting rows.
    overlap
        "first": a point counts for the first listed region that holds it; "all": for every one.
    n_jobs
        Threads; `settings.n_jobs` unless given. The result does not depend on it.

    Returns
    -------
    anndata.AnnData
        [n regions, n values] counts as CSR int32 (float64 for weights), values sorted by name, ready to be written as a
        table of the slide (see `table`). ``uns["aggregate"]``: points counted, outside, left out.

    Raises
    ------
    MissingError
        No such region, points or column.
    """
    from .counting import aggregate as run

    if overlap not in ("first", "all"):
        raise InputError(f"overlap={overlap!r}", fix="'first' or 'all'")
    opened = get(sdata, region) if isinstance(region, str) else region
    return run(
        sdata,
        opened,
        points,
        value_column=value_column,
        keep=keep,
        weight_column=weight_column,
        overlap=overlap,
        n_jobs=n_jobs,
    )


def table(region: Region, X: Any, *, var_names: Any, obs: Any = None) -> AnnData:
    """Make a table of a region, with all that spatialdata and stainseq expect.

    Parameters
    ----------
    region
        The regions, in the order of the rows.
    X
        [n, g] dense or sparse.
    var_names
        [g] column names.
    obs
        Further columns, a DataFrame in the same order, or a dict.

    Returns
    -------
    anndata.AnnData
        ``obs_names`` = ids, ``obs["region"]``, ``obs["instance_id"]`` (the label for labels, else the id),
        ``obsm["spatial"]`` in microns, ``uns["spatialdata_attrs"]``.
    """
    from .counting import table as run

    return run(region, X, var_names=var_names, obs=obs)


def add_grid(
    sdata: SpatialData,
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
    """Add a regular grid as a region.

    Parameters
    ----------
    sdata
        The slide.
    name
        Name of the element, such as "bins_008um".
    rows, cols
        [n] places of the bins that are there.
    ids
        [n] ids (array of str, Arrow or object), a function of (rows, cols) that makes them piece by piece, or None
        for ``"<row>_<col>"``.
    shape
        Rows and columns of the whole grid.
    transform
        [3, 3] projective matrix from (column, row) to microns; the centre of bin (r, c) is at (c + 0.5, r + 0.5).
    step, parameters, inputs, more
        For the stamp, as in `store.write_element`.

    Raises
    ------
    InputError
        Bins outside the grid or twice, lengths that differ, a transformation that cannot be inverted.
    StoreError
        The store cannot be written.
    """
    from . import grid

    grid.add(
        sdata,
        name,
        rows=rows,
        cols=cols,
        ids=ids,
        shape=shape,
        transform=transform,
        step=step,
        parameters=parameters,
        inputs=inputs,
        more=more,
    )


def _module(sdata: SpatialData, name: str) -> Any:
    from . import grid, labels, shapes

    if name in sdata.shapes:
        return shapes
    if name in sdata.labels:
        return labels
    if name in sdata.points and grid.facts(sdata, name) is not None:
        return grid
    there = ", ".join(names(sdata))
    fix = f"one of: {there}" if there else "lay some: `stainseq grid` or `stainseq superpixels`"
    raise MissingError(f"no region named {name!r}", where=sdata.path, fix=fix)


def _points(xy_um: np.ndarray) -> np.ndarray:
    import numpy as np

    xy = np.asarray(xy_um, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise InputError(f"points of shape {xy.shape}", fix="give [n, 2]: x and y in microns")
    return xy
