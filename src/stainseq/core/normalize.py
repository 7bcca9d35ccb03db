"""Raw counts to targets: depth-normalised or plain log1p, dense or sparse."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ..errors import InputError


def check_counts(counts: Any, *, where: object = "counts") -> Any:
    """Counts as a CSR array or a dense 2-d array, after a look at every value.

    Parameters
    ----------
    counts
        [n, genes], dense or any SciPy sparse format.
    where
        What the message names.

    Raises
    ------
    InputError
        Not two-dimensional, not numeric, negative, NaN or infinite.
    """
    if sparse.issparse(counts):
        counts = counts.tocsr()
        values = counts.data
    else:
        counts = values = np.asarray(counts)
    if counts.ndim != 2:
        raise InputError(f"counts have {counts.ndim} dimensions", where=where, fix="give rows x genes")
    if values.dtype.kind not in "biuf":
        raise InputError(f"counts are of type {values.dtype}", where=where, fix="give numbers")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError("counts hold NaN or infinite values", where=where, fix="remove those rows or set them to 0")
    if values.dtype.kind in "if" and values.size and values.min() < 0:
        raise InputError("counts are negative", where=where, fix="give raw counts, not scaled or centred values")
    return counts


def library_sizes(counts: Any) -> np.ndarray:
    """Total counts of each row, float64 [n]."""
    return np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()


def log1p_cp10k(counts: Any, *, library: np.ndarray | None = None, target: float = 1e4) -> Any:
    """log(1 + counts per `target`), natural logarithm.

    Depth-normalised targets are the default of stainseq because on raw counts a predictor is rewarded for
    guessing how many molecules a spot caught, not what it expresses.

    Parameters
    ----------
    counts
        [n, genes] raw counts, dense or sparse.
    library
        [n] total counts of each row over **all** genes measured. Give it whenever `counts` holds a selection of
        genes; without it the rows' own sums are taken.
    target
        What a row's total is scaled to. 10,000 as everywhere in the field; a constant (not the median of the
        rows at hand) so that a row's value does not depend on which other rows are there.

    Returns
    -------
    float32 [n, genes], sparse (CSR) if `counts` is. Rows without any count are 0.

    Raises
    ------
    InputError
        Bad counts (see `check_counts`), or a library size that is negative, not finite, or below the row's counts.
    """
    counts = check_counts(counts)
    sums = library_sizes(counts)
    if library is None:
        library = sums
    library = np.asarray(library, dtype=np.float64).ravel()
    if len(library) != counts.shape[0]:
        raise InputError(
            f"{len(library)} library sizes for {counts.shape[0]} rows", where="library", fix="give one per row"
        )
    if not np.isfinite(library).all() or (library < sums * (1 - 1e-6)).any():
        raise InputError(
            "library sizes are not finite or smaller than the counts of their row",
            where="library",
            fix="sum the counts of every gene of the row, before genes are chosen",
        )
    factor = np.divide(target, library, out=np.zeros_like(library), where=library > 0)
    if sparse.issparse(counts):
        values = np.log1p(counts.data * np.repeat(factor, np.diff(counts.indptr)))
        return sparse.csr_array((values.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)
    return np.log1p(counts * factor[:, None]).astype(np.float32)


UNITS = {"cp10k": "log1p(counts per 1e4)", "raw": "log1p(counts)"}
"""Normalisations of targets, and the unit that tables of predictions state."""


def normalized(counts: Any, *, library: np.ndarray, kind: str) -> np.ndarray:
    """Targets of a kind as a dense float32 array [n, genes].

    Parameters
    ----------
    counts
        [n, genes] raw counts, dense or sparse.
    library
        [n] total counts over all genes measured.
    kind
        "cp10k" or "raw"; see `log1p_cp10k` and `log1p_raw`.

    Raises
    ------
    InputError
        An unknown kind; bad counts.
    """
    if kind not in UNITS:
        raise InputError(f"no normalisation named {kind!r}", fix=f"one of: {', '.join(UNITS)}")
    values = log1p_raw(counts) if kind == "raw" else log1p_cp10k(counts, library=library)
    return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32)


def log1p_raw(counts: Any) -> Any:
    """log(1 + counts) without depth normalisation, as the HEST benchmark's targets.

    Parameters
    ----------
    counts
        [n, genes] raw counts, dense or sparse.

    Returns
    -------
    float32 [n, genes], sparse (CSR) if `counts` is.
    """
    counts = check_counts(counts)
    if sparse.issparse(counts):
        values = np.log1p(counts.data.astype(np.float64)).astype(np.float32)
        return sparse.csr_array((values, counts.indices, counts.indptr), shape=counts.shape)
    return np.log1p(counts.astype(np.float64)).astype(np.float32)
