"""Moran's I and Geary's C of many genes at once on sparse weights, with exact randomisation moments.

A. D. Cliff and J. K. Ord, Spatial Processes: Models and Applications, Pion 1981, chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.special import log_ndtr

from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Autocorrelation:
    """Statistics per gene, float64 [g]; NaN where a gene does not vary.

    Parameters
    ----------
    statistic
        Moran's I or Geary's C.
    expected
        Its mean under random permutation of the values over the places.
    variance
        Its variance under the same.
    z
        Standard score, positive where neighbours are alike (for both statistics).
    log_p
        Natural log of the one-sided p-value for neighbours being alike, from the normal distribution; 0 for genes
        that do not vary. In log space, so that strong genes do not tie at the smallest float.
    """

    statistic: NDArray[np.float64]
    expected: float
    variance: NDArray[np.float64]
    z: NDArray[np.float64]
    log_p: NDArray[np.float64]


def moran(values: Any, weights: sparse.csr_array) -> Autocorrelation:
    """Moran's I: I = (n / S0) sum_ij w_ij z_i z_j / sum_i z_i^2 with z the centred values.

    Parameters
    ----------
    values
        [n, g], dense or sparse (CSC is taken as it is).
    weights
        float [n, n] sparse, zero diagonal, not necessarily symmetric.

    Raises
    ------
    InputError
        Fewer than four places, no neighbours at all, shapes that do not fit, or values that are not finite.
    """
    m, w = _moments(values, weights), _weights(weights)
    n, s0 = w.n, w.s0
    with np.errstate(invalid="ignore", divide="ignore"):
        cross = m.ywy - m.mean * (m.wy + m.yw) + m.mean**2 * s0
        statistic = (n / s0) * cross / m.ss
        expected = -1.0 / (n - 1)
        first = n * ((n**2 - 3 * n + 3) * w.s1 - n * w.s2 + 3 * s0**2)
        second = m.kurtosis * ((n**2 - n) * w.s1 - 2 * n * w.s2 + 6 * s0**2)
        variance = (first - second) / ((n - 1) * (n - 2) * (n - 3) * s0**2) - expected**2
    return _tested(statistic, expected, variance, statistic - expected)


def geary(values: Any, weights: sparse.csr_array) -> Autocorrelation:
    """Geary's C: C = (n - 1) / (2 S0) sum_ij w_ij (y_i - y_j)^2 / sum_i z_i^2.

    Parameters
    ----------
    values, weights
        As for `moran`.

    Raises
    ------
    InputError
        As for `moran`.
    """
    m, w = _moments(values, weights), _weights(weights)
    n, s0 = w.n, w.s0
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = m.y2w - 2 * m.ywy
        statistic = (n - 1) / (2 * s0) * squares / m.ss
        b2 = m.kurtosis
        variance = (
            (n - 1) * w.s1 * (n**2 - 3 * n + 3 - (n - 1) * b2)
            - 0.25 * (n - 1) * w.s2 * (n**2 + 3 * n - 6 - (n**2 - n + 2) * b2)
            + s0**2 * (n**2 - 3 - (n - 1) ** 2 * b2)
        ) / (n * (n - 2) * (n - 3) * s0**2)
    return _tested(statistic, 1.0, variance, 1.0 - statistic)


def benjamini_hochberg(log_p: NDArray[Any]) -> NDArray[np.float64]:
    """Adjusted p-values by the step-up rule, from natural logs of p-values.

    Parameters
    ----------
    log_p
        float [g]; NaN marks tests that were not made, which count for nothing and stay NaN.

    Returns
    -------
    array
        float64 [g], at most 1.
    """
    log_p = np.asarray(log_p, dtype=np.float64)
    adjusted = np.full(log_p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(log_p))
    order = tested[np.argsort(log_p[tested], kind="stable")]
    steps = log_p[order] + np.log(max(len(order), 1)) - np.log(np.arange(1, len(order) + 1))
    adjusted[order] = np.exp(np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 0.0))
    return adjusted


def row_standardised(graph: Any) -> sparse.csr_array:
    """Scale each row of a neighbour graph to sum 1; rows without neighbours stay empty.

    Parameters
    ----------
    graph
        [n, n] sparse.

    Returns
    -------
    csr_array
        float64 [n, n].
    """
    graph = sparse.csr_array(graph, dtype=np.float64)
    total = np.asarray(graph.sum(1)).ravel()
    scale = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return sparse.csr_array(sparse.diags_array(scale) @ graph)


@dataclass(frozen=True)
class _Weights:
    n: int
    s0: float
    s1: float
    s2: float


@dataclass(frozen=True)
class _Moments:
    """Per gene: mean, sum of squares and kurtosis of the centred values, and the quadratic forms of the raw ones."""

    mean: NDArray[np.float64]
    ss: NDArray[np.float64]
    kurtosis: NDArray[np.float64]
    ywy: NDArray[np.float64]
    wy: NDArray[np.float64]
    yw: NDArray[np.float64]
    y2w: NDArray[np.float64]


def _weights(w: sparse.csr_array) -> _Weights:
    rows, cols = np.asarray(w.sum(1)).ravel(), np.asarray(w.sum(0)).ravel()
    both = w + w.T
    return _Weights(w.shape[0], float(rows.sum()), float(0.5 * (both.data**2).sum()), float(((rows + cols) ** 2).sum()))


def _moments(values: Any, weights: sparse.csr_array) -> _Moments:
    n = values.shape[0]
    if weights.shape != (n, n):
        raise InputError(f"weights {weights.shape} do not fit {n} places")
    if n < 4:
        raise InputError(f"spatial autocorrelation of {n} places", fix="needs at least 4")
    if weights.nnz == 0:
        raise InputError("no place has a neighbour", fix="ask for more neighbours")
    rows, cols = np.asarray(weights.sum(1)).ravel(), np.asarray(weights.sum(0)).ravel()
    parts: list[list[NDArray[Any]]] = []
    for block in _blocks(values, weights.nnz / n):
        if sparse.issparse(block):
            parts.append(_sparse_block(block, weights, rows, cols))
        else:
            parts.append(_dense_block(block, weights, rows, cols))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0)] * 7
    moments = _Moments(*joined)
    if not np.isfinite(moments.y2w).all():
        raise InputError(
            "values that are not finite",
            where=f"first in gene {int(np.flatnonzero(~np.isfinite(moments.y2w))[0])}",
            fix="replace NaN and infinite values before testing",
        )
    return moments


def _blocks(values: Any, neighbours: float) -> Iterator[Any]:
    """Column blocks whose working copies stay within a fixed amount of memory."""
    n, g = values.shape
    if sparse.issparse(values):
        values = values.tocsc()
        per_gene = 24.0 * (neighbours + 2) * max(values.nnz / max(g, 1), 1.0)
    else:
        per_gene = 32.0 * n
    width = max(1, int(_BLOCK_BYTES / per_gene))
    for start in range(0, g, width):
        block = values[:, start : start + width]
        yield block.astype(np.float64) if sparse.issparse(block) else np.asarray(block, dtype=np.float64)


def _sparse_block(
    block: Any, w: sparse.csr_array, rows: NDArray[np.float64], cols: NDArray[np.float64]
) -> list[NDArray[Any]]:
    """Only non-zero values are touched: y' W y runs over the neighbours of expressing places."""
    n = block.shape[0]
    block = sparse.csc_array(block)
    stored = np.diff(block.indptr)
    gene = np.repeat(np.arange(block.shape[1]), stored)

    def total(x: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(gene, weights=x, minlength=block.shape[1]), dtype=np.float64)

    y, place = block.data, block.indices
    mean = total(y) / n
    centred = y - mean[gene]
    zeros = n - stored
    ss = total(centred**2) + zeros * mean**2
    fourth = total(centred**4) + zeros * mean**4
    ywy = np.asarray(block.multiply(sparse.csc_array(w @ block)).sum(0)).ravel()
    row_sum, col_sum = total(y * rows[place]), total(y * cols[place])
    y2w = total(y**2 * (rows + cols)[place])
    return [mean, *_shape(ss, fourth, mean, n), ywy, col_sum, row_sum, y2w]


