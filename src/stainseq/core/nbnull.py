"""Negative binomial null fits of many genes: y_i ~ NB(mean m s_i, variance mu + alpha mu^2), maximum likelihood.

Every sum over cells of a function of s alone is taken on a few Chebyshev nodes in log s, so that a Newton step of a
gene costs some forty terms whatever the number of cells; the counts enter through their values only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOG_ALPHA_MAX = 25.0
_SMALL_COUNT = 64


@dataclass(frozen=True)
class SizeFactors:
    """Size factors and their compressed distribution.

    Parameters
    ----------
    values
        float64 [n], positive.
    nodes
        float64 [k], size factors at the Chebyshev nodes of their range in log.
    weights
        float64 [n, k]; ``weights @ f(nodes)`` is f(values) for smooth f.
    total
        float64 [k], column sums of `weights`.
    """

    values: NDArray[np.float64]
    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    total: NDArray[np.float64]


def compress(sizes: NDArray[Any]) -> SizeFactors:
    """Lay out size factors for `fit`.

    Parameters
    ----------
    sizes
        float [n], positive and finite.

    Notes
    -----
    log(1 + t s) as a function of log s has its nearest poles at distance pi from the real line, whatever t, so that
    the number of nodes for a relative error of 1e-13 follows from the range of log s alone.
    """
    sizes = np.ascontiguousarray(sizes, dtype=np.float64)
    logs = np.log(sizes)
    middle, half = 0.5 * (logs.max() + logs.min()), 0.5 * (logs.max() - logs.min())
    if half < 1e-12:
        nodes = np.array([math.exp(middle)])
        weights = np.ones((len(sizes), 1))
    else:
        reach = math.pi / half
        count = int(np.clip(math.ceil(30.0 / math.log(reach + math.hypot(reach, 1.0))), 8, 160))
        points = np.cos(np.pi * (np.arange(count) + 0.5) / count)
        nodes = np.exp(middle + half * points)
        weights = _chebyshev_weights((logs - middle) / half, points)
    return SizeFactors(sizes, nodes, weights, weights.sum(axis=0))


@njit(cache=True)
def _chebyshev_weights(x: NDArray[Any], points: NDArray[Any]) -> NDArray[Any]:  # pragma: no cover - compiled
    k = points.size
    out = np.zeros((x.size, k))
    for i in range(x.size):
        total = 0.0
        hit = -1
        for j in range(k):
            gap = x[i] - points[j]
            if gap == 0.0:
                hit = j
                break
            sign = 1.0 if j % 2 == 0 else -1.0
            out[i, j] = sign * math.sin(math.pi * (j + 0.5) / k) / gap
            total += out[i, j]
        if hit >= 0:
            out[i, :] = 0.0
            out[i, hit] = 1.0
        else:
            out[i, :] /= total
    return out


def fit(
    data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], sizes: SizeFactors, *, compat: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Maximum likelihood mean and dispersion of each gene.

    Parameters
    ----------
    data, indices, indptr
        CSC arrays of the counts [n, g]; values at least 0, whole or not.
    sizes
        From `compress`.
    compat
        Stay where SpatialDE2's optimiser stays. It starts at a moment estimate of the dispersion, at least 1e-8, and
        stops at once where the gradient in log alpha is below 1e-5; for genes whose moment estimate is negative (a
        quarter of sparse genes) that is a Poisson fit short of the maximum.

    Returns
    -------
    m
        float64 [g]; the mean of cell i is ``m * s_i``. 0 for genes without counts.
    alpha
        float64 [g]; exactly 0 where the likelihood falls from the Poisson limit on, at most exp(25).

    Notes
    -----
    The profile score in log alpha is solved by Newton steps kept inside a bracket, with the mean at its own optimum
    (the likelihood is concave in log m).
    """
    data = np.asarray(data, dtype=np.float64)
    return _fit(data, indices, indptr, sizes.values, sizes.weights, sizes.nodes, sizes.total, compat)


