"""The reference network, written once more as its authors describe it, with torch's own loader: the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stainseq.heads import pixel2gene


class Described(nn.Module):
    """579-256-256-256-256, LeakyReLU(0.1); then ELU(alpha 0.01) + 0.01; a bag is the mean over its superpixels."""

    def __init__(self, features: int, genes: int) -> None:
        super().__init__()
        self.trunk = nn.ModuleList([nn.Linear(features if i == 0 else 256, 256) for i in range(4)])
        self.out = nn.Linear(256, genes)

    def forward(self, bags: torch.Tensor) -> torch.Tensor:
        h = bags
        for layer in self.trunk:
            h = nn.functional.leaky_relu(layer(h), 0.1)
        return (nn.functional.elu(self.out(h), alpha=0.01) + 0.01).mean(dim=1)


def test_the_same_parameters_after_100_steps() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, 579)).astype(np.float32)
    y = rng.poisson(1.0, (700, 11)).astype(np.float32)
    scaled = (y - y.min(0)) / (y.max(0) - y.min(0))
    torch.manual_seed(3)
    theirs = Described(579, 11)
    optimiser = torch.optim.Adam(theirs.parameters(), lr=1e-4)
    loader = DataLoader(
        TensorDataset(torch.from_numpy(x[:, None]), torch.from_numpy(scaled)),
        batch_size=43,
        shuffle=True,
        num_workers=0,
    )
    steps = 0
    while steps < 100:
        for bags, target in loader:
            optimiser.zero_grad()
            ((theirs(bags) - target) ** 2).mean().backward()
            optimiser.step()
            steps += 1
            if steps == 100:
                break
    torch.manual_seed(3)
    ours = pixel2gene.network(579, 11)
    pixel2gene.train(ours, torch.from_numpy(x), torch.from_numpy(scaled), epochs=99, lr=1e-4, batch=43, max_steps=100)
    mine = [m for m in ours if isinstance(m, nn.Linear)]
    for a, b in zip([*theirs.trunk, theirs.out], mine, strict=True):
        torch.testing.assert_close(a.weight, b.weight, atol=1e-5, rtol=0)
        torch.testing.assert_close(a.bias, b.bias, atol=1e-5, rtol=0)


def test_fit_and_predict_are_that_network_in_the_unit_of_the_targets() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(320, 20)).astype(np.float32)
    y = rng.poisson(2.0, (320, 4)).astype(np.float32)
    state = pixel2gene.fit(x, y, recipe="reference", epochs=3, given_order=True, seed=5)
    torch.manual_seed(5)
    net = pixel2gene.network(20, 4)
    low, span = y.min(0), np.ptp(y, axis=0)
    scaled = torch.from_numpy((y - low) / span)
    pixel2gene.train(net, torch.from_numpy(x), scaled, epochs=3, lr=1e-4, batch=20)
    with torch.no_grad():
        expected = (net(torch.from_numpy(x)) + 0.01).numpy() * span + low
    np.testing.assert_allclose(pixel2gene.predict(state, x)[0], expected, atol=1e-5)


@pytest.mark.parametrize(("n", "lr"), [(500, 1e-4), (20_000, 1e-5), (600_000, 1e-6)])
def test_steps_follow_the_published_table(n: int, lr: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel2gene, "train", lambda *arguments, **options: None)
    x, y = np.zeros((n, 1), dtype=np.float32), np.arange(n, dtype=np.float32)[:, None]
    from stainseq.heads import _state

    told = _state.config(pixel2gene.fit(x, y, recipe="reference", epochs=1, given_order=True))
    assert told["lr"] == lr
    assert told["batch"] == min(128, n // 16)
