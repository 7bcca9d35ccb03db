"""Moran's I and Geary's C of many genes at once on sparse weights, with exact randomisation moments.

A. D. Cliff and J. K. Ord, Spatial Processes: Models and Applications, Pion 1981, chapter 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.special import gammaincc, gammaln, log_ndtr

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
        Natural log of the one-sided p-value for neighbours being alike; 0 for genes that do not vary. In log space,
        so that strong genes do not tie at the smallest float.
    skewness
        Third standardised moment under random permutation; 0 where it is not used (Geary's C).
    """

    statistic: NDArray[np.float64]
    expected: float
    variance: NDArray[np.float64]
    z: NDArray[np.float64]
    log_p: NDArray[np.float64]
    skewness: NDArray[np.float64]


@dataclass(frozen=True)
class Graph:
    """Weights between places, and what the moments need of them, so that many blocks of genes share it.

    Parameters
    ----------
    weights
        float64 [n, n] sparse, zero diagonal, not necessarily symmetric.
    rows, columns
        float64 [n], sums.
    s0, s1, s2
        Cliff and Ord's sums: of weights, of squares of w_ij + w_ji over 2, of squares of row plus column sums.
    triples
        Weight of each way in which three edges can touch, by how often each place occurs in it.
    """

    weights: sparse.csr_array
    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    s0: float
    s1: float
    s2: float
    triples: dict[tuple[int, ...], float]

    @classmethod
    def of(cls, weights: Any) -> Graph:
        """Take the sums.

        Raises
        ------
        InputError
            Fewer than four places, or no neighbours at all.
        """
        n = weights.shape[0]
        if n < 4:
            raise InputError(f"spatial autocorrelation of {n} places", fix="needs at least 4")
        if weights.nnz == 0:
            raise InputError("no place has a neighbour", fix="ask for more neighbours")
        w = sparse.csr_array(weights, dtype=np.float64)
        rows, columns = np.asarray(w.sum(1)).ravel(), np.asarray(w.sum(0)).ravel()
        both = w + w.T
        s1, s2 = float(0.5 * (both.data**2).sum()), float(((rows + columns) ** 2).sum())
        return cls(w, rows, columns, float(rows.sum()), s1, s2, _triples(w))

    @property
    def places(self) -> int:
        """Number of places."""
        return int(self.weights.shape[0])


def moran(values: Any, weights: sparse.csr_array | Graph) -> Autocorrelation:
    """Moran's I: I = (n / S0) sum_ij w_ij z_i z_j / sum_i z_i^2 with z the centred values.

    Its permutation distribution has a long upper tail where few places express a gene. The p-value is therefore taken
    from the gamma distribution with the exact mean, variance and skewness (Pearson's type III); from the normal one,
    tails of sparse genes are ten times too heavy.

    Parameters
    ----------
    values
        [n, g], dense or sparse (CSC is taken as it is).
    weights
        float [n, n] sparse, zero diagonal, not necessarily symmetric; or the `Graph` of it.

    Raises
    ------
    InputError
        Fewer than four places, no neighbours at all, shapes that do not fit, or values that are not finite.
    """
    w = weights if isinstance(weights, Graph) else Graph.of(weights)
    m, n, s0 = _moments(values, w), w.places, w.s0
    with np.errstate(invalid="ignore", divide="ignore"):
        cross = m.ywy - m.mean * (m.wy + m.yw) + m.mean**2 * s0
        statistic = (n / s0) * cross / m.ss
        expected = -1.0 / (n - 1)
        first = n * ((n**2 - 3 * n + 3) * w.s1 - n * w.s2 + 3 * s0**2)
        second = m.kurtosis * ((n**2 - n) * w.s1 - 2 * n * w.s2 + 6 * s0**2)
        variance = (first - second) / ((n - 1) * (n - 2) * (n - 3) * s0**2) - expected**2
        third = _third_moment(m, w) * (n / (s0 * m.ss)) ** 3
        central = third - 3 * expected * (variance + expected**2) + 2 * expected**3
        skewness = central / variance**1.5
    return _tested(statistic, expected, variance, statistic - expected, skewness)


