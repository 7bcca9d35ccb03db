"""Values of a regular grid as an image: one pixel a bin or finer, turned as the grid is, never polygons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from . import _draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PX = 2400
_FEWEST_PX = 700


@dataclass(frozen=True)
class Raster:
    """Where the bins of a grid lie on the pixels of a map.

    Parameters
    ----------
    rows, cols
        int [n], places of the bins.
    shape
        Rows and columns of the part of the grid that they span, beginning at `first`.
    first
        Row and column of its first bin.
    transform
        [3, 3] from (column, row) to um.
    box
        What the map shows, um.
    size
        Width and height of the map in pixels.
    """

    rows: np.ndarray
    cols: np.ndarray
    shape: tuple[int, int]
    first: tuple[int, int]
    transform: np.ndarray
    box: _draw.Box
    size: tuple[int, int]

    def paint(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values on the map's pixels, and the share of each that bins cover, float32 [h, w].

        Where bins are finer than pixels, a pixel has the mean of those below it. NaN is no value.
        """
        import cv2

        known = np.isfinite(values)
        canvas: np.ndarray = np.zeros((*self.shape, 2), dtype=np.float32)
        canvas[self.rows - self.first[0], self.cols - self.first[1], 0] = np.where(known, values, 0)
        canvas[self.rows - self.first[0], self.cols - self.first[1], 1] = known
        to_bins = self._to_bins()
        fold = max(1, int(np.sqrt(abs(np.linalg.det(to_bins[:2, :2])))))
        if fold > 1:
            high, wide = (-(-s // fold) * fold for s in self.shape)
            canvas = np.pad(canvas, ((0, high - self.shape[0]), (0, wide - self.shape[1]), (0, 0)))
            canvas = cv2.resize(canvas, (wide // fold, high // fold), interpolation=cv2.INTER_AREA)
        # From the centre of a pixel to the bin below it; OpenCV counts from pixel centres on both sides.
        half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
        shrink = np.diag([1 / fold, 1 / fold, 1.0])
        warp = np.linalg.inv(half) @ shrink @ to_bins @ half
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        painted = np.asarray(cv2.warpPerspective(canvas, warp, self.size, flags=flags))
        share = painted[..., 1]
        return np.divide(painted[..., 0], share, out=np.full_like(share, np.nan), where=share > 0), share

    def _to_bins(self) -> np.ndarray:
        """[3, 3] from pixels of the map to (column, row) counted from `first`."""
        # Sides are rounded to pixels, so that these are not quite square in a narrow map.
        x, y = ((self.box[i + 2] - self.box[i]) / self.size[i] for i in (0, 1))
        to_um = np.array([[x, 0, self.box[0]], [0, y, self.box[1]], [0, 0, 1.0]])
        shift = np.array([[1, 0, -self.first[1]], [0, 1, -self.first[0]], [0, 0, 1.0]])
        return shift @ np.linalg.inv(self.transform) @ to_um


def raster(region: Any, box: _draw.Box | None = None) -> Raster:
    """A map of the bins of a region.

    Parameters
    ----------
    region
        An opened grid (`regions.get`).
    box
        What the map shows, um; default the bins with a small margin.

    Raises
    ------
    InputError
        No grid, or an empty one.
    """
    if region.kind != "grid" or not len(region):
        what = "is empty" if region.kind == "grid" else "is no grid"
        raise InputError(f"{region.name!r} {what}", fix="draw other regions with `stainseq plot` or pl.spatial")
    grid = region.geometry
    first = (int(grid.rows.min()), int(grid.cols.min()))
    shape = (int(grid.rows.max()) - first[0] + 1, int(grid.cols.max()) - first[1] + 1)
    pitch = grid.pitch_um()
    if box is None:
        low, high = region.centres_um.min(0) - pitch, region.centres_um.max(0) + pitch
        margin = 0.01 * float((high - low).max())
        box = (low[0] - margin, low[1] - margin, high[0] + margin, high[1] + margin)
    wide, tall = box[2] - box[0], box[3] - box[1]
    longest = int(np.clip(max(wide, tall) / pitch, _FEWEST_PX, _MOST_PX))
    um = max(wide, tall) / longest
    size = (max(1, round(wide / um)), max(1, round(tall / um)))
    return Raster(grid.rows, grid.cols, shape, first, np.asarray(grid.transform), box, size)


def show(
    ax: Axes,
    place: Raster,
    values: np.ndarray,
    *,
    low: float,
    high: float,
    cmap: str,
    opacity: float = 1.0,
) -> None:
    """Draw values on a map; outside of the bins it stays as it is.

    Parameters
    ----------
    ax
        Axes of the map.
    place
        Where the bins lie.
    values
        float [n]; NaN is not drawn.
    low, high
        Values at the ends of the colour map; beyond them it is clipped.
    cmap
        Colour map.
    opacity
        Of the bins, 0 to 1, over a picture.
    """
    painted, share = place.paint(values)
    rgba = _draw.shade(painted, low, high, cmap).astype(np.float32)
    rgba[..., 3] = np.where(share > 0, share, 0) * opacity
    _image(ax, place, rgba)


def show_classes(ax: Axes, place: Raster, codes: np.ndarray, colours: list[str], *, opacity: float = 1.0) -> None:
    """Draw classes on a map.

    Parameters
    ----------
    ax, place, opacity
        See `show`.
    codes
        int [n] positions in `colours`; below 0 is not drawn.
    colours
        Of the classes.
    """
    from matplotlib.colors import to_rgb

    total = np.zeros((place.size[1], place.size[0], 4), dtype=np.float32)
    for k, colour in enumerate(colours):
        share = place.paint(np.where(codes == k, 1.0, np.where(codes >= 0, 0.0, np.nan)))
        part = np.nan_to_num(share[0]) * share[1]
        total[..., :3] += part[..., None] * np.array(to_rgb(colour), dtype=np.float32)
        total[..., 3] += part
    covered = total[..., 3:] > 0
    total[..., :3] = np.where(covered, total[..., :3] / np.maximum(total[..., 3:], 1e-6), 1.0)
    total[..., 3] *= opacity
    _image(ax, place, total)


def _image(ax: Axes, place: Raster, rgba: np.ndarray) -> None:
    box = place.box
    ax.imshow(
        np.clip(rgba, 0, 1),
        extent=(box[0], box[2], box[3], box[1]),
        interpolation="antialiased",
        interpolation_stage="rgba",
        zorder=1,
        aspect="equal",
    )
