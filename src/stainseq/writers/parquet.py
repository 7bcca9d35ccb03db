"""A table as Parquet: ids, places in um, obs and expression, wide (a column a gene) or long (a row a value)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..spec import canonical
from ._flat import frames, name_of
from ._format import Format
from ._table import open_table

if TYPE_CHECKING:
    from spatialdata import SpatialData

FORMAT = Format(suffixes=(".parquet",))


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
    """Write the file; some rows are in memory at a time. The facts are also in its metadata (``stainseq``).

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
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = open_table(sdata, tables[0], layer=layer, genes=genes)
    writer = None
    try:
        for frame in frames(table, slide=name_of(sdata), layout=layout, zeros=zeros):
            if writer is None:
                schema = _schema(frame)
                schema = schema.with_metadata({**(schema.metadata or {}), b"stainseq": canonical(facts).encode()})
                writer = pq.ParquetWriter(path, schema, compression="zstd")
            writer.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False))
    finally:
        if writer is not None:
            writer.close()
    return [path]


def _schema(frame: Any) -> Any:
    """Types of all pieces: a column of text may be empty in the first of them."""
    import pyarrow as pa

    schema = pa.Schema.from_pandas(frame, preserve_index=False)
    for i, field in enumerate(schema):
        if pa.types.is_null(field.type):
            schema = schema.set(i, field.with_type(pa.string()))
    return schema
