"""Scores against scipy, scikit-learn and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stainseq.core import lattice as lat
from stainseq.core import metrics
from stainseq.errors import InputError


def _data(n=60, g=5, seed=0):
    rng = np.random.default_rng(seed)
    t = rng.poisson(1.5, (n, g)).astype(np.float32)
    return t, (t * 0.4 + rng.normal(0, 1, (n, g))).round(1).astype(np.float32)


def _check(t, p, j, out):
    sk = pytest.importorskip("sklearn.metrics")
    assert out["pearson"][j] == pytest.approx(stats.pearsonr(t, p)[0], abs=1e-12)
    assert out["spearman"][j] == pytest.approx(stats.spearmanr(t, p)[0], abs=1e-12)
    assert out["mse"][j] == pytest.approx(sk.mean_squared_error(t, p), rel=1e-12)
    assert out["rmse"][j] == pytest.approx(sk.root_mean_squared_error(t, p), rel=1e-12)
    assert out["r2"][j] == pytest.approx(sk.r2_score(t, p), rel=1e-9)


def test_scores_equal_scipy_and_sklearn(monkeypatch):
    t, p = (v.astype(np.float64) for v in _data())
    for block in (1 << 23, 61):
        monkeypatch.setattr(metrics, "_BLOCK_VALUES", block)
        out = metrics.per_gene(t, p)
        for j in range(t.shape[1]):
            _check(t[:, j], p[:, j], j, out)


def test_missing_truth_is_left_out_per_gene():
    t, p = (v.astype(np.float64) for v in _data())
    t[::7, 2] = np.nan
    t[:, 4] = np.nan
    out = metrics.per_gene(t, p)
    known = ~np.isnan(t[:, 2])
    _check(t[known, 2], p[known, 2], 2, out)
    _check(t[:, 0], p[:, 0], 0, out)
    assert all(np.isnan(v[4]) for v in out.values())


@given(st.floats(1e-30, 1e30), st.floats(-1e3, 1e3))
@settings(max_examples=40, deadline=None)
def test_pearson_ignores_scale(scale, shift):
    t, p = (v.astype(np.float64) for v in _data(30, 2))
    np.testing.assert_allclose(metrics.pearson(t, p * scale), metrics.pearson(t, p), atol=1e-9)
    np.testing.assert_allclose(metrics.pearson(t, p + shift), metrics.pearson(t, p), atol=1e-9)


def test_constants_give_nan_and_errors_are_named():
    t, p = _data()
    t[:, 1], p[:, 2] = 3.3, 0.1
    out = metrics.per_gene(t, p)
    assert np.isnan(out["pearson"][[1, 2]]).all()
    assert np.isnan(out["spearman"][[1, 2]]).all()
    assert np.isnan(out["r2"][1])
    assert np.isfinite(out["r2"][2])
    assert np.isfinite(out["rmse"]).all()
    with pytest.raises(InputError, match="one shape"):
        metrics.per_gene(t, p[:, :2])
    with pytest.raises(InputError, match="prediction holds NaN"):
        metrics.per_gene(t, np.full_like(p, np.nan))
    one = metrics.per_gene(t[:1], p[:1])
    assert np.isnan(one["pearson"]).all()
    assert np.isfinite(one["mse"]).all()


def _square(rows=20, cols=24):
    r, c = np.indices((rows, cols))
    return lat.from_array(r.ravel(), c.ravel())


def test_ssim_equals_skimage_on_a_full_lattice(monkeypatch):
    ssim = pytest.importorskip("skimage.metrics").structural_similarity
    t, p = (v.astype(np.float64) for v in _data(480, 3))
    grid = _square()
    for block in (1 << 23, 500):
        monkeypatch.setattr(metrics, "_BLOCK_VALUES", block)
        ours = metrics.ssim_maps(t, p, lattice=grid).reshape(20, 24, 3)
        for j in range(3):
            _, full = ssim(
                t[:, j].reshape(20, 24),
                p[:, j].reshape(20, 24),
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=np.ptp(t[:, j]),
                full=True,
            )
            np.testing.assert_allclose(ours[5:-5, 5:-5, j], full[5:-5, 5:-5], atol=1e-10)


def _ssim_brute(t, p, xy, reach):
    """Straight from the definition: all pairs of spots, weights by true distance in pitches."""
    d = xy[:, None] - xy[None]
    w = np.exp(-0.5 * (d**2).sum(-1) / 1.5**2) * (np.abs(d) <= reach + 1e-9).all(-1)
    w /= w.sum(1, keepdims=True)
    rng = np.ptp(t, axis=0)
    c1, c2 = (0.01 * rng) ** 2, (0.03 * rng) ** 2
    mt, mp = w @ t, w @ p
    vt, vp, c = w @ t**2 - mt**2, w @ p**2 - mp**2, w @ (t * p) - mt * mp
    return (2 * mt * mp + c1) * (2 * c + c2) / ((mt**2 + mp**2 + c1) * (vt + vp + c2))


@pytest.mark.parametrize("kind", ["square", "hexagon"])
def test_masked_ssim_is_its_definition(kind):
    rng = np.random.default_rng(3)
    r, c = (v.ravel() for v in np.indices((14, 30)))
    if kind == "hexagon":
        keep = (r + c) % 2 == 0
        r, c = r[keep], c[keep]
    keep = rng.random(len(r)) < 0.7
    r, c = r[keep], c[keep]
    grid = lat.from_array(r, c)
    assert grid.step == pytest.approx((np.sqrt(3) / 2, 0.5) if kind == "hexagon" else (1, 1))
    xy = np.column_stack([grid.col * grid.step[1], grid.row * grid.step[0]])
    reach = np.array([int(3.5 * 1.5 / s + 0.5) * s for s in grid.step[::-1]])
    t, p = (v.astype(np.float64) for v in _data(len(r), 4))
    np.testing.assert_allclose(metrics.ssim_maps(t, p, lattice=grid), _ssim_brute(t, p, xy, reach), atol=1e-10)


def test_ssim_of_shared_nodes_and_constants():
    t, p = (v.astype(np.float64) for v in _data(30, 2))
    r, c = (v.ravel() for v in np.indices((5, 6)))
    once = metrics.ssim_maps(t, p, lattice=lat.from_array(r, c))
    twice = metrics.ssim_maps(
        np.tile(t, (2, 1)), np.tile(p, (2, 1)), lattice=lat.from_array(np.tile(r, 2), np.tile(c, 2))
    )
    np.testing.assert_allclose(twice, np.tile(once, (2, 1)), atol=1e-12)
    t[:, 1] = 2
    assert np.isnan(metrics.ssim_maps(t, p, lattice=lat.from_array(r, c))[:, 1]).all()
    np.testing.assert_allclose(metrics.ssim_maps(t[:, :1], t[:, :1], lattice=lat.from_array(r, c)), 1)


@pytest.mark.parametrize("kind", ["square", "hexagon"])
@pytest.mark.parametrize("degrees", [0, 1.5, -8, 13])
def test_lattice_is_found_in_rotated_noisy_partial_coordinates(kind, degrees):
    rng = np.random.default_rng(int(abs(degrees) * 10))
    r, c = (v.ravel() for v in np.indices((40, 60)))
    if kind == "hexagon":
        keep = (r + c) % 2 == 0
        r, c, x, y = r[keep], c[keep], c[keep] * 0.5, r[keep] * np.sqrt(3) / 2
    else:
        x, y = c * 1.0, r * 1.0
    keep = (np.hypot(x - x.mean(), y - y.mean()) < 15) & (rng.random(len(r)) < 0.85)
    r, c, xy = r[keep], c[keep], np.column_stack([x, y])[keep] * [201.3, 199.1]
    a = np.deg2rad(degrees)
    xy = xy @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + rng.normal(0, 6, (len(r), 2))
    grid, expected = lat.from_coordinates(xy), lat.from_array(r, c)
    assert grid.step == pytest.approx(expected.step)
    np.testing.assert_array_equal(grid.row, expected.row)
    np.testing.assert_array_equal(grid.col, expected.col)


def test_lattice_of_scattered_few_and_no_rows():
    rng = np.random.default_rng(0)
    scattered = lat.from_coordinates(rng.uniform(0, 1000, (500, 2)))
    assert scattered.shape[0] * scattered.shape[1] < 60_000
    assert lat.from_coordinates(np.zeros((1, 2))).shape == (1, 1)
    assert lat.from_array(np.zeros(0), np.zeros(0)).shape == (0, 0)
    with pytest.raises(InputError, match="one place"):
        lat.from_coordinates(np.zeros((9, 2)))


@pytest.mark.real
def test_lattice_of_her2st(data_dir):
    pd = pytest.importorskip("pandas")
    for section in ("B4", "C2", "C3", "C4"):
        frame = pd.read_csv(data_dir / "her2st" / section / f"{section}_selection.tsv", sep="\t")
        grid = lat.from_coordinates(frame[["pixel_x", "pixel_y"]].to_numpy())
        known = lat.from_array(frame["y"], frame["x"])
        np.testing.assert_array_equal(grid.row, known.row)
        np.testing.assert_array_equal(grid.col, known.col)
