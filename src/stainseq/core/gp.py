"""SpatialDE (version 1): Gaussian processes over places for all genes at once.

y ~ N(mu, s2 (K + delta I)). With K = U S U' the likelihood at a given delta needs three sums over eigenvalues, so that
a grid of delta for all genes is one matrix product, and the maximum is then found gene by gene in a few steps.

V. Svensson, S. A. Teichmann and O. Stegle, Nature Methods 15, 343 (2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from scipy.interpolate import splev, splrep

from ..errors import InputError
from . import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOG_DELTA = (-10.0, 20.0)
_GRID = np.linspace(*LOG_DELTA, 121)
_EIGENVALUE_FLOOR = 1e-8


@dataclass(frozen=True)
class Spectrum:
    """A covariance in its eigenbasis.

    Parameters
    ----------
    values, ones
        float64 [n], eigenvalues (at least 1e-8) and the basis applied to the constant vector.
    basis
        float64 [n, n], one eigenvector a column.
    gower
        Mean variance over places of a field with this covariance, tr(PKP) / (n - 1).
    """

    values: NDArray[np.float64]
    ones: NDArray[np.float64]
    basis: NDArray[np.float64]
    gower: float


def covariance(model: str, length: float, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """K [n, n] of "SE", "PER" (cos of the distance, not that of SpatialDE2) or "linear" (scaled to a largest 1)."""
    if model == "linear":
        k = coordinates @ coordinates.T
        return np.asarray(k / k.max())
    if model == "SE":
        return kernels.dense(kernels.Kernel("SE", length), coordinates)
    d2 = (coordinates[:, :1] - coordinates[:, 0]) ** 2 + (coordinates[:, 1:] - coordinates[:, 1]) ** 2
    return np.asarray(np.cos((2.0 * np.pi / length) * np.sqrt(d2)))


def spectrum(k: NDArray[np.float64]) -> Spectrum:
    """Eigenbasis of a covariance."""
    n = len(k)
    gower = float((np.trace(k) - k.sum() / n) / (n - 1))
    values, basis = np.linalg.eigh(k)
    return Spectrum(np.maximum(values, _EIGENVALUE_FLOOR), basis.sum(axis=0), basis, gower)


@dataclass(frozen=True)
class Fits:
    """Maxima of the likelihood per gene, float64 [g] each: log delta, log-likelihood, mean, structured variance."""

    log_delta: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    curvature: NDArray[np.float64]


def fit(values: NDArray[np.float64], s: Spectrum) -> Fits:
    """Maximise the likelihood over delta in [e^-10, e^20], mean and variance being at their optima.

    Parameters
    ----------
    values
        float64 [g, n].
    s
        From `spectrum`.

    Notes
    -----
    The best point of a grid of 121 is refined by Newton steps on the derivative within its neighbours, which finds
    the highest of several maxima where the original's single start from delta = 1 may stop at another.
    """
    mean = values.mean(axis=1)
    # The likelihood does not change with a constant, but digits are lost with a large one.
    uy = (values - mean[:, None]) @ s.basis
    inverse = 1.0 / (s.values[:, None] + np.exp(_GRID))
    ones2 = s.ones**2
    residual = (uy * uy) @ inverse - ((uy * s.ones) @ inverse) ** 2 / (ones2 @ inverse)
    n = values.shape[1]
    log_det = np.log(s.values[:, None] + np.exp(_GRID)).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = -0.5 * (n * np.log(residual / n) + log_det + n * (1.0 + math.log(2 * math.pi)))
    start = np.argmax(np.where(np.isnan(likelihood), -np.inf, likelihood), axis=1)
    found = _refine(uy, s.ones, s.values, _GRID, start)
    return Fits(found[0], found[1], found[2] + mean, found[3], found[4])


@njit(cache=True, nogil=True)
def _likelihood(x, uy, ones, values):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Log-likelihood, its first two derivatives in x = log delta, the mean and the residual sum."""
    delta = math.exp(x)
    n = values.size
    a = np.zeros(3)
    b = np.zeros(3)
    c = np.zeros(3)
    log_det = 0.0
    det1 = 0.0
    det2 = 0.0
    for i in range(n):
        r = 1.0 / (values[i] + delta)
        p = uy[i] * uy[i] * r
        q = uy[i] * ones[i] * r
        o = ones[i] * ones[i] * r
        a[0] += p
        b[0] += q
        c[0] += o
        a[1] += p * r
        b[1] += q * r
        c[1] += o * r
        a[2] += p * r * r
        b[2] += q * r * r
        c[2] += o * r * r
        log_det -= math.log(r)
        det1 += r
        det2 += r * r
    mean = b[0] / c[0]
    # With the mean at its optimum, derivatives in delta of F = sum (uy - mean ones)^2 r.
    f = a[0] - b[0] * mean
    f1 = -(a[1] - 2.0 * mean * b[1] + mean * mean * c[1])
    slip = (-b[1] + mean * c[1]) / c[0]
    f2 = 2.0 * (a[2] - 2.0 * mean * b[2] + mean * mean * c[2]) - 2.0 * slip * slip * c[0]
    value = -0.5 * (n * math.log(f / n) + log_det + n * (1.0 + math.log(2.0 * math.pi)))
    g = -0.5 * (n * f1 / f + det1)
    h = -0.5 * (n * (f2 / f - (f1 / f) ** 2) - det2)
    return value, g * delta, g * delta + h * delta * delta, mean, f


