"""Clusterings with exactly the number of clusters asked for, and how stable they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from ..errors import InputError

_BLOCK_ROWS = 16384


def centroids(values: np.ndarray, labels: np.ndarray, n_labels: int) -> np.ndarray:
    """Mean of the rows of each label, float64 [n_labels, d]; NaN for a label without rows.

    Parameters
    ----------
    values
        [n, d].
    labels
        int [n], 0 .. n_labels - 1.
    n_labels
        How many there are.
    """
    n = len(labels)
    member = sparse.csr_array((np.ones(n), (labels, np.arange(n))), shape=(n_labels, n))
    count = np.bincount(labels, minlength=n_labels).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (member @ np.asarray(values, dtype=np.float64)) / count[:, None]


def exactly(labels: np.ndarray, values: np.ndarray, k: int, *, seed: int = 0) -> np.ndarray:
    """Turn any labelling into one of exactly k labels, by the smallest change in sum of squares.

    Too many: the two labels whose merger adds least to the within-label sum of squares (Ward's criterion on centroids
    and sizes) are joined, again and again. Too few: the label with the largest within-label sum of squares is split in
    two by 2-means; rows that are all alike are cut in their order.

    Parameters
    ----------
    labels
        int [n], any values.
    values
        [n, d], the space in which distances are meant.
    k
        Labels wanted, at most n.
    seed
        Of the 2-means.

    Returns
    -------
    array
        int64 [n] with every value of 0 .. k - 1.
    """
    names, labels = np.unique(labels, return_inverse=True)
    if not 1 <= k <= len(labels):
        raise InputError(f"{k} clusters of {len(labels)} rows", where="clusters", fix="ask for 1 to as many as rows")
    labels = labels.astype(np.int64)
    if len(names) > k:
        return _merge(labels, values, len(names), k)
    for found in range(len(names), k):
        labels = _split(labels, values, found, seed)
    return labels


def _merge(labels: np.ndarray, values: np.ndarray, found: int, k: int) -> np.ndarray:
    means = centroids(values, labels, found)
    size = np.bincount(labels, minlength=found).astype(np.float64)
    into = np.arange(found)
    alive = np.ones(found, dtype=bool)
    while alive.sum() > k:
        at = np.flatnonzero(alive)
        gap = ((means[at, None] - means[None, at]) ** 2).sum(axis=2)
        cost = gap * (size[at, None] * size[None, at]) / (size[at, None] + size[None, at])
        cost[np.tril_indices(len(at))] = np.inf
        a, b = (at[i] for i in np.unravel_index(cost.argmin(), cost.shape))
        means[a] = (size[a] * means[a] + size[b] * means[b]) / (size[a] + size[b])
        size[a] += size[b]
        alive[b] = False
        into[into == b] = a
    return np.unique(into[labels], return_inverse=True)[1].astype(np.int64)


def _split(labels: np.ndarray, values: np.ndarray, found: int, seed: int) -> np.ndarray:
    means = centroids(values, labels, found)
    spread = np.zeros(len(labels))
    for start in range(0, len(labels), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        spread[block] = ((np.asarray(values[block], dtype=np.float64) - means[labels[block]]) ** 2).sum(axis=1)
    count = np.bincount(labels, minlength=found)
    total = np.where(count > 1, np.bincount(labels, weights=spread, minlength=found), -1.0)
    rows = np.flatnonzero(labels == total.argmax())
    part = np.zeros(len(rows), dtype=np.int64)
    if total.max() > 0 and len(np.unique(values[rows], axis=0)) > 1:
        part = kmeans(values[rows], 2, seed=seed)
    if part.min() == part.max():
        part = (np.arange(len(rows)) >= (len(rows) + 1) // 2).astype(np.int64)
    out = labels.copy()
    out[rows[part == 1]] = found
    return out


def kmeans(values: np.ndarray, k: int, *, seed: int = 0, n_init: int = 10) -> np.ndarray:
    """k-means labels, int64 [n].

    Run it under one BLAS and OpenMP thread (``one_thread``) for the same bits on every machine load: Lloyd's sums are
    otherwise taken in the order in which threads finish.

    Parameters
    ----------
    values
        [n, d].
    k
        Clusters.
    seed
        Of the k-means++ starts.
    n_init
        Starts; the one of least inertia wins.
    """
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than k: the caller repairs it
        model = KMeans(k, n_init=n_init, random_state=np.random.RandomState(seed)).fit(values)
    return model.labels_.astype(np.int64)


def louvain(graph: Any, *, resolution: float) -> np.ndarray:
    """Louvain communities of an undirected weighted graph by modularity, int64 [n], largest first.

    Nodes are visited in their order, so that the result is fixed by the graph; there is no seed.

    Parameters
    ----------
    graph
        [n, n] sparse, symmetric, non-negative weights.
    resolution
        More gives more communities.

    Notes
    -----
    V. Blondel et al., J. Stat. Mech. P10008 (2008), as in scikit-network (BSD). Not its Leiden, whose refinement draws
    from C's unseeded ``rand`` (seen in 0.33.5): the same graph gave two answers in one process.
    """
    from sknetwork.clustering import Louvain

    graph = sparse.csr_matrix(graph)
    if graph.nnz == 0:
        return np.arange(graph.shape[0], dtype=np.int64)
    model = Louvain(
        tol_optimization=1e-5, tol_aggregation=1e-5, resolution=resolution, return_probs=False, return_aggregate=False
    )
    return np.asarray(model.fit_predict(graph), dtype=np.int64)


def bisect_resolution(
    cluster: Callable[[float], np.ndarray], k: int, *, low: float = 0.02, high: float = 4.0, max_runs: int = 20
) -> tuple[np.ndarray, float, int]:
    """Search the resolution whose clustering has k clusters.

    Parameters
    ----------
    cluster
        Gives labels [n] for a resolution; more clusters at higher ones, though not strictly.
    k
        Clusters wanted.
    low, high
        First bracket; ``high`` is doubled while it gives too few.
    max_runs
        Calls of `cluster` at most.

    Returns
    -------
    labels, resolution, runs
        The clustering whose number of clusters is nearest to k (of equals the one with more, because merging loses
        less than splitting invents), its resolution, and the calls made.
    """
    best: tuple[tuple[int, int], np.ndarray, float] | None = None
    runs = 0

    def tried(resolution: float) -> int:
        nonlocal best, runs
        labels = cluster(resolution)
        runs += 1
        found = len(np.unique(labels))
        key = (abs(found - k), -found)
        if best is None or key < best[0]:
            best = (key, labels, resolution)
        return found

    while runs < max_runs and tried(high) < k:
        low, high = high, 2 * high
    while runs < max_runs and best is not None and best[0][0] > 0 and high - low > 1e-4 * high:
        middle = float(np.sqrt(low * high))
        if tried(middle) < k:
            low = middle
        else:
            high = middle
    if best is None:
        raise InputError("no clustering was tried", where="resolution search", fix="allow at least one run")
    return best[1], best[2], runs


def adjusted_rand(a: np.ndarray, b: np.ndarray) -> float:
    """Adjusted Rand index of two labellings of the same rows: 1 the same partition, about 0 by chance.

    Parameters
    ----------
    a, b
        [n] labels of any kind.

    Notes
    -----
    L. Hubert and P. Arabie, Journal of Classification 2, 193 (1985).
    """
    _, a = np.unique(a, return_inverse=True)
    _, b = np.unique(b, return_inverse=True)
    n = len(a)
    table = np.bincount(a.astype(np.int64) * (b.max(initial=0) + 1) + b).astype(np.float64)
    pairs = (table * (table - 1)).sum() / 2
    of_a, of_b = (float((c * (c - 1.0)).sum() / 2) for c in (np.bincount(a), np.bincount(b)))
    total = n * (n - 1) / 2
    expected = of_a * of_b / total if total else 0.0
    top = (of_a + of_b) / 2
    return 1.0 if top == expected else float((pairs - expected) / (top - expected))


def stability(labelings: Sequence[np.ndarray]) -> float:
    """Mean adjusted Rand index over all pairs of labellings of the same rows, one per random seed.

    Parameters
    ----------
    labelings
        Two or more [n] labellings.

    Returns
    -------
    float
        1 when every seed gives the same domains.
    """
    if len(labelings) < 2:
        raise InputError(f"stability of {len(labelings)} labelling(s)", where="stability", fix="give two or more seeds")
    scores = [adjusted_rand(a, b) for i, a in enumerate(labelings) for b in labelings[:i]]
    return float(np.mean(scores))


def mixing(values: np.ndarray, samples: np.ndarray, *, n_neighbors: int = 90, seed: int = 0) -> float:
    """How well samples mix in an embedding: 0 each for itself, 1 like one sample (integration LISI, rescaled).

    The inverse Simpson index of the samples among a row's nearest rows, less 1, over what it would be if each
    neighbourhood held the samples in their overall shares, less 1; mean over rows.

    Parameters
    ----------
    values
        [n, d] embedding.
    samples
        [n] sample of each row.
    n_neighbors
        Rows looked at, the row itself among them; cut to a third of the rows.
    seed
        Of the 20,000 rows that are taken where there are more.

    Notes
    -----
    I. Korsunsky et al., Nature Methods 16, 1289 (2019), without the perplexity weights.
    """
    from scipy.spatial import cKDTree

    values, codes = np.asarray(values, dtype=np.float64), np.unique(samples, return_inverse=True)[1]
    if len(values) > 20_000:
        rows = np.sort(np.random.default_rng([seed, 7]).choice(len(values), 20_000, replace=False))
        values, codes = values[rows], codes[rows]
    n_samples = int(codes.max()) + 1
    if n_samples < 2:
        raise InputError("mixing of one sample", where="mixing", fix="give two or more")
    k = max(2, min(n_neighbors, len(values) // 3))
    near = codes[cKDTree(values).query(values, k=k, workers=-1)[1]]
    share = np.stack([(near == s).mean(axis=1) for s in range(n_samples)])
    whole = np.bincount(codes) / len(codes)
    return float(((1 / (share**2).sum(axis=0)).mean() - 1) / (1 / (whole**2).sum() - 1))
