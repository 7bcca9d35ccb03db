"""A calibrated score test of spatial variance: pairs of places only, three moments, any depth.

The statistic of SpatialDE2 is r'Kr / 2. Its diagonal part, sum K_ii r_i^2 / 2, says nothing about place but brings in
the kurtosis of sparse counts, and the information matrix of SpatialDE2 takes the squared Frobenius norm of PK where
tr(PKPK) is meant. Here the diagonal is left out: with B = P' K P, P = 1 - 1 w'/sum w (the fitted mean), and b its
diagonal,

    Q = sum_{i<j} B_ij r_i r_j = (r'Kr - sum b_i r_i^2) / 2.

For independent r_i this sum over pairs has, without any assumption on higher moments of r, mean 0 and

    variance  sum_{i<j} B_ij^2 w_i w_j,
    third     tr((B0 D)^3) + sum_{i<j} B_ij^3 g_i g_j,       B0 = B without its diagonal, D = diag(w), g_i = E r_i^3.

Products such as w_i w_j are scaled so that their sum over pairs is that of the residuals actually seen, r_i^2 r_j^2,
which removes the effect of estimating mean and dispersion, and guards against a wrong dispersion model. The null
distribution is a shifted gamma with these three moments (Pearson's type III).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from scipy.special import log_ndtr, ndtr

from .chi2mix import log_cauchy_combination, log_gamma_sf
from .scoretest import node_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from .kernels import Operator
    from .scoretest import NullWeights

DIAGONAL_NODES = np.array([0.0, 0.5, 1.0])
"""Values of x where the diagonal of B is kept; it is interpolated between them, being a small and smooth part."""

_CEILING = 0.01
"""A kernel's p counts as at most 0.99: the mirror image of a pattern in one kernel must not outweigh the others."""


