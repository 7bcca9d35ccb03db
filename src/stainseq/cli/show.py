"""Commands that show: demo, plot, report."""

from __future__ import annotations

from pathlib import Path

from ._output import Json, Output, Overwrite, Seed, open_slide
from .learn import show_scores


def demo(
    out: Path,
    /,
    *,
    encoder: str | None = None,
    n_genes: int = 100,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Do the main job on real tumour tissue that comes with the package; writes OUT/report.html. No network.

    Parameters
    ----------
    out
        Folder for the report, metrics.json, the stores and the model.
    encoder
        Image encoder; default the documented one.
    n_genes
        Genes to learn.
    """
    from .. import demo as demos

    metrics = demos.run(out, encoder=encoder, n_genes=n_genes, seed=seed, overwrite=overwrite)
    show = Output(json)
    held, trained = metrics["held_out"], " and ".join(metrics["trained_on"])
    show.line(f"section {held}, which the model never saw; trained on {trained}:")
    show_scores(show, metrics)
    show.line(f"report: {out / 'report.html'}")
    show.json(metrics)


def plot(
    slide: Path,
    /,
    *color: str,
    out: Path,
    region: str = "spots",
    table: str | None = None,
    layer: str | None = None,
    crop_um: tuple[float, float, float, float] | None = None,
    dpi: int = 200,
) -> None:
    """Draw genes or columns of a table over the slide.

    Parameters
    ----------
    slide
        A store.
    color
        Genes or obs columns, one panel each; none draws the regions' outlines.
    out
        PNG, PDF or SVG file.
    region
        Regions to draw.
    table
        Table with the values; default the region's counts.
    layer
        Layer instead of X.
    crop_um
        min_x min_y max_x max_y in um.
    dpi
        Of a PNG.
    """
    from .. import pl

    figure = pl.spatial(
        open_slide(slide), color=list(color) or None, region=region, table_key=table, layer=layer, crop_um=crop_um
    )
    figure.savefig(out, dpi=dpi, bbox_inches="tight")
    Output(None).line(str(out))


def report(slide: Path, /, *, out: Path, title: str | None = None) -> None:
    """Write a one-page report of whatever a slide holds, as one self-contained HTML file.

    Parameters
    ----------
    slide
        A store.
    out
        HTML file.
    title
        Default the slide's name.
    """
    from .. import pl

    pl.report(open_slide(slide), out=out, title=title)
    Output(None).line(str(out))
