"""What the count-based tests share: checked inputs in canonical order, gene blocks, size factors, threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from scipy import sparse

from ..errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

T = TypeVar("T")


class Sample:
    """Counts and coordinates of one sample, rows in canonical order, read gene block by gene block.

    Parameters
    ----------
    counts
        [n, g]: scipy sparse of any kind (CSC is read without a copy), a dense array, or anything with ``shape`` whose
        ``counts[:, a:b]`` is one of these (a backed h5ad or Zarr matrix, a Dask array).
    coordinates
        float [n, 2], um.
    genes
        Names, one per column.
    signed
        Whether values below 0 may occur (expression that is not counts).

    Raises
    ------
    InputError
        Shapes that do not fit, fewer than two rows, coordinates that are missing, not finite or all one place. Values
        are checked as blocks are read.
    """

    def __init__(self, counts: Any, coordinates: Any, *, genes: Any, signed: bool = False) -> None:
        if coordinates is None:
            raise InputError("no coordinates", where="obsm['spatial']", fix="give one x, y in um per row")
        coordinates = np.asarray(coordinates, dtype=np.float64)
        if coordinates.ndim != 2 or coordinates.shape[1] != 2:
            raise InputError(f"coordinates of shape {coordinates.shape}", fix="give one x, y per row")
        if sparse.issparse(counts):
            counts = sparse.csc_array(counts)
        elif not hasattr(counts, "shape"):
            counts = np.asarray(counts)
        if len(counts.shape) != 2 or counts.shape[0] != len(coordinates):
            raise InputError(f"counts of shape {tuple(counts.shape)} do not fit {len(coordinates)} coordinates")
        self.genes = np.asarray(genes, dtype=object)
        if self.genes.shape != (counts.shape[1],):
            raise InputError(f"{self.genes.size} gene names for {counts.shape[1]} columns")
        if len(coordinates) < 2:
            raise InputError(f"{len(coordinates)} place to test on", fix="needs at least 2")
        bad = ~np.isfinite(coordinates).all(axis=1)
        if bad.any():
            raise InputError(f"{int(bad.sum())} rows without finite coordinates", where=f"first is row {bad.argmax()}",
                             fix="remove these rows or give their coordinates")  # fmt: skip
        self._counts, self._signed = counts, signed
        # Sums then run in one order whatever the order of the rows.
        self._order = np.lexsort((coordinates[:, 0], coordinates[:, 1]))
        self.coordinates = np.ascontiguousarray(coordinates[self._order])
        if (self.coordinates == self.coordinates[0]).all():
            raise InputError("all rows are at one place", where="coordinates", fix="give spatial coordinates")
        if (self.coordinates[1:] == self.coordinates[:-1]).all(axis=1).any():
            self._order = self._order[np.lexsort((self._signature(), *self.coordinates.T))]

    def _signature(self, width: int = 1024) -> NDArray[np.float64]:
        """A number per row from its counts, to order rows at one place by what they hold."""
        mark = np.random.default_rng(0).random(len(self.genes))
        total = np.zeros(len(self.coordinates))
        for start in range(0, len(self.genes), width):
            stop = min(start + width, len(self.genes))
            total += self.block(start, stop) @ mark[start:stop]
        return total

    @property
    def shape(self) -> tuple[int, int]:
        """Rows kept, genes."""
        return len(self.coordinates), len(self.genes)

    def keep_rows(self, kept: NDArray[np.bool_]) -> None:
        """Leave rows out, given in canonical order."""
        self._order, self.coordinates = self._order[kept], self.coordinates[kept]

    def per_row(self, values: Any, name: str) -> NDArray[np.float64]:
        """Values given per row, as the caller's rows are ordered, put in canonical order."""
        values = np.asarray(values, dtype=np.float64).ravel()
        if len(values) != self._counts.shape[0]:
            raise InputError(f"{len(values)} values for {self._counts.shape[0]} rows", where=name)
        return values[self._order]

    def block(self, start: int, stop: int) -> sparse.csc_array:
        """Genes `start` to `stop` as float64 CSC, rows in canonical order and sorted within columns, no zeros."""
        part = self._counts[:, start:stop]
        if hasattr(part, "compute"):
            part = part.compute()
        part = sparse.csc_array(part, dtype=np.float64)
        if part.nnz and not np.isfinite(part.data.sum()):
            raise self._bad(part, ~np.isfinite(part.data), "counts that are not finite", start)
        if part.nnz and not self._signed and part.data.min() < 0:
            raise self._bad(part, part.data < 0, "negative counts", start)
        inverse = np.full(self._counts.shape[0], -1, dtype=np.int32)
        inverse[self._order] = np.arange(len(self._order), dtype=np.int32)
        return _reordered(part, inverse, len(self._order))

    def _bad(self, part: sparse.csc_array, wrong: NDArray[np.bool_], what: str, start: int) -> InputError:
        gene = int(np.searchsorted(part.indptr, int(wrong.argmax()), side="right")) - 1
        return InputError(what, where=f"gene {self.genes[start + gene]!r}", fix="test raw counts, without NaN")

    def totals(self, width: int = 1024) -> NDArray[np.float64]:
        """Counts of each row over all genes, canonical order."""
        total = np.zeros(len(self.coordinates))
        for start in range(0, len(self.genes), width):
            block = self.block(start, min(start + width, len(self.genes)))
            total += np.bincount(block.indices, weights=block.data, minlength=len(total))
        return total


