"""One table as AnnData (.h5ad), with everything it holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import tables as files
from ..spec import canonical
from ._format import Format

if TYPE_CHECKING:
    from spatialdata import SpatialData

FORMAT = Format(suffixes=(".h5ad",))


def write(
    sdata: SpatialData, path: Path, *, region: str | None, tables: tuple[str, ...], facts: dict[str, Any]
) -> list[Path]:
    """Write the file; the facts are also in ``uns["stainseq_export"]``, as JSON.

    Parameters
    ----------
    sdata, path, region, tables, facts
        See the package: a file and one table.

    Returns
    -------
    list of Path
    """
    return [files.write_table(ready(sdata, tables[0], facts), path)]


def ready(sdata: SpatialData, name: str, facts: dict[str, Any]) -> Any:
    """A shallow copy of a table that carries the facts."""
    from anndata import AnnData

    table = sdata.tables[name]
    parts = {k: dict(getattr(table, k)) for k in ("layers", "obsm", "varm", "obsp", "varp")}
    uns = {**table.uns, "stainseq_export": canonical(facts)}
    return AnnData(table.X, obs=table.obs.copy(), var=table.var.copy(), uns=uns, **parts)