def geary(values: Any, weights: sparse.csr_array | Graph) -> Autocorrelation:
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
    w = weights if isinstance(weights, Graph) else Graph.of(weights)
    m, n, s0 = _moments(values, w), w.places, w.s0
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = m.y2w - 2 * m.ywy
        statistic = (n - 1) / (2 * s0) * squares / m.ss
        b2 = m.kurtosis
        variance = (
            (n - 1) * w.s1 * (n**2 - 3 * n + 3 - (n - 1) * b2)
            - 0.25 * (n - 1) * w.s2 * (n**2 + 3 * n - 6 - (n**2 - n + 2) * b2)
            + s0**2 * (n**2 - 3 - (n - 1) ** 2 * b2)
        ) / (n * (n - 2) * (n - 3) * s0**2)
    return _tested(statistic, 1.0, variance, 1.0 - statistic, np.zeros_like(statistic))


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
class _Moments:
    """Per gene: power sums of the centred values, and the quadratic forms of the raw ones."""

    mean: NDArray[np.float64]
    ss: NDArray[np.float64]
    p3: NDArray[np.float64]
    p4: NDArray[np.float64]
    p5: NDArray[np.float64]
    p6: NDArray[np.float64]
    kurtosis: NDArray[np.float64]
    ywy: NDArray[np.float64]
    wy: NDArray[np.float64]
    yw: NDArray[np.float64]
    y2w: NDArray[np.float64]


def _moments(values: Any, graph: Graph) -> _Moments:
    n, weights, rows, cols = graph.places, graph.weights, graph.rows, graph.columns
    if values.shape[0] != n:
        raise InputError(f"values of {values.shape[0]} places do not fit weights of {n}")
    parts: list[list[NDArray[Any]]] = []
    for block in _blocks(values, weights.nnz / n):
        if sparse.issparse(block):
            parts.append(_sparse_block(block, weights, rows, cols))
        else:
            parts.append(_dense_block(block, weights, rows, cols))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0)] * 11
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
    powers = [total(centred**k) + zeros * (-mean) ** k for k in range(2, 7)]
    ywy = np.asarray(block.multiply(sparse.csc_array(w @ block)).sum(0)).ravel()
    row_sum, col_sum = total(y * rows[place]), total(y * cols[place])
    y2w = total(y**2 * (rows + cols)[place])
    return [mean, *_shape(powers, mean, n), ywy, col_sum, row_sum, y2w]


def _dense_block(
    block: NDArray[np.float64], w: sparse.csr_array, rows: NDArray[np.float64], cols: NDArray[np.float64]
) -> list[NDArray[Any]]:
    """Values are centred first, which loses no digits when the mean is large against the spread."""
    shift = block.mean(0)
    z = block - shift
    powers = [np.einsum("ng->g", z**k) for k in range(2, 7)]
    ywy = np.einsum("ng,ng->g", z, w @ z)
    nothing = np.zeros_like(shift)
    kept = _shape(powers, shift, len(block))
    return [nothing, *kept, ywy, cols @ z, rows @ z, (rows + cols) @ z**2]


def _shape(powers: list[NDArray[np.float64]], mean: NDArray[np.float64], n: int) -> list[NDArray[np.float64]]:
    """Power sums 2 to 6 (NaN where the gene does not vary beyond rounding) and kurtosis n p4 / p2^2."""
    varies = powers[0] > n * (1e-12 * np.abs(mean)) ** 2
    ss = np.where(varies, powers[0], np.nan)
    return [ss, *powers[1:], n * powers[2] / ss**2]


def _triples(weights: sparse.csr_array) -> dict[tuple[int, ...], float]:
    """Sums of products of three edges, by how their edges touch: the same edge thrice, a path, a star, a triangle."""
    edges = sparse.csr_array((weights + weights.T) / 2)
    r = np.asarray(edges.sum(1)).ravel()
    squared = edges.multiply(edges)
    q = np.asarray(squared.sum(1)).ravel()
    w1, w2 = r.sum() / 2, q.sum() / 2
    w3 = squared.multiply(edges).sum() / 2
    triangle = (edges @ edges).multiply(edges).sum() / 6
    touching = q @ r - 2 * w3
    star = ((r**3 - 3 * r * q).sum() + 4 * w3) / 6
    upper = sparse.triu(edges, k=1).tocoo()
    path = (upper.data * (r[upper.row] - upper.data) * (r[upper.col] - upper.data)).sum() - 3 * triangle
    adjacent = (r @ r - q.sum()) / 2
    bent = adjacent * w1 - touching - 3 * triangle - 3 * star - 2 * path
    kinds = {
        (3, 3): w3,
        (3, 2, 1): 3 * touching,
        (2, 2, 1, 1): 3 * (w2 * w1 - w3 - touching) + 6 * path,
        (2, 2, 2): 6 * triangle,
        (3, 1, 1, 1): 6 * star,
        (2, 1, 1, 1, 1): 6 * bent,
    }
    kinds[1, 1, 1, 1, 1, 1] = w1**3 - sum(kinds.values())
    return {k: float(v) for k, v in kinds.items()}


