"""Windows over a raster: pyramids, tiling with a halo, square and hexagonal lattices."""

from __future__ import annotations

import numpy as np


def halve(image: np.ndarray) -> np.ndarray:
    """2 x 2 mean of a raster.

    Parameters
    ----------
    image
        [..., h, w], any number type. An odd last row or column is left out.

    Returns
    -------
    numpy.ndarray
        [..., h // 2, w // 2], same type; whole numbers are rounded half up.
    """
    h, w = image.shape[-2] // 2 * 2, image.shape[-1] // 2 * 2
    image = image[..., :h, :w]
    if image.dtype.kind == "f":
        total = image[..., ::2, ::2] + image[..., 1::2, ::2] + image[..., ::2, 1::2] + image[..., 1::2, 1::2]
        return np.ascontiguousarray(total * image.dtype.type(0.25))
    if image.dtype == np.uint8:
        import cv2

        planes = image.reshape(-1, h, w)
        half = [cv2.resize(np.ascontiguousarray(p), (w // 2, h // 2), interpolation=cv2.INTER_AREA) for p in planes]
        return np.stack(half).reshape(*image.shape[:-2], h // 2, w // 2)
    wide = image.astype(np.int64)
    total = wide[..., ::2, ::2] + wide[..., 1::2, ::2] + wide[..., ::2, 1::2] + wide[..., 1::2, 1::2]
    return ((total + 2) >> 2).astype(image.dtype)


def morton(x: np.ndarray, y: np.ndarray, *, cell: float) -> np.ndarray:
    """Place of points along a Morton (Z) curve of square cells.

    Parameters
    ----------
    x, y
        [n] finite coordinates.
    cell
        Side of a cell, in the same unit; 2**30 cells to either side of zero are told apart.

    Returns
    -------
    numpy.ndarray
        [n] uint64. Shifting it right by 2 k bits gives the code of the enclosing square of 2**k cells, and the
        codes of all points in a square are consecutive.
    """
    half = 2.0**30
    ix, iy = (np.clip(np.floor(np.asarray(v, dtype=np.float64) / cell) + half, 0, 2 * half - 1) for v in (x, y))
    return _spread(ix.astype(np.uint64)) | (_spread(iy.astype(np.uint64)) << np.uint64(1))


def _spread(v: np.ndarray) -> np.ndarray:
    """Put a zero bit before each of the lower 32 bits."""
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        v = (v | (v << np.uint64(shift))) & np.uint64(mask)
    return v
