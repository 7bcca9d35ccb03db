"""The calibrated test: moments against brute force, tails of null genes at every depth, power against SpatialDE2."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import sparse, stats

from stainseq.core import kernels, nbnull, offdiagonal, scoretest
from stainseq.svg import spatialde2


def projected(k: np.ndarray, w: np.ndarray) -> np.ndarray:
    p = np.eye(len(w)) - np.outer(w, np.ones(len(w))) / w.sum()
    return p.T @ k @ p


@pytest.mark.parametrize("kernel", ["SE", "PER", "linear"])
def test_moments_equal_sums_over_pairs_and_triples(kernel: str) -> None:
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 100, (25, 2))
    sizes = np.exp(rng.normal(0, 0.7, 25))
    family = scoretest.NullWeights.of(sizes, 33)
    spec = kernels.Kernel(kernel, 30.0)
    op = kernels.DenseOperator(kernels.dense(spec, xy))
    low = op if kernel == "SE" else kernels.LowRankOperator(kernels.low_rank_factor(spec, xy))
    moments = offdiagonal.pair_moments(low, family)
    for j in (0, 16, 20, 32):
        w, g = family.weights(np.array([j]))[:, 0], family.third(np.array([j]))[:, 0]
        b = projected(op.matrix, w)
        off = b - np.diag(np.diag(b))
        triples = sum(off[i, k] * off[k, m] * off[m, i] * w[i] * w[k] * w[m] for i, k, m in permutations(range(25), 3))
        assert moments.variance[j] == pytest.approx(0.5 * (off**2 * np.outer(w, w)).sum(), rel=1e-9)
        assert moments.triangles[j] == pytest.approx(triples, rel=2e-3, abs=1e-4 * moments.variance[j] ** 1.5)
        assert moments.pairs[j] == pytest.approx(0.5 * g @ off**3 @ g, rel=1e-7, abs=1e-9 * moments.variance[j] ** 1.5)
        assert moments.mean[j] == pytest.approx(0.5 * (np.diag(b) * w * w).sum() / w.sum(), rel=1e-9)


def test_third_moments_are_those_of_the_negative_binomial() -> None:
    sizes, m, alpha = np.array([0.3, 1.0, 4.0]), 2.0, 0.7
    family = scoretest.NullWeights.of(sizes, 5)
    x, scale = family.place(np.array([m]), np.array([alpha]))
    at = scoretest.NullWeights(sizes, family.centre, x)
    mu = m * sizes
    law = stats.nbinom(1 / alpha, 1 / (1 + alpha * mu))
    r_variance, r_third = law.var() / (1 + alpha * mu) ** 2, law.stats("s") * law.std() ** 3 / (1 + alpha * mu) ** 3
    np.testing.assert_allclose(scale * at.weights(slice(None))[:, 0], r_variance, rtol=1e-12)
    ratio = at.third(slice(None))[:, 0] / r_third
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)


def test_statistic_is_the_sum_over_pairs() -> None:
    rng = np.random.default_rng(4)
    xy, sizes = rng.uniform(0, 100, (80, 2)), np.exp(rng.normal(0, 0.5, 80))
    y = rng.poisson(rng.gamma(2, 0.5 * sizes[:, None], (80, 6)) * [0.5, 1, 2, 4, 8, 16]).astype(float)
    table = spatialde2.score(y, xy, genes=range(6), sizefactors=sizes, kernel_space={"SE": [10.0, 60.0]})
    block = sparse.csc_array(y)
    m, alpha = nbnull.fit(block.data, block.indices, block.indptr, nbnull.compress(sizes))
    per_kernel = table.attrs["kernels"].frame().set_index(["gene", "l"])
    for length in (10.0, 60.0):
        k = kernels.dense(kernels.Kernel("SE", length), xy)
        for g in range(6):
            w = m[g] * sizes / (1 + alpha[g] * m[g] * sizes)
            r = (y[:, g] - m[g] * sizes) / (1 + alpha[g] * m[g] * sizes)
            b = projected(k, w)
            # The diagonal is interpolated between three nodes; it is a small part.
            scale = np.sqrt(0.5 * (b**2 * np.outer(w, w)).sum())
            assert per_kernel.loc[(g, length), "Q"] == pytest.approx(
                0.5 * (r @ b @ r - np.diag(b) @ r**2), abs=1e-2 * scale
            )


def null_genes(seed: int, xy: np.ndarray, genes: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(0, 0.5, len(xy)))
    mu, alpha = np.exp(rng.normal(-2.2, 1.6, genes)), np.exp(rng.normal(-0.7, 0.5, genes))
    return rng.poisson(rng.gamma(1 / alpha, alpha * mu * sizes[:, None])).astype(np.float32)


def within(p: np.ndarray, level: float) -> bool:
    low, high = stats.binom.interval(0.99, len(p), level)
    return bool(low <= (p < level).sum() <= high)


@pytest.mark.slow
def test_null_tails_are_binomial_at_every_depth_and_scale(tissue) -> None:
    y = null_genes(7, tissue.coordinates, 10_000)
    total = y.sum(axis=0)
    y, total = y[:, total > 0], total[total > 0]
    table = spatialde2.score(sparse.csc_array(y), tissue.coordinates, genes=np.arange(len(total)))
    p = table["pval"].to_numpy()
    for level in (0.05, 0.01, 0.001):
        assert within(p, level), level
        for low, high in ((2, 20), (20, 100), (100, 1000), (1000, np.inf)):
            assert within(p[(total >= low) & (total < high)], level), (level, low)
        for key, group in table.attrs["kernels"].frame().groupby(["kernel", "l"]):
            assert within(group["pval"].to_numpy(), level), (level, key)


@pytest.mark.slow
def test_power_at_equal_false_discovery_proportion(tissue) -> None:
    true = np.arange(tissue.counts.shape[1]) < tissue.n_true
    found = {}
    for compat in (True, False):
        table = spatialde2.score(sparse.csc_array(tissue.counts), tissue.coordinates, genes=true, compat=compat)
        order = np.argsort(table["log10_pval"].to_numpy())
        wrong = np.cumsum(~true[order])
        proportion = wrong / np.arange(1, len(order) + 1)
        found[compat] = [np.flatnonzero(proportion <= at).max() + 1 for at in (0.01, 0.025, 0.05, 0.1)]
    assert all(ours >= theirs for ours, theirs in zip(found[False], found[True], strict=True)), found
    assert found[False][2] * 0.95 / tissue.n_true >= 0.66
