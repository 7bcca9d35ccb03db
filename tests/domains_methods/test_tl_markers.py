"""Markers and metagenes on tables and files."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

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


def naive_markers(table, domain_key, fraction, ratio):
    """Domain by domain and gene by gene: bisected radius, neighbours, SciPy's rank test, Benjamini-Hochberg."""
    X = np.asarray(table.X.toarray(), dtype=np.float64)
    X = np.log1p(X / X.sum(axis=1, keepdims=True) * 1e4).astype(np.float32).astype(np.float64)
    labels = table.obs[domain_key].astype(str).to_numpy()
    d = cdist(table.obsm["spatial"], table.obsm["spatial"])
    frames = []
    for domain in sorted(set(labels)):
        inside = labels == domain
        low, high = np.quantile(d[d > 0], (0.001, 0.1))
        while not 10 <= (mean := (d[inside] <= (middle := (low + high) / 2)).sum(axis=1).mean()) <= 20:
            low, high = (middle, high) if mean < 10 else (low, middle)
        near = d[inside] <= middle
        met = {o: near[:, labels == o].sum() for o in set(labels) - {domain}}
        around = sorted((o for o in met if met[o] > ratio * (labels == o).sum()), key=lambda o: -met[o])[:3]
        a, b = X[inside], X[np.isin(labels, around)]
        with np.errstate(invalid="ignore"):  # genes that none of these rows has
            p = stats.mannwhitneyu(a, b, use_continuity=False, method="asymptotic").pvalue
        q = np.full(len(p), np.nan)
        q[~np.isnan(p)] = stats.false_discovery_control(p[~np.isnan(p)])
        frame = pd.DataFrame({"gene": table.var_names, "p": p, "q": q})
        frame["pct.in"], frame["pct.out"] = (a > 0).mean(axis=0), (b > 0).mean(axis=0)
        frame["mean.in"], frame["mean.out"] = a.mean(axis=0), b.mean(axis=0)
        frame["ratio"] = frame["pct.in"] / frame["pct.out"]
        frame["fc"] = np.exp(frame["mean.in"] - frame["mean.out"])
        frame["domain"], frame["neighbours"] = domain, ",".join(around)
        kept = (frame["q"] < 0.05) & (frame["pct.in"] > fraction) & (frame["ratio"] > 1) & (frame["fc"] > 1.5)
        frames.append(frame[kept].sort_values("fc", ascending=False))
    return pd.concat(frames, ignore_index=True)


def test_markers_equal_brute_force(adata):
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    found = ss.tl.markers(adata, domain_key="domain", min_in_group_fraction=0.4, num_max=20, ratio=0.3)
    naive = naive_markers(adata, "domain", 0.4, 0.3)
    assert found.attrs["failed"] == {}
    assert len(found) == len(naive) > 30
    for column in ("domain", "gene", "neighbours"):
        assert found[column].tolist() == naive[column].tolist()
    for column in ("p", "q", "pct.in", "pct.out", "ratio", "fc", "mean.in", "mean.out"):
        np.testing.assert_allclose(found[column], naive[column], rtol=1e-5)


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


def test_several_metagenes(adata):
    alone = ss.tl.metagene(adata.copy(), target="3", domain_key="domain")
    every = adata.copy()
    found = ss.tl.metagene(every, target="all", domain_key="domain", key="m")
    assert found["domain"].unique().tolist() == ["0", "1", "2", "3", "4", "5", "L2/6"]
    assert found.attrs["keys"]["L2/6"] == "m.L2_6"
    assert found[found["domain"] == "3"].reset_index(drop=True).equals(alone)
    assert {"m.0", "m.L2_6"} <= set(every.obs.columns) & set(every.uns)
    two = ss.tl.metagene(adata, target=["3", "0", "3"], domain_key="domain")
    assert two["domain"].unique().tolist() == ["3", "0"]
    assert two[two["domain"] == "3"].equals(alone)
    adata.obs["named"] = np.where(adata.obs["domain"] == "3", "all", "others")
    one = ss.tl.metagene(adata, target="all", domain_key="named")  # a domain of that name is meant
    assert one.attrs["keys"] == {"all": "metagene.all"}
    adata.obs["clash"] = np.where(adata.obs["domain"] == "3", "a/b", "a_b")
    with pytest.raises(InputError, match=r"two metagenes would be named 'metagene\.a_b'"):
        ss.tl.metagene(adata, target="all", domain_key="clash")


def test_bad_values_are_one_error(adata):
    adata.obs["one"] = "a"
    with pytest.raises(InputError, match="one domain"):
        ss.tl.metagene(adata, target="a", domain_key="one")
    for bad, words in ((np.nan, "NaN or infinite"), (-3.0, "counts are negative")):
        table = adata.copy()
        table.X.data[5] = bad
        with pytest.raises(InputError, match=words):
            ss.tl.markers(table, domain_key="domain")
        with pytest.raises(InputError, match=words):
            ss.tl.metagene(table, target="2", domain_key="domain")
    table = adata.copy()
    table.obsm["spatial"][4, 1] = np.nan
    with pytest.raises(InputError, match="coordinates are NaN"):
        ss.tl.markers(table, domain_key="domain")
    table.obsm["spatial"][:] = 1.0
    with pytest.raises(InputError, match="all rows are at one place"):
        ss.tl.markers(table, domain_key="domain")
    table.X.data[:] = 0
    with pytest.raises(InputError, match="no gene varies"):
        ss.tl.metagene(table, target="2", domain_key="domain")
    with pytest.raises(InputError, match="against is 'no'"):
        ss.tl.markers(adata, domain_key="domain", against="no")
    del table.obsm["spatial"]
    with pytest.raises(MissingError, match="no coordinates"):
        ss.tl.markers(table, domain_key="domain")


