"""Maps: true sizes, upright, honest colour scales, and many cells quickly."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.collections import EllipseCollection, PolyCollection

import stainseq as ss
from stainseq.errors import InputError, MissingError
from stainseq.pl import _draw, _style


@pytest.fixture(scope="module")
def slide():
    return ss.datasets.toy_slide(seed=0)


def _maps(figure):
    """Axes that hold a map, not a colour bar."""
    return [ax for ax in figure.axes if ax.get_aspect() == 1.0]


def _circles(ax):
    return next(c for c in ax.collections if isinstance(c, EllipseCollection))


def test_spots_have_their_true_size_and_place(slide):
    figure = ss.pl.spatial(slide, color="MOR0000")
    figure.draw_without_rendering()
    ax = _maps(figure)[0]
    circles = _circles(ax)
    np.testing.assert_allclose(circles.get_widths(), 55)
    np.testing.assert_allclose(circles.get_offsets(), slide["counts_spots"].obsm["spatial"])
    low, high = ax.get_ylim()
    assert low > high  # y down
    picture = ax.get_images()[0]
    np.testing.assert_allclose(picture.get_extent(), (*ax.get_xlim(), low, high))


def test_picture_lies_under_the_right_tissue(slide):
    """A red square painted into the image at 200 to 300 um appears there in the drawn figure."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, Scale

    rgb = np.full((3, 900, 900), 255, np.uint8)
    rgb[1:, 250:375, 125:250] = 0  # y 200 to 300 um, x 100 to 200 um at 0.8 um per pixel
    copy = ss.datasets.toy_slide(seed=0)
    copy.images["he"] = Image2DModel.parse(
        rgb, dims=("c", "y", "x"), transformations={"global": Identity(), "um": Scale([0.8, 0.8], axes=("x", "y"))}
    )
    figure = ss.pl.spatial(copy, region="none", crop_um=(0, 0, 720, 720), scale_bar=False, panel_inches=4)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    ax = _maps(figure)[0]

    def pixel(x, y):
        col, row = ax.transData.transform((x, y))
        return drawn[drawn.shape[0] - 1 - int(row), int(col)]

    assert pixel(150, 250)[1] < 60
    assert (pixel(150, 150) > 200).all()
    assert (pixel(250, 250) > 200).all()


def test_colour_bar_runs_between_quantiles(slide):
    table = slide["counts_spots"]
    table.obs["value"] = np.r_[1000.0, np.linspace(0, 1, table.n_obs - 1)]
    figure = ss.pl.spatial(slide, color="value", quantiles=(0.05, 0.95))
    bar = _maps(figure)[0].child_axes[0]
    np.testing.assert_allclose(bar.get_ylim(), np.quantile(table.obs["value"], [0.05, 0.95]))
    del table.obs["value"]


def test_counts_are_shown_normalised_and_others_as_they_are(slide):
    from stainseq.core.normalize import log1p_cp10k
    from stainseq.pl import _find

    table = slide["counts_spots"]
    want = log1p_cp10k(table.X).toarray()[:, 3]
    shown = _find.values(table, table.var_names[3])
    np.testing.assert_allclose(shown.numbers, want, rtol=1e-6)
    assert "per 10,000" in shown.unit
    rate = _find.values(table, table.var_names[3], layer="rate")
    np.testing.assert_allclose(rate.numbers, table.layers["rate"][:, 3])


def test_missing_values_are_grey_and_flat_ones_do_no_harm(slide):
    table = slide["counts_spots"].copy()
    table.obs["gap"] = np.where(np.arange(table.n_obs) < 5, np.nan, 3.0)
    figure = ss.pl.spatial(table, color="gap")
    colours = _circles(_maps(figure)[0]).get_facecolor()
    np.testing.assert_allclose(colours[:5], np.tile(mpl.colors.to_rgba(_style.MISSING), (5, 1)))
    assert len(np.unique(colours[5:], axis=0)) == 1


