"""Polygons from tables of vertices, one row a vertex, all at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import FormatError


def polygons(keys: list[np.ndarray], x: np.ndarray, y: np.ndarray, *, where: object) -> tuple[np.ndarray, Any]:
    """Polygons in the order of their first vertices.

    Parameters
    ----------
    keys
        Columns that tell polygons apart, each [vertices].
    x, y
        float [vertices], in order around each polygon; the first may be repeated at the end.
    where
        File that messages name.

    Returns
    -------
    tuple
        int64 [polygons], row of each polygon's first vertex; and object [polygons] of shapely polygons.

    Raises
    ------
    FormatError
        A coordinate is missing, or a polygon has fewer than three vertices.
    """
    import shapely

    if len(x) == 0:
        return np.zeros(0, dtype=np.int64), np.empty(0, dtype=object)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        bad = int((~(np.isfinite(x) & np.isfinite(y))).sum())
        raise FormatError(f"{bad} vertices without a place", where=where, fix="write the file again")
    order = np.arange(len(x))
    starts = _starts(keys)
    if len(starts) > _distinct(keys):
        # Rows of one polygon are not together: bring them together, in the order of the polygons' first vertices.
        number = _numbers(keys)
        order = np.argsort(number, kind="stable")
        starts = np.flatnonzero(np.diff(number[order], prepend=-1))
    ends = np.r_[starts[1:], len(x)]
    if (ends - starts).min() < 3:
        short = order[starts[np.argmin(ends - starts)]]
        name = ", ".join(str(k[short]) for k in keys)
        raise FormatError(f"a polygon of fewer than three vertices ({name})", where=where, fix="write the file again")
    owner = np.repeat(np.arange(len(starts)), ends - starts)
    rings = shapely.linearrings(np.column_stack([x[order], y[order]]), indices=owner)
    return order[starts], shapely.polygons(rings)


def _starts(keys: list[np.ndarray]) -> np.ndarray:
    """Rows that differ from the row before."""
    change = np.zeros(len(keys[0]), dtype=bool)
    change[0] = True
    for key in keys:
        change[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(change)


def _numbers(keys: list[np.ndarray]) -> np.ndarray:
    """int64 [rows], a number per distinct key, by first appearance."""
    import pandas as pd

    codes = np.zeros(len(keys[0]), dtype=np.int64)
    for key in keys:
        part, names = pd.factorize(key)
        codes = codes * (len(names) + 1) + part
    return np.asarray(pd.factorize(codes)[0], dtype=np.int64)


def _distinct(keys: list[np.ndarray]) -> int:
    return int(_numbers(keys).max()) + 1