def _third_moment(m: _Moments, graph: Graph) -> NDArray[np.float64]:
    """E of (sum_ij w_ij z_i z_j)^3 over all permutations of z.

    The cube is a sum over triples of edges. Each kind of triple has one weight sum of the graph and one mean over
    distinct places of the values, which depends only on how often each place occurs.
    """
    n = graph.places
    sums = {1: np.zeros_like(m.ss), 2: m.ss, 3: m.p3, 4: m.p4, 5: m.p5, 6: m.p6}
    out = np.zeros_like(m.ss)
    for exponents, weight in graph.triples.items():
        if len(exponents) <= n:
            places = float(np.prod(np.arange(n, n - len(exponents), -1, dtype=float)))
            out += 8 * weight * _distinct(exponents, sums) / places
    return out


def _distinct(exponents: tuple[int, ...], sums: dict[int, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Sum of z_a^k1 z_b^k2 ... over tuples of distinct places, from power sums of centred values.

    The first place is either distinct from all that follow, or the same as one of them:
    S(k1, k2, ...) = p_k1 S(k2, ...) - sum_j S(..., kj + k1, ...).
    """
    first, rest = exponents[0], exponents[1:]
    if not rest:
        return sums[first]
    total = np.zeros_like(sums[2]) if first == 1 else sums[first] * _distinct(rest, sums)
    for j in range(len(rest)):
        total = total - _distinct((*rest[:j], rest[j] + first, *rest[j + 1 :]), sums)
    return total


def _tested(
    statistic: NDArray[np.float64],
    expected: float,
    variance: NDArray[np.float64],
    towards: NDArray[np.float64],
    skewness: NDArray[np.float64],
) -> Autocorrelation:
    with np.errstate(invalid="ignore", divide="ignore"):
        # A complete graph leaves nothing to permute: rounding may then give a variance just below nothing.
        z = towards / np.sqrt(np.where(variance > 1e-15, variance, np.nan))
    known = np.isfinite(z)
    log_p = np.zeros_like(z)
    log_p[known] = log_upper_tail(z[known], np.nan_to_num(skewness[known]))
    return Autocorrelation(statistic, expected, variance, z, log_p, skewness)


def log_upper_tail(z: NDArray[np.float64], skewness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural log of P(Z > z) for a standardised gamma variable of given skewness (Pearson's type III).

    Parameters
    ----------
    z
        Standard scores [g].
    skewness
        [g]. Up to 1e-3, and where it is negative (the upper tail is then shorter than the normal one, and would end
        at a finite value), the normal distribution is taken.

    Returns
    -------
    array
        float64 [g]; exact far beyond the smallest float.
    """
    log_p = log_ndtr(-z)
    bent = np.flatnonzero(skewness > 1e-3)
    shape = 4 / skewness[bent] ** 2
    x = shape + z[bent] * np.sqrt(shape)
    with np.errstate(divide="ignore"):
        direct = np.log(gammaincc(shape, np.maximum(x, 0.0)))
    far = (direct < -600) & (x > shape + 1)
    direct[far] = _log_gamma_tail(shape[far], x[far])
    log_p[bent] = direct
    return np.asarray(log_p)


def _log_gamma_tail(a: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """log Q(a, x) for x > a + 1 by Lentz's continued fraction (Numerical Recipes, 6.2)."""
    b = x + 1 - a
    c = np.full_like(b, 1e300)
    d = 1 / b
    h = d.copy()
    for i in range(1, 500):
        step = -i * (i - a)
        b = b + 2
        d = 1 / (step * d + b)
        c = b + step / c
        change = d * c
        h *= change
        if np.all(np.abs(change - 1) < 1e-14):
            break
    return np.asarray(-x + a * np.log(x) - gammaln(a) + np.log(h))