def test_a_domain_of_one_spot_and_genes_without_counts(adata):
    table = adata.copy()
    counts = table.X.toarray()
    counts[:, 7] = 0
    table.X = counts
    labels = table.obs["domain"].astype(str).to_numpy()
    labels[300] = "one"
    table.obs["some"] = labels
    found = ss.tl.markers(table, domain_key="some", min_in_group_fraction=0.4, num_max=20, ratio=0.2)
    assert found.attrs["failed"] == {"one": "1 spots are too few for a rank test, which needs 3"}
    assert found.attrs["status"]["one"] == found.attrs["failed"]["one"]
    assert found["domain"].nunique() == 7
    assert "g7" not in set(found["gene"])
    none = ss.tl.markers(table, domain_key="some", domains=["2", "one"], against="rest", min_fold_change=99)
    assert none.attrs["status"] == {"2": "0 markers", "one": found.attrs["failed"]["one"]}
    assert list(none.columns) == list(COLUMNS)
    with pytest.raises(InputError, match="no domain could be compared: 1 spots are too few"):
        ss.tl.markers(table, domain_key="some", domains=["one"], against="rest")
    metagene = ss.tl.metagene(table, target="one", domain_key="some")  # a lone spot: the start gene stands
    assert len(metagene) == 1
    # with the gene taken out nothing else changes: it was never tested
    without = table[:, table.var_names != "g7"].copy()
    again = ss.tl.markers(without, domain_key="some", min_in_group_fraction=0.4, num_max=20, ratio=0.2)
    assert again.equals(found)


def test_several_samples_are_taken_together(adata):
    """Two copies at one place: each spot's neighbours are its own sample's, and evidence doubles."""
    options = {"domain_key": "domain", "min_in_group_fraction": 0.4, "num_max": 20}
    alone = ss.tl.markers(adata, **options)
    two = anndata.concat({"a": adata, "b": adata}, label="sample", index_unique="-")
    both = ss.tl.markers(two, **options)
    assert both.attrs["status"].keys() == alone.attrs["status"].keys()
    merged = alone.merge(both, on=["domain", "gene"], suffixes=("", ".both"), validate="1:1")
    assert len(merged) == len(alone)
    for column in ("neighbours", "pct.in", "pct.out"):
        assert (merged[column] == merged[f"{column}.both"]).all()
    np.testing.assert_allclose(merged["fc"], merged["fc.both"])
    np.testing.assert_allclose(merged["scores.both"], np.sqrt(2) * merged["scores"], rtol=0.01)
    one = ss.tl.markers(two, sample="a", **options)
    assert one.equals(alone)
    assert two.uns["markers"]["params"]["sample"] == "a"
    assert ss.tl.markers(two, sample=["b", "a"], **options).equals(both)
    metagene = ss.tl.metagene(two, target="2", domain_key="domain", start_gene="g0")
    other = ss.tl.metagene(adata, target="2", domain_key="domain", start_gene="g0")
    assert metagene["gene"].tolist() == other["gene"].tolist()
    np.testing.assert_array_equal(two.obs["metagene.2"][:750], adata.obs["metagene.2"])
    ss.tl.metagene(two, target="2", domain_key="domain", sample="b")
    assert two.obs["metagene.2"].isna().sum() == 750


def test_order_of_rows_does_not_matter(adata):
    options = {"domain_key": "domain", "min_in_group_fraction": 0.4, "num_max": 20}
    shuffle = np.random.default_rng(2).permutation(adata.n_obs)
    other = adata[shuffle].copy()
    assert ss.tl.markers(adata, **options).equals(ss.tl.markers(other, **options))
    assert ss.tl.metagene(adata, target="all", domain_key="domain").equals(
        ss.tl.metagene(other, target="all", domain_key="domain")
    )
    for key in ("metagene.0", "metagene.4"):
        np.testing.assert_array_equal(adata.obs[key].to_numpy()[shuffle], other.obs[key])


SCRIPT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, anndata, conftest, stainseq as ss
samples = []
for seed in range(2):
    data = conftest._cells(900, seed=seed)
    table = anndata.AnnData(data.counts, obsm={"spatial": data.coordinates})
    table.obs_names = [f"c{i}" for i in range(900)]
    table.var_names = [f"g{j}" for j in range(60)]
    table.obs["layer"] = data.layer.astype(str)
    samples.append(table)
for correction in ("none", "centre", "harmony"):
    found = ss.tl.integrate(samples, n_domains=4, correction=correction)
    print(hashlib.sha256(found.to_csv().encode()).hexdigest(), found.attrs["mixing"])
found = ss.tl.markers(samples[0], domain_key="layer", min_in_group_fraction=0.1, min_fold_change=1.01, ratio=0.1)
assert len(found) > 20
print(hashlib.sha256(found.to_csv().encode()).hexdigest())
found = ss.tl.metagene(samples[0], target="all", domain_key="layer")
print(hashlib.sha256(samples[0].obs["metagene.2"].to_numpy().tobytes() + found.to_csv().encode()).hexdigest())
"""


@pytest.mark.slow
def test_threads_do_not_matter():
    pytest.importorskip("harmonypy")
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "STAINSEQ_N_JOBS")
    seen = []
    for threads in ("1", "2", "4"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, os.path.dirname(__file__)],
            env={**os.environ, **dict.fromkeys(names, threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0].splitlines()) == 5
