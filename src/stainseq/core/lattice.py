"""The array that spots lie on: square or hexagonal, from array indices or from coordinates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from ..errors import InputError
from .splits import _coordinates

_HEXAGON = (np.sqrt(3) / 2, 0.5)


class Lattice(NamedTuple):
    """Where each row sits in a small image.

    Parameters
    ----------
    row, col
        int64 [n], from 0. On a hexagonal array columns are half steps, so that every second node is empty.
    shape
        (rows, columns) of the image.
    step
        Distance between image rows and between image columns, in units of the pitch (centre to centre of nearest
        spots): (1, 1) square, (0.866, 0.5) hexagonal.
    """

    row: np.ndarray
    col: np.ndarray
    shape: tuple[int, int]
    step: tuple[float, float]


def from_array(array_row: np.ndarray, array_col: np.ndarray) -> Lattice:
    """Lattice of array indices, as in Space Ranger's positions file or the x, y of an ST array.

    Parameters
    ----------
    array_row, array_col
        [n] numbers; ST's are rounded (they may be fitted, like 10.02). Hexagonal arrays (Visium: every second column
        of a row) are recognised by row + column being always even or always odd over several rows.
    """
    row = np.rint(np.asarray(array_row, dtype=np.float64)).astype(np.int64)
    col = np.rint(np.asarray(array_col, dtype=np.float64)).astype(np.int64)
    if row.shape != col.shape or row.ndim != 1:
        raise InputError("array rows and columns are not two lists of one length", where="lattice")
    parity = (row + col) % 2
    hexagonal = len(row) > 2 and bool((parity == parity[0]).all()) and len(np.unique(row)) > 1
    return _placed(row, col, _HEXAGON if hexagonal else (1.0, 1.0))


def from_coordinates(coordinates: np.ndarray) -> Lattice:
    """Lattice fitted to positions, for arrays whose indices are not known.

    Pitch, rotation and kind (square or hexagonal) come from the differences between nearest neighbours, then grid
    indices and an affine map are fitted in turns until the indices stay. Positions that lie on no array (single cells)
    get a square lattice of about the mean spacing, on which several rows may share a node.

    Parameters
    ----------
    coordinates
        [n, 2] x, y in any unit, one section.
    """
    coordinates = _coordinates(coordinates)
    n = len(coordinates)
    if n < 4:
        order = np.arange(n, dtype=np.int64)
        return _placed(np.zeros(n, dtype=np.int64), order, (1.0, 1.0))
    distance, index = cKDTree(coordinates).query(coordinates, k=min(n, 7))
    pitch = _pitch(distance[:, 1])
    near = (distance > 0) & (distance < 1.25 * pitch)
    steps = (coordinates[index] - coordinates[:, None])[near]
    # A square array has a fourfold, a hexagonal one a sixfold, set of directions: the longer mean vector wins.
    angles = np.arctan2(steps[:, 1], steps[:, 0])
    four, six = np.exp(4j * angles).mean(), np.exp(6j * angles).mean()
    hexagonal = abs(six) > abs(four)
    turn = np.angle(six) / 6 if hexagonal else np.angle(four) / 4
    unit = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    plane = (coordinates - coordinates.mean(axis=0)) @ unit.T / pitch
    step = _HEXAGON if hexagonal else (1.0, 1.0)
    row, col = _indices(plane, step, near_steps=steps @ unit.T / pitch)
    return _placed(row, col, step)


def _pitch(nearest: np.ndarray) -> float:
    positive = nearest[nearest > 0]
    if len(positive) == 0:
        raise InputError("all rows are at one place", where="coordinates", fix="give spatial coordinates")
    return float(np.median(positive))


def _indices(plane: np.ndarray, step: tuple[float, float], *, near_steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grid indices of positions in pitch units, by fitting an affine map and rounding in turns."""
    # Start from the middle outwards: a small error of the pitch does not add up before it has been corrected.
    along = np.abs(near_steps[:, 0]) > 0.75
    across = np.abs(near_steps[:, 1]) > 0.75
    scale_x = np.median(np.abs(near_steps[along, 0])) if along.any() else 1.0
    scale_y = np.median(np.abs(near_steps[across, 1])) / (step[0] if step[0] < 1 else 1.0) if across.any() else 1.0
    scaled = plane / [scale_x, scale_y]
    centre = np.argmin((scaled**2).sum(axis=1))
    grid = (scaled - scaled[centre]) / [step[1], step[0]]
    radius = np.abs(grid).max(axis=1)
    last: np.ndarray | None = None
    for reach in (6, 12, 25, 50, 100, 1000, np.inf, np.inf, np.inf):
        nodes = _round(grid, step)
        if reach == np.inf and last is not None and np.array_equal(nodes, last):
            break
        last = nodes
        inside = radius <= max(reach, 6)
        if inside.sum() < 6 or np.ptp(nodes[inside], axis=0).min() == 0:
            continue
        design = np.column_stack([nodes[inside], np.ones(inside.sum())])
        fit = np.linalg.lstsq(design, grid[inside], rcond=None)[0]
        if abs(np.linalg.det(fit[:2])) < 0.5:
            continue
        grid = (grid - fit[2]) @ np.linalg.inv(fit[:2])
    nodes = _round(grid, step)
    return nodes[:, 1], nodes[:, 0]


def _round(grid: np.ndarray, step: tuple[float, float]) -> np.ndarray:
    if step == (1.0, 1.0):
        return np.rint(grid).astype(np.int64)
    row = np.rint(grid[:, 1])
    odd = row % 2
    col = 2 * np.rint((grid[:, 0] - odd) / 2) + odd
    return np.column_stack([col, row]).astype(np.int64)


def _placed(row: np.ndarray, col: np.ndarray, step: tuple[float, float]) -> Lattice:
    if len(row) == 0:
        return Lattice(row, col, (0, 0), step)
    row, col = row - row.min(), col - col.min()
    return Lattice(row, col, (int(row.max()) + 1, int(col.max()) + 1), (float(step[0]), float(step[1])))
