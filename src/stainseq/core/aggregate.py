"""Which region holds a point, and sums of points and of maps per region: kernels on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import scipy.sparse as sp

_MOST_CELLS = 1 << 22
_MOST_LABELS = 1 << 26


@dataclass(frozen=True, eq=False)
class Outlines:
    """Shapes as flat arrays with an index of their boxes.

    Parameters
    ----------
    circles
        [n, 3] x, y, radius, or None for polygons.
    points
        [p, 2] corners of all rings; the last of a ring repeats its first.
    rings
        [r + 1] where each ring starts in `points`.
    shapes
        [n + 1] where the rings of each shape start in `rings`; holes and further parts are rings like any other,
        since inside is where a ray crosses an odd number of edges.
    bounds
        [n, 4] min_x, min_y, max_x, max_y.
    cells, members
        For each cell of a square raster over all boxes, the shapes whose box touches it, in order.
    origin, cell, size
        Corner of that raster, side of a cell, number of columns and rows.
    """

    circles: np.ndarray | None
    points: np.ndarray
    rings: np.ndarray
    shapes: np.ndarray
    bounds: np.ndarray
    cells: np.ndarray
    members: np.ndarray
    origin: tuple[float, float]
    cell: float
    size: tuple[int, int]


def outlines_of_circles(centres: np.ndarray, radii: np.ndarray) -> Outlines:
    """Index circles.

    Parameters
    ----------
    centres
        [n, 2].
    radii
        [n].
    """
    circles = np.column_stack([centres, radii]).astype(np.float64)
    bounds = np.column_stack([circles[:, :2] - circles[:, 2:], circles[:, :2] + circles[:, 2:]])
    none = np.zeros(1, dtype=np.int64)
    return Outlines(circles, np.zeros((0, 2)), none, none, bounds, *_index(bounds))


def outlines_of_rings(points: np.ndarray, rings: np.ndarray, shapes: np.ndarray) -> Outlines:
    """Index polygons; see `Outlines` for the arrays."""
    points = np.ascontiguousarray(points, dtype=np.float64)
    rings, shapes = rings.astype(np.int64), shapes.astype(np.int64)
    starts = rings[shapes[:-1]]
    if np.any(starts == rings[shapes[1:]]):
        raise ValueError("a polygon without corners")
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    bounds = np.column_stack([low, high])
    return Outlines(None, points, rings, shapes, bounds, *_index(bounds))


def _index(
    bounds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, tuple[float, float], float, tuple[int, int]]:
    """Cells of about the boxes' mean side: few candidates per cell, few cells per box."""
    if len(bounds) == 0:
        return np.zeros(2, dtype=np.int64), np.zeros(0, dtype=np.int64), (0.0, 0.0), 1.0, (1, 1)
    low, high = bounds[:, :2].min(0), bounds[:, 2:].max(0)
    extent = np.maximum(high - low, 1e-9)
    side = float(np.mean(bounds[:, 2:] - bounds[:, :2]))
    cell = max(side, float(np.sqrt(extent[0] * extent[1] / _MOST_CELLS)), float(extent.max()) / 2**15, 1e-9)
    size = (int(extent[0] // cell) + 1, int(extent[1] // cell) + 1)
    cells, members = _fill_index(bounds, low[0], low[1], cell, size[0], size[1])
    return cells, members, (float(low[0]), float(low[1])), cell, size


@numba.njit(cache=True, nogil=True)
def _fill_index(bounds, x0, y0, cell, columns, rows):  # type: ignore[no-untyped-def]
    starts = np.zeros(columns * rows + 1, dtype=np.int64)
    for step in range(2):
        if step == 1:
            for i in range(len(starts) - 1):
                starts[i + 1] += starts[i]
            members = np.empty(starts[-1], dtype=np.int64)
            filled = starts[:-1].copy()
        for i in range(len(bounds)):
            left, top = int((bounds[i, 0] - x0) // cell), int((bounds[i, 1] - y0) // cell)
            right, bottom = int((bounds[i, 2] - x0) // cell), int((bounds[i, 3] - y0) // cell)
            for r in range(max(top, 0), min(bottom, rows - 1) + 1):
                for c in range(max(left, 0), min(right, columns - 1) + 1):
                    at = r * columns + c
                    if step == 0:
                        starts[at + 1] += 1
                    else:
                        members[filled[at]] = i
                        filled[at] += 1
    return starts, members


@numba.njit(cache=True, nogil=True)
def _crossings_odd(x, y, points, first, last, rings):  # type: ignore[no-untyped-def]
    inside = False
    for r in range(first, last):
        for i in range(rings[r], rings[r + 1] - 1):
            ya, yb = points[i, 1], points[i + 1, 1]
            if (ya > y) != (yb > y):
                xa, xb = points[i, 0], points[i + 1, 0]
                if x < xa + (y - ya) * (xb - xa) / (yb - ya):
                    inside = not inside
    return inside


@numba.njit(cache=True, nogil=True)
def _holds(i, x, y, circles, points, rings, shapes, bounds):  # type: ignore[no-untyped-def]
    if x < bounds[i, 0] or x > bounds[i, 2] or y < bounds[i, 1] or y > bounds[i, 3]:
        return False
    if len(circles):
        dx, dy = x - circles[i, 0], y - circles[i, 1]
        return dx * dx + dy * dy <= circles[i, 2] * circles[i, 2]
    return _crossings_odd(x, y, points, shapes[i], shapes[i + 1], rings)


@numba.njit(cache=True, nogil=True)
def _first(xy, circles, points, rings, shapes, bounds, cells, members, x0, y0, cell, columns, rows):  # type: ignore[no-untyped-def]
    found = np.full(len(xy), -1, dtype=np.int64)
    for p in range(len(xy)):
        x, y = xy[p, 0], xy[p, 1]
        cx, cy = np.floor((x - x0) / cell), np.floor((y - y0) / cell)
        if not (cx >= 0 and cy >= 0 and cx < columns and cy < rows):
            continue
        at = int(cy) * columns + int(cx)
        for k in range(cells[at], cells[at + 1]):
            if _holds(members[k], x, y, circles, points, rings, shapes, bounds):
                found[p] = members[k]
                break
    return found


@numba.njit(cache=True, nogil=True)
def _all(xy, circles, points, rings, shapes, bounds, cells, members, x0, y0, cell, columns, rows):  # type: ignore[no-untyped-def]
    which, region = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for step in range(2):  # count, then fill
        n = 0
        for p in range(len(xy)):
            x, y = xy[p, 0], xy[p, 1]
            cx, cy = np.floor((x - x0) / cell), np.floor((y - y0) / cell)
            if not (cx >= 0 and cy >= 0 and cx < columns and cy < rows):
                continue
            at = int(cy) * columns + int(cx)
            for k in range(cells[at], cells[at + 1]):
                if _holds(members[k], x, y, circles, points, rings, shapes, bounds):
                    if step == 1:
                        which[n], region[n] = p, members[k]
                    n += 1
        if step == 0:
            which, region = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    return which, region


def _arguments(o: Outlines) -> tuple:
    circles = np.zeros((0, 3)) if o.circles is None else o.circles
    return circles, o.points, o.rings, o.shapes, o.bounds, o.cells, o.members, *o.origin, o.cell, *o.size


def first_shape(xy: np.ndarray, outlines: Outlines) -> np.ndarray:
    """Shape that holds each point, the one listed first where several do.

    Parameters
    ----------
    xy
        [m, 2].
    outlines
        The shapes. A polygon holds a point on its left or upper edges, not on the others, so that polygons that share
        an edge share no point; a circle holds its border.

    Returns
    -------
    numpy.ndarray
        [m] int64, -1 where none does.
    """
    return np.asarray(_first(np.ascontiguousarray(xy, dtype=np.float64), *_arguments(outlines)))


def all_shapes(xy: np.ndarray, outlines: Outlines) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a point and a shape that holds it.

    Returns
    -------
    points, shapes : numpy.ndarray
        [k] int64 each, by point, then by shape.
    """
    points, shapes = _all(np.ascontiguousarray(xy, dtype=np.float64), *_arguments(outlines))
    return points, shapes


class Lookup:
    """Position of whole numbers in a list of distinct ones, by table where they are small enough.

    Parameters
    ----------
    values
        [n] distinct, not negative.
    """

    def __init__(self, values: np.ndarray) -> None:
        values = np.asarray(values, dtype=np.int64)
        self._dense: np.ndarray | None = None
        if len(values) and values.max() < _MOST_LABELS:
            self._dense = np.full(int(values.max()) + 1, -1, dtype=np.int32)
            self._dense[values] = np.arange(len(values), dtype=np.int32)
        else:
            self._order = np.argsort(values, kind="stable")
            self._sorted = values[self._order]

    def __call__(self, wanted: np.ndarray) -> np.ndarray:
        """[m] int64 positions, -1 for those not in the list."""
        wanted = np.asarray(wanted, dtype=np.int64)
        if self._dense is not None:
            return np.asarray(_take(self._dense, wanted.ravel())).reshape(wanted.shape)
        if not len(self._sorted):
            return np.full(wanted.shape, -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], -1)


@numba.njit(cache=True, nogil=True)
def _take(table, wanted):  # type: ignore[no-untyped-def]
    found = np.full(len(wanted), -1, dtype=np.int64)
    for i in range(len(wanted)):
        if 0 <= wanted[i] < len(table):
            found[i] = table[wanted[i]]
    return found


def bins(xy: np.ndarray, matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bin of a regular grid that holds each point, bins being half open.

    Parameters
    ----------
    xy
        [m, 2].
    matrix
        [3, 3] projective, from x, y to (column, row).
    shape
        Rows and columns.

    Returns
    -------
    numpy.ndarray
        [m] int64, row * columns + column; -1 outside, and for points without a place.
    """
    return np.asarray(_bins(np.ascontiguousarray(xy, dtype=np.float64), np.asarray(matrix, dtype=np.float64), *shape))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bins(xy, m, rows, columns):  # type: ignore[no-untyped-def]
    found = np.full(len(xy), -1, dtype=np.int64)
    flat = m[2, 0] == 0 and m[2, 1] == 0 and m[2, 2] == 1
    for i in range(len(xy)):
        x, y = xy[i, 0], xy[i, 1]
        c, r = m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2]
        if not flat:
            w = m[2, 0] * x + m[2, 1] * y + m[2, 2]
            c, r = c / w, r / w
        if c >= 0 and r >= 0 and c < columns and r < rows:
            found[i] = int(r) * columns + int(c)
    return found


class Counter:
    """Counts of (region, feature) pairs that come in pieces.

    A piece is summed by a hash table as it comes: rows sorted by place repeat the same pairs, so that it stays in
    the processor's cache and what is kept is near the size of the result. Pieces are put in order once there are many.
    """

    def __init__(self, n_regions: int, n_features: int) -> None:
        self._shape = (n_regions, n_features)
        self._pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._total: sp.csr_matrix | None = None
        self._kept = 0
        self._limit = 1 << 24

    def add(self, regions: np.ndarray, features: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Count pairs; those with a negative region or feature are left out."""
        regions, features = (np.ascontiguousarray(v, dtype=np.int64) for v in (regions, features))
        if weights is None:
            piece = _tally(regions, features, max(1, self._shape[1]), np.zeros(0, dtype=np.int32))
        else:
            piece = _tally(regions, features, max(1, self._shape[1]), np.ascontiguousarray(weights, dtype=np.float64))
        self._pieces.append(piece)
        self._kept += len(piece[0])
        if self._kept > self._limit:
            self._merge()

    def _merge(self) -> None:
        if self._pieces:
            rows, columns, values = (np.concatenate(p) for p in zip(*self._pieces, strict=True))
            found = sp.coo_matrix((values, (rows, columns)), shape=self._shape).tocsr()
            found.sum_duplicates()
            self._total = found if self._total is None else self._total + found
        self._pieces, self._kept = [], 0

    def matrix(self, dtype: type | str = np.int32) -> sp.csr_matrix:
        """[n_regions, n_features] CSR with sorted columns."""
        self._merge()
        found = sp.csr_matrix(self._shape, dtype=dtype) if self._total is None else self._total.astype(dtype)
        found.sort_indices()
        return found


@numba.njit(cache=True, nogil=True)
def _tally(regions, features, n_features, weights):  # type: ignore[no-untyped-def]
    """Distinct pairs by first appearance, int32 each, and their counts (or sums, where there are weights)."""
    bits = 4
    while (1 << bits) < 2 * len(regions):
        bits += 1
    mask = (1 << bits) - 1
    place = np.full(1 << bits, -1, dtype=np.int32)
    rows, columns = np.empty(len(regions), dtype=np.int32), np.empty(len(regions), dtype=np.int32)
    values = np.zeros(len(regions), dtype=weights.dtype)
    n = 0
    for i in range(len(regions)):
        r, c = regions[i], features[i]
        if r < 0 or c < 0:
            continue
        key = np.uint64(r) * np.uint64(n_features) + np.uint64(c)
        at = np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))
        while place[at] >= 0 and not (rows[place[at]] == r and columns[place[at]] == c):
            at = (at + 1) & mask
        k = place[at]
        if k < 0:
            k = n
            place[at], rows[k], columns[k] = k, r, c
            n += 1
        if len(weights):
            values[k] += weights[i]
        else:
            values[k] += 1
    return rows[:n].copy(), columns[:n].copy(), values[:n].copy()


def mean_by_group(values: np.ndarray, rows: np.ndarray, groups: np.ndarray, *, n_groups: int) -> np.ndarray:
    """Mean of rows of a matrix per group.

    Parameters
    ----------
    values
        [v, d].
    rows, groups
        [k] pairs: row `rows[i]` counts once for group `groups[i]`.
    n_groups
        Number of groups.

    Returns
    -------
    numpy.ndarray
        [n_groups, d] float32; NaN for a group without rows. Summed in float64.
    """
    weight = sp.csr_matrix((np.ones(len(rows)), (groups, rows)), shape=(n_groups, len(values)))
    total = weight @ values.astype(np.float64)
    count = np.bincount(groups, minlength=n_groups).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total / count[:, None]).astype(np.float32)


class LabelTable:
    """Area, centre and box of every label of a raster that comes in pieces.

    Labels below 2**26 are counted in a table, larger ones (hashes, as some tools write them) by sorting.
    """

    def __init__(self) -> None:
        self._sums = np.zeros((0, 3))
        self._boxes = np.zeros((0, 4), dtype=np.int64)
        self._large: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, block: np.ndarray, y0: int, x0: int) -> None:
        """Count a piece whose upper left pixel is (y0, x0)."""
        top = int(block.max(initial=0))
        if top >= _MOST_LABELS:
            names, compact = np.unique(block, return_inverse=True)
            compact = compact.reshape(block.shape) + int(names[0] > 0)
            names = names if names[0] == 0 else np.r_[0, names]
            sums, boxes = _no_labels(len(names))
            _count_labels(compact, y0, x0, sums, boxes)
            self._large.append((names[1:].astype(np.int64), sums[1:], boxes[1:]))
            return
        if top >= len(self._sums):
            sums, boxes = _no_labels(max(top + 1, 2 * len(self._sums)))
            sums[: len(self._sums)], boxes[: len(self._boxes)] = self._sums, self._boxes
            self._sums, self._boxes = sums, boxes
        _count_labels(np.ascontiguousarray(block), y0, x0, self._sums, self._boxes)

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Labels present, without 0, in order; their pixels; centres; boxes.

        Returns
        -------
        labels, area : numpy.ndarray
            [n] int64.
        centres : numpy.ndarray
            [n, 2] x, y in px, where the middle of the first pixel is (0.5, 0.5).
        boxes : numpy.ndarray
            [n, 4] y0, x0, y1, x1, ends not included.
        """
        small = np.flatnonzero(self._sums[:, 0] > 0)
        parts = [(small, self._sums[small], self._boxes[small]), *self._large]
        names, sums, boxes = (np.concatenate(p) for p in zip(*parts, strict=True))
        order = np.argsort(names, kind="stable")
        names, sums, boxes = names[order], sums[order], boxes[order]
        if len(names):
            starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
            names, sums = names[starts], np.add.reduceat(sums, starts)
            low, high = np.minimum.reduceat(boxes[:, :2], starts), np.maximum.reduceat(boxes[:, 2:], starts)
            boxes = np.column_stack([low, high])
        return names, sums[:, 0].astype(np.int64), sums[:, 1:] / sums[:, :1] + 0.5, boxes


def _no_labels(n: int) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.empty((n, 4), dtype=np.int64)
    boxes[:] = (np.iinfo(np.int64).max, np.iinfo(np.int64).max, -1, -1)
    return np.zeros((n, 3)), boxes


@numba.njit(cache=True, nogil=True)
def _count_labels(block, y0, x0, sums, boxes):  # type: ignore[no-untyped-def]
    for y in range(block.shape[0]):
        for x in range(block.shape[1]):
            v = block[y, x]
            if v > 0:
                sums[v, 0] += 1
                sums[v, 1] += x0 + x
                sums[v, 2] += y0 + y
                boxes[v, 0] = min(boxes[v, 0], y0 + y)
                boxes[v, 1] = min(boxes[v, 1], x0 + x)
                boxes[v, 2] = max(boxes[v, 2], y0 + y + 1)
                boxes[v, 3] = max(boxes[v, 3], x0 + x + 1)


def label_runs(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of equal labels along the rows of a raster, without 0.

    Returns
    -------
    labels : numpy.ndarray
        [k].
    runs : numpy.ndarray
        [k, 3] int64: y, x0, x1, end not included.
    """
    w = block.shape[1]
    flat = block.ravel()
    change = np.ones(flat.size, dtype=bool)
    change[1:] = flat[1:] != flat[:-1]
    change[::w] = True
    starts = np.flatnonzero(change)
    stops = np.r_[starts[1:], flat.size]
    keep = flat[starts] != 0
    starts, stops = starts[keep], stops[keep]
    y = starts // w
    return flat[starts], np.column_stack([y, starts - y * w, stops - y * w]).astype(np.int64)
