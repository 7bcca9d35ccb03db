"""Cell types: planted labels come back, genes are matched by whatever names there are, no cell is lost."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import stainseq as ss
from stainseq import registry
from stainseq.annotators.tangram import _hard
from stainseq.core import likelihood
from stainseq.errors import InputError, MissingError

METHODS = registry.names("annotators")


@pytest.fixture
def planted():
    """A reference and cells of five types; the platform catches each gene by a factor of its own, 5 cells are poor."""
    rng = np.random.default_rng(0)
    profiles = rng.dirichlet(np.full(60, 0.3), 5)
    kinds = rng.integers(0, 5, 400)
    reference = ad.AnnData(sp.csr_matrix(rng.poisson(profiles[kinds] * rng.gamma(4, 500, (400, 1)))).astype(np.float32))
    reference.obs["ct"] = [f"type {k}" for k in kinds]
    reference.var_names = [f"Gene{i}" for i in range(60)]
    factors = np.exp(rng.normal(0, 0.7, 60))
    truth = rng.choice(5, 300, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    q = profiles[truth] * factors
    depth = rng.gamma(3, 40, (300, 1)) + 15
    depth[:5] = 0.5
    counts = rng.poisson(q / q.sum(1, keepdims=True) * depth)
    order = rng.permutation(60)
    cells = ad.AnnData(sp.csr_matrix(counts[:, order]).astype(np.float32))
    cells.var_names = [f"GENE{i}" for i in order]
    cells.obs_names = [f"aaaa{i}-1" for i in range(300)]
    cells.obsm["spatial"] = rng.uniform(0, 500, (300, 2))
    cells.var["factor"] = factors[order]
    return cells, reference, np.array([f"type {k}" for k in truth])


@pytest.mark.parametrize("method", METHODS)
def test_contract(method, planted):
    """Every method: labels of the reference's types, proportions that sum to one, the same again, input untouched."""
    cells, reference, truth = planted
    before = cells.copy(), reference.copy()
    found = ss.tl.annotate(cells, reference, method=method)
    assert list(found["id"]) == list(before[0].obs_names)
    assert set(found["label"]) <= {*truth, "few counts"}
    rich = np.asarray(before[0].X.sum(1)).ravel() > 10
    assert (found["label"][~rich] == "few counts").all()
    assert found["proportion"][~rich].isna().all()
    assert found.attrs["info"]["few_counts"] == (~rich).sum() == 5
    assert (found["label"] == truth)[rich].mean() > 0.7
    shares = cells.obsm[f"{method}.proportions"]
    assert np.allclose(shares.to_numpy()[rich].sum(1), 1, atol=1e-5)
    assert (cells.obs[f"{method}.label"].to_numpy() == found["label"]).all()
    again = before[0].copy()
    assert ss.tl.annotate(again, reference, method=method).equals(found)
    assert (cells.X != before[0].X).nnz == 0
    assert (reference.X != before[1].X).nnz == 0


def test_likelihood_factors_and_calibration(planted):
    """The planted gene factors come back, and the posterior is about as often right as it says."""
    cells, reference, truth = planted
    found = ss.tl.annotate(cells, reference, method="likelihood")
    rich = (found["label"] != "few counts").to_numpy()
    assert (found["label"] == truth)[rich].mean() > 0.95
    assert abs(found["proportion"][rich].mean() - (found["label"] == truth)[rich].mean()) < 0.1
    kinds = pd.Categorical(reference.obs["ct"]).codes
    profiles = np.stack([np.asarray(reference.X[kinds == k].sum(0)).ravel() for k in range(5)])
    order = [int(g[4:]) for g in cells.var_names]
    fitted = likelihood.fit(profiles[:, order], cells.X[rich].tocsr())
    seen = np.asarray(cells.X.sum(0)).ravel() > 100
    assert np.corrcoef(np.log(fitted.factors[seen]), np.log(cells.var["factor"][seen]))[0, 1] > 0.95
    # Brute force: the posterior is that of the multinomial, flattened by the overdispersion.
    X = cells.X[rich].toarray().astype(float)
    p = profiles[:, order]
    mean = p.sum(0) / p.sum()
    p = (p + 0.5 * mean * 60) / (p.sum(1, keepdims=True) + 30)
    q = p * fitted.factors
    score = X @ np.log(q / q.sum(1, keepdims=True)).T / fitted.overdispersion + np.log(fitted.frequencies)
    want = np.exp(score - score.max(1, keepdims=True))
    assert np.allclose(fitted.posterior, want / want.sum(1, keepdims=True), atol=1e-5)


def test_tangram_modes(planted):
    """Cells in bags find the types, too; the hard rule is the published one."""
    cells, reference, truth = planted
    found = ss.tl.annotate(cells, reference, method="tangram", mode="cells", bag=100, epochs=100, label="largest")
    assert (found["label"] == truth)[5:].mean() > 0.5
    assert found.attrs["info"]["bags"] == 3
    mapped = np.random.default_rng(0).random((50, 3)) ** 4
    scaled = np.empty_like(mapped)
    for t in range(3):
        low, high = np.quantile(mapped[:, t], [0.05, 0.95])
        scaled[:, t] = (np.clip(mapped[:, t], low, high) - low) / (high - low)
    assert np.array_equal(_hard(mapped), scaled.argmax(1))


