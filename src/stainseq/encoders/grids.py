"""Linear resampling of token grids as two small matrices, the same in torch, ONNX and numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def weights(n_in: int, n_out: int, *, start: float = 0.0, stop: float = 1.0) -> NDArray[np.float32]:
    """Matrix that resamples n_in cells of the unit interval to n_out cells of [start, stop].

    Parameters
    ----------
    n_in, n_out
        Cells before and after.
    start, stop
        The part of the input that the output covers, as fractions.

    Returns
    -------
    float32 [n_out, n_in]; rows sum to one. Going to coarser cells it averages by overlap, going to finer
    ones it interpolates linearly between cell centres and repeats the border, as image libraries do.
    """
    edges = start + (stop - start) * np.arange(n_out + 1) / n_out * 1.0
    edges = edges * n_in
    out = np.zeros((n_out, n_in))
    if (stop - start) * n_in >= n_out:
        low, high = edges[:-1, None], edges[1:, None]
        cell = np.arange(n_in)[None]
        out = np.clip(np.minimum(high, cell + 1) - np.maximum(low, cell), 0, None)
        return (out / out.sum(1, keepdims=True)).astype(np.float32)
    centre = np.clip((edges[:-1] + edges[1:]) / 2 - 0.5, 0, n_in - 1)
    left = np.minimum(np.floor(centre).astype(int), max(n_in - 2, 0))
    share = centre - left
    rows = np.arange(n_out)
    out[rows, left] = 1 - share
    out[rows, np.minimum(left + 1, n_in - 1)] += share
    return out.astype(np.float32)


def regrid(tokens: NDArray[np.float32], grid: tuple[int, int], *, part: float = 1.0) -> NDArray[np.float32]:
    """Resample token maps to another grid.

    Parameters
    ----------
    tokens
        float32 [n, ty, tx, d].
    grid
        Wanted (ty, tx).
    part
        Central share of the side that the output covers; 0.5 when tokens of a 224 um field are wanted on the
        grid of the 112 um field inside it.
    """
    if tokens.shape[1:3] == grid and part == 1.0:
        return tokens
    start, stop = 0.5 - part / 2, 0.5 + part / 2
    wy = weights(tokens.shape[1], grid[0], start=start, stop=stop)
    wx = weights(tokens.shape[2], grid[1], start=start, stop=stop)
    return np.einsum("Yy,nyxd,Xx->nYXd", wy, tokens, wx, optimize=True).astype(np.float32, copy=False)
