"""SpaGCN against a dense reference of its equations, differentiated by torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from stainseq.core import clusters, graphs
from stainseq.core.colour import patch_colour
from stainseq.core.normalize import log1p_cp10k
from stainseq.core.refine import refine
from stainseq.domains import _dec, spagcn
from stainseq.domains._inputs import check
from stainseq.errors import InputError


def dense_length(points, p):
    """SpaGCN's bisection on the full distance matrix."""
    distance = cdist(points, points)

    def share(length):
        return np.exp(-(distance**2) / (2 * length**2)).sum(axis=1).mean() - 1

    low, high = 0.01, 1000.0
    for _ in range(100):
        middle = (low + high) / 2
        found = share(middle)
        if abs(found - p) <= 0.01:
            return middle, np.exp(-(distance**2) / (2 * middle**2))
        low, high = (middle, high) if found <= p else (low, middle)
    raise AssertionError("not found")


def torch_dec(pcs, adjacency, weights, labels, *, epochs, lr, tol, move_centres):
    """The model as published: dense A, autograd, torch's Adam, float64."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    x, a = torch.tensor(pcs), torch.tensor(adjacency)
    w = torch.nn.Parameter(torch.tensor(weights[0]))
    b = torch.nn.Parameter(torch.tensor(weights[1]))
    start = (a @ (x @ w) + b).detach().numpy()
    mu = torch.nn.Parameter(torch.tensor(np.stack([start[labels == k].mean(0) for k in range(labels.max() + 1)])))
    adam = torch.optim.Adam([w, b, mu] if move_centres else [w, b], lr=lr)

    def forward():
        z = a @ (x @ w) + b
        q = 1.0 / ((1.0 + ((z.unsqueeze(1) - mu) ** 2).sum(dim=2) / 0.2) + 1e-8)
        q = q ** (0.2 + 1.0) / 2.0
        return z, q / q.sum(dim=1, keepdim=True)

    last, epoch = labels, 0
    for epoch in range(epochs):
        if epoch % 3 == 0:
            q = forward()[1].detach()
            target = q**2 / q.sum(dim=0)
            target = target / target.sum(dim=1, keepdim=True)
        adam.zero_grad()
        q = forward()[1]
        (target * torch.log(target / (q + 1e-6))).sum(dim=1).mean().backward()
        adam.step()
        now = q.argmax(dim=1).numpy()
        changed, last = (now != last).mean(), now
        if epoch > 0 and (epoch - 1) % 3 == 0 and changed < tol:
            break
    z, q = forward()
    return z.detach().numpy(), q.detach().numpy(), epoch + 1


@pytest.mark.parametrize(("histology", "move"), [(False, False), (True, False), (False, True)])
def test_equals_the_dense_reference(planted, histology, move):
    rows = slice(0, 600)  # of y: holds four of the seven layers
    X, xy, layer = log1p_cp10k(planted.counts[rows, :1500]), planted.coordinates[rows], planted.layer[rows]
    k = int(layer.max()) + 1
    image = np.random.default_rng(1).normal(layer[:, None], 1.0, (600, 3)) + 100 if histology else None
    labels, q, z, info = spagcn.assign(X, coordinates=xy, n_domains=k, image_features=image, seed=4, move_centres=move)

    at = check(X, xy, k, image_features=image)
    dense = X.toarray().astype(np.float64)
    dense = dense[at.order] - dense.mean(axis=0)
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    signs = np.sign(vt[np.arange(50), np.abs(vt[:50]).argmax(axis=1)])
    pcs = u[:, :50] * s[:50] * signs
    points = spagcn.positions(at.coordinates, at.image, alpha=1.0)
    length, adjacency = dense_length(points, 0.5)
    assert info["l"] == [length]
    ours, _, _ = spagcn.smooth(pcs, at, p=0.5, alpha=1.0)
    np.testing.assert_allclose(ours, adjacency @ pcs, rtol=0, atol=1e-9 * np.abs(ours).max())

    weights = _dec.initial_weights(50, 4)
    first = adjacency @ pcs @ weights[0] + weights[1]
    graph = graphs.fuzzy_graph(*graphs.feature_neighbours(first, 9))
    start = clusters.louvain(graph, resolution=info["resolution"])
    z_ref, q_ref, epochs = torch_dec(pcs, adjacency, weights, start, epochs=200, lr=0.05, tol=5e-3, move_centres=move)
    assert info["epochs"] == epochs
    assert info["found"] == k
    ref = q_ref.argmax(axis=1)
    assert clusters.adjusted_rand(labels[at.order], ref) == 1.0
    order = [ref[labels[at.order] == j][0] for j in range(k)]
    np.testing.assert_allclose(q[at.order], q_ref[:, order], atol=1e-5)
    np.testing.assert_allclose(z[at.order], z_ref, rtol=1e-4, atol=1e-4)
    assert clusters.adjusted_rand(labels, layer) > 0.9


@pytest.fixture
def upstream():
    """SpaGCN 1.2.7 on the first 400 spots of the fixture; made by benchmarks/spagcn_reference.py, which says how."""
    return np.load(Path(__file__).parent / "data" / "spagcn_1.2.7.npz")


def test_same_length_and_labels_as_spagcn_itself(upstream):
    """From SpaGCN's own components, first weights and first clusters; it computes in float32."""
    xy, pcs = upstream["xy"], upstream["pcs"].astype(np.float64)
    near = graphs.neighbourhoods(xy)
    length = graphs.search_length(near, 0.5)
    assert length == float(upstream["length"])
    ax = graphs.gaussian(near.tree, length) @ pcs
    start, W, b = upstream["start"].astype(int), upstream["W"].astype(np.float64), upstream["b"].astype(np.float64)
    centres = clusters.centroids(ax @ W + b, start, start.max() + 1)
    _, labels, q, epochs = _dec.train(ax, _dec.Model(W, b, centres), start, epochs=200, lr=0.05, tol=5e-3)
    np.testing.assert_array_equal(labels, upstream["labels"])
    assert epochs == 14
    assert (labels != start).sum() > 10
    np.testing.assert_allclose(q, upstream["q"], atol=1e-4)
    # It breaks ties of distance by the order of an unstable sort, so that a spot of the rim may differ.
    assert (refine(labels, xy, layout="hexagon") == upstream["refined"]).mean() > 0.99


