"""Ridge and the HEST mode against scikit-learn, loops and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from stainseq.errors import InputError
from stainseq.heads import _denoise, _ridge, hest, ridge
from stainseq.heads._features import fit_scaler


def _data(n, d, g=4, seed=0, rank=6):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, rank))
    X = latent @ rng.normal(size=(rank, d)) + rng.normal(size=(n, d))
    Y = latent @ rng.normal(size=(rank, g)) * np.linspace(0.2, 1, g) + rng.normal(size=(n, g)) + 3
    return (X * rng.lognormal(0, 1, d) + rng.normal(0, 5, d)).astype(np.float32), Y.astype(np.float32)


def _weights(n, weighted):
    w = np.random.default_rng(9).uniform(0.2, 2, n) if weighted else np.ones(n)
    return w / w.mean()


def _scaled(X, train, w):
    """Standardised on the weighted training rows and clipped, in plain numpy."""
    m = np.average(X[train], axis=0, weights=w[train])
    sd = np.sqrt(np.average((X[train] - m) ** 2, axis=0, weights=w[train]))
    return np.clip((X - m) / sd, -5, 5)


@pytest.mark.parametrize("weighted", [False, True])
def test_dual_path_is_a_loop_of_sklearn_fits(weighted):
    Ridge = pytest.importorskip("sklearn.linear_model").Ridge
    X, Y = _data(60, 90)
    w, folds, alphas = _weights(60, weighted), np.arange(60) % 3, np.array([0.5, 30.0, 2e3, 1e6])
    path = _ridge.make(X, Y, w, folds).path(alphas)
    for f in range(3):
        train, test = folds != f, folds == f
        Z = _scaled(X.astype(float), train, w)
        for a, alpha in enumerate(alphas):
            p = Ridge(alpha=alpha, solver="cholesky").fit(Z[train], Y[train].astype(float), sample_weight=w[train])
            p = p.predict(Z[test])
            np.testing.assert_allclose(path.sse[f, a], w[test] @ (Y[test] - p) ** 2, rtol=1e-4)
            if not weighted:
                r = [np.corrcoef(Y[test, j], p[:, j])[0, 1] for j in range(Y.shape[1])]
                np.testing.assert_allclose(path.pearson[f, a], r, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_primal_path_is_a_loop_of_sklearn_fits(weighted, single, monkeypatch):
    Ridge = pytest.importorskip("sklearn.linear_model").Ridge
    if single:
        monkeypatch.setattr(_ridge, "_SINGLE_FROM", 1)
    X, Y = _data(400, 30)
    w, folds, alphas = _weights(400, weighted), np.arange(400) % 4, np.array([1.0, 30.0, 2e3, 1e6])
    problem = _ridge.make(X, Y, w, folds)
    assert isinstance(problem, _ridge.Primal)
    path = problem.path(alphas)
    Z = _scaled(X.astype(float), np.ones(400, bool), w)  # the clip's bounds are those of all rows
    for f in range(4):
        train, test = folds != f, folds == f
        m = np.average(Z[train], axis=0, weights=w[train])
        S = (Z - m) / np.sqrt(np.average((Z[train] - m) ** 2, axis=0, weights=w[train]))
        for a, alpha in enumerate(alphas):
            p = Ridge(alpha=alpha, solver="cholesky").fit(S[train], Y[train].astype(float), sample_weight=w[train])
            p = p.predict(S[test])
            np.testing.assert_allclose(path.sse[f, a], w[test] @ (Y[test] - p) ** 2, rtol=2e-4)
            if not weighted:
                r = [np.corrcoef(Y[test, j], p[:, j])[0, 1] for j in range(Y.shape[1])]
                np.testing.assert_allclose(path.pearson[f, a], r, atol=1e-4)


@pytest.mark.parametrize("shape", [(50, 120), (300, 40)])
def test_solution_is_the_closed_form_per_gene(shape):
    X, Y = _data(*shape)
    n = len(X)
    alpha = np.array([1.0, 10.0, 300.0, 1e4])
    fitted = _ridge.make(X, Y, np.ones(n), None).solve(alpha)
    Z = _scaled(X.astype(float), np.ones(n, bool), np.ones(n))
    Zc = Z - Z.mean(0)
    Zc = Zc / Zc.std(0) if n > X.shape[1] else Zc
    for j in range(4):
        w = np.linalg.solve(Zc.T @ Zc + alpha[j] * np.eye(Z.shape[1]), Zc.T @ (Y[:, j] - Y[:, j].mean()))
        expected = Zc @ w + Y[:, j].mean()
        np.testing.assert_allclose(fitted.scaler(X) @ fitted.coef[:, j] + fitted.intercept[j], expected, atol=2e-4)


def test_both_forms_agree():
    X, Y = _data(200, 150)
    w, folds = np.ones(200), np.arange(200) % 5
    X = np.clip(X, X.mean(0) - 3 * X.std(0), X.mean(0) + 3 * X.std(0))  # so that nothing is clipped later
    alphas = np.logspace(0, 6, 7)
    a, b = (form(X, Y, w, folds, [_denoise.Plain(4)]).path(alphas) for form in (_ridge.Primal, _ridge.Dual))
    np.testing.assert_allclose(a.sse, b.sse, rtol=1e-3)
    np.testing.assert_allclose(a.pearson, b.pearson, atol=1e-3)


def test_each_gene_gets_the_penalty_of_the_explicit_loop():
    X, Y = _data(120, 200, g=6)
    groups = np.repeat(["p1", "p2", "p3"], 40)
    state = ridge.fit(X, Y, groups=groups, alphas=[1e2, 1e3, 1e4, 1e5])
    error = np.zeros((4, 6))
    for p in ("p1", "p2", "p3"):
        train, test = groups != p, groups == p
        scaler = fit_scaler(X[train], np.ones(80))
        Z, T = scaler(X[train]).astype(float), scaler(X[test]).astype(float)
        m, ym = Z.mean(0), Y[train].mean(0)
        for a, alpha in enumerate([1e2, 1e3, 1e4, 1e5]):
            w = (Z - m).T @ np.linalg.solve((Z - m) @ (Z - m).T + alpha * np.eye(80), Y[train] - ym)
            error[a] += ((Y[test] - (T - m) @ w - ym) ** 2).sum(0)
    np.testing.assert_array_equal(state["alpha"], np.array([1e2, 1e3, 1e4, 1e5])[error.argmin(0)])
    np.testing.assert_allclose(state["spread"], np.sqrt(error.min(0) / 120), rtol=1e-4)


def test_pearson_criterion_and_bad_options():
    X, Y = _data(120, 30)
    state = ridge.fit(X, Y, criterion="pearson", groups=np.arange(120) % 3)
    assert (state["cv_pearson"] >= ridge.fit(X, Y, groups=np.arange(120) % 3)["cv_pearson"] - 1e-6).all()
    with pytest.raises(InputError, match="positive"):
        ridge.fit(X, Y, alphas=[0, 1])
    with pytest.raises(InputError, match="criterion"):
        ridge.fit(X, Y, criterion="aic")
    with pytest.raises(InputError, match="both given"):
        ridge.fit(X, Y, context_um=1, context_k=1)
    with pytest.raises(InputError, match="needs the coordinates"):
        ridge.fit(X, Y, context_k=1)


def test_large_blocks_lose_no_precision(monkeypatch):
    X, Y = _data(3000, 50)
    X += 1000  # large means: sums of squares of raw values would cancel
    monkeypatch.setattr(_ridge, "BLOCK_ROWS", 128)
    a = _ridge.make(X, Y, np.ones(3000), np.arange(3000) % 5).path(np.array([1.0, 1e3]))
    monkeypatch.setattr(_ridge, "BLOCK_ROWS", 8192)
    b = _ridge.make(X, Y, np.ones(3000), np.arange(3000) % 5).path(np.array([1.0, 1e3]))
    np.testing.assert_allclose(a.sse, b.sse, rtol=1e-5)


@pytest.mark.parametrize("shape", [(60, 90), (240, 30)])
@pytest.mark.parametrize("kind", ["spatial", "lowrank"])
def test_denoised_path_is_a_loop_of_fits_on_denoised_targets(shape, kind):
    """Targets denoised by hand from the training rows alone, penalised fits by sklearn, errors on raw targets."""
    Ridge = pytest.importorskip("sklearn.linear_model").Ridge
    n, d = shape
    X, Y = _data(n, d, g=14)
    X = np.clip(X, X.mean(0) - 3 * X.std(0), X.mean(0) + 3 * X.std(0))
    rng = np.random.default_rng(0)
    xy, folds, alphas = rng.uniform(0, 100, (n, 2)), np.arange(n) % 3, np.array([10.0, 1e3])
    columns, variants = _denoise.prepare(kind, Y, np.ones(n), folds, xy, None)
    path = _ridge.make(X, columns, np.ones(n), folds, variants=variants).path(alphas)
    for f in range(3):
        train, test = folds != f, folds == f
        Z = _scaled(X.astype(float), train, np.ones(n))
        for v in range(len(variants)):
            if kind == "spatial":
                mean = np.empty_like(Y)
                for i in range(n):
                    same = np.flatnonzero((folds == folds[i]) & (np.arange(n) != i))
                    near = same[np.argsort(((xy[same] - xy[i]) ** 2).sum(1))[:8]]
                    mean[i] = Y[near].mean(0)
                target = (1 - _denoise.MIXES[v]) * Y + _denoise.MIXES[v] * mean
                target = target[train]
            else:
                m = Y[train].mean(0)
                u, s, vt = np.linalg.svd(Y[train].astype(float) - m, full_matrices=False)
                r = _denoise.RANKS[v] or 14
                target = m + (u[:, :r] * s[:r]) @ vt[:r]
            for a, alpha in enumerate(alphas):
                p = Ridge(alpha=alpha, solver="cholesky").fit(Z[train], target).predict(Z[test])
                np.testing.assert_allclose(path.sse[f, v * 2 + a], ((Y[test] - p) ** 2).sum(0), rtol=2e-3)


@pytest.mark.parametrize("kind", ["spatial", "lowrank"])
@pytest.mark.parametrize("shape", [(60, 90), (240, 30)])
def test_denoised_solution_is_the_fit_to_denoised_targets(shape, kind):
    n, d = shape
    X, Y = _data(n, d, g=14)
    xy = np.random.default_rng(0).uniform(0, 100, (n, 2))
    columns, variants = _denoise.prepare(kind, Y, np.ones(n), np.arange(n) % 3, xy, None)
    alpha, which = np.full(14, 50.0), np.arange(14) % len(variants)
    ours = _ridge.make(X, columns, np.ones(n), None, variants=variants).solve(alpha, which)
    for v, variant in enumerate(variants):
        target = np.float32(variant.centre(columns.mean(0)) + variant.columns(columns - columns.mean(0), -1))
        plain = _ridge.make(X, target, np.ones(n), None).solve(alpha)
        for name in ("coef", "intercept"):
            a, b = getattr(ours, name)[..., which == v], getattr(plain, name)[..., which == v]
            np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("pca", [256, 20, None])
def test_hest_is_its_sklearn_calls(pca):
    pytest.importorskip("sklearn")
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    X, Y = _data(400, 300, g=7)
    train, test = slice(0, 300), slice(300, 400)
    steps = [("scale", StandardScaler())]
    if pca:
        steps.append(("reduce", PCA(n_components=pca, random_state=1)))
    pipe = Pipeline(steps)
    Z = pipe.fit_transform(X[train]).astype(np.float32)
    T = pipe.transform(X[test]).astype(np.float32)
    model = Ridge(solver="lsqr", alpha=100 / (Z.shape[1] * 7), random_state=1, fit_intercept=False, max_iter=1000).fit(
        Z, Y[train]
    )
    state = hest.fit(X[train], Y[train], pca=pca)
    mean, spread = hest.predict(state, X[test])
    assert np.abs(mean - model.predict(T)).max() < 1e-6 * max(1, np.abs(mean).max())
    assert (spread > 0).all()
    with pytest.raises(InputError, match="no row weights"):
        hest.fit(X, Y, weights=np.ones(400))


def test_hest_in_parts_needs_the_number_of_genes():
    X, Y = _data(200, 30, g=6)
    whole = hest.predict(hest.fit(X, Y), X)[0]
    part = hest.predict(hest.fit(X, Y[:, :2], n_genes=6), X)[0]
    np.testing.assert_allclose(part, whole[:, :2], atol=1e-5)
