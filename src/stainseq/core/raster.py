"""Label images of polygons by the even-odd rule: one compiled scanline pass, patches in parallel."""

from __future__ import annotations

import numba
import numpy as np

from .aggregate import Outlines

_ON_EDGE = 1e-9
"""Pixels; float64 crossings of a slide 100,000 px wide are good to 1e-11."""


def raster(outlines: Outlines, labels: np.ndarray, *, shape: tuple[int, int]) -> np.ndarray:
    """Label image of polygons.

    A pixel belongs to a polygon when its centre, at integer coordinates, lies inside by the even-odd rule or on the
    boundary: the rule of ``skimage.draw.polygon``, which data sets of nuclei are made with, here also for holes and
    multi-part polygons. Where polygons overlap the later one wins.

    Parameters
    ----------
    outlines
        Polygons in pixels of the image (x, y), in the order in which they are drawn; see
        `aggregate.outlines_of_rings`.
    labels
        uint32 or int32 [n], the value of each polygon.
    shape
        (height, width) of the image; what lies outside is cut off.

    Returns
    -------
    labels.dtype [height, width], 0 where there is none.
    """
    members = np.arange(len(outlines.shapes) - 1)
    starts = np.array([0, len(members)])
    return rasters(outlines, labels, corners=np.zeros((1, 2)), starts=starts, members=members, shape=shape)[0]


