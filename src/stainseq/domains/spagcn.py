"""SpaGCN: spatially smoothed components (optionally with histology) sharpened by deep embedded clustering."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import clusters, graphs
from ..core.pca import pca
from ..core.values import in_range
from ..errors import InputError
from . import _dec
from ._inputs import Assignment, Inputs, agree, check, one_thread

_TRIAL_EPOCHS = 20


def assign(
    X: Any,
    *,
    coordinates: np.ndarray,
    n_domains: int,
    image_features: np.ndarray | None = None,
    samples: np.ndarray | None = None,
    seed: int = 0,
    p: float = 0.5,
    alpha: float = 1.0,
    n_components: int = 50,
    n_neighbors: int = 10,
    lr: float = 0.05,
    epochs: int = 200,
    tol: float = 5e-3,
    resolution: float = 0.7,
    step: float = 0.1,
    move_centres: bool = False,
    sample_rows: int = 20_000,
) -> Assignment:
    """Domains by SpaGCN's equations, without a dense matrix and with exactly the number of domains asked for.

    Parameters
    ----------
    X
        [n, g] log-normalised expression, dense or CSR.
    coordinates
        [n, 2] x, y; only ratios of distances matter.
    n_domains
        K.
    image_features
        None: expression and place alone. [n, 3]: mean red, green, blue around each row (`core.colour.patch_colour`),
        joined to one number by variance as SpaGCN does. [n, d]: vectors of an encoder, of which the first principal
        component takes the place of that number.
    samples
        [n] sample of each row. Each sample has its own length scale and no edges to others; components and clusters
        are joint, after each sample's mean has been taken from its components (SpaGCN has no such correction).
    seed
        Of the initial weights.
    p
        Sum of the neighbours' weights relative to a row's own; SpaGCN's default.
    alpha
        Weight of the image axis: its standard deviation relative to the larger one of x and y.
    n_components
        Principal components, SpaGCN's default.
    n_neighbors
        Rows in a neighbourhood, the row itself included, of the graph that the initial clusters are found on.
    lr, epochs, tol
        Of the training; SpaGCN's defaults.
    resolution, step
        Start and first step of the resolution search.
    move_centres
        Train the cluster centres too, as deep embedded clustering means it. The default is SpaGCN 1.2.7's: its
        optimiser is made before the centres are, so that they stay where they started.
    sample_rows
        Beyond this many rows the initial clusters are found, and the layer is trained, on so many drawn at random;
        the trained layer then assigns every row. It has some 2,550 weights, so that 20,000 rows say enough.

    Returns
    -------
    labels, probabilities, embedding, info
        See the plug-in contract. `info`: ``l`` (length scale per sample), ``resolution``, ``epochs``,
        ``found`` (clusters before the count was made exact), ``nnz_per_row``.

    Notes
    -----
    J. Hu et al., Nature Methods 18, 1342 (2021). The kernel is cut at weights of 1e-10; A X is computed once because
    the only layer is linear; initial clusters are Louvain's. Where the search of at most 12 resolutions misses K, or
    training empties a cluster, clusters are merged by Ward's criterion or the widest is split.
    """
    in_range(
        "spagcn", p=(p, 1e-6, 1e6), alpha=(alpha, 0, 1e6), n_components=(n_components, 1, np.inf),
        n_neighbors=(n_neighbors, 2, np.inf), lr=(lr, 1e-9, 10), epochs=(epochs, 1, np.inf), tol=(tol, 0, 1),
        resolution=(resolution, 1e-6, 1e6), step=(step, 1e-6, 1e6), sample_rows=(sample_rows, 100, np.inf),
    )  # fmt: skip
    at = check(X, coordinates, n_domains, image_features=image_features, samples=samples)
    if at.n_domains == 1:
        n = len(at.coordinates)
        return at.finish(np.zeros(n, dtype=np.int64), np.ones((n, 1)), None, {"found": 1})
    with one_thread():
        scores = pca(at.X, n_components, seed=seed).scores
        for rows in graphs.by_sample(at.samples, len(scores)):
            scores[rows] -= scores[rows].mean(axis=0)
        ax, lengths, nnz = smooth(scores, at, p=p, alpha=alpha)
        weights = _dec.initial_weights(ax.shape[1], seed)
        training = {"lr": lr, "tol": tol, "move_centres": move_centres}
        search = _Search(ax, weights, n_neighbors=n_neighbors, training=training, sample_rows=sample_rows, seed=seed)
        chosen = search.resolution(at.n_domains, start=resolution, step=step)
        labels, q, z, made = search.fit(chosen, epochs)
        found = len(np.unique(labels))
        labels, q = _exact(labels, q, z, at.n_domains, seed)
    info = {"l": lengths, "resolution": chosen, "epochs": made, "found": found, "nnz_per_row": nnz / len(ax)}
    return at.finish(labels, q, z, info)


def smooth(scores: np.ndarray, at: Inputs, *, p: float, alpha: float) -> tuple[np.ndarray, list[float], int]:
    """A X with each sample's own length scale.

    Parameters
    ----------
    scores
        float64 [n, d].
    at
        Inputs in canonical order.
    p, alpha
        As in `assign`.

    Returns
    -------
    ax, lengths, nnz
        float64 [n, d]; l of each sample; non-zeros of A.
    """
    ax, lengths, nnz = np.empty_like(scores), [], 0
    for rows in graphs.by_sample(at.samples, len(scores)):
        points = positions(at.coordinates[rows], None if at.image is None else at.image[rows], alpha=alpha)
        near = graphs.neighbourhoods(points)
        length = graphs.search_length(near, p)
        graph = graphs.gaussian(near.tree, length)
        ax[rows] = graph @ scores[rows]
        lengths.append(length)
        nnz += graph.nnz
    return ax, lengths, nnz


def positions(xy: np.ndarray, image: np.ndarray | None, *, alpha: float) -> np.ndarray:
    """x, y and, with an image, the scaled third axis, float64 [n, 2 or 3].

    Parameters
    ----------
    xy
        [n, 2].
    image
        [n, 3] colours, [n, d] features, or None.
    alpha
        Weight of the image axis.
    """
    if image is None:
        return xy
    if image.shape[1] == 3:
        variance = image.var(axis=0)
        one = image @ variance / variance.sum() if variance.sum() > 0 else image[:, 0]
    else:
        one = pca(image, 1).scores[:, 0] if image.shape[1] > 1 and np.ptp(image, axis=0).max() > 0 else image[:, 0]
    spread = one.std()
    if not spread > 1e-12 * max(abs(one).max(), 1e-300):
        raise InputError(
            "the image is the same around every row",
            where="image_features",
            fix="check that the image and the coordinates are of one frame, or leave the image out",
        )
    return np.column_stack([xy, (one - one.mean()) / spread * max(xy[:, 0].std(), xy[:, 1].std()) * alpha])


class _Search:
    """Initial clusters at a resolution, and training from them; everything that no resolution changes is kept."""

    def __init__(
        self,
        ax: np.ndarray,
        weights: tuple[np.ndarray, np.ndarray],
        *,
        n_neighbors: int,
        training: dict[str, Any],
        sample_rows: int,
        seed: int,
    ) -> None:
        self.ax, self.weights, self.training = ax, weights, training
        rows = np.arange(len(ax))
        if len(ax) > sample_rows:
            rows = np.sort(np.random.default_rng([seed, 5]).choice(len(ax), sample_rows, replace=False))
        self.part = ax[rows]
        self.start = self.part @ weights[0] + weights[1]
        self.graph = graphs.fuzzy_graph(*graphs.feature_neighbours(self.start, n_neighbors - 1))

    def fit(self, resolution: float, epochs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Train from the communities at a resolution; labels, q and z of every row, and the epochs made."""
        model, labels, q, made = self._train(resolution, epochs)
        if len(labels) < len(self.ax):
            q = _dec.predict(self.ax, model)
            labels = q.argmax(axis=1)
        return labels, q, _dec.embed(self.ax, model), made

    def _train(self, resolution: float, epochs: int) -> tuple[_dec.Model, np.ndarray, np.ndarray, int]:
        labels = clusters.louvain(self.graph, resolution=resolution)
        model = _dec.Model(*self.weights, clusters.centroids(self.start, labels, int(labels.max()) + 1))
        return _dec.train(self.part, model, labels, epochs=epochs, **self.training)

    def resolution(self, k: int, *, start: float, step: float) -> float:
        """SpaGCN's search: a step towards the target, halved whenever it is passed, at most 12 trials."""
        at, wide = start, step
        count = self._count(at)
        best = (abs(count - k), at)
        for _ in range(11):
            if best[0] == 0:
                break
            sign = 1 if count < k else -1
            trial = at + wide * sign
            if trial <= 0:
                wide /= 2
                continue
            new = self._count(trial)
            best = min(best, (abs(new - k), trial), key=lambda pair: pair[0])
            if (new < k) == (count < k):
                at, count = trial, new
            else:
                wide /= 2
        return float(best[1])

    def _count(self, resolution: float) -> int:
        return len(np.unique(self._train(resolution, _TRIAL_EPOCHS)[1]))


def _exact(labels: np.ndarray, q: np.ndarray, z: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    used, compact = np.unique(labels, return_inverse=True)
    if len(used) == k:
        q = q[:, used]
        return compact, q / q.sum(axis=1, keepdims=True)
    labels = clusters.exactly(compact, z, k, seed=seed)
    q = _dec.assignment(z, clusters.centroids(z, labels, k))[0]
    nearest = q.argmax(axis=1)
    return (nearest, q) if len(np.unique(nearest)) == k else (labels, agree(labels, q))
