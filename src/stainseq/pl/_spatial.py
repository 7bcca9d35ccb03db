"""Maps: the picture with regions coloured by genes, columns or domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from . import _draw, _find, _style

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

    from ..image import LevelStack

_PX_PER_INCH = 250


def spatial(
    data: SpatialData | AnnData,
    *,
    color: str | Sequence[str] | None = None,
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    image_key: str | LevelStack | None = keys.HE,
    image_alpha: float = 0.4,
    crop_um: tuple[float, float, float, float] | None = None,
    quantiles: tuple[float, float] = (0.01, 0.99),
    cmap: str = _style.SEQUENTIAL,
    palette: Mapping[str, str] | None = None,
    title: str | Sequence[str] | None = None,
    columns: int = 4,
    panel_inches: float = 2.3,
    scale_bar: bool = True,
) -> Figure:
    """Draw regions where they lie, in their true size, over the picture.

    Parameters
    ----------
    data
        A slide, or an AnnData with ``obsm["spatial"]`` in um (then without a picture).
    color
        Genes or columns of obs, one panel each. Genes of a table of raw counts are shown as log(1 + counts per
        10,000), others as they are. None: outlines alone, to see where the regions lie.
    region
        Regions to draw: circles, polygons, squares of a grid.
    table_key
        Table with the values; default the region's counts, or else its only prediction.
    layer
        Layer instead of X, for genes.
    image_key
        Image below, by name or opened (`image.open_image`: saves opening it for each of many figures); None for
        none.
    image_alpha
        Strength of the image below coloured regions, 0 to 1: lightened, so that colours are read against it. Below
        outlines alone it is at least 0.75, and alone it is shown in full.
    crop_um
        (min_x, min_y, max_x, max_y) in um. Default: the regions with a small margin.
    quantiles
        Colour bar from and to these shares of the values, so that single bright spots do not flatten the rest.
    cmap
        Colour map of numbers.
    palette
        Colours of categories by name; default colours that colour-blind readers can tell apart.
    title
        Of each panel; default what it shows.
    columns
        Panels in a row.
    panel_inches
        Width of a panel.
    scale_bar
        Draw one below the first panel.

    Returns
    -------
    matplotlib.figure.Figure
        y points down, as on the slide. More than 30,000 regions are painted as pixels, which takes well under a
        second for 250,000.

    Raises
    ------
    MissingError
        No such gene, column, table or region, or nothing to draw.
    InputError
        An empty crop.
    """
    from anndata import AnnData

    names: list[str | None] = [color] if isinstance(color, str) or color is None else list(color)
    has_table = isinstance(data, AnnData) or any(n is not None for n in names)
    table = _find.table_of(data, region=region, table_key=table_key) if has_table else None
    image = _find.open_image(data, image_key)
    found = _marks_or_none(data, table, region)
    box = _find.view(found, crop_um, image)
    shown = [None if n is None or table is None else _find.values(table, n, layer=layer) for n in names]
    titles = [title] if isinstance(title, str) else list(title) if title is not None else [n or "" for n in names]
    with _style.style():
        figure, axes = panels(len(names), box, columns=columns, panel_inches=panel_inches, beside=_beside(shown))
        alpha = image_alpha if any(s is not None for s in shown) else 1.0 if found is None else max(image_alpha, 0.75)
        rgb = None if image is None else _find.read(image, box, int(panel_inches * _PX_PER_INCH))
        for i, (ax, what) in enumerate(zip(axes, shown, strict=True)):
            one_map(ax, box, rgb=rgb, alpha=alpha)
            if found is not None:
                fill(figure, ax, found, what, box, quantiles=quantiles, cmap=cmap, palette=palette)
            ax.set_title(
                titles[i] if i < len(titles) else "", style="italic" if _is_gene(table, names[i]) else "normal"
            )
            if scale_bar and i == 0:
                _draw.scale_bar(ax, box)
    return figure


def panels(n: int, box: _draw.Box, *, columns: int, panel_inches: float, beside: float) -> tuple[Figure, list[Axes]]:
    """A figure with n maps of one shape; `beside` is the room for a legend or a bar, inches."""
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    tall = panel_inches * (box[3] - box[1]) / (box[2] - box[0])
    figure = _style.new_figure(columns * (panel_inches + beside), rows * (tall + 0.3))
    grid = figure.subplots(rows, columns, squeeze=False)
    flat = list(grid.ravel())
    for ax in flat[n:]:
        ax.set_axis_off()
    return figure, flat[:n]


def one_map(ax: Axes, box: _draw.Box, *, rgb: np.ndarray | None, alpha: float) -> None:
    """Axes of a map, with the picture below."""
    if rgb is not None:
        _draw.picture(ax, rgb, box, alpha=alpha)
    _draw.frame(ax, box)


def fill(
    figure: Figure,
    ax: Axes,
    found: _draw.Marks,
    what: _find.Values | None,
    box: _draw.Box,
    *,
    quantiles: tuple[float, float] = (0.01, 0.99),
    cmap: str = _style.SEQUENTIAL,
    palette: Mapping[str, str] | None = None,
) -> None:
    """Regions of one panel with their colour bar or legend; the bar's range is taken from what is shown."""
    inside = found.inside(box)
    near = found.take(inside)
    if what is None:
        _draw.regions(ax, near, np.empty((0, 4)), box, edge=_style.INK)
    elif what.numbers is not None:
        shown = what.numbers[inside]
        low, high, extend = _draw.limits([shown], quantiles)
        _draw.regions(ax, near, _draw.shade(shown, low, high, cmap), box)
        _draw.colour_bar(figure, ax, low, high, cmap=cmap, label=what.unit, extend=extend)
    else:
        _categories(ax, near, what, inside, box, palette)


def _categories(
    ax: Axes,
    near: _draw.Marks,
    what: _find.Values,
    inside: np.ndarray,
    box: _draw.Box,
    palette: Mapping[str, str] | None,
) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.lines import Line2D

    names = what.categories or []
    given = dict(zip(names, _style.palette(len(names)), strict=True)) | dict(palette or {})
    table = np.array([to_rgba(given[n]) for n in names] + [to_rgba(_style.MISSING)])
    codes = np.asarray(what.codes)[inside]
    _draw.regions(ax, near, table[codes], box)
    there = np.unique(codes[codes >= 0])
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=5, markeredgewidth=0, color=given[names[k]], label=names[k])
        for k in there
    ]
    if (codes < 0).any():
        handles.append(Line2D([], [], marker="o", linestyle="", markersize=5, color=_style.MISSING, label="none"))
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2,
        handletextpad=0.1,
        labelspacing=0.3,
        ncols=1 + (len(handles) - 1) // 14,
    )


def _beside(shown: Sequence[_find.Values | None]) -> float:
    if any(s is not None and s.categories is not None for s in shown):
        longest = max((len(c) for s in shown if s is not None for c in s.categories or []), default=4)
        return 0.35 + 0.055 * longest
    return 0.55 if any(s is not None for s in shown) else 0.0


def _marks_or_none(data: Any, table: Any, region: str) -> _draw.Marks | None:
    from .. import regions

    if table is None and region not in regions.names(data):
        return None
    return _find.marks(data, table, region)


def _is_gene(table: Any, name: str | None) -> bool:
    return table is not None and name in table.var_names
