"""Figures: plot, report."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ._common import Json, NoSeed, Seed, Slide, TableKey, emit

FORMATS = (".png", ".pdf", ".svg", ".webp", ".jpg", ".tif", ".tiff")


def plot(
    data: Annotated[
        Path, Parameter(help="A slide store, NAME.zarr, a table, X.h5ad or X.h5mu, or the folder of an experiment.")
    ],
    *color: Annotated[str, Parameter(help="Genes or columns of obs, one panel each; outlines alone when left out.")],
    out: Path,
    region: str = "spots",
    table_key: TableKey = None,
    layer: str | None = None,
    beside: Annotated[list[Path] | None, Parameter(help="A further slide or table; may be repeated.")] = None,
    samples: Annotated[
        list[str] | None, Parameter(help="Name of a sample to draw; may be repeated. Default all.")
    ] = None,
    compare: bool = False,
    prediction: str | None = None,
    show: Annotated[
        list[Literal["measured", "predicted", "enhanced"]] | None,
        Parameter(help="With --compare: what to draw of superpixels; may be repeated. Default what is there."),
    ] = None,
    top: int = 6,
    by: Literal["counts", "variance", "score"] = "counts",
    metrics: Path | None = None,
    overlay: float | None = None,
    quality: str | None = None,
    one_scale: bool = False,
    quantiles: tuple[float, float] = (0.01, 0.99),
    image_key: str = "he",
    image_alpha: float = 0.4,
    crop_um: tuple[float, float, float, float] | None = None,
    cmap: str = "viridis",
    title: str | None = None,
    columns: int = 4,
    panel_inches: float = 2.3,
    dpi: int = 200,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Draw maps: regions in their true size over the picture, coloured by genes, columns or domains.

    Parameters
    ----------
    out
        File to write: .png, .pdf, .svg, .webp, .jpg or .tif.
    region
        Regions to draw.
    layer
        Layer instead of X.
    compare
        Draw each gene as measured and as predicted, side by side; on superpixels (and other grids) enhanced too, by
        pixels instead of outlines: fast for a whole slide.
    prediction
        With --compare: table of the prediction; the region's only one when left out.
    top
        With --compare on superpixels: how many genes, where none are named.
    by
        What ranks these: counts, variance (of the prediction), or score (held-out Pearson).
    metrics
        Scores that rank and are written beside genes, JSON of evaluate or MODEL/metrics.json; with --by score evaluated
        here when left out.
    overlay
        With --compare on superpixels: draw them over the picture with this opacity, 0 to 1; on white when left out.
    quality
        With --compare on superpixels: table of quality; what is not good is not drawn. "none" draws all.
    one_scale
        With --compare on superpixels: one colour bar for all panels of a gene.
    quantiles
        Colour bars run from and to these shares of the values.
    image_key
        Image below; "none" for none.
    image_alpha
        Strength of the image below, 0 to 1.
    crop_um
        min_x min_y max_x max_y, um.
    cmap
        Colour map of numbers, a name that matplotlib knows.
    title
        Of the panels; what they show when left out.
    columns
        Panels in a row.
    panel_inches
        Width of a panel, inches.
    dpi
        Pixels per inch of the file.
    """
    import stainseq as ss
    from stainseq import regions
    from stainseq.errors import InputError

    check_figure(out)
    common: dict[str, Any] = {
        "region": region,
        "image_key": None if image_key == "none" else image_key,
        "image_alpha": image_alpha,
        "crop_um": crop_um,
        "cmap": cmap,
        "panel_inches": panel_inches,
        "quantiles": quantiles,
    }
    drawn = list(color)
    if compare:
        if beside or samples:
            raise InputError("--compare draws one slide", where=data, fix="give one store alone")
        sdata = ss.io.open(data)
        tables: dict[str, Any] = {"truth": table_key, "prediction": prediction}
        if regions.get(sdata, region).kind == "grid":
            del common["image_alpha"]
            needed = metrics is not None or (by == "score" and not color)
            which: dict[str, Any] = {"region": region, "truth": table_key, "prediction": prediction, "seed": 0}
            found = _metrics(sdata, metrics, **which) if needed else None
            ranked: dict[str, Any] = {"top": top, "by": by, "scores": found, "quality_key": quality}
            figure = ss.pl.superpixels(
                sdata, genes=drawn or None, show=show, overlay=overlay, one_scale=one_scale, columns=columns,
                **ranked, **tables, **common,
            )  # fmt: skip
        elif not color:
            raise InputError("no gene to compare", fix="name one or more after the slide")
        else:
            figure = ss.pl.measured_predicted(sdata, genes=drawn, **tables, **common)
    else:
        figure = ss.pl.spatial(
            [data, *beside] if beside else data,
            color=list(color) or None,
            samples=samples,
            table_key=table_key,
            layer=layer,
            title=title,
            columns=columns,
            **common,
        )
    save_figure(figure, out, dpi=dpi)
    width, height = figure.get_size_inches()
    result = {"file": str(out), "panels": list(color), "inches": [float(width), float(height)]}
    emit(result, json, lambda c: c.print(f"{out}"))