def test_same_histology_as_spagcn_itself(upstream):
    y, x = np.mgrid[:500, :1100]
    bands = [np.sin(x / 41) + np.cos(y / 29), np.cos(x / 17), np.sin((x + 2 * y) / 53)]
    image = np.stack([np.rint(127 + 40 * band) for band in bands], axis=2).astype(np.uint8)
    colours = patch_colour(image, np.column_stack([upstream["px"], upstream["py"]]), size_px=49)
    points = spagcn.positions(upstream["xy"], colours, alpha=1.0)
    np.testing.assert_allclose(cdist(points[:5], points), upstream["seen"], rtol=1e-5, atol=0.05)
    found = graphs.search_length(graphs.neighbourhoods(points), 0.5)
    assert found == pytest.approx(float(upstream["seen_length"]), rel=1e-3)


def test_gradients_are_those_of_the_loss(cells):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    ax, target = rng.normal(size=(40, 5)), rng.dirichlet(np.ones(3), 40)
    model = _dec.Model(rng.normal(size=(5, 5)), rng.normal(size=5), rng.normal(size=(3, 5)))
    w, b, mu = (torch.tensor(x, requires_grad=True) for x in model)
    z = torch.tensor(ax) @ w + b
    q = 1 / (1 + ((z[:, None] - mu) ** 2).sum(2) / 0.2 + 1e-8)
    q = q**1.2 / 2
    q = q / q.sum(1, keepdim=True)
    t = torch.tensor(target)
    (t * torch.log(t / (q + 1e-6))).sum(1).mean().backward()
    for ours, theirs in zip(_dec._step(ax, model, target, np.empty((40, 3))), (w, b, mu), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_length_scale_is_found_to_the_last_bit(cells):
    for seed, p in ((0, 0.5), (1, 0.2), (2, 3.0)):
        points = cells(400, seed=seed).coordinates
        assert graphs.search_length(graphs.neighbourhoods(points), p) == dense_length(points, p)[0]


def test_length_scale_outside_the_usual_bracket(cells):
    points = cells(300).coordinates
    for unit in (1e4, 1e-5):
        near = graphs.neighbourhoods(points * unit)
        length = graphs.search_length(near, 0.5)
        assert abs(graphs.mean_weight(near, length) - 0.5) <= 0.01


def test_error_of_the_truncated_kernel_is_bounded(cells):
    points = cells(500).coordinates
    near = graphs.neighbourhoods(points)
    length = graphs.search_length(near, 0.5)
    full = np.exp(-(cdist(points, points) ** 2) / (2 * length**2))
    for eps in (1e-6, 1e-10):
        cut = graphs.gaussian(near.tree, length, eps=eps).toarray()
        assert np.abs(full - cut).max() <= eps
        np.testing.assert_array_equal(cut, cut.T)


def test_samples_have_their_own_length_and_no_edges_between(cells):
    a, b = cells(300, seed=1), cells(300, seed=2)
    xy = np.vstack([a.coordinates, b.coordinates * 3])
    X = log1p_cp10k(np.vstack([a.counts.toarray(), b.counts.toarray()]))
    sample = np.repeat(["a", "b"], 300)
    *_, info = spagcn.assign(X, coordinates=xy, n_domains=3, samples=sample)
    one, two = (graphs.search_length(graphs.neighbourhoods(c), 0.5) for c in (xy[:300], xy[300:]))
    assert info["l"] == [one, two]


def test_colours_are_joined_by_variance():
    rng = np.random.default_rng(3)
    xy, colour = rng.uniform(0, 10, (50, 2)), rng.uniform(0, 255, (50, 3))
    points = spagcn.positions(xy, colour, alpha=2.0)
    v = colour.var(axis=0)
    one = (colour * v).sum(axis=1) / v.sum()
    expected = (one - one.mean()) / one.std() * max(xy[:, 0].std(), xy[:, 1].std()) * 2
    np.testing.assert_allclose(points[:, 2], expected)


def test_an_image_without_contrast_is_refused(cells):
    data = cells(50)
    with pytest.raises(InputError, match="same around every row"):
        spagcn.assign(
            log1p_cp10k(data.counts), coordinates=data.coordinates, n_domains=2, image_features=np.full((50, 3), 7.0)
        )


def test_encoder_features_take_the_place_of_colour(cells):
    data = cells(200)
    features = np.random.default_rng(0).normal(size=(200, 16)) + data.layer[:, None]
    points = spagcn.positions(data.coordinates, features, alpha=1.0)
    assert points.shape == (200, 3)
    assert abs(np.corrcoef(points[:, 2], data.layer)[0, 1]) > 0.9


def test_a_sample_of_rows_says_enough(planted):
    """Trained on a third of the rows, all are assigned nearly as if trained on all."""
    X = log1p_cp10k(planted.counts[:, :600])
    few, p, z, _ = spagcn.assign(X, coordinates=planted.coordinates, n_domains=7, sample_rows=500)
    assert clusters.adjusted_rand(few, planted.layer) > 0.85
    assert len(np.unique(few)) == 7
    assert p.shape == (1500, 7)
    assert z.shape == (1500, 50)
    np.testing.assert_array_equal(p.argmax(axis=1), few)
