"""The seed's options, what is kept, notes and outputs."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stainseq as ss
from stainseq import store
from stainseq.cli._run import run
from stainseq.core.genes import highly_variable
from stainseq.errors import InputError, MissingError, StoreError
from stainseq.svg import spatialde2


@pytest.fixture
def table():
    made = ss.datasets.toy_table(seed=0)
    made.layers["counts"] = made.X.copy()
    return made


def test_the_notebooks_call(table):
    found = ss.tl.svg(table, method="spatialde2", layer="counts", kernel_space=None, sizefactors=None,
                      obs_dist="negative_binomial", n_svg=15, key="spatialde")  # fmt: skip
    assert {"spatialde.padj", "spatialde.svg", "spatialde.rank"} <= set(table.var)
    assert table.var["spatialde.svg"].dtype == bool
    top = table.var.sort_values("spatialde.rank").head(15)
    assert list(top.index) == list(found["gene"][:15])
    assert table.var["spatialde.svg"].sum() == min(15, (found["padj"] <= 0.05).sum())


def test_every_kernel_is_kept_with_its_own_length(table, tmp_path):
    space = {"SE": [150.0, 600.0], "PER": [400.0], "linear": 0}
    found = ss.tl.svg(table, method="spatialde2", kernel_space=space, compat=True).set_index("gene")
    kernels = table.uns["spatialde2"]["kernels"]
    assert len(kernels) == 4 * table.n_vars
    assert {"gene", "kernel", "l", "U", "e", "I", "kappa", "nu", "log10_pval", "pval"} == set(kernels)
    raw = spatialde2.score(table.X, table.obsm["spatial"], genes=table.var_names.to_numpy(), kernel_space=space,
                           compat=True).attrs["kernels"].frame()  # fmt: skip
    np.testing.assert_array_equal(kernels["U"], raw["U"])
    for gene, rows in kernels.groupby("gene", observed=True):
        best = rows.loc[rows["log10_pval"].idxmin()]
        assert best["kernel"] == found.loc[gene, "kernel"]
        np.testing.assert_equal(best["l"], found.loc[gene, "l"])
    table.write_h5ad(tmp_path / "t.h5ad")
    back = anndata.read_h5ad(tmp_path / "t.h5ad").uns["spatialde2"]
    pd.testing.assert_frame_equal(back["kernels"], kernels, check_index_type=False, check_categorical=False)
    assert kernels.memory_usage(index=False).sum() < 100 * len(kernels)


def test_genes_that_are_not_tested_are_in_no_kernel_table(table):
    counts = table.X.toarray()
    counts[:, :5] = 0
    table.X = counts
    ss.tl.svg(table, method="sparkx")
    kept = table.uns["sparkx"]
    assert kept["tested"] == 55
    assert len(kept["kernels"]) == 55 * 11
    assert len(kept["table"]) == 60


@pytest.mark.parametrize("method", ["spatialde", "spatialde2"])
def test_compat_marks_the_first_whether_significant_or_not(table, method):
    found = ss.tl.svg(table, method=method, compat=True, n_svg=50)
    assert found["svg"][:50].all()
    assert not found["svg"][50:].any()
    assert (found["padj"][:50] > 0.05).any()
    strict = ss.tl.svg(table, method=method, n_svg=50)
    assert (strict["padj"][strict["svg"]] <= 0.05).all()
    assert strict["svg"].sum() < 50


def test_options_that_a_method_has_not(table):
    for option in ({"compat": True}, {"obs_dist": "normal"}, {"sizefactors": np.ones(98)}, {"kernel_space": {"SE": 9}}):
        with pytest.raises(InputError, match=f"moran has no option {next(iter(option))}"):
            ss.tl.svg(table, method="moran", **option)


def test_highly_variable_genes_are_intersected(table):
    table.var["vst.hvg"] = np.arange(60) % 2 == 0
    found = ss.tl.svg(table, hvg="vst.hvg").set_index("gene")
    both = table.var["moran.svg"] & table.var["vst.hvg"]
    assert 0 < both.sum() < table.var["moran.svg"].sum()
    np.testing.assert_array_equal(table.var["moran.hvg"], both)
    np.testing.assert_array_equal(found["hvg"][table.var_names], both)
    ss.tl.svg(table, hvg=20, key="own")
    chosen = np.zeros(60, dtype=bool)
    chosen[highly_variable(table.X, n_top=20, min_fraction=0.0)] = True
    np.testing.assert_array_equal(table.var["own.hvg"], table.var["own.svg"] & chosen)
    with pytest.raises(MissingError, match=r"no boolean column 'kind' in var.*vst\.hvg"):
        ss.tl.svg(table, hvg="kind")


def test_predictions_carry_a_note(table, tmp_path, capsys):
    table.X = np.log1p(table.layers["rate"])
    table.uns["stainseq"] = {"step": "predict"}
    found = ss.tl.svg(table)
    assert "predicted from images" in found.attrs["note"]
    assert "predicted from images" in table.uns["moran"]["note"]
    del table.uns["moran"]
    table.write_h5ad(tmp_path / "p.h5ad")
    assert run(["svg", str(tmp_path / "p.h5ad"), "--json", str(tmp_path / "p.json")]) == 0
    assert "note: the values were predicted from images" in " ".join(capsys.readouterr().out.split())
    assert "predicted" in json.loads((tmp_path / "p.json").read_text())["note"]
    measured = ss.tl.svg(ss.datasets.toy_table(seed=0))
    assert "note" not in measured.attrs


@pytest.mark.parametrize("option", ["csv", "out"])
def test_outputs_are_checked_before_the_work(table, tmp_path, option, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr("stainseq.tl._tables.expression", never)
    with pytest.raises(StoreError, match="no such folder"):
        ss.tl.svg(table, **{option: tmp_path / "nowhere" / "x"})
    assert not list(tmp_path.iterdir())


def test_command_with_samples_and_options(table, tmp_path, capsys):
    table.obs["sample"] = np.where(np.arange(table.n_obs) % 2 == 0, "even", "odd")
    table.var["some"] = np.arange(60) < 30
    path, csv, out = tmp_path / "t.h5ad", tmp_path / "r.csv", tmp_path / "o.json"
    table.write_h5ad(path)
    asked = ["svg", str(path), "--method", "spatialde2", "--csv", str(csv), "--json", str(out), "--layer", "counts"]
    more = ["--sample", "even", "--sample", "odd", "--kernel-space", '{"SE": [200, 500]}', "--hvg", "some",
            "--obs-dist", "negative_binomial", "--key-added", "k", "--compat", "--max-gb", "1"]  # fmt: skip
    assert run([*asked, *more]) == 0
    assert "2 samples, combined by Fisher's method" in capsys.readouterr().out
    frame, figures = pd.read_csv(csv), json.loads(out.read_text())
    assert {"n_samples", "sample", "kernel", "l", "hvg"} <= set(frame)
    assert set(frame["l"]) <= {200.0, 500.0}
    assert frame["rank"].dtype == np.int64
    assert figures["samples"] == 2
    assert figures["genes"][0]["rank"] == 1
    assert run(["svg", str(path), "--csv", str(tmp_path / "no" / "x.csv")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_kernels_survive_in_a_store(tmp_path):
    sdata = store.create(tmp_path / "toy.zarr", ss.datasets.toy_slide(seed=0), step="convert", parameters={})
    ss.tl.svg(sdata, method="spatialde2", kernel_space={"SE": [200.0]}, hvg=10)
    ss.tl.svg(sdata, method="spatialde")
    back = store.open(tmp_path / "toy.zarr")["counts_spots"].uns
    assert back["spatialde2"]["kernels"]["l"].eq(200.0).all()
    assert back["spatialde2"]["params"]["hvg"] == 10
    assert len(back["spatialde"]["kernels"]) == 10 * back["spatialde"]["tested"]


def test_nearly_empty_spots_are_told_and_left_out_on_request(table, tmp_path, capsys):
    counts = table.X.toarray()
    counts[:2] = 0
    counts[:2, 0] = [3, 7]
    table.X = sparse.csr_matrix(counts)
    assert np.median(counts.sum(axis=1)) > 700
    found = ss.tl.svg(table, method="spatialde")
    told = found.attrs["note"]
    assert f"2 of {table.n_obs} spots" in told
    assert "at most 7" in told
    assert table.uns["spatialde"]["note"] == told
    table.uns.clear()
    table.write_h5ad(tmp_path / "t.h5ad")
    arguments = ["svg", str(tmp_path / "t.h5ad"), "--method", "spatialde", "--json", str(tmp_path / "t.json")]
    assert run([*arguments, "--min-counts", "10"]) == 0
    assert "note" not in json.loads((tmp_path / "t.json").read_text())
    without = ss.tl.svg(table[2:].copy(), method="spatialde").set_index("gene")
    kept = ss.tl.svg(table, method="spatialde", min_counts=10, hvg=20).set_index("gene")
    assert table.uns["spatialde"]["params"]["min_counts"] == 10
    pd.testing.assert_frame_equal(kept[without.columns].loc[without.index], without, check_exact=False, rtol=1e-9)
    given = np.arange(1.0, table.n_obs + 1)
    mine = ss.tl.svg(table, method="spatialde2", min_counts=10, sizefactors=given).set_index("gene")
    theirs = ss.tl.svg(table[2:].copy(), method="spatialde2", sizefactors=given[2:]).set_index("gene")
    np.testing.assert_allclose(mine["log10_pval"], theirs.loc[mine.index, "log10_pval"], rtol=1e-9)
    with pytest.raises(InputError, match=r"no row has 1000000000 counts.*median"):
        ss.tl.svg(table, min_counts=10**9)


def test_genes_that_were_not_tested_have_no_p(table):
    counts = table.X.toarray()
    counts[:, 3] = 0
    counts[:2, 3] = 5
    table.X = sparse.csr_matrix(counts)
    for method in ("moran", "sparkx", "spatialde"):
        found = ss.tl.svg(table, method=method).set_index("gene").loc[table.var_names[3]]
        assert np.isnan(found["rank"])
        assert all(np.isnan(found[c]) for c in ("pval", "log10_pval", "qval", "padj") if c in found)
