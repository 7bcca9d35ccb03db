"""Windows over a raster: pyramids, tiling with a halo, square and hexagonal lattices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


def halve(image: np.ndarray) -> np.ndarray:
    """2 x 2 mean of a raster.

    Parameters
    ----------
    image
        [..., h, w], any number type. An odd last row or column is left out.

    Returns
    -------
    numpy.ndarray
        [..., h // 2, w // 2], same type; whole numbers are rounded half up.
    """
    h, w = image.shape[-2] // 2 * 2, image.shape[-1] // 2 * 2
    image = image[..., :h, :w]
    if image.dtype.kind == "f":
        total = image[..., ::2, ::2] + image[..., 1::2, ::2] + image[..., ::2, 1::2] + image[..., 1::2, 1::2]
        return np.ascontiguousarray(total * image.dtype.type(0.25))
    if image.dtype == np.uint8:
        import cv2

        planes = image.reshape(-1, h, w)
        half = [cv2.resize(np.ascontiguousarray(p), (w // 2, h // 2), interpolation=cv2.INTER_AREA) for p in planes]
        return np.stack(half).reshape(*image.shape[:-2], h // 2, w // 2)
    wide = image.astype(np.int64)
    total = wide[..., ::2, ::2] + wide[..., 1::2, ::2] + wide[..., ::2, 1::2] + wide[..., 1::2, 1::2]
    return ((total + 2) >> 2).astype(image.dtype)


def morton(x: np.ndarray, y: np.ndarray, *, cell: float) -> np.ndarray:
    """Place of points along a Morton (Z) curve of square cells.

    Parameters
    ----------
    x, y
        [n] finite coordinates.
    cell
        Side of a cell, in the same unit; 2**30 cells to either side of zero are told apart.

    Returns
    -------
    numpy.ndarray
        [n] uint64. Shifting it right by 2 k bits gives the code of the enclosing square of 2**k cells, and the
        codes of all points in a square are consecutive.
    """
    half = 2.0**30
    ix, iy = (np.clip(np.floor(np.asarray(v, dtype=np.float64) / cell) + half, 0, 2 * half - 1) for v in (x, y))
    return _spread(ix.astype(np.uint64)) | (_spread(iy.astype(np.uint64)) << np.uint64(1))


def _spread(v: np.ndarray) -> np.ndarray:
    """Put a zero bit before each of the lower 32 bits."""
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        v = (v | (v << np.uint64(shift))) & np.uint64(mask)
    return v


@dataclass(frozen=True)
class Tile:
    """One unit of reading: what it owns and what is read for it.

    Parameters
    ----------
    row, col
        Its place among the tiles.
    base
        y0, y1, x0, x1 of what it owns; the bases of all tiles cover the raster once.
    crop
        The same with the halo, cut at the raster's border: what is read.
    """

    row: int
    col: int
    base: tuple[int, int, int, int]
    crop: tuple[int, int, int, int]


def tiles(shape: tuple[int, int], *, size: int, halo: int = 0) -> Iterator[Tile]:
    """Tiles that cover a raster, row by row.

    Parameters
    ----------
    shape
        Height and width, in px.
    size
        Side of a base, in px; the last ones are cut at the border.
    halo
        Px read on each side beyond the base.
    """
    height, width = shape
    for row, y0 in enumerate(range(0, height, size)):
        y1 = min(y0 + size, height)
        for col, x0 in enumerate(range(0, width, size)):
            x1 = min(x0 + size, width)
            crop = (max(y0 - halo, 0), min(y1 + halo, height), max(x0 - halo, 0), min(x1 + halo, width))
            yield Tile(row, col, (y0, y1, x0, x1), crop)


def owner(xy: np.ndarray, *, size: float, shape: tuple[int, int]) -> np.ndarray:
    """Tile that owns each point, so that what lies in several halos is counted once.

    Parameters
    ----------
    xy
        [n, 2] in the unit of `size`.
    size
        Side of a base.
    shape
        Rows and columns of tiles; points beyond the border belong to the nearest tile.

    Returns
    -------
    numpy.ndarray
        [n] int64, row * columns + column. A point on the line between two tiles belongs to the later one.
    """
    col = np.clip(np.floor(xy[:, 0] / size), 0, shape[1] - 1).astype(np.int64)
    row = np.clip(np.floor(xy[:, 1] / size), 0, shape[0] - 1).astype(np.int64)
    return row * shape[1] + col


def square_lattice(box: tuple[float, float, float, float], *, pitch: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of squares that start at the upper left corner of a box and lie in it wholly.

    Parameters
    ----------
    box
        min_x, min_y, max_x, max_y.
    pitch
        Side of a square.

    Returns
    -------
    centres : numpy.ndarray
        [n, 2] x, y, row by row.
    places : numpy.ndarray
        [n, 2] int64 row, column.
    """
    cols = int(np.floor((box[2] - box[0]) / pitch + 1e-9))
    rows = int(np.floor((box[3] - box[1]) / pitch + 1e-9))
    row, col = (v.ravel() for v in np.mgrid[: max(rows, 0), : max(cols, 0)])
    centres = np.stack([box[0] + (col + 0.5) * pitch, box[1] + (row + 0.5) * pitch], axis=1)
    return centres, np.stack([row, col], axis=1).astype(np.int64)


def hexagon_lattice(box: tuple[float, float, float, float], *, pitch: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of a hexagonal lattice whose rows run along x, as on a Visium slide.

    Parameters
    ----------
    box
        min_x, min_y, max_x, max_y; all centres lie in it, the first at its upper left corner.
    pitch
        Distance of neighbouring centres; rows are pitch * sqrt(3) / 2 apart, odd ones shifted by pitch / 2.

    Returns
    -------
    centres : numpy.ndarray
        [n, 2] x, y, row by row.
    places : numpy.ndarray
        [n, 2] int64 row, column; column counts half pitches (Visium's array_col), so that neighbours in a row
        differ by 2.
    """
    height = pitch * np.sqrt(3) / 2
    rows = int(np.floor((box[3] - box[1]) / height + 1e-9)) + 1
    halves = int(np.floor((box[2] - box[0]) / (pitch / 2) + 1e-9)) + 1
    row, col = (v.ravel() for v in np.mgrid[: max(rows, 0), : max(halves, 0)])
    keep = (row + col) % 2 == 0
    row, col = row[keep], col[keep]
    centres = np.stack([box[0] + col * pitch / 2, box[1] + row * height], axis=1)
    return centres, np.stack([row, col], axis=1).astype(np.int64)


def project(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Apply a projective transformation.

    Parameters
    ----------
    matrix
        [3, 3].
    xy
        [..., 2].

    Returns
    -------
    numpy.ndarray
        [..., 2] float64.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    xy = np.asarray(xy, dtype=np.float64)
    x, y = xy[..., 0], xy[..., 1]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # NaN and infinity stay what they are
        out = np.stack([m[0] * x + m[1] * y + m[2] for m in matrix[:2]], axis=-1)
        if np.any(matrix[2] != (0.0, 0.0, 1.0)):
            out /= (matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2])[..., None]
    return out


def bin_corners(rows: np.ndarray, cols: np.ndarray, *, transform: np.ndarray) -> np.ndarray:
    """Corners of bins of a regular grid.

    Parameters
    ----------
    rows, cols
        [n] whole numbers.
    transform
        [3, 3] projective, from (column, row) to x, y; bin (r, c) covers [c, c + 1] x [r, r + 1].

    Returns
    -------
    numpy.ndarray
        [n, 4, 2] x, y, in order around the bin.
    """
    col, row = np.asarray(cols, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    corners = np.stack([np.stack([col + dx, row + dy], axis=-1) for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1))], axis=1)
    return project(transform, corners)
