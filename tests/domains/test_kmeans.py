"""tl.domains with the clustering-based method."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import stainseq as ss
from stainseq import store
from stainseq.core import clusters
from stainseq.domains import kmeans
from stainseq.errors import InputError, MissingError


@pytest.fixture
def table():
    return ss.datasets.toy_table(size="medium", seed=0)


def test_finds_the_planted_domains(table):
    found = ss.tl.domains(table, n_domains=3, seed=0)
    truth = table.obs["truth"].cat.codes.to_numpy()
    assert clusters.adjusted_rand(truth, found["refined"].astype(int).to_numpy()) > 0.45
    plain = kmeans.assign(table.X.toarray().astype(float), coordinates=table.obsm["spatial"], n_domains=3, smoothing=0)
    assert len(np.unique(plain[0])) == 3


@pytest.mark.parametrize("k", [1, 2, 7, 25])
def test_exactly_k_before_and_after_refinement(table, k):
    found = ss.tl.domains(table, n_domains=k)
    assert found["domain"].nunique() == found["refined"].nunique() == k
    assert list(table.obs["kmeans.domain"].cat.categories) == [str(i) for i in range(k)]
    p = table.obsm["kmeans.probabilities"]
    assert p.shape == (table.n_obs, k)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert (found["probability"] >= p.max(1) - 1e-6).all()
    sizes = found["domain"].astype(int).value_counts().sort_index()
    assert sizes.is_monotonic_decreasing


def test_order_of_rows_does_not_matter(table):
    first = ss.tl.domains(table, n_domains=4).set_index("id")
    order = np.random.default_rng(0).permutation(table.n_obs)
    second = ss.tl.domains(table[order].copy(), n_domains=4).set_index("id")
    assert (first["domain"] == second["domain"].reindex(first.index)).all()
    assert (first["refined"] == second["refined"].reindex(first.index)).all()


def test_small_and_many(table):
    few = table[:6].copy()
    found = ss.tl.domains(few, n_domains=6)
    assert found["domain"].nunique() == 6
    with pytest.raises(InputError, match="7 domains of 6"):
        ss.tl.domains(few, n_domains=7)


def test_writes_csv_and_store(tmp_path):
    sdata = store.create(tmp_path / "toy.zarr", ss.datasets.toy_slide(seed=1), step="convert", parameters={})
    ss.tl.domains(sdata, n_domains=3, csv=tmp_path / "d.csv")
    back = pd.read_csv(tmp_path / "d.csv", dtype={"domain": str})
    assert list(back.columns) == ["id", "domain", "refined", "probability"]
    table = store.open(tmp_path / "toy.zarr")["counts_spots"]
    assert list(table.obs["kmeans.domain"].astype(str)) == list(back["domain"])
    assert table.uns["kmeans"]["params"]["layout"] == "hexagon"


def test_image_features_are_matched_by_id(table):
    from anndata import AnnData

    sdata = ss.datasets.toy_slide(size="small", seed=0)
    truth = sdata["counts_spots"].obs["truth"].cat.codes.to_numpy()
    features = AnnData(np.eye(3, dtype=np.float32)[truth], obs=pd.DataFrame(index=sdata["counts_spots"].obs_names))
    sdata.tables["features_toy_spots"] = features[::-1].copy()
    alone = ss.tl.domains(sdata, n_domains=3)["domain"].astype(int)
    helped = ss.tl.domains(sdata, n_domains=3, image_features="features_toy_spots")["domain"].astype(int)
    assert clusters.adjusted_rand(truth, helped.to_numpy()) > clusters.adjusted_rand(truth, alone.to_numpy())
    with pytest.raises(MissingError, match="no features table"):
        ss.tl.domains(sdata, n_domains=3, image_features="features_nothing")


def test_bad_smoothing(table):
    with pytest.raises(InputError, match="smoothing"):
        ss.tl.domains(table, n_domains=3, smoothing=2.0)


def test_duplicate_coordinates_are_no_trouble(table):
    table.obsm["spatial"][:50] = table.obsm["spatial"][0]
    assert ss.tl.domains(table, n_domains=3)["domain"].nunique() == 3


def test_layouts_are_told_apart():
    from stainseq.tl._domains import _layout

    x, y = np.meshgrid(np.arange(12.0), np.arange(12.0))
    assert _layout(np.c_[x.ravel(), y.ravel()]) == "square"
    assert _layout(np.c_[(x + 0.5 * (y % 2)).ravel(), (y * np.sqrt(3) / 2).ravel()]) == "hexagon"
    assert _layout(np.random.default_rng(0).uniform(0, 1, (200, 2))) == "free"


@pytest.mark.real
def test_olfactory_bulb_does_not_collapse(data_dir):
    """Means over all neighbours bring the five layers down to .30 (plain components: .62)."""
    from anndata import AnnData
    from scipy import sparse

    counts = pd.read_csv(data_dir / "mob_rep11" / "Rep11_MOB_counts.tsv.gz", sep="\t", index_col=0)
    layers = pd.read_csv(data_dir / "mob_rep11" / "spots_layers.csv").set_index("spot").reindex(counts.index)
    table = AnnData(sparse.csr_matrix(counts.to_numpy()), obs=pd.DataFrame(index=counts.index))
    table.obsm["spatial"] = layers[["x", "y"]].to_numpy() * 200
    found = ss.tl.domains(table, n_domains=5)
    known = layers["layer"].notna().to_numpy()
    codes = pd.factorize(layers["layer"][known])[0]
    assert clusters.adjusted_rand(codes, found["domain"].astype(int).to_numpy()[known]) > 0.5
