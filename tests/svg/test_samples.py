"""Several samples: each by itself, and together, by every method."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import stainseq as ss
from stainseq import registry
from stainseq.core.autocorr import benjamini_hochberg
from stainseq.core.chi2mix import log_fisher_combination
from stainseq.errors import InputError, MissingError

METHODS = registry.names("svg")


def slices(n_genes: int = 40, planted: int = 6, sizes: tuple[int, ...] = (90, 70, 110)) -> anndata.AnnData:
    """Samples in frames of their own, the first genes with a gradient in each."""
    rng = np.random.default_rng(0)
    xy, counts, names = [], [], []
    for k, n in enumerate(sizes):
        at = rng.uniform(0, 1000, (n, 2)) + 5000 * k
        mean = np.exp(rng.normal(1, 0.7, n_genes))[None] * np.exp(rng.normal(0, 0.3, (n, 1)))
        mean[:, :planted] *= np.exp(1.0 * np.sin((at[:, :1] - 5000 * k) / 180))
        xy.append(at)
        counts.append(rng.poisson(rng.gamma(3, mean / 3)))
        names += [f"s{k}"] * n
    order = rng.permutation(len(names))
    table = anndata.AnnData(sparse.csr_matrix(np.vstack(counts)[order].astype(np.float32)))
    table.obs["sample"] = pd.Categorical(np.array(names)[order])
    table.obsm["spatial"] = np.vstack(xy)[order]
    table.var_names = [f"g{k}" for k in range(n_genes)]
    return table


@pytest.mark.parametrize("method", METHODS)
def test_all_samples_are_tested_apart_and_combined(method):
    table = slices()
    counts = table.X.toarray()
    counts[np.flatnonzero(table.obs["sample"] == "s1"), 39] = 0
    table.X = sparse.csr_matrix(counts)
    found = ss.tl.svg(table, method=method, n_svg=10)
    apart = {s: ss.tl.svg(table[table.obs["sample"] == s].copy(), method=method).set_index("gene") for s in
             ("s0", "s1", "s2")}  # fmt: skip
    log_p = np.column_stack([t["log10_pval"].where(t["rank"].notna())[table.var_names] for t in apart.values()])
    log_p *= np.log(10)
    want = pd.Series([stats.combine_pvalues(np.exp(row[~np.isnan(row)]))[1] for row in log_p], table.var_names)
    np.testing.assert_allclose(found.set_index("gene")["pval"][table.var_names], want, rtol=1e-8)
    assert {f"g{k}" for k in range(6)} <= set(found["gene"][:8])
    np.testing.assert_allclose(found["padj"], benjamini_hochberg(np.log(found["pval"])), rtol=1e-9)
    row = found.set_index("gene").loc["g39"]
    assert row["n_samples"] == 2
    assert found["n_samples"].max() == 3
    kept = table.uns[method]["samples"]
    assert list(kept["sample"].cat.categories) == ["s0", "s1", "s2"]
    for sample, alone in apart.items():
        mine = kept[kept["sample"] == sample].set_index("gene")
        np.testing.assert_allclose(mine["pval"].astype(float), alone["pval"][mine.index], rtol=1e-9)
        np.testing.assert_array_equal(mine["rank"], alone["rank"][mine.index])


def test_one_two_or_all_by_name(tmp_path):
    table = slices()
    everything, pair = ss.tl.svg(table), ss.tl.svg(table, sample=["s0", "s2"])
    assert everything["n_samples"].max() == 3
    assert pair["n_samples"].max() == 2
    assert table.uns["moran"]["params"]["sample"] == ["s0", "s2"]
    assert "n_samples" not in ss.tl.svg(table, sample=["s1"])
    path, out = tmp_path / "all.h5ad", tmp_path / "out.h5ad"
    table.uns.clear()
    table.write_h5ad(path)
    again = ss.tl.svg(path, sample=["s0", "s2"], method="spatialde2", out=out)
    back = anndata.read_h5ad(out)
    kept = back.uns["spatialde2"]
    assert set(kept["kernels"]["sample"]) == {"s0", "s2"}
    assert len(kept["kernels"]) == 2 * 40 * 10
    assert list(kept["table"]["gene"]) == list(again["gene"])
    assert back.var.loc[again["gene"][0], "spatialde2.rank"] == 1.0


def test_a_sample_that_cannot_be_tested_is_named():
    table = slices(sizes=(60, 2))
    with pytest.raises(InputError, match="sample 's1'"):
        ss.tl.svg(table)
    assert ss.tl.svg(table, sample="s0")["svg"].any()
    with pytest.raises(MissingError, match="one of: s0, s1"):
        ss.tl.svg(table, sample=["s0", "s9"])


def test_rows_of_samples_in_any_order_give_the_same():
    table = slices()
    shuffled = table[np.random.default_rng(1).permutation(table.n_obs)].copy()
    for method in METHODS:
        a, b = (ss.tl.svg(t, method=method).set_index("gene") for t in (table, shuffled))
        np.testing.assert_allclose(b["log10_pval"][a.index], a["log10_pval"], rtol=1e-10, atol=1e-10)


def test_size_factors_follow_their_rows():
    table = slices()
    table.obs["depth"] = np.random.default_rng(2).uniform(0.5, 2, table.n_obs)
    by_name = ss.tl.svg(table, method="spatialde2", sizefactors="depth")
    by_value = ss.tl.svg(table, method="spatialde2", sizefactors=table.obs["depth"].to_numpy())
    pd.testing.assert_frame_equal(by_name, by_value)
    one = table[table.obs["sample"] == "s1"].copy()
    few = ss.tl.svg(one, method="spatialde2", sizefactors=one.obs["depth"])
    named = ss.tl.svg(table, method="spatialde2", sample="s1", sizefactors="depth")
    np.testing.assert_array_equal(few["pval"], named["pval"])
    with pytest.raises(MissingError, match="no column 'nothing' in obs"):
        ss.tl.svg(table, method="spatialde2", sizefactors="nothing")
    with pytest.raises(InputError, match="3 size factors"):
        ss.tl.svg(table, method="spatialde2", sizefactors=[1, 2, 3])


def test_fisher_combination():
    rng = np.random.default_rng(3)
    p = rng.uniform(size=(50, 4))
    p[7, 1:3] = np.nan
    p[8] = np.nan
    p[9, :3] = np.nan
    got = np.exp(log_fisher_combination(np.log(p)))
    want = [stats.combine_pvalues(row[~np.isnan(row)])[1] if (~np.isnan(row)).any() else np.nan for row in p]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert got[9] == pytest.approx(p[9, 3], rel=1e-14)
    # Far below the smallest float, -2 sum log p = 8000 with six degrees of freedom.
    deep = log_fisher_combination(np.array([[-1000.0, -2000.0, -1000.0]]))
    assert deep[0] == pytest.approx(-4000 + np.log(1 + 4000 + 4000**2 / 2), rel=1e-12)


@pytest.mark.parametrize("method", ["moran", "sparkx", "spatialde2"])
def test_combined_p_values_of_null_genes_are_uniform(method):
    """Three samples of different depth and size; 3,000 genes that know nothing of place."""
    rng = np.random.default_rng(4)
    sizes = (300, 200, 400)
    depth = np.concatenate([np.exp(rng.normal(k - 1, 0.4, n)) for k, n in enumerate(sizes)])
    mean = np.exp(rng.normal(-0.3, 1.2, 3000))
    table = anndata.AnnData(sparse.csr_matrix(rng.poisson(rng.gamma(2, depth[:, None] * mean / 2)).astype(np.float32)))
    table.obs["sample"] = np.repeat(["a", "b", "c"], sizes)
    table.obsm["spatial"] = rng.uniform(0, 1000, (sum(sizes), 2))
    p = ss.tl.svg(table, method=method, min_spots=10)["pval"].dropna().to_numpy()
    for level in (0.05, 0.01, 0.001):
        low, high = stats.binom.interval(0.999, len(p), level)
        assert low <= (p < level).sum() <= high, (level, (p < level).mean())
    # The Cauchy combination over kernels is exact in the tail only: of sparkx the middle is off by some percent.
    assert abs(np.median(p) - 0.5) < 0.06
