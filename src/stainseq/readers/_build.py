"""Puts what a reader found together as a SpatialData."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..core import frames
from ..errors import InputError
from ._images import sampled
from ._picture import Picture, raster

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

logger = logging.getLogger("stainseq")

READ = "stainseq_read"
"""Key in a table's uns: what the reader noticed, dropped or changed."""

NOTES = "notes"
"""Key in the facts: the same, also of slides without a table; `info` and `convert` print it."""

FILES = "files"
"""Key in the facts: the files that were used, by role. `io.convert` turns it into fingerprints."""

_THUMBNAIL_PX = 1000
"""Longest side for the frame check: a spot of 55 um on a 10 mm slide is still five pixels."""


@dataclass
class Spots:
    """Spots with counts, joined.

    Parameters
    ----------
    ids
        The source's ids.
    xy_um
        float [n, 2] centres (x, y), um.
    radius_um
        Spot radius.
    X
        int32 CSR [n, genes].
    var
        Genes.
    obs
        Further columns, in the order of `ids`.
    obsm
        Further arrays, in the order of `ids`.
    uns
        Further unstructured facts.
    """

    ids: list[str]
    xy_um: np.ndarray
    radius_um: float
    X: Any
    var: pd.DataFrame
    obs: pd.DataFrame | None = None
    obsm: dict[str, np.ndarray] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)