@njit(cache=True, nogil=True)
def _fit(data, indices, indptr, sizes, weights, nodes, total, compat):  # type: ignore[no-untyped-def]  # pragma: no cover
    size_sum = sizes.sum()
    inverse = (1.0 / sizes).mean()
    genes = indptr.size - 1
    k = nodes.size
    m = np.zeros(genes)
    alpha = np.zeros(genes)
    above = np.zeros(_SMALL_COUNT)
    sy = np.empty(k)
    for g in range(genes):
        first, last = indptr[g], indptr[g + 1]
        sy[:] = 0.0
        above[:] = 0.0
        big = np.empty(last - first)
        n_big = 0
        y_sum = 0.0
        ratio = 0.0
        ratio2 = 0.0
        for e in range(first, last):
            y = data[e]
            if y <= 0.0:
                continue
            y_sum += y
            i = indices[e]
            ratio += y / sizes[i]
            ratio2 += (y / sizes[i]) ** 2
            for j in range(k):
                sy[j] += y * weights[i, j]
            whole = int(y)
            if y < _SMALL_COUNT and whole == y:
                above[whole] += 1.0
            else:
                big[n_big] = y
                n_big += 1
        if y_sum == 0.0:
            continue
        # above[j]: how many cells have more than j counts, so that sums over j < y become sums over j.
        running = 0.0
        for j in range(_SMALL_COUNT - 1, -1, -1):
            here = above[j]
            above[j] = running
            running += here
        if compat:
            ratio /= sizes.size
            start = max(1e-8, (ratio2 / sizes.size - ratio * ratio - inverse * ratio) / (ratio * ratio))
            eta = _mean_given(start, math.log(y_sum / size_sum), sy, nodes, total)
            slope, _ = _profile_score(start, math.exp(eta), sy, above, big[:n_big], nodes, total)
            if abs(slope) < 1e-5:
                m[g], alpha[g] = math.exp(eta), start
                continue
        m[g], alpha[g] = _fit_one(y_sum, sy, above, big[:n_big], nodes, total, size_sum)
    return m, alpha


@njit(cache=True, nogil=True)
def _fit_one(y_sum, sy, above, big, nodes, total, size_sum):  # type: ignore[no-untyped-def]  # pragma: no cover
    m0 = y_sum / size_sum
    score, _ = _dispersion_sums(0.0, above, big)
    scale = 0.0
    for j in range(nodes.size):
        mu = m0 * nodes[j]
        score += 0.5 * total[j] * mu * mu - sy[j] * mu
        scale += total[j] * mu * mu
    if score <= 0.0:
        return m0, 0.0
    low, high = -LOG_ALPHA_MAX, LOG_ALPHA_MAX
    x = math.log(min(max(2.0 * score / scale, 1e-6), 1e6))
    eta = math.log(m0)
    for _ in range(100):
        a = math.exp(x)
        eta = _mean_given(a, eta, sy, nodes, total)
        g, h = _profile_score(a, math.exp(eta), sy, above, big, nodes, total)
        if g > 0.0:
            low = x
        else:
            high = x
        if h < 0.0:
            step = -g / h
        else:
            step = 1.0 if g > 0.0 else -1.0
        step = min(max(step, -3.0), 3.0)
        if abs(step) < 1e-12 * (1.0 + abs(x)):
            break
        new = x + step
        if not low < new < high:
            new = 0.5 * (low + high)
        if abs(new - x) < 1e-13 * (1.0 + abs(x)) or high - low < 1e-12:
            break
        x = new
    a = math.exp(x)
    return math.exp(_mean_given(a, eta, sy, nodes, total)), a


@njit(cache=True, nogil=True)
def _mean_given(a, eta, sy, nodes, total):  # type: ignore[no-untyped-def]  # pragma: no cover
    """log m at the optimum for a given dispersion: sum (y - mu) / (1 + a mu) = 0, concave, so Newton is safe."""
    for _ in range(60):
        m = math.exp(eta)
        g = 0.0
        h = 0.0
        for j in range(nodes.size):
            mu = m * nodes[j]
            one = 1.0 / (1.0 + a * mu)
            g += (sy[j] - total[j] * mu) * one
            h -= (a * sy[j] + total[j]) * mu * one * one
        step = min(max(-g / h, -2.0), 2.0)
        eta += step
        if abs(step) < 1e-13:
            break
    return eta


