"""The torch path of the heavy product: same numbers as numpy, wherever it runs."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy import sparse

from stainseq.errors import InputError
from stainseq.svg import _device, spatialde2


@pytest.mark.parametrize("compat", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torch_gives_the_numbers_of_numpy(tissue, compat: bool, device: str) -> None:
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    counts = sparse.csc_array(tissue.counts[:, 400:600])
    sizes = tissue.counts.sum(axis=1)
    plain, other = (
        spatialde2.score(counts, tissue.coordinates, genes=np.arange(200), sizefactors=sizes, compat=compat, device=d)
        for d in (None, device)
    )
    np.testing.assert_allclose(other["log10_pval"], plain["log10_pval"], rtol=1e-8, atol=1e-10)
    for name, values in plain.attrs["kernels"].columns.items():
        np.testing.assert_allclose(other.attrs["kernels"].columns[name], values, rtol=1e-8, atol=1e-9)


def test_sums_of_squares_per_kernel() -> None:
    rng = np.random.default_rng(0)
    r, factors = rng.normal(size=(5, 30)), rng.normal(size=(30, 9))
    z = (r @ factors) ** 2
    want = np.column_stack([z[:, :4].sum(1), z[:, 4:5].sum(1), z[:, 5:].sum(1)])
    product = _device.product("cpu")
    np.testing.assert_allclose(product(r, factors, np.array([0, 4, 5])), want, rtol=1e-12)
    again = pickle.loads(pickle.dumps(product))
    np.testing.assert_array_equal(again(r, factors, np.array([0, 4, 5])), product(r, factors, np.array([0, 4, 5])))


def test_a_device_that_is_not_there() -> None:
    assert _device.product(None) is None
    with pytest.raises(InputError, match="device 'nothing' cannot be used"):
        _device.product("nothing")
