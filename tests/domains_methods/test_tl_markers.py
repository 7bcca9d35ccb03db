"""Markers and metagenes on tables and files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import stainseq as ss
from stainseq.errors import InputError, MissingError
from stainseq.tl._markers import COLUMNS

anndata = pytest.importorskip("anndata")


@pytest.fixture
def adata(planted):
    rows = slice(None, None, 2)
    counts = planted.counts[rows, :400]
    table = anndata.AnnData(counts.copy(), obsm={"spatial": planted.coordinates[rows]})
    table.obs_names = [f"s{i}" for i in range(table.n_obs)]
    table.var_names = [f"g{j}" for j in range(table.n_vars)]
    table.obs["domain"] = pd.Categorical([f"L2/{k}" if k == 6 else str(k) for k in planted.layer[rows]])
    return table


def test_markers_pass_their_filters_and_are_their_genes_own(adata):
    found = ss.tl.markers(adata, domain_key="domain", min_in_group_fraction=0.5, num_max=20)
    assert list(found.columns) == list(COLUMNS)
    assert len(found) > 10
    assert (found["q"] < 0.05).all()
    assert (found["pct.in"] > 0.5).all()
    assert (found["fc"] > 1.5).all()
    assert (found["ratio"] > 1).all()
    assert found.attrs["failed"] == {}
    X = adata.X.toarray()
    X = np.log1p(X / X.sum(axis=1, keepdims=True) * 1e4)
    row = found.iloc[0]
    inside = (adata.obs["domain"] == row["domain"]).to_numpy()
    around = adata.obs["domain"].isin(row["neighbours"].split(",")).to_numpy()
    gene = X[:, adata.var_names.get_loc(row["gene"])]
    assert row["fc"] == pytest.approx(np.exp(gene[inside].mean() - gene[around].mean()), rel=1e-4)
    assert row["pct.in"] == pytest.approx((gene[inside] > 0).mean())
    assert row["pct.out"] == pytest.approx((gene[around] > 0).mean())
    assert row["log10.q"] == pytest.approx(-np.log10(row["q"]))
    by_domain = [frame["fc"].to_numpy() for _, frame in found.groupby("domain", sort=False)]
    assert all((np.diff(fc) <= 0).all() for fc in by_domain)


def test_a_domain_that_fails_does_not_fail_the_rest(adata):
    lone = adata.obs["domain"].astype(str).to_numpy()
    lone[0] = "alone"
    adata.obs["lone"] = lone
    found = ss.tl.markers(adata, domain_key="lone", min_in_group_fraction=0.5, num_min=11, num_max=20, ratio=0.2)
    assert "alone" in found.attrs["failed"] or "alone" not in set(found["domain"])
    assert len(set(found["domain"])) >= 5
    with pytest.raises(InputError, match="no domain could be compared: no radius"):
        ss.tl.markers(adata, domain_key="domain", num_min=11.9999, num_max=12.0, max_run=3)


def test_against_all_others(adata):
    found = ss.tl.markers(adata, domain_key="domain", domains=["3"], against="rest", min_in_group_fraction=0.3)
    assert set(found["domain"]) == {"3"}
    assert found["neighbours"].iloc[0] == "0,1,2,4,5,L2/6"


def test_get_markers_filters_what_is_stored(adata, tmp_path):
    ss.tl.markers(adata, domain_key="domain", min_in_group_fraction=0.4, num_max=20, out=tmp_path / "m.h5ad")
    everything = ss.tl.get_markers(tmp_path / "m.h5ad")
    assert everything.equals(ss.tl.get_markers(adata))
    few = ss.tl.get_markers(adata, domain="2", max_q=1e-3, min_fold_change=1.6, min_pct=0.5, max_pct_reference=0.95)
    assert 0 < len(few) < len(everything)
    assert (few["domain"] == "2").all()
    assert (few["q"] <= 1e-3).all()
    assert (few["pct.out"] <= 0.95).all()
    with pytest.raises(MissingError, match="no domain '77'"):
        ss.tl.get_markers(adata, domain="77")
    with pytest.raises(MissingError, match="no markers under"):
        ss.tl.get_markers(adata, key="nothing")


def test_metagene_is_sharper_than_its_start_and_is_stored(adata, tmp_path):
    ss.tl.markers(adata, domain_key="domain", min_in_group_fraction=0.4, num_max=20)
    first = ss.tl.get_markers(adata, domain="2")["gene"].iloc[0]
    found = ss.tl.metagene(adata, target="2", domain_key="domain", max_iter=4, out=tmp_path / "m.h5ad")
    assert found["gene"].iloc[0] == first
    assert found["sign"].tolist()[0] == 1
    assert len(found) >= 3
    stored = anndata.read_h5ad(tmp_path / "m.h5ad")
    assert list(stored.uns["metagene.2"]["genes"]) == found["gene"].tolist()
    assert stored.uns["metagene.2"]["formula"].startswith(f"{first} + ")
    inside = (adata.obs["domain"] == "2").to_numpy()
    X = adata.X.toarray()
    X = np.log1p(X / X.sum(axis=1, keepdims=True) * 1e4)
    total = sum(s * X[:, adata.var_names.get_loc(g)] for g, s in zip(found["gene"], found["sign"], strict=True))
    np.testing.assert_allclose(stored.obs["metagene.2"], total - total.min(), atol=1e-4)

    def overlap(values):
        return (values[~inside] > values[inside].mean()).mean()

    assert overlap(stored.obs["metagene.2"].to_numpy()) < overlap(X[:, adata.var_names.get_loc(first)])


def test_names_that_files_do_not_allow(adata, tmp_path):
    ss.tl.metagene(adata, target="L2/6", domain_key="domain", out=tmp_path / "m.h5ad")
    assert "metagene.L2_6" in anndata.read_h5ad(tmp_path / "m.h5ad").obs


def test_refusals(adata):
    with pytest.raises(MissingError, match="no column 'other'"):
        ss.tl.markers(adata, domain_key="other")
    with pytest.raises(MissingError, match="no domain '12'"):
        ss.tl.markers(adata, domain_key="domain", domains=["12"])
    with pytest.raises(MissingError, match="no domain '12'"):
        ss.tl.metagene(adata, target="12", domain_key="domain")
    with pytest.raises(MissingError, match="no gene 'XYZ'"):
        ss.tl.metagene(adata, target="2", domain_key="domain", start_gene="XYZ")
    adata.obs["one"] = "a"
    with pytest.raises(InputError, match="one domain"):
        ss.tl.markers(adata, domain_key="one")
    adata.obs.loc["s3", "domain"] = None
    with pytest.raises(InputError, match="1 rows have no domain"):
        ss.tl.markers(adata, domain_key="domain")


def test_kriging_and_deepst_get_counts(adata, monkeypatch):
    from stainseq.domains import kriging

    seen = {}
    real = kriging.assign

    def spy(X, **options):
        seen["counts"] = X
        return real(X, **options)

    monkeypatch.setattr(kriging, "assign", spy)
    found = ss.tl.domains(adata, n_domains=7, method="kriging")
    assert (seen["counts"].data == np.rint(seen["counts"].data)).all()
    assert found["refined"].nunique() == 7
