"""tl.domains: what it stores, histology at any scale, stability, and refusals; with the default method."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import stainseq as ss
from stainseq import image as images
from stainseq import registry, store
from stainseq.cli import run
from stainseq.core import clusters
from stainseq.core.colour import patch_colour
from stainseq.core.normalize import log1p_cp10k
from stainseq.errors import InputError, MissingError, ScaleError
from stainseq.tl import _histology, _tables
from stainseq.tl._domains import _layout

DEFAULT = registry.default("domains")


@pytest.fixture
def table():
    return ss.datasets.toy_table(size="medium", seed=0)


@pytest.fixture
def slide():
    return ss.datasets.toy_slide(size="small", seed=0)


def test_finds_the_planted_domains(table):
    found = ss.tl.domains(table, n_domains=3)
    truth = table.obs["truth"].cat.codes.to_numpy()
    assert clusters.adjusted_rand(truth, found["refined"].astype(int).to_numpy()) > 0.45


@pytest.mark.parametrize("k", [1, 2, 7, 25])
def test_exactly_k_before_and_after_refinement(table, k):
    found = ss.tl.domains(table, n_domains=k)
    assert found["domain"].nunique() == found["refined"].nunique() == k
    assert list(table.obs[f"{DEFAULT}.domain"].cat.categories) == [str(i) for i in range(k)]
    p = table.obsm[f"{DEFAULT}.probabilities"]
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


def test_writes_csv_and_store(tmp_path):
    sdata = store.create(tmp_path / "toy.zarr", ss.datasets.toy_slide(seed=1), step="convert", parameters={})
    ss.tl.domains(sdata, n_domains=3, csv=tmp_path / "d.csv", histology=True, stability=2)
    back = pd.read_csv(tmp_path / "d.csv", dtype={"domain": str})
    assert list(back.columns) == ["id", "domain", "refined", "probability"]
    table = store.open(tmp_path / "toy.zarr")["counts_spots"]
    assert list(table.obs[f"{DEFAULT}.domain"].astype(str)) == list(back["domain"])
    facts = table.uns[DEFAULT]
    assert facts["params"]["layout"] == "hexagon"
    assert facts["params"]["histology"]
    assert facts["params"]["window_um"] == 50
    assert facts["stability"]["n_seeds"] == 2
    assert -0.5 <= facts["stability"]["ari"] <= 1


# ---- stability --------------------------------------------------------------------------------------------------


def test_stability_is_the_mean_over_pairs_of_seeds(table):
    runs = [ss.tl.domains(table, n_domains=9, method="spagcn", seed=s, epochs=5)["domain"] for s in (4, 5, 6)]
    found = ss.tl.domains(table, n_domains=9, method="spagcn", seed=4, epochs=5, stability=3)
    pairs = [clusters.adjusted_rand(a, b) for i, a in enumerate(runs) for b in runs[:i]]
    assert found.attrs["stability"] == pytest.approx(np.mean(pairs), abs=1e-12)
    assert found.attrs["stability"] < 1
    assert (found["domain"] == runs[0]).all()


@pytest.mark.parametrize("n", [1, -2])
def test_stability_of_one_seed_is_refused(table, n):
    with pytest.raises(InputError, match="stability over"):
        ss.tl.domains(table, n_domains=3, stability=n)


# ---- histology --------------------------------------------------------------------------------------------------


def test_colours_are_means_of_the_slide_around_each_spot(slide):
    chosen = _tables.expression(slide)
    stack = images.open_image(slide)
    whole = stack.read(0, 0, stack.shape[0], 0, stack.shape[1])
    centres = stack.to_px(chosen.coordinates) - 0.5
    expected = patch_colour(whole, centres, size_px=20 / stack.mpp)
    np.testing.assert_allclose(_histology.colours(chosen, window_um=20), expected)


def test_the_scale_of_the_image_does_not_matter(slide, monkeypatch):
    chosen = _tables.expression(slide)
    fine = _histology.colours(chosen, window_um=60)
    monkeypatch.setattr(_histology, "_LEAST_PX", 10_000)
    finest = _histology.colours(chosen, window_um=60)
    monkeypatch.setattr(_histology, "_LEAST_PX", 6)
    coarse = _histology.colours(chosen, window_um=60)
    assert not np.array_equal(coarse, finest)  # another level was read
    for found in (fine, coarse):
        for channel in range(3):
            assert np.corrcoef(found[:, channel], finest[:, channel])[0, 1] > 0.97


def test_strips_of_the_image_leave_no_trace(slide, monkeypatch):
    chosen = _tables.expression(slide)
    whole = _histology.colours(chosen)
    monkeypatch.setattr(_histology, "_BAND_PX", 7)
    np.testing.assert_array_equal(_histology.colours(chosen), whole)


@pytest.mark.parametrize("method", ["kriging", "kmeans"])
def test_histology_helps_where_it_shows_the_truth(slide, method):
    """Planted: morphology follows the domains; what was counted is noise."""
    table = slide["counts_spots"]
    truth = table.obs["truth"].cat.codes.to_numpy()
    table.X = np.random.default_rng(0).poisson(2.0, table.shape).astype(np.float32)
    alone = ss.tl.domains(slide, n_domains=3, method=method)["domain"].astype(int).to_numpy()
    helped = ss.tl.domains(slide, n_domains=3, method=method, histology=True)["domain"].astype(int).to_numpy()
    assert clusters.adjusted_rand(truth, helped) > clusters.adjusted_rand(truth, alone) + 0.1


@pytest.mark.parametrize("method", registry.names("domains"))
def test_every_method_is_given_the_colours(slide, method):
    chosen = _tables.expression(slide)
    plugin = registry.load("domains", method)
    quick = {"pre_epochs": 10, "epochs": 10} if method == "deepst" else {}
    values = chosen.values.astype(np.float32)
    expected, p, *_ = plugin.assign(
        values if getattr(plugin, "WANTS", "") == "counts" else log1p_cp10k(values),
        coordinates=chosen.coordinates,
        n_domains=3,
        image_features=_histology.colours(chosen, window_um=30),
        **quick,
    )
    found = ss.tl.domains(slide, n_domains=3, method=method, histology=True, window_um=30, **quick)
    np.testing.assert_array_equal(found["domain"].astype(int), expected)
    np.testing.assert_array_equal(slide["counts_spots"].obsm[f"{method}.probabilities"], p)


def test_image_features_are_matched_by_id(slide):
    truth = slide["counts_spots"].obs["truth"].cat.codes.to_numpy()
    ids = slide["counts_spots"].obs_names
    features = AnnData(np.eye(3, dtype=np.float32)[truth], obs=pd.DataFrame(index=ids))
    slide.tables["features_toy_spots"] = features[::-1].copy()
    alone = ss.tl.domains(slide, n_domains=3)["domain"].astype(int)
    helped = ss.tl.domains(slide, n_domains=3, image_features="features_toy_spots")["domain"].astype(int)
    assert clusters.adjusted_rand(truth, helped.to_numpy()) >= clusters.adjusted_rand(truth, alone.to_numpy())
    by_encoder = ss.tl.domains(slide, n_domains=3, image_features="toy")["domain"].astype(int)
    assert (by_encoder == helped).all()
    slide["counts_spots"].obsm["mine"] = np.eye(3, dtype=np.float32)[truth]
    by_array = ss.tl.domains(slide, n_domains=3, image_features="mine")["domain"].astype(int)
    assert (by_array == helped).all()
    with pytest.raises(MissingError, match="no features table"):
        ss.tl.domains(slide, n_domains=3, image_features="features_nothing")
    slide.tables["features_few_spots"] = features[:5].copy()
    with pytest.raises(MissingError, match="spots have no features"):
        ss.tl.domains(slide, n_domains=3, image_features="few")


@pytest.mark.parametrize("method", ["deepst", "spagcn"])
def test_an_encoder_of_the_registry_is_the_image_part(slide, method):
    ss.pp.features(slide, region="spots", encoder="colour")
    quick = {"pre_epochs": 10, "epochs": 10} if method == "deepst" else {}
    found = ss.tl.domains(slide, n_domains=4, method=method, image_features="colour", **quick)
    assert found["domain"].nunique() == found["refined"].nunique() == 4
    assert slide["counts_spots"].uns[method]["params"]["image_features"] == "colour"
    alone = ss.tl.domains(slide, n_domains=4, method=method, **quick)
    assert clusters.adjusted_rand(found["domain"], alone["domain"]) < 1


def test_scanpys_image_gives_the_same_colours(slide):
    """The same picture at full scale in an AnnData, with places in pixels."""
    chosen = _tables.expression(slide)
    stack = images.open_image(slide)
    pixels = stack.read(0, 0, stack.shape[0], 0, stack.shape[1])
    table = AnnData(chosen.table.X, obs=chosen.table.obs[[]].copy())
    table.obsm["spatial"] = stack.to_px(chosen.coordinates)
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 65.0 / stack.mpp}
    table.uns["spatial"] = {"lib": {"images": {"hires": pixels}, "scalefactors": factors}}
    np.testing.assert_allclose(
        _histology.colours(_tables.expression(table), window_um=20), _histology.colours(chosen, window_um=20)
    )
    # At half the scale the same tissue is looked at.
    half = pixels[: len(pixels) // 2 * 2, : pixels.shape[1] // 2 * 2]
    half = half.reshape(len(half) // 2, 2, -1, 2, 3).mean(axis=(1, 3))
    table.uns["spatial"]["lib"] = {"images": {"hires": half}, "scalefactors": {**factors, "tissue_hires_scalef": 0.5}}
    fine, coarse = (_histology.colours(c, window_um=40) for c in (chosen, _tables.expression(table)))
    assert np.corrcoef(fine[:, 0], coarse[:, 0])[0, 1] > 0.97
    ss.tl.domains(table, n_domains=3, histology=True, method="spagcn")
    del table.uns["spatial"]["lib"]["scalefactors"]
    with pytest.raises(MissingError, match="no image with its scale factors"):
        ss.tl.domains(table, n_domains=3, histology=True)
    del table.uns["spatial"]
    with pytest.raises(MissingError, match="no image"):
        ss.tl.domains(table, n_domains=3, histology=True)


def test_histology_without_an_image_or_in_another_frame(slide):
    slide["counts_spots"].obsm["spatial"] += 1e5
    with pytest.raises(ScaleError, match="outside the image"):
        ss.tl.domains(slide, n_domains=3, histology=True)
    slide["counts_spots"].obsm["spatial"] -= [1e5, 0]
    with pytest.raises(ScaleError, match="outside the image"):
        ss.tl.domains(slide, n_domains=3, histology=True)
    del slide.images["he"]
    with pytest.raises(MissingError, match="no image 'he'"):
        ss.tl.domains(slide, n_domains=3, histology=True)


# ---- command ----------------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    path = tmp_path / "toy.zarr"
    store.create(path, ss.datasets.toy_slide(seed=1), step="convert", parameters={})
    words = ["domains", str(path), "--n-domains", "3", "--histology", "--method", "spagcn"]
    assert run([*words, "--stability", "2", "--json", "/dev/stdout"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(size["domain"] for size in found["sizes"].values()) == store.open(path)["counts_spots"].n_obs
    assert -0.5 <= found["stability"] <= 1
    assert run([*words, "--stability", "2"]) == 0
    assert "adjusted Rand index between 2 seeds" in capsys.readouterr().out
    assert run([*words, "--stability", "1"]) == 1
    assert capsys.readouterr().err.startswith("error: stability over 1 seed(s)")


# ---- bad input --------------------------------------------------------------------------------------------------


def test_small_and_many(table):
    few = table[:6].copy()
    found = ss.tl.domains(few, n_domains=6)
    assert found["domain"].nunique() == 6
    with pytest.raises(InputError, match="7 domains of 6"):
        ss.tl.domains(few, n_domains=7)


@pytest.mark.parametrize("method", registry.names("domains"))
def test_one_clear_error_each(table, method):
    def fails(kind, words, change):
        bad = table[:60].copy()
        bad.X = bad.X.toarray().astype(float)
        change(bad)
        with pytest.raises(kind, match=words):
            ss.tl.domains(bad, n_domains=3, method=method)

    def put(value):
        return lambda bad: bad.X.__setitem__((3, 4), value)

    fails(MissingError, "no coordinates", lambda bad: bad.obsm.pop("spatial"))
    fails(InputError, "NaN", put(np.nan))
    fails(InputError, "infinite", put(np.inf))
    fails(InputError, "negative", put(-1))
    fails(InputError, "every count is zero|no gene varies", lambda bad: bad.X.fill(0))
    fails(InputError, "coordinates", lambda bad: bad.obsm["spatial"].__setitem__((0, 0), np.nan))


@pytest.mark.parametrize("method", registry.names("domains"))
def test_duplicates_and_empty_genes_are_no_trouble(table, method):
    table = table[:150].copy()
    table.obsm["spatial"][:5] = table.obsm["spatial"][0]
    empty = AnnData(np.hstack([table.X.toarray(), np.zeros((table.n_obs, 5), np.float32)]), obs=table.obs[[]].copy())
    empty.obsm["spatial"] = table.obsm["spatial"]
    quick = {"pre_epochs": 10, "epochs": 10} if method == "deepst" else {}
    found = ss.tl.domains(empty, n_domains=3, method=method, **quick)
    assert found["domain"].nunique() == 3
    assert empty.uns[method]["info"]["duplicate_coordinates"] == 4


def test_spagcn_says_that_too_many_rows_lie_at_one_place(table):
    """No length scale gives neighbours at distance 0 a smaller weight than 1."""
    table.obsm["spatial"][: table.n_obs // 2] = table.obsm["spatial"][0]
    with pytest.raises(InputError, match="so many rows lie at one place"):
        ss.tl.domains(table, n_domains=3, method="spagcn")
    assert ss.tl.domains(table, n_domains=3)["domain"].nunique() == 3


def test_layouts_are_told_apart():
    x, y = np.meshgrid(np.arange(12.0), np.arange(12.0))
    assert _layout(np.c_[x.ravel(), y.ravel()]) == "square"
    assert _layout(np.c_[(x + 0.5 * (y % 2)).ravel(), (y * np.sqrt(3) / 2).ravel()]) == "hexagon"
    assert _layout(np.random.default_rng(0).uniform(0, 1, (200, 2))) == "free"


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("spagcn", {"epochs": "two"}, r"epochs is 'two'.*a whole number"),
        ("kriging", {"n_neighbors": "abc"}, r"n_neighbors is 'abc'.*a whole number"),
        ("kriging", {"n_neighbors": 2.5}, r"n_neighbors is 2.5.*a whole number"),
        ("spagcn", {"lr": True}, r"lr is True.*a number"),
        ("spagcn", {"lr": -1}, r"lr is -1.*1e-09 to 10"),
        ("spagcn", {"p": float("nan")}, r"p is nan"),
        ("deepst", {"epochs": -3}, r"epochs is -3.*at least 0"),
        ("kmeans", {"smoothing": 2}, r"smoothing is 2.*0 to 1"),
        ("spagcn", {"num_pcs": 3}, r"no option num_pcs.*num_pcs is n_components here; its options: p,"),
        ("spagcn", {"key_added": "x"}, r"no option key_added.*key_added is key here"),
    ],
)
def test_options_that_mean_nothing_are_refused(method, options, told):
    with pytest.raises(InputError, match=told):
        ss.tl.domains(ss.datasets.toy_table(), n_domains=3, method=method, **options)


def test_settings_of_the_method_are_kept_with_its_results():
    table = ss.datasets.toy_table()
    ss.tl.domains(table, n_domains=3, n_components=np.int64(5))
    params = table.uns["kriging"]["params"]
    assert (params["n_components"], params["n_neighbors"], params["correction"]) == (5, 36, "none")
    ss.tl.svg(table, method="moran")
    assert table.uns["moran"]["params"]["n_neighbors"] == 6
