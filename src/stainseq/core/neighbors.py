"""Neighbour graphs inside each section, sparse, and means over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from ..errors import InputError
from .splits import _coordinates, slide_codes

_TIE = 1e-6  # relative: a lattice's equal distances differ in their last digits


def knn_graph(
    coordinates: np.ndarray, *, k: int, slides: np.ndarray | None = None, workers: int = 1
) -> sparse.csr_array:
    """Each row's k nearest rows of its own section.

    Parameters
    ----------
    coordinates
        [n, 2] x, y in um.
    k
        Neighbours, the row itself not counted. **All** rows as near as the k-th are taken, so that on a lattice the
        graph does not depend on the order of rows; a row may therefore have a few more.
    slides
        [n] section of each row; None is one section.
    workers
        Threads of the search; the result does not depend on it.

    Returns
    -------
    float32 CSR [n, n] of ones, not symmetric. Rows of a section with fewer than k others have fewer.
    """
    coordinates = _coordinates(coordinates)
    if k < 1:
        raise InputError(f"k is {k}", where="knn_graph", fix="ask for at least one neighbour")
    heads, tails = [], []
    for rows in _sections(slides, len(coordinates)):
        if len(rows) > 1:
            i, j = _nearest(coordinates[rows], min(k, len(rows) - 1), workers)
            heads.append(rows[i])
            tails.append(rows[j])
    return _ones(heads, tails, len(coordinates))


def _nearest(points: np.ndarray, k: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
    tree, n = cKDTree(points), len(points)
    ask = min(n, k + 9)  # itself, and room for the ties of a square or hexagonal lattice
    distance, index = tree.query(points, k=ask, workers=workers)
    others = index != np.arange(n)[:, None]
    # Where many rows share one place, the row itself may not be among those found: drop the farthest instead.
    lost = others.all(axis=1)
    others[lost, -1] = False
    ranked = np.sort(np.where(others, distance, np.inf), axis=1)
    limit = ranked[:, k - 1] * (1 + _TIE)
    take = others & (distance <= limit[:, None])
    head = np.repeat(np.arange(n), take.sum(axis=1))
    tail = index[take]
    overfull = np.flatnonzero((distance[:, -1] <= limit) & (ask < n))
    if len(overfull) == 0:
        return head, tail
    keep = ~np.isin(head, overfull)
    more = tree.query_ball_point(points[overfull], limit[overfull], workers=workers)
    i = np.repeat(overfull, [len(m) for m in more])
    j = np.concatenate([np.asarray(m, dtype=np.int64) for m in more])
    other = i != j
    return np.concatenate([head[keep], i[other]]), np.concatenate([tail[keep], j[other]])


def radius_graph(coordinates: np.ndarray, *, radius_um: float, slides: np.ndarray | None = None) -> sparse.csr_array:
    """All rows of the same section within a radius, the row itself not counted.

    Parameters
    ----------
    coordinates
        [n, 2] x, y in um.
    radius_um
        Rows at most this far (1e-6 of it tolerated) are neighbours.
    slides
        [n] section of each row; None is one section.

    Returns
    -------
    float32 CSR [n, n] of ones, symmetric.
    """
    coordinates = _coordinates(coordinates)
    if not radius_um > 0:
        raise InputError(f"radius_um is {radius_um}", where="radius_graph", fix="give a positive length in um")
    heads, tails = [], []
    for rows in _sections(slides, len(coordinates)):
        pairs = cKDTree(coordinates[rows]).query_pairs(radius_um * (1 + _TIE), output_type="ndarray")
        heads += [rows[pairs[:, 0]], rows[pairs[:, 1]]]
        tails += [rows[pairs[:, 1]], rows[pairs[:, 0]]]
    return _ones(heads, tails, len(coordinates))


def neighbour_mean(graph: Any, values: np.ndarray, *, empty: str = "self") -> np.ndarray:
    """Mean of the neighbours' values.

    Parameters
    ----------
    graph
        [n, n] sparse, non-negative weights; rows need not be normalised.
    values
        [n, d].
    empty
        What a row without neighbours gets: "self" (its own values: nothing is known beyond it) or "zero".

    Returns
    -------
    [n, d] in the dtype of `values` (at least float32).
    """
    values = np.asarray(values)
    dtype = np.result_type(values.dtype, np.float32)
    weight = np.asarray(graph.sum(axis=1), dtype=np.float64).ravel()
    scale = np.divide(1.0, weight, out=np.zeros_like(weight), where=weight > 0)
    out = ((sparse.diags_array(scale) @ graph).astype(dtype) @ values).astype(dtype, copy=False)
    if empty == "self":
        out[weight == 0] = values[weight == 0]
    return out


def _sections(slides: np.ndarray | None, n: int) -> list[np.ndarray]:
    codes = slide_codes(slides, n)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]) if n else []


def _ones(heads: list[np.ndarray], tails: list[np.ndarray], n: int) -> sparse.csr_array:
    i = np.concatenate(heads) if heads else np.zeros(0, dtype=np.int64)
    j = np.concatenate(tails) if tails else np.zeros(0, dtype=np.int64)
    graph = sparse.coo_array((np.ones(len(i), dtype=np.float32), (i, j)), shape=(n, n)).tocsr()
    graph.sort_indices()
    return graph