class Notes:
    """What a reader noticed: each goes to the log at once, all of them into the table.

    Parameters
    ----------
    where
        The slide that messages name.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        logger.info("%s: %s", self.where, line)


def join(positions: pd.Index, counted: list[str], *, notes: Notes, where: object, what: str = "spots") -> np.ndarray:
    """Row of `counted` for each kept position, by id; what falls out on either side is noted.

    Parameters
    ----------
    positions
        Ids of the wanted positions.
    counted
        Ids of the rows of the counts, unique.
    notes
        Told what was dropped.
    where
        What a message names.
    what
        What the positions are called.

    Returns
    -------
    numpy.ndarray
        int [n] with -1 where a position has no counts.

    Raises
    ------
    InputError
        No position, or no id in common.
    """
    import pandas as pd

    if len(positions) == 0:
        raise InputError(
            f"no {what}: an empty slide",
            where=where,
            fix="--option off_tissue=true keeps spots off tissue; --platform wsi converts the image alone",
        )
    rows = pd.Index(counted).get_indexer(positions)
    found = int((rows >= 0).sum())
    if found == 0:
        raise InputError(
            f"no id in common between positions ({', '.join(map(str, positions[:2]))}, ...) "
            f"and counts ({', '.join(counted[:2])}, ...)",
            where=where,
            fix="give tables of the same slide",
        )
    notes(f"{found} of {len(positions)} {what} have counts")
    return rows


def check(
    picture: Picture,
    spots_px: np.ndarray,
    *,
    mpp: float,
    cell_um2: float,
    notes: Notes,
    named: Mapping[str, float] | None = None,
    mirrored: bool = False,
) -> dict[str, float]:
    """Frame check of spots against a picture.

    Parameters
    ----------
    picture
        The image.
    spots_px
        float [n, 2], level-0 pixels of it; only spots that are said to be under tissue.
    mpp
        Microns per level-0 pixel.
    cell_um2
        Area of array that one spot stands for.
    notes
        Told when the array lies mirrored in the picture.
    named
        Scale factors worth trying.
    mirrored
        Whether the array lies mirrored in these coordinates.

    Returns
    -------
    dict
        ``spots_inside``, ``spots_on_tissue``, ``tissue_share``, for the facts.

    Raises
    ------
    ScaleError
        They are in different frames, or x and y are exchanged; says what would fit.
    """
    small, factor = sampled(picture.levels, max_px=_THUMBNAIL_PX)
    found = frames.check_frame(
        spots_px, small, factor=factor, mpp=mpp, cell_um2=cell_um2, named=named, mirrored=mirrored, where=picture.path
    )
    if mirrored:
        told = f"{found.on_tissue:.0%} of the spots lie on tissue, {found.exchanged:.0%} with x and y exchanged"
        notes(
            "the array lies mirrored in the picture, which is right only if the picture was flipped"
            + (f" ({told})" if np.isfinite(found.exchanged) else "")
        )
    shares = {"spots_inside": found.inside, "spots_on_tissue": found.on_tissue, "tissue_share": found.tissue}
    return {k: round(v, 4) for k, v in shares.items() if np.isfinite(v)}


def image_element(picture: Picture, *, mpp: float, others: Mapping[str, float] | None = None) -> Any:
    """The image as spatialdata wants it: DataArray, or DataTree where the file has a pyramid.

    Parameters
    ----------
    picture
        RGB levels.
    mpp
        Microns per level-0 pixel.
    others
        Further coordinate systems and their units per level-0 pixel.
    """
    from spatialdata.transformations import Identity, Scale

    to = {name: Scale([k, k], axes=("x", "y")) for name, k in {keys.UM: mpp, **(others or {})}.items()}
    levels = [level.transpose(2, 0, 1) for level in picture.levels]
    return raster(levels, ["r", "g", "b"], {"global": Identity(), **to})


def spots_elements(spots: Spots, *, notes: Notes, scales: Mapping[str, float]) -> tuple[Any, Any]:
    """Shapes and table of spots.

    Parameters
    ----------
    spots
        Joined spots.
    notes
        Kept in ``uns["stainseq_read"]``.
    scales
        Further coordinate systems and their units per micron.
    """
    import geopandas as gpd
    import pandas as pd
    import shapely
    from anndata import AnnData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    to: dict[str, Any] = {keys.UM: Identity()}
    to |= {name: Scale([k, k], axes=("x", "y")) for name, k in scales.items()}
    circles = gpd.GeoDataFrame(
        {"radius": np.full(len(spots.ids), float(spots.radius_um))},
        geometry=shapely.points(spots.xy_um),
        index=pd.Index(spots.ids, dtype=object),
    )
    link = {keys.REGION_KEY: pd.Categorical([keys.SPOTS] * len(spots.ids)), keys.INSTANCE_KEY: list(spots.ids)}
    obs = pd.DataFrame(link, index=pd.Index(spots.ids, dtype=object))
    if spots.obs is not None:
        for name in spots.obs.columns:
            obs[str(name)] = spots.obs[name].to_numpy() if not _is_category(spots.obs[name]) else spots.obs[name].array
    table = AnnData(spots.X, obs=obs, var=spots.var)
    table.obsm[keys.SPATIAL] = np.ascontiguousarray(spots.xy_um, dtype=np.float64)
    for name, values in spots.obsm.items():
        table.obsm[name] = values
    table.uns.update(spots.uns)
    table.uns[READ] = {"notes": list(notes.lines)}
    table = TableModel.parse(table, region=keys.SPOTS, region_key=keys.REGION_KEY, instance_key=keys.INSTANCE_KEY)
    return ShapesModel.parse(circles, transformations=to), table


def _is_category(column: Any) -> bool:
    return str(column.dtype) == "category"


def assemble(
    *,
    facts: dict[str, Any],
    notes: Notes,
    picture: Picture | None,
    spots: Spots | None,
    others: Mapping[str, float] | None = None,
) -> SpatialData:
    """The slide.

    Parameters
    ----------
    facts
        Kept in ``attrs["stainseq"]``; ``mpp`` is microns per level-0 pixel of the image.
    notes
        What was noticed.
    picture
        The image, if there is one.
    spots
        Spots with counts, if there are any.
    others
        Further coordinate systems and their units per micron.
    """
    from spatialdata import SpatialData

    if spots is not None and len(spots.ids):
        void = int((np.asarray(spots.X.sum(axis=1)) == 0).sum())
        if void == len(spots.ids):
            notes("all counts are zero")
        elif void:
            notes(f"the rows of {void} of {len(spots.ids)} spots hold nothing but zeros")
    mpp = facts.get("mpp")
    scales = dict(others or {})
    images, shapes, tables = {}, {}, {}
    if picture is not None and mpp is not None:
        for note in picture.notes:
            notes(f"image: {note}")
        images[keys.HE] = image_element(picture, mpp=mpp, others={k: v * mpp for k, v in scales.items()})
    if spots is not None:
        if mpp is not None:
            scales = {"global": 1 / mpp, **scales}
        shapes[keys.SPOTS], tables[keys.counts(keys.SPOTS)] = spots_elements(spots, notes=notes, scales=scales)
    sdata = SpatialData(images=images, shapes=shapes, tables=tables)
    sdata.attrs[keys.STAMP] = {k: v for k, v in facts.items() if v is not None} | {NOTES: list(notes.lines)}
    return sdata


def used_files(**files: Path | None) -> dict[str, str]:
    """Files by role, for the facts."""
    return {role: str(path.absolute()) for role, path in files.items() if path is not None}


def join_side_table(path: Path, ids: list[str], *, notes: Notes) -> pd.DataFrame:
    """Columns of a csv or tsv by spot id (its first column, or the one called barcode, spot or id), for obs.

    Parameters
    ----------
    path
        The table.
    ids
        Spots wanted, in order.
    notes
        Told how many were found.

    Raises
    ------
    InputError
        Duplicate ids, or no id in common.
    """
    import pandas as pd

    from ._tables import check_ids, read_table

    table = read_table(path)
    named = [c for c in table.columns if str(c).lower() in ("barcode", "barcodes", "spot", "spot_id", "id")]
    column = (named or [table.columns[0]])[0]
    table = table.set_index(table[column].astype(str)).drop(columns=[column])
    check_ids(list(table.index), what="the table of labels", where=path)
    found = pd.Index(ids).isin(table.index)
    if not found.any():
        raise InputError(
            f"no id in common between spots ({ids[0]}, ...) and labels ({table.index[0]}, ...)",
            where=path,
            fix="give a table whose first column holds spot ids",
        )
    notes(f"{int(found.sum())} of {len(ids)} spots have a row in {path.name}")
    return tidy(table.reindex(ids))


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Columns as spatialdata takes them: text as categories (missing stays missing), plain names."""
    out = table.copy()
    for name in out.columns:
        if out[name].dtype == object or str(out[name].dtype).startswith("string"):
            out[name] = out[name].where(out[name].isna(), out[name].astype(str)).astype("category")
    out.columns = [re.sub(r"[^A-Za-z0-9._-]+", "_", str(c)).strip("_") or "column" for c in out.columns]
    reserved = {keys.REGION_KEY, keys.INSTANCE_KEY}
    return out.rename(columns={c: f"{c}_" for c in out.columns if c in reserved})
