"""DeepST: expression augmented by similar neighbours, a graph autoencoder (torch), communities of its embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ..core import clusters, graphs
from ..core.grids import morton
from ..core.pca import pca
from ..core.refine import nearest
from ..core.values import in_range, is_counts
from ._inputs import Assignment, Inputs, agree, check, one_thread

NEEDS = ("torch",)
WANTS = "counts"

_SAMPLE_ROWS = 20_000
_REFRESH = 20


def assign(
    X: Any,
    *,
    coordinates: np.ndarray,
    n_domains: int,
    image_features: np.ndarray | None = None,
    samples: np.ndarray | None = None,
    seed: int = 0,
    pre_epochs: int = 200,
    epochs: int = 200,
    n_components: int = 200,
    spatial_k: int = 30,
    graph_k: int = 12,
    adjacent_weight: float = 0.3,
    batch_rows: int = 20_000,
    device: str = "cpu",
) -> Assignment:
    """Domains by DeepST's equations, with sparse weights, a loss over edges and exactly the number asked for.

    Parameters
    ----------
    X
        [n, g] raw counts, dense or CSR. Values that are not all integers are taken as they are.
    coordinates
        [n, 2] x, y.
    n_domains
        K.
    image_features
        [n, d] vectors of any encoder, or None. Their similarity joins that of expression in the choice of neighbours.
    samples
        [n] sample of each row: no edges between samples, and a classifier of samples behind a gradient reversal.
    seed
        Of weights, noise and dropout.
    pre_epochs, epochs
        Training without and with the clustering loss. exprmat's defaults; 3,000 each with an image there.
    n_components
        Principal components of the augmented expression.
    spatial_k
        Neighbours among which the similar ones are sought.
    graph_k
        Neighbours in the graph, before it is made symmetric.
    adjacent_weight
        Weight of the similar neighbours' expression.
    batch_rows
        Beyond this many rows an epoch is one step on one batch of rows near each other, in turn, so that memory and
        time stay bounded; edges that leave the batch are left out in training, not in the embedding.
    device
        Of torch. On the CPU the result is repeatable to the bit whatever the threads.

    Returns
    -------
    labels, probabilities, embedding, info
        See the plug-in contract. The embedding has 28 columns. `info`: ``resolution``, ``runs`` (of the resolution
        search), ``found`` (communities before the count was made exact), ``n_adjacent`` (mean neighbours used).

    Notes
    -----
    C. Xu et al., Nucleic Acids Research 50, e131 (2022), as in deepstkit 2.0.3. As there, a row's most similar
    neighbour is passed over and the three after it are used. Louvain communities take the place of Leiden's; the
    resolution is found by bisection on one graph, and Ward's criterion makes the count exact.
    """
    in_range(
        "deepst", pre_epochs=(pre_epochs, 0, np.inf), epochs=(epochs, 0, np.inf),
        n_components=(n_components, 1, np.inf), spatial_k=(spatial_k, 1, np.inf), graph_k=(graph_k, 1, np.inf),
        adjacent_weight=(adjacent_weight, 0, np.inf), batch_rows=(batch_rows, 8, np.inf),
    )  # fmt: skip
    at = check(X, coordinates, n_domains, image_features=image_features, samples=samples)
    n = len(at.coordinates)
    if at.n_domains == 1 or n < 8:
        labels = np.arange(n) % at.n_domains
        return at.finish(labels, np.eye(at.n_domains)[labels], None, {})
    rows = graphs.by_sample(at.samples, n)
    with one_thread():
        weights = adjacency_weights(at, rows, spatial_k, seed)
        x = components(at.X, weights, adjacent_weight, n_components, seed)
        graph = spatial_graph(at.coordinates, rows, graph_k)
        z = _train(x, graph, at, pre_epochs, epochs, batch_rows, device, seed)
        labels, q, info = communities(z, at.n_domains, seed)
    return at.finish(labels, q, z, {**info, "n_adjacent": weights.nnz / n})


def adjacency_weights(at: Inputs, rows: list[np.ndarray], k: int, seed: int) -> sparse.csr_array:
    """Weights of the similar neighbours, CSR [n, n], rows summing to 1 (or empty).

    Spatial neighbourhood x correlation of expression (of 100 principal components where there are more than 500 genes)
    x cosine of the image's 50 components, negative ones cut; of a row's four largest the first is passed over.

    Parameters
    ----------
    at
        Inputs in canonical order.
    rows
        Rows of each sample.
    k
        Neighbours looked at.
    seed
        Of the decomposition.
    """
    n = len(at.coordinates)
    wide = at.X.shape[1] > 500
    own = pca(at.X, 100, seed=seed).scores if wide else at.X.toarray() if sparse.issparse(at.X) else at.X
    own = _unit(np.asarray(own, dtype=np.float32) - np.asarray(own, dtype=np.float32).mean(axis=1, keepdims=True))
    image = None
    if at.image is not None:
        width = min(50, at.image.shape[1])
        flat = np.ptp(at.image, axis=0).max() == 0
        image = None if flat else _unit(pca(at.image, width, seed=seed).scores.astype(np.float32))
    heads, tails, values = [], [], []
    for sample in rows:
        near = sample[nearest(at.coordinates[sample], k)]
        for start in range(0, len(sample), 8192):
            part, around = sample[start : start + 8192], near[start : start + 8192, 1:]
            if around.shape[1] == 0:
                continue
            weight = np.einsum("id,ijd->ij", own[part], own[around], optimize=True).astype(np.float64)
            if image is not None:
                weight *= np.maximum(np.einsum("id,ijd->ij", image[part], image[around], optimize=True), 0)
            order = np.argsort(-weight, axis=1, kind="stable")[:, 1:4]
            chosen = np.maximum(np.take_along_axis(weight, order, axis=1), 0)
            total = chosen.sum(axis=1, keepdims=True)
            heads.append(np.repeat(part, order.shape[1]))
            tails.append(np.take_along_axis(around, order, axis=1).ravel())
            values.append(np.divide(chosen, total, out=np.zeros_like(chosen), where=total > 0).ravel())
    if not heads:
        return sparse.csr_array((n, n))
    i, j, v = np.concatenate(heads), np.concatenate(tails), np.concatenate(values)
    graph = sparse.coo_array((v[v > 0], (i[v > 0], j[v > 0])), shape=(n, n)).tocsr()
    graph.sort_indices()
    return graph


def _unit(values: np.ndarray) -> np.ndarray:
    length = np.sqrt((values.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return np.asarray(values / np.where(length > 0, length, 1.0), dtype=np.float32)


def components(X: Any, weights: sparse.csr_array, share: float, d: int, seed: int) -> np.ndarray:
    """Augmented expression, normalised, log1p, standardised, principal components; float32 [n, d].

    Parameters
    ----------
    X
        [n, g] counts, or values that are only augmented and standardised.
    weights
        From `adjacency_weights`.
    share
        Weight of the neighbours.
    d
        Components.
    seed
        Of the decomposition.
    """
    augmented = X + share * (weights @ X)
    if is_counts(X):
        total = np.asarray(augmented.sum(axis=1), dtype=np.float64).ravel()
        scale = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        if sparse.issparse(augmented):
            augmented = augmented.tocsr()
            values = np.log1p(augmented.data * np.repeat(scale, np.diff(augmented.indptr)))
            augmented = sparse.csr_array((values, augmented.indices, augmented.indptr), shape=augmented.shape)
        else:
            augmented = np.log1p(augmented * scale[:, None])
    return pca(augmented, d, standardise=True, seed=seed).scores.astype(np.float32)


def spatial_graph(coordinates: np.ndarray, rows: list[np.ndarray], k: int) -> sparse.csr_array:
    """Symmetric k-nearest-neighbour graph with loops, CSR of ones.

    Parameters
    ----------
    coordinates
        [n, 2].
    rows
        Rows of each sample.
    k
        Neighbours before it is made symmetric.
    """
    n = len(coordinates)
    heads, tails = [np.arange(n)], [np.arange(n)]
    for sample in rows:
        near = nearest(coordinates[sample], k)[:, 1:]
        heads.append(np.repeat(sample, near.shape[1]))
        tails.append(sample[near.ravel()])
    i, j = np.concatenate(heads), np.concatenate(tails)
    graph = sparse.coo_array((np.ones(len(i), dtype=np.float32), (i, j)), shape=(n, n)).tocsr()
    graph = (graph + graph.T).tocsr()
    graph.data[:] = 1
    graph.sort_indices()
    return graph


def communities(z: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Exactly k communities of the embedding's neighbour graph, and probabilities from distances to their centres.

    Parameters
    ----------
    z
        [n, d]. Beyond 20,000 rows a sample of them is clustered and every row joins the nearest centre.
    k
        Communities.
    seed
        Of that sample.
    """
    n = len(z)
    part = np.arange(n)
    if n > _SAMPLE_ROWS:
        part = np.sort(np.random.default_rng([seed, 5]).choice(n, _SAMPLE_ROWS, replace=False))
    values = z[part].astype(np.float64)
    graph = graphs.fuzzy_graph(*graphs.feature_neighbours(values, 14))
    labels, resolution, runs = clusters.bisect_resolution(lambda r: clusters.louvain(graph, resolution=r), k)
    info = {"resolution": resolution, "runs": runs, "found": len(np.unique(labels))}
    labels = clusters.exactly(labels, values, k, seed=seed)
    centres = clusters.centroids(values, labels, k)
    q = np.empty((n, k))
    for start in range(0, n, 16384):
        squares = ((z[start : start + 16384, None].astype(np.float64) - centres) ** 2).sum(axis=2)
        q[start : start + 16384] = (1 + squares / 0.9) ** -0.95
    q /= q.sum(axis=1, keepdims=True)
    if n > len(part):
        labels = clusters.exactly(q.argmax(axis=1), z, k, seed=seed)
    return labels, agree(labels, q), info


