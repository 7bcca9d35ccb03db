"""Normalisation against its formula, gene choice against scanpy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from stainseq.core import genes, normalize
from stainseq.errors import InputError


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.5, 2, 300) * rng.lognormal(0, 0.6, (240, 1))
    return rng.negative_binomial(2, 2 / (2 + rate * (1 + (rng.random((240, 300)) > 0.9)))).astype(np.int64)


def test_log1p_cp10k_is_its_formula_dense_and_sparse(counts):
    library = counts.sum(1) + 7
    expected = np.log1p(counts / library[:, None] * 1e4)
    np.testing.assert_allclose(normalize.log1p_cp10k(counts, library=library), expected, rtol=1e-6)
    sp = normalize.log1p_cp10k(sparse.csc_array(counts), library=library)
    assert sp.format == "csr"
    assert sp.dtype == np.float32
    np.testing.assert_allclose(sp.toarray(), expected, rtol=1e-6)
    np.testing.assert_allclose(normalize.log1p_raw(sparse.csr_array(counts)).toarray(), np.log1p(counts), rtol=1e-6)
    np.testing.assert_allclose(normalize.log1p_raw(counts), np.log1p(counts), rtol=1e-6)


def test_an_empty_row_is_zero():
    out = normalize.log1p_cp10k(np.array([[0, 0], [1, 3]]))
    np.testing.assert_allclose(out, np.log1p([[0, 0], [2500, 7500]]), rtol=1e-6)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_selecting_genes_after_normalising_equals_selecting_before(n, g, seed):
    c = np.random.default_rng(seed).integers(0, 5, (n, g))
    whole = normalize.log1p_cp10k(c)
    half = normalize.log1p_cp10k(c[:, ::2], library=c.sum(1))
    np.testing.assert_array_equal(whole[:, ::2], half)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.array([[1.0, np.nan]]), "NaN"),
        (np.array([[1, -1]]), "negative"),
        (np.array([1, 2]), "dimensions"),
        (np.array([["a", "b"]]), "type"),
        (sparse.csr_array(np.array([[1.0, -2.0]])), "negative"),
    ],
)
def test_bad_counts_are_named(bad, words):
    with pytest.raises(InputError, match=words):
        normalize.log1p_cp10k(bad)


def test_library_smaller_than_the_row_is_refused(counts):
    with pytest.raises(InputError, match="before genes are chosen"):
        normalize.log1p_cp10k(counts, library=np.ones(len(counts)))
    with pytest.raises(InputError, match="library sizes for"):
        normalize.log1p_cp10k(counts, library=np.ones(3))


def _scanpy(counts, batches, n_top, clip):
    pytest.importorskip("scanpy", reason="scanpy is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anndata as ad
        import pandas as pd
        import scanpy as sc

        obs = pd.DataFrame({"b": pd.Categorical(batches)}, index=[str(i) for i in range(len(counts))])
        adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs)
        frame = sc.experimental.pp.highly_variable_genes(
            adata, n_top_genes=n_top, batch_key="b", clip=clip, inplace=False
        )
    return frame


@pytest.mark.parametrize("n_top", [10, 50])
def test_highly_variable_equals_scanpy(counts, n_top):
    batches = np.repeat(["a", "b", "c"], 80)
    frame = _scanpy(counts, batches, n_top, None)
    ours = genes.highly_variable(counts, n_top=n_top, batches=batches, min_fraction=0)
    means = np.mean([genes.residual_variances(counts[batches == b]) for b in "abc"], axis=0)
    np.testing.assert_allclose(means, frame["residual_variances"].to_numpy(), rtol=1e-6)
    chosen = set(np.flatnonzero(frame["highly_variable"].to_numpy()))
    # Where they differ, the genes are tied in scanpy's own two criteria.
    key = frame[["highly_variable_nbatches", "highly_variable_rank"]].fillna(1e9).to_numpy()
    for a, b in zip(sorted(chosen - set(ours)), sorted(set(ours) - chosen), strict=True):
        np.testing.assert_array_equal(key[a], key[b])
    assert len(chosen & set(ours)) >= n_top - 1


def test_each_batch_is_clipped_at_its_own_size(counts):
    small, large = counts[:40], counts[40:]
    np.testing.assert_allclose(genes.residual_variances(small), genes.residual_variances(small, clip=np.sqrt(40)))
    both = genes.highly_variable(counts, n_top=20, batches=np.r_[np.zeros(40), np.ones(200)], min_fraction=0)
    swapped = genes.highly_variable(
        np.vstack([large, small]), n_top=20, batches=np.r_[np.zeros(200), np.ones(40)], min_fraction=0
    )
    np.testing.assert_array_equal(both, swapped)


def test_sparse_and_blocks_change_nothing(counts, monkeypatch):
    whole = genes.residual_variances(counts)
    monkeypatch.setattr(genes, "_BLOCK_VALUES", 1000)
    np.testing.assert_allclose(genes.residual_variances(sparse.csr_array(counts)), whole, rtol=1e-12)


def test_min_fraction_holds_in_every_batch(counts):
    batches = np.repeat([0, 1], 120)
    picked = genes.highly_variable(counts, n_top=300, batches=batches, min_fraction=0.5)
    for b in (0, 1):
        assert ((counts[batches == b] > 0).mean(0)[picked] >= 0.5).all()
    with pytest.raises(InputError, match="lower min_fraction"):
        genes.highly_variable(np.zeros((4, 3), int), n_top=2)


def test_hest_rule_equals_its_scanpy_recipe(counts):
    pytest.importorskip("scanpy", reason="scanpy is not installed")
    names = np.array([f"g{(i * 7919) % 1000:03d}_{i}" for i in range(300)])
    names[5], names[9] = "BLANK_1", "NegControl_2"
    slides = [counts[:100], counts[100:]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anndata as ad
        import scanpy as sc

        common = None
        for c in slides:
            a = ad.AnnData(c.astype(np.float32))
            a.var_names = names
            sc.pp.filter_genes(a, min_cells=np.ceil(0.1 * len(c)))
            common = np.array(a.var_names) if common is None else np.intersect1d(common, a.var_names)
        common = [g for g in common if "BLANK" not in g and "Control" not in g]
        where = {g: i for i, g in enumerate(names)}
        stacked = ad.AnnData(np.vstack([c[:, [where[g] for g in common]] for c in slides]).astype(np.float32))
        stacked.var_names = common
        sc.pp.log1p(stacked)
        sc.pp.highly_variable_genes(stacked, n_top_genes=50)
        expected = list(stacked.var_names[stacked.var["highly_variable"]][:50])
    assert list(names[genes.hest_genes(slides, genes=names, n_top=50)]) == expected
