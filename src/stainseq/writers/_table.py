"""An expression table given out in blocks of rows or columns, whether it is in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .. import keys
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from pandas import DataFrame
    from spatialdata import SpatialData

ROW_BYTES, COLUMN_BYTES = 64 << 20, 128 << 20
"""Dense bytes of a block of rows, and of one of columns: what a writer holds beside what is in memory anyway."""


@dataclass(frozen=True, eq=False)
class Table:
    """One table of a slide, to be written.

    Parameters
    ----------
    name
        Of the table.
    ids
        [n] object array of str, unique.
    genes
        [g] names, unique.
    obs
        Columns of the rows, without those that link the table to its region.
    xy_um
        float64 [n, 2], or None where the table has no places.
    matrix
        [n, all genes]: numpy, scipy.sparse or dask.
    columns
        int64 [g], of `matrix`.
    where
        The table as messages name it.
    """

    name: str
    ids: np.ndarray
    genes: list[str]
    obs: DataFrame
    xy_um: np.ndarray | None
    matrix: Any
    columns: np.ndarray
    where: str

    def rows(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All values, some rows at a time, dense [k, g]."""
        n, width = len(self.ids), self.matrix.shape[1]
        step = max(1, ROW_BYTES // (8 * max(width, 1)))
        bounds = np.cumsum((0, *self.matrix.chunks[0])) if hasattr(self.matrix, "dask") else np.array([0, n])
        matrix = self.matrix.tocsr() if sparse.issparse(self.matrix) else self.matrix
        for first, last in pairwise(bounds):
            held = matrix[first:last]
            held = held.compute() if hasattr(held, "dask") else held
            for start in range(0, int(last - first), step):
                block = _dense(held[start : start + step])
                yield slice(int(first) + start, int(first) + start + len(block)), block[:, self.columns]

    def by_gene(self) -> Iterator[tuple[int, np.ndarray]]:
        """(position of the gene, its values [n]), gene by gene."""
        step = max(1, COLUMN_BYTES // (8 * max(len(self.ids), 1)))
        own = int(max(self.matrix.chunks[1])) if hasattr(self.matrix, "dask") else step
        for start in range(0, len(self.genes), min(step, own)):
            part = self._by_column[:, self.columns[start : start + min(step, own)]]
            panel = _dense(part.compute() if hasattr(part, "dask") else part)
            for i in range(panel.shape[1]):
                yield start + i, panel[:, i]

    @cached_property
    def _by_column(self) -> Any:
        return self.matrix.tocsc() if sparse.issparse(self.matrix) else self.matrix

    def check_counts(self, rows: slice, block: np.ndarray) -> np.ndarray:
        """The same as int32, if they are counts.

        Raises
        ------
        InputError
            Missing, negative or fractional; names the first.
        """
        with np.errstate(invalid="ignore"):
            bad = ~np.isfinite(block) | (block < 0) | (block != np.rint(block))
        if bad.any():
            i, j = (int(k[0]) for k in np.nonzero(bad))
            raise InputError(
                f"{block[i, j]:g} of {self.genes[j]} in {self.ids[rows.start + i]!r} is no count",
                where=self.where,
                fix="name a table of raw counts (--table); predictions are written by --to per-gene, parquet or csv",
            )
        return block.astype(np.int32)


def _dense(block: Any) -> np.ndarray:
    return block.toarray() if sparse.issparse(block) else np.asarray(block)


def open_table(
    sdata: SpatialData, name: str, *, layer: str | None = None, genes: str | Sequence[str] | None = None
) -> Table:
    """A table of a slide, ready to be written.

    Parameters
    ----------
    sdata
        The slide.
    name
        Of the table.
    layer
        Layer instead of X, such as "spread".
    genes
        Those that are wanted (a list, or text with commas between them); default all.

    Raises
    ------
    MissingError
        No such table, layer or gene.
    InputError
        Ids or genes that occur twice, an empty table.
    """
    if name not in sdata.tables:
        raise MissingError(f"no table {name!r}", where=sdata.path, fix=f"one of: {', '.join(sdata.tables) or 'none'}")
    table = sdata.tables[name]
    where = f"table {name!r} of {sdata.path or 'the slide'}"
    if layer is not None and layer not in table.layers:
        raise MissingError(f"no layer {layer!r}", where=where, fix=f"layers there: {', '.join(table.layers) or 'none'}")
    if not table.n_obs or not table.n_vars or (layer is None and table.X is None):
        raise InputError(f"the table is empty ({table.n_obs} x {table.n_vars})", where=where)
    for names, what in ((table.obs_names, "ids"), (table.var_names, "gene names")):
        if not names.is_unique:
            twice = ", ".join(map(str, names[names.duplicated()].unique()[:5]))
            raise InputError(f"{what} that occur twice: {twice}", where=where, fix="make them unique first")
    link = [c for c in (keys.REGION_KEY, keys.INSTANCE_KEY) if c in table.obs]
    columns = _positions(table.var_names, genes, where)
    xy = table.obsm.get(keys.SPATIAL)
    return Table(
        name,
        table.obs_names.to_numpy(dtype=object),
        [str(table.var_names[i]) for i in columns],
        table.obs.drop(columns=link),
        None if xy is None else np.asarray(xy, dtype=np.float64)[:, :2],
        table.X if layer is None else table.layers[layer],
        columns,
        where,
    )


def _positions(there: Any, genes: str | Sequence[str] | None, where: str) -> np.ndarray:
    if genes is None:
        return np.arange(len(there))
    wanted = listed(genes)
    at = there.get_indexer(wanted)
    if (at < 0).any() or not wanted:
        missing = ", ".join(g for g, i in zip(wanted, at, strict=True) if i < 0)
        raise MissingError(f"no gene {missing[:200] or 'named'}", where=where, fix="check the names (stainseq info)")
    return np.asarray(at, dtype=np.int64)


def listed(names: Any) -> list[str]:
    """Names that are given as a list or as text with commas between them; one that looks like a number is one name."""
    if isinstance(names, (str, int, float)):
        return [n.strip() for n in str(names).split(",")]
    return [str(n) for n in names]


def region_of(table: Any) -> str | None:
    """Name of the regions that a table belongs to, None where it tells none or several."""
    told = table.uns.get("spatialdata_attrs", {}).get("region")
    names = [told] if isinstance(told, str) else [str(r) for r in (told if told is not None else ())]
    return names[0] if len(names) == 1 else None
