"""Looks up what is drawn: tables, values, regions and the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError, MissingError
from ._draw import Box, Marks

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

POLYGONS_UP_TO = 20_000


@dataclass
class Values:
    """What colours the regions.

    Parameters
    ----------
    name
        Gene or column.
    numbers
        float [n], for a colour bar; or None.
    codes, categories
        int [n] (-1 missing) and names, for a legend; or None.
    unit
        Label of the colour bar.
    """

    name: str
    numbers: np.ndarray | None = None
    codes: np.ndarray | None = None
    categories: list[str] | None = None
    unit: str = ""


def predictions(sdata: SpatialData, region: str | None = None) -> list[str]:
    """Tables of predictions, of one region or of all: by name, or by the units that `tl.predict` states."""
    return [
        name
        for name, table in sdata.tables.items()
        if (name.startswith("pred_") or "units" in table.uns.get(keys.STAMP, {}))
        and (region is None or region_of(table, name) == region)
    ]


def region_of(table: AnnData, name: str) -> str:
    """The region that a table belongs to: as it says itself, else by its name."""
    region = table.uns.get("spatialdata_attrs", {}).get("region", name.rsplit("_", 1)[-1])
    return str(region if isinstance(region, str) else next(iter(region)))


def table_of(data: Any, *, region: str, table_key: str | None) -> AnnData:
    """The table that is meant: the one named, else counts, else the only prediction of the region.

    Raises
    ------
    MissingError
        There is none.
    """
    from anndata import AnnData

    if isinstance(data, AnnData):
        return data
    if table_key is None:
        table_key = keys.counts(region)
        predicted = predictions(data, region)
        if table_key not in data.tables and len(predicted) == 1:
            table_key = predicted[0]
    if table_key not in data.tables:
        there = ", ".join(data.tables) or "none"
        raise MissingError(f"no table {table_key!r}", where=data.path, fix=f"name one by table_key; there are: {there}")
    return data.tables[table_key]


def values(table: AnnData, name: str, *, layer: str | None = None) -> Values:
    """A gene (log-normalised where the table holds counts) or a column of obs.

    Raises
    ------
    MissingError
        Neither a gene nor a column.
    """
    if name in table.var_names:
        return _gene(table, name, layer)
    if name not in table.obs:
        close = [g for g in table.var_names if g.upper() == name.upper()][:1]
        raise MissingError(
            f"{name!r} is neither a gene nor a column of obs",
            fix=f"did you mean {close[0]!r}?" if close else f"columns: {', '.join(map(str, table.obs.columns))}",
        )
    column = table.obs[name]
    if column.dtype.kind in "iuf":
        return Values(name, numbers=column.to_numpy(dtype=float))
    as_categories = column.astype("category")
    return Values(
        name, codes=as_categories.cat.codes.to_numpy(), categories=[str(c) for c in as_categories.cat.categories]
    )


def _gene(table: AnnData, name: str, layer: str | None) -> Values:
    from ..core.normalize import log1p_cp10k
    from ..core.values import is_counts

    if layer is not None and layer not in table.layers:
        raise MissingError(f"no layer {layer!r}", fix=f"layers there: {', '.join(table.layers) or 'none'}")
    matrix = table.X if layer is None else table.layers[layer]
    column = matrix[:, [table.var_names.get_loc(name)]]
    if not is_counts(matrix):
        unit = table.uns.get(keys.STAMP, {}).get("units", "") if layer is None else layer
        unit = "log(1 + counts per 10,000)" if unit == "log1p(counts per 1e4)" else str(unit)
        return Values(name, numbers=_dense(column), unit=unit)
    library = np.asarray(matrix.sum(axis=1), dtype=float).ravel()
    return Values(name, numbers=_dense(log1p_cp10k(column, library=library)), unit="log(1 + counts per 10,000)")


def _dense(column: Any) -> np.ndarray:
    return np.asarray(column.toarray() if hasattr(column, "toarray") else column, dtype=float).ravel()


def marks(data: Any, table: AnnData | None, region: str, *, box: Box | None = None) -> Marks:
    """Geometry of a table's rows (or of all regions, without a table), in microns.

    Raises
    ------
    MissingError
        Neither the region nor coordinates are there, or rows are not among the regions.
    """
    from anndata import AnnData

    if table is not None and (isinstance(data, AnnData) or not _has_region(data, region)):
        if keys.SPATIAL not in table.obsm:
            raise MissingError("no coordinates", fix='put x and y into obsm["spatial"], in um')
        xy = np.asarray(table.obsm[keys.SPATIAL], dtype=float)[:, :2]
        return Marks(xy, np.full(len(xy), 0.45 * spacing(xy)))
    from .. import regions

    opened = regions.get(data, region)
    rows = np.arange(len(opened)) if table is None else _rows(opened.ids, table, region)
    xy = opened.centres_um[rows]
    if opened.kind == "grid":
        return Marks(xy, np.full(len(xy), 0.5 * spacing(xy)), square=True)
    if len(opened) <= POLYGONS_UP_TO:
        return _shapes(regions.read_window(data, opened, _around(opened.centres_um)), opened.ids[rows], xy)
    return Marks(xy, np.full(len(xy), 0.5 * spacing(xy)))


def _has_region(data: SpatialData, region: str) -> bool:
    from .. import regions

    return region in regions.names(data)


def _rows(ids: np.ndarray, table: AnnData, region: str) -> np.ndarray:
    import pandas as pd

    rows = pd.Index(ids).get_indexer(table.obs_names)
    if (rows < 0).any():
        raise MissingError(
            f"{int((rows < 0).sum())} of {table.n_obs} rows are not among the {region}",
            fix="draw the region that the table belongs to (region=)",
        )
    return np.asarray(rows)


def _shapes(frame: Any, ids: np.ndarray, xy: np.ndarray) -> Marks:
    found = frame.reindex(ids)
    if "radius" in found:
        return Marks(xy, found["radius"].to_numpy(dtype=float))
    parts = [g if g.geom_type == "Polygon" else max(g.geoms, key=lambda p: p.area) for g in found.geometry]
    return Marks(xy, np.sqrt(found.geometry.area.to_numpy() / np.pi), polygons=parts)


def _around(xy: np.ndarray) -> Box:
    margin = 1 + np.ptp(xy, axis=0).max(initial=1.0)
    low, high = xy.min(0) - margin, xy.max(0) + margin
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def spacing(xy: np.ndarray) -> float:
    """Median distance to the nearest neighbour, of at most 20,000 points; 100 where there is but one place."""
    from scipy.spatial import cKDTree

    if len(xy) < 2:
        return 100.0
    some = xy[:: max(1, len(xy) // 20_000)]
    distance = cKDTree(xy).query(some, k=2)[0][:, 1]
    distance = distance[distance > 0]
    return float(np.median(distance)) if len(distance) else 100.0


def view(found: Marks | None, crop_um: Box | None, image: Any) -> Box:
    """What the map shows: the crop asked for, else the regions with a margin, else the image."""
    if crop_um is not None:
        x0, y0, x1, y1 = (float(v) for v in crop_um)
        if not (x1 > x0 and y1 > y0):
            raise InputError(f"an empty crop {crop_um}", fix="give min_x, min_y, max_x, max_y in um")
        return x0, y0, x1, y1
    if found is not None and len(found.xy):
        margin = float(np.max(found.radius)) * 2
        low, high = found.xy.min(0) - margin, found.xy.max(0) + margin
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])
    if image is None:
        raise MissingError("nothing to draw", fix="name a region or an image that is there")
    from .. import image as images

    return images.extent_um(image)


def open_image(data: Any, image_key: Any) -> Any:
    """The image to draw below, or None where there is none; one that is open already is taken as it is."""
    if image_key is not None and not isinstance(image_key, str):
        return image_key
    if image_key is None or not hasattr(data, "images") or image_key not in data.images:
        return None
    from .. import image

    return image.open_image(data, image_key)


def read(image: Any, box: Box, longest_px: int) -> np.ndarray:
    """The picture in a box, uint8 [h, w, 3], at most about so many pixels on its longer side."""
    from .. import image as images

    mpp = max(box[2] - box[0], box[3] - box[1]) / longest_px
    return images.read_box(image, box, mpp=max(mpp, image.mpp))
