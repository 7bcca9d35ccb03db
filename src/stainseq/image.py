"""Opens an image element and reads windows of it at a requested resolution.

The one place that knows how images lie in a store. Windows go round dask: a window of a few hundred pixels costs more
in a task graph than in decoding, so levels on disk are read as Zarr arrays through a small cache of decoded chunks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import keys
from .core import registration, windows
from .core.dense import mirrored
from .errors import InputError, MissingError, ScaleError

if TYPE_CHECKING:
    from spatialdata import SpatialData

CACHE_BYTES = 256 << 20
"""Decoded chunks kept per opened image: two rows of chunks of a slide 40,000 px wide."""


UPRIGHT = 5e-3
"""Rotation, shear or stretch that windows ignore: half a pixel at the rim of a window of 224 px."""


@dataclass(frozen=True)
class LevelStack:
    """An image pyramid ready to be read.

    Parameters
    ----------
    levels
        Arrays (c, y, x), finest first; anything that slices to numpy.
    downsamples
        Level-0 pixels per pixel, one number a level.
    to_um
        float [3, 3], level-0 pixel (x, y) to microns; affine or projective.
    mpp
        Microns per level-0 pixel (geometric mean of both axes, at the centre of the image where it differs).
    fingerprint
        Content of the image; changes when a pixel does.
    """

    levels: tuple[Any, ...]
    downsamples: tuple[float, ...]
    to_um: np.ndarray
    mpp: float
    fingerprint: str
    _chunks: _ChunkCache = field(default_factory=lambda: _ChunkCache(CACHE_BYTES), repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in level-0 pixels."""
        return int(self.levels[0].shape[1]), int(self.levels[0].shape[2])

    @property
    def upright(self) -> bool:
        """Whether rows run along x and columns along y, with square pixels, closely enough to read windows as they lie.

        Within `UPRIGHT`; otherwise windows are resampled through the whole transform.
        """
        off = self.to_um[:2, :2] / self.mpp - np.eye(2)
        return bool(np.abs(off).max() <= UPRIGHT and not self.to_um[2, :2].any())

    @property
    def from_um(self) -> np.ndarray:
        """float [3, 3], microns to level-0 pixel."""
        inverse = np.linalg.inv(self.to_um)
        return inverse if self.to_um[2, :2].any() else np.vstack([inverse[:2], [0, 0, 1.0]])

    def to_px(self, xy_um: np.ndarray) -> np.ndarray:
        """Microns to level-0 pixels, float [n, 2] to float [n, 2]."""
        return registration.apply(self.from_um, xy_um)

    def read(self, level: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Pixels [y0:y1, x0:x1] of a level as uint8 [h, w, 3]; white beyond the edge."""
        return self._chunks.region(self.levels, level, y0, y1, x0, x1)

    def forget(self) -> None:
        """Let go of the pixels that are kept for further reads."""
        self._chunks.clear()


def open_image(sdata: SpatialData, key: str = keys.HE) -> LevelStack:
    """Open an image element for window reads.

    Parameters
    ----------
    sdata
        The slide, in memory or on disk.
    key
        Name of the image element.

    Raises
    ------
    MissingError
        There is no such image.
    ScaleError
        The image has no transformation to microns.
    """
    from . import store

    if key not in sdata.images:
        raise MissingError(
            f"no image {key!r}", where=sdata.path, fix=f"images here: {', '.join(sdata.images) or 'none'}"
        )
    element = sdata.images[key]
    levels = _levels_on_disk(sdata, key) or _levels_in_memory(element)
    height = levels[0].shape[1]
    downsamples = tuple(1.0 if i == 0 else round(height / a.shape[1], 3) for i, a in enumerate(levels))
    # Elements carry affine transformations alone; a projective one is a fact of ours beside its nearest affine.
    exact = (store.stamp_of(sdata, key) or {}).get("projective")
    to_um = _to_um(element, key) if exact is None else np.asarray(exact, dtype=float)
    mpp = _mpp(to_um, np.array([[levels[0].shape[2] / 2, height / 2]]))
    return LevelStack(tuple(levels), downsamples, to_um, mpp, store.fingerprint_of(sdata, key))


def open_registered(sdata: SpatialData, key: str = keys.HE) -> LevelStack:
    """As `open_image`, for what lays regions over the image.

    Raises
    ------
    InputError
        The image lies in a frame of its own, as one does that was read without an alignment.
    """
    from . import store

    opened = open_image(sdata, key)
    if (store.stamp_of(sdata, key) or {}).get("unregistered"):
        raise InputError(
            f"image {key!r} is not registered to the regions yet",
            where=sdata.path,
            fix="lay it onto them by landmarks: `stainseq align SLIDE.zarr --he FILE --target FILE`",
        )
    return opened


def read_window(image: LevelStack, centre_um: np.ndarray, *, size_px: int, mpp: float) -> np.ndarray:
    """One square window around a point.

    Parameters
    ----------
    image
        From `open_image`.
    centre_um
        (x, y) in microns.
    size_px
        Side in target pixels.
    mpp
        Microns per target pixel.

    Returns
    -------
    numpy.ndarray
        uint8 [size_px, size_px, 3], white beyond the slide's edge.
    """
    return read_window_px(image, image.to_px(np.atleast_2d(centre_um))[0], size_px=size_px, factor=mpp / image.mpp)


def read_window_px(image: LevelStack, centre_px: np.ndarray, *, size_px: int, factor: float) -> np.ndarray:
    """As `read_window`, with the centre in level-0 pixels and the scale as level-0 pixels per target pixel."""
    if not image.upright:
        um = factor * image.mpp
        corner = registration.apply(image.to_um, np.atleast_2d(centre_px))[0] - size_px * um / 2
        return _turned(image, corner, (size_px, size_px), um)
    return read_square_px(image, centre_px, size_px=size_px, factor=factor)


def read_square_px(image: LevelStack, centre_px: np.ndarray, *, size_px: int, factor: float) -> np.ndarray:
    """As `read_window_px`, along the picture's own axes however it lies on the slide."""
    level = windows.choose_level(image.downsamples, factor)
    down = image.downsamples[level]
    centre = np.asarray(centre_px, dtype=float) / down
    y0, y1, x0, x1 = windows.bounds(centre, size_px, factor / down)
    block = image.read(level, y0, y1, x0, x1)
    return windows.resample(block, (y0, x0), centre, size_px, factor / down)


def read_box(image: LevelStack, box_um: tuple[float, float, float, float], *, mpp: float) -> np.ndarray:
    """A rectangle of the slide as an array at a stated resolution.

    Parameters
    ----------
    image
        From `open_image`.
    box_um
        (min_x, min_y, max_x, max_y) in microns.
    mpp
        Microns per pixel of the result.

    Returns
    -------
    numpy.ndarray
        uint8 [h, w, 3]; white beyond the slide's edge.
    """
    import cv2

    if not image.upright and box_um[2] > box_um[0] and box_um[3] > box_um[1]:
        size = (max(1, round((box_um[2] - box_um[0]) / mpp)), max(1, round((box_um[3] - box_um[1]) / mpp)))
        return _turned(image, np.array(box_um[:2], dtype=float), size, mpp)
    corners = image.to_px(np.array([[box_um[0], box_um[1]], [box_um[2], box_um[3]]]))
    factor = mpp / image.mpp
    level = windows.choose_level(image.downsamples, factor)
    down = image.downsamples[level]
    (x0, y0), (x1, y1) = (
        np.floor(corners.min(0) / down).astype(int),
        np.ceil(corners.max(0) / down).astype(int),
    )
    if x1 <= x0 or y1 <= y0:
        raise InputError("an empty box", where=f"{box_um} um", fix="give min_x, min_y, max_x, max_y with max above min")
    block = image.read(level, int(y0), int(y1), int(x0), int(x1))
    size = tuple(max(1, round(s * down / factor)) for s in (x1 - x0, y1 - y0))
    return cv2.resize(block, size, interpolation=cv2.INTER_AREA if factor > down else cv2.INTER_LINEAR)


def read_frame(image: LevelStack, to_um: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """A rectangle of any frame, the picture mirrored beyond the slide's edge.

    Parameters
    ----------
    image
        From `open_image`.
    to_um
        float [3, 3], from pixels of the result (x, y; pixel i covers [i, i + 1)) to microns; affine or projective.
    size_px
        (width, height) of the result.

    Returns
    -------
    numpy.ndarray
        uint8 [height, width, 3]. Mirrored, so that what an encoder sees at the edge is tissue and not a white wall.
    """
    to_px = image.from_um @ to_um
    to_px = to_px / to_px[2, 2]
    factor = float(np.sqrt(abs(np.linalg.det(to_px[:2, :2]))))
    level = windows.choose_level(image.downsamples, factor)
    down = image.downsamples[level]
    to_level = np.diag([1 / down, 1 / down, 1.0]) @ to_px
    y0, y1, x0, x1 = windows.outline(to_level, size_px)
    _, height, width = image.levels[level].shape
    rows, cols = mirrored(np.arange(y0, y1), height), mirrored(np.arange(x0, x1), width)
    if y0 >= 0 and x0 >= 0 and y1 <= height and x1 <= width:
        block = image.read(level, y0, y1, x0, x1)
    else:
        top, left = int(rows.min()), int(cols.min())
        block = image.read(level, top, int(rows.max()) + 1, left, int(cols.max()) + 1)
        block = np.ascontiguousarray(block[rows - top][:, cols - left])
    return windows.warp(block, (y0, x0), to_level, size_px, factor / down)


def extent_um(image: LevelStack) -> tuple[float, float, float, float]:
    """Smallest upright box (min_x, min_y, max_x, max_y) in microns that holds the whole image."""
    height, width = image.shape
    corners = np.array([[0, 0, 1], [width, height, 1], [0, height, 1], [width, 0, 1]]) @ image.to_um.T
    (x0, y0), (x1, y1) = corners[:, :2].min(0), corners[:, :2].max(0)
    return float(x0), float(y0), float(x1), float(y1)


def _turned(image: LevelStack, corner_um: np.ndarray, size_px: tuple[int, int], mpp: float) -> np.ndarray:
    """A rectangle along x and y in microns from an image that lies turned, sheared or in perspective."""
    factor = mpp / image.mpp
    level = windows.choose_level(image.downsamples, factor)
    down = image.downsamples[level]
    to_um = np.array([[mpp, 0, corner_um[0]], [0, mpp, corner_um[1]], [0, 0, 1.0]])
    to_level = np.diag([1 / down, 1 / down, 1.0]) @ image.from_um @ to_um
    y0, y1, x0, x1 = windows.outline(to_level, size_px)
    return windows.warp(image.read(level, y0, y1, x0, x1), (y0, x0), to_level, size_px, factor / down)


def _mpp(to_um: np.ndarray, centre_px: np.ndarray) -> float:
    """Microns per pixel at a point."""
    if not to_um[2, :2].any():
        return float(np.sqrt(abs(np.linalg.det(to_um[:2, :2]))))
    around = registration.apply(to_um, centre_px + np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]]))
    return float(np.sqrt(abs(np.linalg.det(np.stack([around[1] - around[0], around[3] - around[2]])))))


