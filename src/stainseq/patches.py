"""Patches of a slide as arrays: their pixels at a stated resolution, and the nuclei in them.

Data sets, scores of a segmentation and figures of both read patches here, so that pixels and masks lie on each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from . import image, keys, regions, store
from .core import aggregate, raster
from .errors import InputError, MissingError
from .image import LevelStack, read_square_px

if TYPE_CHECKING:
    from spatialdata import SpatialData


@dataclass(frozen=True, eq=False)
class Patches:
    """Square windows on one lattice over a slide.

    Parameters
    ----------
    ids
        [n] names, as in every file that is written of them.
    corners
        int64 [n, 2], (x, y) of the upper left pixel, in pixels of `mpp`.
    size_px
        Side.
    mpp
        Microns per pixel of the patches, whatever the slide's.
    image
        The slide's picture.
    """

    ids: np.ndarray
    corners: np.ndarray
    size_px: int
    mpp: float
    image: LevelStack

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def factor(self) -> float:
        """Pixels of the slide per pixel of a patch."""
        return self.mpp / self.image.mpp

    def pixels(self, index: int) -> np.ndarray:
        """uint8 [size, size, 3] of one patch; along the picture's axes."""
        centre = (self.corners[index] + self.size_px / 2) * self.factor
        return read_square_px(self.image, centre, size_px=self.size_px, factor=self.factor)

    def to_px(self, xy_um: np.ndarray) -> np.ndarray:
        """Microns to pixels of the patches' lattice (x, y), in which pixel i covers [i, i + 1)."""
        return self.image.to_px(xy_um) / self.factor


@dataclass(frozen=True, eq=False)
class Nuclei:
    """Outlines of a slide's nuclei (or cells) in pixels of its patches.

    Parameters
    ----------
    ids
        [n] ids of the region, in its order.
    outlines
        Polygons; pixel centres lie at whole numbers, as the rasteriser wants them.
    centres
        float [n, 2], in pixels of which i covers [i, i + 1).
    """

    ids: np.ndarray
    outlines: aggregate.Outlines
    centres: np.ndarray

    @cached_property
    def values(self) -> np.ndarray:
        """uint32 [n], 1 + position in `ids`: what stands for a nucleus in a label image."""
        return np.arange(1, len(self.ids) + 1, dtype=np.uint32)

    def masks(
        self,
        patches: Patches,
        chosen: slice | np.ndarray,
        out: np.ndarray | None = None,
        shown: np.ndarray | None = None,
    ) -> np.ndarray:
        """Label images of some patches.

        Parameters
        ----------
        patches
            All patches.
        chosen
            Which of them.
        out
            uint32 [>= k, size, size] to draw in.
        shown
            bool [n], nuclei that are drawn; None: all. The others hide nothing.

        Returns
        -------
        uint32 [k, size, size], 1 + position in `ids`; 0 is background. Every nucleus is shown as far as it reaches into
        a patch; where two overlap, the later one lies above.
        """
        corners = patches.corners[chosen].astype(np.float64)
        shape = (patches.size_px, patches.size_px)
        starts, members = raster.touching(self.outlines, corners, shape)
        if shown is not None:
            kept = shown[members]
            starts = np.concatenate([[0], np.cumsum(kept)])[starts]
            members = members[kept]
        return raster.rasters(
            self.outlines, self.values, corners=corners, starts=starts, members=members, shape=shape, out=out
        )


def load(sdata: SpatialData, *, patches: str = keys.PATCHES) -> Patches:
    """Open the patches of a slide.

    Parameters
    ----------
    sdata
        The slide.
    patches
        Their shapes element, made by `pp.patches`.

    Raises
    ------
    MissingError
        There are none.
    InputError
        Shapes that something else has made.
    """
    if patches not in sdata.shapes:
        raise MissingError(f"no patches {patches!r}", where=sdata.path, fix="run `stainseq patches` first")
    stamp = store.stamp_of(sdata, patches) or {}
    if stamp.get("step") != "patches":
        raise InputError(f"shapes {patches!r} are no patches", where=sdata.path, fix="run `stainseq patches`")
    frame, made = sdata.shapes[patches], stamp["parameters"]
    return Patches(
        frame.index.astype(str).to_numpy(),
        frame[["x_px", "y_px"]].to_numpy(dtype=np.int64),
        int(made["size_px"]),
        float(made["mpp"]),
        image.open_registered(sdata, made["image_key"]),
    )


def nuclei(sdata: SpatialData, patches: Patches, *, region: str = keys.NUCLEI) -> Nuclei:
    """Outlines of a region, laid onto patches.

    Parameters
    ----------
    sdata
        The slide.
    patches
        From `load`.
    region
        Polygons.

    Raises
    ------
    InputError
        The region has no outlines (spots, grids, label images).
    """
    where = regions.get(sdata, region)
    found: Any = where.geometry
    if where.kind != "shapes" or found.outlines.circles is not None:
        raise InputError(
            f"region {region!r} has no outlines", where=sdata.path, fix="name polygons, such as nuclei or cells"
        )
    held = found.outlines
    points = patches.to_px(held.points) - 0.5  # the rasteriser's pixel centres lie at whole numbers
    outlines = aggregate.outlines_of_rings(points, held.rings, held.shapes)
    return Nuclei(where.ids, outlines, patches.to_px(where.centres_um))
