"""The closed-form gradient against automatic differentiation of the published loss."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from stainseq.core import tangram

CASES = {
    "default": tangram.Weights(),
    "no density": tangram.Weights(d=0),
    "all terms": tangram.Weights(g1=0.7, g2=0.5, d=0.3, r=1e-3),
}


@pytest.fixture
def planted():
    """Cells of six types whose counts follow their type's profile; one cell and one gene are empty."""
    rng = np.random.default_rng(0)
    profiles = rng.gamma(0.5, 2, (6, 40)) * 100
    types = rng.integers(0, 6, 300)
    counts = rng.poisson(profiles[types] / 60)
    counts[0], counts[:, 3] = 0, 0
    return profiles, sp.csr_matrix(counts), types, rng.dirichlet(np.full(6, 5.0))


def autograd(profiles, counts, density, source, start, weights, epochs):
    """Biancalani et al.'s loss, differentiated by torch in float64."""
    torch = pytest.importorskip("torch")
    s, g, d, w = (torch.tensor(np.asarray(v), dtype=torch.float64) for v in (profiles, counts, density, source))
    logits = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.1)
    cosine = torch.nn.functional.cosine_similarity
    for _ in range(epochs):
        m = torch.softmax(logits, 1)
        mapped = m.t() @ s
        kl = torch.nn.functional.kl_div(torch.log(w @ m), d, reduction="sum")
        loss = -weights.g1 * cosine(mapped, g, dim=0).mean() - weights.g2 * cosine(mapped, g, dim=1).mean()
        loss = loss - weights.r * (m * torch.log(m)).sum() + weights.d * kl
        adam.zero_grad()
        loss.backward()
        adam.step()
    return torch.softmax(logits, 1).detach().numpy()


@pytest.mark.parametrize("case", CASES)
def test_same_as_autograd(case, planted):
    profiles, counts, _, source = planted
    density = np.asarray(counts.sum(axis=1)).ravel() / counts.sum()
    start = np.random.default_rng(1).standard_normal((6, 300)).astype(np.float32)
    got, terms = tangram.map_clusters(
        profiles, counts, density=density, source_density=source, weights=CASES[case], start=start, epochs=60
    )
    want = autograd(profiles, counts.toarray(), density, source, start, CASES[case], 60)
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)
    mapped = want.T @ profiles
    norms = np.linalg.norm(mapped, axis=0) * np.linalg.norm(counts.toarray(), axis=0)
    cosine = (mapped * counts.toarray()).sum(0) / np.maximum(norms, 1e-8)
    assert terms["gv"] == pytest.approx(cosine.mean(), abs=1e-5)


def test_finds_the_types(planted):
    """Planted types come back, and better than by chance only when the counts are theirs."""
    profiles, counts, types, _ = planted
    density = np.asarray(counts.sum(axis=1)).ravel() / counts.sum()
    mapping, _ = tangram.map_clusters(profiles, counts, density=density, epochs=200)
    assert mapping.shape == (6, 300)
    assert np.allclose(mapping.sum(axis=1), 1, atol=1e-4)
    found = (mapping / mapping.max(axis=1, keepdims=True)).argmax(axis=0)
    assert (found == types)[1:].mean() > 0.8
    shuffled, _ = tangram.map_clusters(profiles, counts[np.random.default_rng(0).permutation(300)], epochs=50)
    assert (shuffled.argmax(axis=0) == types).mean() < 0.4


def test_blocks_and_threads_change_nothing(planted, monkeypatch):
    """Sums are added in the order of the blocks: bit-equal with one thread or many, close with other blocks."""
    profiles, counts, _, _ = planted
    density = np.full(300, 1 / 300)
    monkeypatch.setattr(tangram, "BLOCK", 32)
    many, _ = tangram.map_clusters(profiles, counts, density=density, epochs=20)
    monkeypatch.setattr(tangram.os, "cpu_count", lambda: 1)
    one, _ = tangram.map_clusters(profiles, counts, density=density, epochs=20)
    assert np.array_equal(many, one)
    monkeypatch.setattr(tangram, "BLOCK", 1000)
    whole, _ = tangram.map_clusters(profiles, counts, density=density, epochs=20)
    assert np.allclose(whole, one, rtol=1e-3, atol=1e-7)


def test_refusals(planted):
    profiles, counts, _, _ = planted
    for bad in (
        {"reference": profiles[:, :-1]},
        {"reference": np.zeros_like(profiles)},
        {"density": np.ones(3)},
        {"source_density": -np.ones(6)},
        {"start": np.zeros((300, 6))},
    ):
        with pytest.raises(ValueError, match=r"reference|expression|density|start"):
            tangram.map_clusters(bad.pop("reference", profiles), counts, **bad)
