"""Refinement, exact numbers of clusters, graphs and patch colours against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from stainseq.core import clusters, graphs
from stainseq.core.colour import patch_colour
from stainseq.core.refine import nearest, refine
from stainseq.errors import InputError, ScaleError


def spagcn_refine(labels, xy, k):
    """The published loop, with ties in distance broken by (y, x)."""
    rank = np.empty(len(xy), int)
    rank[np.lexsort((xy[:, 0], xy[:, 1]))] = np.arange(len(xy))
    d = np.round(cdist(xy, xy), 6)
    out = []
    for i in range(len(xy)):
        d[i, i] = -1
        near = labels[np.lexsort((rank, d[i]))[: k + 1]]
        names, count = np.unique(near, return_counts=True)
        own = count[names == labels[i]][0]
        out.append(names[count.argmax()] if own < k / 2 and count.max() > k / 2 else labels[i])
    return np.array(out)


@pytest.mark.parametrize(("layout", "k"), [("hexagon", 6), ("square", 4), ("free", 10)])
def test_refinement_equals_the_published_loop(planted, layout, k):
    rng = np.random.default_rng(0)
    xy = planted.coordinates[:500]
    labels = np.where(rng.random(500) < 0.25, rng.integers(0, 4, 500), planted.layer[:500])
    found = refine(labels, xy, layout=layout)
    np.testing.assert_array_equal(found, spagcn_refine(labels, xy, k))
    shuffle = rng.permutation(500)
    np.testing.assert_array_equal(refine(labels[shuffle], xy[shuffle], layout=layout), found[shuffle])


def test_refinement_loses_no_domain():
    xy = np.array([(x, y) for x in range(10) for y in range(10)], dtype=float)
    labels = np.zeros(100, int)
    labels[[37, 62]] = [1, 2]
    found = refine(labels, xy, layout="square")
    assert set(found) == {0, 1, 2}
    assert found.dtype == np.int32


def test_refinement_stays_inside_samples():
    xy = np.array([(x, 0.0) for x in range(6)] * 2)
    labels = np.repeat([0, 1], 6)
    np.testing.assert_array_equal(refine(labels, xy, layout="square", samples=labels), labels)


def test_refinement_refusals():
    with pytest.raises(InputError, match="no layout"):
        refine(np.zeros(3, int), np.eye(3)[:, :2], layout="triangle")
    with pytest.raises(InputError, match="labels have shape"):
        refine(np.zeros(2, int), np.eye(3)[:, :2])


def test_nearest_breaks_ties_by_place(cells):
    xy = np.round(cells(200).coordinates / 10)  # many ties and duplicates
    rank = np.empty(200, int)
    rank[np.lexsort((xy[:, 0], xy[:, 1]))] = np.arange(200)
    found = nearest(xy, 5)
    d = cdist(xy, xy)
    np.testing.assert_array_equal(found[:, 0], np.arange(200))
    np.testing.assert_allclose(np.sort(d, axis=1)[:, :6], np.take_along_axis(d, found, axis=1))


def test_ward_merges_the_cheapest_pair():
    values = np.array([[0.0], [0.1], [1.0], [1.2], [9.0], [9.1], [9.2]])
    labels = np.array([5, 5, 7, 7, 2, 2, 4])
    np.testing.assert_array_equal(clusters.exactly(labels, values, 3)[[0, 2, 4, 6]], [1, 2, 0, 0])
    two = clusters.exactly(labels, values, 2)
    assert len(set(two[:4])) == 1
    assert len(set(two[4:])) == 1


@pytest.mark.parametrize("k", [1, 3, 8, 30])
def test_exactly_k_even_where_rows_are_alike(k):
    values = np.zeros((30, 2))
    values[:5] = np.random.default_rng(0).normal(size=(5, 2))
    found = clusters.exactly(np.zeros(30, int), values, k)
    assert np.array_equal(np.unique(found), np.arange(k))
    with pytest.raises(InputError):
        clusters.exactly(np.zeros(30, int), values, 31)


def test_adjusted_rand_equals_sklearn():
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 60), rng.integers(0, 3, 60)
        assert clusters.adjusted_rand(a, b) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    assert clusters.adjusted_rand(a, a) == 1
    assert clusters.adjusted_rand(np.zeros(4), np.zeros(4)) == 1


def test_resolution_search_lands_on_k():
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1.5, (8, 6))[rng.integers(0, 8, 600)] + rng.normal(size=(600, 6))
    graph = graphs.fuzzy_graph(*graphs.feature_neighbours(values, 14))
    for k in (3, 5, 8, 12):
        labels, resolution, runs = clusters.bisect_resolution(lambda r: clusters.louvain(graph, resolution=r), k)
        assert runs <= 20
        assert abs(len(np.unique(labels)) - k) <= 1
        np.testing.assert_array_equal(labels, clusters.louvain(graph, resolution=resolution))


def test_fuzzy_weights_sum_to_the_logarithm_of_the_neighbours():
    values = np.random.default_rng(0).normal(size=(100, 4))
    index, distance = graphs.feature_neighbours(values, 9)
    d = np.sort(cdist(values, values), axis=1)[:, 1:10]
    np.testing.assert_allclose(distance, d, atol=1e-6)
    weights = graphs._memberships(distance, np.log2(10.0))
    np.testing.assert_allclose(weights.sum(axis=1), np.log2(10), atol=1e-4)
    np.testing.assert_allclose(weights[:, 0], 1)
    graph = graphs.fuzzy_graph(index, distance)
    assert abs(graph - graph.T).max() == 0
    directed = np.zeros((100, 100))
    np.put_along_axis(directed, index, weights, axis=1)
    np.testing.assert_allclose(
        graph.toarray(), directed + directed.T - directed * directed.T, atol=0.5 / graphs._LEVELS + 1e-12
    )


def test_patch_colour_is_spagcns_mean_with_axes_the_right_way_round():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (60, 90, 3)).astype(np.uint8)
    points = np.array([[10.0, 50.0], [88.6, 2.0], [45.2, 30.4], [0.0, 0.0]])
    found = patch_colour(image, points, size_px=9)
    for (x, y), colour in zip(np.rint(points).astype(int), found, strict=True):
        window = image[max(0, y - 4) : min(60, y + 5), max(0, x - 4) : min(90, x + 5)]
        np.testing.assert_allclose(colour, window.reshape(-1, 3).mean(axis=0))
    with pytest.raises(ScaleError, match="1 of 1 windows lie outside"):
        patch_colour(image, [[50.0, 80.0]], size_px=9)
