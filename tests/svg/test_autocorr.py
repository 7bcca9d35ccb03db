"""Moran and Geary against the written formula, permutations and published values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from stainseq.core import autocorr, neighbors
from stainseq.errors import InputError


def _weights(xy, k=6):
    return autocorr.row_standardised(neighbors.knn_graph(xy, k=k))


def _moran_formula(y, w):
    z = y - y.mean()
    return len(y) / w.sum() * sum(w[i, j] * z[i] * z[j] for i in range(len(y)) for j in range(len(y))) / (z**2).sum()


def _geary_formula(y, w):
    z = y - y.mean()
    squares = sum(w[i, j] * (y[i] - y[j]) ** 2 for i in range(len(y)) for j in range(len(y)))
    return (len(y) - 1) / (2 * w.sum()) * squares / (z**2).sum()


@pytest.fixture
def small():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 100, (30, 2))
    values = rng.poisson(0.8, (30, 7)).astype(float) * rng.uniform(0.5, 2, (30, 1))
    weights = _weights(xy, 4)
    return values, weights


@pytest.mark.parametrize(("test", "formula"), [(autocorr.moran, _moran_formula), (autocorr.geary, _geary_formula)])
@pytest.mark.parametrize("form", [np.asarray, sparse.csc_array, sparse.csr_matrix])
def test_statistic_is_the_formula(small, test, formula, form):
    values, weights = small
    dense = weights.toarray()
    want = [formula(values[:, g], dense) for g in range(values.shape[1])]
    np.testing.assert_allclose(test(form(values), weights).statistic, want, rtol=1e-10)


@pytest.mark.parametrize("test", [autocorr.moran, autocorr.geary])
def test_moments_are_those_of_all_permutations(test):
    """All 5,040 orders of seven values: the mean and variance are exact, not approximate."""
    from itertools import permutations

    rng = np.random.default_rng(1)
    y = np.array([0.0, 0.0, 0.0, 1.0, 2.5, 4.0, 9.0])
    w = sparse.csr_array(rng.uniform(0, 1, (7, 7)) * (1 - np.eye(7)) * (rng.random((7, 7)) < 0.6))
    orders = y[np.array(list(permutations(range(7))))].T
    every = test(orders, w).statistic
    found = test(y[:, None], w)
    np.testing.assert_allclose(every.mean(), found.expected, rtol=1e-9)
    np.testing.assert_allclose(every.var(), found.variance[0], rtol=1e-9)
    if test is autocorr.moran:
        skewness = ((every - every.mean()) ** 3).mean() / every.std() ** 3
        np.testing.assert_allclose(skewness, found.skewness[0], rtol=1e-7)


@pytest.mark.parametrize("test", [autocorr.moran, autocorr.geary])
def test_p_values_agree_with_random_permutations(test):
    rng = np.random.default_rng(2)
    xy = rng.uniform(0, 1, (150, 2))
    weights = _weights(xy)
    y = 0.25 * np.sin(5 * xy[:, 0]) + rng.normal(0, 1, 150)
    found = test(y[:, None], weights)
    orders = np.stack([rng.permutation(y) for _ in range(4000)], 1)
    every = test(orders, weights).statistic
    sign = 1 if test is autocorr.moran else -1
    share = (sign * every >= sign * found.statistic[0]).mean()
    assert abs(share - np.exp(found.log_p[0])) < 0.01


def test_null_p_values_are_uniform():
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 1, (400, 2))
    weights = _weights(xy)
    p = np.exp(autocorr.moran(rng.normal(0, 1, (400, 3000)), weights).log_p)
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert stats.binomtest(int((p < 0.05).sum()), len(p), 0.05).pvalue > 1e-3


@pytest.mark.parametrize("mean", [0.01, 0.05, 0.5])
def test_tails_of_sparse_null_genes(mean):
    """From the normal distribution 1.35 % of the sparsest genes would have p below .001."""
    rng = np.random.default_rng(4)
    x, y = np.meshgrid(np.arange(38.0), np.arange(38.0))
    weights = _weights(np.c_[(x + 0.5 * (y % 2)).ravel(), (y * np.sqrt(3) / 2).ravel()])
    counts = rng.poisson(mean * rng.gamma(2, 0.5, (38 * 38, 6000))).astype(float)
    found = autocorr.moran(counts, weights)
    p = np.exp(found.log_p[np.isfinite(found.z)])
    for level, most in ((0.05, 0.06), (0.01, 0.014), (0.001, 0.0025)):
        assert (p < level).mean() < most


def test_upper_tail_is_the_gamma_distribution():
    z = np.array([-1.0, 0.0, 1.5, 4.0, 12.0])
    for skew in (0.05, 0.5, 2.0, 6.0):
        got = autocorr.log_upper_tail(z, np.full(5, skew))
        np.testing.assert_allclose(got, stats.pearson3.logsf(z, skew), rtol=1e-6)
    np.testing.assert_allclose(autocorr.log_upper_tail(z, np.zeros(5)), stats.norm.logsf(z))


def test_far_tails_are_continuous_and_finite():
    z = np.linspace(1, 2000, 4000)
    for skew in (0.01, 0.3, 3.0):
        log_p = autocorr.log_upper_tail(z, np.full(len(z), skew))
        assert np.isfinite(log_p).all()
        steps = np.diff(log_p)
        assert (steps < 0).all()
        assert np.abs(np.diff(steps)).max() < 2.5


def test_strong_genes_do_not_tie():
    x, y = np.meshgrid(np.arange(80.0), np.arange(80.0))
    xy = np.c_[x.ravel(), y.ravel()]
    weights = _weights(xy)
    rng = np.random.default_rng(0)
    values = np.stack([xy[:, 0] + s * rng.normal(0, 1, len(xy)) for s in (1, 2, 4)], 1)
    log_p = autocorr.moran(values, weights).log_p
    assert (np.diff(log_p) > 0).all()
    assert log_p[0] < -750  # exp would be 0 for all three


def test_flat_gene_and_large_mean():
    rng = np.random.default_rng(4)
    xy = rng.uniform(0, 1, (50, 2))
    weights = _weights(xy)
    y = rng.normal(0, 1, 50)
    found = autocorr.moran(np.stack([y, y + 1e6, np.zeros(50), np.full(50, 0.1)], 1), weights)
    np.testing.assert_allclose(found.statistic[1], found.statistic[0], rtol=1e-6)
    assert np.isnan(found.statistic[2:]).all()
    assert (found.log_p[2:] == 0).all()


@pytest.mark.parametrize("form", [np.asarray, sparse.csc_array])
def test_nan_is_refused(small, form):
    values, weights = small
    values[3, 2] = np.nan
    with pytest.raises(InputError, match=r"not finite, first in gene 2"):
        autocorr.moran(form(values), weights)


def test_too_few_places():
    with pytest.raises(InputError, match="at least 4"):
        autocorr.moran(np.ones((3, 1)), sparse.csr_array(np.ones((3, 3))))


def test_benjamini_hochberg_is_scipys_and_passes_nan_by():
    rng = np.random.default_rng(5)
    p = rng.uniform(0, 1, 200) ** 3
    got = autocorr.benjamini_hochberg(np.log(np.r_[p, np.nan]))
    np.testing.assert_allclose(got[:-1], stats.false_discovery_control(p), rtol=1e-12)
    assert np.isnan(got[-1])


def test_nothing_dense_at_many_cells():
    """200,000 cells and 50 sparse genes; a dense n x n would need 320 GB."""
    rng = np.random.default_rng(6)
    n = 200_000
    xy = rng.uniform(0, 1, (n, 2))
    weights = _weights(xy)
    counts = sparse.random_array((n, 50), density=0.03, format="csc", rng=rng)
    assert np.isfinite(autocorr.moran(counts, weights).z).all()
