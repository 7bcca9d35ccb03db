"""The pieces of a map: picture below, regions above, scale bar, colour bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RASTER_ABOVE = 2_000
"""More regions than this become pixels inside vector files, which else open slowly."""

PAINT_ABOVE = 20_000
"""More regions than this are painted as pixels: drawing each as a path takes seconds per 100,000."""

LEGEND_ROWS, LEGEND_UP_TO = 14, 41
"""Entries of a legend in a column, and in all: more categories than this cannot be told by colour anyway."""

_SAMPLES = 2
"""Points a pixel and axis at which it is asked which region lies there: edges come out smooth."""

_POINTS_AT_ONCE = 2_000_000

Box = tuple[float, float, float, float]


@dataclass
class Marks:
    """Regions to be drawn, in microns.

    Parameters
    ----------
    xy
        float64 [n, 2] centres.
    radius
        float64 [n], um; of the circle, or of a circle as large as the region.
    polygons
        object [n] of shapely polygons; or a function that gives those of some rows (an index), for regions whose
        outlines have to be made first; or None for circles.
    region
        The opened region (`regions.Region`), rows as here, which tells what lies under a pixel.
    paint
        Paint them however few they are.
    """

    xy: np.ndarray
    radius: np.ndarray
    polygons: np.ndarray | Callable[[np.ndarray], np.ndarray] | None = None
    region: Any = None
    paint: bool = False

    def inside(self, box: Box) -> np.ndarray:
        """Which of them touch a box."""
        if isinstance(self.polygons, np.ndarray):
            import shapely

            low_x, low_y, high_x, high_y = shapely.bounds(self.polygons).T
            return (high_x > box[0]) & (low_x < box[2]) & (high_y > box[1]) & (low_y < box[3])
        x, y = self.xy.T
        r = self.radius
        return (x + r > box[0]) & (x - r < box[2]) & (y + r > box[1]) & (y - r < box[3])

    def take(self, which: np.ndarray) -> Marks:
        """Some of them."""
        if which.all():
            return self
        index, polygons = np.flatnonzero(which), self.polygons
        if callable(polygons):
            make = polygons
            taken: Any = lambda rows: make(index[rows])  # noqa: E731
        else:
            taken = None if polygons is None else polygons[index]
        region = None if self.region is None else self.region.take(index)
        return Marks(self.xy[index], self.radius[index], taken, region, self.paint)


def frame(ax: Axes, box: Box) -> None:
    """Axes of a map: equal scales, y down, nothing around."""
    ax.set_xlim(box[0], box[2])
    ax.set_ylim(box[3], box[1])
    ax.set_aspect("equal")
    ax.set_axis_off()


def picture(ax: Axes, rgb: np.ndarray, box: Box, *, alpha: float) -> None:
    """The image below; lightened towards white, so that nothing shines through from below in print."""
    if alpha < 1:
        rgb = (255 - alpha * (255 - rgb.astype(np.float32))).astype(np.uint8)
    ax.imshow(rgb, extent=(box[0], box[2], box[3], box[1]), interpolation="antialiased", zorder=0, aspect="equal")


def regions(
    ax: Axes, marks: Marks, colours: np.ndarray, box: Box, *, edge: str | None = None, longest_px: int = 700
) -> None:
    """Fill regions with one colour each.

    Parameters
    ----------
    ax
        Axes of the map.
    marks
        The regions, those inside the box alone.
    colours
        float [n, 4] RGBA.
    box
        What the axes show, um.
    edge
        Outline colour; then regions are not filled.
    longest_px
        Pixels of the map's longer side, where regions are painted. Finer ones would be lost at print size.
    """
    from matplotlib.collections import EllipseCollection

    n = len(marks.xy)
    if n == 0:
        return
    if n > PAINT_ABOVE or marks.paint:
        rgba = _painted(marks, colours, box, longest_px, edge)
        ax.imshow(rgba, extent=(box[0], box[2], box[3], box[1]), interpolation="antialiased", zorder=1, aspect="equal")
        return
    style: dict[str, Any] = {"rasterized": n > RASTER_ABOVE, "zorder": 1}
    style |= {"facecolors": "none", "edgecolors": edge, "linewidths": 0.7} if edge else {
        "facecolors": colours, "edgecolors": "none", "linewidths": 0}  # fmt: skip
    if marks.polygons is not None:
        polygons = marks.polygons(np.arange(n)) if callable(marks.polygons) else marks.polygons
        ax.add_collection(_outlines(polygons, style), autolim=False)
    else:
        wide = 2 * marks.radius
        circles = EllipseCollection(
            wide, wide, np.zeros(n), units="xy", offsets=marks.xy, offset_transform=ax.transData, **style
        )
        ax.add_collection(circles, autolim=False)


def _outlines(polygons: np.ndarray, style: dict[str, Any]) -> Any:
    """Polygons with their holes and parts; without any, as matplotlib draws them fastest."""
    import shapely
    from matplotlib.collections import PathCollection, PolyCollection
    from matplotlib.path import Path

    parts, of = shapely.get_parts(shapely.orient_polygons(polygons), return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    owner = of[part]
    points, ring = shapely.get_coordinates(rings, return_index=True)
    starts = np.searchsorted(ring, np.arange(len(rings) + 1))
    if np.array_equal(owner, np.arange(len(polygons))):
        return PolyCollection(np.split(points, starts[1:-1]), **style)
    codes = np.full(len(points), Path.LINETO, dtype=np.uint8)
    codes[starts[:-1]], codes[starts[1:] - 1] = Path.MOVETO, Path.CLOSEPOLY
    bounds = starts[np.searchsorted(owner, np.arange(len(polygons) + 1))]
    paths = [Path(points[a:b], codes[a:b]) for a, b in pairwise(bounds)]
    return PathCollection(paths, **style)


def _painted(marks: Marks, colours: np.ndarray, box: Box, longest: int, edge: str | None) -> np.ndarray:
    """RGBA image of many regions: by their true outlines where these are wider than a pixel, else as discs."""
    from matplotlib.colors import to_rgba

    um_per_px = max(box[2] - box[0], box[3] - box[1]) / longest
    true = marks.region is not None and np.median(marks.radius) > 0.5 * um_per_px
    if edge is not None:
        colours = np.tile(to_rgba(edge), (len(marks.xy), 1))
    if true:
        return paint_outlines(marks.region, colours, box, longest, hollow=edge is not None)
    return paint(marks.xy, marks.radius, colours, box, longest)


def paint_outlines(region: Any, colours: np.ndarray, box: Box, longest: int, *, hollow: bool = False) -> np.ndarray:
    """Paint many regions in their true outlines into an RGBA image.

    Each pixel is asked at four points which region lies there, and takes the mean of their colours.

    Parameters
    ----------
    region
        Whose ``geometry.assign`` tells which row lies under a point (`regions.Region`).
    colours
        [n, 4] RGBA, 0 to 1, of its rows.
    box
        What the image shows, um.
    longest
        Pixels of its longer side.
    hollow
        Paint the borders alone: pixels in which two regions, or a region and none, meet.

    Returns
    -------
    array
        float32 [h, w, 4].
    """
    w, h, um = _pixels(box, longest)
    x = box[0] + (np.arange(w * _SAMPLES) + 0.5) * um / _SAMPLES
    y = box[1] + (np.arange(h * _SAMPLES) + 0.5) * um / _SAMPLES
    palette = np.vstack([colours[:, :3], np.zeros(3)]).astype(np.float32)
    out = np.zeros((h, w, 4), dtype=np.float32)
    rows = max(1, _POINTS_AT_ONCE // (w * _SAMPLES**2))
    for top in range(0, h, rows):
        part = y[top * _SAMPLES : (top + rows) * _SAMPLES]
        points = np.stack(np.broadcast_arrays(x[None, :], part[:, None]), axis=-1).reshape(-1, 2)
        who = region.geometry.assign(points).reshape(-1, _SAMPLES, w, _SAMPLES)
        if hollow:
            who = np.where((who == who[:, :1, :, :1]).all((1, 3), keepdims=True), -1, who)
        covered = (who >= 0).sum((1, 3))
        total = palette[who].sum((1, 3))
        out[top : top + rows, :, :3] = total / np.maximum(covered, 1)[..., None]
        out[top : top + rows, :, 3] = covered / _SAMPLES**2
    return out


def _pixels(box: Box, longest: int) -> tuple[int, int, float]:
    """Width and height of a painted map, and microns per pixel."""
    um = max(box[2] - box[0], box[3] - box[1]) / longest
    return max(1, round((box[2] - box[0]) / um)), max(1, round((box[3] - box[1]) / um)), um


def paint(xy: np.ndarray, radius: np.ndarray, colours: np.ndarray, box: Box, longest: int) -> np.ndarray:
    """Paint many small discs into an RGBA image.

    A pixel has the mean colour of the regions whose disc covers it: with hundreds of thousands of cells several share
    a pixel, and whichever was drawn last would hide the others.

    Parameters
    ----------
    xy, radius
        Centres [n, 2] and radii [n], um.
    colours
        [n, 4] RGBA, 0 to 1.
    box
        What the image shows, um.
    longest
        Pixels of its longer side.

    Returns
    -------
    array
        float32 [h, w, 4].
    """
    w, h, um = _pixels(box, longest)
    col = np.floor((xy[:, 0] - box[0]) / um).astype(np.int64)
    row = np.floor((xy[:, 1] - box[1]) / um).astype(np.int64)
    reach = int(np.clip(np.median(radius) / um, 0, 12))
    total = np.zeros((h * w, 4))
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dx * dx + dy * dy > (reach + 0.5) ** 2:
                continue
            r, c = row + dy, col + dx
            ok = (r >= 0) & (r < h) & (c >= 0) & (c < w)
            at = r[ok] * w + c[ok]
            for channel in range(3):
                total[:, channel] += np.bincount(at, weights=colours[ok, channel], minlength=h * w)
            total[:, 3] += np.bincount(at, minlength=h * w)
    covered = total[:, 3] > 0
    out = np.zeros((h * w, 4), dtype=np.float32)
    out[covered, :3] = total[covered, :3] / total[covered, 3:]
    out[covered, 3] = 1
    return out.reshape(h, w, 4)


def scale_bar(ax: Axes, box: Box) -> None:
    """A bar of a round length, about a fifth of the width, just below the map."""
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    length = round_length((box[2] - box[0]) / 5)
    bar = AnchoredSizeBar(
        ax.transData,
        length,
        length_label(length),
        loc="upper left",
        bbox_to_anchor=(0.0, -0.01),
        bbox_transform=ax.transAxes,
        pad=0,
        borderpad=0,
        sep=2,
        frameon=False,
        size_vertical=(box[3] - box[1]) * 0.006,
        color=_style.INK,
        fill_bar=True,
        fontproperties=_small(),
    )
    ax.add_artist(bar)


def _small() -> Any:
    import matplotlib as mpl
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=mpl.rcParams["font.family"], size=7)


def round_length(about: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten.

    Parameters
    ----------
    about
        Length aimed at, um.
    """
    power = 10.0 ** np.floor(np.log10(about))
    steps = np.array([1, 2, 5, 10]) * power
    return float(steps[np.abs(np.log(steps / about)).argmin()])


