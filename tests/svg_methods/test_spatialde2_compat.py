"""SpatialDE2's statistics: against the formulas with n x n matrices, and against values of SpatialDE2 itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.optimize import minimize
from scipy.special import digamma, gammaln

from stainseq.core import chi2mix, kernels, nbnull, scoretest
from stainseq.svg import spatialde2

# SpatialDE2 (its own optimiser) on the first two genes of the fixture: kernel, U, e, I, p.
PUBLISHED = """
SE 23.9637153526 17.9439639563 6.2936508318 0.0132305443
SE 36.3936144010 16.8586304394 27.3232839117 0.0016323768
SE 54.7865497298 13.0076528158 65.0475969938 0.0006504054
SE 41.9917989343 5.7996861956 31.7486434936 0.0005468884
SE 12.7594299912 1.4900511480 2.8996746963 0.0007355406
PER 23.6635643386 18.2586015268 399.6909969904 0.2708984547
PER 21.2858690233 18.2534329689 399.3225418938 0.3051847580
PER 29.2594015992 18.2562350997 399.6433449098 0.2050496471
PER 3.0713978315 18.2411783948 399.3111693100 0.8056773676
PER 35.2607246713 18.0830734727 397.6568345622 0.1506720053
SE 53.1437171054 45.7868697330 43.0336506344 0.1327153315
SE 55.3479361048 43.0201735447 186.9072897892 0.1757988696
SE 37.4923651399 33.2063629239 445.6099542691 0.3422356196
SE 16.0882621255 14.8150689069 217.6852024789 0.3379658959
SE 3.9020703794 3.8071961397 19.8820809406 0.3388521297
PER 60.2403828741 46.5905905449 2736.4623093755 0.2706002642
PER 19.6049724252 46.5731557417 2732.9331509357 0.6094481427
PER 29.5638428591 46.5851673172 2736.5607894751 0.4949032968
PER 52.5505865859 46.5462760967 2733.7379915218 0.3134360971
PER 46.3268508243 46.1579109104 2723.7912445053 0.3502269178
"""
LENGTHS = [399.644842, 897.230203, 2014.343617, 4522.340192, 10152.965281]
COMBINED = {0: 1.84347e-3, 1: 3.00478e-1, 3: 1.44866e-1, 4: 1.88067e-3, 5: 1.25959e-10, 6: 8.08769e-9, 7: 8.68576e-2,
            12: 8.70221e-9, 13: 4.20400e-1, 14: 4.45574e-6, 15: 1.39799e-2, 17: 1.50326e-7, 18: 1.28210e-7,
            19: 3.25496e-1}  # fmt: skip


def brute_force(k: np.ndarray, y: np.ndarray, mu: np.ndarray, alpha: float) -> tuple[float, ...]:
    """The score test of one gene and kernel, matrix by matrix."""
    w = mu / (1 + alpha * mu)
    r = w * (y / mu - 1)
    p = np.diag(w) - np.outer(w, w) / w.sum()
    pk = w[:, None] * k - np.outer(w, w @ k) / w.sum()
    e = 0.5 * np.trace(pk)
    itt, ith, ihh = 0.5 * (pk * pk).sum(), 0.5 * (pk * p).sum(), 0.5 * (p * p).sum()
    information = itt - ith**2 / ihh
    kappa, nu = information / (2 * e), 2 * e**2 / information
    u = 0.5 * r @ k @ r
    return u, e, information, kappa, nu, stats.chi2.logsf(u / kappa, nu)


def distance_kernels(xy: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    d2 = ((xy[:, None] - xy[None]) ** 2).sum(-1)
    s = xy.sum(axis=1)
    return [np.exp(-d2 / (2 * x * x)) for x in lengths] + [np.cos(2 * np.pi * (s[:, None] - s) / x) for x in lengths]


@pytest.fixture(scope="module")
def scored(tissue):
    return spatialde2.score(sparse.csc_array(tissue.counts), tissue.coordinates, genes=np.arange(4992), compat=True)


def test_equals_the_formulas_given_the_same_null() -> None:
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 1000, (150, 2))
    xy[3] = xy[4]
    sizes = np.exp(rng.normal(0, 0.8, 150))
    lengths = np.array([20.0, 60.0, 200.0, 900.0])
    dense = [*distance_kernels(xy, lengths), xy @ xy.T]
    chosen = kernels.kernel_list({"SE": lengths, "PER": lengths, "linear": 0}, xy)
    family = scoretest.NullWeights.of(sizes)
    m, alpha = np.exp(rng.normal(0, 2, 40)), np.exp(rng.normal(-1, 2, 40))
    alpha[:3] = 0.0, 1e-8, 1e5
    y = rng.poisson(m * sizes[:, None])
    block = sparse.csc_array(y.astype(float))
    r = scoretest.residuals(block.data, block.indices, block.indptr, m, alpha, sizes)
    x, scale = family.place(m, alpha)
    for kernel, k in zip(chosen, dense, strict=True):
        np.testing.assert_allclose(kernels.dense(kernel, xy), k, atol=1e-9 * abs(k).max())
        op = kernels.LowRankOperator(kernels.low_rank_factor(kernel, xy)) if kernel.name != "SE" else (
            kernels.DenseOperator(kernels.dense(kernel, xy)))  # fmt: skip
        e, information = (family.interpolate(a, x) for a in scoretest.compatible_moments(op, family))
        e, information = e * scale, information * scale**2
        u = 0.5 * ((op.factor().T @ r.T) ** 2).sum(axis=0)
        kappa, nu, log_p = scoretest.chi2_test(u, e, information)
        expected = np.array([brute_force(k, y[:, g], m[g] * sizes, alpha[g]) for g in range(40)])
        for got, want in zip((u, e, information, kappa, nu, log_p), expected.T, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-12)


def test_equals_values_of_spatialde2(scored) -> None:
    table = scored.attrs["kernels"].frame().iloc[:20]
    rows = [line.split() for line in PUBLISHED.strip().splitlines()]
    assert table["kernel"].tolist() == [row[0] for row in rows]
    np.testing.assert_allclose(table["l"], LENGTHS * 4, rtol=1e-9)
    expected = np.array([[float(x) for x in row[1:]] for row in rows])
    np.testing.assert_allclose(table[["U", "e", "I"]], expected[:, :3], rtol=1e-5)
    np.testing.assert_allclose(table["log10_pval"], np.log10(expected[:, 3]), atol=1e-3)


def test_combined_p_equals_spatialde2(scored) -> None:
    for gene, p in COMBINED.items():
        assert scored["log10_pval"][gene] == pytest.approx(np.log10(p), abs=1e-3)


def test_no_ties_among_strong_genes(scored) -> None:
    strong = scored["log10_pval"][scored["log10_pval"] < -15]
    assert len(strong) > 50
    assert strong.is_unique


def test_best_kernel_has_its_own_length(scored) -> None:
    kernel = scored.attrs["kernels"].frame().set_index(["gene", "kernel", "l"])["log10_pval"]
    for gene in (0, 1, 5, 700):
        best = kernel.loc[gene]
        assert (scored["kernel"][gene], scored["l"][gene]) == best.idxmin()


def test_null_fit_is_the_maximum_of_the_likelihood() -> None:
    rng = np.random.default_rng(2)
    sizes = np.exp(rng.normal(0, 1, 300))
    mean, dispersion = np.exp(rng.normal(0, 2.5, 60)), np.exp(rng.normal(-1, 1.5, 60))
    y = rng.poisson(rng.gamma(1 / dispersion, dispersion * mean * sizes[:, None])).astype(float)
    y[:, -1] *= 1.3  # values that are not whole
    block = sparse.csc_array(y)
    m, alpha = nbnull.fit(block.data, block.indices, block.indptr, nbnull.compress(sizes))

    def negative(p: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        mu, a = np.exp(p[0]) * sizes, np.exp(p[1])
        r, one = 1 / a, 1 + a * mu
        value = gammaln(y + r) - gammaln(r) - (y + r) * np.log(one) + y * p[1] + y * np.log(mu)
        slope = np.sum((y - mu) / one), np.sum(r * (digamma(r) - digamma(y + r) + np.log(one)) + (y - mu) / one)
        return -value.sum(), -np.array(slope)

    inside = 0
    for g in np.flatnonzero(y.sum(axis=0)):
        start = [np.log(y[:, g].sum() / sizes.sum()), 0.0]
        found = minimize(negative, start, args=(y[:, g],), jac=True, bounds=[(-20, 20), (-15, 20)],
                         options={"ftol": 1e-14, "gtol": 1e-10})  # fmt: skip
        assert m[g] == pytest.approx(np.exp(found.x[0]), rel=1e-5)
        if alpha[g] == 0.0:
            assert found.x[1] < -8
        else:
            inside += 1
            assert np.log(alpha[g]) == pytest.approx(found.x[1], abs=2e-4)
            assert np.abs(negative(np.log([m[g], alpha[g]]), y[:, g])[1]).max() < 1e-7
    assert inside > 40


def test_log_tails_against_scipy() -> None:
    x, nu = np.meshgrid([0.0, 1e-3, 1.0, 30.0, 300.0, 1200.0], [0.3, 1.0, 7.5, 200.0])
    np.testing.assert_allclose(chi2mix.log_chi2_sf(x, nu), stats.chi2.logsf(x, nu), rtol=1e-10, atol=1e-14)
    deep = chi2mix.log_chi2_sf([2000.0, 4000.0, 1e6], [1.0, 3.0, 50.0])
    # Leading terms of the tail: sf ~ (x/2)^(nu/2-1) exp(-x/2) / Gamma(nu/2)
    lead = [-x / 2 + (nu / 2 - 1) * np.log(x / 2) - gammaln(nu / 2) for x, nu in [(2000, 1), (4000, 3), (1e6, 50)]]
    np.testing.assert_allclose(deep, lead, rtol=1e-4)


def test_cauchy_combination() -> None:
    p = np.array([[0.2, 0.9, 0.01], [1e-9, 0.5, 0.5], [0.5, 0.5, 0.5], [1e-13, 1e-14, 0.3]])
    expected = np.arctan2(1.0, (1 / np.tan(np.pi * p)).mean(axis=1)) / np.pi

    np.testing.assert_allclose(np.exp(chi2mix.log_cauchy_combination(np.log(p))), expected, rtol=1e-12)
    log_p = np.array([[-2000.0, -2000.0], [-2000.0, np.nan], [np.nan, np.nan], [-1e5, -1.0]])
    expected = [-2000.0, -2000.0, np.nan, -1e5 + np.log(2)]
    np.testing.assert_allclose(chi2mix.log_cauchy_combination(log_p), expected, rtol=1e-12)