def rasters(
    outlines: Outlines,
    labels: np.ndarray,
    *,
    corners: np.ndarray,
    starts: np.ndarray,
    members: np.ndarray,
    shape: tuple[int, int],
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Label images of many patches, on all threads.

    Parameters
    ----------
    outlines, labels
        As in `raster`, in pixels of the whole image.
    corners
        float [p, 2], (x, y) of each patch's first pixel centre.
    starts, members
        Polygons that touch patch i are ``members[starts[i]:starts[i + 1]]``, drawn in that order; see `touching`.
    shape
        (height, width) of a patch.
    out
        labels.dtype [>= p, height, width] to draw in, zeroed first: fresh memory costs more than the drawing.

    Returns
    -------
    labels.dtype [p, height, width]. A pixel's value does not depend on the patch that shows it.
    """
    if out is None:
        out = np.zeros((len(corners), *shape), dtype=labels.dtype)
    else:
        out = out[: len(corners)]
        out[...] = 0
    _fill(
        out,
        np.ascontiguousarray(corners, dtype=np.float64),
        np.asarray(starts, dtype=np.int64),
        np.asarray(members, dtype=np.int64),
        np.ascontiguousarray(labels),
        outlines.points,
        outlines.rings,
        outlines.shapes,
        outlines.bounds,
    )
    return out


def touching(outlines: Outlines, corners: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Polygons whose box meets each patch, in ascending order.

    Parameters
    ----------
    outlines
        Polygons in pixels of the whole image.
    corners
        float [p, 2], (x, y) of each patch's first pixel centre.
    shape
        (height, width) of a patch.

    Returns
    -------
    int64 [p + 1] starts and int64 members, as `rasters` takes them.
    """
    x0, y0 = outlines.origin
    return _touching(
        np.ascontiguousarray(corners, dtype=np.float64),
        float(shape[1] - 1),
        float(shape[0] - 1),
        outlines.bounds,
        outlines.cells,
        outlines.members,
        x0,
        y0,
        outlines.cell,
        outlines.size[0],
        outlines.size[1],
    )


@numba.njit(cache=True, nogil=True)
def _touching(corners, width, height, bounds, cells, members, x0, y0, cell, columns, rows):  # type: ignore[no-untyped-def]
    seen = np.full(len(bounds), -1, dtype=np.int64)
    starts = np.zeros(len(corners) + 1, dtype=np.int64)
    found = np.empty(1024, dtype=np.int64)
    n = 0
    for p in range(len(corners)):
        left, top = corners[p, 0], corners[p, 1]
        right, bottom = left + width, top + height
        first = n
        for r in range(max(int((top - y0) // cell), 0), min(int((bottom - y0) // cell), rows - 1) + 1):
            for c in range(max(int((left - x0) // cell), 0), min(int((right - x0) // cell), columns - 1) + 1):
                for k in range(cells[r * columns + c], cells[r * columns + c + 1]):
                    i = members[k]
                    if seen[i] == p:
                        continue
                    seen[i] = p
                    if bounds[i, 0] > right or bounds[i, 2] < left or bounds[i, 1] > bottom or bounds[i, 3] < top:
                        continue
                    if n == len(found):
                        more = np.empty(2 * n, dtype=np.int64)
                        more[:n] = found
                        found = more
                    found[n] = i
                    n += 1
        found[first:n].sort()
        starts[p + 1] = n
    return starts, found[:n].copy()


@numba.njit(cache=True, nogil=True, parallel=True)
def _fill(out, corners, starts, members, labels, points, rings, shapes, bounds):  # type: ignore[no-untyped-def]
    for p in numba.prange(len(corners)):
        first = np.empty(out.shape[1] + 1, dtype=np.int64)
        crossings = np.empty(256, dtype=np.float64)
        for k in range(starts[p], starts[p + 1]):
            i = members[k]
            crossings = _draw(
                out[p], corners[p, 0], corners[p, 1], labels[i], i, points, rings, shapes, bounds, first, crossings
            )


@numba.njit(cache=True, nogil=True)
def _draw(image, left, top, label, i, points, rings, shapes, bounds, first, crossings):  # type: ignore[no-untyped-def]
    height, width = image.shape
    above = max(0, int(np.ceil(bounds[i, 1] - top)))
    rows = min(height - 1, int(np.floor(bounds[i, 3] - top))) - above + 1
    if rows <= 0 or bounds[i, 0] - left > width - 1 or bounds[i, 2] < left:
        return crossings
    y0 = top + above
    # Each edge meets few rows: crossings are counted per row, then written, so that every edge is visited twice only.
    for row in range(rows + 1):
        first[row] = 0
    for step in range(2):
        for r in range(shapes[i], shapes[i + 1]):
            for j in range(rings[r], rings[r + 1] - 1):
                xa, ya, xb, yb = points[j, 0], points[j, 1] - y0, points[j + 1, 0], points[j + 1, 1] - y0
                low, high = min(ya, yb), max(ya, yb)
                # Half open, so that a corner between two edges counts once: rows in [low, high).
                start, stop = max(0, int(np.ceil(low))), min(rows, int(np.ceil(high)))
                if step == 0:
                    for row in range(start, stop):
                        first[row + 1] += 1
                    # What that leaves out touches a row from above: level edges and lowest corners.
                    if high == np.floor(high) and 0 <= high < rows:
                        xl = min(xa, xb) if low == high else (xb if yb > ya else xa)
                        xr = max(xa, xb) if low == high else xl
                        _span(image, above + int(high), xl - left, xr - left, label, width)
                elif start < stop:
                    slope = (xb - xa) / (yb - ya)
                    for row in range(start, stop):
                        crossings[first[row]] = xa + (row - ya) * slope
                        first[row] += 1
        if step == 0:
            for row in range(rows):
                first[row + 1] += first[row]
            if first[rows] > len(crossings):
                crossings = np.empty(2 * first[rows], dtype=np.float64)
    begin = 0
    for row in range(rows):
        end = first[row]  # writing has moved each row's start to its end
        for a in range(begin + 1, end):  # few crossings a row: insertion beats a call of sort
            value = crossings[a]
            b = a - 1
            while b >= begin and crossings[b] > value:
                crossings[b + 1] = crossings[b]
                b -= 1
            crossings[b + 1] = value
        for a in range(begin, end - 1, 2):
            _span(image, above + row, crossings[a] - left, crossings[a + 1] - left, label, width)
        begin = end
    return crossings


@numba.njit(cache=True, nogil=True, inline="always")
def _span(image, row, start, stop, label, width):  # type: ignore[no-untyped-def]
    # A centre on a slanted edge must not fall off by the last digit of the crossing.
    for column in range(max(0, int(np.ceil(start - _ON_EDGE))), min(width - 1, int(np.floor(stop + _ON_EDGE))) + 1):
        image[row, column] = label
