"""Maps: the picture with regions coloured by genes, columns or domains, of one sample or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError
from . import _draw, _find, _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PX_PER_INCH = 250


def spatial(
    data: Any,
    *,
    color: str | Sequence[str] | None = None,
    samples: str | Sequence[str] | None = None,
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    image_key: Any = keys.HE,
    image_alpha: float = 0.4,
    crop_um: tuple[float, float, float, float] | Mapping[str, tuple[float, float, float, float]] | None = None,
    quantiles: tuple[float, float] = (0.01, 0.99),
    cmap: str = _style.SEQUENTIAL,
    palette: Mapping[str, str] | None = None,
    title: str | Sequence[str] | None = None,
    columns: int = 4,
    panel_inches: float = 2.3,
    scale_bar: bool = True,
) -> Figure:
    """Draw regions where they lie, in their true size and outline, over the picture.

    Parameters
    ----------
    data
        A slide (SpatialData); an AnnData or MuData with ``obsm["spatial"]`` in um (then without a picture); the path
        of one (``.zarr``, ``.h5ad``, ``.h5mu``) or of an experiment's folder; or several, as a dict of names or a
        list. A table whose ``obs["sample"]`` names several samples is drawn as several.
    color
        Genes (by id, or by symbol where var has a column of symbols), columns of obs, or columns of obsm as
        "KEY:COLUMN" ("spagcn.probabilities:2"). Genes of a table of raw counts are shown as log(1 + counts per
        10,000), others as they are. None: outlines alone, to see where the regions lie.
    samples
        Names of the samples to draw, in this order; default all.
    region
        Regions to draw: circles, polygons, labels, bins of a grid.
    table_key
        Table with the values; default the region's counts, or else its only prediction. With a MuData, the modality;
        default the only one, or the only one with coordinates.
    layer
        Layer instead of X, for genes.
    image_key
        Image below, by name or opened (`image.open_image`: saves opening it for each of many figures); None for
        none.
    image_alpha
        Strength of the image below coloured regions, 0 to 1: lightened, so that colours are read against it. Below
        outlines alone it is at least 0.75, and alone it is shown in full.
    crop_um
        (min_x, min_y, max_x, max_y) in um, or a dict of them by sample. Default: the regions with a small margin.
    quantiles
        Colour bar from and to these shares of the values, so that single bright spots do not flatten the rest.
    cmap
        Colour map of numbers.
    palette
        Colours of categories by name. Default: up to 16 colours that colour-blind readers can tell apart; a category
        has one colour in all panels, also where only some samples have it.
    title
        Of each panel; default what it shows.
    columns
        Panels in a row. With several samples and several colours there is one row a colour and one column a sample.
    panel_inches
        Width of a panel.
    scale_bar
        Draw one below the first panel. Samples are drawn to one scale, so that it holds for all.

    Returns
    -------
    matplotlib.figure.Figure
        y points down, as on the slide. With several samples, one colour bar or legend for all of a colour's panels.
        More than 20,000 regions are painted as pixels, which takes seconds for 250,000 cells, by their true outlines.

    Raises
    ------
    MissingError
        No such gene, column, table, region or sample, or nothing to draw; what is spelt alike is named.
    InputError
        An empty crop, an unknown colour map, two samples of one name.
    """
    _style.check_colour_map(cmap)
    names: list[str | None] = [color] if isinstance(color, str) or color is None else list(color)
    wanted = [samples] if isinstance(samples, str) else samples
    which: dict[str, Any] = {"region": region, "table_key": table_key, "layer": layer}
    found = _samples(data, wanted, names, **which, image_key=image_key)
    _set_boxes(found, crop_um)
    drawing = _Drawing(found, names, quantiles, cmap, _colours(found, palette), columns, panel_inches)
    titles = [title] if isinstance(title, str) else None if title is None else list(title)
    with _style.style():
        return drawing.draw(titles, image_alpha, scale_bar)


@dataclass
class _Sample:
    """One sample: what there is to draw of it, and the part that its panels show."""

    name: str
    shown: list[_find.Values | None]
    genes: list[bool]
    marks: _draw.Marks | None
    image: Any
    box: _draw.Box = (0.0, 0.0, 1.0, 1.0)
    inside: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))


def _samples(
    data: Any,
    wanted: Sequence[str] | None,
    names: Sequence[str | None],
    *,
    region: str,
    table_key: str | None,
    layer: str | None,
    image_key: Any,
) -> list[_Sample]:
    from anndata import AnnData

    out = []
    known: dict[tuple[int, str], _find.Values] = {}  # a table of many samples is looked up once
    coloured = any(n is not None for n in names)
    which: dict[str, Any] = {"region": region, "table_key": table_key}
    for part in _find.parts(data, wanted, **which, needs_table=coloured):
        shown: list[_find.Values | None] = []
        for n in names:
            if n is not None and part.table is not None and (id(part.table), n) not in known:
                known[id(part.table), n] = _find.values(part.table, n, layer=layer)
            values = None if n is None else known[id(part.table), n]
            shown.append(values if values is None or part.rows is None else values.take(part.rows))
        marks = None
        if part.table is not None or region in _regions(part.data):
            marks = _find.marks(part.data, part.table, region, rows=part.rows)
        image = None if isinstance(part.data, AnnData) and isinstance(image_key, str) else image_key
        opened = _find.open_image(part.data, image)
        out.append(_Sample(part.name, shown, [_find.is_gene(part.table, n) for n in names], marks, opened))
    return out


def _regions(data: Any) -> list[str]:
    from .. import regions

    return regions.names(data) if hasattr(data, "shapes") else []


def _set_boxes(found: list[_Sample], crop_um: Any) -> None:
    """What each sample shows: one size for all, so that they are drawn to one scale."""
    for s in found:
        crop = crop_um.get(s.name) if isinstance(crop_um, Mapping) else crop_um
        s.box = _find.view(s.marks, crop, s.image)
    wide = max(s.box[2] - s.box[0] for s in found)
    tall = max(s.box[3] - s.box[1] for s in found)
    for s in found:
        x, y = (s.box[0] + s.box[2]) / 2, (s.box[1] + s.box[3]) / 2
        if len(found) > 1:
            s.box = (x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2)
        if s.marks is not None:
            s.inside = s.marks.inside(s.box)
            s.marks = s.marks.take(s.inside)
            s.shown = [None if v is None else v.take(s.inside) for v in s.shown]


def _colours(found: list[_Sample], given: Mapping[str, str] | None) -> dict[str, str]:
    """One colour a category: lists of categories that have a name in common are one list."""
    groups: list[set[str]] = []
    for values in (v for s in found for v in s.shown if v is not None and v.categories):
        mine = set(values.categories or ())
        for other in [g for g in groups if g & mine]:
            mine |= other
            groups.remove(other)
        groups.append(mine)
    out: dict[str, str] = {}
    for group in groups:
        first = next(v.categories for s in found for v in s.shown if v is not None and set(v.categories or ()) & group)
        names = first if first is not None and set(first) == group else sorted(group, key=_find.natural)
        out |= dict(zip(names, _style.palette(len(names)), strict=True))
    return out | dict(given or {})


@dataclass
class _Drawing:
    """Panels of one figure."""

    samples: list[_Sample]
    names: list[str | None]
    quantiles: tuple[float, float]
    cmap: str
    colours: dict[str, str]
    columns: int
    panel_inches: float

    def draw(self, titles: list[str] | None, image_alpha: float, scale_bar: bool) -> Figure:
        several = len(self.samples) > 1
        grid = several and len(self.names) > 1
        order = [(s, c) for c in range(len(self.names)) for s in range(len(self.samples))]
        figure, axes = panels(
            len(order),
            self.samples[0].box,
            columns=len(self.samples) if grid else self.columns,
            panel_inches=self.panel_inches,
            beside=self._beside(),
            shared=several,
        )
        pictures = [self._picture(s) for s in self.samples]
        for i, (ax, (s, c)) in enumerate(zip(axes, order, strict=True)):
            sample = self.samples[s]
            one_map(ax, sample.box, rgb=pictures[s], alpha=self._alpha(sample, image_alpha))
            if titles is not None:
                text = titles[i] if i < len(titles) else ""
            else:
                text = sample.name if several else self.names[c] or ""
            if titles is not None or not grid or c == 0:
                ax.set_title(text, style="italic" if sample.genes[c] and not several else "normal")
            if scale_bar and i == 0:
                _draw.scale_bar(ax, sample.box)
        n = len(self.samples)
        for c in range(len(self.names)):
            self._fill(axes[c * n : (c + 1) * n], c, named=several)
        return figure

    def _fill(self, axes: list[Axes], c: int, *, named: bool) -> None:
        """Regions of all panels of one colour, and the bar or legend that they share."""
        shown = [s.shown[c] for s in self.samples]
        known = [v for v in shown if v is not None]
        numbers = [v.numbers for v in known if v.numbers is not None]
        if known and 0 < len(numbers) < len(known):
            raise InputError(
                f"{known[0].name!r} holds numbers in some samples and names in others", fix="make it one kind in all"
            )
        low, high, extend = _draw.limits(numbers, self.quantiles) if numbers else (0.0, 1.0, "neither")
        longest = int(self.panel_inches * 1.2 * _PX_PER_INCH)
        for ax, sample, what in zip(axes, self.samples, shown, strict=True):
            if sample.marks is None:
                continue
            if what is None:
                colours, edge = np.empty((0, 4)), _style.INK
            else:
                colours, edge = self._rgba(what, low, high), None
            _draw.regions(ax, sample.marks, colours, sample.box, edge=edge, longest_px=longest)
        # What several panels share stands at the end of their first row.
        last = axes[min(self.columns, len(axes)) - 1] if len(self.names) == 1 else axes[-1]
        if numbers:
            title, gene = known[0].name if named else None, self.samples[0].genes[c]
            _draw.colour_bar(
                last, low, high, cmap=self.cmap, label=known[0].unit, extend=extend, title=title, italic=gene
            )
        elif known:
            self._legend(last, known, title=known[0].name if named else None)

    def _rgba(self, what: _find.Values, low: float, high: float) -> np.ndarray:
        from matplotlib.colors import to_rgba

        if what.numbers is not None:
            return _draw.shade(what.numbers, low, high, self.cmap)
        table = [to_rgba(self.colours[n]) for n in what.categories or []]
        return np.array([*table, to_rgba(_style.MISSING)])[np.asarray(what.codes)]

    def _legend(self, ax: Axes, known: list[_find.Values], *, title: str | None) -> None:
        there: dict[str, None] = {}
        for v in known:
            codes = np.asarray(v.codes)
            present = set(np.unique(codes[codes >= 0]).tolist())
            there |= dict.fromkeys(n for k, n in enumerate(v.categories or []) if k in present)
        names = list(there) if len(known) == 1 else [n for n in self.colours if n in there]
        entries = [(n, self.colours[n]) for n in names]
        if any((np.asarray(v.codes) < 0).any() for v in known):
            entries.append(("none", _style.MISSING))
        _draw.legend(ax, entries, title=title)

    def _picture(self, sample: _Sample) -> np.ndarray | None:
        if sample.image is None:
            return None
        return _find.read(sample.image, sample.box, int(self.panel_inches * _PX_PER_INCH))

    def _alpha(self, sample: _Sample, image_alpha: float) -> float:
        if any(v is not None for v in sample.shown):
            return image_alpha
        return 1.0 if sample.marks is None else max(image_alpha, 0.75)

    def _beside(self) -> float:
        """Room for a bar or a legend, inches."""
        wide = [0.0]
        for v in (v for s in self.samples for v in s.shown if v is not None):
            if v.numbers is not None:
                wide.append(0.6)
            else:
                names = v.categories or [""]
                wide.append(_draw.legend_columns(len(names)) * (0.3 + 0.055 * max(map(len, names))))
        return max(wide)


def panels(
    n: int, box: _draw.Box, *, columns: int, panel_inches: float, beside: float, shared: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with n maps of one shape; `beside` is the room for a legend or a bar, inches: of each, or of a row."""
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    tall = panel_inches * (box[3] - box[1]) / (box[2] - box[0])
    wide = columns * panel_inches + beside * (1 if shared else columns)
    figure = _style.new_figure(wide, rows * (tall + 0.3))
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