@njit(cache=True, nogil=True)
def _profile_score(a, m, sy, above, big, nodes, total):  # type: ignore[no-untyped-def]  # pragma: no cover
    """First and second derivative in log alpha of the likelihood, the mean following its optimum."""
    first, second = _dispersion_sums(a, above, big)
    cross = 0.0
    mean2 = 0.0
    for j in range(nodes.size):
        mu = m * nodes[j]
        x = a * mu
        one = 1.0 / (1.0 + x)
        if x < 0.02:
            # (log(1 + x) - x / (1 + x)) / x^2 and its derivative in x, by their series.
            f = 0.0
            df = 0.0
            power = 1.0
            for k in range(9):
                c = (k + 1.0) / (k + 2.0) * (1.0 if k % 2 == 0 else -1.0)
                f += c * power
                if k > 0:
                    df += c * k * power / x
                power *= x
        else:
            bracket = math.log1p(x) - x * one
            f = bracket / (x * x)
            df = one * one / x - 2.0 * bracket / (x * x * x)
        first += total[j] * mu * mu * f - sy[j] * mu * one
        second += total[j] * mu * mu * mu * df + sy[j] * mu * mu * one * one
        cross -= (sy[j] - total[j] * mu) * mu * one * one
        mean2 -= (a * sy[j] + total[j]) * mu * one * one
    curvature = second - cross * cross / mean2
    return a * first, a * first + a * a * curvature


@njit(cache=True, nogil=True)
def _dispersion_sums(a, above, big):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Sum over cells of sum_{j<y} j / (1 + a j) and its derivative in a."""
    first = 0.0
    second = 0.0
    for j in range(1, above.size):
        if above[j] == 0.0:
            break
        q = j / (1.0 + a * j)
        first += above[j] * q
        second -= above[j] * q * q
    for e in range(big.size):
        p, q = _count_sums(big[e], a)
        first += p
        second += q
    return first, second


@njit(cache=True, nogil=True)
def _count_sums(y, a):  # type: ignore[no-untyped-def]  # pragma: no cover
    """sum_{j<y} j / (1 + a j) and -sum_{j<y} (j / (1 + a j))^2, also for y that is not whole."""
    if a * y < 0.02:
        # Power sums as polynomials of y; the first term left out is below 2e-11 of the first.
        z = y - 1.0
        p1 = 0.5 * y * z
        p2 = y * z * (2.0 * y - 1.0) / 6.0
        p3 = p1 * p1
        p4 = p2 * (3.0 * y * y - 3.0 * y - 1.0) / 5.0
        p5 = p3 * (2.0 * y * y - 2.0 * y - 1.0) / 3.0
        p6 = p2 * (3.0 * y**4 - 6.0 * y**3 + 3.0 * y + 1.0) / 7.0
        first = p1 - a * (p2 - a * (p3 - a * (p4 - a * (p5 - a * p6))))
        return first, -p2 + a * (2.0 * p3 - a * (3.0 * p4 - a * (4.0 * p5 - a * 5.0 * p6)))
    r = 1.0 / a
    digamma = _digamma(y + r) - _digamma(r)
    trigamma = _trigamma(r) - _trigamma(y + r)
    # j / (1 + a j) = r - r^2 / (j + r)
    first = r * (y - r * digamma)
    second = -r * r * (y - 2.0 * r * digamma + r * r * trigamma)
    return first, second


@njit(cache=True, nogil=True)
def _digamma(x):  # type: ignore[no-untyped-def]  # pragma: no cover
    shift = 0.0
    while x < 10.0:
        shift -= 1.0 / x
        x += 1.0
    z = 1.0 / (x * x)
    series = z * (1 / 12 - z * (1 / 120 - z * (1 / 252 - z * (1 / 240 - z * (1 / 132 - z * 691 / 32760)))))
    return shift + math.log(x) - 0.5 / x - series


@njit(cache=True, nogil=True)
def _trigamma(x):  # type: ignore[no-untyped-def]  # pragma: no cover
    shift = 0.0
    while x < 10.0:
        shift += 1.0 / (x * x)
        x += 1.0
    z = 1.0 / (x * x)
    series = z * (1 / 6 - z * (1 / 30 - z * (1 / 42 - z * (1 / 30 - z * (5 / 66 - z * 691 / 2730)))))
    return shift + (1.0 + 0.5 / x + series) / x