def length_label(um: float) -> str:
    """Length in um, or mm from 1,000 um on."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def limits(values: Sequence[np.ndarray], quantiles: tuple[float, float]) -> tuple[float, float, str]:
    """Range of a colour bar over all values given, and which ends are clipped (matplotlib's ``extend``).

    Parameters
    ----------
    values
        Arrays that share the bar; NaN is left out.
    quantiles
        Lower and upper share, such as .01 and .99.
    """
    joined = np.concatenate([np.asarray(v, dtype=float).ravel() for v in values])
    joined = joined[np.isfinite(joined)]
    if not len(joined):
        return 0.0, 1.0, "neither"
    low, high = np.quantile(joined, quantiles)
    if high <= low:
        low, high = joined.min(), joined.max()
    if high <= low:
        high = low + 1
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    return float(low), float(high), ends[bool(joined.min() < low), bool(joined.max() > high)]


def colour_bar(
    ax: Axes,
    low: float,
    high: float,
    *,
    cmap: str,
    label: str,
    extend: str,
    title: str | None = None,
    italic: bool = False,
) -> None:
    """A slim bar beside a panel; it hangs on the panel, so that bars and legends of several rows stand in line.

    Parameters
    ----------
    ax
        The panel, or the last of those that share the bar.
    low, high
        Its range.
    cmap
        Colour map.
    label
        Unit, along the bar.
    extend
        Which ends are clipped, as `limits` says.
    title
        Above it.
    italic
        The title is a gene.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    tall = abs(ax.get_ylim()[1] - ax.get_ylim()[0]) / abs(ax.get_xlim()[1] - ax.get_xlim()[0])
    where = ax.inset_axes((1.03, 0.16, 0.035, 0.68))
    bar = ax.figure.colorbar(
        ScalarMappable(Normalize(low, high), cmap=cmap), cax=where, extend=extend, extendfrac=0.04, ticks=MaxNLocator(4)
    )
    bar.set_label(label if tall > 0.7 else label.replace(" per ", "\nper "), labelpad=3, fontsize=7)
    bar.outline.set_visible(False)
    if title is not None:
        where.set_title(title, fontsize=8, loc="left", pad=7, style="italic" if italic else "normal")


def legend(ax: Axes, entries: Sequence[tuple[str, str]], *, title: str | None = None) -> None:
    """Names and their colours, beside a panel.

    Parameters
    ----------
    ax
        The panel.
    entries
        Name and colour of each.
    title
        Above them.
    """
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 5, "markeredgewidth": 0}
    handles = [Line2D([], [], color=colour, label=name, **style) for name, colour in entries[:LEGEND_UP_TO]]
    if len(entries) > LEGEND_UP_TO:
        handles.append(Line2D([], [], linestyle="", label=f"and {len(entries) - LEGEND_UP_TO} more"))
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2,
        handletextpad=0.1,
        labelspacing=0.3,
        columnspacing=0.8,
        ncols=legend_columns(len(handles)),
        title=title,
        title_fontsize=7,
        alignment="left",
    )


def legend_columns(n: int) -> int:
    """Columns of a legend with so many entries."""
    return 1 + (min(n, LEGEND_UP_TO + 1) - 1) // LEGEND_ROWS


def shade(values: np.ndarray, low: float, high: float, cmap: str) -> np.ndarray:
    """RGBA of values; grey where they are missing."""
    import matplotlib as mpl
    from matplotlib.colors import to_rgba

    scaled = (np.asarray(values, dtype=float) - low) / (high - low)
    colours = np.asarray(mpl.colormaps[cmap](np.clip(np.nan_to_num(scaled), 0, 1)))
    colours[~np.isfinite(scaled)] = to_rgba(_style.MISSING)
    return colours
