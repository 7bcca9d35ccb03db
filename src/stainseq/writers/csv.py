"""A table as CSV (.csv, .csv.gz, .tsv): ids, places in um, obs and expression, wide or long."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ._flat import frames, name_of
from ._format import Format
from ._table import open_table

if TYPE_CHECKING:
    from spatialdata import SpatialData

FORMAT = Format(suffixes=(".csv", ".csv.gz", ".tsv", ".tsv.gz"))


def write(
    sdata: SpatialData,
    path: Path,
    *,
    region: str | None,
    tables: tuple[str, ...],
    facts: dict[str, Any],
    layout: Literal["wide", "long"] = "wide",
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    zeros: bool = False,
) -> list[Path]:
    """Write the file; some rows are in memory at a time. Numbers are written to the last bit.

    Parameters
    ----------
    sdata, path, region, tables, facts
        See the package: a file and one table.
    layout
        "wide" or "long".
    layer
        Layer instead of X, such as "spread".
    genes
        Those that are wanted; default all.
    zeros
        Whether the long layout has rows for values of 0.

    Returns
    -------
    list of Path
    """
    table = open_table(sdata, tables[0], layer=layer, genes=genes)
    opened = gzip.open if path.suffix == ".gz" else open
    separator = "\t" if ".tsv" in path.suffixes else ","
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        header = True
        for frame in frames(table, slide=name_of(sdata), layout=layout, zeros=zeros):
            frame.to_csv(file, sep=separator, index=False, header=header)
            header = False
    return [path]