def _reordered(part: sparse.csc_array, inverse: NDArray[np.int32], rows: int) -> sparse.csc_array:
    """Move rows to where `inverse` says (-1: away), which also sorts them within each column."""
    part.sum_duplicates()
    part.eliminate_zeros()
    row = inverse[part.indices]
    column = np.repeat(np.arange(part.shape[1], dtype=np.int64), np.diff(part.indptr))
    kept = np.flatnonzero(row >= 0)
    order = kept[np.argsort(column[kept] * rows + row[kept], kind="stable")]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(column[kept], minlength=part.shape[1]))])
    return sparse.csc_array((part.data[order], row[order], indptr), shape=(rows, part.shape[1]))


class KernelTable:
    """Results per gene and kernel, carried in ``DataFrame.attrs["kernels"]``.

    Not a DataFrame itself: pandas copies and compares what is in ``attrs``, which it cannot do with tables.

    Parameters
    ----------
    genes, kernels, lengths
        Names [g]; names [k]; length scales [k], um, or None.
    columns
        Name to float64 [g, k].
    """

    def __init__(self, genes: Any, kernels: Any, lengths: Any, **columns: NDArray[Any]) -> None:
        self.genes, self.kernels, self.lengths, self.columns = genes, kernels, lengths, columns

    def __deepcopy__(self, memo: dict[int, Any]) -> KernelTable:
        return self

    def frame(self) -> pd.DataFrame:
        """One row per gene and kernel: ``gene``, ``kernel``, ``l``, the columns, ``log10_pval`` and ``pval``."""
        import pandas as pd

        count = len(self.kernels)
        out = {"gene": np.repeat(self.genes, count), "kernel": np.tile(self.kernels, len(self.genes))}
        if self.lengths is not None:
            out["l"] = np.tile(self.lengths, len(self.genes))
        for name, values in self.columns.items():
            if name == "log_p":
                out |= {"log10_pval": values.ravel() / np.log(10), "pval": np.exp(values).ravel()}
            else:
                out[name] = values.ravel()
        return pd.DataFrame(out)


def threads(n_jobs: int | None) -> int:
    """Number of threads: as asked, else the cores that this process may use."""
    if n_jobs is not None:
        if n_jobs < 1:
            raise InputError(f"n_jobs is {n_jobs}", fix="give at least 1")
        return n_jobs
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_blocks(work: Callable[[int, int], T], total: int, width: int, n_jobs: int) -> Iterator[T]:
    """`work(start, stop)` over blocks of fixed bounds, results in order.

    Each block is computed by one thread from start to end, so that results do not depend on how many there are. At
    most `n_jobs` + 1 blocks are under way, which bounds memory.
    """
    bounds = [(start, min(start + width, total)) for start in range(0, total, width)]
    if n_jobs == 1 or len(bounds) < 2:
        for start, stop in bounds:
            yield work(start, stop)
        return
    with ThreadPoolExecutor(n_jobs) as pool:
        waiting = [pool.submit(work, *pair) for pair in bounds[: n_jobs + 1]]
        upcoming = iter(bounds[n_jobs + 1 :])
        while waiting:
            done = waiting.pop(0).result()
            following = next(upcoming, None)
            if following is not None:
                waiting.append(pool.submit(work, *following))
            yield done
