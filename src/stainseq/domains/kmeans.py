"""Clusters of spatially smoothed principal components: k-means, then a Gaussian mixture for probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import clusters, mixture, neighbors
from ..core.pca import moments, pca
from ..core.values import in_range
from ._batches import Correction, correct
from ._inputs import Assignment, agree, check, one_thread


def assign(
    X: Any,
    *,
    coordinates: np.ndarray,
    n_domains: int,
    image_features: np.ndarray | None = None,
    samples: np.ndarray | None = None,
    seed: int = 0,
    n_genes: int = 2000,
    n_components: int = 15,
    n_neighbors: int = 6,
    smoothing: float = 0.5,
    correction: Correction = "centre",
) -> Assignment:
    """Cluster rows into domains.

    Parameters
    ----------
    X
        [n, g] log-normalised expression, dense or sparse.
    coordinates
        [n, 2] x, y; only the order of distances matters.
    n_domains
        K; exactly that many come out.
    image_features
        [n, d] or None. Their components are joined to those of expression at the same total variance.
    samples
        [n] sample of each row, or None; neighbours are of the same sample.
    seed
        Of the k-means starts.
    n_genes
        Most variable genes taken.
    n_components
        Principal components.
    n_neighbors
        Neighbours averaged (ties included: six on a hexagonal, eight on a square array).
    smoothing
        Weight of the neighbours' mean, 0 to 1. At 1/2 a spot keeps half of its own say: means over all neighbours
        alike (6/7) do better on arrays as dense as Visium's and on single cells, but wipe out layers that are one
        spot wide on the 200 um arrays (mouse olfactory bulb: adjusted Rand index .30 against .59).
    correction
        Of shifts between samples: "none", "centre" or "harmony" (`_batches.correct`). On three mouse cortex sections
        the mean adjusted Rand index was .54, .69 and .70.

    Returns
    -------
    labels, probabilities, embedding, info
        See the plug-in contract. The embedding is the smoothed components.

    Raises
    ------
    InputError
        Bad inputs, fewer distinct rows than domains, or a smoothing outside 0 to 1.
    """
    in_range(
        "kmeans", n_genes=(n_genes, 1, np.inf), n_components=(n_components, 1, np.inf),
        n_neighbors=(n_neighbors, 1, np.inf), smoothing=(smoothing, 0, 1),
    )  # fmt: skip
    inputs = check(X, coordinates, n_domains, image_features=image_features, samples=samples)
    with one_thread():
        parts = [_components(_variable(inputs.X, n_genes), n_components, seed)]
        if inputs.image is not None:
            image = _components(inputs.image, n_components, seed)
            parts.append(image * np.sqrt(parts[0].var(0).sum() / image.var(0).sum()))
        graph = neighbors.knn_graph(inputs.coordinates, k=n_neighbors, slides=inputs.samples)
        own = np.hstack(parts)
        smooth = (1 - smoothing) * own + smoothing * neighbors.neighbour_mean(graph, own)
        smooth = correct(smooth, inputs.samples, correction, seed=seed)
        start = clusters.exactly(clusters.kmeans(smooth, n_domains, seed=seed), smooth, n_domains, seed=seed)
        probabilities = mixture.fit(smooth, start, n_domains, spherical=False).posterior(smooth)
        labels = probabilities.argmax(axis=1)
        if len(np.unique(labels)) < n_domains:
            labels = start
    info = {"n_components": own.shape[1], "n_genes": int(min(n_genes, inputs.X.shape[1]))}
    return inputs.finish(labels, agree(labels, probabilities), smooth, info)


def _variable(X: Any, n_genes: int) -> Any:
    """Columns of largest variance, in their order."""
    if X.shape[1] <= n_genes:
        return X
    _, variance = moments(X)
    return X[:, np.sort(np.argsort(-variance, kind="stable")[:n_genes])]


def _components(values: Any, n_components: int, seed: int) -> np.ndarray:
    # A row less than there are rows: otherwise every row is a corner of its own.
    return pca(values, max(1, min(n_components, values.shape[0] - 2)), seed=seed).scores
