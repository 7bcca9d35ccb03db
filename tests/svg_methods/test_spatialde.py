"""SpatialDE (version 1): against multivariate normal likelihoods, and against its published table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from stainseq.core import gp
from stainseq.errors import InputError
from stainseq.svg import spatialde


def test_likelihood_is_that_of_a_multivariate_normal() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 10, (40, 2))
    k = gp.covariance("SE", 3.0, xy)
    y = rng.multivariate_normal(np.full(40, 5.0), k + 0.5 * np.eye(40), size=3)
    fits = gp.fit(y, gp.spectrum(k))

    def profile(log_delta: float, y: np.ndarray) -> float:
        v = k + np.exp(log_delta) * np.eye(40)
        inverse = np.linalg.inv(v)
        mean = inverse.sum(axis=0) @ y / inverse.sum()
        scale = (y - mean) @ inverse @ (y - mean) / 40
        return stats.multivariate_normal(np.full(40, mean), scale * v).logpdf(y)

    for g in range(3):
        grid = np.linspace(-10, 20, 301)
        near = grid[np.argmax([profile(x, y[g]) for x in grid])]
        best = minimize_scalar(lambda x, g=g: -profile(x, y[g]), bounds=(near - 0.2, near + 0.2), method="bounded",
                               options={"xatol": 1e-9})  # fmt: skip
        assert fits.log_likelihood[g] == pytest.approx(-best.fun, abs=1e-7)
        assert fits.log_delta[g] == pytest.approx(best.x, abs=1e-3)
        h = 1e-3
        x = fits.log_delta[g]
        second = (profile(x + h, y[g]) - 2 * profile(x, y[g]) + profile(x - h, y[g])) / h**2
        assert fits.curvature[g] == pytest.approx(second, rel=1e-2, abs=1e-6)


def test_gower_factor() -> None:
    xy = np.random.default_rng(1).uniform(0, 10, (30, 2))
    k = gp.covariance("PER", 4.0, xy)
    p = np.eye(30) - 1 / 30
    assert gp.spectrum(k).gower == pytest.approx(np.trace(k @ p) / 29)


def test_storey_q_of_uniform_p_values() -> None:
    p = np.append(np.random.default_rng(2).uniform(size=2000), np.nan)
    q = gp.storey_q(p)
    assert np.isnan(q[-1])
    assert np.nanmin(q) > 0.05
    assert (np.diff(q[:-1][np.argsort(p[:-1])]) >= 0).all()


def test_finds_the_planted_pattern_and_its_model() -> None:
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 100, (200, 2))
    y = rng.normal(0, 1, (200, 5))
    y[:, 0] += 3 * np.exp(-((xy - 50) ** 2).sum(axis=1) / (2 * 15**2))
    y[:, 1] += 0.05 * xy[:, 0]
    y[:, 4] = 2.0
    table = spatialde.score(y, xy, genes=list("abcde"), is_counts=False, model_search=True)
    assert set(table["gene"][table["qval"] < 0.01]) == {"a", "b"}
    assert table["search_model"][1] == "linear"
    assert table["FSV"][0] > 0.2
    assert np.isnan(table["LLR"][4])
    assert np.isnan(table["pval"][4])


def test_refuses_more_memory_than_allowed() -> None:
    xy = np.random.default_rng(4).uniform(size=(3000, 2))
    with pytest.raises(InputError, match="max_gb"):
        spatialde.score(np.ones((3000, 1)), xy, genes=["a"], is_counts=False, max_gb=0.1)


@pytest.fixture(scope="module")
def bulb(data_dir: Path):
    import pandas as pd

    folder = data_dir / "mob_rep11"
    if not folder.is_dir():
        pytest.skip("mob_rep11 not found in the data folder")
    counts = pd.read_csv(folder / "Rep11_MOB_counts.tsv.gz", sep="\t", index_col=0)
    table = pd.read_csv(folder / "published_SpatialDE_Rep11_MOB.csv.gz").set_index("g")
    genes = [g for g in table.index if g in counts.columns]
    counts = counts.loc[counts.sum(axis=1) > 10, genes]
    xy = np.array([[float(a) for a in name.split("x")] for name in counts.index])
    return counts, xy, table.loc[genes]


@pytest.mark.real
@pytest.mark.slow
def test_equals_the_published_table(bulb) -> None:
    counts, xy, published = bulb
    assert counts.shape == (260, 14_859)
    table = spatialde.score(counts.to_numpy(dtype=float), xy, genes=counts.columns).set_index("gene")
    assert np.abs(table["max_ll_null"] - published["max_ll_null"]).max() < 1e-6
    better = table["LLR"] - published["LLR"]
    assert better.min() > -1e-6
    assert better.median() < 1e-6
    assert set(table.index[table["qval"] < 0.05]) == set(published.index[published["qval"] < 0.05])
    assert len(set(table["LLR"].nlargest(300).index) & set(published["LLR"].nlargest(300).index)) >= 299
    same = better.abs() < 1e-6
    np.testing.assert_allclose(table["l"][same & (table["LLR"] > 0.1)], published["l"][same & (table["LLR"] > 0.1)])
    assert np.median(np.abs(table["FSV"] - published["FSV"])) < 1e-5


@pytest.mark.real
@pytest.mark.slow
def test_original_optimiser_gives_the_published_optima(bulb) -> None:
    counts, xy, published = bulb
    significant = published.index[published["qval"] < 0.05]
    rest = published.index[::60]
    chosen = significant.union(rest, sort=False)
    values = spatialde._Values(spatialde.Sample(counts.to_numpy(dtype=float), xy, genes=counts.columns), None)
    everything = values(0, counts.shape[1])[counts.columns.get_indexer(chosen)].T
    table = spatialde.score(everything, values._sample.coordinates, genes=chosen, is_counts=False, compat=True)
    table = table.set_index("gene")
    np.testing.assert_allclose(table["LLR"][significant], published["LLR"][significant], atol=2e-3)
    assert np.corrcoef(table["LLR"], published["LLR"][chosen])[0, 1] > 0.9999
