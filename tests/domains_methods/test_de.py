"""Rank sums, radius, neighbouring domains and metagenes against brute force and reference libraries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.spatial.distance import cdist, pdist

from stainseq.core import de
from stainseq.core.metagene import find_metagene
from stainseq.core.normalize import log1p_cp10k
from stainseq.errors import InputError


def table(n=80, g=25, seed=0, negative=False):
    rng = np.random.default_rng(seed)
    X = rng.poisson(np.exp(rng.normal(-1, 1.5, g)), (n, g)).astype(float)
    if negative:
        X = X * np.where(rng.random((n, g)) < 0.3, -1, 1)
    X[:, 4] = 0
    X[:, 5] = 2
    return X, rng.random(n) < 0.3


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, sparse.csc_array])
def test_rank_sums_equal_scipy(form, negative):
    X, group = table(negative=negative)
    found = de.compare(form(X), group)
    for j in range(X.shape[1]):
        if np.ptp(X[:, j]) == 0:
            assert np.isnan(found.log_p[j])
            assert np.isnan(found.log_q[j])
            continue
        p = stats.mannwhitneyu(X[group, j], X[~group, j], use_continuity=False, method="asymptotic").pvalue
        assert np.exp(found.log_p[j]) == pytest.approx(p, rel=1e-9)
    np.testing.assert_allclose(found.fraction_in, (X[group] != 0).mean(axis=0))
    np.testing.assert_allclose(found.mean_out, X[~group].mean(axis=0), atol=1e-12)
    tested = ~np.isnan(found.log_p)
    np.testing.assert_allclose(
        np.exp(found.log_q[tested]), stats.false_discovery_control(np.exp(found.log_p[tested])), rtol=1e-9
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_many_comparisons_at_once_equal_one_by_one(dtype):
    X, _ = table(300, 20, seed=5, negative=dtype is not np.int64)
    rng = np.random.default_rng(2)
    X = (X if dtype is np.int64 else X * rng.choice([0.5, 1.0, 1.25], X.shape)).astype(dtype)
    labels = rng.integers(-1, 5, 300)
    against = {0: [1, 2], 3: [0, 1, 2, 4], 1: [0], 4: [3]}
    together = de.compare_all(sparse.csr_array(X), labels, against)
    for (label, others), found in zip(against.items(), together, strict=True):
        rows = np.isin(labels, [label, *others])
        for a, b in zip(found, de.compare(X[rows], labels[rows] == label), strict=True):
            np.testing.assert_array_equal(a, b)
    shuffle = rng.permutation(300)
    for a, b in zip(together, de.compare_all(X[shuffle], labels[shuffle], against), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_refusals():
    X, group = table()
    with pytest.raises(InputError, match="labels of shape"):
        de.compare(X, group[:-1])
    with pytest.raises(InputError, match="0 of 80 rows are in the group"):
        de.compare(X, np.zeros(80, bool))
    X[3, 3] = np.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        de.compare(X, group)


def test_stored_zeros_are_zeros():
    X, group = table()
    stored = sparse.csc_array(X)
    stored.data[::3] = 0
    plain = de.compare(stored.toarray(), group)
    for a, b in zip(plain, de.compare(stored, group), strict=True):
        np.testing.assert_allclose(a, b)


def test_without_tie_correction_it_is_the_plain_formula():
    """Scanpy's default, and so SpaGCN's."""
    X, group = table(200, 40, seed=3)
    found = de.compare(X, group, tie_correct=False)
    n_in, n = group.sum(), 200
    for j in np.flatnonzero(np.ptp(X, axis=0) > 0):
        ranks = stats.rankdata(X[:, j])[group].sum()
        z = (ranks - n_in * (n + 1) / 2) / np.sqrt(n_in * (n - n_in) * (n + 1) / 12)
        assert found.z[j] == pytest.approx(z, rel=1e-12)


def test_strong_genes_do_not_tie_at_zero():
    group = np.arange(20_000) < 10_000
    X = np.zeros((20_000, 2))
    X[group, 0] = np.linspace(1, 2, 10_000)
    X[group, 1] = np.linspace(1, 2, 10_000)
    X[0, 1] = 0
    found = de.compare(X, group)
    assert np.exp(found.log_p[0]) == 0
    assert found.log_p[0] < found.log_p[1] < -1000


def test_quantiles_of_distances_equal_numpys(cells):
    xy = np.vstack([cells(150).coordinates, [[1.0, 1.0], [1.0, 1.0]]])
    d = pdist(xy)
    for q, found in zip((0.001, 0.1, 0.5), de.distance_quantiles(xy, (0.001, 0.1, 0.5)), strict=True):
        assert found == pytest.approx(np.quantile(d[d != 0], q), rel=1e-12)
    with pytest.raises(InputError, match="one place"):
        de.distance_quantiles(np.zeros((5, 2)), (0.1,))


def test_surroundings_equal_brute_force(planted):
    xy, layer = planted.coordinates, planted.layer
    d = cdist(xy, xy)
    between = np.quantile(d[d != 0], (0.001, 0.1))
    for domain in range(7):
        found = de.surroundings(xy, layer, domain, between=tuple(between))
        low, high = between
        while True:
            middle = (low + high) / 2
            mean = (d[layer == domain] <= middle).sum(axis=1).mean()
            if 10 <= mean <= 14:
                break
            low, high = (middle, high) if mean < 10 else (low, middle)
        assert found.radius == middle
        assert found.mean_count == pytest.approx(mean)
        near = d[layer == domain] <= middle
        met = {k: near[:, layer == k].sum() for k in range(7) if k != domain}
        kept = sorted((k for k in met if met[k] > 0.5 * (layer == k).sum()), key=lambda k: -met[k])
        assert found.domains.tolist() == kept[:3]


def test_no_radius_and_no_neighbour_are_said_clearly(planted):
    xy, layer = planted.coordinates, planted.layer
    with pytest.raises(InputError, match="no radius has 10 to 14 rows"):
        de.surroundings(xy[:9], layer[:9], layer[0], between=(1.0, 2.0))
    piled = np.repeat(xy[::10], 20, axis=0)  # twenty rows at every place: none has 10 to 14 around it
    with pytest.raises(InputError, match=r"found 20 within 0 and 32 or more within 4000"):
        de.surroundings(piled, np.repeat(layer[::10], 20), 0, between=(100.0, 4000.0))
    with pytest.raises(InputError, match="no other domain is met"):
        de.surroundings(xy, layer, 0, between=(100.0, 4000.0), ratio=50)
    with pytest.raises(InputError, match="has no rows"):
        de.surroundings(xy, layer, 99, between=(100.0, 4000.0))


def test_the_search_widens_where_the_quantiles_do_not_enclose_the_radius(planted):
    """Of 100,000 cells, the .001 quantile of distances holds a hundred around each."""
    xy, layer = planted.coordinates, planted.layer
    d = cdist(xy, xy)[layer == 3]
    for between in ((1.0, 2.0), (3000.0, 5000.0), (0.001, 9000.0)):
        found = de.surroundings(xy, layer, 3, between=between)
        assert 10 <= found.mean_count <= 14
        assert found.mean_count == pytest.approx((d <= found.radius).sum(axis=1).mean())
        assert set(found.domains) == {2, 4}


def test_rows_with_more_neighbours_than_are_listed(planted):
    """A clump of 60 in an open field: counts around its rows pass the nearest 32 that are looked up."""
    rng = np.random.default_rng(1)
    xy = np.vstack([rng.uniform(0, 1000, (400, 2)), 500 + rng.normal(0, 0.5, (60, 2))])
    layer = np.r_[(xy[:400, 0] > 500).astype(int), np.full(60, 2)]
    d = cdist(xy, xy)
    for domain in (0, 1):
        found = de.surroundings(xy, layer, domain, between=(0.1, 2000.0), ratio=0.01)
        near = d[layer == domain] <= found.radius
        assert near.sum(axis=1).max() > 60
        assert found.mean_count == pytest.approx(near.sum(axis=1).mean())
        met = {k: near[:, layer == k].sum() for k in range(3) if k != domain}
        assert found.domains.tolist() == sorted(met, key=lambda k: -met[k])


def naive_metagene(X, inside, start, rounds):
    """SpaGCN's loop, written for dense arrays."""
    meta, genes, signs = X[:, start].copy(), [start], [1]
    outside, difference = len(X), 0.0
    for _ in range(rounds):
        alike = (meta > meta[inside].mean()) | inside
        a, b = X[alike & inside], X[alike & ~inside]
        if min(len(a), len(b)) < 5:
            break
        z = []
        for j in range(X.shape[1]):
            both = np.concatenate([a[:, j], b[:, j]])
            ranks = stats.rankdata(both)
            t = np.unique(both, return_counts=True)[1]
            n = len(both)
            sd = np.sqrt(len(a) * len(b) / 12 * ((n + 1) - (t**3 - t).sum() / (n * (n - 1))))
            z.append((ranks[: len(a)].sum() - len(a) * (n + 1) / 2) / sd if len(t) > 1 else np.nan)
        add, minus = int(np.nanargmax(z)), int(np.nanargmin(z))
        now = meta + X[:, add] - X[:, minus]
        now -= now.min()
        gap = now[inside].mean() - now[~inside].mean()
        if len(b) > outside or gap < difference:
            break
        meta, outside, difference = now, len(b), gap
        genes += [add, minus]
        signs += [1, -1]
    return genes, signs, meta


def test_metagene_equals_the_naive_loop(planted):
    X = log1p_cp10k(planted.counts[::3, :120])
    layer = planted.layer[::3]
    dense = X.toarray().astype(float)
    for domain in (0, 3):
        inside = layer == domain
        start = int(np.nanargmax(de.compare(X, inside).z))
        found = find_metagene(X, inside, start, max_iter=5)
        genes, signs, values = naive_metagene(dense, inside, start, 5)
        assert found.genes.tolist() == genes
        assert found.signs.tolist() == signs
        np.testing.assert_allclose(found.values, values, atol=1e-5)
        assert len(found.steps) == (len(genes) - 1) // 2


def test_metagene_refusals(planted):
    X = planted.counts[:20]
    with pytest.raises(InputError, match="0 of 20 rows"):
        find_metagene(X, np.zeros(20, bool), 0)
    with pytest.raises(InputError, match="gene number"):
        find_metagene(X, np.arange(20) < 5, 10**6)