def test_categories_get_a_legend_and_given_colours(slide):
    figure = ss.pl.spatial(slide, color="truth", palette={"immune": "#000000"})
    ax = _maps(figure)[0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["gland", "stroma", "immune"]
    black = (_circles(ax).get_facecolor()[:, :3] == 0).all(1)
    assert black.sum() == (slide["counts_spots"].obs["truth"] == "immune").sum()


def test_small_multiples_share_the_picture_and_one_scale_bar(slide):
    genes = list(slide["counts_spots"].var_names[:5])
    figure = ss.pl.spatial(slide, color=genes, columns=3)
    maps = [ax for ax in _maps(figure) if ax.get_images()]
    assert [ax.get_title() for ax in maps] == genes
    assert sum(len(ax.artists) for ax in maps) == 1


def test_polygons_are_drawn_as_polygons(slide):
    import geopandas as gpd
    from shapely.geometry import box
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    xy = slide["counts_spots"].obsm["spatial"][:20]
    frame = gpd.GeoDataFrame(
        geometry=[box(x - 10, y - 20, x + 10, y + 20) for x, y in xy], index=[f"c{i}" for i in range(20)]
    )
    slide.shapes["cells"] = ShapesModel.parse(frame, transformations={"um": Identity()})
    table = AnnData(np.arange(20.0)[:, None], obs=pd.DataFrame(index=frame.index), var=pd.DataFrame(index=["g"]))
    slide.tables["pred_x_cells"] = table
    figure = ss.pl.spatial(slide, color="g", region="cells")
    outlines = next(c for c in _maps(figure)[0].collections if isinstance(c, PolyCollection))
    assert len(outlines.get_paths()) == 20
    np.testing.assert_allclose(outlines.get_paths()[0].vertices[:, 1].max(), xy[0, 1] + 20)
    del slide.tables["pred_x_cells"], slide.shapes["cells"]


def test_many_cells_become_pixels():
    rng = np.random.default_rng(0)
    n = 250_000
    cells = AnnData(np.zeros((n, 1), np.float32))
    cells.obsm["spatial"] = rng.uniform(0, 5000, (n, 2))
    cells.obs["v"] = cells.obsm["spatial"][:, 0]
    figure = ss.pl.spatial(cells, color="v")
    ax = _maps(figure)[0]
    assert not ax.collections
    picture = ax.get_images()[0].get_array()
    seen = picture[..., 3] > 0
    # Yellow on the right, violet on the left.
    assert picture[:, -50:, 0][seen[:, -50:]].mean() > picture[:, :50, 0][seen[:, :50]].mean() + 0.3


def test_painting_is_the_mean_over_covering_discs():
    rng = np.random.default_rng(1)
    xy, colours = rng.uniform(0, 100, (40, 2)), rng.uniform(0, 1, (40, 4))
    radius = np.full(40, 3.0)
    got = _draw.paint(xy, radius, colours, (0, 0, 100, 80), 100)
    assert got.shape == (80, 100, 4)
    cell = np.floor(xy).astype(int)
    for row in range(0, 80, 7):
        for col in range(0, 100, 7):
            near = ((cell - [col, row]) ** 2).sum(1) <= 3.5**2
            assert (got[row, col, 3] == 1) == near.any()
            if near.any():
                np.testing.assert_allclose(got[row, col, :3], colours[near, :3].mean(0), rtol=1e-5)


def test_vector_files_hold_many_spots_as_pixels(tmp_path):
    rng = np.random.default_rng(2)
    cells = AnnData(np.zeros((5000, 1), np.float32))
    cells.obsm["spatial"] = rng.uniform(0, 5000, (5000, 2))
    cells.obs["v"] = rng.uniform(0, 1, 5000)
    figure = ss.pl.spatial(cells, color="v")
    figure.savefig(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size < 2_000_000


def test_nothing_global_is_left_changed(slide):
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    ss.pl.spatial(slide, color="truth")
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize(("about", "want", "label"), [(130, 100, "100 µm"), (450, 500, "500 µm"), (1700, 2000, "2 mm")])
def test_scale_bar_lengths_are_round(about, want, label):
    assert _draw.round_length(about) == want
    assert _draw.length_label(want) == label


def test_palettes_do_not_repeat():
    for n in (3, 16, 40):
        assert len(set(_style.palette(n))) == n


def test_errors_say_what_is_there(slide):
    with pytest.raises(MissingError, match="did you mean 'MOR0000'"):
        ss.pl.spatial(slide, color="mor0000")
    with pytest.raises(MissingError, match="columns: region"):
        ss.pl.spatial(slide, color="nothing")
    with pytest.raises(MissingError, match="there are: counts_spots"):
        ss.pl.spatial(slide, color="MOR0000", region="cells")
    with pytest.raises(InputError, match="empty crop"):
        ss.pl.spatial(slide, color="MOR0000", crop_um=(5, 5, 5, 9))
    with pytest.raises(MissingError, match="nothing to draw"):
        ss.pl.spatial(slide, region="none", image_key=None)
    nowhere = slide["counts_spots"].copy()
    del nowhere.obsm["spatial"]
    with pytest.raises(MissingError, match="no coordinates"):
        ss.pl.spatial(nowhere, color="truth")


def test_rows_that_are_no_regions_are_refused(slide):
    table = slide["counts_spots"].copy()
    table.obs_names = [f"x{i}" for i in range(table.n_obs)]
    slide.tables["odd"] = table
    with pytest.raises(MissingError, match="98 of 98 rows of the table are not among the spots"):
        ss.pl.spatial(slide, color="MOR0000", table_key="odd")
    del slide.tables["odd"]


def test_one_spot_and_one_place():
    one = AnnData(np.ones((1, 1), np.float32), var=pd.DataFrame(index=["g"]))
    one.obsm["spatial"] = np.array([[5.0, 5.0]])
    assert ss.pl.spatial(one, color="g").axes


# ---- true outlines of any number of regions ------------------------------------------------------------------------


def _blobs(n=60, seed=0):
    """Polygons that do not overlap, some with holes, some in two parts."""
    import shapely

    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(np.arange(10), np.arange(6)), -1).reshape(-1, 2)[:n] * 20.0 + 10
    whole = shapely.buffer(shapely.points(at), rng.uniform(5, 9, n))
    whole[::5] = shapely.difference(whole[::5], shapely.buffer(shapely.points(at[::5]), 3))
    cut = shapely.box(at[1::5, 0] - 1, at[1::5, 1] - 20, at[1::5, 0] + 1, at[1::5, 1] + 20)
    whole[1::5] = shapely.difference(whole[1::5], cut)
    return whole


@pytest.fixture(scope="module")
def cells():
    import geopandas as gpd
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    shapes = gpd.GeoDataFrame(geometry=_blobs(), index=[f"c{i}" for i in range(60)])
    table = AnnData(np.arange(60.0)[:, None] + 0.5, obs=pd.DataFrame(index=shapes.index), var=pd.DataFrame(index=["g"]))
    return SpatialData(
        shapes={"cells": ShapesModel.parse(shapes, transformations={"um": Identity()})}, tables={"pred_x_cells": table}
    )


def test_painted_outlines_are_those_of_the_polygons(cells):
    """Every pixel's cover and colour against shapely, for polygons with holes and parts."""
    import shapely

    from stainseq import regions

    shapes = _blobs()
    colours = np.random.default_rng(3).uniform(0, 1, (60, 4))
    got = _draw.paint_outlines(regions.get(cells, "cells"), colours, (0, 0, 200, 120), 100)
    assert got.shape == (60, 100, 4)
    offsets = np.array([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])
    for row in range(0, 60, 3):
        for col in range(0, 100, 3):
            points = shapely.points(np.array([2 * col + 1, 2 * row + 1]) + offsets)
            who = [next((i for i, s in enumerate(shapes) if shapely.contains(s, p)), -1) for p in points]
            seen = [w for w in who if w >= 0]
            assert got[row, col, 3] == len(seen) / 4
            if seen:
                np.testing.assert_allclose(got[row, col, :3], colours[seen, :3].mean(0), rtol=1e-5)


def test_painted_borders_are_hollow(cells):
    from stainseq import regions

    got = _draw.paint_outlines(regions.get(cells, "cells"), np.ones((60, 4)), (0, 0, 200, 120), 400, hollow=True)
    centre = got[20, 100]  # of a cell without a hole
    assert centre[3] == 0
    assert 0.02 < (got[..., 3] > 0).mean() < 0.3


def test_many_polygons_are_painted_and_few_are_drawn_alike(cells, monkeypatch):
    """The painted map shows what the drawn one shows."""

    def drawn():
        figure = ss.pl.spatial(cells, color="g", region="cells", scale_bar=False, panel_inches=4)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int), _maps(figure)[0]

    paths, ax = drawn()
    assert ax.collections
    monkeypatch.setattr(_draw, "PAINT_ABOVE", 10)
    painted, ax = drawn()
    assert not ax.collections
    assert np.abs(paths - painted).mean() < 2