def thumbnail(sdata: SpatialData, *, key: str = keys.HE, max_px: int = 1500) -> tuple[np.ndarray, float]:
    """The whole slide, small.

    Parameters
    ----------
    sdata
        The slide.
    key
        Name of the image element.
    max_px
        Longest side of the result.

    Returns
    -------
    tuple
        uint8 [h, w, 3] and its microns per pixel. The array's first pixel starts at the image's first pixel.
    """
    image = open_image(sdata, key)
    return level_thumbnail(image, max_px=max_px)


def level_thumbnail(image: LevelStack, *, max_px: int) -> tuple[np.ndarray, float]:
    """As `thumbnail`, of an opened image."""
    import cv2

    height, width = image.shape
    factor = max(1.0, max(height, width) / max_px)
    level = windows.choose_level(image.downsamples, factor)
    array = image.levels[level]
    size = max(1, round(width / factor)), max(1, round(height / factor))
    if array.shape[1] * array.shape[2] <= 64 << 20:
        return cv2.resize(_rgb(np.asarray(array[...])), size, interpolation=cv2.INTER_AREA), image.mpp * width / size[0]
    # An image without a pyramid: reduce it strip by strip, never whole.
    out = np.empty((size[1], size[0], 3), dtype=np.uint8)
    rows = np.linspace(0, array.shape[1], size[1] + 1).astype(int)
    per_strip = max(1, int(size[1] * 2048 / array.shape[1]))
    for a in range(0, size[1], per_strip):
        b = min(size[1], a + per_strip)
        strip = _rgb(np.asarray(array[:, rows[a] : rows[b], :]))
        out[a:b] = cv2.resize(strip, (size[0], b - a), interpolation=cv2.INTER_AREA)
    return out, image.mpp * width / size[0]


