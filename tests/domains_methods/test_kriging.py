"""Kriging against its dense formula, and domains it must and must not smooth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from stainseq.core import kriging as core
from stainseq.core.clusters import adjusted_rand
from stainseq.core.refine import nearest
from stainseq.domains import kriging
from stainseq.errors import InputError


def test_kriging_is_the_best_linear_prediction_of_its_neighbourhood(cells):
    xy = cells(60).coordinates
    rng = np.random.default_rng(1)
    y = rng.normal(size=(60, 3))
    near = nearest(xy, 20)
    fit = core.Covariance(0.6, 35.0)
    found = core.krige(y, xy, near, fit)
    h = np.sqrt(3) * cdist(xy, xy) / 35.0
    C = 0.6 * (1 + h) * np.exp(-h)
    for i in range(60):
        at = near[i]
        weights = np.linalg.solve(C[np.ix_(at, at)] + 0.4 * np.eye(21), C[i, at])
        np.testing.assert_allclose(found[i], weights @ y[at], rtol=1e-9, atol=1e-12)


def test_covariance_of_a_known_field_is_found():
    rng = np.random.default_rng(2)
    xy = rng.uniform(0, 600, (1500, 2))
    h = np.sqrt(3) * cdist(xy, xy) / 60.0
    field = np.linalg.cholesky((1 + h) * np.exp(-h) + 1e-9 * np.eye(1500)) @ rng.normal(size=(1500, 30))
    noisy = field * np.sqrt(0.3) + rng.normal(size=field.shape) * np.sqrt(0.7)
    fit = core.fit_covariance(noisy - noisy.mean(axis=0), xy, nearest(xy, 36)[:, 1:])
    assert 0.25 < fit.share < 0.35
    assert 45 < fit.length < 80
    smooth = core.krige(noisy, xy, nearest(xy, 36), fit)
    raw_error = ((noisy - field * np.sqrt(0.3)) ** 2).mean()
    assert ((smooth - field * np.sqrt(0.3)) ** 2).mean() < 0.15 * raw_error


def test_shared_components_equal_the_dense_formula(cells):
    data = cells(200, n_genes=30)
    X = data.counts.toarray().astype(float)
    near = nearest(data.coordinates, 8)[:, 1:]
    Z = (X - X.mean(axis=0)) / np.where(X.std(axis=0) > 0, X.std(axis=0, ddof=1), np.inf)
    G = np.zeros((200, 200))
    G[np.arange(200)[:, None], near] = 1 / 8
    S = Z.T @ G @ Z / 200
    values = np.sort(np.linalg.eigvalsh((S + S.T) / 2))[::-1]
    for table in (X, sparse.csr_array(X)):
        found = core.shared_components(table, near, 5, samples=[np.arange(200)])
        np.testing.assert_allclose(found.covariance, values[:5], rtol=1e-9)
        np.testing.assert_allclose(np.abs(found.scores), np.abs(Z @ found.loadings.T), atol=1e-9)


def test_noisy_cells_in_layers(cells):
    data = cells(3000, n_genes=60)
    labels, p, z, _ = kriging.assign(data.counts, coordinates=data.coordinates, n_domains=4)
    assert adjusted_rand(labels, data.layer) > 0.85
    assert (p.argmax(axis=1) == labels).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert z.shape == (3000, 10)


def test_planted_layers(planted):
    labels, *_ = kriging.assign(planted.counts, coordinates=planted.coordinates, n_domains=7)
    assert adjusted_rand(labels, planted.layer) > 0.95


def test_stripes_one_spot_wide_are_not_smoothed_away():
    rng = np.random.default_rng(0)
    xy = np.array([(x, y) for y in range(20) for x in range(20)], dtype=float)
    stripe = (xy[:, 0] // 1 % 4).astype(int)
    rate = np.exp(rng.normal(1, 1, (4, 200)))
    counts = rng.poisson(rate[stripe]).astype(float)
    labels, *_ = kriging.assign(counts, coordinates=xy, n_domains=4)
    assert adjusted_rand(labels, stripe) > 0.95


def test_an_image_that_knows_more_helps(cells):
    data = cells(800, n_genes=20, seed=5)
    rng = np.random.default_rng(0)
    image = np.eye(4)[data.layer] + rng.normal(0, 0.5, (800, 4))
    poor = rng.poisson(1.0, (800, 20)).astype(float)
    labels, *_ = kriging.assign(poor, coordinates=data.coordinates, n_domains=4, image_features=image)
    assert adjusted_rand(labels, data.layer) > 0.6


def test_refuses_what_are_not_counts(cells):
    data = cells(50)
    with pytest.raises(InputError, match="negative"):
        kriging.assign(-data.counts, coordinates=data.coordinates, n_domains=2)
    with pytest.raises(InputError, match="every count is zero"):
        kriging.assign(np.zeros((50, 4)), coordinates=data.coordinates, n_domains=2)


@pytest.mark.real
@pytest.mark.slow
def test_beats_smoothed_k_means_on_labelled_tissue(data_dir):
    anndata = pytest.importorskip("anndata")
    bars = {"mpfc_BZ9": 0.57, "mpfc_BZ14": 0.80, "mvc_BY3": 0.73}
    for name, bar in bars.items():
        table = anndata.read_h5ad(data_dir / "starmap" / f"{name}.h5ad")
        truth = table.obs["domain"].astype(str).to_numpy()
        labels, *_ = kriging.assign(
            table.X, coordinates=np.asarray(table.obsm["spatial"]), n_domains=len(np.unique(truth))
        )
        assert adjusted_rand(labels, truth) > bar, name
