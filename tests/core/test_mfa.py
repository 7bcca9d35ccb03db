"""Fusion of tables against an explicit singular value decomposition and scanpy's scaling."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from stainseq.core import mfa
from stainseq.errors import InputError


@pytest.fixture
def blocks():
    """Two sparse tables that share three axes; one far value and one constant column."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((200, 3))
    out = []
    for g, scale in ((30, 1.0), (12, 5.0)):
        X = np.log1p(rng.poisson(np.exp(shared @ rng.standard_normal((3, g)) * 0.6 - 0.5))) * scale
        X[:, 2] = 0
        out.append(X)
    out[0][5, 7] = 400
    return out


def by_svd(blocks, d):
    parts = []
    for X in blocks:
        z = X - X.mean(axis=0)
        parts.append(z / np.linalg.svd(z, compute_uv=False)[0])
    u, s, _ = np.linalg.svd(np.hstack(parts), full_matrices=False)
    return u[:, :d] * s[:d]


def test_scaled_is_scanpys(blocks):
    """Up to the column means, which are taken off afterwards; far values cut at ten standard deviations."""
    scanpy = pytest.importorskip("scanpy")
    for X in blocks:
        want = scanpy.pp.scale(X.copy(), max_value=10)
        for given in (X, sp.csr_matrix(X)):
            got = mfa.scaled(given)
            assert sp.issparse(got) == sp.issparse(given)
            got = got.toarray() if sp.issparse(got) else got
            assert np.allclose(got - got.mean(0), want - want.mean(0), atol=1e-9)
    assert mfa.scaled(blocks[0], max_value=None)[5, 7] > mfa.scaled(blocks[0])[5, 7]


def test_exact(blocks):
    for given in (blocks, [sp.csr_matrix(b) for b in blocks]):
        found = mfa.mfa([mfa.scaled(b) for b in given], 5)
        want = by_svd([mfa.scaled(b) for b in blocks], 5)
        assert np.allclose(np.abs(found.scores), np.abs(want), atol=1e-9)
        assert np.allclose(found.contributions.sum(axis=0), 1)
        # Each block brings a first axis of length one: none outweighs the other by its size or scale.
        assert (found.contributions[:, :3] > 0.2).all()


def test_late_fusion_spans_the_same(blocks):
    """With as many components as the tables share, both ways see the same axes."""
    tables = [mfa.scaled(b) for b in blocks]
    late, exact = mfa.late_fusion(tables, 3, per_block=3), mfa.mfa(tables, 3)
    q = [np.linalg.qr(f.scores)[0] for f in (late, exact)]
    assert np.linalg.svd(q[0].T @ q[1], compute_uv=False).min() > 0.9
    one = mfa.late_fusion(tables, 4, per_block=[3, 2])
    assert one.scores.shape == (200, 4)
    assert np.allclose(one.variance, one.scores.var(axis=0, ddof=1))


def test_refusals(blocks):
    with pytest.raises(InputError, match="rows"):
        mfa.mfa([blocks[0], blocks[1][:-1]], 2)
    with pytest.raises(InputError, match="components"):
        mfa.late_fusion(blocks, 2, per_block=[3])
    with pytest.raises(InputError, match="varies"):
        mfa.mfa([blocks[0], np.zeros((200, 3))], 2)