class _ChunkCache:
    """Least recently used decoded chunks, as uint8 [h, w, 3]."""

    def __init__(self, max_bytes: int) -> None:
        self._max, self._held = max_bytes, 0
        self._blocks: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def clear(self) -> None:
        with self._lock:
            self._blocks.clear()
            self._held = 0

    def region(self, levels: tuple[Any, ...], level: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        array = levels[level]
        _, height, width = array.shape
        ch, cw = _chunk_shape(array)
        out = np.full((y1 - y0, x1 - x0, 3), windows.OUTSIDE, dtype=np.uint8)
        top, bottom, left, right = max(y0, 0), min(y1, height), max(x0, 0), min(x1, width)
        for i in range(top // ch, -(-bottom // ch)):
            for j in range(left // cw, -(-right // cw)):
                a, b = max(top, i * ch), min(bottom, (i + 1) * ch)
                c, d = max(left, j * cw), min(right, (j + 1) * cw)
                if b > a and d > c:
                    block = self._chunk(array, level, i, j, ch, cw)
                    out[a - y0 : b - y0, c - x0 : d - x0] = block[a - i * ch : b - i * ch, c - j * cw : d - j * cw]
        return out

    def _chunk(self, array: Any, level: int, i: int, j: int, ch: int, cw: int) -> np.ndarray:
        key = (level, i, j)
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        block = _rgb(np.asarray(array[:, i * ch : (i + 1) * ch, j * cw : (j + 1) * cw]))
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = block
                self._held += block.nbytes
            while self._held > self._max and len(self._blocks) > 1:
                self._held -= self._blocks.popitem(last=False)[1].nbytes
        return block


def _chunk_shape(array: Any) -> tuple[int, int]:
    chunks = getattr(array, "chunks", None)
    if not chunks:
        return 1024, 1024
    ch, cw = (c[0] if isinstance(c, tuple) else c for c in chunks[1:])
    # A reader may hand over one chunk a file; caching that whole would defeat the cache.
    return min(int(ch), 2048), min(int(cw), 2048)


def _rgb(block: np.ndarray) -> np.ndarray:
    if block.shape[0] == 1:
        block = np.repeat(block, 3, axis=0)
    if block.shape[0] < 3 or block.dtype != np.uint8:
        raise InputError(
            f"an image of {block.shape[0]} channels and {block.dtype} where RGB uint8 is needed",
            fix="name the H&E image with image_key",
        )
    return np.ascontiguousarray(np.moveaxis(block[:3], 0, -1))


def _levels_on_disk(sdata: SpatialData, key: str) -> list[Any]:
    import zarr

    if sdata.path is None or str(sdata.path).endswith(".zip"):
        return []
    folder = Path(sdata.path) / "images" / key
    if not folder.is_dir():
        return []
    group = zarr.open_group(folder, mode="r")
    attrs: dict[str, Any] = dict(group.attrs)
    multiscales = attrs.get("ome", attrs).get("multiscales", [])
    return [group[d["path"]] for d in multiscales[0]["datasets"]] if multiscales else []


def _levels_in_memory(element: Any) -> list[Any]:
    from xarray import DataTree

    arrays = (
        [next(iter(node.values())) for node in element.children.values()]
        if isinstance(element, DataTree)
        else [element]
    )
    return [_Lazy(a.transpose("c", "y", "x").data) for a in arrays]


class _Lazy:
    """A dask or numpy array that slices to numpy."""

    def __init__(self, data: Any) -> None:
        self._data, self.shape, self.chunks = data, data.shape, getattr(data, "chunks", None)

    def __getitem__(self, item: Any) -> np.ndarray:
        part = self._data[item]
        return part.compute(scheduler="synchronous") if hasattr(part, "compute") else np.asarray(part)


def _to_um(element: Any, key: str) -> np.ndarray:
    from spatialdata.transformations import get_transformation

    transformations = get_transformation(element, get_all=True)
    if keys.UM not in transformations:
        raise ScaleError(f"image {key!r} has no pixel size", fix="convert the slide again with --mpp MICRONS_PER_PIXEL")
    return np.asarray(transformations[keys.UM].to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y")))