def check_figure(out: Path) -> None:
    """Refuse, before the work is done, a file that no figure can be written to."""
    from stainseq._files import check_output
    from stainseq.errors import InputError

    if out.suffix.lower() not in FORMATS:
        raise InputError(f"no figure format {out.suffix!r}", where=out, fix=f"one of: {', '.join(FORMATS)}")
    check_output(out)


def save_figure(figure: Any, out: Path, *, dpi: int = 200) -> None:
    """Write a figure; the file appears under its name only when it is complete."""
    from stainseq._files import write_file

    check_figure(out)
    write_file(out, lambda staged: figure.savefig(staged, dpi=dpi, bbox_inches="tight", pad_inches=0.03))


def report(
    slide: Slide,
    /,
    *,
    out: Path,
    metrics: Path | None = None,
    title: str | None = None,
    region: str = "spots",
    truth: str | None = None,
    prediction: str | None = None,
    image_key: str = "he",
    n_genes: int = 4,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Write what a slide holds as one self-contained HTML page.

    Parameters
    ----------
    out
        The file, F.html.
    metrics
        Scores as JSON (of evaluate, or a demo's metrics.json); computed when left out and there is something to score.
    title
        The slide's name when left out.
    region
        Regions that the tables belong to.
    truth
        Table of counts; counts_REGION when left out.
    prediction
        Table of the prediction; the region's only one when left out.
    image_key
        Image element.
    n_genes
        Genes shown of each kind.
    """
    import stainseq as ss
    from stainseq._files import check_output

    check_output(out)
    sdata = ss.io.open(slide)
    scores = _metrics(sdata, metrics, region=region, truth=truth, prediction=prediction, seed=seed)
    ss.pl.report(
        sdata,
        out=out,
        metrics=scores,
        title=title,
        region=region,
        truth=truth,
        prediction=prediction,
        image_key=image_key,
        n_genes=n_genes,
    )
    result = {"file": str(out), "bytes": out.stat().st_size, "metrics": scores}
    emit(result, json, lambda c: c.print(f"{out}, {out.stat().st_size / 1e6:.1f} MB"))


def _metrics(
    sdata: Any, given: Path | None, *, region: str, truth: str | None, prediction: str | None, seed: int
) -> dict[str, Any] | None:
    import stainseq as ss
    from stainseq import keys
    from stainseq.errors import FormatError
    from stainseq.pl import _find

    if given is not None:
        try:
            found = jsonlib.loads(given.read_text(encoding="utf-8"))
        except ValueError as e:
            raise FormatError(f"not JSON ({e})", where=given, fix="give what evaluate --json wrote") from e
        if not isinstance(found, dict) or "genes" not in found:
            raise FormatError("no scores in it", where=given, fix="give what evaluate --json wrote")
        return found
    counts = truth or keys.counts(region)
    predicted = _find.predictions(sdata, region)
    name = prediction or (predicted[0] if len(predicted) == 1 else None)
    if name is None or name not in sdata.tables or counts not in sdata.tables:
        return None
    scores: dict[str, Any] = ss.tl.evaluate(sdata, truth=counts, prediction=name, seed=seed)
    return scores
