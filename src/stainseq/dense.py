"""Features of fine grids from dense maps: each spot of tissue goes through an encoder once, not once per region.

A superpixel of 8 um with a window of 112 um around it sees every pixel 196 times. Here the slide is tiled with windows
that keep their inner tokens; a region takes the mean of the tokens under it, and of those in wider squares around it.
Maps lie in the feature cache as float16, one a part of the encoder (`encoders.dense`), along the grid's own axes or the
image's, so that a superpixel is a token wherever both are 8 um. Windows stand on a lattice that is fixed to the slide:
what is asked for decides which of them are made, never what they hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import engine
from ._settings import settings
from .core import dense as core
from .core import registration, tissue
from .errors import InputError, ScaleError
from .image import LevelStack, level_thumbnail, read_frame, read_window_px
from .spec import fingerprint

if TYPE_CHECKING:
    from .encoders import Encoder
    from .encoders.dense import Part
    from .regions import Region

VERSION = 1
"""Part of every cache key and of the fingerprint that models check: raised when a number changes."""

OWN_UM = 8.0
"""Square that stands for a region that is no bin of a grid: about a nucleus."""

CONTEXT_UM = (32.0, 112.0)
"""Squares around it: the neighbouring cells, and what the usual window of an encoder sees."""

FINE = 4
"""Grids whose pitch is at most this part of the encoder's field are fine: their windows overlap 16-fold and more."""

MOST_UM = 10_000.0
"""Widest square: beyond it means tell nothing of a place, and what lies around a slide would fill the memory."""

_SUBSAMPLES = 4
_TISSUE_MPP, _TISSUE_PX = 8.0, 6000
_LEVEL_WINDOWS, _LEVEL_PX = 64, 112


@dataclass(frozen=True)
class Run:
    """What one call did.

    Parameters
    ----------
    path
        The .npy file of the features, in the cache.
    coverage
        float32 [n, scales], the share of each square that is tissue on the slide (of the first: that is on the slide).
    encoded
        Windows encoded in this call.
    seconds
        Wall time.
    key
        Fingerprint of everything the result depends on.
    """

    path: Path
    coverage: np.ndarray
    encoded: int
    seconds: float
    key: str


@dataclass(frozen=True)
class Frame:
    """Where a map lies.

    Parameters
    ----------
    to_um
        float [3, 3], from (column, row) to microns; token i covers [i, i + 1).
    shape
        Rows and columns.
    token_um
        Side of a token.
    at
        float [n, 2], centres of the regions in tokens (x, y).
    """

    to_um: np.ndarray
    shape: tuple[int, int]
    token_um: float
    at: np.ndarray


def is_fine(where: Region, encoder: Encoder) -> bool:
    """Whether dense maps are the way: for grids far finer than the encoder's field, and encoders made for maps."""
    from .encoders.dense import has_tokens

    pitch = own_um(where) if where.kind == "grid" else np.inf
    made_for_it = getattr(getattr(encoder, "spec", None), "pooling", "") == "dense"
    return has_tokens(encoder) and (made_for_it or pitch * FINE <= min(encoder.fields_um))


def own_um(where: Region) -> float:
    """Side of the square that stands for a region, rounded to tenths so that slides agree on it."""
    geometry: Any = where.geometry
    return round(float(geometry.pitch_um()), 1) if where.kind == "grid" else OWN_UM


def scales_for(where: Region, scales_um: Sequence[float] | None) -> tuple[float, ...]:
    """Sides of the squares whose means become features, in microns, ascending.

    Raises
    ------
    InputError
        Sides that are not positive or do not ascend.
    """
    if scales_um is None:
        own = own_um(where)
        return (own, *(s for s in CONTEXT_UM if s > 1.5 * own))
    scales = tuple(float(s) for s in scales_um)
    if not scales or not np.isfinite(scales).all() or min(scales) <= 0 or sorted(set(scales)) != list(scales):
        raise InputError(f"scales_um={list(scales)}", fix="give sides in um that ascend, such as 8 32 112")
    if scales[-1] > MOST_UM:
        raise InputError(f"a square of {scales[-1]:g} um", where="scales_um", fix=f"give sides up to {MOST_UM:g} um")
    return scales


