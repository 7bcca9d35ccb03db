"""What was measured and what was predicted, combined by what each is worth.

Counts of a place are few, predictions from histology are biased, neighbours are alike: the Gamma-Poisson model weighs
them. A gene's rate at place i is Gamma distributed around a prior mean with a shape (its precision, in counts) that is
fitted to the data; the posterior mean (Robbins 1956; Clayton and Kaldor 1987, Biometrics 43) is

    rate_i = (shape + y_i) / (shape / prior_i + exposure_i),

which is the measurement y_i / exposure_i with weight exposure_i / (exposure_i + shape / prior_i), and the prior with
the rest. The prior is the prediction, brought to the gene's own level and slope by a Poisson regression, times how far
the neighbours (never the place itself) came out above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from ..errors import InputError

Smoother = Callable[[np.ndarray], np.ndarray]
"""float [n] to the weighted sum over the neighbours of each place, without the place itself; largest weight 1."""

_STRENGTHS = (np.inf, 200.0, 50.0, 12.0, 3.0, 0.75)
"""Counts' worth of trust in the prediction against the neighbours; infinite: neighbours do not count."""
_SHAPES = np.geomspace(0.05, 500.0, 33)
_SAMPLE = 50_000
_STEPS, _TOLERANCE = 30, 1e-6
_MIN_COUNTS = 20.0
"""A gene with fewer counts in all is left at the prior's level: nothing can be fitted to it."""


@dataclass(frozen=True)
class Enhanced:
    """One gene.

    Parameters
    ----------
    rate
        float64 [n], posterior mean per unit of exposure.
    spread
        float64 [n], posterior standard deviation.
    weight
        float64 [n], 0..1, of the measurement.
    prior
        float64 [n], what it was combined with.
    level, slope
        Of the regression: log prior = level + slope * log predicted.
    shape
        Fitted precision of the prior, in counts.
    smoother
        Which smoother was chosen; -1 none.
    strength
        Counts' worth of trust in the prediction against the neighbours.
    """

    rate: np.ndarray
    spread: np.ndarray
    weight: np.ndarray
    prior: np.ndarray
    level: float
    slope: float
    shape: float
    smoother: int
    strength: float


def enhance(
    counts: np.ndarray,
    predicted: np.ndarray,
    *,
    exposure: np.ndarray,
    smoothers: Sequence[Smoother] = (),
    seed: int = 0,
) -> Enhanced:
    """Combine the counts of one gene with a prediction that has not seen them.

    Parameters
    ----------
    counts
        [n] whole numbers; NaN where the place was not measured (then the prior stands).
    predicted
        [n] positive, expected counts per unit of exposure up to a factor and a power. Must be out of fold: a
        prediction that has seen the counts would count them twice.
    exposure
        [n] positive: library sizes, areas, or ones.
    smoothers
        Candidates for the reach of the neighbourhood. Reach and strength are chosen by the likelihood of each place's
        counts given its neighbours, never its own.
    seed
        Of the sample of places (50,000) that the choice looks at.

    Raises
    ------
    InputError
        Arrays of different lengths, a prediction or exposure that is not positive.
    """
    y, base, exposure = (np.asarray(v, dtype=np.float64) for v in (counts, predicted, exposure))
    if not len(y) == len(base) == len(exposure):
        raise InputError(f"{len(y)} counts, {len(base)} predictions and {len(exposure)} exposures", where="enhance")
    if not (np.isfinite(base).all() and (base > 0).all() and (exposure > 0).all()):
        raise InputError("predictions and exposures must be positive", where="enhance", fix="add a floor")
    known = np.isfinite(y)
    seen = np.where(known, y, 0.0)
    time = np.where(known, exposure, 0.0)
    level, slope = _regress(seen[known], np.log(base[known]), exposure[known])
    prior = np.exp(level + slope * np.log(base))
    if seen.sum() < _MIN_COUNTS:
        return _posterior(seen, time, prior, np.inf, level, slope, -1, np.inf)
    rows = np.flatnonzero(known)
    if len(rows) > _SAMPLE:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _SAMPLE, replace=False))
    best, chosen = _fit_shape(seen[rows], (time * prior)[rows]), (-1, np.inf, prior)
    for s, smooth in enumerate(smoothers):
        around, expected = smooth(seen), smooth(time * prior)
        for strength in _STRENGTHS[1:]:
            candidate = prior * (strength + around) / (strength + expected)
            tried = _fit_shape(seen[rows], (time * candidate)[rows])
            if tried[0] > best[0]:
                best, chosen = tried, (s, strength, candidate)
    return _posterior(seen, time, chosen[2], best[1], level, slope, chosen[0], chosen[1])


