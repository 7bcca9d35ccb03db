"""SpatialDE 1.1.3 and SpatialDE2 themselves, run once in environments of their own; their output is in ``reference``.

``spatialde2.csv``: ``NegativeBinomialScoreTest`` and ``combine_pvalues`` of PMBio/SpatialDE (SpatialDE/_internal/
score_test.py, commit 3703cef) with tensorflow-cpu 2.21.0, tensorflow-probability 0.25.0, gpflow 2.11.2, numpy 1.26.4;
``tf.function``'s ``experimental_compile`` mapped to ``jit_compile``; 32 genes of the fixture, total counts over all
genes as size factors, the ten default kernels; m is exp of its first parameter.

``spatialde_1.1.3.csv``: ``SpatialDE.run`` of SpatialDE 1.1.3 with numpy 1.24.4, scipy 1.10.1, pandas 1.5.3 on the table
that `small_table` makes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.special import gammaln

from stainseq.core import kernels, scoretest
from stainseq.svg import spatialde, spatialde2

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def theirs() -> pd.DataFrame:
    return pd.read_csv(REFERENCE / "spatialde2.csv")


@pytest.fixture(scope="module")
def ours(tissue, theirs):
    genes = theirs["gene"].unique()
    counts = sparse.csc_array(tissue.counts[:, genes])
    return spatialde2.score(
        counts, tissue.coordinates, genes=genes, sizefactors=tissue.counts.sum(axis=1), compat=True
    ).set_index("gene", drop=False)


def test_statistics_of_spatialde2_given_its_null(tissue, theirs) -> None:
    one = theirs.drop_duplicates("gene")
    m, alpha, sizes = one["m"].to_numpy(), one["alpha"].to_numpy(), tissue.counts.sum(axis=1).astype(float)
    block = sparse.csc_array(tissue.counts[:, one["gene"]].astype(float))
    family = scoretest.NullWeights.of(sizes)
    r = scoretest.residuals(block.data, block.indices, block.indptr, m, alpha, sizes)
    x, scale = family.place(m, alpha)
    for (name, length), rows in theirs.groupby(["kernel", "l"]):
        kernel = kernels.Kernel(name, length)
        if name == "SE":
            op: kernels.Operator = kernels.DenseOperator(kernels.dense(kernel, tissue.coordinates))
        else:
            op = kernels.LowRankOperator(kernels.low_rank_factor(kernel, tissue.coordinates))
        e, information = (family.interpolate(a, x) for a in scoretest.compatible_moments(op, family))
        np.testing.assert_allclose(0.5 * ((r @ op.factor()) ** 2).sum(axis=1), rows["U"], rtol=1e-8)
        np.testing.assert_allclose(e * scale, rows["e"], rtol=1e-8)
        np.testing.assert_allclose(information * scale**2, rows["I"], rtol=1e-8)


def log_likelihood(y: np.ndarray, mu: np.ndarray, alpha: float) -> float:
    r = 1 / alpha
    return float((gammaln(y + r) - gammaln(r) - (y + r) * np.log1p(alpha * mu) + y * np.log(alpha * mu)).sum())


def test_statistics_of_spatialde2_with_our_own_null(tissue, theirs, ours) -> None:
    mine = ours.attrs["kernels"].frame()
    np.testing.assert_allclose(mine["l"], theirs["l"], rtol=1e-10)
    off = np.abs(mine[["U", "e", "I"]] / theirs[["U", "e", "I"]] - 1).max(axis=1).groupby(theirs["gene"]).max()
    assert (off < 1e-5).sum() >= 30
    # Of the others SpatialDE2's optimiser stopped short of the maximum.
    sizes = tissue.counts.sum(axis=1).astype(float)
    null = theirs.drop_duplicates("gene").set_index("gene")
    for gene in off.index[off >= 1e-5]:
        assert off[gene] < 3e-4
        y = tissue.counts[:, gene].astype(float)
        best = log_likelihood(y, ours.loc[gene, "mean"] * sizes / sizes.mean(), ours.loc[gene, "alpha"])
        theirs_at = log_likelihood(y, null.loc[gene, "m"] * sizes, null.loc[gene, "alpha"])
        assert best > theirs_at - 1e-6  # rounding of the likelihood at a dispersion of 1e-8


def test_combined_p_of_spatialde2(theirs, ours) -> None:
    combined = theirs.drop_duplicates("gene").set_index("gene")["combined"]
    sound = combined[combined > 1e-12]  # below, the tangent in double precision has no digits left
    assert len(sound) > 20
    np.testing.assert_allclose(ours.loc[sound.index, "log10_pval"], np.log10(sound), atol=1e-3)
    assert (ours.loc[combined.index[combined <= 1e-12], "log10_pval"] < -11).all()


def small_table() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    xy = rng.uniform(0, 100, (120, 2)).round(2)
    y = rng.normal(0, 1, (120, 40))
    for k in range(12):
        y[:, k] += (0.4 + 0.15 * k) * np.sin(xy[:, 0] / (6 + 3 * k) + k)
    return xy, y.round(4)


def test_every_figure_of_spatialde_with_its_optimiser() -> None:
    xy, y = small_table()
    theirs = pd.read_csv(REFERENCE / "spatialde_1.1.3.csv")
    ours = spatialde.score(y, xy, genes=theirs["g"].to_numpy(), is_counts=False, compat=True)
    for column in ("l", "FSV", "LLR", "pval", "max_ll", "max_ll_null", "max_delta", "max_mu_hat", "max_s2_t_hat"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-7, atol=1e-8, err_msg=column)


def test_better_optima_than_spatialde() -> None:
    xy, y = small_table()
    theirs = pd.read_csv(REFERENCE / "spatialde_1.1.3.csv")
    ours = spatialde.score(y, xy, genes=theirs["g"].to_numpy(), is_counts=False)
    gain = ours["LLR"] - theirs["LLR"]
    assert gain.min() > -1e-8
    assert gain.max() > 0.1
