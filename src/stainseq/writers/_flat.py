"""A table as rows of text and numbers, some at a time: wide (a column a gene) or long (a row a value)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

    from ._table import Table

_HEAD = ("slide", "id", "x_um", "y_um")


def frames(table: Table, *, slide: str, layout: str, zeros: bool) -> Iterator[DataFrame]:
    """The table in pieces with the same columns and types.

    Parameters
    ----------
    table
        To be written.
    slide
        First column.
    layout
        "wide": slide, id, x_um, y_um, the columns of obs, one column a gene. "long": slide, id, x_um, y_um, gene,
        value.
    zeros
        Whether the long layout has rows for values of 0.

    Raises
    ------
    InputError
        Another layout; a gene that is called as the first columns are.
    """
    import pandas as pd

    if layout not in ("wide", "long"):
        raise InputError(f"no layout {layout!r}", fix="wide or long")
    taken = [g for g in table.genes if g in _HEAD]
    if taken and layout == "wide":
        raise InputError(
            f"a gene called {taken[0]!r}, as a column of ours", where=table.where, fix="--option layout=long"
        )
    obs = pd.DataFrame({_free(str(c), table.genes): _plain(table.obs[c]) for c in table.obs.columns})
    genes = np.array(table.genes, dtype=object)
    for rows, block in table.rows():
        head: dict[str, Any] = {"slide": slide, "id": table.ids[rows]}
        if table.xy_um is not None:
            head |= {"x_um": table.xy_um[rows, 0], "y_um": table.xy_um[rows, 1]}
        first = pd.DataFrame(head)
        if layout == "wide":
            parts = [first, obs.iloc[rows].reset_index(drop=True), pd.DataFrame(block, columns=table.genes)]
            yield pd.concat(parts, axis=1)
            continue
        i, j = np.nonzero(np.ones_like(block, dtype=bool) if zeros else block != 0)
        yield first.iloc[i].assign(gene=genes[j], value=block[i, j]).reset_index(drop=True)


def _free(name: str, genes: list[str]) -> str:
    """A column of obs must not have the name of a gene or of the places."""
    return f"obs.{name}" if name in genes or name in _HEAD else name


def _plain(column: Any) -> Any:
    """Values without categories, which would differ from piece to piece."""
    return (
        column.astype("string").to_numpy(dtype=object, na_value=None)
        if str(column.dtype) in ("category", "object")
        else column.to_numpy()
    )


def name_of(sdata: Any) -> str:
    """What the slide is called."""
    from pathlib import Path

    from .. import store

    told = store.facts(sdata).get("slide")
    return str(told or (Path(sdata.path).stem if sdata.path else "slide"))
