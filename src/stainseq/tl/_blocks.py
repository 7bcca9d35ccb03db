"""Predictions of a slide block by block: in memory is a block of regions, never all regions by all genes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from .._progress import progress

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ..regions import Region

COVERAGE = "coverage"
_SAMPLES = 4
"""Points along a region's side by which its share inside the picture is found."""

State = dict[str, np.ndarray]


@dataclass
class Work:
    """A head that is to predict.

    Parameters
    ----------
    head
        Name of the head.
    full, folds
        State of the head fitted on everything, and without each fold.
    X
        [m, d] features; may be a Dask array.
    rows
        int64 [n], rows of X that are predicted, ascending.
    options
        That the head was fitted with.
    """

    head: str
    full: State
    folds: list[State]
    X: Any
    rows: np.ndarray
    options: dict[str, Any]

    @cached_property
    def plugin(self) -> Any:
        """The head's module."""
        from .. import registry

        return registry.load("heads", self.head)

    def state(self, fold: int) -> State:
        """State for a fold; -1 is the full model."""
        return self.full if fold < 0 else self.folds[fold]

    def features(self, at: np.ndarray) -> np.ndarray:
        """Features of some of the rows (positions in `rows`), float32."""
        rows = self.rows[at]
        if not hasattr(self.X, "dask"):
            return np.asarray(self.X[rows], dtype=np.float32)
        low, high = int(rows[0]), int(rows[-1]) + 1
        piece = np.asarray(
            self.X[low:high], dtype=np.float32
        )  # one read of neighbouring chunks, then a choice in memory
        return piece if len(rows) == high - low else piece[rows - low]


def fill(
    out: dict[str, Any],
    works: Sequence[Work],
    layers: Sequence[tuple[str, str | None]],
    *,
    of_fold: np.ndarray,
    coordinates: np.ndarray,
) -> None:
    """Predict every region with the model that may, and write mean and spread.

    Parameters
    ----------
    out
        Matrices by name, see `store.stream_table`.
    works
        What predicts.
    layers
        For each of them, where its mean goes, and its spread (None: nowhere).
    of_fold
        int64 [n], which state predicts a region; -1 the full one.
    coordinates
        float64 [n, 2] um.
    """
    from ..store.matrices import row_blocks

    n, genes = out[layers[0][0]].shape
    pending: Future[None] | None = None
    whole = [_whole(w, of_fold, coordinates) for w in works]
    # While one block is compressed and written, the next is computed.
    with progress("predict", n) as advance, ThreadPoolExecutor(1) as pool:
        for block in row_blocks(n, genes):
            made: dict[str, np.ndarray] = {}
            for work, known, (mean, spread) in zip(works, whole, layers, strict=True):
                found = _block(work, block, of_fold, coordinates) if known is None else tuple(a[block] for a in known)
                made[mean] = found[0]
                if spread is not None:
                    made[spread] = found[1]
            if pending is not None:
                pending.result()
            pending = pool.submit(_put, out, block, made)
            advance(block.stop - block.start)
        if pending is not None:
            pending.result()


def _put(out: dict[str, Any], block: slice, made: dict[str, np.ndarray]) -> None:
    for name, values in made.items():
        out[name][block] = values


def _block(work: Work, block: slice, of_fold: np.ndarray, coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of a block of regions, each by its fold's state."""
    around = _around(work, block, coordinates)
    X, where = work.features(around), coordinates[around]
    slides = np.zeros(len(around), dtype=np.int64)
    own = np.searchsorted(around, np.arange(block.start, block.stop))
    neighbours = len(around) > len(own)
    mean = spread = np.empty((0, 0), dtype=np.float32)
    for k, mine in _groups(of_fold[block]):
        take = slice(None) if neighbours or len(mine) == len(own) else mine
        m, s = work.plugin.predict(work.state(k), X[take], coordinates=where[take], slides=slides[take])
        if len(mine) == len(own) == len(m):
            return m, s
        if not mean.size:
            mean, spread = (np.empty((len(own), m.shape[1]), dtype=np.float32) for _ in range(2))
        from_rows = own[mine] if neighbours else slice(None)
        mean[mine], spread[mine] = m[from_rows], s[from_rows]
    return mean, spread


def _groups(of_fold: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for k in np.unique(of_fold):
        yield int(k), np.flatnonzero(of_fold == k)


def _around(work: Work, block: slice, coordinates: np.ndarray) -> np.ndarray:
    """Rows of a block, with those that may be neighbours of its regions where the head looks at them; ascending."""
    reach = work.options.get("context_um")
    k = work.options.get("context_k")
    if reach is None and k is None:
        return np.arange(block.start, block.stop)
    mine = coordinates[block]
    if reach is None:
        from scipy.spatial import cKDTree

        most = min(int(k or 0) + 1, len(coordinates))
        reach = float(np.max(cKDTree(coordinates).query(mine, k=[most])[0]))
    margin = 1.001 * float(reach)
    low, high = mine.min(axis=0) - margin, mine.max(axis=0) + margin
    return np.flatnonzero(((coordinates >= low) & (coordinates <= high)).all(axis=1))


def _whole(work: Work, of_fold: np.ndarray, coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Heads that standardise each slide by all of its regions predict it at once, in memory."""
    if not work.options.get("per_slide"):
        return None
    X, slides = work.features(np.arange(len(of_fold))), np.zeros(len(of_fold), dtype=np.int64)
    mean = spread = np.empty((0, 0), dtype=np.float32)
    for k, mine in _groups(of_fold):
        m, s = work.plugin.predict(work.state(k), X, coordinates=coordinates, slides=slides)
        if not mean.size:
            mean, spread = np.empty_like(m), np.empty_like(s)
        mean[mine], spread[mine] = m[mine], s[mine]
    return mean, spread


def coverage(sdata: SpatialData, where: Region, image_key: str = keys.HE) -> np.ndarray:
    """Share of each region that lies inside the picture, by 16 points in it.

    Parameters
    ----------
    sdata
        The slide.
    where
        The regions; those that are no bins of a grid count as the square of their spacing around their centre.
    image_key
        The picture.

    Returns
    -------
    numpy.ndarray
        float32 [n].
    """
    from .. import image
    from ..core import registration

    opened = image.open_image(sdata, image_key)
    height, width = opened.shape
    at = registration.apply(opened.from_um, where.centres_um)
    # Only regions near the border are looked at point by point.
    side_um = 8 * where.geometry.spacing_um()
    side = side_um / opened.mpp
    margin = np.minimum(at, np.array([width, height]) - at).min(axis=1)
    out = (margin > side).astype(np.float32)
    near = np.flatnonzero(out == 0)
    fine = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    for y in fine:
        for x in fine:
            px = registration.apply(opened.from_um, _inside(where, near, x, y, side_um))
            out[near] += ((px >= 0) & (px < (width, height))).all(axis=1) / _SAMPLES**2
    return out


def _inside(where: Region, rows: np.ndarray, x: float, y: float, side_um: float) -> np.ndarray:
    """The point at a share of the way along the sides of some regions, um."""
    from ..core import registration

    geometry: Any = where.geometry
    if where.kind == "grid":
        bins = np.column_stack([geometry.cols[rows] + x, geometry.rows[rows] + y])
        return registration.apply(geometry.transform, bins)
    return where.centres_um[rows] + side_um * (np.array([x, y]) - 0.5)
