"""Differential expression between groups of rows: exact rank sums on sparse tables, and markers of domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
        As in `compare_all`.

    Raises
    ------
    InputError
        A group without rows, or values that are not finite.
    """
    return compare_all(X, np.asarray(group, dtype=np.int64), {1: [0]}, tie_correct=tie_correct)[0]


def compare_all(
    X: Any, labels: np.ndarray, against: Mapping[int, Sequence[int]], *, tie_correct: bool = True
) -> list[Comparison]:
    """Rank sums of several labels, each against others of its own, with every gene sorted once.

    Parameters
    ----------
    X
        [n, g] values, dense or sparse (CSC is read without a copy). Zeros are one block of ties and are never listed.
    labels
        int [n]; rows below 0 take part in nothing.
    against
        Label to the labels that it is compared with.
    tie_correct
        Variance of the rank sum with ties, as it should be; False gives scanpy's default and so SpaGCN's p-values,
        which are too large for genes with many zeros.

    Returns
    -------
    list
        One comparison per entry of `against`, in its order. Sums run in the order of the values, so that the bits do
        not depend on the order of rows or on threads.

    Raises
    ------
    InputError
        A side without rows, or values that are not finite.

    Notes
    -----
    F. Wilcoxon, Biometrics Bulletin 1, 80 (1945); normal approximation without continuity correction.
    """
    if not against:
        return []
    X, labels = sparse.csc_array(X), np.asarray(labels)
    n = X.shape[0]
    if labels.shape != (n,):
        raise InputError(f"labels of shape {labels.shape} for {n} rows", where="comparison", fix="give one per row")
    k = 1 + max([int(labels.max(initial=0)), *against, *(b for others in against.values() for b in others)])
    size = np.bincount(labels[labels >= 0], minlength=k)
    role = np.zeros((len(against), k, 2), dtype=np.int64)  # of a label in a comparison: inside, outside
    for c, (label, others) in enumerate(against.items()):
        role[c, label, 0] = 1
        role[c, list(others), 1] = 1
    n_in, n_out = role[:, :, 0] @ size, role[:, :, 1] @ size
    for a, b in zip(n_in, n_out, strict=True):
        if min(a, b) == 0:
            raise InputError(
                f"{a} of {a + b} rows are in the group", where="comparison", fix="give two groups with rows"
            )
    if not np.isfinite(X.data).all():
        raise InputError("expression holds NaN or infinite values", where="comparison", fix="remove those rows")
    blocks = _by_blocks(X, labels.astype(np.int32), role, size)
    ranks, ties, count, total = (np.concatenate(piece) for piece in zip(*blocks, strict=True))
    means = [(count @ role[:, :, s].T, total @ role[:, :, s].T) for s in (0, 1)]
    out = []
    for c in range(len(against)):
        a, b = int(n_in[c]), int(n_out[c])
        m = a + b
        variance = a * b / 12 * ((m + 1) - (ties[:, c] / (m * (m - 1)) if tie_correct else 0.0))
        tested = ties[:, c] < float(m) ** 3 - m  # one value throughout: nothing to compare
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(tested, (ranks[:, c] - a * (m + 1) / 2) / np.sqrt(variance), np.nan)
        log_p = np.minimum(special.log_ndtr(-np.abs(z)) + np.log(2), 0.0)
        fractions, sums = ([means[s][i][:, c] / (a, b)[s] for s in (0, 1)] for i in (0, 1))
        out.append(Comparison(z, log_p, log_benjamini_hochberg(log_p), *fractions, *sums))
    return out


def _by_blocks(X: Any, labels: np.ndarray, role: np.ndarray, size: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """`_rank_sums` over blocks of genes on all cores; a gene's numbers do not depend on the block it is in."""
    data = X.data if X.data.dtype in (np.float32, np.float64) else X.data.astype(np.float64)
    indptr, workers = X.indptr.astype(np.int64), numba.get_num_threads()
    edges = np.linspace(0, X.shape[1], min(X.shape[1], 8 * workers) + 1).astype(np.int64)
    label, part, side = np.nonzero(role.transpose(1, 0, 2))
    first = np.searchsorted(label, np.arange(role.shape[1] + 1))

    def work(i: int) -> tuple[np.ndarray, ...]:
        genes = indptr[edges[i] : edges[i + 1] + 1]
        return _rank_sums(data, X.indices, genes, labels, size, len(role), first, part, side)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, range(len(edges) - 1)))


