"""Denoising over space: components that neighbours share, a fitted covariance function, and local kriging."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
from scipy import sparse

from ..errors import InputError
from .pca import moments

_BLOCK_ROWS = 4096
_SQRT3 = float(np.sqrt(3.0))
_LEAST = 1e-3  # bounds of the structured share of variance: a covariance matrix stays well conditioned


class Shared(NamedTuple):
    """Components whose scores neighbours have in common.

    Parameters
    ----------
    scores
        float64 [n, d], centred within each sample.
    loadings
        float64 [d, g], orthonormal; the entry of largest size is positive.
    covariance
        float64 [d], covariance of a score with the mean of its neighbours' scores, falling.
    """

    scores: np.ndarray
    loadings: np.ndarray
    covariance: np.ndarray


def shared_components(X: Any, near: np.ndarray, n_components: int, *, samples: list[np.ndarray]) -> Shared:
    """Directions in which a row varies together with its neighbours (MULTISPATI principal components).

    Eigenvectors of the symmetrised covariance between standardised rows and the means of their neighbours. What is
    independent between neighbours (counting noise, a mixture of cell types) has no part in it, so that these directions
    point at tissue structure where ordinary components point at cell types.

    Parameters
    ----------
    X
        [n, g] values, dense or CSR; columns are centred and divided by their standard deviation within each sample.
    near
        int [n, k] neighbours of each row, of its own sample.
    n_components
        How many.
    samples
        Row numbers of each sample.

    Notes
    -----
    S. Dray, S. Said, F. Debias, J. Veg. Sci. 19, 45 (2008).
    """
    n, g = X.shape
    k = near.shape[1]
    total = np.zeros((g, g))
    scaling = []
    for rows in samples:
        mean, variance = moments(X[rows])
        scale = np.where(variance > 0, np.sqrt(variance), np.inf)  # infinite: a column that does not vary drops out
        scaling.append((mean, scale))
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            own = (_dense(X[block]) - mean) / scale
            total += own.T @ ((_means(X, near[block], k) - mean) / scale)
    if not any(np.isfinite(scale).any() for _, scale in scaling):
        raise InputError("no gene varies", where="expression", fix="check that the table holds counts of these spots")
    total = (total + total.T) / (2 * n)
    values, vectors = np.linalg.eigh(total)
    d = max(1, min(n_components, g))
    order = np.argsort(-values, kind="stable")[:d]
    values, vectors = values[order], vectors[:, order]
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(d)] < 0, -1.0, 1.0)
    scores = np.empty((n, d))
    for rows, (mean, scale) in zip(samples, scaling, strict=True):
        weights = vectors / scale[:, None]
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            scores[block] = X[block].astype(np.float64) @ weights - mean @ weights
    return Shared(scores, vectors.T, values)


def _dense(block: Any) -> np.ndarray:
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float64)


def _means(X: Any, near: np.ndarray, k: int) -> np.ndarray:
    """Dense means over each row's neighbours."""
    rows = np.repeat(np.arange(len(near)), k)
    pick = sparse.csr_array((np.full(len(rows), 1.0 / k), (rows, near.ravel())), shape=(len(near), X.shape[0]))
    return _dense(pick @ X)


class Covariance(NamedTuple):
    """Matern 3/2 covariance over distance, as a share of the variance; the rest is independent between rows.

    Parameters
    ----------
    share
        Structured part of the variance, in [0.001, 0.999].
    length
        Range r of (1 + sqrt(3) h / r) exp(-sqrt(3) h / r), in the coordinates' unit.
    """

    share: float
    length: float


