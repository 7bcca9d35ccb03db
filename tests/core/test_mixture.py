"""Mixtures with one covariance against scikit-learn's and against their likelihood written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from stainseq.core import mixture
from stainseq.core.clusters import adjusted_rand, kmeans


def planted(sizes: tuple[int, ...], gap: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clusters along the first of four columns, standard deviation 1 around their centres."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    values = rng.normal(0, 1, (len(truth), 4))
    values[:, 0] += gap * truth
    return values, truth


def log_likelihood(values: np.ndarray, model: mixture.Mixture) -> float:
    covariance = np.linalg.inv(model.unmix @ model.unmix.T)
    densities = [
        np.exp(share) * multivariate_normal(mean, covariance).pdf(values)
        for mean, share in zip(model.means, model.log_share, strict=True)
    ]
    return float(np.log(np.sum(densities, axis=0)).sum())


def test_full_covariance_is_scikit_learns_tied_one() -> None:
    values, truth = planted((300, 150, 50), 3.0)
    values = values @ np.array([[2, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 3, 1], [0, 0, 0, 0.5]])
    start = np.eye(3)[truth]
    means = (start.T @ values) / start.sum(axis=0)[:, None]
    theirs = GaussianMixture(3, covariance_type="tied", means_init=means, tol=1e-9, max_iter=1000, reg_covar=0)
    q = theirs.fit(values).predict_proba(values)
    ours = mixture.fit(values, truth, 3, spherical=False)
    np.testing.assert_allclose(ours.posterior(values), q, atol=2e-3)
    np.testing.assert_allclose(np.linalg.inv(ours.unmix @ ours.unmix.T), theirs.covariances_, rtol=5e-3, atol=5e-3)
    assert log_likelihood(values, ours) == pytest.approx(theirs.score(values) * len(values), rel=1e-5)


def test_spherical_fit_is_a_maximum_of_the_likelihood() -> None:
    values, truth = planted((400, 100), 4.0)
    model = mixture.fit(values, truth, 2, spherical=True)
    best = log_likelihood(values, model)
    rng = np.random.default_rng(1)
    for step in (0.02, 0.05):
        for _ in range(10):
            share = np.exp(model.log_share) * np.exp(rng.normal(0, step, 2))
            other = mixture.Mixture(
                model.means + rng.normal(0, step, model.means.shape),
                model.unmix * np.exp(rng.normal(0, step)),
                np.log(share / share.sum()),
            )
            assert log_likelihood(values, other) < best
    assert np.exp(model.log_share) == pytest.approx([0.8, 0.2], abs=0.03)
    assert 1 / model.unmix[0, 0] == pytest.approx(1, abs=0.03)


def test_a_small_domain_keeps_its_size_where_k_means_takes_from_the_large() -> None:
    values, truth = planted((1900, 100), 3.5)
    hard = kmeans(values, 2, seed=0)
    soft = mixture.fit(values, hard, 2, spherical=True).posterior(values).argmax(axis=1)
    best = values[:, 0] * 3.5 - 3.5**2 / 2 > np.log(1900 / 100)  # nothing does better, not even with the truth
    assert adjusted_rand(hard, truth) < 0.2
    assert adjusted_rand(soft, truth) > adjusted_rand(best, truth) - 0.03


@pytest.mark.parametrize("spherical", [True, False])
def test_shift_scale_and_few_rows(spherical) -> None:
    values, truth = planted((30, 10), 4.0)
    q = mixture.fit(values, truth, 2, spherical=spherical).posterior(values)
    np.testing.assert_allclose(q.sum(axis=1), 1)
    moved = mixture.fit(1e3 * values + 1e5, truth, 2, spherical=spherical).posterior(1e3 * values + 1e5)
    np.testing.assert_allclose(moved, q, atol=1e-4)
    same = np.ones((6, 3))
    assert np.isfinite(mixture.fit(same, np.arange(6) % 2, 2, spherical=spherical).posterior(same)).all()
    two = mixture.fit(values[28:32], truth[28:32], 2, spherical=spherical).posterior(values[28:32])
    np.testing.assert_array_equal(two.argmax(axis=1), truth[28:32])
