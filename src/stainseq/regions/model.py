"""What a region is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

Box = tuple[float, float, float, float]
"""min_x, min_y, max_x, max_y in microns."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the regions lie; one class per kind.

    All take and give points in microns and positions in the region's order.
    """

    def assign(self, xy_um: np.ndarray) -> np.ndarray:
        """[m] int64: region that holds each point, -1 for none, the first listed where several do."""
        raise NotImplementedError

    def members(self, xy_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All pairs (point, region) of a point and a region that holds it."""
        regions = self.assign(xy_um)
        points = np.flatnonzero(regions >= 0)
        return points, regions[points]

    def take(self, index: np.ndarray) -> Geometry:
        """The geometry of some regions, in the order given."""
        raise NotImplementedError

    def spacing_um(self) -> float:
        """Distance of sample points that finds a typical region several times."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Region:
    """An id table with one geometry: shapes, labels or a grid.

    Parameters
    ----------
    name
        Name of the element.
    kind
        "shapes", "labels" or "grid".
    centres_um
        [n, 2] float64 x, y in microns.
    geometry
        Where the regions lie.
    load_ids
        Gives the ids when they are first asked for: a grid of 5 million bins is often used without.
    """

    name: str
    kind: Literal["shapes", "labels", "grid"]
    centres_um: np.ndarray
    geometry: Geometry
    load_ids: Callable[[], Any]

    @cached_property
    def ids(self) -> np.ndarray:
        """[n] object array of str: the source's ids, unchanged."""
        return np.asarray(self.load_ids(), dtype=object)

    @cached_property
    def instances(self) -> np.ndarray:
        """[n] what links a table's rows to the element: int64 labels for labels, else the ids."""
        labels = getattr(self.geometry, "labels", None)
        return self.ids if labels is None else labels

    def __len__(self) -> int:
        return len(self.centres_um)

    def take(self, index: np.ndarray) -> Region:
        """Some of the regions, in the order given.

        Parameters
        ----------
        index
            [k] positions, or [n] bool.
        """
        index = np.flatnonzero(index) if np.asarray(index).dtype == bool else np.asarray(index, dtype=np.int64)
        return Region(self.name, self.kind, self.centres_um[index], self.geometry.take(index), lambda: self.ids[index])

    def within(self, box_um: Box) -> np.ndarray:
        """[k] positions of the regions whose centre lies in a box; its lower borders count, its upper do not.

        Boxes that share borders thus share no region, and tiles that cover a slide own each region once.
        """
        x, y = self.centres_um[:, 0], self.centres_um[:, 1]
        first, last = np.searchsorted(self._sorted_x, [box_um[0], box_um[2]], side="left")
        near = self._by_x[first:last]
        inside = (y[near] >= box_um[1]) & (y[near] < box_um[3]) & (x[near] < box_um[2])
        return np.sort(near[inside])

    @cached_property
    def _by_x(self) -> np.ndarray:
        return np.argsort(self.centres_um[:, 0], kind="stable")

    @cached_property
    def _sorted_x(self) -> np.ndarray:
        return self.centres_um[self._by_x, 0]
