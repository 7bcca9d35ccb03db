"""Tail probabilities in log space: chi-square, shifted gamma and the Cauchy combination of dependent tests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from scipy.special import gammaincc

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SMALL = -23.0
"""Natural log of p below which tan((1/2 - p) pi) equals 1 / (pi p) to rounding."""


def log_chi2_sf(x: Any, nu: Any) -> NDArray[np.float64]:
    """Natural log of P(chi-square with nu degrees of freedom > x), finite where the probability itself is not.

    Parameters
    ----------
    x
        [...] statistic; values below 0 give 0 (p = 1), NaN stays NaN.
    nu
        [...] degrees of freedom, positive, not necessarily whole; broadcast against `x`.
    """
    return log_gamma_sf(0.5 * np.asarray(x, dtype=np.float64), 0.5 * np.asarray(nu, dtype=np.float64))


def log_gamma_sf(x: Any, shape: Any) -> NDArray[np.float64]:
    """Natural log of P(Gamma(shape, scale 1) > x).

    Parameters
    ----------
    x, shape
        [...] broadcast against each other; values of `x` below 0 give 0, NaN stays NaN.

    Notes
    -----
    Below 1e-290 the continued fraction of the incomplete gamma function takes over, whose logarithm has no floor.
    """
    x, shape = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(shape, dtype=np.float64))
    x = np.where(x < 0, 0.0, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = gammaincc(shape, x)
        found = np.log(p)
    deep = p < 1e-290
    if deep.any():
        found = np.array(found)
        found[deep] = _log_upper(np.ascontiguousarray(shape[deep]), np.ascontiguousarray(x[deep]))
    return np.asarray(found)


@njit(cache=True)
def _log_upper(a: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:  # pragma: no cover - compiled
    out = np.empty(a.size)
    for i in range(a.size):
        if math.isinf(x[i]):
            out[i] = -np.inf
            continue
        # Modified Lentz evaluation; far in the tail it converges in a few steps.
        b = x[i] + 1.0 - a[i]
        c = 1e300
        d = 1.0 / b
        h = d
        for k in range(1, 500):
            an = -k * (k - a[i])
            b += 2.0
            d = 1.0 / (an * d + b)
            c = b + an / c
            delta = d * c
            h *= delta
            if abs(delta - 1.0) < 1e-15:
                break
        out[i] = a[i] * math.log(x[i]) - x[i] - math.lgamma(a[i]) + math.log(h)
    return out


def log_fisher_combination(log_p: Any) -> NDArray[np.float64]:
    """Combine the p-values of independent tests of one hypothesis: -2 sum log p ~ chi-square with 2 k degrees.

    Parameters
    ----------
    log_p
        float64 [g, k] natural logs. NaN tests are left out, with their degrees of freedom; NaN where none is left.

    Returns
    -------
    array
        float64 [g], natural logs without a floor; a single test is given back as it is.

    Notes
    -----
    R. A. Fisher, Statistical Methods for Research Workers, 4th edition (1932). Among
    combinations of independent p-values it is asymptotically optimal (R. C. Littell and J. L. Folks, JASA 66, 802,
    1971).
    """
    log_p = np.asarray(log_p, dtype=np.float64)
    count = (~np.isnan(log_p)).sum(axis=1)
    total = np.nansum(log_p, axis=1)
    combined = log_gamma_sf(-total, np.maximum(count, 1))
    return np.asarray(np.select([count == 0, count == 1], [np.nan, total], combined))


def log_cauchy_combination(log_p: Any, *, weights: Any = None, ceiling: float = 1e-15) -> NDArray[np.float64]:
    """Combine the p-values of dependent tests of one hypothesis: c = mean tan((1/2 - p) pi), p = P(Cauchy > c).

    Parameters
    ----------
    log_p
        float [g, k] natural logs. NaN tests are left out; NaN results where no test is left.
    weights
        float [k], positive, of the mean; default equal.
    ceiling
        p is taken to be at most 1 - `ceiling`, so that one p of exactly 1 does not outweigh everything else.

    Returns
    -------
    array
        float64 [g], natural logs; no floor, so that strong genes do not tie.

    Notes
    -----
    Y. Liu and J. Xie, Journal of the American Statistical Association 115, 393 (2020).
    """
    log_p = np.asarray(log_p, dtype=np.float64)
    used = ~np.isnan(log_p)
    share = np.where(used, np.ones(log_p.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = share / share.sum(axis=1, keepdims=True)
    small = used & (log_p < _SMALL)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        p = np.minimum(np.exp(np.where(used & ~small, log_p, math.log(0.5))), 1.0 - ceiling)
        moderate = (share / np.tan(np.pi * p)).sum(axis=1)
        exponent = np.where(small, np.log(share) - log_p - math.log(math.pi), -np.inf)
        top = np.max(exponent, axis=1, initial=-np.inf)
        shifted = np.exp(exponent - np.where(np.isfinite(top), top, 0.0)[:, None]).sum(axis=1)
        huge = np.log(shifted) + np.where(np.isfinite(top), top, -np.inf)
        # log(c) where the small p-values rule, c itself elsewhere.
        ratio = moderate * np.exp(-huge)
        log_c = huge + np.log1p(ratio)
        plain = np.exp(np.minimum(huge, 700.0)) + moderate
        result = np.log(np.arctan2(1.0, plain) / np.pi)
        far = np.isfinite(huge) & (log_c > 18.0)
    result = np.where(far, -log_c - math.log(math.pi), result)
    return np.where(used.any(axis=1), result, np.nan)
