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
    bar = next(ax for ax in figure.axes if ax.get_label() == "<colorbar>")
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
    with pytest.raises(MissingError, match="98 of 98 rows are not among the spots"):
        ss.pl.spatial(slide, color="MOR0000", table_key="odd")
    del slide.tables["odd"]


def test_one_spot_and_one_place():
    one = AnnData(np.ones((1, 1), np.float32), var=pd.DataFrame(index=["g"]))
    one.obsm["spatial"] = np.array([[5.0, 5.0]])
    assert ss.pl.spatial(one, color="g").axes
