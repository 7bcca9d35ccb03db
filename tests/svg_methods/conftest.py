"""The hexagonal fixture of known truth: 500 genes that follow layers, 4,492 that do not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest


class Tissue(NamedTuple):
    coordinates: np.ndarray
    counts: np.ndarray
    n_true: int


@pytest.fixture(scope="session")
def tissue() -> Tissue:
    rng = np.random.default_rng(0)
    row, col = (a.ravel() for a in np.meshgrid(np.arange(44), np.arange(35), indexing="ij"))
    col = 2 * col + row % 2
    xy = np.round(np.column_stack([col * 100.0, row * 200.0 * np.sqrt(3) / 2]) + 3000).astype(np.int64)
    xy = xy[np.sort(rng.permutation(1540)[:1500])].astype(float)
    sizes = np.exp(rng.normal(0, 0.5, 1500))
    sizes /= sizes.mean()
    v, u = ((xy - xy.min(axis=0)) / np.ptp(xy, axis=0)).T
    layer = np.clip(((u + 0.12 * np.sin(2 * np.pi * v)) * 7).astype(int), 0, 6)
    mu, alpha = np.exp(rng.normal(-2.2, 1.6, 5000)), np.exp(rng.normal(-0.7, 0.5, 5000))
    effect = np.zeros((7, 5000))
    for gene in range(500):
        effect[:, gene] = rng.normal(0, 0.8, 7)
    mean = mu * sizes[:, None] * np.exp(effect[layer])
    counts = rng.poisson(rng.gamma(1 / alpha, alpha * mean)).astype(np.float32)
    return Tissue(xy, counts[:, counts.sum(axis=0) > 0], 500)
