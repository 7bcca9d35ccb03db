"""Comparison, score figures and the report page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import stainseq as ss
from stainseq import store
from stainseq.errors import MissingError, StoreError

MODEL = {
    "name": "breast-model",
    "head": "ridge",
    "encoder": "colour",
    "region": "spots",
    "slides": ["A1", "A2"],
    "patients": ["A"],
    "tissues": ["breast"],
    "n": 561,
    "n_genes": 50,
    "split": "slide",
    "n_folds": 2,
    "notes": ["scores are within patients: they say nothing about new patients"],
    "cross_validation": {
        "summary": {"pearson": 0.4125, "interval": [0.371, 0.449], "rmse": 0.71},
        "baseline": {"gene_mean": {"pearson": 0.0}, "colour": {"pearson": 0.2875, "interval": [0.25, 0.32]}},
        "ceiling": {"pearson": 0.8125},
        "n_genes": 62,
    },
}


def _with_prediction(seed: int = 0, **more):
    """A toy slide with a prediction that knows the rate and adds noise."""
    sdata = ss.datasets.toy_slide(seed=seed)
    table = sdata["counts_spots"]
    rate = table.layers["rate"]
    rng = np.random.default_rng(0)
    mean = np.log1p(rate / rate.sum(1, keepdims=True) * 1e4)
    mean = (mean + rng.normal(0, 0.4, mean.shape)).astype(np.float32)
    predicted = AnnData(mean, obs=table.obs[["region", "instance_id"]].copy(), var=table.var.copy())
    predicted.obs["fold"] = -1
    predicted.obsm["spatial"] = table.obsm["spatial"]
    predicted.uns["spatialdata_attrs"] = dict(table.uns["spatialdata_attrs"])
    predicted.layers["baseline_colour"] = mean.mean(0) + rng.normal(0, 1, mean.shape).astype(np.float32)
    units = {"units": "log1p(counts per 1e4)", **more}
    store.write_element(
        sdata, "pred_ridge_spots", predicted, step="predict", parameters={"region": "spots"}, more=units
    )
    return sdata


@pytest.fixture(scope="module")
def slide():
    sdata = _with_prediction()
    ss.tl.svg(sdata)
    ss.tl.domains(sdata, n_domains=3)
    return sdata


@pytest.fixture(scope="module")
def metrics(slide):
    return ss.tl.evaluate(slide, truth="counts_spots", prediction="pred_ridge_spots")


def test_measured_and_predicted_share_one_scale(slide):
    figure = ss.pl.measured_predicted(slide, genes=["MOR0000", "MOR0002"], notes={"MOR0000": "r = 0.61"})
    bars = [bar for ax in figure.axes for bar in ax.child_axes]
    maps = [ax for ax in figure.axes if ax.collections]
    assert len(bars) == 2
    assert len(maps) == 4
    values = np.concatenate(
        [
            ss.pl._find.values(slide[t], "MOR0000").numbers  # type: ignore[attr-defined]
            for t in ("counts_spots", "pred_ridge_spots")
        ]
    )
    np.testing.assert_allclose(bars[0].get_ylim(), np.quantile(values, [0.01, 0.99]))
    assert "r = 0.61" in maps[1].get_title(loc="left")


def test_comparison_needs_a_prediction(slide):
    with pytest.raises(MissingError, match="no prediction"):
        ss.pl.measured_predicted(ss.datasets.toy_slide(), genes="MOR0000")
    with pytest.raises(MissingError, match="no gene"):
        ss.pl.measured_predicted(slide, genes=[])


def test_scores_show_baselines_and_ceiling(metrics):
    figure = ss.pl.scores(metrics)
    texts = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert [t.rsplit(" ", 1)[0] for t in texts] == ["this model", "gene mean", "colour only", "noise ceiling"]
    with pytest.raises(MissingError, match="no gene has the score"):
        ss.pl.scores({"genes": [{"gene": "a", "pearson": None}]})


class _Page(HTMLParser):
    """Checks nesting, and collects what a test asks for."""

    VOID = ("meta", "img", "br", "input", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.links: list[str] = []
        self.images = 0
        self.rows: dict[str, int] = {}
        self._table = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        self.images += tag == "img"
        if tag == "img":
            assert given["alt"]
            assert int(given["width"]) > 0
        if tag == "table":
            self._table = given.get("id", "")
        if tag == "tr" and self._table:
            self.rows[self._table] = self.rows.get(self._table, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data.strip())


def test_full_report(slide, metrics, tmp_path):
    (tmp_path / "new").mkdir()
    out = ss.pl.report(
        slide,
        out=tmp_path / "new" / "report.html",
        metrics=metrics,
        title="A <b>slide</b> & more",
        steps=[{"step": "convert", "seconds": 1.25}],
        citations=["Someone, somewhere (2026)."],
    )
    text = out.read_text()
    page = _Page(text)
    assert page.headings == [
        "The tissue",
        "Measured and predicted",
        "How good the prediction is",
        "Spatially variable genes",
        "Domains",
        "What was done",
    ]
    # Nothing is loaded from anywhere: only data URIs and references inside the drawing.
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert page.rows["genes"] == 1 + len(metrics["genes"])
    assert "A &lt;b&gt;slide&lt;/b&gt; &amp; more" in text
    assert f"{metrics['summary']['pearson']:.2f}" in text
    assert "Someone, somewhere (2026)." in text
    assert "was not among those that the model learned from" in text
    assert page.images >= 2 + 8 + 4 + 1
    assert not list(tmp_path.glob("new/.*"))


def test_report_of_counts_alone(tmp_path):
    page = _Page(ss.pl.report(ss.datasets.toy_slide(), out=tmp_path / "a.html").read_text())
    assert page.headings == ["The tissue", "What was done"]


def test_report_says_what_is_absent(tmp_path):
    text = ss.pl.report(ss.datasets.toy_slide(), out=tmp_path / "a.html").read_text()
    assert "Not in this store: predictions (stainseq predict), spatially variable genes (stainseq svg), domains" in text


def test_report_of_a_prediction_alone(tmp_path):
    sdata = _with_prediction()
    del sdata.tables["counts_spots"]
    page = _Page(ss.pl.report(sdata, out=tmp_path / "a.html").read_text())
    assert page.headings == ["The tissue", "Predicted expression", "What was done"]


def test_report_of_a_picture_alone(tmp_path):
    sdata = ss.datasets.toy_slide()
    del sdata.tables["counts_spots"], sdata.shapes["spots"]
    page = _Page(ss.pl.report(sdata, out=tmp_path / "a.html").read_text())
    assert page.headings == ["The tissue", "What was done"]


def test_report_of_both_without_scores(slide, tmp_path):
    text = ss.pl.report(slide, out=tmp_path / "a.html").read_text()
    assert "Most expressed genes" in text
    assert "How good the prediction is" not in text


def test_report_names_out_of_fold_regions(tmp_path, metrics):
    sdata = _with_prediction()
    sdata["pred_ridge_spots"].obs["fold"] = 0
    text = ss.pl.report(sdata, out=tmp_path / "a.html", metrics=metrics).read_text()
    assert "98 of 98 spots were in the training set" in text


def test_metrics_with_gaps_are_shown_as_dashes(slide, metrics, tmp_path):
    gaps = json.loads(json.dumps(metrics))
    gaps["genes"][0] |= {"pearson": None, "ssim": None}
    gaps["summary"]["r2"] = None
    gaps.pop("ceiling")
    _Page(ss.pl.report(slide, out=tmp_path / "a.html", metrics=gaps).read_text())


def test_a_report_that_cannot_be_written(slide, tmp_path):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(StoreError, match=r"this is a folder"):
        ss.pl.report(ss.datasets.toy_slide(), out=tmp_path / "folder.html")
    with pytest.raises(StoreError, match="there is no such folder"):
        ss.pl.report(ss.datasets.toy_slide(), out=tmp_path / "nowhere" / "a.html")
    with pytest.raises(MissingError, match="no table 'counts_cells'"):
        ss.pl.report(slide, out=tmp_path / "a.html", truth="counts_cells")
    assert not (tmp_path / "a.html").exists()


def test_report_of_a_grid_on_a_picture_alone(tmp_path):
    """A slide with H&E alone, predicted on a grid, under a name of the user's own."""
    import geopandas as gpd
    from shapely import points
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    sdata = _with_prediction()
    table = sdata["pred_ridge_spots"].copy()
    xy = table.obsm["spatial"]
    circles = gpd.GeoDataFrame({"radius": np.full(len(xy), 50.0)}, geometry=points(xy), index=table.obs_names)
    table.obs["region"] = pd.Categorical(["grid"] * table.n_obs)
    table.uns["spatialdata_attrs"]["region"] = "grid"
    del sdata.tables["counts_spots"], sdata.tables["pred_ridge_spots"], sdata.shapes["spots"]
    sdata.shapes["grid"] = ShapesModel.parse(circles, transformations={"um": Identity()})
    sdata.tables["everywhere"] = table
    text = ss.pl.report(sdata, out=tmp_path / "a.html").read_text()
    assert _Page(text).headings == ["The tissue", "Predicted expression", "What was done"]
    assert "98 places on a grid, predicted from the image alone. The slide was not among those" in text
    assert "<b>98</b><span>places on a grid predicted</span>" in text
    assert "grid predicted from" not in text


