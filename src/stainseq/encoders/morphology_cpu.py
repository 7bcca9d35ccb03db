"""The vectors of the morphology network on a CPU: the same numbers by separable filters, in a fifth of the time.

Gabor filters and Laplacians of Gaussians are sums of two or three products of a row and a column filter, and histograms
and patterns need one look at a pixel, not a map for each bin. Each image is one call that holds no lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .runtimes import SessionBackend
from .stains import HE_MATRIX

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

LEVELS = 4
"""Resolutions: the input (0.5 um/px of a 112 um window), then halved three times."""
ORIENTATIONS, WAVELENGTH_PX, ENVELOPE_PX = 4, 4.0, 1.7
BLOB_SIGMAS = (1.5, 2.0, 2.7, 3.6, 4.8)
"""In pixels of level 1 (um at the usual window): a disc of radius r answers most at r / sqrt(2)."""
PEAK_LEVELS = (0.03, 0.08, 0.15)
PEAK = 0.05
"""Blob response (optical density) above which a maximum counts as a nucleus."""
BINS = 9
"""Of the histograms, from 0 to 1 (eosin: 0.8) in optical density."""
OPENINGS = (3, 5, 9, 15)
DIM = 240

_FAST: dict[str, Any] = {"cache": True, "nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
_EXACT: dict[str, Any] = {**_FAST, "fastmath": {"contract"}}
"""For what is compared later: neighbours of equal colour must stay equal, in whatever runtime."""
GABOR, BLOB = 5, 15
"""Radii of the filters, in pixels; written out in the loops below, so that they are unrolled."""


class MorphologyBackend(SessionBackend):
    """Vectors from the functions below, token maps from the exported network in ONNX Runtime.

    Parameters
    ----------
    graph, n_threads
        As in `SessionBackend`; the graph of the vectors is never asked for.
    """

    def __init__(self, graph: Callable[[str], bytes], *, n_threads: int) -> None:
        self._tables = tables()
        super().__init__(graph, runtime="numba", n_threads=n_threads)

    def start(self, mode: str) -> tuple[Callable[[Bytes], Floats], tuple[int, ...]]:
        """What runs a mode on one image, and the shape of what it gives."""
        if mode == "vectors":
            return (lambda images: describe(images[0], self._tables)[None]), (DIM,)
        return super().start(mode)


class Tables(NamedTuple):
    """What the filters are made of.

    Parameters
    ----------
    density
        float32 [256], optical density of a grey value.
    mix
        float32 [4, 3], to haematoxylin, eosin, residual and mean density.
    gabor
        float32 [5, 6]: halves, from the centre on, of the row filters; even, odd, even, odd, even.
    steady
        What the diagonal cosine filters answer to a constant.
    blob
        float32 [5, 3, 16]: halves of the two row filters and of the second column filter of each size; the first
        column filter is the second row filter.
    mean
        float32 [5], mean of each blob filter.
    pattern
        int64 [256], kind of each ring of eight bits.
    """

    density: Floats
    mix: Floats
    gabor: Floats
    steady: float
    blob: Floats
    mean: Floats
    pattern: NDArray[np.int64]


def tables() -> Tables:
    """The filters of `morphology`, taken apart."""
    density = -np.log10(np.maximum(np.arange(256, dtype=np.float32) / np.float32(255), np.float32(1 / 255)))
    x = np.arange(-GABOR, GABOR + 1)
    envelope = np.exp(-(x**2) / (2 * ENVELOPE_PX**2))
    envelope /= envelope.sum()
    k = 2 * np.pi / WAVELENGTH_PX
    across, along = envelope * np.cos(k * x), envelope * np.cos(k * x / np.sqrt(2))
    gabor = np.stack([
        across - envelope * across.sum(), envelope * np.sin(k * x), along, envelope * np.sin(k * x / np.sqrt(2)),
        envelope,
    ])  # fmt: skip
    y = np.arange(BLOB + 1)
    blob = np.empty((len(BLOB_SIGMAS), 3, BLOB + 1))
    for i, sigma in enumerate(BLOB_SIGMAS):
        q = y**2 / (2 * sigma**2)
        blob[i] = [(1 - q) * np.exp(-q) / (np.pi * sigma**2), np.exp(-q), -q * np.exp(-q) / (np.pi * sigma**2)]
    both = np.concatenate([blob[:, :, :0:-1], blob], axis=2).sum(axis=2)
    mean = (both[:, 0] * both[:, 1] + both[:, 1] * both[:, 2]) / (2 * BLOB + 1) ** 2
    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    changes = (bits != np.roll(bits, -1, axis=1)).sum(axis=1)
    return Tables(
        density.astype(np.float32),
        np.vstack([HE_MATRIX, np.full(3, 1 / 3)]).astype(np.float32),
        gabor[:, GABOR:].astype(np.float32),
        float(along.sum() ** 2),
        blob.astype(np.float32),
        mean.astype(np.float32),
        np.where(changes <= 2, bits.sum(axis=1), 9),
    )


def describe(image: Bytes, t: Tables) -> Floats:
    """uint8 [h, w, 3] -> float32 [240], in the order of `Morphology.vectors`."""
    levels = [_stains(image, t.density, t.mix)]
    for _ in range(1, LEVELS):
        levels.append(_halved(levels[-1]))
    first, second = levels[1], levels[2]
    dark = (first[0], first[1], first[3])
    parts = [_statistics(np.concatenate([levels[0], _channels(image)]))]
    for level in levels:
        energy = [_statistics(_gabor(level[i], t.gabor, t.steady)) for i in (0, 1)]
        parts.append(np.stack(energy, axis=1).ravel())
    answers = [_blobs(first[i], t.blob, t.mean) for i in (0, 1)]
    parts += [_statistics(a) for a in answers]
    parts += [_statistics(np.stack(maps)) for size in OPENINGS for maps in _opened(dark, size)]
    parts.append(_histogram(np.stack(dark)).ravel())
    parts += [_patterns(one[i], t.pattern) for i in (0, 1) for one in (first, second)]
    parts += [np.maximum(a, 0).mean(axis=(1, 2), dtype=np.float64) for a in answers]
    parts.append(_counts(answers[0], first))
    for cell in (16, 32):
        coarse = _cells(levels[0], cell)
        parts += [coarse.std(axis=(1, 2)), coarse.max(axis=(1, 2)), coarse.min(axis=(1, 2))]
    return np.concatenate(parts).astype(np.float32)


@njit(**_EXACT)
def _stains(image: Bytes, density: Floats, mix: Floats) -> Floats:
    h, w, _ = image.shape
    out = np.empty((4, h, w), np.float32)
    for y in range(h):
        for x in range(w):
            r, g, b = density[image[y, x, 0]], density[image[y, x, 1]], density[image[y, x, 2]]
            for c in range(4):
                out[c, y, x] = mix[c, 0] * r + mix[c, 1] * g + mix[c, 2] * b
    return out


@njit(**_FAST)
def _channels(image: Bytes) -> Floats:
    h, w, _ = image.shape
    out = np.empty((3, h, w), np.float32)
    for y in range(h):
        for x in range(w):
            for c in range(3):
                out[c, y, x] = image[y, x, c] * np.float32(1 / 255)
    return out


@njit(**_EXACT)
def _halved(x: Floats) -> Floats:
    n, h, w = x.shape
    out = np.empty((n, h // 2, w // 2), np.float32)
    for c in range(n):
        for i in range(h // 2):
            for j in range(w // 2):
                a, b = x[c, 2 * i, 2 * j : 2 * j + 2], x[c, 2 * i + 1, 2 * j : 2 * j + 2]
                out[c, i, j] = (a[0] + a[1] + b[0] + b[1]) * np.float32(0.25)
    return out


@njit(**_FAST)
def _statistics(maps: Floats) -> NDArray[np.float64]:
    """Means, then population standard deviations, of each map."""
    n, h, w = maps.shape
    out = np.zeros(2 * n)
    for c in range(n):
        total = 0.0
        for y in range(h):
            for x in range(w):
                total += maps[c, y, x]
        mean = total / (h * w)
        square = 0.0
        for y in range(h):
            for x in range(w):
                square += (maps[c, y, x] - mean) ** 2
        out[c], out[n + c] = mean, np.sqrt(square / (h * w))
    return out


@njit(**_FAST)
def _padded(x: Floats, r: int) -> Floats:
    """The border repeated r times on each side."""
    h, w = x.shape
    out = np.empty((h + 2 * r, w + 2 * r), np.float32)
    for y in range(h + 2 * r):
        line = x[min(max(y - r, 0), h - 1)]
        for j in range(w + 2 * r):
            out[y, j] = line[min(max(j - r, 0), w - 1)]
    return out


@njit(**_FAST)
def _row(line: Floats, even: Floats, odd: Floats, out: Floats, out_odd: Floats) -> None:
    """An odd and an even filter along a padded row; where both go to one place, the even one alone."""
    for j in range(len(out)):
        a, b = even[0] * line[j + GABOR], np.float32(0)
        for k in range(1, GABOR + 1):
            a += even[k] * (line[j + GABOR + k] + line[j + GABOR - k])
            b += odd[k] * (line[j + GABOR + k] - line[j + GABOR - k])
        out_odd[j] = b
        out[j] = a


@njit(**_FAST)
def _column(rows: Floats, y: int, even: Floats, out: Floats) -> None:
    for j in range(len(out)):
        total = even[0] * rows[y + GABOR, j]
        for k in range(1, GABOR + 1):
            total += even[k] * (rows[y + GABOR + k, j] + rows[y + GABOR - k, j])
        out[j] = total


@njit(**_FAST)
def _columns(rows: Floats, y: int, even: Floats, odd: Floats, out: Floats, out_odd: Floats) -> None:
    for j in range(len(out)):
        a, b = even[0] * rows[y + GABOR, j], np.float32(0)
        for k in range(1, GABOR + 1):
            a += even[k] * (rows[y + GABOR + k, j] + rows[y + GABOR - k, j])
            b += odd[k] * (rows[y + GABOR + k, j] - rows[y + GABOR - k, j])
        out[j], out_odd[j] = a, b


@njit(**_FAST)
def _energies(line: Floats, steady: float, mean: Floats, spread: Floats) -> None:
    lift, little, quarter = np.float32(1e-8), np.float32(1e-12), np.float32(0.25)
    dull = np.float32(steady)
    for j in range(len(mean)):
        cc, cs, sc, ss = line[5, j] - dull * line[2, j], line[6, j], line[7, j], line[8, j]
        one, two = cc - ss, sc + cs
        three, four = cc + ss, cs - sc
        e0 = np.sqrt(line[0, j] * line[0, j] + line[1, j] * line[1, j] + lift)
        e1 = np.sqrt(one * one + two * two + lift)
        e2 = np.sqrt(line[3, j] * line[3, j] + line[4, j] * line[4, j] + lift)
        e3 = np.sqrt(three * three + four * four + lift)
        m = (e0 + e1 + e2 + e3) * quarter
        d0, d1, d2, d3 = e0 - m, e1 - m, e2 - m, e3 - m
        mean[j] = m
        spread[j] = np.sqrt((d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3) * quarter + little)


@njit(**_FAST)
def _gabor(x: Floats, taps: Floats, steady: float) -> Floats:
    """Mean and spread over orientations of the Gabor energy: [2, h, w]."""
    h, w = x.shape
    wide = _padded(x, GABOR)
    rows = np.empty((5, h + 2 * GABOR, w), np.float32)
    p, q, u, v, e = taps[0], taps[1], taps[2], taps[3], taps[4]
    # Few sums at a time, so that they stay in registers.
    for y in range(h + 2 * GABOR):
        _row(wide[y], p, q, rows[0, y], rows[1, y])
        _row(wide[y], u, v, rows[2, y], rows[3, y])
        _row(wide[y], e, v, rows[4, y], rows[4, y])
    out = np.empty((2, h, w), np.float32)
    line = np.empty((9, w), np.float32)
    for y in range(h):
        _column(rows[0], y, e, line[0])
        _column(rows[1], y, e, line[1])
        _column(rows[4], y, e, line[2])
        _columns(rows[4], y, p, q, line[3], line[4])
        _columns(rows[2], y, u, v, line[5], line[6])
        _columns(rows[3], y, u, v, line[7], line[8])
        _energies(line, steady, out[0, y], out[1, y])
    return out


@njit(**_FAST)
def _blobs(x: Floats, taps: Floats, mean: Floats) -> Floats:
    """Answers of the blob filters: [5, h, w]."""
    h, w = x.shape
    wide = _padded(x, BLOB)
    box = _box(wide, 2 * BLOB + 1)
    out = np.empty((len(taps), h, w), np.float32)
    rows = np.empty((2, h + 2 * BLOB, w), np.float32)
    for i in range(len(taps)):
        curved, bell, bent = taps[i, 0], taps[i, 1], taps[i, 2]
        for y in range(h + 2 * BLOB):
            line = wide[y]
            for j in range(w):
                a, b = curved[0] * line[j + BLOB], bell[0] * line[j + BLOB]
                for k in range(1, BLOB + 1):
                    both = line[j + BLOB + k] + line[j + BLOB - k]
                    a += curved[k] * both
                    b += bell[k] * both
                rows[0, y, j], rows[1, y, j] = a, b
        for y in range(h):
            for j in range(w):
                total = bell[0] * rows[0, y + BLOB, j] + bent[0] * rows[1, y + BLOB, j] - mean[i] * box[y, j]
                for k in range(1, BLOB + 1):
                    total += bell[k] * (rows[0, y + BLOB + k, j] + rows[0, y + BLOB - k, j])
                    total += bent[k] * (rows[1, y + BLOB + k, j] + rows[1, y + BLOB - k, j])
                out[i, y, j] = total
    return out


@njit(**_FAST)
def _box(wide: Floats, side: int) -> Floats:
    """Sums over squares that lie whole inside."""
    h, w = wide.shape[0] - side + 1, wide.shape[1] - side + 1
    out = np.empty((h, w), np.float32)
    column = np.zeros(wide.shape[1])
    for y in range(side - 1):
        for x in range(wide.shape[1]):
            column[x] += wide[y, x]
    for y in range(h):
        for x in range(wide.shape[1]):
            column[x] += wide[y + side - 1, x]
        total = 0.0
        for x in range(side - 1):
            total += column[x]
        for x in range(w):
            total += column[x + side - 1]
            out[y, x] = total
            total -= column[x]
        for x in range(wide.shape[1]):
            column[x] -= wide[y, x]
    return out


def _opened(maps: tuple[Floats, ...], size: int) -> tuple[list[Floats], list[Floats]]:
    """Grey opening and closing with a square."""
    import cv2

    square = np.ones((size, size), np.uint8)
    opened: list[Any] = [cv2.dilate(cv2.erode(m, square), square) for m in maps]
    closed: list[Any] = [cv2.erode(cv2.dilate(m, square), square) for m in maps]
    return opened, closed


@njit(**_FAST)
def _histogram(maps: Floats) -> NDArray[np.float64]:
    """Means of hat functions: each value is shared out to its two neighbouring bins."""
    n, h, w = maps.shape
    out = np.zeros((n, BINS))
    for c in range(n):
        scale = np.float32((BINS - 1) / 0.8) if c == 1 else np.float32(BINS - 1)
        for y in range(h):
            for x in range(w):
                place = maps[c, y, x] * scale
                low = int(np.floor(place))
                share = place - np.float32(low)
                if 0 <= low < BINS:
                    out[c, low] += 1 - share
                if -1 <= low < BINS - 1:
                    out[c, low + 1] += share
    return out / (h * w)


@njit(**_FAST)
def _patterns(x: Floats, kind: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each of the ten patterns."""
    h, w = x.shape
    wide = _padded(x, 1)
    out = np.zeros(10)
    codes = np.empty(w, np.int32)
    for y in range(h):
        up, own, down = wide[y], wide[y + 1], wide[y + 2]
        for j in range(w):
            c = own[j + 1]
            code = np.int32(up[j] >= c) | np.int32(up[j + 1] >= c) << 1 | np.int32(up[j + 2] >= c) << 2
            code |= np.int32(own[j + 2] >= c) << 3 | np.int32(down[j + 2] >= c) << 4
            code |= np.int32(down[j + 1] >= c) << 5 | np.int32(down[j] >= c) << 6 | np.int32(own[j] >= c) << 7
            codes[j] = code
        for j in range(w):
            out[kind[codes[j]]] += 1
    return out / (h * w)


