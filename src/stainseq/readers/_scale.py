"""Pixel sizes: from the metadata, the array's pitch or the user; never guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, ScaleError

if TYPE_CHECKING:
    from ._picture import Picture

MPP = 0.05, 100.0
"""Microns per pixel of a slide, least and most: an oil-immersion scan has 0.1, a thumbnail of a whole slide 50."""

MPP_OFF = 1.25
"""A pixel size that is given may be off what the array's pitch says by this factor: a stretched or slightly rescaled
picture is, by up to a few per cent; that of another level, of another scan or in another unit is off by more."""

SQUARE = 0.01
"""Pixels whose sides differ by more than this share have no single mpp."""


def resolve_mpp(picture: Picture, mpp: float | None) -> tuple[float, str]:
    """Microns per pixel of a picture: the one given, else the metadata's; never a guess.

    Returns
    -------
    tuple
        mpp and where it is from ("--mpp" or the name of the metadata).

    Raises
    ------
    ScaleError
        Neither is there, or the pixels are not square.
    InputError
        A size that no slide has.
    """
    if mpp is not None:
        return check_mpp(mpp), "--mpp"
    if picture.mpp is None:
        raise ScaleError(
            "no pixel size in the image's metadata", where=picture.path, fix="pass the microns per pixel (--mpp)"
        )
    x, y = picture.mpp
    if abs(x / y - 1) > SQUARE:
        raise ScaleError(
            f"pixels of {x:g} x {y:g} um are not square",
            where=picture.path,
            fix="resample the image, or pass one size (--mpp)",
        )
    return check_mpp(float(np.sqrt(x * y)), where=f"{picture.mpp_from} of {picture.path}"), str(picture.mpp_from)


def check_mpp(mpp: float, *, fitted: float | None = None, where: object = None) -> float:
    """A usable pixel size.

    Parameters
    ----------
    mpp
        Microns per pixel.
    fitted
        What the array's pitch says, where it was fitted.
    where
        What the message names.

    Raises
    ------
    InputError
        Not a number within `MPP`.
    ScaleError
        Off what the array's pitch says by more than `MPP_OFF`.
    """
    if not (np.isfinite(mpp) and MPP[0] <= mpp <= MPP[1]):
        raise InputError(
            f"mpp={mpp:g} is no pixel size of a slide",
            where=where,
            fix=f"give microns per pixel, such as 0.5 ({MPP[0]:g} to {MPP[1]:g})",
        )
    if fitted is not None and not 1 / MPP_OFF <= mpp / fitted <= MPP_OFF:
        raise ScaleError(
            f"{mpp:g} um per pixel contradicts the array, whose pitch says {fitted:.4g}",
            where=where,
            fix="leave --mpp out, or correct the array's pitch",
        )
    return float(mpp)
