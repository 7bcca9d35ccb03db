"""SPARK-X against its formula with n x n matrices, its null law by simulation of eigenvalues, and planted truth."""

from __future__ import annotations

import numpy as np
from scipy import sparse, stats

from stainseq.core.autocorr import benjamini_hochberg
from stainseq.svg import sparkx


def test_equals_the_formula_with_projection_matrices() -> None:
    rng = np.random.default_rng(0)
    n = 60
    xy, y = rng.uniform(0, 500, (n, 2)), rng.poisson(2.0, (n, 7)).astype(float)
    table = sparkx.score(sparse.csr_matrix(y), xy, genes=list("abcdefg")).attrs["kernels"].frame()
    centred = xy - xy.mean(axis=0)
    scale = np.quantile(np.abs(centred), [0.2, 0.4, 0.6, 0.8, 1.0], axis=0)
    transformed = [centred, *(np.exp(-(centred**2) / (2 * s**2)) for s in scale),
                   *(np.cos(2 * np.pi * centred / s) for s in scale)]  # fmt: skip
    for g in range(7):
        for k, s in enumerate(transformed):
            s = s - s.mean(axis=0)
            projection = s @ np.linalg.inv(s.T @ s) @ s.T
            t = n * y[:, g] @ projection @ y[:, g] / (y[:, g] @ y[:, g])
            shrink = 1 - n * y[:, g].mean() ** 2 / (y[:, g] @ y[:, g])
            row = table.iloc[g * 11 + k]
            np.testing.assert_allclose(row["T"], t, rtol=1e-9)
            # The general law is a mixture over the products of eigenvalues of both covariance matrices.
            eigenvalues = np.linalg.eigvalsh(projection)[-2:] * shrink
            np.testing.assert_allclose(eigenvalues, shrink, rtol=1e-9)
            np.testing.assert_allclose(row["pval"], np.exp(-t / (2 * shrink)), rtol=1e-8)


def test_null_is_uniform_and_planted_genes_lead(tissue) -> None:
    table = sparkx.score(sparse.csc_array(tissue.counts), tissue.coordinates, genes=np.arange(4992))
    true = np.arange(4992) < tissue.n_true
    assert true[table["log10_pval"].nsmallest(150).index].mean() > 0.97
    rng = np.random.default_rng(1)
    null = rng.poisson(1.0, (1500, 4000))
    p = sparkx.score(null, tissue.coordinates, genes=np.arange(4000)).attrs["kernels"].frame()["pval"]
    assert stats.kstest(p[::11], "uniform").pvalue > 1e-3
    q = benjamini_hochberg(table["log10_pval"].to_numpy() * np.log(10))
    by = table["adjustedPval"].to_numpy()
    assert (by >= q).all()


def test_one_line_of_cells_and_constant_genes() -> None:
    xy = np.column_stack([np.arange(30.0), np.full(30, 7.0)])
    y = np.zeros((30, 3))
    y[:, 0] = np.arange(30)
    y[:, 2] = 5
    table = sparkx.score(y, xy, genes=["up", "none", "flat"])
    assert table["pval"][0] < 1e-3
    assert table["pval"][1:].isna().all()
    assert table["adjustedPval"][1:].isna().all()
