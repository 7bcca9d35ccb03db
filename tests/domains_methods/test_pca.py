"""The three routes of the principal components give the same answer as a dense decomposition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stainseq.core import pca as module
from stainseq.core.pca import moments, pca
from stainseq.errors import InputError


def dense(X, d, standardise):
    Z = X - X.mean(axis=0)
    if standardise:
        s = X.std(axis=0, ddof=1)
        Z = Z / np.where(s > 0, s, 1)
    u, s, vt = np.linalg.svd(Z, full_matrices=False)
    sign = np.sign(vt[np.arange(d), np.abs(vt[:d]).argmax(axis=1)])
    return u[:, :d] * s[:d] * sign, s[:d] ** 2 / (len(X) - 1)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("kind", ["dense", "csr"])
@pytest.mark.parametrize("route", ["gram", "lanczos"])
@pytest.mark.parametrize("shape", [(120, 40), (40, 120)])
def test_equals_the_dense_decomposition(monkeypatch, shape, route, kind, standardise):
    if route == "lanczos":
        monkeypatch.setattr(module, "_GRAM", 1)
    rng = np.random.default_rng(0)
    X = rng.poisson(np.exp(rng.normal(-0.5, 1, shape[1]) + rng.normal(0, 1, (shape[0], 1)))).astype(float)
    X[:, 3] = 0
    found = pca(X if kind == "dense" else sparse.csr_array(X), 6, standardise=standardise)
    scores, variance = dense(X, 6, standardise)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-9)
    np.testing.assert_allclose(found.scores, scores, atol=1e-8)
    np.testing.assert_allclose(found.loadings @ found.loadings.T, np.eye(6), atol=1e-9)


def test_blocks_of_rows_do_not_matter(monkeypatch):
    X = np.random.default_rng(1).normal(5, 2, (100, 7))
    whole = moments(X)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 9)
    for a, b in zip(whole, moments(X), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    np.testing.assert_allclose(whole[1], X.var(axis=0, ddof=1), rtol=1e-12)


def test_variance_far_from_zero_is_accurate():
    X = np.random.default_rng(2).normal(1e8, 1.0, (1000, 3))
    np.testing.assert_allclose(moments(X)[1], X.var(axis=0, ddof=1), rtol=1e-6)


def test_rank_deficient_data_give_fewer_components():
    X = np.outer(np.arange(10.0), [1.0, 2.0, 3.0])
    assert pca(X, 3).scores.shape == (10, 1)


def test_constant_data_are_refused():
    with pytest.raises(InputError, match="no gene varies"):
        pca(np.ones((5, 3)), 2)
    with pytest.raises(InputError, match="at least two rows"):
        pca(np.ones((1, 3)), 2)
