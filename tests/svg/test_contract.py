"""Every SVG test keeps the contract of CONTRIBUTING.md; a new file in svg/ is tested here without being named."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stainseq import registry
from stainseq.svg import __name__ as package

METHODS = registry.names("svg")
PLANTED = 6


@pytest.fixture(scope="module")
def tissue() -> tuple[sparse.csc_array, np.ndarray, np.ndarray]:
    """Six genes on stripes, patches and slopes of several sizes, then 300 of no pattern, at one depth."""
    rng = np.random.default_rng(0)
    y, x = (v.ravel() * 100.0 for v in np.mgrid[:14, :14])
    xy = np.column_stack([x, y])
    maps = [np.sin(x / s) for s in (150, 250, 400)] + [2 * x / x.max() - 1, np.hypot(x - 700, y - 700) / 500 - 1]
    maps.append(((x < 600) & (y > 500)) - 0.3)
    rate = np.concatenate([4 * np.exp(0.9 * np.column_stack(maps)), np.full((len(x), 300), 4.0)], axis=1)
    counts = rng.poisson(rate)
    return sparse.csc_array(counts), xy, np.array([f"g{i}" for i in range(counts.shape[1])])


@pytest.mark.parametrize("name", METHODS)
def test_planted_genes_are_found_and_others_are_not(name: str, tissue) -> None:
    counts, xy, genes = tissue
    table = registry.load("svg", name).score(counts, xy, genes=genes)
    assert isinstance(table, pd.DataFrame)
    assert table["gene"].tolist() == genes.tolist()
    p = table["pval"].to_numpy()
    assert ((p >= 0) & (p <= 1)).all()
    # Neighbours' differences tell little of a gentle slope: a method may miss one pattern of the six.
    assert (p[:PLANTED] < 1e-3).sum() >= PLANTED - 1
    # 300 genes at a level of .05: 15 are due, 32 would be four standard deviations too many.
    assert (p[PLANTED:] < 0.05).sum() <= 32
    if "log10_pval" in table:
        np.testing.assert_allclose(10 ** table["log10_pval"].to_numpy()[PLANTED:], p[PLANTED:], rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_genes_without_counts_have_no_p(name: str, tissue) -> None:
    counts, xy, genes = tissue
    empty = counts.toarray()
    empty[:, 10] = 0
    table = registry.load("svg", name).score(sparse.csc_array(empty), xy, genes=genes)
    p = table["pval"].to_numpy()[10]
    assert np.isnan(p) or p > 0.05


@pytest.mark.parametrize("name", METHODS)
def test_signatures(name: str) -> None:
    module = registry.load("svg", name)
    parameters = inspect.signature(module.score).parameters
    assert list(parameters)[:2] == ["counts", "coordinates"]
    assert all(p.kind is p.KEYWORD_ONLY for k, p in parameters.items() if k not in ("counts", "coordinates"))
    assert module.__name__ == f"{package}.{name.replace('-', '_')}"
    documented = module.score.__doc__ or ""
    assert all(option in documented for option in parameters)