def _counts(answer: Floats, stains: Floats) -> NDArray[np.float64]:
    """Nuclei, as in `Morphology.counts`."""
    import cv2

    square = np.ones((7, 7), np.uint8)
    best = answer.max(axis=0)
    tops = np.stack([cv2.dilate(one, square) for one in (*answer, best)])
    n, area, cells = len(answer), best.size, np.zeros((best.shape[0] // 16, best.shape[1] // 16))
    above, sized, at = np.zeros((len(PEAK_LEVELS), n)), np.zeros(n), np.zeros(3)
    levels = np.array(PEAK_LEVELS, np.float32)
    found = _count(answer, best, tops, stains, levels, np.float32(PEAK), above, sized, at, cells)
    share = found / area
    each = 100 / area * np.concatenate([above.ravel(), sized])
    return np.concatenate([each, [100 * share], at / area / (share + 1e-5), [100 * cells.std()]])


@njit(**_FAST)
def _count(
    answer: Floats, best: Floats, tops: Floats, stains: Floats, levels: Floats, peak: Any,
    above: Any, sized: Any, at: Any, cells: Any,
) -> int:  # fmt: skip
    """Adds up maxima above each level, of each size, their stains, and their share of each square; how many."""
    n, h, w = answer.shape
    found = 0
    for y in range(h):
        for x in range(w):
            for c in range(n):
                value = answer[c, y, x]
                if value >= tops[c, y, x]:
                    for i in range(len(levels)):
                        above[i, c] += value > levels[i]
                    sized[c] += value >= best[y, x] and value > peak
            if best[y, x] >= tops[n, y, x] and best[y, x] > peak:
                found += 1
                at[0] += stains[0, y, x]
                at[1] += stains[1, y, x]
                at[2] += best[y, x]
                if y // 16 < len(cells) and x // 16 < cells.shape[1]:
                    cells[y // 16, x // 16] += 1 / 256
    return found


@njit(**_FAST)
def _cells(x: Floats, side: int) -> NDArray[np.float64]:
    """Means over squares."""
    n, h, w = len(x), x.shape[1] // side, x.shape[2] // side
    out = np.zeros((n, h, w))
    for c in range(n):
        for y in range(h * side):
            for j in range(w):
                total = np.float32(0)
                for k in range(side):
                    total += x[c, y, j * side + k]
                out[c, y // side, j] += total
    return out / (side * side)
