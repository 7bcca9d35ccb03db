"""A report of one slide on one page that needs nothing but itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import keys

if TYPE_CHECKING:
    from spatialdata import SpatialData


def report(
    sdata: SpatialData,
    *,
    out: str | os.PathLike[str],
    metrics: Mapping[str, Any] | None = None,
    title: str | None = None,
    region: str = keys.SPOTS,
    truth: str | None = None,
    prediction: str | None = None,
    image_key: str = keys.HE,
    n_genes: int = 4,
    steps: Sequence[Mapping[str, Any]] = (),
    citations: Sequence[str] = (),
) -> Path:
    """Write what a slide holds as one HTML file: figures, tables, and what was done.

    The file loads nothing from elsewhere, sorts its tables itself, prints, and reads on a phone. Sections appear for
    what is there: measured and predicted maps and scores need both tables, the ranking of genes the columns that
    `tl.svg` writes, domains those of `tl.domains`. Beside a prediction stand its model, what that learned from, and its
    own cross-validated scores.

    Parameters
    ----------
    sdata
        The slide.
    out
        The file to write; replaced when it is there.
    metrics
        What `tl.evaluate` returned. Without it, measured and predicted maps are shown without scores.
    title
        Default the slide's name.
    region
        Regions that the tables belong to.
    truth
        Table of counts; default ``counts_<region>``.
    prediction
        Table of predictions; default the one that `metrics` names, else the region's only one.
    image_key
        Image element.
    n_genes
        Genes shown of each kind (best predicted, typical, spatially variable).
    steps
        What was done, in order: mappings with "step" and "seconds".
    citations
        Sources, shown at the end.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    StoreError
        The file cannot be written.
    """
    from .._files import check_output, write_file
    from . import _sections

    check_output(out)
    page = _sections.Page(
        sdata,
        region=region,
        truth=truth,
        prediction=prediction,
        image_key=image_key,
        metrics=dict(metrics or {}),
        n_genes=n_genes,
    )
    text = _render(
        title=title or page.name(),
        lead=page.lead(),
        facts=page.facts(),
        numbers=page.numbers(),
        overview=page.overview(),
        pairs=page.pairs(),
        predicted=page.predicted(),
        scores=page.scores(),
        learned=page.learned(),
        ranking=page.ranking(),
        domains=page.domains(),
        timings=_sections.timings(steps),
        elements={"rows": page.elements()},
        absent=page.absent(),
        citations=list(citations),
        versions=_sections.version_line(),
    )
    return write_file(out, lambda path: path.write_text(text, encoding="utf-8"))


def _render(**content: Any) -> str:
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    source = files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(**content)
