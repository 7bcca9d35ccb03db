"""Matrices that stay on disk or in a Dask graph: opened lazily, surveyed in one pass, read in panels of genes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ..errors import InputError
from ..store.matrices import lazy

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

_BLOCK = 1024
_PANELS = 6
"""Panels that may be alive at once: two held, one read in pieces, joined and turned into columns."""


@dataclass
class Survey:
    """What one pass over a matrix tells.

    Parameters
    ----------
    seen
        int64 [g], rows in which a gene is not 0.
    stored
        int64 [g], values kept of it.
    low, high
        float64 [g].
    totals
        float64 [n], sums of rows.
    whole, negative
        Whether all values are integers; whether some are below 0.
    bad, bad_gene
        How many values are NaN or infinite, and the first gene with one (-1: none).
    """

    seen: NDArray[np.int64]
    stored: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    totals: NDArray[np.float64]
    whole: bool = True
    negative: bool = False
    bad: int = 0
    bad_gene: int = -1

    def check(self, genes: Any, where: str) -> None:
        """Refuse values that are not finite.

        Raises
        ------
        InputError
            There are some.
        """
        if self.bad:
            raise InputError(
                f"{self.bad} values are NaN or infinite",
                where=f"{where}, first in gene {genes[self.bad_gene]!r}",
                fix="drop those rows or genes, or set the values to 0",
            )

    def testable(self, min_spots: int) -> NDArray[np.bool_]:
        """Genes that vary and are seen in enough spots."""
        return np.asarray((self.high > self.low) & (self.seen >= min_spots))


def survey(values: Any) -> Survey:
    """Look at every value once.

    Parameters
    ----------
    values
        [n, g]: CSC, a dense array, or `Panels`.
    """
    n, g = values.shape
    out = Survey(
        np.zeros(g, np.int64), np.zeros(g, np.int64), np.full(g, np.inf), np.full(g, -np.inf), np.zeros(n)
    )  # fmt: skip
    blocks = values.pieces() if isinstance(values, Panels) else _column_blocks(values)
    for row, column, facts in blocks:
        rows, genes = slice(row, row + len(facts.totals)), slice(column, column + len(facts.seen))
        out.seen[genes] += facts.seen
        out.stored[genes] += facts.stored
        out.low[genes] = np.minimum(out.low[genes], facts.low)
        out.high[genes] = np.maximum(out.high[genes], facts.high)
        out.totals[rows] += facts.totals
        out.whole &= facts.whole
        out.negative |= facts.negative
        if facts.bad:
            first = column + facts.bad_gene
            out.bad_gene = first if not out.bad else min(first, out.bad_gene)
            out.bad += facts.bad
    if isinstance(values, Panels):
        values.plan(out)
    return out


def _column_blocks(values: Any) -> Iterator[tuple[int, int, Survey]]:
    for start in range(0, values.shape[1], _BLOCK):
        yield 0, start, _facts(values[:, start : start + _BLOCK])


def _facts(block: Any) -> Survey:
    """The survey of one block, sparse or dense."""
    if sparse.issparse(block):
        block = sparse.csc_array(block)
        gene = np.repeat(np.arange(block.shape[1]), np.diff(block.indptr))
        data, shape = block.data, block.shape
        low, high = (a.toarray().ravel() for a in (block.min(axis=0), block.max(axis=0)))
        totals = np.bincount(block.indices, weights=data, minlength=shape[0])
        seen, stored = (np.bincount(w, minlength=shape[1]) for w in (gene[data != 0], gene))
    else:
        block = np.asarray(block)
        data = block
        low, high, totals = block.min(axis=0), block.max(axis=0), block.sum(axis=1, dtype=np.float64)
        seen, stored = (block != 0).sum(axis=0), np.full(block.shape[1], block.shape[0])
    out = Survey(seen, stored, low, high, np.asarray(totals, dtype=np.float64))
    if data.dtype.kind == "f":
        wrong = ~np.isfinite(data)
        out.bad = int(wrong.sum())
        if out.bad:
            out.bad_gene = int(gene[wrong].min() if data.ndim == 1 else np.flatnonzero(wrong.any(axis=0))[0])
            return out
        out.whole = bool((data == np.rint(data)).all())
    out.negative = data.dtype.kind in "if" and bool((data < 0).any())
    return out


class Panels:
    """A Dask matrix of some rows, given out in slices of genes as CSC.

    Storage by rows (CSR, dense) would be read in full for every few genes: instead so many genes are read in one pass
    as memory allows, and the last two panels are held.

    Parameters
    ----------
    array
        Dask array [n, g] whose chunks are NumPy or SciPy matrices.
    rows
        int64, rows that are meant, or None for all.
    max_bytes
        Memory for panels.
    """

    def __init__(self, array: Any, rows: NDArray[Any] | None, max_bytes: float) -> None:
        if any(np.isnan(c) for axis in array.chunks for c in axis):
            array = array.compute_chunk_sizes()
        if rows is not None:
            first, last = int(rows[0]), int(rows[-1]) + 1
            array = array[first:last] if last - first == len(rows) and (np.diff(rows) == 1).all() else array[rows]
        self._array, self.shape = array, tuple(int(k) for k in array.shape)
        self.row_totals: NDArray[np.float64] | None = None
        self._unit = max_bytes / _PANELS
        self._bounds = np.arange(0, self.shape[1] + 1)
        self._held: dict[int, sparse.csc_array] = {}
        self._lock = threading.Lock()

    def pieces(self) -> Iterator[tuple[int, int, Survey]]:
        """First row, first gene and survey of each chunk."""
        import dask

        corners = [
            (row, column)
            for row in np.cumsum((0, *self._array.chunks[0]))[:-1]
            for column in np.cumsum((0, *self._array.chunks[1]))[:-1]
        ]
        looks = [dask.delayed(_facts)(part) for part in self._array.to_delayed().ravel()]
        for start in range(0, len(looks), 32):
            for corner, found in zip(corners[start:], dask.compute(*looks[start : start + 32]), strict=False):
                yield *corner, found

    def plan(self, known: Survey) -> None:
        """Bounds of panels from the stored values of each gene; sums of rows are kept for who needs them."""
        self.row_totals = known.totals
        filled = np.cumsum(16.0 * np.maximum(known.stored, 1))
        panel = (filled / max(self._unit, 1.0)).astype(np.int64)
        self._bounds = np.concatenate([[0], np.flatnonzero(np.diff(panel)) + 1, [self.shape[1]]])

    def __getitem__(self, key: tuple[Any, slice]) -> sparse.csc_array:
        start, stop, _ = key[1].indices(self.shape[1])
        first = int(np.searchsorted(self._bounds, start, side="right")) - 1
        parts = []
        while start < stop:
            low, high = int(self._bounds[first]), int(self._bounds[first + 1])
            end = min(stop, high)
            parts.append(self._panel(first)[:, start - low : end - low])
            start, first = end, first + 1
        return parts[0] if len(parts) == 1 else sparse.csc_array(sparse.hstack(parts, format="csc"))

    def _panel(self, index: int) -> sparse.csc_array:
        with self._lock:
            if index not in self._held:
                while len(self._held) > 1:
                    del self._held[min(self._held)]
                part = self._array[:, int(self._bounds[index]) : int(self._bounds[index + 1])].compute()
                self._held[index] = sparse.csc_array(part)
            return self._held[index]


def as_dask(values: Any) -> Any:
    """A Dask array of a matrix that is not in memory (backed AnnData, Zarr, HDF5, Dask); None for one that is."""
    if hasattr(values, "dask"):
        return values
    stored = getattr(values, "group", values)
    if isinstance(values, np.ndarray) or sparse.issparse(values) or not hasattr(stored, "attrs"):
        return None
    return lazy(stored)


def copy_with_results(source: str | os.PathLike[str], target: Any, table: AnnData) -> None:
    """A copy of an h5ad file with the obs, var and uns of `table`; its matrices are never in memory.

    Parameters
    ----------
    source
        The file that `table` was opened from.
    target
        The new file.
    table
        With results.
    """
    import shutil

    import h5py
    from anndata.io import write_elem

    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        for name in ("obs", "var", "uns"):
            write_elem(file, name, dict(table.uns) if name == "uns" else getattr(table, name))
