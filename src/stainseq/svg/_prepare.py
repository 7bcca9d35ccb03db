"""What the count-based tests share: checked inputs in canonical order, gene blocks, threads or a cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from scipy import sparse

from ..errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

T = TypeVar("T")


F = TypeVar("F", bound=Callable[..., Any])


def one_blas_thread(function: F) -> F:
    """Let linear algebra inside a function use one thread, so that sums run in one order; blocks run side by side."""

    @wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return function(*args, **options)

    return cast("F", wrapped)


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
        """Counts of each row over all genes, canonical order; as ``counts.row_totals`` knows them, where it does."""
        known = getattr(self._counts, "row_totals", None)
        if known is not None:
            return np.asarray(known, dtype=np.float64)[self._order]
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

    def frame(self, rows: Any = None, *, compact: bool = False) -> pd.DataFrame:
        """One row per gene and kernel: ``gene``, ``kernel``, ``l``, the columns, ``log10_pval`` and ``pval``.

        Parameters
        ----------
        rows
            Of which genes, as positions or bool [g]; default all.
        compact
            Names as categories (a few bytes a row, and a form that AnnData files hold).
        """
        import pandas as pd

        rows = slice(None) if rows is None else rows
        genes, count = self.genes[rows], len(self.kernels)
        out: dict[str, Any] = {"gene": np.repeat(genes, count), "kernel": np.tile(self.kernels, len(genes))}
        if compact:
            at = np.repeat(np.arange(len(genes), dtype=np.int32), count)
            out["gene"] = pd.Categorical.from_codes(at, categories=pd.Index(genes.astype(str)))
            out["kernel"] = pd.Categorical(out["kernel"])
        if self.lengths is not None:
            out["l"] = np.tile(self.lengths, len(genes))
        for name, values in self.columns.items():
            if name == "log_p":
                out |= {"log10_pval": values[rows].ravel() / np.log(10), "pval": np.exp(values[rows]).ravel()}
            else:
                out[name] = values[rows].ravel()
        return pd.DataFrame(out)


def threads(n_jobs: int | None) -> int:
    """Number of threads: as asked, else the cores that this process may use."""
    if n_jobs is not None:
        if n_jobs < 1:
            raise InputError(f"n_jobs is {n_jobs}", fix="give at least 1")
        return n_jobs
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_blocks(
    read: Callable[[int, int], Any],
    work: Callable[[Any], T],
    total: int,
    width: int,
    n_jobs: int,
    *,
    client: Any = None,
) -> Iterator[T]:
    """`work(read(start, stop))` over blocks of fixed bounds, results in order.

    Each block is computed by one thread from start to end, so that results do not depend on how many there are. Few
    blocks are under way at a time, which bounds memory.

    Parameters
    ----------
    read
        Gives a block; always called here.
    work
        Computes on it, here or on the cluster, where it is sent once.
    total, width
        Genes, and genes a block.
    n_jobs
        Threads here.
    client
        A ``distributed.Client``, whose workers compute instead.
    """
    bounds = [(start, min(start + width, total)) for start in range(0, total, width)]
    if client is not None:
        yield from _on_cluster(read, work, bounds, client)
    elif n_jobs == 1 or len(bounds) < 2:
        for start, stop in bounds:
            yield work(read(start, stop))
    else:
        with ThreadPoolExecutor(n_jobs) as pool:
            yield from _in_order(lambda a, b: pool.submit(lambda: work(read(a, b))), bounds, n_jobs + 1)


def _on_cluster(
    read: Callable[[int, int], Any], work: Callable[[Any], T], bounds: list[tuple[int, int]], client: Any
) -> Iterator[T]:
    # Of blocks that are alike in content (genes without counts) one would be taken for the other: no hashing.
    held = client.scatter([work], broadcast=True, hash=False)[0]

    def submit(start: int, stop: int) -> Any:
        block = client.scatter([read(start, stop)], hash=False)[0]
        return client.submit(_single_threaded, held, block, pure=False)

    at_work = 2 * max(sum(client.nthreads().values()), 1)
    yield from _in_order(submit, bounds, at_work)


@one_blas_thread
def _single_threaded(work: Callable[[Any], T], block: Any) -> T:
    return work(block)


def _in_order(submit: Callable[[int, int], Any], bounds: list[tuple[int, int]], ahead: int) -> Iterator[Any]:
    """Results of futures in order, so many submitted ahead of the one that is waited for."""
    waiting = deque(submit(*pair) for pair in bounds[:ahead])
    upcoming = iter(bounds[ahead:])
    while waiting:
        done = waiting.popleft().result()
        following = next(upcoming, None)
        if following is not None:
            waiting.append(submit(*following))
        yield done


def block_width(rows: int, max_gb: float, copies: int, most: int) -> int:
    """Genes a block: so many dense float64 copies of it fit `max_gb`. Fixed by data and option, not by threads."""
    if not max_gb > 0:
        raise InputError(f"max_gb is {max_gb}", fix="give the memory for gene blocks in GB, above 0")
    return int(np.clip(max_gb * 2**30 / (8 * rows * copies), 1, most))
