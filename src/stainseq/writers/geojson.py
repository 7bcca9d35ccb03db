"""Regions as GeoJSON for QuPath: outlines in pixels of the picture, with classes and measurements.

Polygons, circles (32 corners), labels, superpixels and bins; read by QuPath 0.4 and later, and by anything that reads
GeoJSON (the coordinates are pixels, y down, not degrees).
"""

from __future__ import annotations

import colorsys
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from ..errors import InputError, MissingError
from ._format import Format
from ._place import as_px, polygons_um
from ._table import Table, listed, open_table

if TYPE_CHECKING:
    from spatialdata import SpatialData

FORMAT = Format(suffixes=(".geojson", ".json"), tables="optional", needs_region=True, image=True)

_DIGITS = 3


def write(
    sdata: SpatialData,
    path: Path,
    *,
    region: str | None,
    tables: tuple[str, ...],
    facts: dict[str, Any],
    classes: str | None = None,
    measurements: str | Sequence[str] | None = None,
    layer: str | None = None,
    objects: Literal["auto", "annotation", "detection", "cell", "tile"] = "auto",
    image_key: str = keys.HE,
) -> list[Path]:
    """Write the file; some regions are in memory at a time.

    Parameters
    ----------
    sdata, path, region, tables, facts
        See the package: a file, the regions, and a table of them where there is one.
    classes
        Column of the table's obs whose values become classes, each with a colour of its own.
    measurements
        Genes and numeric columns of obs (a list, or text with commas between them); default the numeric columns.
    layer
        Layer of the table instead of X.
    objects
        What QuPath shall take them for; default annotations for regions without a table, tiles for bins and
        superpixels, else detections.
    image_key
        Picture whose pixels are meant.

    Returns
    -------
    list of Path

    Raises
    ------
    MissingError
        No such column, gene or layer; columns are asked for where there is no table.
    """
    import shapely

    from .. import image, regions

    opened = image.open_image(sdata, image_key)
    where = regions.get(sdata, str(region))
    table = open_table(sdata, tables[0], layer=layer) if tables else None
    if table is None and (classes or measurements):
        raise MissingError(
            f"no table of {region!r} for classes or measurements", where=sdata.path, fix="name one (--table)"
        )
    kind = objects if objects != "auto" else _kind(where, table)
    at = None if table is None else _rows(table, where.ids)
    values = {} if table is None else _measured(table, measurements)
    named = None if table is None or classes is None else _classes(table, classes)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        first = True
        for part, polygons in polygons_um(sdata, where):
            texts = shapely.to_geojson(shapely.set_precision(as_px(opened, polygons), 10.0**-_DIGITS, mode="pointwise"))
            told = _properties(where.ids[part], None if at is None else at[part], kind, values, named)
            first = _write_features(file, where.ids[part], texts, told, first)
        file.write("\n]}\n")
    return [path]


def _write_features(
    file: IO[str], ids: np.ndarray, texts: np.ndarray, told: Iterator[dict[str, Any]], first: bool
) -> bool:
    for name, geometry, properties in zip(ids, texts, told, strict=True):
        key = uuid.uuid5(uuid.NAMESPACE_OID, str(name))
        text = json.dumps(properties, separators=(",", ":"), allow_nan=False)
        file.write("" if first else ",\n")
        file.write(f'{{"type":"Feature","id":"{key}","geometry":{geometry},"properties":{text}}}')
        first = False
    return first


def _kind(region: Any, table: Table | None) -> str:
    if region.kind == "grid":
        return "tile"
    return "annotation" if table is None else "detection"


def _rows(table: Table, ids: np.ndarray) -> np.ndarray:
    """Row of the table of each region, -1 where it has none."""
    import pandas as pd

    at = np.asarray(pd.Index(table.ids).get_indexer(ids))
    if (at < 0).all():
        raise InputError("the table and the regions share no id", where=table.where, fix="name the table's own regions")
    return at


def _measured(table: Table, wanted: str | Sequence[str] | None) -> dict[str, np.ndarray]:
    """Values [n rows of the table] by name."""
    numeric = {str(c): table.obs[c].to_numpy() for c in table.obs if table.obs[c].dtype.kind in "iufb"}
    if wanted is None:
        return {k: v.astype(np.float64) for k, v in numeric.items()}
    names = listed(wanted)
    place = {g: i for i, g in enumerate(table.genes)}
    missing = [n for n in names if n not in place and n not in numeric]
    if missing:
        raise MissingError(
            f"no gene or numeric column {', '.join(missing[:5])}",
            where=table.where,
            fix=f"columns: {', '.join(numeric) or 'none'}; genes are listed by stainseq info",
        )
    genes = [n for n in names if n in place]
    out = {n: numeric[n].astype(np.float64) for n in names if n not in place}
    out |= {g: np.empty(len(table.ids)) for g in genes}
    if genes:
        columns = [place[g] for g in genes]
        for rows, block in table.rows():
            for g, column in zip(genes, columns, strict=True):
                out[g][rows] = block[:, column]
    return {n: out[n] for n in names}


def _classes(table: Table, column: str) -> tuple[list[str | None], dict[str, list[int]]]:
    """Class of each row, and the colour of each class."""
    if column not in table.obs:
        raise MissingError(
            f"no column {column!r}", where=table.where, fix=f"columns there: {', '.join(map(str, table.obs)) or 'none'}"
        )
    missing = table.obs[column].isna().to_numpy()
    texts = [None if m else str(v) for v, m in zip(table.obs[column], missing, strict=True)]
    names = sorted({t for t in texts if t is not None})
    hues = {n: colorsys.hsv_to_rgb(i * 0.61803398875 % 1, 0.65, 0.85) for i, n in enumerate(names)}
    return texts, {n: [round(255 * c) for c in rgb] for n, rgb in hues.items()}


def _properties(
    ids: np.ndarray,
    at: np.ndarray | None,
    kind: str,
    values: dict[str, np.ndarray],
    named: tuple[list[str | None], dict[str, list[int]]] | None,
) -> Iterator[dict[str, Any]]:
    for i, name in enumerate(ids):
        out: dict[str, Any] = {"objectType": kind, "name": str(name)}
        row = -1 if at is None else int(at[i])
        if row >= 0:
            told = {k: float(v[row]) for k, v in values.items() if np.isfinite(v[row])}
            if told:
                out["measurements"] = told
            if named is not None and named[0][row] is not None:
                label = str(named[0][row])
                out["classification"] = {"name": label, "color": named[1][label]}
        yield out
