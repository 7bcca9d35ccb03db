"""What cannot be tested, by every method: one clear error, or a stated result."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from scipy import sparse

import stainseq as ss
from stainseq import registry
from stainseq.errors import InputError, MissingError

METHODS = registry.names("svg")


@pytest.fixture
def table() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (80, 2))
    mean = np.exp(rng.normal(1, 0.5, 12)) * np.exp(0.8 * np.sin(xy[:, :1] / 150) * (np.arange(12) < 4))
    made = anndata.AnnData(sparse.csr_matrix(rng.poisson(rng.gamma(3, mean / 3)).astype(np.float32)))
    made.obsm["spatial"] = xy
    made.var_names = [f"g{k}" for k in range(12)]
    return made


@pytest.mark.parametrize("method", METHODS)
def test_errors(table, method):
    def refused(change, kind, message):
        broken = table.copy()
        change(broken)
        with pytest.raises(kind, match=message):
            ss.tl.svg(broken, method=method)
        assert not any(c.startswith(method) for c in broken.var)

    def put(value):
        def change(t):
            t.X = t.X.toarray()
            t.X[3, 5] = value

        return change

    def place(value):
        def change(t):
            t.obsm["spatial"] = np.array(value(t.obsm["spatial"]))

        return change

    refused(lambda t: t.obsm.clear(), MissingError, "no coordinates")
    refused(place(lambda xy: np.where(np.arange(80)[:, None] == 7, np.nan, xy)), InputError, "first is row 7")
    refused(place(lambda xy: 0 * xy + 3), InputError, "all rows are at one place")
    refused(put(np.nan), InputError, "1 values are NaN or infinite.*'g5'")
    refused(put(np.inf), InputError, "1 values are NaN or infinite.*'g5'")
    refused(put(-2), InputError, "counts are negative")
    refused(lambda t: setattr(t, "X", sparse.csr_matrix(t.shape)), InputError, "no gene varies")


@pytest.mark.parametrize("method", METHODS)
def test_genes_without_counts_and_spots_at_one_place_are_no_error(table, method):
    counts = table.X.toarray()
    counts[:, 2] = 0
    counts[5] = 0
    table.X = counts
    table.obsm["spatial"][10:13] = table.obsm["spatial"][9]
    found = ss.tl.svg(table, method=method)
    assert found["gene"].iloc[-1] == "g2"
    assert np.isnan(found["rank"].iloc[-1])
    assert found["rank"][:11].tolist() == list(range(1, 12))
    assert not table.var.loc["g2", f"{method}.svg"]
    assert np.isfinite(found["padj"][:11]).all()