def fit_covariance(
    scores: np.ndarray, coordinates: np.ndarray, near: np.ndarray, *, n_bins: int = 12, n_lengths: int = 60
) -> Covariance:
    """Fit one covariance function to all columns together, from pairs of near rows.

    The covariance observed at distances above zero is extrapolated to zero: what the variance exceeds it by is taken as
    independent between rows. So the data say how much a row's own value is worth against its neighbours'.

    Parameters
    ----------
    scores
        [n, d] centred columns of one sample; each counts with its variance.
    coordinates
        [n, 2].
    near
        int [n, k] neighbours.
    n_bins
        Bins of distance, with equally many pairs.
    n_lengths
        Lengths tried, from half the shortest to six times the longest bin's distance.
    """
    gap = np.sqrt(((coordinates[near] - coordinates[:, None]) ** 2).sum(axis=2)).ravel()
    product = np.zeros(near.shape)
    for column in scores.T:
        product += column[:, None] * column[near]
    edges = np.quantile(gap, np.linspace(0, 1, n_bins + 1))
    inside = np.clip(np.searchsorted(edges, gap, side="right") - 1, 0, n_bins - 1)
    count = np.bincount(inside, minlength=n_bins)
    held = count > 0
    distance = np.bincount(inside, weights=gap, minlength=n_bins)[held] / count[held]
    covariance = np.bincount(inside, weights=product.ravel(), minlength=n_bins)[held] / count[held]
    variance = float((scores**2).sum(axis=1).mean())
    if not variance > 0 or not distance.max() > 0:
        return Covariance(_LEAST, 1.0)
    weight, best = count[held].astype(np.float64), (np.inf, 0.0, 1.0)
    low = distance[distance > 0].min() / 2
    for length in np.geomspace(low, 6 * distance.max(), n_lengths):
        shape = _matern(distance / length)
        height = float(np.clip((weight * shape * covariance).sum() / (weight * shape**2).sum(), 0, variance))
        error = float((weight * (covariance - height * shape) ** 2).sum())
        if error < best[0]:
            best = (error, height / variance, float(length))
    return Covariance(float(np.clip(best[1], _LEAST, 1 - _LEAST)), best[2])


def _matern(h: np.ndarray) -> np.ndarray:
    return (1 + _SQRT3 * h) * np.exp(-_SQRT3 * h)


def krige(scores: np.ndarray, coordinates: np.ndarray, near: np.ndarray, covariance: Covariance) -> np.ndarray:
    """Best linear prediction of the structured part of each row from itself and its neighbours.

    Parameters
    ----------
    scores
        [n, d] centred columns.
    coordinates
        [n, 2].
    near
        int [n, k + 1] the row itself first, then its neighbours.
    covariance
        From `fit_covariance`.

    Returns
    -------
    array
        float64 [n, d]. Rows are independent of each other, so that the threads used do not matter.

    Notes
    -----
    Simple kriging with a nugget; N. Cressie, Statistics for Spatial Data (1993), section 3.2. O(n k^3) time.
    """
    n = len(scores)
    out = np.empty((n, scores.shape[1]))
    xy = np.ascontiguousarray(coordinates, dtype=np.float64)
    values = np.ascontiguousarray(scores, dtype=np.float64)
    near = np.ascontiguousarray(near, dtype=np.int64)
    share, length = covariance

    def work(start: int) -> None:
        _krige(xy, near[start : start + _BLOCK_ROWS], values, share, length, out[start : start + _BLOCK_ROWS])

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(work, range(0, n, _BLOCK_ROWS)))
    return out


@numba.njit(nogil=True, cache=True)
def _krige(
    xy: np.ndarray, near: np.ndarray, values: np.ndarray, share: float, length: float, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    n, m = near.shape
    d = values.shape[1]
    factor = np.empty((m, m))
    weight = np.empty(m)
    for i in range(n):
        for s in range(m):
            for t in range(s):
                dx = xy[near[i, s], 0] - xy[near[i, t], 0]
                dy = xy[near[i, s], 1] - xy[near[i, t], 1]
                h = 1.7320508075688772 * np.sqrt(dx * dx + dy * dy) / length
                factor[s, t] = share * (1.0 + h) * np.exp(-h)
            factor[s, s] = 1.0
        weight[0] = share
        for s in range(1, m):
            weight[s] = factor[s, 0]
        # Cholesky, then both triangular solves in place.
        for s in range(m):
            for t in range(s + 1):
                v = factor[s, t]
                for q in range(t):
                    v -= factor[s, q] * factor[t, q]
                factor[s, t] = np.sqrt(v) if s == t else v / factor[t, t]
        for s in range(m):
            v = weight[s]
            for q in range(s):
                v -= factor[s, q] * weight[q]
            weight[s] = v / factor[s, s]
        for s in range(m - 1, -1, -1):
            v = weight[s]
            for q in range(s + 1, m):
                v -= factor[q, s] * weight[q]
            weight[s] = v / factor[s, s]
        for j in range(d):
            v = 0.0
            for s in range(m):
                v += weight[s] * values[near[i, s], j]
            out[i, j] = v
