"""The score report: its shape, its conventions, and intervals that cover the truth."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import sparse

from stainseq.core import ceiling, metrics, scores
from stainseq.errors import InputError


def _slides(n_slides=2, side=12, genes=6, seed=0):
    rng = np.random.default_rng(seed)
    r, c = (v.ravel() for v in np.indices((side, side)))
    xy = np.tile(np.column_stack([c, r]) * 200.0, (n_slides, 1))
    slides = np.repeat(np.arange(n_slides), side * side)
    truth = np.log1p(rng.poisson(2, (len(xy), genes)))
    return truth, truth * 0.5 + rng.normal(0, 0.4, truth.shape), xy, slides


def test_report_is_the_promised_shape_and_json():
    truth, pred, xy, slides = _slides()
    mean = np.broadcast_to(truth.mean(0), truth.shape)
    out = scores.score(
        truth,
        pred,
        genes=list("abcdef"),
        coordinates=xy,
        slides=slides,
        baselines={"gene_mean": mean, "worse": pred + np.random.default_rng(1).normal(0, 1, pred.shape)},
        ceiling=np.full(6, 0.8),
        n_boot=200,
    )
    out = json.loads(json.dumps(out, allow_nan=False))
    assert out["n"] == 288
    assert set(out["genes"][0]) == {"gene", *scores.METRICS, "ceiling"}
    expected = metrics.per_gene(truth, pred)
    for name in scores.METRICS[:-1]:
        np.testing.assert_allclose([g[name] for g in out["genes"]], expected[name], rtol=1e-9)
        assert out["summary"][name] == pytest.approx(expected[name].mean())
    low, high = out["summary"]["interval"]
    assert low < out["summary"]["pearson"] < high
    for name in ("rmse", "mse", "r2", "spearman", "ssim"):
        low, high = out["summary"]["intervals"][name]
        assert low < out["summary"][name] < high
    base = out["baseline"]["gene_mean"]
    assert base["pearson"] == 0
    assert base["r2"] == pytest.approx(0, abs=1e-9)
    assert base["rmse"] == pytest.approx(truth.std(0).mean(), rel=1e-3)
    worse = out["baseline"]["worse"]["difference"]
    assert worse["interval"][0] > 0
    assert worse["pearson"] == pytest.approx(out["summary"]["pearson"] - out["baseline"]["worse"]["pearson"])
    assert out["ceiling"]["pearson"] == pytest.approx(0.8)
    assert out["summary"]["interval_over"].startswith("blocks of")


def test_constant_genes_are_counted_not_hidden():
    truth, pred, xy, slides = _slides()
    truth[:, 0] = 1
    pred[:, 1] = 2
    out = scores.score(truth, pred, genes=list("abcdef"), coordinates=xy, slides=slides, n_boot=50)
    assert out["genes"][0]["pearson"] is None
    assert out["genes"][0]["ssim"] is None
    assert out["genes"][0]["rmse"] is not None
    assert out["genes"][1]["pearson"] == 0
    assert (out["summary"]["n_constant"], out["summary"]["n_constant_predictions"]) == (1, 1)
    assert out["summary"]["pearson"] == pytest.approx(np.mean([g["pearson"] for g in out["genes"][1:]]))


def test_folds_are_scored_apart():
    truth, pred, xy, slides = _slides()
    shifted = pred + slides[:, None] * 5.0
    args = {"genes": list("abcdef"), "coordinates": xy, "slides": slides, "n_boot": 0}
    apart = scores.score(truth, shifted, folds=slides, **args)
    by_hand = [metrics.per_gene(truth[slides == s], pred[slides == s])["pearson"] for s in (0, 1)]
    assert apart["summary"]["pearson"] == pytest.approx(np.mean(by_hand))
    assert scores.score(truth, shifted, **args)["summary"]["pearson"] < apart["summary"]["pearson"]
    # The gene means of different folds make a pooled correlation; inside a fold they are constant.
    means = np.where(slides[:, None] == 0, 1.0, 2.0) * np.ones_like(truth)
    assert scores.score(truth, means, folds=slides, **args)["summary"]["pearson"] == 0


def test_without_coordinates_rows_are_resampled():
    truth, pred, *_ = _slides()
    out = scores.score(truth, pred, genes=list("abcdef"), n_boot=50)
    assert out["summary"]["interval_over"] == "rows"
    assert out["summary"]["ssim"] is None


def test_missing_truth():
    truth, pred, xy, slides = _slides()
    truth[:50, 2] = np.nan
    out = scores.score(truth, pred, genes=list("abcdef"), coordinates=xy, slides=slides, n_boot=100)
    known = metrics.per_gene(truth[50:], pred[50:])
    assert out["genes"][2]["pearson"] == pytest.approx(known["pearson"][2])
    assert out["genes"][2]["spearman"] == pytest.approx(known["spearman"][2])
    low, high = out["summary"]["intervals"]["spearman"]
    assert low < out["summary"]["spearman"] < high


def test_a_gene_not_chosen_in_one_fold_is_scored_in_the_others():
    truth, pred, xy, slides = _slides()
    args = {"genes": list("abcdef"), "coordinates": xy, "slides": slides, "folds": slides, "n_boot": 50}
    whole = scores.score(
        truth[:144], pred[:144], **{k: v if k in ("genes", "n_boot") else v[:144] for k, v in args.items()}
    )
    truth[slides == 1, 3] = np.nan
    pred[slides == 1, 3] = 0
    out = scores.score(truth, pred, **args)
    assert out["genes"][3]["pearson"] == pytest.approx(whole["genes"][3]["pearson"])
    assert out["genes"][3]["ssim"] == pytest.approx(whole["genes"][3]["ssim"])
    assert out["summary"]["n_constant_predictions"] == 0
    assert None not in out["summary"]["intervals"]["ssim"]


def test_compare_is_paired():
    truth, pred, xy, slides = _slides()
    rng = np.random.default_rng(5)
    near = pred + rng.normal(0, 0.1, pred.shape)
    out = scores.compare(truth, pred, near, coordinates=xy, slides=slides)
    assert out["difference"] == pytest.approx(out["first"] - out["second"])
    assert out["ratio"] == pytest.approx(out["first"] / out["second"])
    assert out["difference_interval"][0] < out["difference"] < out["difference_interval"][1]
    assert out["ratio_interval"][0] < out["ratio"] < out["ratio_interval"][1]
    single = scores.score(truth, pred, genes=list("abcdef"), coordinates=xy, slides=slides)["summary"]["interval"]
    assert np.ptp(out["difference_interval"]) < np.ptp(single) / 2
    same = scores.compare(truth, pred, pred, coordinates=xy, slides=slides)
    assert same["difference_interval"] == [0, 0]
    with pytest.raises(InputError, match="no metric"):
        scores.compare(truth, pred, near, metric="accuracy")


def test_bootstrap_moments_are_the_metrics_of_the_resample():
    truth, pred, xy, slides = _slides(side=6)
    sheet = scores._Sheet(truth, xy, slides, None, None, False)
    blocks, _ = sheet.blocks(400)
    weights = scores._draw_weights(blocks, sheet.slides, 5, 3)
    drawn = sheet.resample(pred, None, blocks, weights)
    for w, row in zip(weights, drawn, strict=True):
        rows = np.repeat(np.arange(len(truth)), w[blocks].astype(int))
        exact = metrics.per_gene(truth[rows], pred[rows])
        for name in ("pearson", "rmse", "mse", "r2"):
            assert row[scores.METRICS.index(name)] == pytest.approx(exact[name].mean(), rel=1e-9)
        assert row[1] == pytest.approx(exact["spearman"].mean(), abs=0.05)


@pytest.mark.slow
def test_intervals_cover_the_true_value_with_spatially_correlated_tissue():
    """Smooth fields make neighbouring spots alike: intervals over rows would be far too narrow."""
    from scipy.ndimage import gaussian_filter

    side, hits, narrow, trials = 24, 0, 0, 150
    r, c = (v.ravel() for v in np.indices((side, side)))
    xy = np.column_stack([c, r]) * 200.0
    for t in range(trials):
        rng = np.random.default_rng(t)
        fields = gaussian_filter(rng.normal(size=(2, 8, side, side)), (0, 0, 1.2, 1.2), mode="wrap")
        a, b = fields.reshape(2, 8, -1).transpose(0, 2, 1)
        truth, pred = a, 0.6 * a + 0.8 * b  # correlation 0.6 in the population
        for k, place in enumerate((xy, None)):
            out = scores.score(truth, pred, genes=list("abcdefgh"), coordinates=place, n_boot=200, ssim=False)
            low, high = out["summary"]["interval"]
            inside = low <= 0.6 <= high
            hits, narrow = hits + (inside and k == 0), narrow + (inside and k == 1)
    assert hits / trials > 0.85
    assert narrow / trials < hits / trials - 0.1


def test_ceiling_is_what_a_noise_free_predictor_reaches():
    rng = np.random.default_rng(0)
    rate = rng.lognormal(1, 0.7, (4000, 5)) * [0.2, 0.5, 1, 3, 10]
    counts = rng.poisson(rate)
    rest = rng.poisson(5000, 4000)
    library = counts.sum(1) + rest
    truth = np.log1p(counts / library[:, None] * 1e4)
    best = np.log1p(rate / (rate.sum(1) + 5000)[:, None] * 1e4)
    reached = metrics.pearson(truth, best)
    ours = ceiling.noise_ceiling(counts, library=library)["pearson"]
    np.testing.assert_allclose(ours[2:], reached[2:], atol=0.03)
    np.testing.assert_allclose(ours, reached, atol=0.12)  # log1p of one or two counts is not additive noise
    sp = ceiling.noise_ceiling(sparse.csr_array(counts), library=library)["pearson"]
    np.testing.assert_allclose(sp, ours, atol=0.02)


def test_ceiling_groups_seeds_and_errors():
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.lognormal(1, 0.7, (300, 4)))
    counts[:, 3] = 0
    out = ceiling.noise_ceiling(counts, groups=np.repeat([0, 1], 150), normalize="raw")
    again = ceiling.noise_ceiling(counts, groups=np.repeat([0, 1], 150), normalize="raw")
    np.testing.assert_array_equal(out["pearson"], again["pearson"])
    assert np.isnan(out["pearson"][3])
    assert ((out["pearson"][:3] > 0) & (out["pearson"][:3] < 1)).all()
    with pytest.raises(InputError, match="whole numbers"):
        ceiling.noise_ceiling(counts + 0.5)
    with pytest.raises(InputError, match="no normalisation"):
        ceiling.noise_ceiling(counts, normalize="z")
    with pytest.raises(InputError, match="smaller than"):
        ceiling.noise_ceiling(counts, library=np.zeros(300))


@pytest.mark.real
def test_ceiling_of_her2st_is_near_the_known_figure(data_dir):
    """Known: .812 (.801-.835 per section) on five sections of patient C; three of them are here."""
    pd = pytest.importorskip("pandas")
    from stainseq.core import genes

    frames = [
        pd.read_csv(data_dir / "her2st" / s / f"{s}_counts.tsv.gz", sep="\t", index_col=0) for s in ("C2", "C3", "C4")
    ]
    names = sorted(set.intersection(*(set(f.columns) for f in frames)))
    counts = np.concatenate([f[names].to_numpy() for f in frames])
    library = np.concatenate([f.to_numpy().sum(1) for f in frames])
    slides = np.repeat([0, 1, 2], [len(f) for f in frames])
    top = genes.highly_variable(counts, n_top=50, batches=slides)
    out = ceiling.noise_ceiling(counts[:, top], library=library, groups=slides)
    assert np.nanmean(out["pearson"]) == pytest.approx(0.81, abs=0.03)
