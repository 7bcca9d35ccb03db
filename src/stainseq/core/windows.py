"""Windows of an image pyramid at a requested resolution: which level to read, and how to resample it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import registration

OUTSIDE = 255
"""Grey value beyond the slide's edge: white, what a scanner shows where there is no tissue."""


def choose_level(downsamples: Sequence[float], factor: float) -> int:
    """Coarsest level that is still at least as fine as the target.

    Parameters
    ----------
    downsamples
        Level-0 pixels per pixel of each level, ascending, the first being 1.
    factor
        Level-0 pixels per target pixel (below 1 when the target is finer than the slide).

    Returns
    -------
    int
        Index of the level. A tolerance of 2 % keeps 0.2525 um/px from reading four times the pixels for 0.5.
    """
    fine_enough = [i for i, d in enumerate(downsamples) if d <= factor * 1.02]
    return fine_enough[-1] if fine_enough else 0


def bounds(centre: np.ndarray, size_px: int, step: float) -> tuple[int, int, int, int]:
    """Pixels of a level that a window needs, as (y0, y1, x0, x1), one pixel of margin for interpolation.

    Parameters
    ----------
    centre
        (x, y) of the window's centre in pixels of the level (pixel i covers [i, i + 1)).
    size_px
        Side of the window in target pixels.
    step
        Pixels of the level per target pixel.
    """
    half = size_px * step / 2
    x0, y0 = np.floor(centre - half).astype(int) - 1
    x1, y1 = np.ceil(centre + half).astype(int) + 1
    return int(y0), int(y1), int(x0), int(x1)


def resample(block: np.ndarray, origin: tuple[int, int], centre: np.ndarray, size_px: int, step: float) -> np.ndarray:
    """Resample one window to sub-pixel accuracy.

    Finer or equal targets are interpolated bilinearly. Coarser targets (up to the factor of two between pyramid
    levels) are interpolated at twice the target resolution and averaged two by two, which suppresses aliasing at a
    cost of four bilinear reads a pixel.

    Parameters
    ----------
    block
        uint8 [h, w, 3], the pixels that `bounds` asked for.
    origin
        (y0, x0) of the block in the level.
    centre, size_px, step
        As in `bounds`.

    Returns
    -------
    numpy.ndarray
        uint8 [size_px, size_px, 3].
    """
    import cv2

    over = _oversampling(step)
    fine = step / over
    corner = centre - size_px * step / 2 - np.array([origin[1], origin[0]], dtype=float)
    # cv2 puts pixel centres on integers; ours lie at i + 1/2.
    shift = corner + fine / 2 - 0.5
    matrix = np.array([[fine, 0, shift[0]], [0, fine, shift[1]]])
    n = size_px * over
    out = cv2.warpAffine(
        block, matrix, (n, n), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    return out if over == 1 else cv2.resize(out, (size_px, size_px), interpolation=cv2.INTER_AREA)


def warp(
    block: np.ndarray, origin: tuple[int, int], to_level: np.ndarray, size_px: tuple[int, int], step: float
) -> np.ndarray:
    """Resample a rectangle that lies turned, sheared or in perspective in its level; else as `resample`.

    Parameters
    ----------
    block, origin
        As in `resample`; must hold what `outline` says.
    to_level
        float [3, 3], from target pixels (x, y; pixel i covers [i, i + 1)) to pixels of the level.
    size_px
        (width, height) in target pixels.
    step
        Pixels of the level per target pixel.

    Returns
    -------
    numpy.ndarray
        uint8 [height, width, 3].
    """
    import cv2

    over = _oversampling(step)
    # cv2 puts pixel centres on integers; ours lie at i + 1/2.
    finer = np.array([[1 / over, 0, 0.5 / over], [0, 1 / over, 0.5 / over], [0, 0, 1]])
    matrix = np.array([[1, 0, -origin[1] - 0.5], [0, 1, -origin[0] - 0.5], [0, 0, 1]]) @ to_level @ finer
    fine, flags = (size_px[0] * over, size_px[1] * over), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if np.any(matrix[2, :2]):
        out = cv2.warpPerspective(block, matrix, fine, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    else:
        affine = matrix[:2] / matrix[2, 2]
        out = cv2.warpAffine(block, affine, fine, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return out if over == 1 else cv2.resize(out, size_px, interpolation=cv2.INTER_AREA)


def outline(to_level: np.ndarray, size_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels of a level that `warp` needs, as (y0, y1, x0, x1), one pixel of margin for interpolation."""
    w, h = size_px
    # Lines stay lines, so the corners are the extremes.
    corners = registration.apply(to_level, np.array([[0, 0], [w, 0], [0, h], [w, h]], dtype=float))
    (x0, y0), (x1, y1) = np.floor(corners.min(0)).astype(int) - 1, np.ceil(corners.max(0)).astype(int) + 1
    return int(y0), int(y1), int(x0), int(x1)


def _oversampling(step: float) -> int:
    """Samples a side of a target pixel."""
    return 1 if step <= 1.001 else max(2, 2 * int(np.ceil(step / 2)))


def tile_order(centres_px: np.ndarray, tile_px: int) -> np.ndarray:
    """Order of windows that visits the image tile by tile, so that each tile is decoded once.

    Parameters
    ----------
    centres_px
        float [n, 2], (x, y) in level-0 pixels.
    tile_px
        Side of a tile in level-0 pixels.

    Returns
    -------
    numpy.ndarray
        int64 [n], a permutation that depends on the coordinates alone (ties by y, then x, then position).
    """
    x, y = centres_px[:, 0], centres_px[:, 1]
    row = np.floor(y / tile_px).astype(np.int64)
    col = np.floor(x / tile_px).astype(np.int64)
    snake = np.where(row % 2 == 0, col, -col)
    return np.lexsort((x, y, snake, row))
