"""DeepST's parts against brute force, and its embedding in batches."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from stainseq.core import graphs
from stainseq.core.clusters import adjusted_rand
from stainseq.domains import deepst
from stainseq.domains._inputs import check

torch = pytest.importorskip("torch")


def small(cells, n=150, **options):
    data = cells(n, **options)
    at = check(data.counts, data.coordinates, 4)
    return data, at, graphs.by_sample(at.samples, n)


def test_loss_over_edges_equals_the_dense_one(cells):
    from stainseq.domains._deepst_net import graph_loss

    _, at, rows = small(cells, 60)
    graph = deepst.spatial_graph(at.coordinates, rows, 12)
    edges = graph.tocoo()
    z = torch.randn(60, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours = graph_loss(z, torch.from_numpy(np.stack([edges.col, edges.row]).astype(np.int64)))
    a = torch.from_numpy(graph.toarray()).double()
    norm = 60 * 60 / ((60 * 60 - (a.sum() - 60)) * 2)
    dense = norm * torch.nn.functional.binary_cross_entropy_with_logits(torch.sigmoid(z @ z.T) * a, a)
    assert ours.item() == pytest.approx(dense.item(), rel=1e-12)
    (ours_grad,) = torch.autograd.grad(ours, z)
    (dense_grad,) = torch.autograd.grad(dense, z)
    np.testing.assert_allclose(ours_grad.numpy(), dense_grad.numpy(), atol=1e-12)


@pytest.mark.parametrize("image", [False, True])
def test_adjacency_weights_equal_brute_force(cells, image):
    data = cells(80)
    features = np.random.default_rng(0).normal(size=(80, 5)) + data.layer[:, None] if image else None
    at = check(data.counts, data.coordinates, 4, image_features=features)
    ours = deepst.adjacency_weights(at, [np.arange(80)], 30, 0).toarray()
    X = at.X.toarray().astype(float)
    weight = np.corrcoef(X)
    if image:
        f = at.image - at.image.mean(axis=0)
        f /= np.linalg.norm(f, axis=1, keepdims=True)
        weight = weight * np.maximum(f @ f.T, 0)
    order = np.argsort(cdist(at.coordinates, at.coordinates), axis=1)
    near = np.zeros((80, 80))
    np.put_along_axis(near, order[:, 1:31], 1, axis=1)
    weight = weight * near
    expected = np.zeros((80, 80))
    for i in range(80):
        top = weight[i].argsort(kind="stable")[-4:][:3]
        w = np.maximum(weight[i][top], 0)
        if w.sum() > 0:
            expected[i, top] = w / w.sum()
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_augmented_components_equal_the_plain_formula(cells):
    _, at, rows = small(cells, 90)
    weights = deepst.adjacency_weights(at, rows, 30, 0)
    ours = deepst.components(at.X, weights, 0.3, 10, 0)
    X = at.X.toarray().astype(float)
    X = X + 0.3 * weights.toarray() @ X
    X = np.log1p(X / X.sum(axis=1, keepdims=True))
    s = X.std(axis=0, ddof=1)
    Z = (X - X.mean(axis=0)) / np.where(s > 0, s, 1)
    u, d, _ = np.linalg.svd(Z, full_matrices=False)
    np.testing.assert_allclose(np.abs(ours), np.abs(u[:, :10] * d[:10]), atol=1e-3)


def test_attention_equals_a_dense_softmax():
    from stainseq.domains._deepst_net import Attention

    torch.manual_seed(0)
    layer = Attention(5, 3).double()
    a = sparse.random_array((12, 12), density=0.3, rng=np.random.default_rng(0)).toarray() + np.eye(12) > 0
    x = torch.randn(12, 5, dtype=torch.float64)
    target, source = np.nonzero(a)
    ours = layer(x, torch.from_numpy(np.stack([source, target])))
    h = x @ layer.weight
    e = torch.nn.functional.leaky_relu((h @ layer.source.T).T + h @ layer.target.T, 0.2)
    e = e.masked_fill(torch.from_numpy(~a), -torch.inf)
    dense = torch.softmax(e, dim=1) @ h + layer.bias
    np.testing.assert_allclose(ours.detach().numpy(), dense.detach().numpy(), atol=1e-12)


def test_layers_are_found(cells):
    data = cells(500, n_genes=60)
    labels, p, z, info = deepst.assign(data.counts, coordinates=data.coordinates, n_domains=4, pre_epochs=60, epochs=60)
    assert adjusted_rand(labels, data.layer) > 0.35  # single cells of few counts: a neighbour or three is all it sees
    assert z.shape == (500, 28)
    assert info["n_adjacent"] <= 3
    assert (p[np.arange(500), labels] >= p.max(axis=1) - 1e-6).all()


def test_embedding_in_batches_uses_every_edge(cells):
    _, at, rows = small(cells, 400)
    graph = deepst.spatial_graph(at.coordinates, rows, 12)
    x = np.random.default_rng(0).normal(size=(400, 20)).astype(np.float32)
    out = []
    for batch in (400, 90):
        torch.manual_seed(0)
        trainer = deepst._Trainer(x, graph, at, batch, "cpu")
        assert len(trainer.parts) == -(-400 // batch)
        assert sorted(np.concatenate(trainer.parts)) == list(range(400))
        out.append(trainer.embed())
    np.testing.assert_allclose(out[0], out[1], atol=1e-5)


def test_more_rows_than_a_batch(cells):
    data = cells(500)
    labels, *_ = deepst.assign(
        data.counts, coordinates=data.coordinates, n_domains=5, pre_epochs=20, epochs=21, batch_rows=200
    )
    assert len(np.unique(labels)) == 5


def test_samples_share_one_label_set(cells):
    a, b = cells(250, seed=1), cells(250, seed=2)
    counts = sparse.vstack([a.counts, b.counts]).tocsr()
    labels, *_ = deepst.assign(
        counts,
        coordinates=np.vstack([a.coordinates, b.coordinates]),
        n_domains=3,
        samples=np.repeat([0, 1], 250),
        pre_epochs=20,
        epochs=20,
    )
    assert len(np.unique(labels)) == 3
