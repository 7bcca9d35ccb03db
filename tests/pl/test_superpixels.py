"""Maps of superpixels: pixels where the bins lie, values of the right tables, fast paths for lazy ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import stainseq as ss
from stainseq import regions, store
from stainseq.cli import run
from stainseq.errors import InputError, MissingError
from stainseq.pl import _raster, _superpixels
from stainseq.store import matrices

GENES = ["ERBB2", "COL1A1", "KRT19", "VIM"]


def transform(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[8 * c, -8 * s, 250.0], [8 * s, 8 * c, 150.0], [0, 0, 1.0]])


@pytest.fixture
def slide(tmp_path: Path) -> Any:
    toy = ss.datasets.toy_slide(size="small", seed=0)
    sdata = store.create(tmp_path / "s.zarr", toy, step="convert", parameters={})
    rng = np.random.default_rng(0)
    rows, cols = (v.ravel() for v in np.mgrid[:30, :40])
    keep = rng.random(len(rows)) > 0.2
    regions.add_grid(
        sdata, "superpixels", rows=rows[keep], cols=cols[keep], ids=None, shape=(30, 40), transform=transform(0.4),
        step="superpixels", parameters={},
    )  # fmt: skip
    where = regions.get(sdata, "superpixels")
    n = len(where)
    counts = sparse.csr_matrix(rng.poisson(np.array([0.5, 3.0, 1.0, 0.1]), (n, 4)).astype(np.int32))
    store.write_element(
        sdata, "counts_superpixels", regions.table(where, counts, var_names=GENES), step="aggregate", parameters={}
    )
    table = regions.table(where, rng.random((n, 4)).astype(np.float32) * [1, 1, 1, 9], var_names=GENES)
    table.X = table.X.astype(np.float32)
    table.layers["predicted"] = rng.random((n, 4)).astype(np.float32)
    table.layers["weight"] = rng.random((n, 4)).astype(np.float32)
    store.write_element(
        sdata, "pred_ridge_superpixels", table, step="predict", parameters={"head": "ridge"},
        more={"units": "log1p(counts)"},
    )  # fmt: skip
    return sdata


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2, 2.5])
@pytest.mark.parametrize("zoom", [1, 12])
def test_pixels_show_the_bin_below_them(angle: float, zoom: int) -> None:
    rng = np.random.default_rng(1)
    rows, cols = (v.ravel() + 5 for v in np.mgrid[: 7 * zoom, : 9 * zoom])
    keep = rng.random(len(rows)) > 0.1
    rows, cols = rows[keep], cols[keep]
    values = rng.random(len(rows)) if zoom == 1 else np.sin(rows / 9.0) + cols / 30.0
    from stainseq.regions.grid import Grid
    from stainseq.regions.model import Region

    grid = Grid(rows.astype(np.int32), cols.astype(np.int32), (200, 200), transform(angle))
    middle = np.column_stack([cols + 0.5, rows + 0.5, np.ones(len(rows))]) @ grid.transform.T
    region = Region("g", "grid", middle[:, :2], grid, lambda: np.arange(len(rows)).astype(str))
    place = _raster.raster(region)
    if zoom == 12:  # bins are finer than pixels: means of those below
        place = _raster.Raster(*(getattr(place, k) for k in ("rows", "cols", "shape", "first", "transform", "box")),
                               size=tuple(s // 30 for s in place.size))  # fmt: skip
    painted, share = place.paint(values)
    h, w = painted.shape
    um = (place.box[2] - place.box[0]) / w
    y, x = (v.ravel() for v in np.mgrid[:h, :w])
    at = np.column_stack([place.box[0] + (x + 0.5) * um, place.box[1] + (y + 0.5) * um])
    who = grid.assign(at)
    shown = np.isfinite(painted.ravel())
    assert (shown == (share.ravel() > 0)).all()
    if zoom == 1:
        same = (who >= 0) == shown
        assert same.mean() > 0.99  # OpenCV rounds to a 32nd of a pixel at the borders of bins
        both = shown & (who >= 0)
        assert (np.abs(painted.ravel()[both] - values[who[both]]) < 1e-6).mean() > 0.98
    else:
        both = shown & (who >= 0)
        assert both.mean() > 0.2
        assert np.corrcoef(painted.ravel()[both], values[who[both]])[0, 1] > 0.97


def test_panels_show_what_is_there_in_one_unit(slide: Any) -> None:
    figure = ss.pl.superpixels(slide, genes=["ERBB2", "VIM"])
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles == [
        "H&E",
        "ERBB2, measured",
        "predicted",
        "enhanced",
        "H&E",
        "VIM, measured",
        "predicted",
        "enhanced",
    ]
    maps = _superpixels._tables(slide, "superpixels", None, None)
    assert maps.enhanced
    drawing = _superpixels._Maps(
        slide, maps, ["measured"], regions.get(slide, "superpixels"), np.ones(slide["counts_superpixels"].n_obs, bool),
        None, None, None, (0, 1), False, "viridis", 2.0,
    )  # fmt: skip
    counts, predicted = slide["counts_superpixels"], slide["pred_ridge_superpixels"]
    np.testing.assert_allclose(drawing._values("measured", "VIM"), np.log1p(counts.X[:, [3]].toarray().ravel()))
    np.testing.assert_allclose(drawing._values("predicted", "VIM"), predicted.layers["predicted"][:, 3])
    np.testing.assert_allclose(drawing._values("enhanced", "VIM"), predicted.X[:, 3])


def test_top_genes_by_counts_variance_and_score(slide: Any) -> None:
    tables = _superpixels._tables(slide, "superpixels", None, None)
    assert _superpixels._top(tables, 2, "counts", None) == ["COL1A1", "KRT19"]
    assert _superpixels._top(tables, 1, "variance", None) == ["VIM"]
    scores = {"genes": [{"gene": "KRT19", "pearson": 0.9}, {"gene": "VIM", "pearson": 0.2}]}
    assert _superpixels._top(tables, 4, "score", scores) == ["KRT19", "VIM"]
    with pytest.raises(InputError, match="no scores to rank by"):
        _superpixels._top(tables, 4, "score", None)
    with pytest.raises(InputError, match="top=0"):
        ss.pl.superpixels(slide, top=0)
    figure = ss.pl.superpixels(slide, top=3, show=["enhanced"], overlay=0.7)
    assert sum("enhanced" in ax.get_title(loc="left") for ax in figure.axes) == 3


def test_bad_quality_is_not_drawn_and_the_figure_says_what_there_is(slide: Any) -> None:
    import pandas as pd

    where = regions.get(slide, "superpixels")
    codes = np.arange(len(where)) % 3
    table = regions.table(
        where,
        np.zeros((len(where), 1), np.float32),
        var_names=["density"],
        obs={"quality": pd.Categorical.from_codes(codes, ["good", "background", "pen"])},
    )
    store.write_element(slide, "quality_superpixels", table, step="quality", parameters={})
    with pytest.MonkeyPatch.context() as patch:
        seen: list[np.ndarray] = []
        patch.setattr(_raster, "show", lambda ax, place, values, **k: seen.append(values))
        ss.pl.superpixels(slide, genes="VIM")
        ss.pl.superpixels(slide, genes="VIM", quality_key="none")
    np.testing.assert_array_equal(np.isfinite(seen[0]), codes == 0)
    assert np.isfinite(seen[-1]).all()
    figure = ss.pl.superpixel_quality(slide)
    texts = [t.get_text() for ax in figure.axes if ax.get_legend() for t in ax.get_legend().get_texts()]
    assert texts[0].startswith("good  33.4%")
    slide.tables["quality_superpixels"].obs["quality"] = pd.Categorical(["pen"] * len(where))
    figure = ss.pl.superpixel_quality(slide)
    assert [t.get_text() for t in figure.axes[2].get_legend().get_texts()] == ["pen  100.0%"]


def test_a_narrow_map_is_as_long_as_its_box() -> None:
    """The width in pixels is rounded: that must not move what lies at the other end."""
    from stainseq.regions.grid import Grid
    from stainseq.regions.model import Region

    rows = np.arange(1000)
    grid = Grid(rows.astype(np.int32), np.zeros(1000, np.int32), (1000, 1), np.diag([8.0, 8.0, 1.0]))
    middle = np.column_stack([np.full(1000, 4.0), 8 * rows + 4.0])
    region = Region("g", "grid", middle, grid, lambda: rows.astype(str))
    place = _raster.raster(region, (0.0, 0.0, 11.9, 8000.0))
    painted, _ = place.paint(rows.astype(float))
    assert painted.shape == (1000, 1)
    np.testing.assert_array_equal(painted[:, 0], rows)


def test_a_lazy_table_is_read_by_columns(slide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.asarray(slide["pred_ridge_superpixels"].X)
    monkeypatch.setattr(matrices, "LAZY_ABOVE", 100)
    again = store.open(slide.path)
    table = again.tables["pred_ridge_superpixels"]
    assert hasattr(table.X, "dask")
    np.testing.assert_array_equal(np.asarray(table.X), whole)
    ss.pl.superpixels(again, genes=["VIM"])
    asked: list[int] = []
    real = type(table.X).compute
    monkeypatch.setattr(type(table.X), "compute", lambda s, **k: (asked.append(s.shape[1]), real(s, **k))[1])
    ss.pl.spatial(again, color="VIM", region="superpixels", table_key="pred_ridge_superpixels")
    assert asked
    assert max(asked) == 1


def test_command_draws_and_refuses(slide: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "f.png"
    command = ["plot", str(slide.path), "--region", "superpixels", "--compare", "--out", str(out)]
    assert run([*command, "--top", "2", "--by", "score", "--overlay", "0.8"]) == 0
    assert out.stat().st_size > 10_000
    assert run([*command, "NOTHERE"]) == 1
    assert "no gene 'NOTHERE'" in capsys.readouterr().err
    with pytest.raises(InputError, match="is no grid"):
        ss.pl.superpixels(slide, region="spots", truth="counts_spots")
    with pytest.raises(MissingError, match="tissue --quality"):
        ss.pl.superpixel_quality(slide)
    with pytest.raises(InputError, match="cannot be shown"):
        ss.pl.superpixels(slide, show=["guessed"])


def test_measured_beside_predicted_is_in_the_unit_of_the_prediction(slide: Any) -> None:
    from stainseq.pl import _compare

    counts, predicted = slide["counts_superpixels"], slide["pred_ridge_superpixels"]
    shown = _compare._in_unit_of(predicted, counts, "VIM")
    np.testing.assert_allclose(shown.numbers, np.log1p(counts.X[:, [3]].toarray().ravel()))
    assert shown.unit == "log(1 + counts)"
    other = predicted.copy()
    other.uns["stainseq"]["units"] = "log1p(counts per 1e4)"
    assert _compare._in_unit_of(other, counts, "VIM").unit == "log(1 + counts per 10,000)"