def test_long_polygons_are_seen_whole_and_in_crops_that_miss_their_centre():
    import geopandas as gpd
    from shapely.geometry import box
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    shapes = gpd.GeoDataFrame(geometry=[box(0, 0, 1000, 10), box(0, 40, 20, 60)], index=["long", "short"])
    slide = SpatialData(shapes={"x": ShapesModel.parse(shapes, transformations={"um": Identity()})})
    ax = _maps(ss.pl.spatial(slide, region="x"))[0]
    assert ax.get_xlim() == (-30, 1030)
    cropped = _maps(ss.pl.spatial(slide, region="x", crop_um=(900, 0, 990, 50)))[0]
    assert len(next(c for c in cropped.collections if isinstance(c, PolyCollection)).get_paths()) == 1


def test_holes_stay_open(cells):
    figure = ss.pl.spatial(cells, color="g", region="cells", scale_bar=False, panel_inches=6)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    col, row = _maps(figure)[0].transData.transform((10, 10))  # the first cell has a hole of 3 um
    assert (drawn[drawn.shape[0] - 1 - int(row), int(col)] > 250).all()


@pytest.mark.parametrize("few", [True, False])
def test_labels_are_drawn_and_painted(few, monkeypatch):
    from spatialdata import SpatialData
    from spatialdata.models import Labels2DModel, TableModel
    from spatialdata.transformations import Scale

    raster = np.zeros((40, 60), np.int32)
    raster[5:15, 5:25], raster[20:35, 30:50] = 3, 7
    obs = pd.DataFrame({"region": pd.Categorical(["nuclei"] * 2), "instance_id": [3, 7]}, index=["3", "7"])
    table = AnnData(np.array([[1.5], [2.5]]), obs=obs, var=pd.DataFrame(index=["g"]))
    slide = SpatialData(
        labels={
            "nuclei": Labels2DModel.parse(raster, dims=("y", "x"), transformations={"um": Scale([2, 2], ("x", "y"))})
        },
        tables={
            "counts_nuclei": TableModel.parse(table, region="nuclei", region_key="region", instance_key="instance_id")
        },
    )
    if not few:
        from stainseq.pl import _find

        monkeypatch.setattr(_find, "LABELS_AS_POLYGONS_UP_TO", 1)
    figure = ss.pl.spatial(
        slide, color="g", region="nuclei", crop_um=(0, 0, 120, 80), quantiles=(0, 1), scale_bar=False, panel_inches=3
    )
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    ax = _maps(figure)[0]
    assert bool(ax.collections) is few
    low, high = (np.array(mpl.colormaps["viridis"](v)[:3]) * 255 for v in (0.0, 1.0))
    for x, y, want in ((30, 20, low), (80, 55, high), (30, 55, [255] * 3), (52, 12, [255] * 3)):
        col, row = ax.transData.transform((x, y))
        assert np.abs(drawn[drawn.shape[0] - 1 - int(row), int(col)] - want).max() < 12