@dataclass(frozen=True)
class PairMoments:
    """Moments of the pair sum of one kernel over the nodes of a `NullWeights`.

    Parameters
    ----------
    mean, variance, triangles, pairs
        float64 [j]; the last two are the terms of the third moment.
    level
        float64 [j], w'Kw / (sum w)^2 (with a correction for interpolating `rows`).
    rows
        float64 [n, 3], Kw / sum w at `DIAGONAL_NODES`.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    triangles: NDArray[np.float64]
    pairs: NDArray[np.float64]
    level: NDArray[np.float64]
    rows: NDArray[np.float64]


def pair_moments(op: Operator, family: NullWeights) -> PairMoments:
    """Moments of the pair sum for the scaled weights of each node.

    Only products of K, its square and its cube (elementwise) with vectors, and tr((BD)^3), are needed.
    """
    out = np.empty((6, len(family.nodes)))
    w = family.weights_at(DIAGONAL_NODES)
    rows = op.apply(w) / w.sum(axis=0)
    for part in node_chunks(family, columns=12):
        w = family.weights(part)
        out[:, part] = _at_nodes(op, w, family.third(part))
        # What interpolating the rows gets wrong on average goes into the level, so that the mean stays exact.
        between = rows.T @ w / w.sum(axis=0)
        out[4, part] += 2.0 * ((_quadratic_basis(family.nodes[part]).T * between).sum(axis=0) - out[4, part])
    mean, variance, less, pairs, level, frobenius = out
    # tr((BD)^3) is the costly term. Over tr((BD)^2)^(3/2) it hardly varies: every fourth node is enough.
    few = family.coarser(4)
    traces = [op.trace3(np.ascontiguousarray(w)) for w in few.weights(slice(None)).T]
    ratio = family.from_coarser(traces / few.from_finer(frobenius, family) ** 1.5, few)
    return PairMoments(mean, variance, ratio * frobenius**1.5 - less, pairs, level, rows)


def _at_nodes(op: Operator, w: NDArray[Any], g: NDArray[Any]) -> NDArray[np.float64]:
    """Rows mean, variance, what the triangles lack of tr((BD)^3), pairs, level, tr((BD)^2), for each node.

    For weights w and third moments g, [n, nodes] each.

    With c = Kw / sum w and level = w'c / sum w, B_ij = K_ij - a_i - a_j where a = c - level / 2.
    """
    nodes = w.shape[1]
    s = w.sum(axis=0)
    kw, k_g = np.split(op.apply(np.hstack([w, g])), [nodes], axis=1)
    k2_w, k2_g = np.split(op.apply(np.hstack([w, g]), 2), [nodes], axis=1)
    k3_g = op.apply(g, 3)
    c = kw / s
    level = (w * c).sum(axis=0) / s
    a = c - 0.5 * level
    b = op.diagonal[:, None] - 2.0 * a
    k_aw, k_ga = np.split(op.apply(np.hstack([w * a, g * a])), [nodes], axis=1)
    frobenius = (w * k2_w).sum(axis=0) - 2.0 * s * (w * c * c).sum(axis=0) + (w * c).sum(axis=0) ** 2
    variance = 0.5 * (frobenius - ((b * w) ** 2).sum(axis=0))
    b2_w = k2_w - 2.0 * a * kw - 2.0 * k_aw + s * a**2 + 2.0 * a * (a * w).sum(axis=0) + (a**2 * w).sum(axis=0)
    less = 3.0 * (b * w * w * b2_w).sum(axis=0) - 2.0 * ((b * w) ** 3).sum(axis=0)
    g0, g1, g2, g3 = ((g * a**k).sum(axis=0) for k in range(4))
    cubes = (g * (k3_g + a * (-6.0 * k2_g + 6.0 * (a * k_g + k_ga)))).sum(axis=0) - 2.0 * g0 * g3 - 6.0 * g1 * g2
    pairs = 0.5 * (cubes - (b**3 * g * g).sum(axis=0))
    return np.stack([0.5 * (b * w * w).sum(axis=0) / s, variance, less, pairs, level, frobenius])


def power_sums(family: NullWeights) -> NDArray[np.float64]:
    """Sums over places, over ordered pairs and over ordered triples of different places, of the weights; [j, 4].

    Columns: sum w; sum_{i!=j} w_i w_j; the same for triples; sum_{i!=j} g_i g_j.
    """
    rows = []
    for j in range(len(family.nodes)):
        w, g = family.weights(np.array([j]))[:, 0], family.third(np.array([j]))[:, 0]
        p1, p2, p3 = w.sum(), (w**2).sum(), (w**3).sum()
        rows.append([p1, p1**2 - p2, p1**3 - 3 * p1 * p2 + 2 * p3, g.sum() ** 2 - (g**2).sum()])
    return np.array(rows)


@njit(cache=True, nogil=True)
def residual_sums(r):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The sums of `power_sums` with r_i^2 for w_i and r_i^3 for g_i; r is [g, n], the result [g, 4]."""
    out = np.empty((r.shape[0], 4))
    for k in range(r.shape[0]):
        p1 = 0.0
        p2 = 0.0
        p3 = 0.0
        c = 0.0
        for i in range(r.shape[1]):
            square = r[k, i] * r[k, i]
            p1 += square
            p2 += square * square
            p3 += square * square * square
            c += square * r[k, i]
        out[k, 0] = p1
        out[k, 1] = p1 * p1 - p2
        out[k, 2] = p1 * p1 * p1 - 3.0 * p1 * p2 + 2.0 * p3
        out[k, 3] = c * c - p3
    return out


