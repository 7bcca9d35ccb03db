"""Opens a picture of any common kind as lazy RGB uint8 levels.

The kind is told by content, never by suffix. JPEG, PNG and the like are decoded once, on first use; TIFF is decoded
tile by tile (`_tiff`); what neither knows goes through openslide, when that is installed (`_openslide`).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DependencyError, FormatError
from ._picture import CHUNK, Decoded, Picture, decoded, lazy

if TYPE_CHECKING:
    from dask.array import Array

logger = logging.getLogger("stainseq")

_MAGIC = {
    "jpeg": (b"\xff\xd8\xff",),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "bmp": (b"BM",),
    "jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
}


def kind_of(path: Path) -> str | None:
    """ "jpeg", "png", "tiff", "bmp", "jp2", "webp", or None, by the file's first bytes."""
    try:
        with open(path, "rb") as f:
            head = f.read(16)
    except OSError:
        return None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((kind for kind, magics in _MAGIC.items() if head.startswith(magics)), None)


def is_image(path: Path) -> bool:
    """Whether the content is one of the picture kinds that need no openslide."""
    return path.is_file() and kind_of(path) is not None


def named_as_image(path: Path) -> bool:
    """Whether a file at least claims to be a picture: an empty or damaged one is reported, not passed over."""
    return path.is_file() and path.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def open_image(path: str | Path, *, backend: str | None = None) -> Picture:
    """Open a picture lazily as RGB uint8.

    Parameters
    ----------
    path
        Any file; the suffix is not looked at.
    backend
        "openslide" to insist on it; default by content.

    Raises
    ------
    FormatError
        Not a picture, truncated or damaged, or not one of an H&E section (four fluorescence channels, a z-stack).
    DependencyError
        A vendor format that only openslide reads, which is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError("no such image", where=path, fix="check the path")
    if path.stat().st_size == 0:
        raise FormatError("an empty file", where=path, fix="copy or download it again")
    kind = kind_of(path)
    if kind == "tiff" and backend is None:
        from ._tiff import open_tiff, wants_openslide

        picture = _through_openslide(path) if wants_openslide(path) else open_tiff(path)
    elif kind is None or backend == "openslide":
        picture = _through_openslide(path)
    else:
        picture = _open_raster(path, kind)
    return as_rgb(picture)


def _through_openslide(path: Path) -> Picture:
    try:
        from ._openslide import open_slide
    except ImportError as e:
        raise DependencyError(
            "this image is neither TIFF, JPEG nor PNG and openslide is not installed",
            where=path,
            fix="pip install 'stainseq[openslide]', if it is a slide at all",
        ) from e
    return open_slide(path)


def _open_raster(path: Path, kind: str) -> Picture:
    import imagecodecs

    notes: list[str] = []
    if kind == "jpeg":
        header = _jpeg_header(path)
        decode = partial(_decode_file, path, imagecodecs.jpeg8_decode)
        model = {1: "grey", 3: "rgb", 4: "cmyk-inverted" if header.adobe else "cmyk"}.get(header.channels, "?")
        shape: tuple[int, ...] = (header.height, header.width, header.channels)[: 2 if model == "grey" else 3]
        if header.orientation not in (0, 1):
            notes.append(f"EXIF orientation {header.orientation} ignored: pixels are taken as stored")
        levels = Decoded(decode, shape, np.uint8, path)
    else:
        if kind == "png":
            _check_png(path)
        name = {"png": "png", "bmp": "bmp", "jp2": "jpeg2k", "webp": "webp"}[kind]
        pixels = decoded(partial(_decode_file, path, getattr(imagecodecs, f"{name}_decode")), path)
        levels = Decoded(lambda: pixels, pixels.shape, pixels.dtype, path)
        model = {2: "grey", 3: {2: "grey-alpha", 3: "rgb", 4: "rgba"}.get(pixels.shape[-1], "?")}[pixels.ndim]
    chunks = (CHUNK, CHUNK, *levels.shape[2:])
    return Picture((lazy(levels, chunks),), path, kind.upper(), model=model, notes=tuple(notes))


def _decode_file(path: Path, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
    return decode(path.read_bytes())


@dataclass(frozen=True)
class _JpegHeader:
    height: int
    width: int
    channels: int
    adobe: bool
    orientation: int


def _jpeg_header(path: Path) -> _JpegHeader:
    """Size and colour of a JPEG without decoding it; refuses one that does not end.

    Decoders fill the missing part of a truncated JPEG with grey and say nothing.
    """
    adobe, orientation, size = False, 1, path.stat().st_size
    with open(path, "rb") as f:
        f.seek(2)
        frame: tuple[int, int, int] | None = None
        while True:
            head = f.read(4)
            if len(head) < 4 or head[0] != 0xFF:
                break
            marker, length = head[1], struct.unpack(">H", head[2:])[0]
            if marker == 0xFF:  # fill byte
                f.seek(-3, 1)
                continue
            body = f.read(length - 2)
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
                height, width = struct.unpack(">HH", body[1:5])
                frame = (height, width, body[5])
            elif marker == 0xEE and body[:5] == b"Adobe":
                adobe = True
            elif marker == 0xE1 and body[:6] == b"Exif\0\0":
                orientation = _orientation(body[6:])
            elif marker == 0xDA:
                break
        scan = f.tell()
        tail = max(scan, size - (1 << 20))
        f.seek(tail)
        ended = b"\xff\xd9" in f.read()
    if frame is None or not ended:
        raise FormatError("a truncated JPEG", where=path, fix="copy or download it again")
    return _JpegHeader(*frame, adobe, orientation)


def _orientation(exif: bytes) -> int:
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        start = struct.unpack(f"{order}I", exif[4:8])[0]
        for i in range(struct.unpack(f"{order}H", exif[start : start + 2])[0]):
            tag, _, _, value = struct.unpack(f"{order}HHIH", exif[start + 2 + 12 * i : start + 12 + 12 * i])
            if tag == 274:
                return int(value)
    except (KeyError, struct.error):
        return 1
    return 1


def _check_png(path: Path) -> None:
    with open(path, "rb") as f:
        f.seek(max(0, path.stat().st_size - (1 << 16)))
        if b"IEND" not in f.read():
            raise FormatError("a truncated PNG", where=path, fix="copy or download it again")


def as_rgb(picture: Picture) -> Picture:
    """RGB uint8 levels (y, x, 3), whatever was stored; what was changed is added to the notes.

    Raises
    ------
    FormatError
        The channels are not those of a stained section in transmitted light.
    """
    import dask.array as da

    dtype, model = picture.levels[0].dtype, picture.model
    if model == "?" or dtype.kind not in "buf":
        raise FormatError(
            f"an image of {picture.levels[0].shape} {dtype} is not an RGB picture",
            where=picture.path,
            fix="give the H&E image (1, 3 or 4 channels of 8 or 16 bit)",
        )
    if model == "rgb" and dtype == np.uint8:
        return picture
    full, notes = _full_scale(picture)
    convert = partial(_to_rgb, model=model, palette=picture.palette, full=full)
    levels = tuple(
        da.map_blocks(
            convert,
            a,
            dtype=np.uint8,
            chunks=(*a.chunks[:2], (3,)),
            drop_axis=[2] if a.ndim == 3 else None,
            new_axis=[2],
        )
        for a in picture.levels
    )
    said = {
        "rgba": "alpha laid over white",
        "grey": "grey repeated to RGB",
        "grey-alpha": "grey with alpha laid over white, repeated to RGB",
        "white-is-zero": "grey (white is zero) inverted and repeated to RGB",
        "cmyk": "CMYK turned to RGB",
        "cmyk-inverted": "CMYK turned to RGB",
        "palette": "palette turned to RGB",
        "ycbcr": "YCbCr turned to RGB",
    }
    notes = [*([said[model]] if model in said else []), *notes]
    return replace(picture, levels=levels, model="rgb", palette=None, notes=(*picture.notes, *notes))


def _full_scale(picture: Picture) -> tuple[float, list[str]]:
    """The value that means white, from the type and, for more than 8 bits, from the values present."""
    dtype = picture.levels[0].dtype
    if dtype == np.uint8 or picture.model == "palette":
        return 255.0, []
    if dtype.kind == "b":
        return 1.0, ["1 bit scaled to 8"]
    top = float(sampled(picture.levels, max_px=1024)[0].max())
    if dtype.kind == "f":
        if not top <= 255:
            raise FormatError(
                f"an image of {dtype} up to {top:g}", where=picture.path, fix="save it as 8 or 16 bit RGB"
            )
        full = 1.0 if top <= 1 else 255.0
    else:
        # Cameras of 12 bits write 16-bit files; an H&E picture holds white, so the range shows.
        full = float(next((f for f in (255, 4095, 65535) if top <= f), np.iinfo(dtype).max))
    return full, [f"{dtype} scaled from 0..{full:g} to 8 bit"]


def _to_rgb(block: np.ndarray, *, model: str, palette: np.ndarray | None, full: float) -> np.ndarray:
    if model == "palette" and palette is not None:
        return palette[block if block.ndim == 2 else block[..., 0]]
    if block.dtype != np.uint8:
        block = np.clip(np.rint(block.astype(np.float32) * np.float32(255 / full)), 0, 255).astype(np.uint8)
    if block.ndim == 2:
        block = block[..., None]
    if model == "white-is-zero":
        block = 255 - block
    if model.startswith("cmyk"):
        ink = block.astype(np.uint16) if model == "cmyk-inverted" else 255 - block.astype(np.uint16)
        block = ((ink[..., :3] * ink[..., 3:] + 127) // 255).astype(np.uint8)
    if model == "ycbcr":
        block = _from_ycbcr(block)
    if model in ("rgba", "grey-alpha"):
        alpha = block[..., -1:].astype(np.uint16)
        block = ((block[..., :-1] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(block[..., :3], (*block.shape[:2], 3)))


def _from_ycbcr(block: np.ndarray) -> np.ndarray:
    """Full-range BT.601, as in JFIF."""
    y, cb, cr = (block[..., i].astype(np.float32) - (0 if i == 0 else 128) for i in range(3))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def sampled(levels: tuple[Array, ...], *, max_px: int) -> tuple[np.ndarray, float]:
    """The whole picture, small, by plain sub-sampling: every k-th pixel of the coarsest level that is fine enough.

    Parameters
    ----------
    levels
        Arrays (y, x, ...), finest first.
    max_px
        Longest side wanted; the result has at most twice that.

    Returns
    -------
    tuple
        Pixels and how many level-0 pixels one of them stands for.
    """
    fit = [a for a in levels if max(a.shape[:2]) >= max_px] or [levels[0]]
    step = max(1, max(fit[-1].shape[:2]) // max_px)
    start = step // 2
    pixels = np.asarray(fit[-1][start::step, start::step].compute())
    return pixels, step * levels[0].shape[0] / fit[-1].shape[0]
