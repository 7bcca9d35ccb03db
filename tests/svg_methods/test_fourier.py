"""Kernels over many places through a Fourier mesh or pairs, against n x n matrices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stainseq.core import forms, fourier, kernels
from stainseq.svg import spatialde2

TURN = np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])


def layouts() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    row, col = (a.ravel() for a in np.meshgrid(np.arange(40), np.arange(30), indexing="ij"))
    hexagon = np.column_stack([col + 0.5 * (row % 2), row * np.sqrt(3) / 2]) * 100.0
    free = rng.uniform(0, 3000, (900, 2))
    free[7] = free[8]
    return {
        "free": free,
        "thin": free * [1.0, 0.01],
        "line": free * [1.0, 0.0],
        "hexagon": hexagon[rng.permutation(1200)[:900]],
        "turned square": np.column_stack([row, col])[rng.permutation(1200)[:900]] * 55.0 @ TURN,
        "visium-like": np.rint(hexagon[rng.permutation(1200)[:900]] @ TURN),
    }


@pytest.mark.parametrize("name", list(layouts()))
def test_quadratic_forms_and_products_equal_dense(name: str) -> None:
    xy, rng = layouts()[name], np.random.default_rng(1)
    found = fourier.lattice_of(xy)
    assert (found is not None) == (name in ("hexagon", "turned square"))
    at, steps = (xy, None) if found is None else found
    lengths = [120.0, 300.0, 900.0, 4000.0]
    r = rng.standard_normal((5, len(xy)))
    r[3:] = np.abs(r[3:])
    spectra = fourier.PowerSpectra(at, lengths, steps).quadratic(r)
    for k, length in enumerate(lengths):
        dense = kernels.dense(kernels.Kernel("SE", length), xy)
        np.testing.assert_allclose(spectra[:, k], np.einsum("gi,ij,gj->g", r, dense, r), rtol=3e-8)
        op = fourier.SquaredExponential(at, length, steps)
        for power in (1, 2, 3):
            product = (dense**power) @ r.T
            np.testing.assert_allclose(op.apply(r.T, power), product, atol=3e-9 * np.abs(product).max())
        w = np.exp(rng.normal(0, 0.5, len(xy)))
        assert op.trace3(w) == pytest.approx(kernels.DenseOperator(dense).trace3(w), rel=0.15)


def test_very_short_kernels_go_by_pairs() -> None:
    xy, rng = layouts()["free"], np.random.default_rng(2)
    op = kernels.SparseOperator(xy, 30.0, fourier.REACH)
    dense = kernels.dense(kernels.Kernel("SE", 30.0), xy)
    x = rng.standard_normal((900, 2))
    for power in (1, 2, 3):
        np.testing.assert_allclose(op.apply(x, power), (dense**power) @ x, atol=1e-8)
    np.testing.assert_allclose(op.quadratic(x.T), np.einsum("ng,nm,mg->g", x, dense, x), rtol=1e-8)
    chosen = kernels.kernel_list({"SE": [30.0, 500.0], "PER": 700.0, "linear": 0}, xy)
    form = forms.SpectralForms(chosen, xy)
    expected = [np.einsum("gi,ij,gj->g", x.T, kernels.dense(k, xy), x.T) for k in chosen]
    np.testing.assert_allclose(form.quadratic(np.ascontiguousarray(x.T)).T, expected, rtol=1e-7)


@pytest.mark.parametrize("compat", [True, False])
def test_many_places_give_what_few_give(tissue, monkeypatch, compat: bool) -> None:
    counts = sparse.csc_array(tissue.counts[:, 400:600])
    sizes = tissue.counts.sum(axis=1)
    results = []
    for limit in (3000, 100):
        monkeypatch.setattr(forms, "DENSE_PLACES", limit)
        results.append(
            spatialde2.score(counts, tissue.coordinates, genes=np.arange(200), sizefactors=sizes, compat=compat)
        )
    dense, spectral = (t.attrs["kernels"].frame() for t in results)
    if compat:
        for column in ("U", "e", "I", "kappa", "nu"):
            np.testing.assert_allclose(spectral[column], dense[column], rtol=1e-6)
        np.testing.assert_allclose(results[1]["log10_pval"], results[0]["log10_pval"], rtol=1e-5)
    else:
        np.testing.assert_allclose(spectral["z"], dense["z"], atol=1e-3)
        few, many = (t["log10_pval"].to_numpy() for t in results)
        # The skewness of the shortest kernel comes from random signs here, good to a few percent.
        np.testing.assert_allclose(many[few < -0.5], few[few < -0.5], rtol=0.03)


def test_no_n_by_n_array_for_many_places() -> None:
    """Twelve thousand places: one dense kernel would be 1.15 GB."""
    import tracemalloc

    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 1000, (12_000, 2))
    counts = sparse.random_array(
        (12_000, 20), density=0.05, rng=rng, format="csc", data_sampler=lambda size: np.ones(size)
    )
    for compat in (True, False):
        tracemalloc.start()
        spatialde2.score(counts, xy, genes=np.arange(20), compat=compat, kernel_space={"SE": [20.0, 200.0]}, max_gb=0.5,
                         n_jobs=2)  # fmt: skip
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 500e6
