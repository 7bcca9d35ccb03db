"""Principal components of sparse or dense tables, centred without making them dense."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh

from ..errors import InputError

_GRAM = 2048  # up to this many rows or columns a Gram matrix is cheaper than Lanczos iterations
_BLOCK_ROWS = 8192


class Components(NamedTuple):
    """Principal components.

    Parameters
    ----------
    scores
        float64 [n, d], one column per component, centred.
    loadings
        float64 [d, g], orthonormal rows; the entry of largest size is positive, so that signs are repeatable.
    mean, scale
        float64 [g], what was subtracted from each column and what it was divided by.
    variance
        float64 [d], variance (divisor n - 1) of each score, falling.
    """

    scores: np.ndarray
    loadings: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    variance: np.ndarray


def pca(X: Any, n_components: int, *, standardise: bool = False, seed: int = 0) -> Components:
    """Exact leading principal components; memory beyond the input is O(block * g + n * d).

    Up to 2,048 columns (or rows, if those are fewer) the covariance between them is formed block by block and
    decomposed; beyond, Lanczos iterations (ARPACK) on the implicitly centred operator. All are exact to rounding,
    unlike a randomised decomposition, so that results do not depend on the route.

    Parameters
    ----------
    X
        [n, g] values, dense or CSR.
    n_components
        How many; cut to ``min(n - 1, g)`` and to the rank of the data.
    standardise
        Divide each column by its standard deviation (divisor n - 1); columns that do not vary stay zero.
    seed
        Start vector of the Lanczos iterations; it changes the last digits only.

    Raises
    ------
    InputError
        Fewer than two rows, or no column varies.
    """
    X = _table(X)
    n, g = X.shape
    if n < 2:
        raise InputError(f"principal components of {n} row(s)", where="pca", fix="give at least two rows")
    mean, variance = moments(X)
    if not variance.max(initial=0.0) > 0:
        raise InputError("no gene varies", where="expression", fix="check that the table holds counts of these spots")
    scale = np.where(variance > 0, np.sqrt(variance), 1.0) if standardise else np.ones(g)
    d = min(int(n_components), n - 1, g)
    if g <= n and (g <= _GRAM or g <= d + 1):
        values, vectors = _covariance(X, mean, scale, d)
    elif n <= _GRAM or n <= d + 1:
        values, vectors = _gram(X, mean, scale, d)
    else:
        values, vectors = _lanczos(X, mean, scale, d, seed)
    keep = values > values[0] * 1e-12
    values, vectors = values[keep], vectors[:, keep]
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
    scaled = vectors / scale[:, None]
    scores = np.empty((n, vectors.shape[1]))
    offset = mean @ scaled
    for start in range(0, n, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        scores[rows] = X[rows].astype(np.float64) @ scaled - offset
    return Components(scores, vectors.T, mean, scale, values)


def moments(X: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (divisor n - 1) of each column, float64 [g], by blocks of rows.

    Parameters
    ----------
    X
        [n, g] values, dense or CSR.
    """
    n, g = X.shape
    first, second, shift = np.zeros(g), np.zeros(g), np.zeros(g)
    for start in range(0, n, _BLOCK_ROWS):
        block = X[start : start + _BLOCK_ROWS]
        if sparse.issparse(block):
            data = block.data.astype(np.float64)
            first += np.bincount(block.indices, weights=data, minlength=g)
            second += np.bincount(block.indices, weights=data * data, minlength=g)
        else:
            block = np.asarray(block, dtype=np.float64)
            if start == 0:
                shift = block.mean(axis=0)  # keeps the difference of squares accurate for columns far from zero
            block = block - shift
            first += block.sum(axis=0)
            second += (block * block).sum(axis=0)
    variance = np.maximum(second - first * first / n, 0.0) / max(n - 1, 1)
    # What is left of a constant column is rounding.
    variance[variance <= 1e-14 * second / max(n, 1)] = 0.0
    return first / n + shift, variance


def _table(X: Any) -> Any:
    if sparse.issparse(X):
        return X.tocsr()
    X = np.asarray(X)
    if X.ndim != 2:
        raise InputError(f"expression has {X.ndim} dimensions", where="pca", fix="give rows x genes")
    return X


def _covariance(X: Any, mean: np.ndarray, scale: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.linalg import eigh

    n, g = X.shape
    gram = np.zeros((g, g))
    for start in range(0, n, _BLOCK_ROWS):
        block = X[start : start + _BLOCK_ROWS]
        dense = block.toarray() if sparse.issparse(block) else block
        dense = (dense.astype(np.float64) - mean) / scale
        gram += dense.T @ dense
    values, vectors = eigh(gram / (n - 1), subset_by_index=[g - d, g - 1])
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def _gram(X: Any, mean: np.ndarray, scale: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.linalg import eigh

    n, g = X.shape
    by_column = X.tocsc() if sparse.issparse(X) else X
    pieces = [slice(start, min(g, start + _GRAM)) for start in range(0, g, _GRAM)]

    def piece(columns: slice) -> np.ndarray:
        part = by_column[:, columns]
        dense = part.toarray() if sparse.issparse(part) else part
        return np.asarray((dense.astype(np.float64) - mean[columns]) / scale[columns])

    gram = np.zeros((n, n))
    for columns in pieces:
        dense = piece(columns)
        gram += dense @ dense.T
    values, left = eigh(gram / (n - 1), subset_by_index=[n - d, n - 1])
    values, left = np.maximum(values[::-1], 0.0), left[:, ::-1]
    lengths = np.sqrt(np.where(values > 0, values, 1.0) * (n - 1))
    return values, np.concatenate([piece(columns).T @ left for columns in pieces]) / lengths


def _lanczos(X: Any, mean: np.ndarray, scale: np.ndarray, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    n, g = X.shape
    values64 = X.astype(np.float64)
    transposed = values64.T.tocsr() if sparse.issparse(X) else values64.T

    def down(v: np.ndarray) -> np.ndarray:
        w = v.ravel() / scale
        return values64 @ w - mean @ w

    def up(u: np.ndarray) -> np.ndarray:
        u = u.ravel()
        return (transposed @ u - mean * u.sum()) / scale

    small = min(n, g)
    product = (lambda v: up(down(v))) if g <= n else (lambda u: down(up(u)))
    operator = LinearOperator((small, small), matvec=product, dtype=np.float64)
    start = np.random.default_rng([seed, 11]).standard_normal(small)
    values, vectors = eigsh(operator, k=d, which="LA", v0=start)
    order = np.argsort(-values, kind="stable")
    values, vectors = np.maximum(values[order], 0.0), vectors[:, order]
    if g > n:
        # From left to right singular vectors; those of vanishing values are dropped by the caller.
        lengths = np.sqrt(np.where(values > 0, values, 1.0))
        vectors = np.column_stack([up(vectors[:, j]) / lengths[j] for j in range(d)])
    return values / (n - 1), vectors
