"""Several tables of a slide as MuData (.h5mu), one modality each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import tables as files
from ._format import Format
from .h5ad import ready

if TYPE_CHECKING:
    from spatialdata import SpatialData

FORMAT = Format(suffixes=(".h5mu",), tables="several", prefers=("",))


def write(
    sdata: SpatialData, path: Path, *, region: str | None, tables: tuple[str, ...], facts: dict[str, Any]
) -> list[Path]:
    """Write the file; each modality has the name of its table, and the facts in ``uns["stainseq_export"]``.

    Parameters
    ----------
    sdata, path, region, tables, facts
        See the package: a file and any tables.

    Returns
    -------
    list of Path
    """
    import warnings

    import mudata

    with warnings.catch_warnings(), mudata.set_options(pull_on_update=False):
        # Genes have the same names in counts and predictions; as columns of one table they would be ambiguous.
        warnings.simplefilter("ignore", UserWarning)
        made = mudata.MuData({name: ready(sdata, name, facts).to_memory() for name in tables})
        return [files.write_table(made, path)]
