"""Means of a dense map over squares, weighted by how much of the map counts, in bounded memory.

A square of any side at any place takes every token by the area that lies under it. Prefix sums (Crow, SIGGRAPH 1984)
make that 16 reads a square whatever its side: interpolated linearly between corners of tokens they are the exact
integral of the map, which is constant on each token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

BAND_BYTES = 96 << 20
"""Prefix sums held by one thread."""

LEAST = 1e-6
"""Share of a square below which nothing of it counts: rounding of prefix sums leaves less."""


def mirrored(index: np.ndarray, size: int) -> np.ndarray:
    """Places inside [0, size) of places anywhere, reflected at both ends with the border itself repeated.

    Parameters
    ----------
    index
        int, any shape.
    size
        Length of the axis, at least 1.
    """
    index = np.mod(index, 2 * size)
    return np.where(index < size, index, 2 * size - 1 - index)


def cores_needed(at: np.ndarray, side: float, core: int, shape: tuple[int, int]) -> np.ndarray:
    """Which cells of a lattice the squares touch.

    Parameters
    ----------
    at
        float [n, 2], (x, y) of the squares' centres in tokens.
    side
        Of the squares, in tokens.
    core
        Tokens along a cell of the lattice; cell (i, j) covers rows [i * core, (i + 1) * core).
    shape
        Rows and columns of the lattice.

    Returns
    -------
    numpy.ndarray
        bool [rows, columns].
    """
    low = np.floor((at - side / 2 + LEAST) / core).astype(np.int64)
    high = np.floor((at + side / 2 - LEAST) / core).astype(np.int64) + 1
    rows, columns = shape
    y0, y1 = np.clip(low[:, 1], 0, rows), np.clip(high[:, 1], 0, rows)
    x0, x1 = np.clip(low[:, 0], 0, columns), np.clip(high[:, 0], 0, columns)
    corners = np.zeros((rows + 1, columns + 1), dtype=np.int64)
    for y, x, sign in ((y0, x0, 1), (y1, x1, 1), (y0, x1, -1), (y1, x0, -1)):
        np.add.at(corners, (y, x), sign)
    return corners.cumsum(0).cumsum(1)[:-1, :-1] > 0


def square_means(
    values: Any,
    weights: Sequence[np.ndarray],
    at: np.ndarray,
    sides: Sequence[float],
    *,
    out: Any,
    coverage: np.ndarray,
    n_jobs: int = 1,
    band_bytes: int = BAND_BYTES,
    wrote: Callable[[int], None] | None = None,
) -> None:
    """Weighted means of a map over squares of several sides around points.

    Squares of the first side stand for the place itself: where nothing of one counts it takes the nearest token that
    does. Those of the other sides are its surroundings: where nothing of them counts they repeat the place itself.

    Parameters
    ----------
    values
        float [rows, columns, d]; an array or memory map that slices to numpy. Values of no weight are never looked
        at, be they NaN.
    weights
        One float32 [rows, columns] in 0..1 for each side: the share of each token that counts.
    at
        float [n, 2], (x, y) in tokens; token i covers [i, i + 1).
    sides
        In tokens.
    out
        float [n, sides * d], filled side by side.
    coverage
        float32 [n, sides], filled: the share of each square that counts.
    n_jobs
        Threads; no number depends on it.
    band_bytes
        Prefix sums that a thread may hold; the map is read in bands of rows and blocks of values of that size.
    wrote
        Called with the rows of `out` that were written in part.
    """
    rows, columns, d = values.shape
    reach = int(np.ceil(max(sides) / 2)) + 1
    # Fewer values at a time before bands become so thin that most of each is read for its surroundings.
    height = 2 * reach + 16
    block = int(np.clip(band_bytes // (height * (columns + 1) * 8), 1, d))
    height = max(height, int(band_bytes // ((columns + 1) * (block + 1) * 8)))
    inner = max(1, height - 2 * reach)
    band = np.clip(np.floor(at[:, 1]), 0, rows - 1).astype(np.int64) // inner
    order = np.argsort(band, kind="stable")
    edges = np.searchsorted(band[order], np.arange(-(-rows // inner) + 1))
    tasks = [(k, c) for k in range(len(edges) - 1) if edges[k + 1] > edges[k] for c in range(0, d, block)]

    def run(task: tuple[int, int]) -> None:
        k, c = task
        mine = order[edges[k] : edges[k + 1]]
        top, bottom = max(0, k * inner - reach), min(rows, (k + 1) * inner + reach)
        part = np.asarray(values[top:bottom, :, c : c + block], dtype=np.float32)
        local = np.ascontiguousarray(at[mine] - [0, top])
        for s, side in enumerate(sides):
            weight = np.ascontiguousarray(weights[s][top:bottom], dtype=np.float32)
            means, shares = np.empty((len(mine), part.shape[2]), np.float32), np.empty(len(mine), np.float32)
            _means(_prefix(part, weight), local, float(side), means, shares)
            out[mine, s * d + c : s * d + c + part.shape[2]] = means
            coverage[mine, s] = shares
        if wrote is not None:
            wrote(len(mine))

    with ThreadPoolExecutor(max(1, n_jobs)) as pool:
        list(pool.map(run, tasks))
    _fill(values, weights[0], at, out, coverage, d)


def _fill(values: Any, weight: np.ndarray, at: np.ndarray, out: Any, coverage: np.ndarray, d: int) -> None:
    """Values where nothing counts: of the nearest token for a place, of the place for its surroundings."""
    lost = np.flatnonzero(coverage[:, 0] <= LEAST)
    if len(lost):
        from scipy.ndimage import distance_transform_edt

        none = weight <= LEAST
        rows, columns = weight.shape
        y, x = (np.clip(np.floor(at[lost, i]), 0, m - 1).astype(np.int64) for i, m in ((1, rows), (0, columns)))
        if none.all():
            out[lost, :d] = 0
        else:
            near = distance_transform_edt(none, return_distances=False, return_indices=True)[:, y, x]
            # Beyond a map's edge many places share a token, and a map on disk is read by chunks.
            tokens, which = np.unique(near, axis=1, return_inverse=True)
            out[lost, :d] = np.stack([values[row, column] for row, column in tokens.T])[which.ravel()]
    for s in range(1, coverage.shape[1]):
        lost = np.flatnonzero(coverage[:, s] <= LEAST)
        if len(lost):
            out[lost, s * d : (s + 1) * d] = out[lost, :d]


@njit(cache=True, nogil=True)
def _prefix(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sums of weight times value over all rows and columns before, and of the weight as the last value."""
    rows, columns, d = values.shape
    out = np.zeros((rows + 1, columns + 1, d + 1))
    line = np.empty(d + 1)
    for i in range(rows):
        line[:] = 0.0
        for j in range(columns):
            w = weight[i, j]
            if w > 0.0:
                for k in range(d):
                    line[k] += w * values[i, j, k]
                line[d] += w
            for k in range(d + 1):
                out[i + 1, j + 1, k] = out[i, j + 1, k] + line[k]
    return out