def test_bins_of_a_turned_grid_are_drawn_turned(tmp_path):
    from stainseq import regions, store

    slide = store.create(tmp_path / "a.zarr", ss.datasets.toy_slide(seed=0), step="convert", parameters={})
    c, s = 40 * np.cos(0.3), 40 * np.sin(0.3)
    row, col = np.divmod(np.arange(12), 4)
    turned = np.array([[c, -s, 200], [s, c, 200], [0, 0, 1.0]])
    ids = [f"b{i}" for i in range(12)]
    regions.add_grid(
        slide, "bins", rows=row, cols=col, ids=ids, shape=(3, 4), transform=turned, step="t", parameters={}
    )
    figure = ss.pl.spatial(slide, region="bins")
    outlines = next(x for x in _maps(figure)[0].collections if isinstance(x, PolyCollection))
    got = {tuple(v) for v in np.round(outlines.get_paths()[0].vertices, 3).tolist()}
    assert got == {tuple(np.round((turned @ [i, j, 1])[:2], 3).tolist()) for i in (0, 1) for j in (0, 1)}


# ---- several samples -----------------------------------------------------------------------------------------------


def _samples():
    """Two samples in one table that lie on the same coordinates; the second lacks a domain."""
    rng = np.random.default_rng(0)
    one = AnnData(rng.poisson(3.0, (50, 2)).astype(np.float32), var=pd.DataFrame(index=["a", "b"]))
    xy = np.stack(np.meshgrid(np.arange(10.0), np.arange(5.0)), -1).reshape(-1, 2) * 10
    one.obs_names = [f"x{i}" for i in range(50)]
    one.obsm["spatial"] = np.vstack([xy[:30], xy[:20]])
    one.obs["sample"] = ["s10"] * 30 + ["s2"] * 20
    one.obs["domain"] = pd.Categorical(["0", "1", "2"] * 10 + ["1", "2"] * 10)
    one.obs["score"] = np.r_[np.zeros(30), np.full(20, 9.0)]
    one.obsm["p"] = rng.uniform(size=(50, 3))
    one.var["symbol"] = ["Alpha", "Beta"]
    return one


