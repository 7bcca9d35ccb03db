"""Maps of superpixels: measured, predicted and enhanced expression side by side, and their quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys, quality
from ..errors import InputError, MissingError
from . import _draw, _find, _raster, _style

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

KINDS = ("measured", "predicted", "enhanced")
_WEIGHT, _PREDICTED = "weight", "predicted"


def superpixels(
    sdata: SpatialData,
    *,
    genes: str | Sequence[str] | None = None,
    top: int = 6,
    by: Literal["counts", "variance", "score"] = "counts",
    scores: Mapping[str, Any] | None = None,
    show: Sequence[str] | None = None,
    region: str = keys.SUPERPIXELS,
    truth: str | None = None,
    prediction: str | None = None,
    quality_key: str | None = None,
    image_key: str | None = keys.HE,
    overlay: float | None = None,
    crop_um: tuple[float, float, float, float] | None = None,
    quantiles: tuple[float, float] = (0.01, 0.99),
    one_scale: bool = False,
    cmap: str = _style.SEQUENTIAL,
    columns: int = 4,
    panel_inches: float = 2.3,
    scale_bar: bool = True,
) -> Figure:
    """Draw genes on superpixels: as measured, as predicted and enhanced, side by side.

    Drawn as images, a pixel a superpixel or finer: a slide of 660,000 takes about a second a panel.

    Parameters
    ----------
    sdata
        The slide.
    genes
        Genes to draw; default the `top` ones.
    top
        How many genes, where none are named.
    by
        What ranks them: "counts" (of the counts table), "variance" (of the prediction, else of the counts), or "score"
        (held-out Pearson, of `scores`).
    scores
        What `tl.evaluate` returns or MODEL/metrics.json holds: ranks by "score", and is written beside each gene.
    show
        Of "measured", "predicted", "enhanced"; default what is there.
    region
        The superpixels, or any other grid.
    truth
        Table of counts; default ``counts_<region>``. Drawn in the unit of the prediction.
    prediction
        Table of predictions; default the region's only one, or the only one that was enhanced, which holds both.
    quality_key
        Table of quality; superpixels that are not good are left out of all panels. Default ``quality_<region>`` where
        it is there; "none": all are drawn.
    image_key
        The picture, drawn beside the genes; None for none.
    overlay
        Draw superpixels over the picture with this opacity, 0 to 1, the picture in full around them. Default: none, on
        white.
    crop_um
        (min_x, min_y, max_x, max_y) in um; default the superpixels with a small margin.
    quantiles
        Colour bars from and to these shares of the values shown: a few bright superpixels do not flatten the rest.
        Clipped ends are pointed.
    one_scale
        One colour bar per gene for all its panels, so that a flat prediction looks flat. Default: one for each panel,
        since single counts of 8 um and their expectation span different ranges.
    cmap
        Colour map.
    columns
        Panels in a row, where one kind is shown.
    panel_inches
        Width of a panel.
    scale_bar
        Draw one below the first panel.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingError
        No such gene or table, or nothing to draw.
    InputError
        Regions that are no grid; no scores to rank by.
    """
    from .. import regions

    _style.check_colour_map(cmap)
    where = regions.get(sdata, region)
    tables = _tables(sdata, region, truth, prediction)
    kinds = _kinds(tables, show)
    chosen = [genes] if isinstance(genes, str) else list(genes or _top(tables, top, by, scores))
    good, _ = quality.usable(sdata, region, where.ids, table_key=quality_key)
    image = _find.open_image(sdata, image_key)
    place = _raster.raster(where, crop_um and _find.view(None, crop_um, image))
    drawing = _Maps(sdata, tables, kinds, where, good, place, image, overlay, quantiles, one_scale, cmap, panel_inches)
    with _style.style():
        return drawing.draw(chosen, columns, _by_gene(scores), scale_bar)


def superpixel_quality(
    sdata: SpatialData,
    *,
    region: str = keys.SUPERPIXELS,
    quality_key: str | None = None,
    image_key: str = keys.HE,
    crop_um: tuple[float, float, float, float] | None = None,
    panel_inches: float = 3.2,
) -> Figure:
    """Draw what `pp.quality` found: the picture, the classes, and the picture with what is kept.

    Parameters
    ----------
    sdata
        The slide.
    region
        The superpixels.
    quality_key
        Table of quality; default ``quality_<region>``.
    image_key
        The picture.
    crop_um
        (min_x, min_y, max_x, max_y) in um.
    panel_inches
        Width of a panel.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingError
        The quality was not asked for yet.
    """
    from .. import regions

    name = quality_key or quality.table_name(region)
    if name not in sdata.tables:
        raise MissingError(f"no table {name!r}", where=sdata.path, fix="run `stainseq tissue --quality` first")
    column = sdata.tables[name].obs[quality.COLUMN].astype("category")
    where = regions.get(sdata, region)
    image = _find.open_image(sdata, image_key)
    place = _raster.raster(where, crop_um and _find.view(None, crop_um, image))
    order = np.asarray(_find.rows_of(where.ids, sdata.tables[name], region))
    codes = np.full(len(where), -1)
    codes[order] = column.cat.codes.to_numpy()
    classes = [str(c) for c in column.cat.categories]
    colours = [_CLASS_COLOURS.get(c, "#000000") for c in classes]
    shares = np.bincount(codes[codes >= 0], minlength=len(classes)) / max((codes >= 0).sum(), 1)
    with _style.style():
        tall = panel_inches * (place.box[3] - place.box[1]) / (place.box[2] - place.box[0])
        figure = _style.new_figure(3 * panel_inches + 1.1, tall + 0.4)
        axes = figure.subplots(1, 3)
        rgb = None if image is None else _find.read(image, place.box, int(panel_inches * 300))
        for ax, title in zip(axes, ("H&E", "quality", "kept"), strict=True):
            _picture(ax, place, rgb)
            ax.set_title(title, loc="left")
        _raster.show_classes(axes[1], place, codes, colours, opacity=0.85)
        good = classes.index(quality.GOOD) if quality.GOOD in classes else len(classes)
        bad = np.where((codes >= 0) & (codes != good), 0, -1)
        _raster.show_classes(axes[2], place, bad, ["#ffffff"], opacity=0.92)
        entries = [(f"{c}  {s:.1%}", k) for c, s, k in zip(classes, shares, colours, strict=True)]
        _draw.legend(axes[2], entries, title=f"{len(where):,} superpixels")
        _draw.scale_bar(axes[0], place.box)
    return figure


_CLASS_COLOURS = {
    "good": "#009E73",
    "background": "#d9d9d9",
    "pen": "#0072B2",
    "fold": "#D55E00",
    "blurred": "#CC79A7",
    "pale": "#F0E442",
}


@dataclass
class _Tables:
    """Counts and prediction of the superpixels, as far as they are there."""

    counts: AnnData | None
    predicted: AnnData | None
    units: str

    @property
    def enhanced(self) -> bool:
        return self.predicted is not None and _WEIGHT in self.predicted.layers


def _tables(sdata: SpatialData, region: str, truth: str | None, prediction: str | None) -> _Tables:
    from ..core.normalize import UNITS

    name = truth or keys.counts(region)
    if truth is not None and truth not in sdata.tables:
        _find.table_of(sdata, region=region, table_key=truth)
    found = _find.predictions(sdata, region)
    if prediction is None and len(found) > 1:
        both = [p for p in found if _WEIGHT in sdata.tables[p].layers]
        if len(both) != 1:
            raise MissingError("several predictions", where=sdata.path, fix=f"name one: {', '.join(found)}")
        found = both
    predicted = None
    if prediction is not None or found:
        predicted = _find.table_of(sdata, region=region, table_key=prediction or found[0])
    units = UNITS["raw"]
    if predicted is not None:
        units = str(predicted.uns.get(keys.STAMP, {}).get("units", units))
    return _Tables(sdata.tables.get(name), predicted, units)


def _kinds(tables: _Tables, show: Sequence[str] | None) -> list[str]:
    there = [
        k
        for k, yes in zip(
            KINDS, (tables.counts is not None, tables.predicted is not None, tables.enhanced), strict=True
        )
        if yes
    ]
    wanted = there if show is None else list(show)
    unknown = [k for k in wanted if k not in KINDS]
    absent = [k for k in wanted if k not in there]
    if unknown:
        raise InputError(f"{unknown[0]!r} cannot be shown", fix=f"of: {', '.join(KINDS)}")
    if absent or not wanted:
        fix = "aggregate, predict, or predict --mode enhance first"
        raise MissingError(f"nothing {absent[0] if absent else 'measured or predicted'} to draw", fix=fix)
    return [k for k in KINDS if k in wanted]


def _by_gene(scores: Mapping[str, Any] | None) -> dict[str, float]:
    if scores is None:
        return {}
    return {str(g["gene"]): float(g["pearson"]) for g in scores.get("genes", []) if g.get("pearson") is not None}


def _top(tables: _Tables, n: int, by: str, scores: Mapping[str, Any] | None) -> list[str]:
    """Genes that rank first among those of all tables shown."""
    if n < 1:
        raise InputError(f"top={n} genes", fix="draw one or more")
    main = tables.counts if tables.predicted is None else tables.predicted
    if main is None:
        raise MissingError("nothing to draw", fix="aggregate or predict first")
    if by == "score":
        known = _by_gene(scores)
        rank = {g: known[g] for g in main.var_names if g in known}
        if not rank:
            raise InputError("no scores to rank by", fix="give scores=tl.evaluate(...) (--metrics), or rank by counts")
    elif by == "counts":
        if tables.counts is None:
            raise InputError("no counts to rank by", fix="rank by variance or score")
        total = np.asarray(tables.counts.X.sum(axis=0)).ravel()
        rank = dict(zip(tables.counts.var_names, total, strict=True))
    elif by == "variance":
        rank = dict(zip(main.var_names, _find.variances(main.X), strict=True))
    else:
        raise InputError(f"nothing ranks by {by!r}", fix="one of: counts, variance, score")
    shared = [g for g in rank if g in main.var_names]
    return sorted(shared, key=lambda g: -float(rank[g]))[:n]


@dataclass
class _Maps:
    """Panels of one figure."""

    sdata: Any
    tables: _Tables
    kinds: list[str]
    where: Any
    good: np.ndarray
    place: _raster.Raster
    image: Any
    overlay: float | None
    quantiles: tuple[float, float]
    one_scale: bool
    cmap: str
    panel_inches: float

    def draw(self, genes: list[str], columns: int, scores: dict[str, float], scale_bar: bool) -> Figure:
        """All panels: a row a gene, or several genes in a row where one kind is shown."""
        box = self.place.box
        picture = self.image is not None and self.overlay is None
        per_gene = len(self.kinds) + picture
        wrap = len(self.kinds) == 1
        n = len(genes) + picture if wrap else per_gene
        across = max(1, min(columns, n)) if wrap else per_gene
        down = -(-n // across) if wrap else len(genes)
        tall = self.panel_inches * (box[3] - box[1]) / (box[2] - box[0])
        bar = 0.55
        figure = _style.new_figure(across * (self.panel_inches + bar), down * (tall + 0.3) + 0.1)
        axes = figure.subplots(down, across, squeeze=False)
        rgb = None if self.image is None else _find.read(self.image, box, int(self.panel_inches * 300))
        flat = list(axes.ravel())
        for ax in flat:
            ax.set_axis_off()
        if wrap:
            if picture:
                self._he(flat[0], rgb)
            for ax, gene in zip(flat[int(picture) :], genes, strict=False):
                self._row([ax], gene, scores, rgb)
        else:
            for row, gene in zip(axes, genes, strict=True):
                if picture:
                    self._he(row[0], rgb)
                self._row(list(row[int(picture) :]), gene, scores, rgb)
        if scale_bar:
            _draw.scale_bar(flat[0], box)
        return figure

    def _he(self, ax: Axes, rgb: np.ndarray | None) -> None:
        _picture(ax, self.place, rgb)
        ax.set_title("H&E", loc="left")

    def _row(self, axes: list[Axes], gene: str, scores: dict[str, float], rgb: np.ndarray | None) -> None:
        shown = [self._values(kind, gene) for kind in self.kinds]
        inside = self._inside()
        visible = [v[inside] for v in shown]
        together = _draw.limits(visible, self.quantiles)
        for i, (ax, kind, values) in enumerate(zip(axes, self.kinds, shown, strict=True)):
            low, high, extend = together if self.one_scale else _draw.limits([visible[i]], self.quantiles)
            _picture(ax, self.place, rgb if self.overlay is not None else None)
            opacity = 1.0 if self.overlay is None else self.overlay
            _raster.show(ax, self.place, values, low=low, high=high, cmap=self.cmap, opacity=opacity)
            if not self.one_scale or i == len(axes) - 1:
                _draw.colour_bar(ax, low, high, cmap=self.cmap, label=_unit(self.tables.units), extend=extend)
            title = f"{gene}, {kind}" if i == 0 else kind
            if kind == _PREDICTED and gene in scores:
                title += f" (r = {scores[gene]:.2f})"
            ax.set_title(title, loc="left")

    def _inside(self) -> np.ndarray:
        x, y = self.where.centres_um.T
        box = self.place.box
        return np.asarray((x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3]))

    def _values(self, kind: str, gene: str) -> np.ndarray:
        """float64 [regions], NaN where there is no row or the quality is not good."""
        table = self.tables.counts if kind == "measured" else self.tables.predicted
        if table is None or gene not in table.var_names:
            near = _find.near(table, gene) if table is not None else None
            raise MissingError(f"no gene {gene!r} among those {kind}", fix=near)
        if kind == "measured":
            found = _measured(table, gene, self.tables.units)
        else:
            layered = kind == _PREDICTED and _PREDICTED in table.layers
            found = _find.column(table.layers[_PREDICTED] if layered else table.X, table.var_names.get_loc(gene))
        out = np.full(len(self.where), np.nan)
        out[_find.rows_of(self.where.ids, table, self.where.name)] = found
        out[~self.good] = np.nan
        return out


def _measured(table: AnnData, gene: str, units: str) -> np.ndarray:
    """Counts of a gene in the unit of the prediction."""
    from ..core.normalize import UNITS

    counts = _find.column(table.X, table.var_names.get_loc(gene))
    if units == UNITS["raw"]:
        return np.log1p(counts)
    library = np.asarray(table.X.sum(axis=1), dtype=float).ravel()
    return np.log1p(np.divide(counts * 1e4, library, out=np.zeros_like(counts), where=library > 0))


def _picture(ax: Axes, place: _raster.Raster, rgb: np.ndarray | None) -> None:
    if rgb is not None:
        _draw.picture(ax, rgb, place.box, alpha=1.0)
    _draw.frame(ax, place.box)


def _unit(units: str) -> str:
    return {"log1p(counts)": "log(1 + counts)", "log1p(counts per 1e4)": "log(1 + counts per 10,000)"}.get(units, units)
