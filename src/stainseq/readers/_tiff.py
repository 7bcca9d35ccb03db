"""TIFF of every kind (SVS, OME-TIFF with SubIFDs, BigTIFF, plain) through tifffile, tile by tile.

Tiles are decoded in the calling thread: four times the throughput of tifffile's Zarr view, whose decoding runs in one
event loop.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from ..errors import FormatError
from ._picture import CHUNK, Decoded, Picture, lazy, window

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

MAX_PLAUSIBLE_MPP = 10.0
"""Resolution tags that mean coarser pixels are printing resolutions (72 dpi is 353 um/px, 2400 dpi 10.6)."""

WHOLE_BYTES = 256 << 20
"""A strip or tile larger than this is decoded once and kept, not once a block."""

_TO_UM = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0, "mm": 1e3, "cm": 1e4, "in": 25400.0}
_TO_UM |= {"m": 1e6, "μm": 1.0, "\\u00B5m": 1.0, "microns": 1.0, "inch": 25400.0}


def wants_openslide(path: Path) -> bool:
    """Vendor variants of TIFF whose tiles or levels tifffile does not assemble, where openslide is at hand."""
    import importlib.util

    with _open(path) as tif:
        vendor = tif.is_ndpi or tif.is_bif or tif.is_philips
    return bool(vendor) and importlib.util.find_spec("openslide") is not None


def _open(path: Path) -> TiffFile:
    import tifffile

    try:
        tif = tifffile.TiffFile(path)
        if len(tif.pages) == 0:
            raise FormatError("a TIFF without pages", where=path, fix="copy or download it again")
    except (tifffile.TiffFileError, ValueError, IndexError, OSError) as e:
        if isinstance(e, FormatError):
            raise
        raise FormatError(f"a damaged or truncated TIFF ({e})", where=path, fix="copy or download it again") from e
    return tif


def open_tiff(path: Path) -> Picture:
    """Open a TIFF lazily.

    Raises
    ------
    FormatError
        Damaged, truncated (tiles beyond the end of the file), or not a flat picture.
    """
    with _open(path) as tif:
        try:
            return _picture(tif, path)
        except (ValueError, IndexError, KeyError, OSError, RuntimeError) as e:
            if isinstance(e, FormatError):
                raise
            raise FormatError(f"a damaged or truncated TIFF ({e})", where=path, fix="copy or download it again") from e


def _picture(tif: TiffFile, path: Path) -> Picture:
    main = _main_series(tif)
    series = tif.series[main]
    levels = _pyramid(tif, main)
    arrays = tuple(_level(tif, at, path) for at in levels)
    model, palette = _model(series, arrays[0].shape, path)
    mpp, mpp_from = _mpp(tif, main, arrays[0].shape[:2])
    kind = {"svs": "SVS", "ome": "OME-TIFF"}.get(series.kind, "BigTIFF" if tif.is_bigtiff else "TIFF")
    return Picture(arrays, path, kind, mpp=mpp, mpp_from=mpp_from, model=model, palette=palette)


def _main_series(tif: TiffFile) -> int:
    """Index of the first series, unless another is larger (some writers put the label first)."""
    sizes = [int(np.prod(s.shape, dtype=np.int64)) for s in tif.series]
    return int(np.argmax(sizes))


def _pyramid(tif: TiffFile, main: int) -> list[tuple[int, int]]:
    """(series, level) of each level; separate series of the same picture, ever smaller, count as levels too."""
    series = tif.series[main]
    levels = [(main, i) for i in range(len(series.levels))]
    if len(levels) > 1 or series.kind in ("svs", "ome"):
        return levels
    last = series.shape
    for i, other in enumerate(tif.series):
        if i == main or other.dtype != series.dtype or len(other.shape) != len(last):
            continue
        y, x = _yx(other.shape)
        ratio = _size(last)[0] / other.shape[y], _size(last)[1] / other.shape[x]
        same = abs(ratio[0] / ratio[1] - 1) < 0.01 + 2 / min(other.shape[y], other.shape[x])
        if same and min(ratio) > 1.5 and abs(np.log2(ratio[0]) - round(np.log2(ratio[0]))) < 0.05:
            levels.append((i, 0))
            last = other.shape
    return levels


def _yx(shape: tuple[int, ...]) -> tuple[int, int]:
    """Axes of y and x: the channel axis, if any, is the one with at most four entries, last before first."""
    if len(shape) == 2:
        return 0, 1
    return (0, 1) if shape[-1] <= 4 else (1, 2)


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    y, x = _yx(shape)
    return shape[y], shape[x]


def _level(tif: TiffFile, at: tuple[int, int], path: Path) -> Any:
    """One level as a dask array (y, x) or (y, x, channels)."""
    import dask.array as da

    level = tif.series[at[0]].levels[at[1]]
    shape = tuple(n for n in level.shape if n != 1) if len(level.shape) > 3 else level.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and min(shape[0], shape[-1]) > 4):
        raise FormatError(
            f"a TIFF of shape {level.shape} ({level.axes}) is not a flat RGB picture",
            where=path,
            fix="give the H&E image as one plane of 1, 3 or 4 channels",
        )
    pages = [p for p in level.pages if p is not None]
    one_file = all(p.parent is tif for p in pages)
    if one_file:
        _check_extent(pages, path)
    key = level.keyframe
    planes = key.samplesperpixel if key.planarconfig == 2 else 1
    stored = sum(int(np.prod(p.shape, dtype=np.int64)) for p in pages)
    regular = stored == int(np.prod(shape, dtype=np.int64)) and one_file and (len(pages) == 1 or planes == 1)
    if not regular or key.imagedepth > 1 or _segment_bytes(key) > WHOLE_BYTES:
        whole = Decoded(partial(_asarray, path, at, shape), shape, level.dtype, path)
        array = lazy(whole, tuple(CHUNK if n > 4 else n for n in shape))
    else:
        parts = [PageArray(p, path, plane=k) for p in pages for k in range(planes)]
        arrays = [lazy(p, p.chunks) for p in parts]
        array = arrays[0] if len(arrays) == 1 else da.stack(arrays, axis=0)
    y, x = _yx(array.shape)
    if array.ndim == 3 and (y, x) == (1, 2):
        array = da.moveaxis(array, 0, 2)
        array = array.rechunk({2: array.shape[2]})
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _asarray(path: Path, at: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    with _open(path) as tif:
        return tif.series[at[0]].levels[at[1]].asarray().reshape(shape)


def _segment_bytes(page: Any) -> int:
    return int(np.prod(page.chunks, dtype=np.int64)) * page.dtype.itemsize


def _check_extent(pages: list[Any], path: Path) -> None:
    for page in pages:
        end = np.asarray(page.dataoffsets, dtype=np.int64) + np.asarray(page.databytecounts, dtype=np.int64)
        if page.parent.filehandle.size < (end.max() if len(end) else 0):
            raise FormatError(
                "a truncated TIFF: the file ends before its pixels do", where=path, fix="copy or download it again"
            )


class PageArray:
    """One plane of one TIFF page as an array that decodes just the tiles or strips a slice needs.

    Parameters
    ----------
    page
        tifffile page or frame.
    path
        Its file.
    plane
        Which sample, where samples are stored apart.
    """

    def __init__(self, page: Any, path: Path, *, plane: int = 0) -> None:
        key = page.keyframe
        self._path, self._decode = path, key.decode
        self._offsets, self._counts = page.dataoffsets, page.databytecounts
        together = key.planarconfig != 2 and key.samplesperpixel > 1
        self.shape: tuple[int, ...] = (key.imagelength, key.imagewidth, *((key.samplesperpixel,) if together else ()))
        self.dtype, self.ndim = np.dtype(key.dtype), len(self.shape)
        strip = (min(key.rowsperstrip, key.imagelength), key.imagewidth)
        self._tile = (key.tilelength, key.tilewidth) if key.is_tiled else strip
        self._across = -(-key.imagewidth // self._tile[1])
        self._first = plane * self._across * -(-key.imagelength // self._tile[0])
        self._tables = getattr(page, "jpegtables", None)
        self._header = getattr(page, "jpegheader", None)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Whole tiles or strips, near 2048 x 2048 pixels."""
        height, width = self._tile
        if width >= self.shape[1]:
            columns, rows = self.shape[1], max(1, CHUNK * CHUNK // self.shape[1])
        else:
            columns, rows = max(1, CHUNK // width) * width, CHUNK
        return (max(1, rows // height) * height, columns, *self.shape[2:])

    def __getitem__(self, key: Any) -> np.ndarray:
        (y0, y1, x0, x1), inner = window(key, self.shape)
        out = np.empty((y1 - y0, x1 - x0, *self.shape[2:]), dtype=self.dtype)
        if out.size:
            height, width = self._tile
            with open(self._path, "rb") as file:
                for row in range(y0 // height, -(-y1 // height)):
                    for column in range(x0 // width, -(-x1 // width)):
                        self._paste(out, file, (row, column), (y0, y1, x0, x1))
        return out[inner]

    def _paste(self, out: np.ndarray, file: IO[bytes], at: tuple[int, int], box: tuple[int, int, int, int]) -> None:
        y0, y1, x0, x1 = box
        top, left = at[0] * self._tile[0], at[1] * self._tile[1]
        tile = self._read(file, self._first + at[0] * self._across + at[1])
        v0, u0 = max(y0, top), max(x0, left)
        if tile is None:  # sparse files leave out empty tiles
            v1, u1 = min(y1, top + self._tile[0]), min(x1, left + self._tile[1])
            out[v0 - y0 : v1 - y0, u0 - x0 : u1 - x0] = np.iinfo(self.dtype).max if self.dtype.kind == "u" else 1
            return
        v1, u1 = min(y1, top + tile.shape[0]), min(x1, left + tile.shape[1])
        out[v0 - y0 : v1 - y0, u0 - x0 : u1 - x0] = tile[v0 - top : v1 - top, u0 - left : u1 - left]

    def _read(self, file: IO[bytes], index: int) -> np.ndarray | None:
        if self._counts[index] == 0:
            return None
        file.seek(self._offsets[index])
        data = file.read(self._counts[index])
        try:
            tile = self._decode(data, index, jpegtables=self._tables, jpegheader=self._header)[0]
        except (ValueError, RuntimeError, OSError, IndexError) as e:
            raise FormatError(
                f"tile {index} cannot be decoded ({e}): truncated or damaged",
                where=self._path,
                fix="copy or download it again",
            ) from e
        if tile is None:
            return None
        return tile[0] if len(self.shape) == 3 else tile[0, ..., 0]


def _model(series: TiffPageSeries, shape: tuple[int, ...], path: Path) -> tuple[str, np.ndarray | None]:
    """Colour model of the stored samples."""
    page: Any = series.keyframe
    channels = 1 if len(shape) == 2 else shape[2]
    photometric, compression = int(page.photometric), int(page.compression)
    if photometric == 3 and page.colormap is not None and channels == 1:
        return "palette", np.ascontiguousarray((page.colormap.T // 256).astype(np.uint8))
    if compression == 33003 and channels == 3:
        return "ycbcr", None  # Aperio's JPEG 2000 without a colour transform; openslide goes by the compression too
    if photometric == 8 or (photometric == 6 and compression not in (6, 7, 33005, 34712, 22610)):
        raise FormatError("a TIFF in CIELab or raw YCbCr colours", where=path, fix="save it as RGB")
    if series.kind == "ome" and channels in (2, 4) and photometric == 1:
        return "?", None  # channels of fluorescence
    if channels == 4:
        return ("cmyk" if photometric == 5 else "rgba"), None
    if channels == 1:
        return ("white-is-zero" if photometric == 0 else "grey"), None
    return {2: "grey-alpha", 3: "rgb"}.get(channels, "?"), None


def _mpp(tif: TiffFile, main: int, shape: tuple[int, ...]) -> tuple[tuple[float, float] | None, str | None]:
    """Pixel size (x, y) from metadata, and its name."""
    if tif.is_svs:
        from tifffile.tifffile import svs_description_metadata

        value = svs_description_metadata(tif.pages.first.description).get("MPP")
        if isinstance(value, (int, float)) and value > 0:
            return (float(value), float(value)), "Aperio MPP"
    if tif.is_ome and (found := _ome_mpp(tif.ome_metadata or "", main, shape)):
        return found, "OME PhysicalSize"
    tags = tif.series[main].keyframe.tags
    try:
        across, down = (float(np.divide(*tags[name].value)) for name in ("XResolution", "YResolution"))
    except (KeyError, TypeError, ZeroDivisionError):
        return None, None
    if not (np.isfinite([across, down]).all() and across > 0 and down > 0):
        return None, None
    unit_um = {2: 25400.0, 3: 10000.0}.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2)
    if tif.is_imagej and tif.imagej_metadata:
        unit_um = _TO_UM.get(str(tif.imagej_metadata.get("unit", "")).strip())
    if unit_um is None:
        return None, None
    found = (unit_um / across, unit_um / down)
    return (found, "TIFF resolution tags") if max(found) < MAX_PLAUSIBLE_MPP else (None, None)


def _ome_mpp(xml: str, index: int, shape: tuple[int, ...]) -> tuple[float, float] | None:
    """PhysicalSize of the OME image that has this series' size, with its unit (default um)."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    pixels = [p for p in root.iter() if p.tag.rsplit("}", 1)[-1] == "Pixels"]
    same = [p for p in pixels if (p.get("SizeY"), p.get("SizeX")) == (str(shape[0]), str(shape[1]))]
    if not same:
        return None
    chosen = pixels[index] if index < len(pixels) and pixels[index] in same else same[0]
    sizes = []
    for axis in "XY":
        value, unit = chosen.get(f"PhysicalSize{axis}"), chosen.get(f"PhysicalSize{axis}Unit", "µm")
        if value is None or unit not in _TO_UM or not float(value) > 0:
            return None
        sizes.append(float(value) * _TO_UM[unit])
    return sizes[0], sizes[1]
