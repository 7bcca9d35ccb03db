"""Weights and images that any machine makes alike, so that a fixture need not hold them."""

from __future__ import annotations

import numpy as np


def state(keys: list[tuple[str, list[int]]], seed: int) -> dict[str, np.ndarray]:
    """Float32 weights by name; variances are positive, norms are near one."""
    rng = np.random.default_rng(seed)
    out = {}
    for key, shape in keys:
        value = rng.standard_normal(shape) * 0.15
        if key.endswith("running_var"):
            value = 0.5 + np.abs(value)
        elif key.endswith("num_batches_tracked"):
            value = np.zeros(shape)
        elif len(shape) == 1 and key.endswith("weight"):
            value = 1 + value
        elif len(shape) == 4:
            # Keeps the spread of activations from block to block.
            value = value / 0.15 * np.sqrt(2 / np.prod(shape[1:]))
        out[key] = value.astype(np.float32)
    return out


def images(n: int, px: int, seed: int) -> np.ndarray:
    """Float32 [n, 3, px, px], about standard normal."""
    return np.random.default_rng(seed).standard_normal((n, 3, px, px)).astype(np.float32)
