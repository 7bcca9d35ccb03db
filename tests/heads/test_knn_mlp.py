"""Retrieval against brute force; the network's losses, threads and what it learns that a line cannot."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stainseq.errors import InputError
from stainseq.heads import _inputs, knn, mlp, ridge


def _data(n=80, d=6, g=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    Y = np.column_stack([X[:, 0], X[:, 1] * X[:, 2], np.abs(X[:, 3])])[:, :g] + 0.1 * rng.normal(size=(n, g)) + 2
    return X, Y.astype(np.float32)


def _brute(X, Y, Z, k, w):
    m, sd = np.average(X, axis=0, weights=w), None
    sd = np.sqrt(np.average((X - m) ** 2, axis=0, weights=w))
    a, b = (np.clip((v - m) / sd, -5, 5) for v in (X.astype(float), Z.astype(float)))
    similarity = (b @ a.T) / np.linalg.norm(b, axis=1)[:, None] / np.linalg.norm(a, axis=1)
    mean, spread = np.empty((len(Z), Y.shape[1])), np.empty((len(Z), Y.shape[1]))
    for i, row in enumerate(similarity):
        near = np.argsort(-row)[:k]
        share = np.maximum(row[near], 1e-6) * w[near]
        mean[i] = np.average(Y[near], axis=0, weights=share)
        spread[i] = np.sqrt(np.average((Y[near] - mean[i]) ** 2, axis=0, weights=share))
    return mean, spread


@pytest.mark.parametrize("k", [2, 7, 500])
def test_knn_is_brute_force(k, monkeypatch):
    X, Y = _data()
    Z, _ = _data(30, seed=1)
    w = np.random.default_rng(2).uniform(0.5, 2, 80)
    w /= w.mean()
    expected = _brute(X, Y, Z, k, w)
    for block in (1 << 25, 300):
        monkeypatch.setattr(knn, "_BLOCK_VALUES", block)
        for a, b in zip(knn.predict(knn.fit(X, Y, k=k, weights=w), Z), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_knn_chooses_k_per_gene_by_the_explicit_loop():
    X, Y = _data(120)
    groups = np.arange(120) % 3
    state = knn.fit(X, Y, groups=groups, candidates=(1, 4, 15, 40))
    error = np.zeros((4, 3))
    m, sd = X.mean(0), X.std(0)
    Z = np.clip((X - m) / sd, -5, 5)
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    for f in range(3):
        train, test = np.flatnonzero(groups != f), np.flatnonzero(groups == f)
        similarity = Z[test] @ Z[train].T
        for j, k in enumerate((1, 4, 15, 40)):
            for i, row in enumerate(similarity):
                near = np.argsort(-row)[:k]
                guess = np.average(Y[train[near]], axis=0, weights=np.maximum(row[near], 1e-6))
                error[j] += (Y[test[i]] - guess) ** 2
    np.testing.assert_array_equal(state["k"], np.array([1, 4, 15, 40])[error.argmin(0)])
    np.testing.assert_allclose(state["cv_spread"], np.sqrt(error.min(0) / 120), rtol=1e-4)
    # A sample of the rows decides alike where the choice is clear.
    assert knn.fit(X, Y, groups=groups, candidates=(1, 15), cv_rows=60)["k"].shape == (3,)
    with pytest.raises(InputError, match="numbers of neighbours"):
        knn.fit(X, Y, k=0)


def test_inner_folds_prefer_given_then_groups_then_blocks_then_rows():
    X, _ = _data(100)
    xy = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), -1).reshape(-1, 2) * 200
    groups, folds = np.repeat([0, 1], 50), np.arange(100) % 7
    np.testing.assert_array_equal(_inputs.inner_folds(X, xy, None, groups, folds, 0), folds)
    by_group = _inputs.inner_folds(X, xy, None, groups, None, 0)
    assert len({*zip(groups, by_group, strict=True)}) == 2
    many = _inputs.inner_folds(X, None, None, np.arange(100) // 2, None, 0)
    assert many.max() + 1 == _inputs.MAX_FOLDS
    blocks = _inputs.inner_folds(X, xy, None, None, None, 0)
    assert blocks.max() + 1 == _inputs.MAX_FOLDS
    same = [blocks[i] == blocks[i + 1] for i in range(99) if (i + 1) % 10]
    assert np.mean(same) > 0.4  # neighbours mostly stay together
    rows = _inputs.inner_folds(np.repeat(X[:50], 2, axis=0), None, None, None, None, 0)
    np.testing.assert_array_equal(rows[::2], rows[1::2])  # copies stay together
    assert _inputs.inner_folds(X[:3], None, None, None, None, 0) is None
    assert _inputs.inner_folds(np.zeros((9, 2), np.float32), None, None, None, None, 0) is None


class TestNetwork:
    """Needs torch."""

    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch")

    def test_count_losses_are_minus_the_log_likelihood(self):
        import torch

        from stainseq.heads import _mlp

        rng = np.random.default_rng(0)
        counts = rng.poisson(3, (1, 8, 4)).astype(np.float32)
        out, offset = rng.normal(-5, 1, (1, 8, 4)).astype(np.float32), rng.normal(6, 0.3, (1, 8)).astype(np.float32)
        mean = np.exp(out + offset[..., None]).astype(float)
        plan = _mlp.Plan("poisson", 4, 0, 1e-3, 0, 8, 1, 1, 0)
        one = np.ones(4, np.float32)
        data = _mlp.Data(np.zeros((8, 2), np.float32), counts[0], offset[0], one, one, np.ones(8, np.float32))
        arrays = [torch.tensor(a) for a in (out, counts, offset, one, np.ones((1, 8), np.float32))]
        poisson = float(_mlp.Ensemble(plan, data, [0], "cpu").loss(*arrays)[0].detach())
        constant = (
            stats.poisson.logpmf(counts[0], counts[0]).mean()
            + (counts - counts * np.log(counts + (counts == 0))).mean()
        )
        assert poisson == pytest.approx(-stats.poisson.logpmf(counts, mean).mean() + constant, rel=1e-4)
        ensemble = _mlp.Ensemble(plan._replace(loss="nb"), data, [0], "cpu")
        with torch.no_grad():
            ensemble.values["dispersion"] += torch.tensor([-1.0, 0.0, 1.0, 2.0])
        theta = np.exp([-1.0, 0, 1, 2])
        expected = -stats.nbinom.logpmf(counts, theta, theta / (theta + mean))
        factorial = np.array([[sum(np.log(np.arange(1, int(c) + 1))) for c in row] for row in counts[0]])
        got = float(ensemble.loss(*arrays)[0].detach())
        assert got == pytest.approx((expected - factorial).mean(), rel=1e-4)

    def test_threads_do_not_change_the_bits(self):
        import torch
        from threadpoolctl import threadpool_limits

        X, Y = _data(200)
        options = {"members": 2, "hidden": 32, "max_epochs": 5, "groups": np.arange(200) % 3}
        states, before = [], torch.get_num_threads()
        try:
            for threads in (1, 2, 4):
                torch.set_num_threads(threads)
                with threadpool_limits(threads):
                    state = mlp.fit(X, Y, **options)
                    states.append({**state, "prediction": mlp.predict(state, X)[0]})
                assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        for other in states[1:]:
            for key in states[0]:
                np.testing.assert_array_equal(states[0][key], other[key])

    def test_it_learns_what_a_line_cannot(self):
        X, Y = _data(900)
        Z, T = _data(400, seed=1)
        line = ridge.predict(ridge.fit(X, Y), Z)[0]
        net, spread = mlp.predict(mlp.fit(X, Y, members=2, hidden=32, lr=5e-3, patience=10), Z)
        r = [[np.corrcoef(p[:, j], T[:, j])[0, 1] for j in range(3)] for p in (line, net)]
        assert r[0][0] > 0.95
        assert r[1][0] > 0.95
        assert max(r[0][1:]) < 0.3
        assert min(r[1][1:]) > 0.7
        # About two thirds of errors lie within the spread.
        inside = (np.abs(net - T) < spread).mean()
        assert 0.5 < inside < 0.9

    @pytest.mark.parametrize("loss", ["poisson", "nb"])
    def test_count_losses_predict_in_the_unit_of_the_targets(self, loss):
        rng = np.random.default_rng(0)
        X = rng.normal(size=(600, 5)).astype(np.float32)
        rate = np.exp(X[:, :3] * 0.7 + [-6, -4, -2.5])
        library = rng.lognormal(8, 0.5, 600).astype(int)
        counts = rng.poisson(rate * library[:, None])
        Y = np.log1p(counts / library[:, None] * 1e4).astype(np.float32)
        state = mlp.fit(X, Y, counts=counts, library=library, loss=loss, members=2, hidden=16, lr=5e-3, max_epochs=30)
        mean, _ = mlp.predict(state, X)
        assert np.abs(mean.mean(0) - Y.mean(0)).max() < 0.2
        assert min(np.corrcoef(mean[:, j], np.log1p(rate[:, j] * 1e4))[0, 1] for j in range(3)) > 0.9

    def test_context_finds_a_planted_neighbour_effect(self):
        rng = np.random.default_rng(0)
        xy = np.stack(np.meshgrid(np.arange(25.0), np.arange(25.0)), -1).reshape(-1, 2) * 100
        X = rng.normal(size=(625, 4)).astype(np.float32)
        near = np.abs(xy[:, None] - xy[None]).max(-1) == 100
        Y = (near @ X[:, :1] / near.sum(1, keepdims=True) * 3 + 0.2 * rng.normal(size=(625, 1))).astype(np.float32)
        for module, options in ((mlp, {"members": 2, "hidden": 16, "lr": 5e-3, "patience": 5}), (ridge, {})):
            r = []
            for context in ({}, {"context_um": 150}):
                state = module.fit(X, Y, coordinates=xy, folds=np.arange(625) % 4, **context, **options)
                mean, _ = module.predict(state, X, coordinates=xy)
                r.append(np.corrcoef(mean[:, 0], Y[:, 0])[0, 1])
            assert r[0] < 0.5
            assert r[1] > 0.9

    def test_bad_options(self):
        X, Y = _data()
        with pytest.raises(InputError, match="no loss named"):
            mlp.fit(X, Y, loss="huber")
        with pytest.raises(InputError, match="needs counts and library"):
            mlp.fit(X, Y, loss="nb")
        with pytest.raises(InputError, match="library sizes for targets"):
            mlp.fit(X, Y, loss="nb", counts=np.ones((80, 2)), library=np.ones(80))
        with pytest.raises(InputError, match="negative or not finite"):
            mlp.fit(X, Y, loss="nb", counts=-np.ones((80, 3)), library=np.ones(80))
        with pytest.raises(InputError, match="needs the coordinates"):
            mlp.fit(X, Y, context_k=3)