def test_a_prediction_without_truth_carries_its_models_own_scores(tmp_path):
    """Nothing was measured here: what is known is the model's cross-validation, and it is labelled as that."""
    sdata = _with_prediction(model=MODEL)
    del sdata.tables["counts_spots"]
    text = ss.pl.report(sdata, out=tmp_path / "a.html").read_text()
    assert _Page(text).headings == ["The tissue", "Predicted expression", "The model", "What was done"]
    for words in (
        "breast-model",
        "A1, A2",
        "561 spots",
        "2 folds by slide",
        "62 genes",
        "0.37 to 0.45",
        "Nothing was measured on this slide",
        "in the model&#39;s cross-validation",
        "This slide is of toy, the model learned from breast.",
        "say nothing about new patients",
    ):
        assert words in text, words
    rows = [re.sub("<[^>]+>", " ", row).split() for row in re.findall(r"<tr.*?</tr>", text, re.DOTALL)]
    assert ["this", "model", "0.41", "0.37", "to", "0.45", "0.71"] in rows
    assert ["colour", "only", "0.29", "0.25", "to", "0.32", "–"] in rows
    assert ["noise", "ceiling", "0.81", "–"] in rows


def test_scores_on_the_slide_stay_apart_from_the_models_own(slide, metrics, tmp_path):
    sdata = _with_prediction(model=MODEL)
    text = ss.pl.report(sdata, out=tmp_path / "a.html", metrics=metrics).read_text()
    assert _Page(text).headings[2:4] == ["How good the prediction is", "The model"]
    assert "Cross-validation inside the training slides" in text
    assert "Nothing was measured on this slide" not in text
    assert "in the model&#39;s cross-validation" not in text
