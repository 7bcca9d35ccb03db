"""tl.svg on tables, slides and files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stainseq as ss
from stainseq import store
from stainseq.errors import FormatError, InputError, MissingError


@pytest.fixture
def table():
    return ss.datasets.toy_table(seed=0)


@pytest.mark.parametrize("method", ["moran", "geary"])
def test_planted_genes_come_first(table, method):
    found = ss.tl.svg(table, method=method, n_svg=20)
    assert list(found["rank"]) == list(range(1, 61))
    kind = table.var["kind"].astype(str)
    assert (kind[found["gene"][:20]] != "flat").all()
    assert table.var[f"{method}.svg"].sum() == 20
    assert (table.var[f"{method}.padj"][kind == "flat"] > 0.05).mean() > 0.9
    assert found["padj"].is_monotonic_increasing
    assert table.var.loc[found["gene"][0], f"{method}.rank"] == 1.0


def test_default_method_and_key(table):
    ss.tl.svg(table, key="mine")
    assert {"mine.padj", "mine.svg", "mine.rank"} <= set(table.var)
    assert table.uns["mine"]["params"]["method"] == "moran"


def test_genes_that_cannot_be_tested_come_last(table):
    counts = table.X.toarray()
    counts[:, 3] = 0
    counts[:, 4] = 0
    counts[:2, 4] = 5
    table.X = sparse.csr_matrix(counts)
    found = ss.tl.svg(table)
    assert set(found["gene"][-2:]) == set(table.var_names[[3, 4]])
    assert found["rank"][-2:].isna().all()
    assert table.var["moran.padj"].isna().sum() == 2
    assert not table.var["moran.svg"].iloc[3]
    assert table.uns["moran"]["tested"] == 58


def test_csv_and_out_leave_the_given_file_alone(table, tmp_path):
    path = tmp_path / "in.h5ad"
    table.write_h5ad(path)
    before = path.read_bytes()
    found = ss.tl.svg(path, csv=tmp_path / "a.csv", out=tmp_path / "out.h5ad")
    assert path.read_bytes() == before
    back = pd.read_csv(tmp_path / "a.csv")
    own = ["I", "expected", "variance", "skewness", "z", "log10_pval", "pval"]
    assert list(back.columns) == ["gene", *own, "padj", "svg", "rank"]
    assert (tmp_path / "a.csv").read_text().splitlines()[1].endswith(",1")
    assert list(back["gene"]) == list(found["gene"])
    import anndata

    assert anndata.read_h5ad(tmp_path / "out.h5ad").var["moran.rank"].notna().all()
    assert not list(tmp_path.glob(".*"))


def test_result_goes_into_the_store_with_its_history(tmp_path):
    sdata = store.create(tmp_path / "toy.zarr", ss.datasets.toy_slide(seed=0), step="convert", parameters={"a": 1})
    ss.tl.svg(sdata)
    ss.tl.svg(sdata, method="geary")
    back = store.open(tmp_path / "toy.zarr")
    assert {"moran.rank", "geary.rank"} <= set(back["counts_spots"].var)
    stamp = store.stamp_of(back, "counts_spots")
    assert stamp["step"] == "svg"
    assert stamp["history"][0]["step"] == "convert"
    assert (back["counts_spots"].X != sdata["counts_spots"].X).nnz == 0


def test_predicted_table_is_tested_as_it_is(table):
    table.X = np.log1p(table.layers["rate"])
    found = ss.tl.svg(table)
    from stainseq.core import autocorr, neighbors

    weights = autocorr.row_standardised(neighbors.knn_graph(table.obsm["spatial"], k=6))
    want = autocorr.moran(np.asarray(table.X), weights).statistic
    np.testing.assert_allclose(found.set_index("gene")["I"].reindex(table.var_names), want, rtol=1e-6)


def test_one_sample_of_many_is_as_that_sample_alone(table):
    table.obs["sample"] = ["a"] * 50 + ["b"] * (table.n_obs - 50)
    found = ss.tl.svg(table, sample="a")
    alone = ss.tl.svg(table[:50].copy(), sample=["a"])
    pd.testing.assert_frame_equal(found, alone)
    assert "samples" not in table.uns["moran"]
    with pytest.raises(MissingError, match="one of: a, b"):
        ss.tl.svg(table, sample="c")
    table.obs["sample"] = ["a"] * 50 + [None] * (table.n_obs - 50)
    with pytest.raises(InputError, match="48 rows have no sample"):
        ss.tl.svg(table)
    pd.testing.assert_frame_equal(ss.tl.svg(table, sample="a"), found)
    table.obs["sample"] = ["a"] * 50 + ["b"] * (table.n_obs - 50)
    with pytest.raises(InputError, match="2 samples"):
        ss.tl.domains(table, n_domains=2)


def test_bad_input(table, tmp_path):
    with pytest.raises(MissingError, match="geary, moran"):
        ss.tl.svg(table, method="nothing")
    broken = table.copy()
    broken.X = broken.X.astype(np.float32)
    broken.X.data[0] = np.nan
    with pytest.raises(InputError, match=r"1 values are NaN.*first in gene"):
        ss.tl.svg(broken)
    negative = table.copy()
    negative.X.data[0] = -1
    with pytest.raises(InputError, match="counts are negative"):
        ss.tl.svg(negative)
    with pytest.raises(InputError, match="at least 4"):
        ss.tl.svg(table[:3].copy())
    empty = table.copy()
    empty.X = sparse.csr_matrix(empty.shape, dtype=np.int32)
    with pytest.raises(InputError, match="no gene varies"):
        ss.tl.svg(empty)
    with pytest.raises(InputError, match="empty"):
        ss.tl.svg(table[:0].copy())
    twice = table.copy()
    twice.obs_names = ["a"] * twice.n_obs
    with pytest.raises(InputError, match="occur twice"):
        ss.tl.svg(twice)
    nowhere = table.copy()
    del nowhere.obsm["spatial"]
    with pytest.raises(MissingError, match="no coordinates"):
        ss.tl.svg(nowhere)
    (tmp_path / "bad.h5ad").write_bytes(b"not hdf5")
    with pytest.raises(FormatError, match="damaged"):
        ss.tl.svg(tmp_path / "bad.h5ad")
    with pytest.raises(MissingError, match="tables there: counts_spots"):
        ss.tl.svg(ss.datasets.toy_slide(), region="cells")


@pytest.mark.real
def test_agrees_with_published_moran_of_the_olfactory_bulb(data_dir):
    """MERINGUE's Moran's I on other neighbours and counts per million: same genes on top, not same values."""
    import anndata

    counts = pd.read_csv(data_dir / "mob_rep11" / "Rep11_MOB_counts.tsv.gz", sep="\t", index_col=0)
    published = pd.read_csv(data_dir / "mob_rep11" / "published_MERINGUE_MoranI_MOB.csv", index_col=0)
    xy = np.array([[float(v) for v in name.split("x")] for name in counts.index]) * 200
    table = anndata.AnnData(
        sparse.csr_matrix(counts.to_numpy()), obs=counts.index.to_frame(), var=counts.columns.to_frame()
    )
    table.obsm["spatial"] = xy
    found = ss.tl.svg(table).set_index("gene")
    both = published.join(found, how="inner", lsuffix="_published")
    assert len(both) == 7365
    assert both["I_published"].corr(both["I"]) > 0.85
    top = set(both.nlargest(100, "I_published").index)
    assert len(top & set(both.nsmallest(100, "rank").index)) >= 75


@pytest.mark.parametrize("output", ["out", "csv"])
@pytest.mark.parametrize("name", ["mine.h5ad", "link.h5ad"])
def test_the_source_is_never_overwritten(table, tmp_path, output, name):
    table.write_h5ad(tmp_path / "mine.h5ad")
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "mine.h5ad")
    before = (tmp_path / "mine.h5ad").read_bytes()
    for method in (ss.tl.svg, lambda data, **k: ss.tl.domains(data, n_domains=3, **k)):
        with pytest.raises(InputError, match="replace the file they come from"):
            method(tmp_path / "mine.h5ad", **{output: tmp_path / name})
    assert (tmp_path / "mine.h5ad").read_bytes() == before
