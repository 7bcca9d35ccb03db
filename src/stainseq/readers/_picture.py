"""A picture that has been opened but not read, and the lazy arrays it is made of."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError

if TYPE_CHECKING:
    from dask.array import Array

CHUNK = 2048
"""Side of the blocks handed to dask: 12 MB of RGB, so that a 100,000 px slide is some thousand tasks a level."""


@dataclass(frozen=True)
class Picture:
    """A picture that has been opened but not read.

    Parameters
    ----------
    levels
        Dask arrays (y, x, channels) as stored, finest first; (y, x, 3) uint8 once `as_rgb` was called.
    path
        The file.
    kind
        What it is, such as "JPEG" or "SVS".
    mpp
        (x, y) microns per pixel of level 0 from metadata, or None.
    mpp_from
        Which metadata.
    model
        "rgb", "rgba", "grey", "grey-alpha", "white-is-zero", "cmyk", "cmyk-inverted", "ycbcr" or
        "palette".
    palette
        uint8 [n, 3] for "palette".
    notes
        What was noticed or changed, for the log.
    """

    levels: tuple[Array, ...]
    path: Path
    kind: str
    mpp: tuple[float, float] | None = None
    mpp_from: str | None = None
    model: str = "rgb"
    palette: np.ndarray | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of level 0."""
        return int(self.levels[0].shape[0]), int(self.levels[0].shape[1])


class Decoded:
    """An array that is decoded on first use and kept while it is referred to.

    Parameters
    ----------
    decode
        Gives the pixels.
    shape, dtype
        What it will give.
    where
        File that a failure names.
    """

    def __init__(self, decode: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: Any, where: Path) -> None:
        self.shape, self.dtype, self.ndim = shape, np.dtype(dtype), len(shape)
        self._decode, self._where = decode, where
        self._pixels: np.ndarray | None = None
        self._lock = threading.Lock()

    def __getitem__(self, key: Any) -> np.ndarray:
        with self._lock:
            if self._pixels is None:
                self._pixels = decoded(self._decode, self._where)
            if self._pixels.shape != self.shape:
                raise FormatError(f"{self._pixels.shape} decoded where the header says {self.shape}", where=self._where)
        return self._pixels[key]


def decoded(decode: Callable[[], np.ndarray], where: Path) -> np.ndarray:
    """Run a decoder; its errors become a FormatError that names the file."""
    try:
        return decode()
    except (ValueError, RuntimeError, OSError, IndexError, struct.error) as e:
        raise FormatError(
            f"the image cannot be decoded ({e}): truncated or damaged", where=where, fix="copy or download it again"
        ) from e


def window(key: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int, int, int], tuple[Any, ...]]:
    """The pixels that a key needs, and the key to apply to them.

    Parameters
    ----------
    key
        What an array was indexed with: whole numbers and ascending slices, as dask's optimiser hands them down.
    shape
        Shape of the array, y and x first.

    Returns
    -------
    tuple
        (y0, y1, x0, x1), and a key for that window.
    """
    given = key if isinstance(key, tuple) else (key,)
    given = (*given, *[slice(None)] * (len(shape) - len(given)))
    bounds: list[int] = []
    inner: list[Any] = []
    for part, size in zip(given[:2], shape[:2], strict=True):
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            if step < 1:
                raise TypeError("descending slices are not supported")
            bounds += [start, max(stop, start)]
            inner.append(slice(None, None, step))
        else:
            bounds += [int(part), int(part) + 1]
            inner.append(0)
    return (bounds[0], bounds[1], bounds[2], bounds[3]), (*inner, *given[2:])


def lazy(array: Any, chunks: tuple[int, ...]) -> Array:
    """A dask array over anything that has shape, dtype and slicing."""
    import dask.array as da

    # Without a name dask hashes the object, without a meta it slices it: either would decode it.
    meta = np.empty((0,) * array.ndim, dtype=array.dtype)
    return da.from_array(array, chunks=chunks, name=False, asarray=False, lock=False, inline_array=True, meta=meta)


def raster(levels: Sequence[Array], names: list[str], transformations: dict[str, Any]) -> Any:
    """The image as spatialdata wants it.

    Parameters
    ----------
    levels
        (c, y, x), finest first.
    names
        Of the channels.
    transformations
        Coordinate system to transformation.
    """
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import set_transformation
    from xarray import DataArray, Dataset, DataTree

    if len(levels) == 1:
        return Image2DModel.parse(levels[0], dims=("c", "y", "x"), c_coords=names, transformations=transformations)
    height, width = levels[0].shape[1:]
    scales = {}
    for i, level in enumerate(levels):
        y, x = ((np.arange(n) + 0.5) * full / n for n, full in zip(level.shape[1:], (height, width), strict=True))
        scales[f"scale{i}"] = Dataset(
            {"image": DataArray(level, dims=("c", "y", "x"), coords={"c": names, "y": y, "x": x})}
        )
    tree = DataTree.from_dict(scales)
    set_transformation(tree, transformations, set_all=True)
    Image2DModel().validate(tree)
    return tree
