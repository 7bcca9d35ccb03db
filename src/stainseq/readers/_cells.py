"""Cells and nuclei of a Xenium bundle as shapes: outlines of its tables, else of its masks, else circles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError
from . import _xenium

_FAR_UM = 50.0
"""Median distance of an outline's middle from its cell's place: below 1 um in real runs, where a cell has 5 to 20."""

if TYPE_CHECKING:
    import pandas as pd

    from ._build import Notes
    from ._masks import Mask
    from ._xenium import Bundle


def shapes(bundle: Bundle, cells: pd.DataFrame, masks: dict[str, Mask], to: dict[str, Any], notes: Notes) -> Any:
    """Outlines of cells (circles of their area where there are none) and of nuclei.

    Parameters
    ----------
    bundle, cells
        The run and its cell table.
    masks
        Of its cells.zarr.zip, or none.
    to
        Transformations of microns.
    notes
        Told what is missing.

    Returns
    -------
    dict
        "cells", by id; "nuclei", named as their cell or ``<cell_id>:<label_id>`` where it has several, with
        ``cell_id``. Both have ``label``, the value in the mask (0: not in it), where the run tells.

    Raises
    ------
    InputError
        Cells with several outlines.
    """
    from spatialdata.models import ShapesModel

    out = {keys.CELLS: ShapesModel.parse(_cell_shapes(bundle, cells, masks, notes), transformations=to)}
    nuclei = _nuclei(bundle, masks, notes)
    if nuclei is not None:
        out[keys.NUCLEI] = ShapesModel.parse(nuclei, transformations=to)
        notes(f"{len(nuclei)} nuclei in {nuclei['cell_id'].nunique()} cells")
    return out


def _cell_shapes(bundle: Bundle, cells: pd.DataFrame, masks: dict[str, Mask], notes: Notes) -> Any:
    import geopandas as gpd
    import pandas as pd

    ids = pd.Index([str(i) for i in cells.index], dtype=object)
    mask = masks.get(keys.CELLS)
    label: Any = None if mask is None else pd.Series(mask.labels, index=pd.Index(mask.owner, dtype=object))
    drawn = mask.outlines() if mask is not None else None
    if "cell_boundaries" in bundle.tables:
        where = bundle.tables["cell_boundaries"]
        owner, told, outlines = _xenium.outlines(where)
        owner = np.array([str(c) for c in owner], dtype=object)
        if label is None and told is not None:
            label = pd.Series(told, index=pd.Index(owner, dtype=object))
    elif mask is not None and drawn is not None:
        where, owner, outlines = mask.path, mask.owner[drawn[0]], drawn[1]
        notes("no table of cell outlines: those of cells.zarr.zip")
    else:
        frame = _circles(cells, ids)
        notes("no cell outlines: circles of the cells' area stand for them")
        return _labelled(frame, label)
    frame = gpd.GeoDataFrame(geometry=outlines, index=pd.Index(owner, dtype=object))
    _check_place(frame, cells, where)
    if not frame.index.is_unique:
        raise InputError(
            f"{int(frame.index.duplicated().sum())} cells with several outlines",
            where=where,
            fix="write one outline a cell",
        )
    known = ids.intersection(frame.index, sort=False)
    if len(known) < len(ids):
        notes(f"{len(ids) - len(known)} of {len(ids)} cells have no outline")
    if len(known) < len(frame):
        notes(f"{len(frame) - len(known)} outlines belong to no cell of the cell table and were left out")
    return _labelled(frame.loc[known], label)


def _check_place(frame: Any, cells: pd.DataFrame, where: Any) -> None:
    """Outlines lie where the cell table has the cells."""
    import shapely

    at = cells[["x_centroid", "y_centroid"]].set_axis([str(i) for i in cells.index], axis=0)
    at = at.reindex(frame.index[:: max(1, len(frame) // 1000)])
    drawn = shapely.get_coordinates(frame.geometry.iloc[:: max(1, len(frame) // 1000)].centroid.to_numpy())
    off = np.linalg.norm(drawn - at.to_numpy(dtype=float), axis=1)
    off = off[np.isfinite(off)]
    if len(off) and np.median(off) > _FAR_UM:
        raise InputError(
            f"outlines lie {np.median(off):.0f} um from their cells (median)",
            where=where,
            fix="they are of another run or in pixels: give microns",
        )


def _circles(cells: pd.DataFrame, ids: Any) -> Any:
    import geopandas as gpd
    import shapely

    area = cells["cell_area"].to_numpy(dtype=float) if "cell_area" in cells else np.full(len(ids), np.nan)
    radius = np.sqrt(np.where(np.isfinite(area) & (area > 0), area, np.pi * 25.0) / np.pi)
    centres = shapely.points(cells[["x_centroid", "y_centroid"]].to_numpy())
    return gpd.GeoDataFrame({"radius": radius}, geometry=centres, index=ids)


def _labelled(frame: Any, label: Any) -> Any:
    frame.index.name = None
    if label is not None:
        frame["label"] = label[~label.index.duplicated()].reindex(frame.index, fill_value=0).to_numpy(dtype=np.int64)
    return frame


def _nuclei(bundle: Bundle, masks: dict[str, Mask], notes: Notes) -> Any:
    import geopandas as gpd
    import pandas as pd

    mask = masks.get(keys.NUCLEI)
    if "nucleus_boundaries" in bundle.tables:
        owner, label, outlines = _xenium.outlines(bundle.tables["nucleus_boundaries"])
        owner = np.array([str(c) for c in owner], dtype=object)
        if label is None and mask is not None:
            label = _match(owner, mask)
            if label is None:
                notes("nuclei of the table and of the mask are not the same: without labels")
    elif mask is not None and (drawn := mask.outlines()) is not None:
        owner, label, outlines = mask.owner[drawn[0]], mask.labels[drawn[0]], drawn[1]
        notes("no table of nucleus outlines: those of cells.zarr.zip")
    else:
        return None
    index = pd.Index(_xenium.nucleus_ids(owner, label), dtype=object)
    nuclei = gpd.GeoDataFrame({"cell_id": pd.array(owner, dtype=object)}, geometry=outlines, index=index)
    if label is not None:
        nuclei["label"] = label
    return nuclei


def _match(owner: np.ndarray, mask: Mask) -> np.ndarray | None:
    """Labels of nuclei that a table lists without, by cell and order within the cell; None where they differ."""
    import pandas as pd

    ours, theirs = pd.Series(owner), pd.Series(mask.owner)
    key = pd.MultiIndex.from_arrays([theirs, theirs.groupby(theirs).cumcount()])
    wanted = pd.MultiIndex.from_arrays([ours, ours.groupby(ours).cumcount()])
    found = pd.Series(mask.labels, index=key).reindex(wanted)
    return None if found.isna().any() else found.to_numpy(dtype=np.int64)
