"""Train, valid and test: groups dealt to sets by shares, and the pixels that sets of patches share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from ..errors import InputError
from .splits import row_hash


def deal(sizes: np.ndarray, shares: Sequence[float], *, names: np.ndarray, seed: int = 0) -> np.ndarray:
    """Set of each group, so that sizes come near to the shares and no set is empty.

    The largest group first, each to the set that lacks most; where groups are as few as empty sets, to these alone.

    Parameters
    ----------
    sizes
        [n] rows (patches) of each group.
    shares
        Of each set, all above 0; in sum 1.
    names
        [n] of the groups; with the seed they decide between groups of equal size, whatever their order.
    seed
        Another seed, another choice.

    Returns
    -------
    int32 [n], numbers of the sets.

    Raises
    ------
    InputError
        Fewer groups than sets.
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    if len(sizes) < len(shares):
        raise InputError(f"{len(sizes)} groups cannot make {len(shares)} sets", where="groups", fix="make more of them")
    target = np.asarray(shares, dtype=np.float64) * sizes.sum()
    load, taken = np.zeros(len(shares)), np.zeros(len(shares), dtype=np.int64)
    assigned = np.empty(len(sizes), dtype=np.int32)
    order = np.lexsort((row_hash(np.asarray(names), seed=seed), -sizes))
    for position, group in enumerate(order):
        lack = target - load
        if len(order) - position <= (taken == 0).sum():
            lack[taken > 0] = -np.inf
        chosen = int(np.argmax(lack))
        assigned[group] = chosen
        load[chosen] += sizes[group]
        taken[chosen] += 1
    return assigned


def apart(corners: np.ndarray, sets: np.ndarray, *, size: float, gap: float, order: Sequence[int]) -> np.ndarray:
    """Which squares stay when those of different sets must be apart.

    Parameters
    ----------
    corners
        [n, 2] of squares of one side.
    sets
        int [n].
    size
        Side.
    gap
        Least distance between squares of different sets, along x or y; 0: they do not overlap.
    order
        Sets in the order of precedence: the squares of a later one give way.

    Returns
    -------
    bool [n]
    """
    corners = np.asarray(corners, dtype=np.float64)
    kept = np.zeros(len(corners), dtype=bool)
    for number in order:
        mine = np.flatnonzero(sets == number)
        others = corners[kept]
        if len(others) and len(mine):
            distance, _ = cKDTree(others).query(corners[mine], p=np.inf)
            mine = mine[distance >= size + gap]
        kept[mine] = True
    return kept


def shared_area(first: np.ndarray, second: np.ndarray, *, size: int) -> tuple[int, int, int]:
    """Pixels under squares of one list, of another, and under both; each pixel counts once.

    Parameters
    ----------
    first, second
        int [n, 2] corners (x, y) of squares of one side.
    size
        Side.
    """
    every = np.concatenate([first, second]).astype(np.int64)
    if not len(every):
        return 0, 0, 0
    # All that can differ lies between the squares' edges: a raster of these, however large the slide.
    edges = [np.unique(np.concatenate([every[:, a], every[:, a] + size])) for a in (0, 1)]
    area = np.diff(edges[1])[:, None] * np.diff(edges[0])[None]
    covers = [_covered(np.asarray(c, dtype=np.int64), edges, size) for c in (first, second)]
    return int(area[covers[0]].sum()), int(area[covers[1]].sum()), int(area[covers[0] & covers[1]].sum())


def _covered(corners: np.ndarray, edges: list[np.ndarray], size: int) -> np.ndarray:
    steps = np.zeros((len(edges[1]), len(edges[0])), dtype=np.int32)
    low = [np.searchsorted(edges[a], corners[:, a]) for a in (0, 1)]
    high = [np.searchsorted(edges[a], corners[:, a] + size) for a in (0, 1)]
    for y, x, sign in (
        (low[1], low[0], 1), (low[1], high[0], -1), (high[1], low[0], -1), (high[1], high[0], 1)
    ):  # fmt: skip
        np.add.at(steps, (y, x), sign)
    return np.cumsum(np.cumsum(steps, axis=0), axis=1)[:-1, :-1] > 0