def test_genes_by_other_names(planted):
    cells, reference, _ = planted
    plain = ss.tl.annotate(cells.copy(), reference, method="likelihood")
    assert plain.attrs["info"] == {**plain.attrs["info"], "shared_genes": 60, "matched_by": "names"}
    ensembl = reference.copy()
    ensembl.var["gene_symbols"] = ensembl.var_names.to_numpy()
    ensembl.var_names = [f"ENSG{i:011d}.3" for i in range(60)]
    found = ss.tl.annotate(cells.copy(), ensembl, method="likelihood")
    assert found.attrs["info"]["matched_by"] == "names with gene_symbols of the reference"
    assert found["label"].equals(plain["label"])
    del ensembl.var["gene_symbols"]
    with pytest.raises(InputError, match="symbols here, Ensembl ids in the reference"):
        ss.tl.annotate(cells.copy(), ensembl)
    both = cells.copy()
    both.var["gene_ids"] = [f"ENSG{int(g[4:]):011d}" for g in both.var_names]
    assert ss.tl.annotate(both, ensembl, method="likelihood")["label"].equals(plain["label"])


def test_rare_types_are_named(planted):
    cells, reference, _ = planted
    reference.obs["ct"] = reference.obs["ct"].astype(object)
    reference.obs.iloc[0, 0] = "rare"
    found = ss.tl.annotate(cells, reference, method="likelihood", min_reference_cells=2)
    assert found.attrs["info"]["types_left_out"] == ["rare"]


def test_cells_that_could_not_be_labelled_teach_nothing(planted):
    cells, reference, _ = planted
    again = reference.copy()
    again.obs["ct"] = again.obs["ct"].astype(str)
    again.obs.iloc[:20, again.obs.columns.get_loc("ct")] = "few counts"
    found = ss.tl.annotate(cells, again, method="likelihood")
    assert list(cells.obsm["likelihood.proportions"]) == sorted(set(reference.obs["ct"]))
    assert (found["label"] == "few counts").sum() == 5


def test_refusals(planted):
    cells, reference, _ = planted
    lognorm = cells.copy()
    lognorm.X = np.log1p(lognorm.X)
    mute = reference.copy()
    mute.X = sp.csr_matrix(mute.X.multiply((mute.obs["ct"] != "type 2").to_numpy()[:, None]))
    one = reference.copy()
    one.obs["ct"] = "a"
    for data, ref, options, error in (
        (cells, reference, {"label_key": "cell_type"}, MissingError),
        (cells, "nowhere.h5ad", {}, MissingError),
        (lognorm, reference, {}, InputError),
        (cells, one, {}, InputError),
        (cells, reference, {"min_counts": 10**6}, InputError),
        (cells, reference, {"method": "magic"}, MissingError),
        (cells, reference, {"speed": 3}, InputError),
        (cells, reference, {"reference_layer": "raw"}, MissingError),
        (cells, reference, {"label": "best"}, InputError),
        (cells, reference, {"mode": "cells", "bag": 0}, InputError),
        (cells, reference, {"method": "likelihood", "max_rounds": 0}, InputError),
    ):
        with pytest.raises(error):
            ss.tl.annotate(data.copy(), ref, **options)
    with pytest.raises(InputError, match="of type 'type 2'"):
        ss.tl.annotate(cells.copy(), mute)


def test_command_on_a_slide(tmp_path, capsys):
    """From a Xenium folder: the store's counts of cells, the labels beside them, a CSV of all cells."""
    from stainseq.cli import run

    ss.datasets.xenium(tmp_path / "run", size="small", transcripts=False, masks=False, he=False)
    assert run(["convert", str(tmp_path / "run"), str(tmp_path / "x.zarr")]) == 0
    slide = ss.io.open(tmp_path / "x.zarr")
    table = slide.tables["counts_cells"]
    reference = ad.AnnData(table.X[:300].copy(), var=pd.DataFrame(index=table.var_names))
    reference.obs["ct"] = np.where(np.median(table.X[:300, :10].sum(1).A1) < table.X[:300, :10].sum(1).A1, "a", "b")
    reference.write_h5ad(tmp_path / "ref.h5ad")
    capsys.readouterr()
    arguments = ["annotate", str(tmp_path / "x.zarr"), "--reference", str(tmp_path / "ref.h5ad")]
    assert run([*arguments, "--option", "epochs=50", "--csv", str(tmp_path / "l.csv"), "--json", "/dev/stdout"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cells"] == table.n_obs == len(pd.read_csv(tmp_path / "l.csv"))
    kept = ss.io.open(tmp_path / "x.zarr").tables["counts_cells"]
    assert set(kept.obs["tangram.label"]) <= {"a", "b", "few counts"}
    assert list(kept.obsm["tangram.proportions"].columns) == ["a", "b"]
    assert (kept.X != table.X).nnz == 0
