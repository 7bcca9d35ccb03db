"""Labels of nuclei: columns of tables, or files; a nucleus has its own, or its cell's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, MissingError
from . import _classes

if TYPE_CHECKING:
    from spatialdata import SpatialData


def owners_of(sdata: SpatialData, region: str, ids: np.ndarray) -> np.ndarray:
    """Cell of each nucleus; nuclei whose cells are not known are their own."""
    frame = sdata.shapes.get(region)
    if frame is None or "cell_id" not in frame:
        return np.asarray(ids, dtype=object)
    return frame["cell_id"].reindex(ids).astype(str).to_numpy(dtype=object)


def labels_of(
    sdata: SpatialData, ids: np.ndarray, owners: np.ndarray, *, labels: str | None, table: str | None
) -> np.ndarray:
    """Label of each nucleus, object [n]; None where there is none.

    Parameters
    ----------
    sdata
        The slide.
    ids, owners
        Of the nuclei, and of the cells that they belong to. Labels of either count, the nucleus' own first.
    labels
        Column of the table's obs, or a CSV of id and label. None: the table's only ``<method>.label``; without one,
        all nuclei are one class.
    table
        Name of the table.
    """
    if labels is not None and Path(labels).suffix.lower() in (".csv", ".tsv") and Path(labels).is_file():
        held = _labels_file(Path(labels))
    else:
        if table is not None and table not in sdata.tables:
            raise MissingError(f"no table {table!r}", where=sdata.path, fix=f"of {', '.join(sdata.tables) or 'none'}")
        obs = None if table is None else sdata.tables[table].obs
        column = labels if labels is not None else _only_labels(obs, sdata.path)
        if column is None:
            return np.full(len(ids), _classes.ONE_CLASS, dtype=object)
        if obs is None or column not in obs:
            there = [] if obs is None else [str(c) for c in obs.columns]
            raise MissingError(
                f"no labels {column!r}", where=f"{sdata.path}, {table}", fix=f"columns there: {', '.join(there) or '-'}"
            )
        held = obs[column].astype("string")
        held.index = held.index.astype(str)
    held = held[held.notna() & (held != "")]
    own, other = held.reindex(ids), held.reindex(owners)
    found = own.where(own.notna(), other.to_numpy()).to_numpy(dtype=object, na_value=None)
    return found


def _only_labels(obs: Any, where: Any) -> str | None:
    found = [] if obs is None else [str(c) for c in obs.columns if str(c).endswith(".label")]
    if len(found) > 1:
        raise MissingError("several labels", where=where, fix=f"--option labels=, one of: {', '.join(found)}")
    return found[0] if found else None


def _labels_file(path: Path) -> Any:
    from ..readers._tables import read_table

    table = read_table(path, dtype=str)
    table.columns = [str(c).strip().lower() for c in table.columns]
    key = next((c for c in ("id", "cell_id", "instance_id") if c in table), None)
    if key is None or "label" not in table:
        raise MissingError("no columns id and label", where=path, fix=f"columns there: {', '.join(table.columns[:8])}")
    double = table[key][table[key].duplicated()]
    if len(double):
        raise InputError(f"the cell {double.iloc[0]!r} is there twice", where=path, fix="one row a cell")
    return table.set_index(key)["label"].astype("string")
