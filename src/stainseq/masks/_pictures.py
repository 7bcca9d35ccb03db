"""Label images: integers, or one colour an instance."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import FormatError
from ._model import Mask, Masks, checked


def open_picture(path: Path) -> Masks:
    """A PNG, TIFF or BMP; see `stainseq.masks.open_masks`."""
    return Masks([path.stem], lambda name, shape: _read(path), str(path))


def _read(path: Path) -> Mask:
    pixels = _pixels(path)
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        colour = pixels[..., :3].astype(np.int64)
        pixels = colour[..., 0] << 16 | colour[..., 1] << 8 | colour[..., 2]
    return checked(pixels, None, path)


def _pixels(path: Path) -> np.ndarray:
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        try:
            return np.squeeze(tifffile.imread(path))
        except (tifffile.TiffFileError, ValueError, OSError, IndexError) as e:
            raise FormatError(f"no TIFF that can be read ({e})", where=path, fix="write it again") from e
    import cv2

    data = np.fromfile(path, dtype=np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if pixels is None:
        raise FormatError("no image that can be read", where=path, fix="write it again")
    # OpenCV has blue first; the order decides nothing but the ids.
    return np.asarray(pixels)
