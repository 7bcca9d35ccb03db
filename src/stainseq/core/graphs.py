"""Sparse graphs of domain methods: a truncated Gaussian over space, and nearest neighbours over features."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from ..errors import InputError
from .splits import slide_codes

EPS = 1e-10
"""Weights below this are left out of a Gaussian graph: a row's sum errs by at most this times the rows left out."""

_LIST = 64  # neighbours of the first, cheap look at a length scale
_PAIRS = 400_000_000
_LEVELS = 1024


class Neighbourhoods(NamedTuple):
    """Points of one sample, ready for sums of Gaussian weights.

    Parameters
    ----------
    tree
        KD-tree of the points.
    near
        float64 [n, k] squared distances to the k nearest others.
    """

    tree: cKDTree
    near: np.ndarray


def neighbourhoods(points: np.ndarray) -> Neighbourhoods:
    """Index points for `mean_weight` and `search_length`.

    Parameters
    ----------
    points
        [n, 2 or 3] positions (and scaled colour) of one sample.
    """
    tree = cKDTree(points)
    k = min(_LIST + 1, len(points))
    distance = np.asarray(tree.query(points, k=k, workers=-1)[0]).reshape(len(points), k)
    return Neighbourhoods(tree, distance[:, 1:] ** 2)


def cut_radius(length: float, eps: float = EPS) -> float:
    """Distance at which exp(-d^2 / 2 l^2) falls to `eps`.

    Parameters
    ----------
    length
        l.
    eps
        Smallest weight kept.
    """
    return float(length * np.sqrt(2 * np.log(1 / eps)))


def mean_weight(at: Neighbourhoods, length: float, *, enough: float = np.inf, eps: float = EPS) -> float:
    """Mean over rows of the sum of exp(-d^2 / 2 l^2) over the other rows: SpaGCN's p(l).

    Parameters
    ----------
    at
        From `neighbourhoods`.
    length
        l, in the points' unit.
    enough
        Once a lower bound exceeds this the bound is returned: a search need not know how much too large it is, and
        so never looks at all pairs.
    eps
        Weights below are left out; the result is too low by at most eps * n.
    """
    bound = float(np.exp(-at.near / (2 * length**2)).sum(axis=1).mean())
    if bound > enough:
        return bound
    radius = cut_radius(length, eps)
    n = at.tree.n
    if at.near.shape[1] >= n - 1 or (at.near[:, -1] > radius**2).all():
        return bound
    pairs = _pairs(at.tree, radius)
    return float(np.exp(-(pairs.data**2) / (2 * length**2)).sum() / n) - 1.0


def search_length(at: Neighbourhoods, p: float, *, tol: float = 0.01, max_runs: int = 100) -> float:
    """Length scale l at which the neighbours' weights sum to p on average.

    Bisection from [0.01, 1000] as in SpaGCN, so that the same l is found to the last bit; only where that bracket does
    not hold the target is it widened, by factors of two.

    Parameters
    ----------
    at
        From `neighbourhoods`.
    p
        Sum of the neighbours' weights relative to the row's own (1); SpaGCN's share of expression from neighbours.
    tol
        Accepted difference of p(l) from p.
    max_runs
        Bisection steps.

    Raises
    ------
    InputError
        p is not positive, or no l serves, because so many rows lie at one place.
    """
    if not p > tol:
        raise InputError(f"p is {p}", where="length scale", fix=f"give more than {tol}")
    low, high = 0.01, 1000.0
    top = p + tol
    for _ in range(200):
        if (at_low := mean_weight(at, low, enough=top)) <= top:
            break
        low /= 2
    else:
        raise InputError(
            "so many rows lie at one place that no length scale gives their neighbours so small a weight",
            where="coordinates",
            fix="remove duplicates or raise p",
        )
    if p >= at.tree.n - 1 - tol:
        raise InputError(f"p is {p} but there are {at.tree.n} rows", where="length scale", fix="lower p")
    for _ in range(200):
        if (at_high := mean_weight(at, high, enough=top)) >= p - tol:
            break
        high *= 2
    if abs(at_low - p) <= tol:
        return low
    if abs(at_high - p) <= tol:
        return high
    for _ in range(max_runs):
        middle = (low + high) / 2
        found = mean_weight(at, middle, enough=top)
        if abs(found - p) <= tol:
            return middle
        if found <= p:
            low = middle
        else:
            high = middle
    raise InputError(
        f"no length scale gives p = {p} within {tol}; p jumps at {low:.6g}",
        where="length scale",
        fix="use another p, or a larger tol",
    )