def fit_as_original(values: NDArray[np.float64], s: Spectrum) -> Fits:
    """The same with the original's optimiser, one gene after the other: for comparison with published tables.

    L-BFGS-B from delta = 1 with differences of 1e-4 for gradients and a relative tolerance of 2e-4, then both ends.
    It stops early or at a lower optimum for some genes, and takes a hundred times as long.
    """
    from scipy.optimize import fmin_l_bfgs_b

    mean = values.mean(axis=1)
    uy = (values - mean[:, None]) @ s.basis
    out = np.full((5, len(values)), np.nan)
    for k, y in enumerate(uy):
        if not y.any():
            continue

        def negative(x: Any, y: NDArray[Any] = y) -> float:
            return -_likelihood(float(np.ravel(x)[0]), y, s.ones, s.values)[0]

        found, value, _ = fmin_l_bfgs_b(
            negative, np.zeros(1), approx_grad=True, bounds=[LOG_DELTA], maxfun=64, factr=1e12, epsilon=1e-4
        )
        at = min([(float(value), float(found[0])), *((negative(end), end) for end in LOG_DELTA[::-1])])[1]
        likelihood, _, h, shift, f = _likelihood(at, y, s.ones, s.values)
        # The original takes the variance about 0, not about the fitted mean.
        f += (shift + mean[k]) ** 2 * (s.ones**2 / (s.values + math.exp(at))).sum()
        out[:, k] = at, likelihood, shift + mean[k], f / len(y), h
    return Fits(*out)


@njit(cache=True, nogil=True)
def _refine(uy, ones, values, grid, start):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    genes, n = uy.shape
    out = np.full((5, genes), np.nan)
    for k in range(genes):
        y = uy[k]
        if not (y * y).sum() > 0.0:
            continue
        low = grid[max(start[k] - 1, 0)]
        high = grid[min(start[k] + 1, grid.size - 1)]
        best = grid[start[k]]
        value, g, h, _, _ = _likelihood(best, y, ones, values)
        x = best
        for _ in range(60):
            if g > 0.0:
                low = x
            else:
                high = x
            new = x - g / h if h < 0.0 else 0.5 * (low + high)
            if not low < new < high:
                new = 0.5 * (low + high)
            if abs(new - x) < 1e-10:
                break
            x = new
            trial, g, h, _, _ = _likelihood(x, y, ones, values)
            if trial > value:
                value, best = trial, x
        value, _, h, mean, f = _likelihood(best, y, ones, values)
        out[0, k] = best
        out[1, k] = value
        out[2, k] = mean
        out[3, k] = f / n
        out[4, k] = h
    return out


def constant_likelihood(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-likelihood of the model without place, [g]; the variance with n - 1, as the original has it.

    NaN for genes that do not vary beyond rounding.
    """
    n = values.shape[1]
    variance = values.var(axis=1, ddof=1)
    variance[variance <= (1e-12 * np.abs(values).max(axis=1)) ** 2] = np.nan
    with np.errstate(divide="ignore"):
        return -0.5 * (n * np.log(variance) + (n - 1) + n * math.log(2 * math.pi))


def storey_q(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """q-values with the proportion of true nulls from a cubic spline at 0.89, as the original; NaN stays NaN.

    J. D. Storey and R. Tibshirani, PNAS 100, 9440 (2003). Below 100 tests all are taken to be null.
    """
    out = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    count = len(tested)
    if count == 0:
        return out
    share = 1.0
    if count >= 100:
        at = np.arange(0.0, 0.9, 0.01)
        above = (p[tested][None, :] > at[:, None]).sum(axis=1) / (count * (1.0 - at))
        share = float(np.clip(splev(at[-1], splrep(at, above, k=3)), 1.0 / count, 1.0))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = np.minimum(share * count * p[order] / np.arange(1, count + 1), 1.0)
    out[order] = np.minimum.accumulate(steps[::-1])[::-1]
    return out


def anscombe_dispersion(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> float:
    """The one dispersion phi of variance = mean + phi mean^2 over genes, by least squares; for log(y + 1 / 2 phi).

    Raises
    ------
    InputError
        Counts that vary less than Poisson counts, which leaves nothing to stabilise.
    """
    phi = float((mean**2 * (variance - mean)).sum() / (mean**4).sum())
    if not (np.isfinite(phi) and phi > 0):
        raise InputError(f"overdispersion over all genes is {phi:.3g}", fix="give raw counts, or values that are "
                         "already normalised with is_counts=False")  # fmt: skip
    return phi
