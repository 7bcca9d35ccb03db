"""Mean colour of an image around points."""

from __future__ import annotations

import numba
import numpy as np

from ..errors import InputError, ScaleError


def patch_colour(image: np.ndarray, centres_px: np.ndarray, *, size_px: float = 49) -> np.ndarray:
    """Mean of each channel in a square window around each point, as SpaGCN takes it.

    Parameters
    ----------
    image
        [h, w, c] of any number type.
    centres_px
        [n, 2] x (column) and y (row) in pixels of **this** image; rounded to the nearest pixel.
    size_px
        Window in pixels of this image: half = round(size / 2), rows and columns centre - half .. centre + half, cut at
        the borders. SpaGCN's beta = 49 is meant in pixels of the full image; for a smaller one give 49 times its scale
        (at least 1 pixel is taken).

    Returns
    -------
    array
        float64 [n, c].

    Raises
    ------
    ScaleError
        A window lies wholly outside the image: image and points are of different frames.
    """
    image, centres = np.asarray(image), np.asarray(centres_px, dtype=np.float64)
    if image.ndim != 3 or centres.ndim != 2 or centres.shape[1] != 2:
        raise InputError(
            f"image of shape {image.shape} and points of shape {centres.shape}",
            where="patch_colour",
            fix="give an image [h, w, c] and points [n, 2]",
        )
    if not np.isfinite(centres).all() or not size_px > 0:
        raise InputError("points are not finite, or the window has no size", where="patch_colour")
    at = np.rint(centres).astype(np.int64)
    half = round(size_px / 2)
    h, w = image.shape[:2]
    outside = (at[:, 0] + half < 0) | (at[:, 1] + half < 0) | (at[:, 0] - half >= w) | (at[:, 1] - half >= h)
    if outside.any():
        raise ScaleError(
            f"{int(outside.sum())} of {len(at)} windows lie outside the image of {w} x {h} pixels",
            where=f"first at x {at[outside][0, 0]}, y {at[outside][0, 1]}",
            fix="scale the points to this image, x before y",
        )
    return _means(image, at, half)


@numba.njit(cache=True)
def _means(image: np.ndarray, at: np.ndarray, half: int) -> np.ndarray:  # pragma: no cover - compiled
    h, w, channels = image.shape
    out = np.zeros((len(at), channels))
    for i in range(len(at)):
        left, right = max(0, at[i, 0] - half), min(w, at[i, 0] + half + 1)
        top, bottom = max(0, at[i, 1] - half), min(h, at[i, 1] + half + 1)
        for y in range(top, bottom):
            for x in range(left, right):
                for c in range(channels):
                    out[i, c] += image[y, x, c]
        out[i] /= (right - left) * (bottom - top)
    return out
