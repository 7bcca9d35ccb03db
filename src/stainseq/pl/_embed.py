"""Figures and tables as the report's template takes them."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Picture:
    """A figure inside the page.

    Parameters
    ----------
    alt
        What is to be seen, for those who cannot see it.
    caption
        Text below.
    src
        Data URI; or
    svg
        the drawing itself.
    width, height
        Pixels, from which browsers take the shape before the picture is decoded.
    """

    alt: str
    caption: str = ""
    src: str = ""
    svg: str = ""
    width: int = 0
    height: int = 0


@dataclass
class Cell:
    """One value of a table: shown as text, sorted by value."""

    text: str
    value: float | None = None
    small: str = ""


@dataclass
class Row:
    """One row of a table."""

    cells: list[Cell]
    strong: bool = False


@dataclass
class Table:
    """A table of the page."""

    columns: list[str]
    rows: list[Row] = field(default_factory=list)
    sortable: bool = False
    narrow: bool = False


def raster(figure: Figure, *, alt: str, caption: str = "", dpi: int = 250) -> Picture:
    """A figure with photographs in it, as WebP: a tenth of the bytes of PNG at no loss to the eye."""
    from PIL import Image

    buffer = io.BytesIO()
    with _style.style():
        figure.savefig(
            buffer,
            format="webp",
            dpi=dpi,
            bbox_inches="tight",
            pad_inches=0.03,
            pil_kwargs={"quality": 86, "method": 2},
        )
    with Image.open(buffer) as image:
        width, height = image.size
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(alt, caption, src=f"data:image/webp;base64,{data}", width=width, height=height)


def vector(figure: Figure, *, alt: str, caption: str = "") -> Picture:
    """A figure of lines and text, as SVG."""
    buffer = io.StringIO()
    with _style.style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return Picture(alt, caption, svg=text[text.index("<svg") :])


def number(value: Any, digits: int = 2) -> Cell:
    """A number to so many decimals; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return Cell("–")
    text = f"{value:.{digits}f}"
    text = text.lstrip("-") if float(text) == 0 else text.replace("-", "−")
    return Cell(text, float(value))


def power(log10: float) -> Cell:
    """A p-value from its base-10 logarithm, however small."""
    if not math.isfinite(log10):
        return Cell("–")
    if log10 > -3:
        return Cell(f"{10**log10:.3f}", log10)
    exponent = math.floor(log10)
    return Cell(f"{10 ** (log10 - exponent):.1f}e−{-exponent}", log10)


def with_interval(value: Any, interval: Any, digits: int = 2) -> Cell:
    """A number with its interval in small print."""
    cell = number(value, digits)
    if interval is not None and None not in interval:
        low, high = (number(v, digits).text for v in interval)
        cell.small = f"{low} to {high}"
    return cell
