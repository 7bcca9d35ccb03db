"""Differential expression between groups of rows: exact rank sums on sparse tables, and markers of domains."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from scipy import sparse, special
from scipy.spatial import cKDTree

from ..errors import InputError

_EXACT_ROWS = 10_000
_BINS = 1 << 16


class Comparison(NamedTuple):
    """One group of rows against another, per gene.

    Parameters
    ----------
    z
        float64 [g], standardised rank sum, positive where the group is higher. NaN for genes that do not vary.
    log_p
        float64 [g], natural log of the two-sided p-value; NaN likewise.
    log_q
        float64 [g], natural log of the Benjamini-Hochberg value over the genes tested.
    fraction_in, fraction_out
        float64 [g], share of rows of the group, and of the others, with a value other than 0.
    mean_in, mean_out
        float64 [g].
    """

    z: np.ndarray
    log_p: np.ndarray
    log_q: np.ndarray
    fraction_in: np.ndarray
    fraction_out: np.ndarray
    mean_in: np.ndarray
    mean_out: np.ndarray

    @property
    def fold_change(self) -> np.ndarray:
        """exp of the difference of means: meant for log-normalised values, as SpaGCN's."""
        return np.exp(self.mean_in - self.mean_out)

    @property
    def ratio(self) -> np.ndarray:
        """fraction_in / fraction_out; infinite where no other row has the gene."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.fraction_in == self.fraction_out, 1.0, self.fraction_in / self.fraction_out)


def compare(X: Any, group: np.ndarray, *, tie_correct: bool = True) -> Comparison:
    """Wilcoxon rank sums, fractions and means of a group of rows against all others.

    Parameters
    ----------
    X
        [n, g] values, dense or sparse (CSC is read without a copy). Zeros are one block of ties and are never listed.
    group
        bool [n].
    tie_correct
        Variance of the rank sum with ties, as it should be; False gives scanpy's default and so SpaGCN's p-values,
        which are too large for genes with many zeros.

    Raises
    ------
    InputError
        A group without rows, or values that are not finite.

    Notes
    -----
    F. Wilcoxon, Biometrics Bulletin 1, 80 (1945); normal approximation without continuity correction.
    """
    X = sparse.csc_array(X)
    group = np.asarray(group, dtype=bool)
    n = X.shape[0]
    if group.shape != (n,):
        raise InputError(f"group of shape {group.shape} for {n} rows", where="comparison", fix="give one per row")
    n_in = int(group.sum())
    if not 0 < n_in < n:
        raise InputError(f"{n_in} of {n} rows are in the group", where="comparison", fix="give two groups with rows")
    if not np.isfinite(X.data).all():
        raise InputError("expression holds NaN or infinite values", where="comparison", fix="remove those rows")
    ranks, ties, count, total = _rank_sums(
        X.data.astype(np.float64), X.indices.astype(np.int64), X.indptr.astype(np.int64), group, n
    )
    n_out = n - n_in
    variance = n_in * n_out / 12 * ((n + 1) - (ties / (n * (n - 1)) if tie_correct and n > 1 else 0.0))
    tested = ties < float(n) ** 3 - n  # one value throughout: nothing to compare
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(tested, (ranks - n_in * (n + 1) / 2) / np.sqrt(variance), np.nan)
    log_p = np.minimum(special.log_ndtr(-np.abs(z)) + np.log(2), 0.0)
    return Comparison(
        z, log_p, log_benjamini_hochberg(log_p), count[0] / n_in, count[1] / n_out, total[0] / n_in, total[1] / n_out
    )


@numba.njit(cache=True)
def _rank_sums(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, group: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    """Rank sum of the group, sum of t^3 - t over blocks of ties, non-zeros and sums inside and outside, per column."""
    g = len(indptr) - 1
    ranks, ties = np.zeros(g), np.zeros(g)
    count, total = np.zeros((2, g)), np.zeros((2, g))
    n_group = group.sum()
    for j in range(g):
        start, end = indptr[j], indptr[j + 1]
        values = data[start:end]
        order = np.argsort(values)
        m = 0  # stored values that are not zero
        for k in range(start, end):
            if data[k] != 0.0:
                m += 1
                side = 0 if group[indices[k]] else 1
                count[side, j] += 1
                total[side, j] += data[k]
        zeros = n - m
        done, seen = 0, False  # rows ranked so far; whether the block of zeros is among them
        k = 0
        while k < len(values) or not seen:
            if not seen and (k >= len(values) or values[order[k]] >= 0.0):
                seen = True
                if zeros > 0:
                    inside = n_group - count[0, j]
                    ranks[j] += inside * (done + (zeros + 1) / 2.0)
                    ties[j] += float(zeros) ** 3 - zeros
                    done += zeros
                continue
            value = values[order[k]]
            if value == 0.0:
                k += 1
                continue
            same, inside = 0, 0.0
            while k < len(values) and values[order[k]] == value:
                if group[indices[start + order[k]]]:
                    inside += 1
                same += 1
                k += 1
            ranks[j] += inside * (done + (same + 1) / 2.0)
            ties[j] += float(same) ** 3 - same
            done += same
    return ranks, ties, count, total


def log_benjamini_hochberg(log_p: np.ndarray) -> np.ndarray:
    """Natural logs of Benjamini-Hochberg values, so that strong genes do not tie at 0.

    Parameters
    ----------
    log_p
        float64 [g]; NaN where no test was made, which counts for nothing and stays NaN.
    """
    out = np.full(log_p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(log_p))
    order = tested[np.argsort(log_p[tested], kind="stable")]
    steps = log_p[order] + np.log(max(len(order), 1)) - np.log(np.arange(1, len(order) + 1))
    out[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 0.0)
    return out


class Surroundings(NamedTuple):
    """The domains around one domain.

    Parameters
    ----------
    radius
        In the coordinates' unit.
    mean_count
        Mean number of rows within it of the domain's rows, each itself counted.
    domains
        int, neighbouring domains, most contacts first.
    """

    radius: float
    mean_count: float
    domains: np.ndarray


def surroundings(
    coordinates: np.ndarray,
    labels: np.ndarray,
    domain: int,
    *,
    between: tuple[float, float],
    ratio: float = 0.5,
    n_neighbors: int = 3,
    num_min: float = 10,
    num_max: float = 14,
    max_run: int = 100,
) -> Surroundings:
    """SpaGCN's radius and neighbouring domains of one domain.

    The radius is bisected until the domain's rows have 10 to 14 rows within it on average; a domain is a neighbour if
    its rows are met, summed over the rows of the domain in question, more often than `ratio` times its size.

    Parameters
    ----------
    coordinates
        [n, 2].
    labels
        int [n].
    domain
        Label in question.
    between
        Smallest and largest radius; SpaGCN's are the .001 and .1 quantiles of all distances (`distance_quantiles`).
    ratio
        Contacts per row that make a neighbour.
    n_neighbors
        Domains kept at most.
    num_min, num_max
        Accepted mean number of rows.
    max_run
        Steps of the bisection.

    Raises
    ------
    InputError
        No radius serves, or no domain is a neighbour.
    """
    inside = labels == domain
    if not inside.any():
        raise InputError(f"domain {domain} has no rows", where="surroundings", fix="name a domain that has")
    tree, at = cKDTree(coordinates), coordinates[inside]

    def count(radius: float) -> float:
        return float(np.asarray(tree.query_ball_point(at, radius, return_length=True, workers=-1)).mean())

    radius, mean = _bisect_radius(count, between, num_min, num_max, max_run)
    near = np.concatenate([np.asarray(x, dtype=np.int64) for x in tree.query_ball_point(at, radius, workers=-1)])
    names, size = np.unique(labels, return_counts=True)
    met = np.bincount(np.searchsorted(names, labels[near]), minlength=len(names))
    kept = np.flatnonzero((met > ratio * size) & (names != domain))
    if len(kept) == 0:
        raise InputError(
            f"no other domain is met more than {ratio} times its size within {radius:.4g}",
            where="surroundings",
            fix="lower ratio, or raise num_min and num_max",
        )
    order = kept[np.argsort(-met[kept], kind="stable")][:n_neighbors]
    return Surroundings(radius, mean, names[order])


def _bisect_radius(
    count: Any, between: tuple[float, float], num_min: float, num_max: float, max_run: int
) -> tuple[float, float]:
    low, high = between
    at_low, at_high = count(low), count(high)
    for radius, found in ((low, at_low), (high, at_high)):
        if num_min <= found <= num_max:
            return float(radius), found
    if at_low <= num_max and at_high >= num_min:
        for _ in range(max_run):
            middle = (low + high) / 2
            found = count(middle)
            if num_min <= found <= num_max:
                return middle, found
            low, high = (middle, high) if found < num_min else (low, middle)
    raise InputError(
        f"no radius from {between[0]:.4g} to {between[1]:.4g} has {num_min} to {num_max} rows around a row on average "
        f"(found {at_low:.4g} and {at_high:.4g} at the ends)",
        where="surroundings",
        fix="widen num_min and num_max, or radius_quantiles",
    )


def distance_quantiles(coordinates: np.ndarray, quantiles: tuple[float, ...], *, seed: int = 0) -> list[float]:
    """Quantiles of the distances between all pairs at different places, in O(n) memory.

    Parameters
    ----------
    coordinates
        [n, 2]. Exact up to 10,000 rows; of more, the quantiles of a random 10,000 are taken.
    quantiles
        In [0, 1], with linear interpolation.
    seed
        Of that sample.

    Raises
    ------
    InputError
        All rows are at one place.
    """
    xy = np.ascontiguousarray(coordinates, dtype=np.float64)
    if len(xy) > _EXACT_ROWS:
        order = np.lexsort((xy[:, 0], xy[:, 1]))
        xy = xy[order[np.sort(np.random.default_rng([seed, 9]).choice(len(xy), _EXACT_ROWS, replace=False))]]
    top = float(np.hypot(*np.ptp(xy, axis=0)))
    if not top > 0:
        raise InputError("all rows are at one place", where="coordinates", fix="give spatial coordinates")
    count = _histogram(xy, top)
    total = int(count.sum())
    edges = np.cumsum(count)
    out = []
    for quantile in quantiles:
        place = quantile * (total - 1)
        first = int(np.searchsorted(edges, np.floor(place), side="right"))
        last = int(np.searchsorted(edges, np.ceil(place), side="right"))
        held = np.sort(_within(xy, top, first, last, int(edges[last] - (edges[first - 1] if first else 0))))
        place -= edges[first - 1] if first else 0
        low, high = held[int(np.floor(place))], held[int(np.ceil(place))]
        out.append(float(low + (high - low) * (place - np.floor(place))))
    return out


@numba.njit(cache=True)
def _bin(x: np.ndarray, i: int, j: int, top: float) -> tuple[float, int]:  # pragma: no cover - compiled
    d = np.sqrt((x[i, 0] - x[j, 0]) ** 2 + (x[i, 1] - x[j, 1]) ** 2)
    return d, min(int(d / top * _BINS), _BINS - 1)


@numba.njit(cache=True)
def _histogram(x: np.ndarray, top: float) -> np.ndarray:  # pragma: no cover - compiled
    count = np.zeros(_BINS, dtype=np.int64)
    for i in range(len(x)):
        for j in range(i):
            d, at = _bin(x, i, j, top)
            if d > 0:
                count[at] += 1
    return count


@numba.njit(cache=True)
def _within(x: np.ndarray, top: float, first: int, last: int, n: int) -> np.ndarray:  # pragma: no cover - compiled
    out, k = np.empty(n), 0
    for i in range(len(x)):
        for j in range(i):
            d, at = _bin(x, i, j, top)
            if d > 0 and first <= at <= last:
                out[k] = d
                k += 1
    return out
