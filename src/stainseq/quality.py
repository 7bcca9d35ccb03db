"""Which regions are fit to learn from and to predict: what `pp.quality` found, as training and prediction use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError, MissingError

if TYPE_CHECKING:
    from spatialdata import SpatialData

COLUMN = "quality"
GOOD = "good"


def table_name(region: str) -> str:
    """Name of the quality table of a region."""
    return f"quality_{region}"


def usable(
    sdata: SpatialData, region: str, ids: Any, *, table_key: str | None = None
) -> tuple[np.ndarray, dict[str, int]]:
    """Regions that are good, where their quality is known.

    Parameters
    ----------
    sdata
        The slide.
    region
        The regions.
    ids
        [n] their ids.
    table_key
        Table of quality; default ``quality_<region>`` where it is there. "none": all regions are taken.

    Returns
    -------
    tuple
        bool [n], and how many were left out, by class.

    Raises
    ------
    MissingError
        The table that was named is not there.
    InputError
        It was made from other regions, or leaves none.
    """
    import pandas as pd

    name = table_key or table_name(region)
    if table_key == "none" or (table_key is None and name not in sdata.tables):
        return np.ones(len(ids), dtype=bool), {}
    if name not in sdata.tables or COLUMN not in sdata.tables[name].obs:
        there = ", ".join(sdata.tables) or "none"
        raise MissingError(
            f"no table {name!r} of quality", where=sdata.path, fix=f"run `stainseq tissue --quality`; tables: {there}"
        )
    table = sdata.tables[name]
    at = pd.Index(table.obs_names).get_indexer(pd.Index(ids).astype(str))
    if (at < 0).any():
        raise InputError(
            f"{int((at < 0).sum())} of {len(ids)} {region} are not in {name!r}: it was made from others",
            where=sdata.path,
            fix="run `stainseq tissue --quality` again, or pass --quality none",
        )
    found = table.obs[COLUMN].astype(str).to_numpy()[at]
    kept = found == GOOD
    if len(kept) and not kept.any():
        raise InputError(
            f"none of {len(ids)} {region} is of good quality",
            where=sdata.path,
            fix="look at it, or pass --quality none",
        )
    names, counts = np.unique(found[~kept], return_counts=True)
    return kept, {str(k): int(c) for k, c in zip(names, counts, strict=True)}