@njit(cache=True, nogil=True)
def _means(prefix: np.ndarray, at: np.ndarray, side: float, means: np.ndarray, shares: np.ndarray) -> None:
    rows, columns, d = prefix.shape[0] - 1, prefix.shape[1] - 1, prefix.shape[2] - 1
    total = np.empty(d + 1)
    for i in range(len(at)):
        total[:] = 0.0
        for a in range(2):
            y = min(max(at[i, 1] + (a - 0.5) * side, 0.0), float(rows))
            iy = min(int(y), rows - 1)
            for b in range(2):
                x = min(max(at[i, 0] + (b - 0.5) * side, 0.0), float(columns))
                ix = min(int(x), columns - 1)
                sign = 1.0 if a == b else -1.0
                fy, fx = y - iy, x - ix
                w00, w01 = sign * (1 - fy) * (1 - fx), sign * (1 - fy) * fx
                w10, w11 = sign * fy * (1 - fx), sign * fy * fx
                for k in range(d + 1):
                    total[k] += (
                        w00 * prefix[iy, ix, k]
                        + w01 * prefix[iy, ix + 1, k]
                        + w10 * prefix[iy + 1, ix, k]
                        + w11 * prefix[iy + 1, ix + 1, k]
                    )
        share = total[d] / (side * side)
        shares[i] = min(max(share, 0.0), 1.0)
        for k in range(d):
            means[i, k] = total[k] / total[d] if share > LEAST else 0.0
