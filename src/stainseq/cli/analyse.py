"""Commands on expression: svg, domains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ._output import Json, Output, Seed
from .slides import _options

Options = Annotated[
    list[str] | None,
    Parameter(name="--option", negative=(), help="KEY=VALUE, an option of the method; may be given several times."),
]


def svg(
    data: Path,
    /,
    *,
    method: str | None = None,
    region: str = "spots",
    table: str | None = None,
    layer: str | None = None,
    sample: str | None = None,
    n_svg: int = 500,
    key: str | None = None,
    csv: Path | None = None,
    out: Path | None = None,
    top: int = 20,
    option: Options = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Rank genes by how much their expression depends on place.

    Parameters
    ----------
    data
        A store or an .h5ad file; the file itself is never changed.
    method
        Name (`stainseq list svg`); default the documented one.
    region
        Region whose counts are tested.
    table
        Another table.
    layer
        Layer instead of X.
    sample
        One sample of a table with several.
    n_svg
        How many genes to mark at most.
    key
        Prefix of the result columns; default the method.
    csv
        Write the ranking as CSV.
    out
        Write the table with its results as .h5ad.
    top
        Genes to print.
    """
    from .. import tl

    found = tl.svg(
        data, method=method, region=region, table_key=table, layer=layer, sample=sample, n_svg=n_svg, key=key, csv=csv,
        out=out, seed=seed, **_options(option),
    )  # fmt: skip
    show = Output(json)
    show.line(f"{len(found)} genes tested, {int(found['svg'].sum())} marked as spatially variable")
    first = found.sort_values("rank").head(top).astype({"rank": "Int64"})
    show.table(list(first.columns), first.itertuples(index=False, name=None))
    show.json({"genes": _records(found)})


def domains(
    data: Path,
    /,
    *,
    n_domains: int,
    method: str | None = None,
    region: str = "spots",
    table: str | None = None,
    layer: str | None = None,
    sample: str | None = None,
    image_features: str | None = None,
    key: str | None = None,
    csv: Path | None = None,
    out: Path | None = None,
    option: Options = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Divide the tissue into exactly K domains.

    Parameters
    ----------
    data
        A store or an .h5ad file; the file itself is never changed.
    n_domains
        How many.
    method
        Name (`stainseq list domains`); default the documented one.
    region
        Region whose counts are used.
    table
        Another table.
    layer
        Layer instead of X.
    sample
        One sample of a table with several.
    image_features
        Feature table to use beside expression.
    key
        Prefix of the result columns; default the method.
    csv
        Write id, domain, refined, probability.
    out
        Write the table with its results as .h5ad.
    """
    from .. import tl

    found = tl.domains(
        data, n_domains=n_domains, method=method, region=region, table_key=table, layer=layer, sample=sample,
        image_features=image_features, key=key, csv=csv, out=out, seed=seed, **_options(option),
    )  # fmt: skip
    show = Output(json)
    sizes = found["domain"].value_counts().sort_index()
    refined = found["refined"].value_counts()
    rows = [(d, int(n), int(refined.get(d, 0))) for d, n in sizes.items()]
    show.table(["domain", "regions", "refined"], rows)
    show.json({"sizes": {str(d): n for d, n, _ in rows}, "domains": _records(found)})


def _records(frame: Any) -> list[dict[str, Any]]:
    import json

    return list(json.loads(frame.to_json(orient="records", double_precision=15)))
