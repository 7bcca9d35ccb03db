"""Empirical Bayes: the posterior against its formula, what is fitted against what was planted, and the point of it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.stats import nbinom

from stainseq.core import enhance
from stainseq.datasets import planted
from stainseq.errors import InputError


def test_the_likelihood_is_that_of_the_negative_binomial() -> None:
    rng = np.random.default_rng(0)
    mu, y = rng.uniform(0.01, 4, 300), rng.poisson(1.0, 300).astype(float)
    for shape in (0.3, 2.0, 40.0):
        theirs = nbinom.logpmf(y, shape, shape / (shape + mu))
        from scipy.special import gammaln

        ours = enhance._likelihood(y, mu, shape) - gammaln(y + 1).sum()
        assert ours == pytest.approx(theirs.sum(), rel=1e-10)


def test_level_slope_and_shape_come_back() -> None:
    rng = np.random.default_rng(1)
    n = 40_000
    base, time = rng.gamma(2.0, 0.5, n) + 0.05, rng.uniform(0.5, 2.0, n)
    prior = np.exp(0.4 + 0.7 * np.log(base))
    y = rng.poisson(time * rng.gamma(3.0, prior / 3.0))
    found = enhance.enhance(y, base, exposure=time)
    assert found.level == pytest.approx(0.4, abs=0.03)
    assert found.slope == pytest.approx(0.7, abs=0.03)
    assert found.shape == pytest.approx(3.0, rel=0.1)
    assert found.smoother == -1
    # The posterior mean, written as the weighted mean that the documentation promises.
    expected = found.weight * y / time + (1 - found.weight) * found.prior
    np.testing.assert_allclose(found.rate, expected, rtol=1e-9)


def test_neighbours_sum_as_a_loop_does_and_leave_the_place_out() -> None:
    rng = np.random.default_rng(2)
    row, col = (v.ravel() for v in np.mgrid[:12, :9])
    kept = rng.random(len(row)) < 0.8
    row, col, values = row[kept], col[kept], rng.random(int(kept.sum()))
    smooth = enhance.on_grid(row, col, sigma=1.3)
    reach = int(np.ceil(3 * 1.3))
    for i in range(0, len(row), 7):
        dy, dx = row - row[i], col - col[i]
        near = (np.abs(dy) <= reach) & (np.abs(dx) <= reach) & ((dy != 0) | (dx != 0))
        expected = (values * np.exp(-0.5 * (dy**2 + dx**2) / 1.3**2))[near].sum()
        assert smooth(values)[i] == pytest.approx(expected, rel=1e-9)
    only = np.zeros(len(row))
    only[5] = 1.0
    assert smooth(only)[5] == pytest.approx(0.0, abs=1e-12)
    by_points = enhance.at_points(np.column_stack([col, row]).astype(float), sigma=1.3, neighbors=len(row))
    assert by_points(only)[5] == 0
    assert np.corrcoef(by_points(values), smooth(values))[0, 1] > 0.99


def test_a_useless_prediction_is_given_no_slope() -> None:
    rng = np.random.default_rng(3)
    y = rng.poisson(rng.gamma(2.0, 1.0, 20_000))
    found = enhance.enhance(y, rng.gamma(2.0, 1.0, 20_000), exposure=np.ones(20_000))
    assert abs(found.slope) < 0.03
    assert found.prior.std() < 0.05 * y.mean()


def test_places_that_were_not_measured_get_the_prior() -> None:
    rng = np.random.default_rng(4)
    base = rng.gamma(2.0, 1.0, 5000)
    y = rng.poisson(base).astype(float)
    y[::5] = np.nan
    found = enhance.enhance(y, base, exposure=np.ones(5000))
    np.testing.assert_array_equal(found.weight[::5], 0)
    np.testing.assert_allclose(found.rate[::5], found.prior[::5])
    assert found.weight[1::5].min() > 0


def test_a_gene_without_counts_stays_at_the_predictions_level() -> None:
    found = enhance.enhance(np.zeros(100), np.ones(100), exposure=np.ones(100))
    assert np.isfinite(found.rate).all()
    assert found.rate.max() < 0.01
    np.testing.assert_array_equal(found.weight, 0)


def test_what_is_refused() -> None:
    one = np.ones(5)
    with pytest.raises(InputError, match="must be positive"):
        enhance.enhance(one, np.zeros(5), exposure=one)
    with pytest.raises(InputError, match="must be positive"):
        enhance.enhance(one, one, exposure=np.zeros(5))
    with pytest.raises(InputError, match="4 exposures"):
        enhance.enhance(one, one, exposure=np.ones(4))


@pytest.mark.parametrize("keep", [0.1, 0.5])
def test_better_than_measured_predicted_and_smoothed(keep: float) -> None:
    """Counts thinned; error to the planted rate and to the counts that were left out, over genes of every kind."""
    truth = planted(size="small", n_genes=12, seed=2)
    rng = np.random.default_rng(5)
    whole = truth.draw(3)
    kept = rng.binomial(whole, keep)
    rest = (whole - kept) / (1 - keep)
    row, col = np.nonzero(truth.tissue)
    smoothers = [enhance.on_grid(row, col, sigma=s) for s in (1.0, 2.0, 4.0)]
    kernel = cv2.getGaussianKernel(13, 2.0)
    errors = {name: [[], []] for name in ("enhanced", "measured", "predicted", "smoothed")}
    for g in range(12):
        # As an imperfect model predicts: blurred and noisy where the picture tells, flat where it does not.
        rate = truth.rate[..., g]
        told = cv2.GaussianBlur(rate, (0, 0), 1.5) * np.exp(0.3 * rng.standard_normal(rate.shape))
        guess = np.where(truth.kinds[g] == "morphology", told, rate.mean())[row, col] + 1e-3
        y = kept[row, col, g].astype(float)
        found = enhance.enhance(y, guess, exposure=np.full(len(y), keep), smoothers=smoothers)
        blurred = cv2.sepFilter2D(kept[..., g].astype(float), -1, kernel, kernel)[row, col] / keep
        maps = {"enhanced": found.rate, "measured": y / keep, "predicted": guess, "smoothed": blurred}
        for name, values in maps.items():
            scale = np.sqrt(rate[row, col].mean())
            errors[name][0].append(np.sqrt(np.mean((values - rate[row, col] * truth.depth[row, col]) ** 2)) / scale)
            errors[name][1].append(np.sqrt(np.mean((values - rest[row, col, g]) ** 2)) / scale)
    for to in (0, 1):
        means = {name: float(np.mean(e[to])) for name, e in errors.items()}
        assert means["enhanced"] < min(v for k, v in means.items() if k != "enhanced"), means
