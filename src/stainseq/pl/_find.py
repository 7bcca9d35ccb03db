"""Looks up what is drawn: tables, values, regions and the picture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError, MissingError
from ._draw import Box, Marks

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

LABELS_AS_POLYGONS_UP_TO = 2_000
"""Outlines of more labels take longer to trace than their pixels to read."""

SYMBOLS = ("gene", "symbol", "gene_symbol", "gene_symbols", "gene_name", "gene_names", "feature_name")
"""Columns of var in which others keep gene symbols."""


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

    def take(self, which: np.ndarray) -> Values:
        """Those of some rows."""
        numbers = None if self.numbers is None else self.numbers[which]
        return Values(self.name, numbers, None if self.codes is None else self.codes[which], self.categories, self.unit)


@dataclass
class Part:
    """One sample to be drawn.

    Parameters
    ----------
    name
        Of the sample.
    data
        Slide or table that it is in.
    table
        Its table, where one is needed.
    rows
        Its rows of the table; None is all.
    """

    name: str
    data: Any
    table: AnnData | None
    rows: np.ndarray | None = None


def parts(
    data: Any,
    wanted: Sequence[str] | None,
    *,
    region: str,
    table_key: str | None,
    needs_table: bool,
) -> list[Part]:
    """The samples of a slide, a table or several of them, in the order asked for.

    Raises
    ------
    MissingError
        No such sample, or none at all.
    """
    found: dict[str, Part] = {}
    for name, item in _items(data, table_key):
        for part in _parts_of(name, item, region=region, table_key=table_key, needs_table=needs_table):
            if part.name in found:
                raise InputError(f"two samples are named {part.name!r}", fix="give a dict of names and slides")
            found[part.name] = part
    if not found:
        raise MissingError("nothing to draw", fix="give a slide, a table, or several")
    unknown = [w for w in wanted or () if w not in found]
    if unknown:
        raise MissingError(f"no sample {unknown[0]!r}", fix=f"one of: {', '.join(found)}")
    return list(found.values()) if wanted is None else [found[w] for w in wanted]


def _items(data: Any, modality: str | None) -> Iterator[tuple[str | None, Any]]:
    """Slides and tables by name; experiments sample by sample. What stands alone needs no name."""
    from .. import tables

    if isinstance(data, Mapping):
        for name, item in data.items():
            yield from ((str(name), opened) for _, opened in _items(item, modality))
    elif isinstance(data, (list, tuple)):
        for number, item in enumerate(data):
            for name, opened in _items(item, modality):
                facts = getattr(opened, "attrs", None) or {}
                known = Path(item).name.split(".")[0] if isinstance(item, (str, os.PathLike)) else None
                yield name or str(facts.get(keys.STAMP, {}).get("slide", known or f"sample {number + 1}")), opened
    elif isinstance(data, (str, os.PathLike)) and (Path(data) / "metadata.tsv").is_file():
        from ..experiment import read_experiment

        yield from read_experiment(data, modality=modality, integrated=False).samples.items()
    elif isinstance(data, (str, os.PathLike)):
        yield None, tables.open_path(data, modality=modality)
    else:
        yield None, tables.modality(data, name=modality) if tables.is_mudata(data) else data


def _parts_of(name: str | None, item: Any, *, region: str, table_key: str | None, needs_table: bool) -> Iterator[Part]:
    from anndata import AnnData

    is_table = isinstance(item, AnnData)
    table = table_of(item, region=region, table_key=table_key) if is_table or needs_table else None
    column = table.obs[keys.SAMPLE].astype(str).to_numpy() if table is not None and keys.SAMPLE in table.obs else None
    names = [] if column is None else sorted(set(column.tolist()), key=natural)
    if column is None or len(names) < 2:
        yield Part(name or (names[0] if names else "the data"), item, table)
        return
    for sample in names:
        yield Part(sample, item, table, np.flatnonzero(column == sample))


def natural(text: str) -> tuple[Any, ...]:
    """Sorting key by which "s2" comes before "s10"."""
    return tuple((0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.split(r"(\d+)", text) if t)


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
    """A gene (log-normalised where the table holds counts), a column of obs, or one of obsm as "KEY:COLUMN".

    Genes are found by their id, or by their symbol where var has a column of symbols.

    Raises
    ------
    MissingError
        Neither a gene nor a column; the message lists what is near.
    """
    if name in table.var_names:
        return _gene(table, name, layer)
    if name in table.obs:
        return _column(name, table.obs[name])
    array, _, which = name.rpartition(":")
    if array in table.obsm:
        return _column(name, _of_array(table.obsm[array], array, which))
    by_symbol = _by_symbol(table, name)
    if by_symbol is not None:
        return _gene(table, by_symbol, layer)
    raise MissingError(f"{name!r} is neither a gene nor a column of obs", fix=near(table, name))


def is_gene(table: AnnData | None, name: str | None) -> bool:
    """Whether a name is drawn as a gene."""
    if table is None or name is None:
        return False
    return name in table.var_names or (name not in table.obs and _by_symbol(table, name) is not None)


def _column(name: str, column: Any) -> Values:
    if column.dtype.kind in "iuf":
        return Values(name, numbers=column.to_numpy(dtype=float))
    as_categories = column.astype("category")
    return Values(
        name, codes=as_categories.cat.codes.to_numpy(), categories=[str(c) for c in as_categories.cat.categories]
    )


def _of_array(array: Any, key: str, which: str) -> Any:
    """A column of an obsm entry: by name of a table, by number of an array."""
    import pandas as pd

    if isinstance(array, pd.DataFrame):
        if which not in array:
            there = ", ".join(map(str, array.columns[:12]))
            raise MissingError(f"no column {which!r} in obsm[{key!r}]", fix=f"columns: {there}")
        return array[which]
    if not which.isdigit() or int(which) >= array.shape[1]:
        raise MissingError(f"no column {which!r} in obsm[{key!r}]", fix=f"give a number up to {array.shape[1] - 1}")
    return pd.Series(_dense(array[:, [int(which)]]))


def _by_symbol(table: AnnData, name: str) -> str | None:
    """Id of the one gene that has a symbol."""
    for column in SYMBOLS:
        if column in table.var:
            found = table.var_names[(table.var[column].astype(str) == name).to_numpy()]
            if len(found) == 1:
                return str(found[0])
    return None


def near(table: AnnData, name: str) -> str:
    """What may have been meant: the same in other case, then what is spelt alike."""
    import difflib

    columns = [*map(str, table.obs.columns), *(f"{k}:0" for k in table.obsm if k != keys.SPATIAL)]
    known = [*table.var_names, *columns]
    for column in SYMBOLS:
        known += table.var[column].astype(str).tolist() if column in table.var else []
    upper = {str(k).upper(): str(k) for k in reversed(known)}
    close = [upper[u] for u in difflib.get_close_matches(name.upper(), list(upper), n=3, cutoff=0.75)]
    if name.upper() in upper:
        close = [upper[name.upper()]]
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"columns: {', '.join(columns)}"


def _gene(table: AnnData, name: str, layer: str | None) -> Values:
    from ..core.normalize import log1p_cp10k
    from ..core.values import is_counts

    if layer is not None and layer not in table.layers:
        raise MissingError(f"no layer {layer!r}", fix=f"layers there: {', '.join(table.layers) or 'none'}")
    matrix = table.X if layer is None else table.layers[layer]
    at = table.var_names.get_loc(name)
    # A prediction says its unit; to look at all values of one that stays on disk would read it whole.
    if "units" in table.uns.get(keys.STAMP, {}) or hasattr(matrix, "dask") or not is_counts(matrix):
        unit = table.uns.get(keys.STAMP, {}).get("units", "") if layer is None else layer
        unit = "log(1 + counts per 10,000)" if unit == "log1p(counts per 1e4)" else str(unit)
        return Values(name, numbers=column(matrix, at), unit=unit)
    library = np.asarray(matrix.sum(axis=1), dtype=float).ravel()
    shown = _dense(log1p_cp10k(matrix[:, [at]], library=library))
    return Values(name, numbers=shown, unit="log(1 + counts per 10,000)")


def column(matrix: Any, at: Any) -> np.ndarray:
    """A column of a matrix, sparse, dense or lazy, float64 [n]."""
    return _dense(matrix[:, [int(at)]])


def variances(matrix: Any) -> np.ndarray:
    """Variance of every column of a matrix, sparse, dense or lazy; in blocks of columns, float64 [g]."""
    from ..store.matrices import column_blocks

    if hasattr(matrix, "indptr"):
        mean = np.asarray(matrix.mean(axis=0)).ravel()
        return np.asarray(matrix.multiply(matrix).mean(axis=0)).ravel() - mean**2
    parts = [np.asarray(matrix[:, b]).var(axis=0, dtype=np.float64) for b in column_blocks(*matrix.shape)]
    return np.concatenate(parts)


def _dense(column: Any) -> np.ndarray:
    return np.asarray(column.toarray() if hasattr(column, "toarray") else column, dtype=float).ravel()


def marks(data: Any, table: AnnData | None, region: str, *, rows: np.ndarray | None = None) -> Marks:
    """Geometry of a table's rows (of some, or of all regions, without a table), in microns.

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
        xy = xy if rows is None else xy[rows]
        return Marks(xy, np.full(len(xy), 0.45 * spacing(xy)))
    from .. import regions

    opened = regions.get(data, region)
    if table is not None:
        at = rows_of(opened.ids, table, region)
        at = at if rows is None else at[rows]
        opened = opened if np.array_equal(at, np.arange(len(opened))) else opened.take(at)
    return _marks_of(data, opened)


