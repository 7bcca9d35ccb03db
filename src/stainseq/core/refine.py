"""Smoothing of labels over their spatial neighbours, never losing a label."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from ..errors import InputError
from .splits import _coordinates, slide_codes

LAYOUTS = {"hexagon": 6, "square": 4, "free": 10}
"""Neighbours looked at in each layout. Ten of free points: about the first ring of cells and a half more, because a
ring of irregular points is noisier than one of an array."""

_TIE = 1e-6  # of the spacing: equal distances of a lattice differ in their last digits
_BLOCK_ROWS = 65536


def refine(
    labels: np.ndarray,
    coordinates: np.ndarray,
    *,
    layout: str = "hexagon",
    n_neighbors: int | None = None,
    samples: np.ndarray | None = None,
) -> np.ndarray:
    """Give a row the label of its neighbourhood where that clearly differs.

    Among a row and its k nearest (k = 6 on a hexagonal, 4 on a square array), a label held by more than k/2 replaces
    the row's own if fewer than k/2 hold the latter. All rows are judged by the labels given, not by those already
    changed. A label that would vanish keeps all its rows, so that as many domains come out as went in.

    Parameters
    ----------
    labels
        int [n].
    coordinates
        [n, 2] x, y in any unit.
    layout
        "hexagon" (Visium), "square" (ST, bins) or "free" (cells); sets the number of neighbours.
    n_neighbors
        Another number of neighbours than the layout's.
    samples
        [n] sample of each row; neighbours are of the same sample. None is one sample.

    Returns
    -------
    array
        int32 [n]. It does not depend on the order of rows: of equally near neighbours the one first by (y, x) counts.

    Notes
    -----
    J. Hu et al., SpaGCN, Nature Methods 18, 1342 (2021), whose rule this is but for the last clause.
    """
    coordinates = _coordinates(coordinates)
    labels = np.asarray(labels)
    if labels.shape != (len(coordinates),):
        raise InputError(f"labels have shape {labels.shape} for {len(coordinates)} rows", where="refine")
    if layout not in LAYOUTS:
        raise InputError(f"no layout named {layout!r}", where="refine", fix=f"one of: {', '.join(LAYOUTS)}")
    k = LAYOUTS[layout] if n_neighbors is None else int(n_neighbors)
    if k < 1:
        raise InputError(f"n_neighbors is {k}", where="refine", fix="give at least 1")
    names, own = np.unique(labels, return_inverse=True)
    changed = own.copy()
    codes = slide_codes(samples, len(labels))
    for sample in np.unique(codes):
        rows = np.flatnonzero(codes == sample)
        changed[rows] = _majority(own[rows], coordinates[rows], k, len(names))
    while len(lost := np.setdiff1d(np.arange(len(names)), changed)):
        back = np.isin(own, lost)
        changed[back] = own[back]
    return names[changed].astype(np.int32)


def nearest(coordinates: np.ndarray, k: int) -> np.ndarray:
    """The k nearest rows of each row, itself first; of equally near ones those first by (y, x).

    Parameters
    ----------
    coordinates
        [n, 2].
    k
        Neighbours beside the row itself; cut to n - 1.

    Returns
    -------
    array
        int64 [n, k + 1] row numbers, nearest first.
    """
    n = len(coordinates)
    k = min(k, n - 1)
    rank = np.empty(n, dtype=np.int64)
    order = np.lexsort((coordinates[:, 0], coordinates[:, 1]))
    rank[order] = np.arange(n)
    placed = coordinates[order]
    tree = cKDTree(placed)
    if k == 0:
        return np.arange(n)[:, None]
    found = np.empty((n, k + 1), dtype=np.int64)
    unit = float(tree.query(placed[:: max(1, n // 1000)], k=2)[0][:, 1].max()) or 1.0
    for start in range(0, n, _BLOCK_ROWS):
        rows = np.arange(start, min(n, start + _BLOCK_ROWS))
        # Room for the rings of a lattice that tie with the last.
        distance, index = tree.query(placed[rows], k=min(n, k + 13), workers=-1)
        level = np.rint(distance / (unit * _TIE))
        level[index == rows[:, None]] = -1
        by = np.lexsort((index, level), axis=1)[:, : k + 1]
        found[rows] = np.take_along_axis(index, by, axis=1)
        # Where many rows share one place the row itself may not be among those found.
        found[rows, 0] = rows
    out = np.empty_like(found)
    out[order] = order[found]
    return out


def _majority(own: np.ndarray, coordinates: np.ndarray, k: int, n_labels: int) -> np.ndarray:
    if len(own) < 2:
        return own
    around = own[nearest(coordinates, k)]
    n = len(own)
    best, most = own.copy(), np.zeros(n, dtype=np.int64)
    for label in range(n_labels):
        count = (around == label).sum(axis=1)
        better = count > most
        best[better], most[better] = label, count[better]
    held = (around == own[:, None]).sum(axis=1)
    return np.where((held < k / 2) & (most > k / 2), best, own)
