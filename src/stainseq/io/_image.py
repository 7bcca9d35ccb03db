"""A crop of the slide as an array."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from .. import keys
from ..errors import InputError

if TYPE_CHECKING:
    from spatialdata import SpatialData

LARGEST_PX = 2**28
"""Pixels of the largest crop: 0.8 GB. What is larger was hardly meant, and would not fit a laptop beside a slide."""


def get_image(
    slide: SpatialData | str | os.PathLike[str],
    *,
    element: str = keys.HE,
    window_um: tuple[float, float, float, float] | None = None,
    mpp: float | None = None,
) -> np.ndarray:
    """Read a rectangle of the slide's picture at a stated resolution.

    Only the part that is asked for is decoded, from the pyramid level just finer than `mpp`.

    Parameters
    ----------
    slide
        A slide, or the path of its store.
    element
        Name of the image.
    window_um
        (min_x, min_y, max_x, max_y) in um, as `obsm["spatial"]` counts them. Default: the whole image.
    mpp
        Microns per pixel of the result. Default: the image's own, so that nothing is interpolated.

    Returns
    -------
    numpy.ndarray
        uint8 [h, w, 3], RGB, first row at min_y and first column at min_x; white beyond the slide's edge. h and w are
        the window's sides divided by `mpp`, to whole pixels of the level that is read, and at least 1.

    Raises
    ------
    MissingError
        No such image.
    ScaleError
        The image has no pixel size.
    InputError
        An empty window, one that does not touch the image, an `mpp` that is not positive, or more than 268 million
        pixels.
    """
    from .. import image as images
    from .. import store

    sdata = store.open(slide) if isinstance(slide, (str, os.PathLike)) else slide
    opened = images.open_image(sdata, element)
    whole = images.extent_um(opened)
    box = whole if window_um is None else _window(window_um, whole)
    step = opened.mpp if mpp is None else float(mpp)
    if not (np.isfinite(step) and step > 0):
        raise InputError(f"mpp={mpp!r} is not a resolution", fix="give microns per pixel, such as mpp=2")
    pixels = (box[2] - box[0]) / step * (box[3] - box[1]) / step
    if pixels > LARGEST_PX:
        enough = float(np.sqrt(pixels / LARGEST_PX) * step)
        raise InputError(
            f"the crop would have {pixels / 1e6:,.0f} million pixels",
            where=f"image {element!r} at {step:.3g} um per pixel",
            fix=f"give window_um, or an mpp of {enough:.2g} or more",
        )
    return images.read_box(opened, box, mpp=step)


def _window(
    window: tuple[float, float, float, float], whole: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    values = np.asarray(window, dtype=float).ravel()
    if values.shape != (4,) or not np.isfinite(values).all() or not (values[2:] > values[:2]).all():
        raise InputError(f"an empty window {window}", fix="give min_x, min_y, max_x, max_y in um, with max above min")
    x0, y0, x1, y1 = (float(v) for v in values)
    if x1 <= whole[0] or x0 >= whole[2] or y1 <= whole[1] or y0 >= whole[3]:
        shown = ", ".join(f"{v:.0f}" for v in whole)
        raise InputError(f"the window {window} does not touch the image", fix=f"the image spans {shown} um")
    return x0, y0, x1, y1