def encode(
    image: LevelStack,
    where: Region,
    encoder: Encoder,
    *,
    scales_um: Sequence[float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, Run]:
    """Features of every region, at several scales, from dense maps.

    Parameters
    ----------
    image
        From `image.open_image`.
    where
        Regions; of any kind, by their centres.
    encoder
        From `encoders.load`; with tokens.
    scales_um
        Sides of the squares around each centre; the first stands for the region. Default: the pitch of a grid (else
        `OWN_UM`), then `CONTEXT_UM`.
    progress
        Called with the number of windows finished.

    Returns
    -------
    tuple
        float16 [n, scales * token numbers] (a read-only memory map; part by part, in each scale by scale) and a `Run`.

    Raises
    ------
    InputError
        An encoder without tokens; centres that are not finite.
    ScaleError
        The slide is far too coarse for the encoder.
    """
    from .encoders.dense import parts

    start = time.perf_counter()
    scales = scales_for(where, scales_um)
    if not np.isfinite(where.centres_um).all():
        bad = int((~np.isfinite(where.centres_um)).any(axis=1).sum())
        raise InputError(f"{bad} region centres are not finite", fix="drop them or mend their coordinates")
    mask = _tissue(image)
    made = parts(encoder, levels=lambda: slide_levels(image, mask))
    for part in made:
        _check_scale(image, part)
    frames = [lay(image, where, part.token_um, max(scales)) for part in made]
    width = len(scales) * sum(p.dim for p in made)
    places = [a for f in frames for a in (f.to_um, f.at)]
    key = engine.key_of(image, "dense", VERSION, [p.fingerprint() for p in made], scales, *places)
    encoded, columns = 0, np.cumsum([0, *(len(scales) * p.dim for p in made)])
    shares = np.zeros((len(where), len(scales)), dtype=np.float32)
    with engine.journalled(key, (len(where), width), len(made), dtype="float16", fill=0) as job:
        for i, (part, frame) in enumerate(zip(made, frames, strict=True)):
            if 0 < i < job.finished:
                continue
            sides = [s / frame.token_um for s in scales]
            inside, on_tissue = _weights(image, frame, mask)
            weights = [inside, *([on_tissue] * (len(scales) - 1))]
            if i < job.finished:
                _pool_coverage(weights, frame, sides, shares)
                continue
            values, n = encode_part(image, part, frame, weights, sides, progress=progress)
            encoded += n
            target = slice(int(columns[i]), int(columns[i + 1]))

            def put(store: np.ndarray, _: slice, values: Any, target: slice = target, weights: Any = weights,
                    frame: Frame = frame, sides: Any = sides, first: bool = i == 0) -> None:  # fmt: skip
                cover = shares if first else np.empty_like(shares)  # of the finest tokens, for all parts
                core.square_means(values, weights, frame.at, sides, out=store[:, target], coverage=cover,
                                  n_jobs=settings.n_jobs, wrote=engine.unmapping(store))  # fmt: skip

            job.write(slice(i, i + 1), values, put)
            job.flush()
    seconds = time.perf_counter() - start
    return np.load(job.path, mmap_mode="r"), Run(job.path, shares, encoded, seconds, key)


def lay(image: LevelStack, where: Region, token_um: float, reach_um: float) -> Frame:
    """A frame of tokens over the regions and what is around them, along a grid's axes or else the image's.

    Its corner and with it the lattice of windows depends on the grid or the image, not on which regions are there.
    """
    margin = int(np.ceil(reach_um / 2 / token_um)) + 1
    if where.kind == "grid":
        geometry: Any = where.geometry
        pitch = geometry.pitch_um()
        times = pitch / token_um
        # Grids are laid to a round pitch: where it is the token's but for rounding, they are one lattice.
        times = round(times, 3) if abs(times - round(times, 3)) < 1e-5 else times
        to_um = np.asarray(geometry.transform, dtype=float) @ np.diag([1 / times, 1 / times, 1.0])
        shape = tuple(int(np.ceil(k * times - 1e-6)) for k in geometry.shape)
        at = np.column_stack([geometry.cols + 0.5, geometry.rows + 0.5]) * times
    else:
        times = token_um / image.mpp
        to_um = image.to_um @ np.diag([times, times, 1.0])
        shape = tuple(int(np.ceil(k / times - 1e-6)) for k in image.shape)
        at = image.to_px(where.centres_um) / times
    moved = np.array([[1, 0, -margin], [0, 1, -margin], [0, 0, 1.0]])
    return Frame(to_um @ moved, (shape[0] + 2 * margin, shape[1] + 2 * margin), token_um, at + margin)


def encode_part(
    image: LevelStack,
    part: Part,
    frame: Frame,
    weights: Sequence[np.ndarray],
    sides: Sequence[float],
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, int]:
    """The map of one part wherever a square of a region has weight; windows that none needs stay 0.

    Returns
    -------
    tuple
        float16 [rows, columns, dim], a read-only memory map, and the windows encoded in this call.
    """
    size = part.core
    lattice = -(-frame.shape[0] // size), -(-frame.shape[1] // size)
    wanted = np.zeros(lattice, dtype=bool)
    for weight, side in zip(weights, sides, strict=True):
        wanted |= core.cores_needed(frame.at, side, size, lattice) & _any_in_core(weight, size, lattice)
    cells = np.argwhere(wanted)
    order = np.lexsort((np.where(cells[:, 0] % 2 == 0, cells[:, 1], -cells[:, 1]), cells[:, 0]))
    cells = cells[order]
    key = engine.key_of(image, "part", VERSION, part.fingerprint(), frame.to_um, frame.shape, cells)

    def read(batch: slice) -> np.ndarray:
        out = np.empty((batch.stop - batch.start, len(part.fields_um), part.px, part.px, 3), dtype=np.uint8)
        for i, (row, column) in enumerate(cells[batch]):
            middle = np.array([column, row]) * size + size / 2
            for f, um in enumerate(part.fields_um):
                step, half = um / frame.token_um / part.px, um / frame.token_um / 2
                window = np.array([[step, 0, middle[0] - half], [0, step, middle[1] - half], [0, 0, 1.0]])
                out[i, f] = read_frame(image, frame.to_um @ window, (part.px, part.px))
        return out

    def write(store: np.ndarray, batch: slice, tokens: np.ndarray) -> None:
        inner = tokens[:, part.halo : part.halo + size, part.halo : part.halo + size]
        for (row, column), block in zip(cells[batch], engine.in_range_of("float16", inner), strict=True):
            y, x = row * size, column * size
            h, w = min(size, frame.shape[0] - y), min(size, frame.shape[1] - x)
            store[y : y + h, x : x + w] = block[:h, :w]

    run = engine.run(
        key, (*frame.shape, part.dim), len(cells), read, part.run, write, part.batch, progress, dtype="float16"
    )
    return np.load(run.path, mmap_mode="r"), run.encoded


def slide_levels(image: LevelStack, mask: tuple[np.ndarray, float]) -> list[list[float]]:
    """Stain levels of a slide (`encoders.shell.levels`), from windows spread over its tissue.

    Not over the regions: features of one must not depend on which others are asked for.

    Parameters
    ----------
    image
        The slide's image.
    mask
        Tissue, and level-0 pixels per pixel of it.
    """
    from .encoders.shell import levels

    there = np.flatnonzero(mask[0])
    chosen = np.unique(np.linspace(0, len(there) - 1, min(len(there), _LEVEL_WINDOWS)).round().astype(int))
    rows, columns = np.unravel_index(there[chosen], mask[0].shape)
    centres = (np.column_stack([columns, rows]) + 0.5) * mask[1]
    windows = [read_window_px(image, c, size_px=_LEVEL_PX, factor=1.0 / image.mpp) for c in centres]
    return [[round(v, 4) for v in row] for row in levels(np.stack(windows))]


def model_fingerprint(encoder: Encoder, scales_um: Sequence[float], weights: str) -> str:
    """What a model checks of dense features; `featurise.encoder_fingerprint` is that of windows."""
    from .encoders.dense import KEPT, KEPT_EACH

    scales = [float(s) for s in scales_um]
    return fingerprint("dense", VERSION, KEPT, KEPT_EACH, encoder.spec.fingerprint(), weights, scales)


def _check_scale(image: LevelStack, part: Part) -> None:
    wanted = part.fields_um[0] / part.px
    if image.mpp > engine.MAX_UPSAMPLING * wanted:
        raise ScaleError(
            f"the slide has {image.mpp:.2f} um/px, encoder {part.name!r} looks at {wanted:.2f} um/px",
            fix="convert an image of higher resolution (the one the spots were aligned on)",
        )


def _tissue(image: LevelStack) -> tuple[np.ndarray, float]:
    """Tissue mask of the slide and level-0 pixels per pixel of it; everything where none is found."""
    height, width = image.shape
    longest = int(np.clip(max(height, width) * image.mpp / _TISSUE_MPP, 1, _TISSUE_PX))
    small, mpp = level_thumbnail(image, max_px=longest)
    mask = tissue.tissue_mask(small, mpp=mpp)
    return (mask if mask.any() else np.ones_like(mask)), width / small.shape[1]


def _weights(image: LevelStack, frame: Frame, mask: tuple[np.ndarray, float]) -> tuple[np.ndarray, np.ndarray]:
    """Share of each token on the slide, and on tissue: float32 [rows, columns] each."""
    rows, columns = frame.shape
    inside, on_tissue = np.zeros(frame.shape, dtype=np.float32), np.zeros(frame.shape, dtype=np.float32)
    fine = (np.arange(_SUBSAMPLES) + 0.5) / _SUBSAMPLES
    x = (np.arange(columns)[:, None] + fine).ravel()
    to_px = image.from_um @ frame.to_um
    height, width = image.shape
    for top in range(0, rows, 64):
        n = min(64, rows - top)
        y = (np.arange(top, top + n)[:, None] + fine).ravel()
        at = registration.apply(to_px, np.column_stack([v.ravel() for v in np.meshgrid(x, y)]))
        there = np.all((at >= 0) & (at < (width, height)), axis=1)
        place = np.where(there[:, None], at / mask[1], 0).astype(np.int64)
        place = np.minimum(place, np.array(mask[0].shape[::-1]) - 1)
        good = there & mask[0][place[:, 1], place[:, 0]]
        for flags, out in ((there, inside), (good, on_tissue)):
            out[top : top + n] = flags.reshape(n, _SUBSAMPLES, columns, _SUBSAMPLES).mean(axis=(1, 3))
    return inside, on_tissue


def _any_in_core(weight: np.ndarray, size: int, lattice: tuple[int, int]) -> np.ndarray:
    """Whether any token of a core has weight."""
    padded = np.zeros((lattice[0] * size, lattice[1] * size), dtype=bool)
    padded[: weight.shape[0], : weight.shape[1]] = weight > 0
    return np.any(padded.reshape(lattice[0], size, lattice[1], size), axis=(1, 3))


def _pool_coverage(weights: Sequence[np.ndarray], frame: Frame, sides: Sequence[float], shares: np.ndarray) -> None:
    """Coverage alone, for features that are in the cache already."""
    nothing = np.zeros((*frame.shape, 1), dtype=np.float16)
    core.square_means(
        nothing, weights, frame.at, sides, out=np.empty((len(shares), len(sides)), np.float16), coverage=shares
    )


def lay_map(
    image: LevelStack, where: Region, shape: tuple[int, int], *, mpp: float | None, to_um: np.ndarray | None
) -> Frame:
    """Where somebody else's map lies: as stated, else a token a bin of the grid, else over the whole image.

    Parameters
    ----------
    image, where
        The slide's image and the regions.
    shape
        Rows and columns of the map.
    mpp
        Microns per token; the map then starts at the image's first pixel and follows its axes.
    to_um
        float [3, 3] from (column, row) to microns, instead.

    Raises
    ------
    ScaleError
        Nothing is stated, and the map has neither the grid's shape nor the image's proportions.
    """
    grid: Any = where.geometry if where.kind == "grid" else None
    if to_um is not None:
        matrix = np.asarray(to_um, dtype=float)
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
            raise InputError("to_um is no 3 x 3 matrix that can be inverted", fix="from (column, row) to microns")
    elif mpp is not None:
        if not mpp > 0:
            raise InputError(f"a map of {mpp} um a token", fix="--map-mpp takes microns per token, such as 8")
        matrix = image.to_um @ np.diag([mpp / image.mpp, mpp / image.mpp, 1.0])
    elif grid is not None and tuple(shape) == tuple(grid.shape):
        matrix = np.asarray(grid.transform, dtype=float)
    else:
        step = image.shape[0] / shape[0], image.shape[1] / shape[1]
        # A rounded number of rows or columns is less than a token off.
        if abs(step[0] - step[1]) * max(shape) > max(step):
            raise ScaleError(
                f"a map of {shape[0]} x {shape[1]} tokens has neither the shape of {where.name} nor that of the image",
                fix="say how large a token is, in um: --map-mpp",
            )
        matrix = image.to_um @ np.diag([step[1], step[0], 1.0])
    token = _side(matrix, shape)
    return Frame(
        matrix, (int(shape[0]), int(shape[1])), token, registration.apply(np.linalg.inv(matrix), where.centres_um)
    )


def _side(to_um: np.ndarray, shape: tuple[int, int]) -> float:
    """Side of a token at the middle of a map, as the root of its area."""
    y, x = shape[0] / 2, shape[1] / 2
    a, b, c = registration.apply(to_um, np.array([[x, y], [x + 1, y], [x, y + 1]]))
    return float(np.sqrt(abs(np.linalg.det(np.stack([b - a, c - a])))))


def pool_map(
    image: LevelStack, where: Region, values: Any, frame: Frame, scales: Sequence[float], *, content: str
) -> tuple[np.ndarray, Run]:
    """Features of regions from somebody else's map; tokens with a value that is not finite do not count.

    Parameters
    ----------
    image, where
        The slide's image and the regions.
    values
        [rows, columns, d] that slices to numpy.
    frame
        From `lay_map`.
    scales
        Sides of the squares, in microns.
    content
        Fingerprint of the map.

    Returns
    -------
    tuple
        float32 [n, scales * d] (float16 of a float16 map), a read-only memory map, and a `Run`.
    """
    start = time.perf_counter()
    inside, _ = _weights(image, frame, (np.ones((1, 1), dtype=bool), float(max(image.shape))))
    for top in range(0, frame.shape[0], 64):
        band = np.asarray(values[top : top + 64])
        inside[top : top + 64] *= np.isfinite(band).all(axis=-1)
    if not inside.any():
        raise InputError("no token of the map lies on the slide", fix="check --map-mpp, and that it is this slide's")
    key = engine.key_of(image, "map", VERSION, content, frame.to_um, scales, frame.at)
    shares = np.zeros((len(where), len(scales)), dtype=np.float32)
    dtype = "float16" if values.dtype == np.float16 else "float32"
    with engine.journalled(key, (len(where), len(scales) * values.shape[2]), 1, dtype=dtype, fill=0) as job:
        sides = [s / frame.token_um for s in scales]
        weights = [inside] * len(scales)
        if job.finished:
            _pool_coverage(weights, frame, sides, shares)
        else:

            def put(store: np.ndarray, _: slice, tokens: Any) -> None:
                core.square_means(tokens, weights, frame.at, sides, out=store, coverage=shares, n_jobs=settings.n_jobs)

            job.write(slice(0, 1), values, put)
    seconds = time.perf_counter() - start
    return np.load(job.path, mmap_mode="r"), Run(job.path, shares, 0, seconds, key)
