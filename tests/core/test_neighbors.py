"""Neighbour graphs against all pairwise distances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from stainseq.core import neighbors
from stainseq.errors import InputError


def _distances(xy, slides):
    d = cdist(xy, xy)
    d[slides[:, None] != slides[None]] = np.inf
    np.fill_diagonal(d, np.inf)
    return d


@pytest.mark.parametrize("k", [1, 4, 6, 20])
@pytest.mark.parametrize("layout", ["random", "square", "same place"])
def test_knn_is_brute_force_with_ties(k, layout):
    rng = np.random.default_rng(0)
    if layout == "random":
        xy = rng.uniform(0, 100, (90, 2))
    elif layout == "square":
        xy = np.stack(np.meshgrid(np.arange(9.0), np.arange(10.0)), -1).reshape(-1, 2) * 200
    else:
        xy = np.repeat(rng.uniform(0, 100, (4, 2)), [40, 30, 15, 5], axis=0)
    slides = rng.integers(0, 2, 90)
    d = _distances(xy, slides)
    kth = np.sort(d, axis=1)[:, k - 1]
    kth = np.where(np.isfinite(kth), kth, np.where(np.isfinite(d), d, -1).max(1))
    expected = d <= kth[:, None] * (1 + 1e-6)
    np.testing.assert_array_equal(neighbors.knn_graph(xy, k=k, slides=slides).toarray() > 0, expected)


def test_radius_is_brute_force():
    rng = np.random.default_rng(1)
    xy, slides = rng.integers(0, 12, (80, 2)) * 100.0, rng.integers(0, 3, 80)
    expected = _distances(xy, slides) <= 300
    graph = neighbors.radius_graph(xy, radius_um=300, slides=slides)
    np.testing.assert_array_equal(graph.toarray() > 0, expected)
    assert graph.dtype == np.float32


def test_mean_and_lonely_rows():
    rng = np.random.default_rng(2)
    xy = np.vstack([rng.uniform(0, 10, (20, 2)), [[1000, 1000]]])
    graph = neighbors.radius_graph(xy, radius_um=4)
    values = rng.standard_normal((21, 3)).astype(np.float32)
    dense = graph.toarray()
    expected = (dense @ values) / np.maximum(dense.sum(1, keepdims=True), 1)
    lonely = dense.sum(1) == 0
    assert lonely[-1]
    np.testing.assert_allclose(neighbors.neighbour_mean(graph, values, empty="zero"), expected, rtol=1e-5, atol=1e-6)
    expected[lonely] = values[lonely]
    np.testing.assert_allclose(neighbors.neighbour_mean(graph, values), expected, rtol=1e-5, atol=1e-6)


def test_one_row_and_bad_options():
    one = np.zeros((1, 2))
    assert neighbors.knn_graph(one, k=3).nnz == 0
    assert neighbors.radius_graph(one, radius_um=3).nnz == 0
    with pytest.raises(InputError, match="at least one"):
        neighbors.knn_graph(one, k=0)
    with pytest.raises(InputError, match="radius_um"):
        neighbors.radius_graph(one, radius_um=0)


def test_two_hundred_thousand_rows_stay_sparse():
    xy = np.random.default_rng(0).uniform(0, 1e5, (200_000, 2))
    graph = neighbors.knn_graph(xy, k=6)
    assert graph.nnz == 1_200_000