class PairTest:
    """The pair-sum test of several kernels, ready for blocks of genes.

    Parameters
    ----------
    operators
        Maker of the operator of each kernel, which is let go when its moments are known.
    family
        Null weights.
    n_jobs
        Kernels prepared at a time.
    """

    def __init__(self, operators: Iterable[Callable[[], Operator]], family: NullWeights, *, n_jobs: int = 1) -> None:
        self._family, self._sums = family, power_sums(family)
        with ThreadPoolExecutor(n_jobs) as pool:
            found = list(pool.map(self._prepare, operators))
        self._table = np.stack([table for table, _ in found], axis=1)
        self._columns = np.concatenate([columns for _, columns in found], axis=1)

    def _prepare(self, make: Callable[[], Operator]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        op = make()
        m = pair_moments(op, self._family)
        # Per place: the diagonal of K, and the rows that make the diagonal of B of it.
        columns = np.column_stack([op.diagonal, m.rows])
        return np.column_stack([m.mean, m.variance, m.triangles, m.pairs, m.level]), columns

    def standardise(
        self, r: NDArray[np.float64], quadratic: NDArray[np.float64], x: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Pair sum, standard score and skewness of a block.

        Parameters
        ----------
        r
            [g, n] residuals.
        quadratic
            [g, k] r'Kr of each kernel.
        x
            [g] place of each gene on the family's nodes.

        Returns
        -------
        q, z, skewness
            float64 [g, k] each.
        """
        seen = residual_sums(r)
        mean, variance, triangles, pairs, level = np.moveaxis(self._family.interpolate(self._table, x), 2, 0)
        sums = ((r * r) @ self._columns).reshape(len(r), quadratic.shape[1], 4)
        diagonal = sums[:, :, 0] - 2.0 * np.einsum("gkc,gc->gk", sums[:, :, 1:], _quadratic_basis(x))
        q = 0.5 * (quadratic - diagonal - level * seen[:, :1])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = seen / self._family.interpolate(self._sums, x)
            spread = np.sqrt(variance * ratio[:, 1:2])
            z = (q - mean * ratio[:, :1]) / spread
            skewness = (triangles * ratio[:, 2:3] + pairs * ratio[:, 3:4]) / spread**3
        return q, z, skewness


def _quadratic_basis(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lagrange polynomials of `DIAGONAL_NODES`, [g, 3]."""
    return np.column_stack([(1.0 - x) * (1.0 - 2.0 * x), 4.0 * x * (1.0 - x), x * (2.0 * x - 1.0)])


def log_tail(z: NDArray[np.float64], skewness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural log of P(Z > z) for a shifted gamma of mean 0, variance 1 and given skewness (normal where it is 0)."""
    z, skewness = np.broadcast_arrays(z, skewness)
    flat = np.abs(skewness) < 1e-3
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = np.where(flat, 1.0, 4.0 / np.maximum(skewness**2, 1e-6))
        upper = log_gamma_sf(shape + z * np.sqrt(shape), shape)
        # A left-skewed pair sum is rare (negative third moment): its upper tail is the lower tail of the mirror image.
        mirror = skewness < 0
        lower = np.log(-np.expm1(log_gamma_sf(shape - z * np.sqrt(shape), shape)))
    return np.where(flat, log_ndtr(-z), np.where(mirror, np.minimum(lower, log_ndtr(-z)), upper))


def combine(
    log_p: NDArray[np.float64], correlation: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Cauchy combination whose p-value allows for the correlation of the kernels' statistics.

    Parameters
    ----------
    log_p
        float64 [g, k] natural logs.
    correlation
        float64 [k, k] of the statistics under the null.
    weights
        float64 [k] of the combination, positive.

    Returns
    -------
    array
        float64 [g] natural logs.

    Notes
    -----
    The Cauchy combination is exact only far in the tail; at 0.05 it is about 8 % liberal for ten kernels. The ratio of
    true to nominal p is found once from a normal copula with the given correlation (a fixed quarter of a
    million draws) and is held at its value at 0.005 below.
    """
    nominal = log_cauchy_combination(log_p, weights=weights, ceiling=_CEILING)
    if log_p.shape[1] == 1:
        return nominal
    share = weights / weights.sum()
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(4):
        p = np.clip(ndtr(rng.standard_normal((1 << 16, len(root))) @ root.T), 1e-16, 1.0 - _CEILING)
        parts.append(np.arctan2(1.0, (1.0 / np.tan(np.pi * p)) @ share) / np.pi)
    drawn = np.sort(np.concatenate(parts))
    level = np.exp(np.linspace(np.log(0.005), 0.0, 25))[:-1]
    true = np.searchsorted(drawn, level, side="right") / len(drawn)
    ratio = np.append(np.log(true / level), 0.0)
    # Interpolated in log p the map stays increasing: the ratio varies by a few percent over the whole range.
    return np.minimum(nominal + np.interp(nominal, np.append(np.log(level), 0.0), ratio), 0.0)
