"""Bad input, order of rows, threads, kinds of matrices: the same for every count-based test."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse
from threadpoolctl import threadpool_limits

from stainseq.core import forms
from stainseq.errors import InputError
from stainseq.svg import _autocorr, geary, moran, sparkx, spatialde, spatialde2

METHODS = {
    "spatialde2": spatialde2.score,
    "spatialde2 compat": partial(spatialde2.score, compat=True),
    "spatialde2 omnibus": partial(spatialde2.score, omnibus=True),
    "spatialde2 normal": partial(spatialde2.score, obs_dist="normal"),
    "spatialde": spatialde.score,
    "sparkx": sparkx.score,
    "moran": moran.score,
    "geary": geary.score,
}


@pytest.fixture(scope="module")
def small() -> SimpleNamespace:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (120, 2))
    xy[10] = xy[11] = xy[12]
    sizes, mean = np.exp(rng.normal(0, 0.4, 120)), np.exp(rng.normal(0, 1.5, 700))
    pattern = np.exp(0.8 * np.sin(xy[:, 0] / 150))
    mean = sizes[:, None] * np.where(np.arange(700) % 5 == 0, pattern[:, None], 1.0) * mean
    counts = rng.poisson(rng.gamma(2, 0.5, mean.shape) * mean).astype(np.float32)
    counts[:, 3] = 0
    return SimpleNamespace(xy=xy, counts=counts, genes=np.array([f"g{k}" for k in range(700)]))


@pytest.mark.parametrize("method", list(METHODS))
def test_rows_in_any_order_give_the_same(small, method: str) -> None:
    order = np.random.default_rng(1).permutation(120)
    straight = METHODS[method](small.counts, small.xy, genes=small.genes)
    shuffled = METHODS[method](small.counts[order], small.xy[order], genes=small.genes)
    np.testing.assert_allclose(shuffled["log10_pval"], straight["log10_pval"], rtol=1e-10, atol=1e-10)
    assert (shuffled["gene"] == small.genes).all()
    if "kernels" in straight.attrs:
        a, b = (t.attrs["kernels"].columns for t in (straight, shuffled))
    else:
        a, b = ({c: t[c].to_numpy() for c in t.columns[1:]} for t in (straight, shuffled))
    for name, values in a.items():
        np.testing.assert_allclose(b[name], values, rtol=1e-10, atol=1e-10 * np.nanmax(np.abs(values)), err_msg=name)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("many", [False, True])
def test_any_number_of_threads_gives_the_same_bits(small, method: str, many: bool, monkeypatch) -> None:
    if many:
        monkeypatch.setattr(forms, "DENSE_PLACES", 50)
    monkeypatch.setattr(spatialde2, "_BLOCK", 64)
    monkeypatch.setattr(spatialde, "_BLOCK", 64)
    monkeypatch.setattr(sparkx, "_BLOCK", 64)
    monkeypatch.setattr(_autocorr, "_BLOCK", 64)
    runs = [METHODS[method](small.counts, small.xy, genes=small.genes, n_jobs=jobs) for jobs in (1, 2, 4, 4)]
    for other in runs[1:]:
        for column in runs[0].select_dtypes("number"):
            np.testing.assert_array_equal(other[column].to_numpy(), runs[0][column].to_numpy(), err_msg=column)


@pytest.mark.parametrize("method", list(METHODS))
def test_any_number_of_blas_threads_gives_the_same_bits(small, method: str) -> None:
    runs = []
    for count in (1, 2, 4):
        with threadpool_limits(count):
            runs.append(METHODS[method](small.counts, small.xy, genes=small.genes))
    for other in runs[1:]:
        for column in runs[0].select_dtypes("number"):
            np.testing.assert_array_equal(other[column].to_numpy(), runs[0][column].to_numpy(), err_msg=column)


@pytest.mark.parametrize("method", list(METHODS))
def test_kinds_of_matrices_give_the_same(small, method: str) -> None:
    class Backed:
        """What a backed matrix offers: a shape, and column slices that are read when asked for."""

        shape = small.counts.shape

        def __getitem__(self, key):
            assert key[1].stop - key[1].start <= 2048
            return sparse.csr_matrix(small.counts[key])

    expected = METHODS[method](small.counts, small.xy, genes=small.genes)["log10_pval"].to_numpy()
    for kind in (sparse.csr_matrix(small.counts), sparse.csc_array(small.counts), sparse.coo_array(small.counts),
                 small.counts.astype(np.int32), Backed()):  # fmt: skip
        found = METHODS[method](kind, small.xy, genes=small.genes)["log10_pval"].to_numpy()
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("method", list(METHODS))
def test_genes_without_counts_are_not_tested(small, method: str) -> None:
    table = METHODS[method](small.counts, small.xy, genes=small.genes)
    if method in ("moran", "geary"):  # their statistic is NaN and their p 1
        assert table["z"].isna()[3]
        assert (table["z"].notna() == (small.counts.sum(axis=0) > 0)).all()
    else:
        assert np.isnan(table["pval"][3])
        assert np.isnan(table["log10_pval"][3])
        assert (table["pval"].notna() == (small.counts.sum(axis=0) > 0)).all()
    # 140 of 700 are planted, faint on 120 places: the top is to hold more of them than chance would put there.
    planted = np.arange(700) % 5 == 0
    assert planted[table["log10_pval"].nsmallest(40).index].mean() > 0.35


@pytest.mark.parametrize("method", list(METHODS))
def test_bad_input_is_one_clear_error(small, method: str) -> None:
    run = METHODS[method]
    missing, negative, nowhere = small.counts.copy(), small.counts.copy(), small.xy.copy()
    missing[4, 17], negative[4, 17], nowhere[5] = np.nan, -1.0, np.nan
    cases = [
        (small.counts, None, "no coordinates"),
        (small.counts, small.xy[:, :1], "coordinates of shape"),
        (small.counts, small.xy[:50], "do not fit"),
        (small.counts, nowhere, "without finite coordinates, first is row 5"),
        (small.counts, np.ones((120, 2)), "one place"),
        (small.counts[:1], small.xy[:1], "1 place"),
        (missing, small.xy, "not finite, gene 'g17'"),
    ]
    if method != "spatialde2 normal":
        cases.append((negative, small.xy, "negative counts, gene 'g17'"))
    for counts, xy, message in cases:
        with pytest.raises(InputError, match=message):
            run(counts, xy, genes=small.genes)
    with pytest.raises(InputError, match="gene names"):
        run(small.counts, small.xy, genes=small.genes[:-1])
    with pytest.raises(InputError, match="n_jobs"):
        run(small.counts, small.xy, genes=small.genes, n_jobs=0)


def test_options_that_cannot_be() -> None:
    rng = np.random.default_rng(0)
    y, xy = rng.poisson(2.0, (30, 2)), rng.uniform(size=(30, 2))
    run = partial(spatialde2.score, y, xy, genes=["a", "b"])
    for options, message in [
        ({"kernel_space": {"RBF": 1.0}}, "no kernel named 'RBF'"),
        ({"kernel_space": {"SE": [0.5, -1.0]}}, "length scale -1.0"),
        ({"kernel_space": {}}, "no kernels"),
        ({"obs_dist": "poisson"}, "no null distribution"),
        ({"sizefactors": np.ones(29)}, "29 values for 30 rows"),
        ({"sizefactors": -np.ones(30)}, "size factors"),
        ({"omnibus": True, "max_gb": 1e-6}, "max_gb"),
    ]:
        with pytest.raises(InputError, match=message):
            run(**options)
    with pytest.raises(InputError, match="0 rows have counts"):
        spatialde2.score(np.zeros((30, 2)), xy, genes=["a", "b"])
    with pytest.raises(InputError, match="overdispersion"):
        spatialde.score(np.ones((30, 2)), xy, genes=["a", "b"])


def test_rows_without_counts_are_left_out() -> None:
    rng = np.random.default_rng(2)
    y, xy = rng.poisson(rng.gamma(1, 2, (60, 4))), rng.uniform(size=(60, 2))
    y[:, 0] += 1
    empty = np.insert(y, [7, 30], 0, axis=0), np.insert(xy, [7, 30], 0.5, axis=0)
    for method in (spatialde2.score, partial(spatialde2.score, compat=True), spatialde.score):
        kept, given = method(y, xy, genes=range(4)), method(*empty, genes=range(4))
        np.testing.assert_allclose(given["log10_pval"], kept["log10_pval"], rtol=1e-9)


def test_normalised_values_are_tested_with_a_normal_null(small) -> None:
    values = np.log1p(small.counts.astype(float)) - 0.5
    values[:, 3] = 1.25
    plain = spatialde2.score(values, small.xy, genes=small.genes, is_counts=False)
    scaled = spatialde2.score(values * 3 + 7, small.xy, genes=small.genes, is_counts=False)
    np.testing.assert_allclose(scaled["log10_pval"], plain["log10_pval"], rtol=1e-7)
    assert np.isnan(plain["pval"][3])


def test_normal_null_of_spatialde2_equals_the_formulas() -> None:
    rng = np.random.default_rng(3)
    xy, y = rng.uniform(0, 100, (70, 2)), rng.normal(3, 2, (70, 3))
    table = spatialde2.score(y, xy, genes=range(3), is_counts=False, compat=True, kernel_space={"SE": 20.0})
    table = table.attrs["kernels"].frame()
    k = np.exp(-((xy[:, None] - xy) ** 2).sum(-1) / 800)
    for g in range(3):
        w = np.full(70, 1 / y[:, g].var())
        r = w * (y[:, g] - y[:, g].mean())
        p = np.diag(w) - np.outer(w, w) / w.sum()
        pk = w[:, None] * k - np.outer(w, w @ k) / w.sum()
        itt, ith, ihh = 0.5 * (pk**2).sum(), 0.5 * (pk * p).sum(), 0.5 * (p**2).sum()
        expected = [0.5 * r @ k @ r, 0.5 * np.trace(pk), itt - ith**2 / ihh]
        np.testing.assert_allclose(table.loc[g, ["U", "e", "I"]].to_numpy(dtype=float), expected, rtol=1e-9)


def test_omnibus_equals_the_formulas() -> None:
    rng = np.random.default_rng(4)
    xy, y = rng.uniform(0, 100, (50, 2)), rng.poisson(3.0, (50, 1)).astype(float)
    table = spatialde2.score(y, xy, genes=["a"], compat=True, omnibus=True, sizefactors=np.ones(50),
                             kernel_space={"SE": [10.0, 40.0]})  # fmt: skip
    d2 = ((xy[:, None] - xy) ** 2).sum(-1)
    k = np.exp(-d2 / 200) + np.exp(-d2 / 3200)
    mu, alpha = table["mean"][0], table["alpha"][0]
    r = (y[:, 0] - mu) / (1 + alpha * mu)
    found = table.attrs["kernels"].frame()
    assert found["kernel"].tolist() == ["sum"]
    np.testing.assert_allclose(found["U"][0], 0.5 * r @ k @ r, rtol=1e-8)
    w = mu / (1 + alpha * mu)
    np.testing.assert_allclose(found["e"][0], 0.5 * w * (np.trace(k) - k.sum() / 50), rtol=1e-8)
