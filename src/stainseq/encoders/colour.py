"""Colour statistics: what can be predicted from colour alone, without any shape.

Red, green, blue and the haematoxylin, eosin and residual densities (Ruifrok and Johnston 2001), each with
mean, standard deviation and the 5, 25, 50, 75 and 95 percentiles: 42 numbers. Counted from histograms of 256
levels, so a number depends on nothing but its window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .description import EncoderSpec
from .stains import HE_MATRIX

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STATISTICS = 2 + len(QUANTILES)
DENSITY_STEP, DENSITY_START = 0.0125, -0.8
"""Width of a level and its start, in optical density (base 10): -0.8 to 2.4 holds what 8-bit stains give."""
CELL_PX = 16
"""Side of a token: 8 um at 0.5 um/px, a superpixel."""


def levels(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [n, h, w, 3] -> uint8 [6, n, h * w]: red, green, blue, then densities of H, E and residual."""
    n = len(images)
    table = -np.log10(np.maximum(np.arange(256), 1) / 255.0)
    shares = ((HE_MATRIX[:, :, None] * table) / DENSITY_STEP).astype(np.float32)
    flat = images.reshape(n, -1, 3)
    out = np.empty((6, n, flat.shape[1]), np.uint8)
    start = np.float32(DENSITY_START / DENSITY_STEP)
    for c in range(3):
        out[c] = flat[..., c]
        level = shares[c, 0][flat[..., 0]] + shares[c, 1][flat[..., 1]] + shares[c, 2][flat[..., 2]] - start
        out[3 + c] = np.clip(level, 0, 255)
    return out


def summarise(level: NDArray[np.uint8], groups: NDArray[np.int64], n_groups: int) -> NDArray[np.float32]:
    """Statistics of each group of pixels.

    Parameters
    ----------
    level
        uint8 [6, n, p].
    groups
        int [n, p] or [n, 1], 0 to n_groups - 1.

    Returns
    -------
    float32 [n_groups, 42], on the scale of 0..1.
    """
    axis = np.arange(256, dtype=np.float64) / 255.0
    out = np.empty((n_groups, 6, STATISTICS))
    base = np.broadcast_to(groups * 256, level.shape[1:])
    for c in range(6):
        counts = np.bincount((base + level[c]).ravel(), minlength=256 * n_groups).reshape(n_groups, 256)
        total = counts.sum(1, keepdims=True)
        mean = counts @ axis / total[:, 0]
        square = counts @ (axis * axis) / total[:, 0]
        below = np.cumsum(counts, axis=1)
        out[:, c, 0] = mean
        out[:, c, 1] = np.sqrt(np.clip(square - mean * mean, 0, None))
        for i, q in enumerate(QUANTILES):
            out[:, c, 2 + i] = (below < q * total).sum(1) / 255.0
    return out.reshape(n_groups, -1).astype(np.float32)


class ColourBackend:
    """Colour statistics of images, in numpy."""

    device, runtime, chunk, pad = "cpu", "numpy", 16, False
    dim = token_dim = 6 * STATISTICS

    def __init__(self, spec: EncoderSpec) -> None:
        self._grid = (spec.input_px // CELL_PX, spec.input_px // CELL_PX)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self._grid

    def vectors(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [n, h, w, 3] -> float32 [n, 42]."""
        n = len(images)
        return summarise(levels(images), np.arange(n)[:, None], n)

    def tokens(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [n, h, w, 3] -> float32 [n, h/16, w/16, 42]: statistics of each cell."""
        n, height, width = images.shape[:3]
        ty, tx = self._grid
        rows, columns = np.arange(height) * ty // height, np.arange(width) * tx // width
        cell = (rows[:, None] * tx + columns[None]).ravel()
        groups = np.arange(n)[:, None] * ty * tx + cell
        return summarise(levels(images), groups, n * ty * tx).reshape(n, ty, tx, -1)
