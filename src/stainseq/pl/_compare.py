"""Measured beside predicted expression, on one colour scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import keys
from ..errors import MissingError
from . import _draw, _find, _spatial, _style

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

    from ..image import LevelStack


def measured_predicted(
    sdata: SpatialData,
    *,
    genes: str | Sequence[str],
    truth: str | None = None,
    prediction: str | None = None,
    region: str = keys.SPOTS,
    image_key: str | LevelStack | None = keys.HE,
    image_alpha: float = 0.4,
    crop_um: tuple[float, float, float, float] | None = None,
    quantiles: tuple[float, float] = (0.01, 0.99),
    cmap: str = _style.SEQUENTIAL,
    notes: Mapping[str, str] | None = None,
    panel_inches: float = 2.3,
    scale_bar: bool = True,
) -> Figure:
    """Draw each gene as measured and as predicted, side by side.

    Both share one colour bar, so that a prediction that is flatter than the truth looks flatter.

    Parameters
    ----------
    sdata
        The slide.
    genes
        One row each.
    truth
        Table of counts; default ``counts_<region>``.
    prediction
        Table of the prediction; default the region's only one.
    region
        Regions to draw.
    image_key
        Image below, by name or opened (`image.open_image`: saves opening it for each of many figures); None for
        none.
    image_alpha
        Strength of the image, 0 to 1.
    crop_um
        (min_x, min_y, max_x, max_y) in um; default the regions with a small margin.
    quantiles
        Colour bar from and to these shares of the measured and predicted values taken together.
    cmap
        Colour map.
    notes
        A short text per gene, shown after its name, such as its score.
    panel_inches
        Width of a panel.
    scale_bar
        Draw one below the last row.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingError
        A table or gene is not there.
    """
    genes = [genes] if isinstance(genes, str) else list(genes)
    if not genes:
        raise MissingError("no gene to draw", fix="name one or more (genes=)")
    measured = _find.table_of(sdata, region=region, table_key=truth or keys.counts(region))
    predicted = _find.table_of(sdata, region=region, table_key=prediction or _only_prediction(sdata, region))
    image = _find.open_image(sdata, image_key)
    places = [_find.marks(sdata, table, region) for table in (measured, predicted)]
    box = _find.view(places[0], crop_um, image)
    inside = [p.inside(box) for p in places]
    near = [p.take(i) for p, i in zip(places, inside, strict=True)]
    with _style.style():
        tall = panel_inches * (box[3] - box[1]) / (box[2] - box[0])
        figure = _style.new_figure(2 * panel_inches + 0.65, len(genes) * (tall + 0.25) + 0.2)
        axes = figure.subplots(len(genes), 2, squeeze=False)
        rgb = None if image is None else _find.read(image, box, int(panel_inches * 250))
        for row, gene in zip(axes, genes, strict=True):
            values = [_in_unit_of(predicted, measured, gene), _find.values(predicted, gene)]
            numbers = [np.asarray(v.numbers)[i] for v, i in zip(values, inside, strict=True)]
            low, high, extend = _draw.limits(numbers, quantiles)
            for ax, marks, shown in zip(row, near, numbers, strict=True):
                _spatial.one_map(ax, box, rgb=rgb, alpha=image_alpha)
                _draw.regions(ax, marks, _draw.shade(shown, low, high, cmap), box)
            _draw.colour_bar(row[-1], low, high, cmap=cmap, label=values[0].unit, extend=extend)
            _titles(row, gene, (notes or {}).get(gene, ""))
        if scale_bar:
            _draw.scale_bar(axes[-1][0], box)
    return figure


def _in_unit_of(predicted: AnnData, measured: AnnData, gene: str) -> _find.Values:
    """A measured gene in the unit of its prediction: depth is divided out where the model learned it so."""
    from ..core.normalize import UNITS

    raw = predicted.uns.get(keys.STAMP, {}).get("units") == UNITS["raw"]
    if not raw or "units" in measured.uns.get(keys.STAMP, {}) or gene not in measured.var_names:
        return _find.values(measured, gene)
    counts = _find.column(measured.X, measured.var_names.get_loc(gene))
    return _find.Values(gene, numbers=np.log1p(counts), unit="log(1 + counts)")


def _titles(row: np.ndarray, gene: str, note: str) -> None:
    row[0].set_title(f"{gene}, measured", loc="left")
    row[1].set_title("predicted" + (f" ({note})" if note else ""), loc="left")


def _only_prediction(sdata: SpatialData, region: str) -> str:
    found = _find.predictions(sdata, region)
    if len(found) == 1:
        return found[0]
    there = ", ".join(found or sdata.tables) or "none"
    raise MissingError(
        "several predictions" if found else f"no prediction of {region!r}",
        where=sdata.path,
        fix=f"name one (prediction=): {there}",
    )