def _marks_of(data: Any, opened: Any) -> Marks:
    import shapely

    from .. import regions
    from ..core.grids import bin_corners

    xy, geometry = opened.centres_um, opened.geometry
    if opened.kind == "shapes":
        if geometry.radius is not None:
            return Marks(xy, geometry.radius, region=opened)
        radius = np.sqrt(shapely.area(geometry.geometry) / np.pi)
        return Marks(xy, radius, polygons=geometry.geometry, region=opened)

    if opened.kind == "grid":
        bins = geometry
        squares = lambda index: shapely.polygons(  # noqa: E731
            bin_corners(bins.rows[index], bins.cols[index], transform=bins.transform)
        )
        return Marks(xy, np.full(len(xy), 0.5 * bins.pitch_um()), polygons=squares, region=opened)
    radius = np.full(len(xy), 0.5 * spacing(xy))
    if len(xy) > LABELS_AS_POLYGONS_UP_TO:
        return Marks(xy, radius, region=opened, paint=True)

    def traced(index: np.ndarray) -> np.ndarray:
        some = opened.take(index)
        low, high = some.centres_um.min(0) - 1, some.centres_um.max(0) + 1
        frame = regions.read_window(data, opened, (float(low[0]), float(low[1]), float(high[0]), float(high[1])))
        return np.asarray(frame.geometry.reindex(some.ids))

    return Marks(xy, radius, polygons=traced, region=opened)


def _has_region(data: SpatialData, region: str) -> bool:
    from .. import regions

    return region in regions.names(data)


def rows_of(ids: np.ndarray, table: AnnData, region: str) -> np.ndarray:
    """Positions of a table's rows among the regions.

    Raises
    ------
    MissingError
        Some are not there.
    """
    import pandas as pd

    rows = pd.Index(ids).get_indexer(table.obs_names)
    if (rows < 0).any():
        raise MissingError(
            f"{int((rows < 0).sum())} of {table.n_obs} rows of the table are not among the {region}",
            fix="the regions were made anew, or are others: make the table again, or name its own (--region)",
        )
    return np.asarray(rows)


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
        if isinstance(found.polygons, np.ndarray):
            import shapely

            x0, y0, x1, y1 = (float(v) for v in shapely.total_bounds(found.polygons))
            margin = 0.03 * max(x1 - x0, y1 - y0)
            return x0 - margin, y0 - margin, x1 + margin, y1 + margin
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
