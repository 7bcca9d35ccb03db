"""How well an image lies on what it was registered to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

_MAX_PX = 1600
_MAX_POINTS = 50_000


def alignment(
    sdata: SpatialData,
    landmarks: Sequence[dict[str, Any]] = (),
    *,
    image_key: str = keys.HE,
) -> Figure:
    """The image as it lies in microns, under the landmarks and the measured regions.

    Parameters
    ----------
    sdata
        The slide.
    landmarks
        What `pp.align` returns under "landmarks": a ring where the landmark belongs, a line to where the image puts it
        (ten times as long as it is off), red where it was left out.
    image_key
        The image.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import cv2

    from .. import image, regions
    from ..core import registration
    from . import _draw, _style

    opened = image.open_image(sdata, image_key)
    thumb, mpp = image.level_thumbnail(opened, max_px=_MAX_PX)
    height, width = opened.shape
    frame = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)
    corners = registration.apply(opened.to_um, frame)
    low, high = corners.min(axis=0), corners.max(axis=0)
    step = float((high - low).max()) / _MAX_PX
    to_canvas = np.array([[1 / step, 0, -low[0] / step], [0, 1 / step, -low[1] / step], [0, 0, 1]])
    shrink = np.diag([mpp / opened.mpp, mpp / opened.mpp, 1.0])
    size = tuple(int(s) for s in np.ceil((high - low) / step))
    canvas = cv2.warpPerspective(thumb, to_canvas @ opened.to_um @ shrink, size, borderValue=(255, 255, 255))
    with _style.style():
        figure = _style.new_figure(6.0, 6.0 * size[1] / size[0])
        axes = figure.add_subplot()
        box = (low[0], low[1], high[0], high[1])
        _draw.picture(axes, canvas, box, alpha=1.0)
        _draw.frame(axes, box)
        points = regions.measured_um(sdata)
        if points is not None:
            x, y = points[:: max(1, len(points) // _MAX_POINTS)].T
            axes.scatter(x, y, s=2, color=_style.palette(1)[0], linewidths=0, rasterized=True)
        for row in landmarks:
            _landmark(axes, row, opened.to_um)
        _draw.scale_bar(axes, box)
    return figure


def _landmark(axes: Any, row: dict[str, Any], to_um: np.ndarray) -> None:
    from ..core import registration

    goal = np.array([row["x_um"], row["y_um"]])
    mapped = registration.apply(to_um, np.array([[row["x_px"], row["y_px"]]]))[0]
    colour = "black" if row["used"] else "#d62728"
    axes.plot(*goal, "o", markersize=7, fillstyle="none", color=colour, markeredgewidth=1.2)
    axes.plot(*np.column_stack([goal, goal + 10 * (mapped - goal)]), color=colour, linewidth=1)
    off = f"{row['residual_um']:.1f}"
    axes.annotate(f"{row['name']}: {off} um", goal, xytext=(5, 5), textcoords="offset points", fontsize=6, color=colour)
