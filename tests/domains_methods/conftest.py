"""Planted layers: hexagonal spots with negative binomial counts (500 of 5,000 genes differ by layer), and cells."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from scipy import sparse


class Planted(NamedTuple):
    counts: sparse.csr_array
    coordinates: np.ndarray
    layer: np.ndarray


@cache
def _planted(n_spots: int = 1500, n_genes: int = 5000, n_true: int = 500) -> Planted:
    rng = np.random.default_rng(0)
    d = 200
    grid = np.array([(r, 2 * c + r % 2) for r in range(44) for c in range(35)])
    xy = np.column_stack([grid[:, 1] * d / 2, grid[:, 0] * d * np.sqrt(3) / 2])
    xy = np.rint(xy + 3000).astype(np.int64)[np.sort(rng.permutation(1540)[:n_spots])]
    s = np.exp(rng.normal(0, 0.5, n_spots))
    s /= s.mean()
    v, u = ((xy - xy.min(axis=0)) / np.ptp(xy, axis=0)).T
    layer = np.clip(((u + 0.12 * np.sin(2 * np.pi * v)) * 7).astype(int), 0, 6)
    mu = np.exp(rng.normal(-2.2, 1.6, n_genes))
    alpha = np.exp(rng.normal(-0.7, 0.5, n_genes))
    effect = np.zeros((n_genes, 7))
    for g in range(n_true):
        effect[g] = rng.normal(0, 0.8, 7)
    mean = mu * s[:, None] * np.exp(effect.T[layer])
    counts = rng.poisson(rng.gamma(1 / alpha, alpha * mean)).astype(np.float32)
    return Planted(sparse.csr_array(counts[:, counts.sum(axis=0) > 0]), xy.astype(float), layer)


def _cells(n: int, *, n_layers: int = 4, n_genes: int = 60, seed: int = 0) -> Planted:
    """Irregular points in layers; each cell shows a few counts only."""
    rng = np.random.default_rng([seed, 1])
    xy = rng.uniform(0, 10 * np.sqrt(n), (n, 2))
    layer = np.clip((xy[:, 1] / (10 * np.sqrt(n)) * n_layers).astype(int), 0, n_layers - 1)
    rate = np.exp(rng.normal(-0.5, 1.0, n_genes) + rng.normal(0, 0.5, (n_layers, n_genes)))
    return Planted(sparse.csr_array(rng.poisson(rate[layer]).astype(np.float32)), xy, layer)


@pytest.fixture
def planted() -> Planted:
    return _planted()


@pytest.fixture
def cells() -> Callable[..., Planted]:
    return _cells