def test_samples_of_a_table_get_a_panel_each():
    figure = ss.pl.spatial(_samples(), color="score", quantiles=(0, 1))
    maps = _maps(figure)
    assert [ax.get_title() for ax in maps] == ["s2", "s10"]
    assert [len(_circles(ax).get_offsets()) for ax in maps] == [20, 30]
    # One bar, of the values of both: the sample of nines is yellow, that of zeros violet.
    np.testing.assert_allclose(_circles(maps[0]).get_facecolor()[0], mpl.colormaps["viridis"](1.0))
    np.testing.assert_allclose(_circles(maps[1]).get_facecolor()[0], mpl.colormaps["viridis"](0.0))
    spans = [np.ptp(ax.get_xlim()) for ax in maps]
    assert spans[0] == spans[1]


def test_a_domain_has_one_colour_in_all_samples_and_columns():
    table = _samples()
    table.obs["refined"] = table.obs["domain"].astype(str).astype("category")
    figure = ss.pl.spatial(table, color=["domain", "refined"])
    maps = _maps(figure)
    assert len(maps) == 4
    seen: dict[str, set] = {}
    for i, ax in enumerate(maps):
        rows = table.obs["sample"] == ("s2", "s10")[i % 2]
        for name, colour in zip(table.obs["domain"][rows], _circles(ax).get_facecolor(), strict=True):
            seen.setdefault(name, set()).add(tuple(colour))
    assert [len(v) for v in seen.values()] == [1, 1, 1]
    assert len({next(iter(v)) for v in seen.values()}) == 3
    legends = [ax.get_legend() for ax in maps if ax.get_legend() is not None]
    assert [[t.get_text() for t in x.get_texts()] for x in legends] == [["0", "1", "2"]] * 2


def test_slides_by_name_and_a_choice_of_them(slide):
    other = ss.datasets.toy_slide(seed=1)
    figure = ss.pl.spatial({"A": slide, "B": other}, color="MOR0000", samples=["B", "A"])
    assert [ax.get_title() for ax in _maps(figure)] == ["B", "A"]
    assert all(ax.get_images() for ax in _maps(figure))
    assert [ax.get_title() for ax in _maps(ss.pl.spatial([slide, other], color="truth"))] == ["toy0", "toy1"]
    with pytest.raises(MissingError, match=r"no sample 'C'.*one of: A, B"):
        ss.pl.spatial({"A": slide, "B": other}, samples="C")
    with pytest.raises(InputError, match="two samples are named 'toy0'"):
        ss.pl.spatial([slide, slide])


