"""Matrices that are not in memory: the same numbers from files, stores and Dask, within a bound on memory."""

from __future__ import annotations

import anndata
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stainseq as ss
from stainseq import registry, store
from stainseq.errors import InputError
from stainseq.tl import _lazy

METHODS = registry.names("svg")
FORMS = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray}
TINY = 1e-5
"""GB: ten kilobytes, so that everything is read in many panels."""


@pytest.fixture(scope="module")
def table() -> anndata.AnnData:
    made = ss.datasets.toy_table(seed=0)
    made.layers["counts"] = made.X.copy()
    made.obs["sample"] = np.where(np.arange(made.n_obs) % 3 == 0, "a", "b")
    made.X = np.log1p(made.X.toarray())
    return made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_h5ad_in_panels_gives_the_same(table, tmp_path, form: str, method: str):
    counts, max_gb = table.layers["counts"].toarray(), TINY
    if method == "spatialde":  # keeps covariances, which the bound must leave room for
        counts, max_gb = np.tile(counts, 4), 1e-4
    mine = anndata.AnnData(obs=table.obs, obsm={"spatial": table.obsm["spatial"]}, shape=counts.shape)
    mine.layers["counts"] = FORMS[form](counts)
    path = tmp_path / "t.h5ad"
    mine.write_h5ad(path)
    for sample in ("a",) if method == "spatialde" else ("a", ["a", "b"]):
        want = ss.tl.svg(mine, method=method, layer="counts", sample=sample)
        got = ss.tl.svg(path, method=method, layer="counts", sample=sample, max_gb=max_gb)
        assert list(got["gene"]) == list(want["gene"])
        for column in got.columns.drop(["gene", "kernel", "sample", "model"], errors="ignore"):
            np.testing.assert_allclose(got[column].astype(float), want[column].astype(float), rtol=1e-9, atol=1e-11)


def test_results_of_a_file_that_is_not_loaded(table, tmp_path):
    path, out = tmp_path / "t.h5ad", tmp_path / "o.h5ad"
    table.uns["mine"] = {"a": 1}
    table.write_h5ad(path)
    before = path.read_bytes()
    found = ss.tl.svg(path, layer="counts", max_gb=TINY, out=out, method="sparkx", sample="b")
    assert path.read_bytes() == before
    back = anndata.read_h5ad(out)
    np.testing.assert_array_equal(back.X, table.X)
    assert (back.layers["counts"] != table.layers["counts"]).nnz == 0
    assert back.uns["mine"]["a"] == 1
    assert back.var.loc[found["gene"][0], "sparkx.rank"] == 1.0
    assert len(back.uns["sparkx"]["kernels"]) > 0


@pytest.mark.parametrize("chunks", [(40, 60), (98, 7), (25, 11)])
@pytest.mark.parametrize("dense", [False, True])
def test_dask_arrays(table, chunks, dense):
    counts = table.layers["counts"].toarray()
    want = ss.tl.svg(anndata.AnnData(counts, obsm={"spatial": table.obsm["spatial"]}), method="sparkx")
    array = da.from_array(counts, chunks=chunks)
    if not dense:
        array = array.map_blocks(sparse.csr_matrix, meta=sparse.csr_matrix((0, 0), dtype=counts.dtype))
    lazy = anndata.AnnData(array, obsm={"spatial": table.obsm["spatial"]})
    got = ss.tl.svg(lazy, method="sparkx", max_gb=TINY)
    pd.testing.assert_frame_equal(got, want)
    assert hasattr(lazy.X, "dask")
    assert lazy.var["sparkx.rank"].notna().all()


def test_backed_anndata(table, tmp_path):
    plain = anndata.AnnData(table.layers["counts"], obs=table.obs, obsm={"spatial": table.obsm["spatial"]})
    plain.write_h5ad(tmp_path / "p.h5ad")
    backed = anndata.read_h5ad(tmp_path / "p.h5ad", backed="r")
    got = ss.tl.svg(backed, sample="b")
    pd.testing.assert_frame_equal(got, ss.tl.svg(plain, sample="b"))
    assert backed.isbacked
    backed.file.close()


def test_slide_whose_table_stays_on_disk(tmp_path, monkeypatch):
    store.create(tmp_path / "toy.zarr", ss.datasets.toy_slide(seed=0), step="convert", parameters={})
    want = ss.tl.svg(store.open(tmp_path / "toy.zarr")["counts_spots"].copy(), method="sparkx")
    read = []
    monkeypatch.setattr(_lazy, "Panels", type("Seen", (_lazy.Panels,), {"plan": lambda s, k: (read.append(1),
                                              super(type(s), s).plan(k))[0]}))  # fmt: skip
    got = ss.tl.svg(tmp_path / "toy.zarr", method="sparkx", max_gb=TINY)
    assert read
    pd.testing.assert_frame_equal(got, want)
    back = store.open(tmp_path / "toy.zarr")["counts_spots"]
    assert back.var["sparkx.rank"].notna().all()
    assert (back.X != ss.datasets.toy_slide(seed=0)["counts_spots"].X).nnz == 0


def test_bad_values_are_found_where_they_lie(table, tmp_path):
    for value, message in ((np.nan, "1 values are NaN or infinite.*MOR0005"), (-1.0, "counts are negative")):
        broken = table.layers["counts"].toarray().astype(np.float32)
        broken[50, 5] = value
        made = anndata.AnnData(broken, obsm={"spatial": table.obsm["spatial"]}, var=table.var)
        made.write_h5ad(tmp_path / "b.h5ad")
        for max_gb in (1.0, TINY):
            with pytest.raises(InputError, match=message):
                ss.tl.svg(tmp_path / "b.h5ad", max_gb=max_gb)


@pytest.mark.parametrize("form", FORMS)
def test_panels_stay_within_their_memory(table, form: str):
    counts = FORMS[form](table.layers["counts"].toarray())
    array = da.from_array(counts, chunks=(30, 60), asarray=False)
    bound = 12_000
    panels = _lazy.Panels(array, np.arange(5, 90), bound)
    known = _lazy.survey(panels)
    assert known.stored.sum() * 12 > bound
    for start in (0, 11, 31, 3):
        stop = min(start + 25, 60)
        np.testing.assert_array_equal(
            panels[:, start:stop].toarray(), table.layers["counts"].toarray()[5:90, start:stop]
        )
        held = sum(p.data.nbytes + p.indices.nbytes for p in panels._held.values())
        assert held <= bound / 3
    np.testing.assert_array_equal(known.totals, table.layers["counts"].toarray()[5:90].sum(axis=1))


def test_cluster_gives_the_same_bits(table):
    distributed = pytest.importorskip("distributed")
    mine = table.copy()
    mine.X = mine.layers["counts"]
    want = {m: ss.tl.svg(mine, method=m) for m in METHODS}
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        for method in METHODS:
            pd.testing.assert_frame_equal(ss.tl.svg(mine, method=method, client=client), want[method])
        pd.testing.assert_frame_equal(ss.tl.svg(mine), want["moran"])
    with pytest.raises(InputError, match="client is a str"):
        ss.tl.svg(mine, client="tcp://nowhere")