def gaussian(tree: cKDTree, length: float, *, eps: float = EPS) -> sparse.csr_array:
    """exp(-d^2 / 2 l^2) of all pairs nearer than the radius at which it falls to `eps`, with ones on the diagonal.

    Parameters
    ----------
    tree
        KD-tree of the points.
    length
        l.
    eps
        Smallest weight kept.

    Returns
    -------
    float64 CSR [n, n], symmetric.
    """
    pairs = _pairs(tree, cut_radius(length, eps))
    weights = np.exp(-(pairs.data**2) / (2 * length**2))
    graph = sparse.coo_array((weights, (pairs.row, pairs.col)), shape=pairs.shape).tocsr()
    graph.sort_indices()
    return graph


def _pairs(tree: cKDTree, radius: float) -> Any:
    """All pairs within a radius, both ways and each point with itself, as COO distances."""
    sample = np.linspace(0, tree.n - 1, min(tree.n, 1000)).astype(np.int64)
    mean = np.asarray(tree.query_ball_point(tree.data[sample], radius, return_length=True)).mean()
    if mean * tree.n > _PAIRS:
        raise InputError(
            f"about {mean:.0f} neighbours per row within {radius:.4g}: too many",
            where="spatial graph",
            fix="lower p (or the length scale)",
        )
    found = tree.sparse_distance_matrix(tree, radius, output_type="ndarray")
    # A point and itself are at distance zero, and so are duplicates: both are kept as entries.
    return _Pairs(found["v"], found["i"], found["j"], (tree.n, tree.n))


class _Pairs(NamedTuple):
    data: np.ndarray
    row: np.ndarray
    col: np.ndarray
    shape: tuple[int, int]


def feature_neighbours(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact k nearest rows in feature space, the row itself not counted.

    Parameters
    ----------
    values
        [n, d]. Cost is n^2 d by blocks: meant for up to some 50,000 rows.
    k
        Neighbours, cut to n - 1.

    Returns
    -------
    index, distance
        int64 and float64 [n, k], nearest first; of equally near rows the lower number first.
    """
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(values) - 1)
    search = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(values)
    distance, index = search.kneighbors(values)
    own = index == np.arange(len(values))[:, None]
    own[~own.any(axis=1), -1] = True  # many equal rows: the row itself may be missing
    keep = ~own
    return index[keep].reshape(len(values), k), distance[keep].reshape(len(values), k)


def fuzzy_graph(index: np.ndarray, distance: np.ndarray) -> sparse.csr_array:
    """Symmetric weights of a neighbour graph as UMAP and scanpy use them.

    Parameters
    ----------
    index, distance
        [n, k] neighbours of each row and how far they are.

    Returns
    -------
    float64 CSR [n, n], weights in (0, 1]: a + b - a b of the two directed weights
    exp(-max(0, d - rho_i) / sigma_i), rho_i the distance to the nearest neighbour that is not at the same place and
    sigma_i such that a row's weights sum to log2(k + 1). Weights are rounded to multiples of 1/1024: community
    detection turns on the last bits of its input, and these differ between machines.

    Notes
    -----
    L. McInnes et al., UMAP, arXiv 1802.03426 (2018), section 3.1. As in scanpy the row itself counts among its k + 1
    neighbours, with weight 0.
    """
    n, k = index.shape
    weights = _memberships(np.ascontiguousarray(distance, dtype=np.float64), np.log2(k + 1.0))
    directed = sparse.coo_array((weights.ravel(), (np.repeat(np.arange(n), k), index.ravel())), shape=(n, n)).tocsr()
    back = directed.T.tocsr()
    graph = (directed + back - directed.multiply(back)).tocsr()
    graph.data = np.rint(graph.data * _LEVELS) / _LEVELS
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


@numba.njit(cache=True)
def _memberships(distance: np.ndarray, target: float) -> np.ndarray:
    n, k = distance.shape
    out = np.empty((n, k))
    overall = distance.mean()
    for i in range(n):
        rho = 0.0
        for j in range(k):
            if distance[i, j] > 0:
                rho = distance[i, j]
                break
        low, high, sigma = 0.0, np.inf, 1.0
        for _ in range(64):
            total = 0.0
            for j in range(k):
                gap = distance[i, j] - rho
                total += np.exp(-gap / sigma) if gap > 0 else 1.0
            if abs(total - target) < 1e-5:
                break
            if total > target:
                high = sigma
                sigma = (low + high) / 2
            else:
                low = sigma
                sigma = sigma * 2 if high == np.inf else (low + high) / 2
        mean = distance[i].mean() if rho > 0 else overall
        sigma = max(sigma, 1e-3 * mean, 1e-300)
        for j in range(k):
            gap = distance[i, j] - rho
            out[i, j] = np.exp(-gap / sigma) if gap > 0 else 1.0
    return out


def by_sample(samples: np.ndarray | None, n: int) -> list[np.ndarray]:
    """Row numbers of each sample, in order of sample code.

    Parameters
    ----------
    samples
        [n] labels or codes; None is one sample.
    n
        Rows.
    """
    codes = slide_codes(samples, n)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