def _train(
    x: np.ndarray,
    graph: sparse.csr_array,
    at: Inputs,
    pre_epochs: int,
    epochs: int,
    batch_rows: int,
    device: str,
    seed: int,
) -> np.ndarray:
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            return _Trainer(x, graph, at, batch_rows, device).run(pre_epochs, epochs)
        finally:
            torch.set_num_threads(threads)


class _Trainer:
    """The two rounds of training on batches of rows that are near each other."""

    def __init__(self, x: np.ndarray, graph: sparse.csr_array, at: Inputs, batch_rows: int, device: str) -> None:
        import torch

        from ._deepst_net import Network

        self.x, self.graph, self.device = x, graph, device
        self.samples = at.samples
        self.parts = _parts(at, batch_rows)
        self.net = Network(x.shape[1], int(at.samples.max()) + 1).to(device)
        self.torch = torch
        self._whole: dict[int, Any] = {}

    def run(self, pre_epochs: int, epochs: int) -> np.ndarray:
        torch = self.torch
        adam = torch.optim.Adam(self.net.parameters(), lr=5e-4, weight_decay=1e-4)
        for epoch in range(pre_epochs):
            self._step(adam, epoch, None)
        z = self.embed()
        if epochs == 0:
            return z
        self.net.centres.data = torch.from_numpy(self._centres(z)).to(self.device)
        # The optimiser holds the old, one-row centres; it must see the new ones.
        adam.param_groups[0]["params"] = list(self.net.parameters())
        adam.state.pop(self.net.centres, None)
        goal = None
        for epoch in range(epochs):
            if epoch % _REFRESH == 0:
                goal = self._goal()
            self._step(adam, epoch, goal)
        return self.embed()

    def _step(self, adam: Any, epoch: int, goal: Any) -> None:
        from torch.nn import functional

        from . import _deepst_net as nets

        torch = self.torch
        number = epoch % len(self.parts)
        rows = self.parts[number]
        x, edges, sample = self._batch(number)
        self.net.train()
        adam.zero_grad()
        noisy = torch.where(torch.rand_like(x) < 0.001, 0.0, x) if goal is None else x
        loss, z = nets.loss(self.net, x, noisy, edges)
        loss = loss + nets.sample_loss(self.net, z, sample)
        if goal is not None:
            loss = loss + functional.kl_div(self.net.assign(z).log(), goal[rows].to(self.device), reduction="batchmean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        adam.step()

    def _batch(self, number: int) -> tuple[Any, Any, Any]:
        if number not in self._whole:
            torch, rows = self.torch, self.parts[number]
            inner = self.graph[rows][:, rows].tocoo()
            edges = torch.from_numpy(np.stack([inner.col, inner.row]).astype(np.int64)).to(self.device)
            batch = (
                torch.from_numpy(self.x[rows]).to(self.device),
                edges,
                torch.from_numpy(self.samples[rows]).to(self.device),
            )
            if len(self.parts) > 1:  # kept only where it is used again and again
                return batch
            self._whole[number] = batch
        return self._whole[number]

    def embed(self) -> np.ndarray:
        """Embedding of every row with all its edges, float32 [n, 28]; no noise."""
        torch = self.torch
        self.net.eval()
        out = np.empty((len(self.x), 28), dtype=np.float32)
        with torch.no_grad():
            for rows in self.parts:
                around = _reach(self.graph, rows) if len(self.parts) > 1 else rows
                inner = self.graph[around][:, around].tocoo()
                edges = torch.from_numpy(np.stack([inner.col, inner.row]).astype(np.int64)).to(self.device)
                z = self.net(torch.from_numpy(self.x[around]).to(self.device), edges)[0]
                out[rows] = z.cpu().numpy()[np.searchsorted(around, rows)]
        return out

    def _goal(self) -> Any:
        from ._deepst_net import target

        with self.torch.no_grad():
            z = self.torch.from_numpy(self.embed()).to(self.device)
            return target(self.net.assign(z)).cpu()

    @staticmethod
    def _centres(z: np.ndarray) -> np.ndarray:
        values = z.astype(np.float64)
        if len(z) > _SAMPLE_ROWS:
            values = values[np.sort(np.random.default_rng(5).choice(len(z), _SAMPLE_ROWS, replace=False))]
        graph = graphs.fuzzy_graph(*graphs.feature_neighbours(values, 19))
        labels = clusters.louvain(graph, resolution=1.0)
        return clusters.centroids(values, labels, int(labels.max()) + 1).astype(np.float32)


def _parts(at: Inputs, batch_rows: int) -> list[np.ndarray]:
    """Rows cut into batches of neighbours along a Morton curve, each sorted; one batch where they are few."""
    n = len(at.coordinates)
    count = -(-n // batch_rows)
    if count <= 1:
        return [np.arange(n)]
    xy = at.coordinates - at.coordinates.min(axis=0)
    cell = float(np.sqrt(np.prod(np.maximum(np.ptp(xy, axis=0), 1e-9)) / n))
    order = np.lexsort((morton(xy[:, 0], xy[:, 1], cell=cell), at.samples))
    return [np.sort(part) for part in np.array_split(order, count)]


def _reach(graph: sparse.csr_array, rows: np.ndarray) -> np.ndarray:
    """Rows and all within two edges: what two layers of attention look at."""
    for _ in range(2):
        rows = np.unique(graph[rows].indices)
    return rows