def on_grid(rows: np.ndarray, cols: np.ndarray, *, sigma: float) -> Smoother:
    """Gaussian sums over the bins of a grid, without the bin itself.

    Parameters
    ----------
    rows, cols
        int [n], places of the bins.
    sigma
        Standard deviation of the Gaussian, in bins; cut at three of them.
    """
    import cv2

    rows, cols = rows - rows.min(), cols - cols.min()
    shape = (int(rows.max()) + 1, int(cols.max()) + 1)
    reach = max(1, int(np.ceil(3 * sigma)))
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)

    def smooth(values: np.ndarray) -> np.ndarray:
        canvas = np.zeros(shape)
        canvas[rows, cols] = values
        whole = cv2.sepFilter2D(canvas, cv2.CV_64F, line, line, borderType=cv2.BORDER_CONSTANT)
        return np.maximum(whole[rows, cols] - values, 0.0)

    return smooth


def at_points(xy: np.ndarray, *, sigma: float, neighbors: int = 64) -> Smoother:
    """Gaussian sums over the nearest places, without the place itself.

    Parameters
    ----------
    xy
        float [n, 2], um.
    sigma
        Standard deviation, um.
    neighbors
        So many nearest places at most: all within 2.5 standard deviations where these are that many cells apart.
    """
    from scipy import sparse
    from scipy.spatial import cKDTree

    k = min(neighbors + 1, len(xy))
    distance, other = cKDTree(xy).query(xy, k=k, distance_upper_bound=3 * sigma)
    place = np.repeat(np.arange(len(xy)), k)
    distance, other = distance.ravel(), other.ravel()
    kept = np.isfinite(distance) & (other != place)
    weights = np.exp(-0.5 * (distance[kept] / sigma) ** 2)
    matrix = sparse.csr_array((weights, (place[kept], other[kept])), shape=(len(xy), len(xy)))
    return lambda values: matrix @ values


def _regress(y: np.ndarray, x: np.ndarray, time: np.ndarray) -> tuple[float, float]:
    """Level and slope of a Poisson regression of y on x with exposure, by Newton's method; slopes below 0 are none."""
    total, spent = y.sum(), time.sum()
    if total < _MIN_COUNTS or x.std() < 1e-9:
        # Nothing to fit a slope to: one factor brings the prediction to the gene's level.
        expected = float((time * np.exp(x)).sum())
        return float(np.log(max(total, 0.5) / expected)) if expected > 0 else 0.0, 1.0
    middle = float(np.average(x, weights=time))
    z, level, slope = x - middle, float(np.log(total / spent)), 0.0
    for _ in range(_STEPS):
        mu = time * np.exp(np.clip(level + slope * z, -50, 50))
        gradient = np.array([(y - mu).sum(), ((y - mu) * z).sum()])
        a, b, c = mu.sum(), (mu * z).sum(), (mu * z * z).sum()
        step = np.linalg.solve(np.array([[a, b], [b, c]]) + 1e-9 * np.eye(2), gradient)
        step *= min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))
        level, slope = level + step[0], slope + step[1]
        if np.abs(step).max() < _TOLERANCE:
            break
    if slope <= 0:
        return float(np.log(total / spent)), 0.0
    return level - slope * middle, float(slope)


def _fit_shape(y: np.ndarray, mu: np.ndarray) -> tuple[float, float]:
    """Largest negative binomial log likelihood over the shape, and that shape (33 values, then a parabola)."""
    values = np.array([_likelihood(y, mu, s) for s in _SHAPES])
    i = int(values.argmax())
    shape = float(_SHAPES[i])
    if 0 < i < len(_SHAPES) - 1:
        a, b, c = values[i - 1 : i + 2]
        shift = 0.5 * (a - c) / (a - 2 * b + c) if a - 2 * b + c < 0 else 0.0
        shape = float(np.exp(np.log(_SHAPES[i]) + shift * np.log(_SHAPES[1] / _SHAPES[0])))
    return float(values[i]), shape


def _likelihood(y: np.ndarray, mu: np.ndarray, shape: float) -> float:
    """Of counts with mean mu and variance mu + mu^2 / shape, up to what does not depend on either."""
    mu = np.maximum(mu, 1e-12)
    positive = y > 0  # most places have no count of a gene: their term is short
    few = y[positive]
    head = (gammaln(few + shape) - gammaln(shape) + few * np.log(mu[positive] / (mu[positive] + shape))).sum()
    return float(head - shape * np.log1p(mu / shape).sum())


def _posterior(
    y: np.ndarray,
    time: np.ndarray,
    prior: np.ndarray,
    shape: float,
    level: float,
    slope: float,
    smoother: int,
    strength: float,
) -> Enhanced:
    if np.isinf(shape):
        zero = np.zeros_like(prior)
        return Enhanced(prior, zero, zero, prior, level, slope, shape, smoother, strength)
    inverse = shape / prior
    rate = (shape + y) / (inverse + time)
    spread = np.sqrt(shape + y) / (inverse + time)
    return Enhanced(rate, spread, time / (time + inverse), prior, level, slope, shape, smoother, strength)
