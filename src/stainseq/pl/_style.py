"""How figures look: one typeface, thin lines, colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEQUENTIAL = "viridis"
INK = "#222222"
MUTED = "#777777"
MISSING = "#d9d9d9"

CATEGORICAL = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#882255",
    "#44AA99", "#332288", "#999933", "#AA4499", "#117733", "#DDCC77", "#88CCEE", "#661100",
)  # fmt: skip
"""Okabe and Ito's colours, then Tol's muted ones."""

_FAMILIES = ("Arial", "Helvetica", "Liberation Sans", "DejaVu Sans")


@lru_cache(maxsize=1)
def _family() -> str:
    from matplotlib import font_manager

    there = set(font_manager.get_font_names())
    return next((f for f in _FAMILIES if f in there), "DejaVu Sans")


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for what is drawn inside; nothing global is left changed."""
    import matplotlib as mpl

    settings: Any = {
        "font.family": [_family()],
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "axes.titlepad": 4,
        "axes.linewidth": 0.6,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "legend.frameon": False,
        "legend.fontsize": 7,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "image.interpolation": "antialiased",
        "svg.hashsalt": "stainseq",
        "figure.constrained_layout.w_pad": 0.03,
        "figure.constrained_layout.h_pad": 0.03,
    }
    with mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure outside pyplot, so that nothing has to be closed and no display is asked for.

    Parameters
    ----------
    width, height
        Inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_colour_map(name: str) -> None:
    """Refuse a name that matplotlib does not know."""
    import difflib

    import matplotlib as mpl

    if name not in mpl.colormaps:
        near = difflib.get_close_matches(name, list(mpl.colormaps), n=3)
        raise InputError(f"no colour map {name!r}", fix=f"such as {', '.join(near or ['viridis', 'magma', 'cividis'])}")


def palette(n: int) -> list[str]:
    """Colours of n categories; beyond 16 evenly spaced in hue at two lightnesses.

    Parameters
    ----------
    n
        Categories.
    """
    if n <= len(CATEGORICAL):
        return list(CATEGORICAL[:n])
    from matplotlib.colors import hsv_to_rgb, to_hex

    hue = np.arange(n) * 0.61803398875 % 1.0  # golden ratio: neighbours in the list are far apart
    light = np.where(np.arange(n) % 2, 0.6, 0.9)
    return [to_hex(tuple(hsv_to_rgb((h, 0.75, v)))) for h, v in zip(hue, light, strict=True)]
