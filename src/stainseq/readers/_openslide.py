"""Slides that only openslide reads (MRXS, NDPI, VSF, BIF, DICOM, ...)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide

from ..errors import FormatError
from ._picture import CHUNK, Picture, lazy, window


class SlideLevel:
    """One level of an openslide slide as an array (y, x, 4) that reads just what a slice needs.

    Parameters
    ----------
    slide
        The open slide.
    level
        Which level.
    path
        Its file.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, slide: Any, level: int, path: Path) -> None:
        width, height = slide.level_dimensions[level]
        self.shape = (height, width, 4)
        self._slide, self._level, self._path = slide, level, path
        self._downsample = slide.level_downsamples[level]

    def __getitem__(self, key: Any) -> np.ndarray:
        (y0, y1, x0, x1), inner = window(key, self.shape)
        if y1 == y0 or x1 == x0:
            return np.empty((y1 - y0, x1 - x0, 4), np.uint8)[inner]
        corner = round(x0 * self._downsample), round(y0 * self._downsample)
        try:
            pixels = self._slide.read_region(corner, self._level, (x1 - x0, y1 - y0))
        except openslide.OpenSlideError as e:
            raise FormatError(f"openslide cannot read it ({e})", where=self._path, fix="copy it again") from e
        return np.asarray(pixels)[inner]


def open_slide(path: Path) -> Picture:
    """Open a slide lazily through openslide.

    Raises
    ------
    FormatError
        openslide does not know it, or it is damaged.
    """
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as e:
        raise FormatError(f"not an image that can be read ({e})", where=path, fix="check the file") from e
    levels = tuple(lazy(SlideLevel(slide, i, path), (CHUNK, CHUNK, 4)) for i in range(slide.level_count))
    mpp = tuple(slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy")
    sizes = (float(mpp[0]), float(mpp[1])) if mpp[0] and mpp[1] else None
    vendor = slide.properties.get("openslide.vendor", "openslide")
    return Picture(levels, path, vendor, mpp=sizes, mpp_from="openslide.mpp" if sizes else None, model="rgba")