@numba.njit(cache=True, nogil=True)
def _rank_sums(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    labels: np.ndarray,
    size: np.ndarray,
    n_compared: int,
    first: np.ndarray,
    part: np.ndarray,
    side: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    """Per gene: rank sum inside and sum of t^3 - t over blocks of ties of each comparison; non-zeros, sum per label.

    Label l takes part in comparisons part[first[l]:first[l + 1]], on the inside where side is 0.
    """
    g, n_labels = len(indptr) - 1, len(first) - 1
    ranks, ties = np.zeros((g, n_compared)), np.zeros((g, n_compared))
    count, total = np.zeros((g, n_labels)), np.zeros((g, n_labels))
    inside, same, done = np.zeros(n_compared), np.zeros(n_compared), np.zeros(n_compared)
    for j in range(g):
        start, end = indptr[j], indptr[j + 1]
        held, owner = np.empty(end - start, data.dtype), np.empty(end - start, np.int64)
        m = 0  # stored values that are not zero, of rows that take part
        for i in range(start, end):
            label = labels[indices[i]]
            if data[i] != 0 and label >= 0:
                held[m], owner[m] = data[i], label
                count[j, label] += 1
                m += 1
        order = np.argsort(held[:m])
        done[:] = 0  # rows ranked so far
        seen, k = False, 0  # whether the block of zeros is among them
        while k < m or not seen:
            if not seen and (k >= m or held[order[k]] > 0):
                seen = True
                for label in range(n_labels):
                    _add(label, size[label] - count[j, label], inside, same, first, part, side)
            else:
                value = held[order[k]]
                while k < m and held[order[k]] == value:
                    label = owner[order[k]]
                    total[j, label] += value
                    _add(label, 1.0, inside, same, first, part, side)
                    k += 1
            for c in range(n_compared):
                if same[c] > 0:
                    ranks[j, c] += inside[c] * (done[c] + (same[c] + 1) / 2)
                    ties[j, c] += same[c] ** 3 - same[c]
                    done[c] += same[c]
                    inside[c] = same[c] = 0
    return ranks, ties, count, total


@numba.njit(cache=True, nogil=True)
def _add(
    label: int, n: float, inside: np.ndarray, same: np.ndarray, first: np.ndarray, part: np.ndarray, side: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Count n rows of a label into the block of ties of every comparison that it takes part in."""
    for e in range(first[label], first[label + 1]):
        same[part[e]] += n
        if side[e] == 0:
            inside[part[e]] += n


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
    tree: cKDTree | None = None,
) -> Surroundings:
    """SpaGCN's radius and neighbouring domains of one domain.

    The radius is bisected until the domain's rows have 10 to 14 rows within it on average; a domain is a neighbour if
    its rows are met, summed over the rows of the domain in question, more often than `ratio` times its size.

    Parameters
    ----------
    coordinates
        [n, 2].
    labels
        int [n], 0 and up.
    domain
        Label in question.
    between
        Where the search starts; SpaGCN's are the .001 and .1 quantiles of all distances (`distance_quantiles`). Where
        these do not enclose the radius, they are widened: beyond 14,000 rows the .001 quantile already holds too many.
    ratio
        Contacts per row that make a neighbour.
    n_neighbors
        Domains kept at most.
    num_min, num_max
        Accepted mean number of rows.
    max_run
        Steps of the bisection.
    tree
        Of the coordinates, where it is at hand.

    Raises
    ------
    InputError
        No radius serves, or no domain is a neighbour.
    """
    inside = labels == domain
    if not inside.any():
        raise InputError(f"domain {domain} has no rows", where="surroundings", fix="name a domain that has")
    within = _Within(cKDTree(coordinates) if tree is None else tree, coordinates[inside], num_max)
    extent = float(np.hypot(*(within.tree.maxes - within.tree.mins)))
    radius, mean = _bisect_radius(within.mean, between, num_min, num_max, max_run, extent=extent)
    size = np.bincount(labels)
    met = np.bincount(labels[within.rows(radius)], minlength=len(size))
    kept = np.flatnonzero((met > ratio * size) & (np.arange(len(size)) != domain))
    if len(kept) == 0:
        raise InputError(
            f"no other domain is met more than {ratio} times its size within {radius:.4g}",
            where="surroundings",
            fix="lower ratio, raise num_min and num_max, or compare with all other rows (against rest)",
        )
    order = kept[np.argsort(-met[kept], kind="stable")][:n_neighbors]
    return Surroundings(radius, mean, order)


class _Within:
    """How many rows lie around the rows of a domain, from the nearest few of each.

    A ball query at the radius that the search starts from would meet a tenth of all rows around each.
    """

    def __init__(self, tree: cKDTree, at: np.ndarray, num_max: float) -> None:
        self.tree, self.at = tree, at
        k = min(tree.n, int(2 * num_max) + 4)
        self.distance, self.nearest = (x.reshape(len(at), k) for x in tree.query(at, k=k, workers=-1))
        self.sorted = np.sort(self.distance, axis=None)
        self.enough = num_max
        self.last = self.distance[:, -1] if k < tree.n else np.full(len(at), np.inf)

    def mean(self, radius: float) -> float:
        """Mean number of rows within the radius; exact unless it is beyond `num_max`."""
        mean = np.searchsorted(self.sorted, radius, side="right") / len(self.at)
        full = self.last <= radius
        if mean > self.enough or not full.any():
            return float(mean)
        more = self.tree.query_ball_point(self.at[full], radius, return_length=True, workers=-1)
        return float(mean + (more - self.distance.shape[1]).sum() / len(self.at))

    def rows(self, radius: float) -> np.ndarray:
        """The rows within the radius, once for every row of the domain that meets them."""
        full = self.last <= radius
        few = self.nearest[~full][self.distance[~full] <= radius]
        many = self.tree.query_ball_point(self.at[full], radius, workers=-1)
        return np.concatenate([few, *(np.asarray(x, dtype=np.int64) for x in many)])


def _bisect_radius(
    count: Callable[[float], float],
    between: tuple[float, float],
    num_min: float,
    num_max: float,
    max_run: int,
    *,
    extent: float,
) -> tuple[float, float]:
    low, high = between
    at_low, at_high = count(low), count(high)
    if at_low > num_max:
        low, at_low = 0.0, count(0.0)
    while at_high < num_min and high < extent:
        high *= 2
        at_high = count(high)
    for radius, found in ((low, at_low), (high, at_high)):
        if num_min <= found <= num_max:
            return float(radius), found
    ends = low, high
    if at_low <= num_max and at_high >= num_min:
        for _ in range(max_run):
            middle = (low + high) / 2
            found = count(middle)
            if num_min <= found <= num_max:
                return middle, found
            low, high = (middle, high) if found < num_min else (low, middle)
    raise InputError(
        f"no radius has {num_min} to {num_max} rows around a row on average "
        f"(found {at_low:.4g} within {ends[0]:.4g} and {at_high:.4g} or more within {ends[1]:.4g})",
        where="surroundings",
        fix="widen num_min and num_max",
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