def _dense_block(
    block: NDArray[np.float64], w: sparse.csr_array, rows: NDArray[np.float64], cols: NDArray[np.float64]
) -> list[NDArray[Any]]:
    """Values are centred first, which loses no digits when the mean is large against the spread."""
    shift = block.mean(0)
    z = block - shift
    ss, fourth = (z**2).sum(0), (z**4).sum(0)
    ywy = np.einsum("ng,ng->g", z, w @ z)
    nothing = np.zeros_like(shift)
    kept = _shape(ss, fourth, shift, len(block))
    return [nothing, *kept, ywy, cols @ z, rows @ z, (rows + cols) @ z**2]


def _shape(
    ss: NDArray[np.float64], fourth: NDArray[np.float64], mean: NDArray[np.float64], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of squares (NaN where the gene does not vary beyond rounding) and kurtosis n sum z^4 / (sum z^2)^2."""
    varies = ss > n * (1e-12 * np.abs(mean)) ** 2
    ss = np.where(varies, ss, np.nan)
    return ss, n * fourth / ss**2


def _tested(
    statistic: NDArray[np.float64], expected: float, variance: NDArray[np.float64], towards: NDArray[np.float64]
) -> Autocorrelation:
    with np.errstate(invalid="ignore", divide="ignore"):
        # A complete graph leaves nothing to permute: rounding may then give a variance just below nothing.
        z = towards / np.sqrt(np.where(variance > 1e-15, variance, np.nan))
    log_p = np.where(np.isnan(z), 0.0, log_ndtr(-z))
    return Autocorrelation(statistic, expected, variance, z, log_p)