def test_crops_by_sample(slide):
    crops = {"A": (0, 0, 100, 100), "B": (200, 300, 300, 400)}
    figure = ss.pl.spatial({"A": slide, "B": slide}, color="MOR0000", crop_um=crops)
    assert [ax.get_xlim() for ax in _maps(figure)] == [(0, 100), (200, 300)]


def test_columns_of_obsm_and_symbols():
    from stainseq.pl import _find

    table = _samples()
    np.testing.assert_allclose(_find.values(table, "p:2").numbers, table.obsm["p"][:, 2])
    np.testing.assert_allclose(_find.values(table, "Beta").numbers, _find.values(table, "b").numbers)
    with pytest.raises(MissingError, match="up to 2"):
        ss.pl.spatial(table, color="p:3")
    with pytest.raises(MissingError, match="did you mean 'Alpha'"):
        ss.pl.spatial(table, color="alpah")


def test_numbers_in_one_sample_and_names_in_another_are_refused():
    a, b = _samples()[:30].copy(), _samples()[30:].copy()
    b.obs["score"] = "many"
    with pytest.raises(InputError, match="numbers in some samples and names in others"):
        ss.pl.spatial({"a": a, "b": b}, color="score")


def test_a_long_legend_is_cut():
    names = [f"n{i}" for i in range(200)]
    big = AnnData(np.zeros((200, 1), np.float32), obs=pd.DataFrame({"each": names}, index=names))
    big.obsm["spatial"] = np.random.default_rng(0).uniform(0, 100, (200, 2))
    entries = [t.get_text() for t in _maps(ss.pl.spatial(big, color="each"))[0].get_legend().get_texts()]
    assert entries[-1] == f"and {200 - len(entries) + 1} more"
    assert len(entries) <= 42


def test_mudata_and_files_are_drawn(tmp_path):
    import mudata

    table = _samples()
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": table})
    ss.io.write_table(both, tmp_path / "a.h5mu")
    table.write_h5ad(tmp_path / "a.h5ad")
    for data in (both, tmp_path / "a.h5mu", tmp_path / "a.h5mu" / "rna", tmp_path / "a.h5ad"):
        assert len(_maps(ss.pl.spatial(data, color="score"))) == 2


def test_experiments_and_several_files_are_drawn(tmp_path):
    table = _samples()
    one, two = table[:30].copy(), table[30:].copy()
    folder = ss.io.write_experiment({"x": one, "y": two}, tmp_path / "e")
    assert [ax.get_title() for ax in _maps(ss.pl.spatial(folder, color="score"))] == ["x", "y"]
    files = [folder / "expression" / "x.h5ad", folder / "expression" / "y.h5ad"]
    assert [ax.get_title() for ax in _maps(ss.pl.spatial(files, color="a"))] == ["x", "y"]
    with pytest.raises(InputError, match=r"no colour map 'virdis'.*viridis"):
        ss.pl.spatial(files, color="a", cmap="virdis")


def test_plot_command_takes_samples_files_and_experiments(tmp_path, capsys):
    from stainseq.cli import run

    table = _samples()
    folder = ss.io.write_experiment({"x": table[:30].copy(), "y": table[30:].copy()}, tmp_path / "e")
    path = str(ss.io.write_table(table, tmp_path / "a.h5ad"))
    out = str(tmp_path / "a.png")
    small = ["--out", out, "--dpi", "40"]
    assert run(["plot", path, "score", "--samples", "s2", *small]) == 0
    assert run(["plot", str(folder), "score", "domain", *small]) == 0
    assert (
        run(
            [
                "plot",
                str(folder / "expression" / "x.h5ad"),
                "a",
                "--beside",
                str(folder / "expression" / "y.h5ad"),
                *small,
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert run(["plot", path, "score", "--samples", "s3", *small]) == 1
    assert "no sample 's3'; one of: s2, s10" in capsys.readouterr().err
