"""Spatial domains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ._common import Json, Options, Seed, TableKey, emit, number, options, table
from .analyse import Data, KeyPrefix

if TYPE_CHECKING:
    from rich.console import Console


def domains(
    data: Data,
    /,
    *,
    n_domains: Annotated[int, Parameter(name=("--n-domains", "--n-clusters"))],
    method: str | None = None,
    region: str = "spots",
    table_key: TableKey = None,
    layer: str | None = None,
    sample: str | None = None,
    histology: bool = False,
    image_features: str | None = None,
    window_um: float = 50.0,
    layout: str | None = None,
    stability: int = 0,
    key: KeyPrefix = None,
    csv: Path | None = None,
    out: Path | None = None,
    option: Options = None,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Divide the tissue into exactly so many domains by expression and place.

    Parameters
    ----------
    n_domains
        How many.
    method
        Method (stainseq list domains); the documented default when left out.
    region
        Regions whose counts table is taken.
    layer
        Layer instead of X.
    sample
        Value of obs["sample"], where there are several.
    histology
        Join the colour of the H&E around each spot to its expression.
    image_features
        Join these vectors in place of colour: an encoder whose features are there, a features table, or an obsm key.
    window_um
        Side of the square whose colour is taken, um.
    layout
        hexagon, square or free; found from the distances when left out.
    stability
        Run with so many seeds (2 or more) and print how alike their domains are.
    csv
        File for id, domain, refined, probability.
    out
        File (h5ad) for the table with its results.
    """
    import stainseq as ss

    from .._files import check_output

    check_output(json)
    found = ss.tl.domains(
        data,
        n_domains=n_domains,
        method=method,
        region=region,
        table_key=table_key,
        layer=layer,
        sample=sample,
        histology=histology,
        image_features=image_features,
        window_um=window_um,
        layout=layout,
        stability=stability,
        key=key,
        csv=csv,
        out=out,
        seed=seed,
        **options(option),
    )
    sizes = {
        str(k): {"domain": int((found["domain"] == str(k)).sum()), "refined": int((found["refined"] == str(k)).sum())}
        for k in range(n_domains)
    }
    result = {"n_domains": n_domains, "sizes": sizes, "mean_probability": float(found["probability"].mean())}
    if stability:
        result["stability"] = found.attrs["stability"]

    def show(console: Console) -> None:
        shown = table("domain", "spots>", "after refinement>")
        for name, size in sizes.items():
            shown.add_row(name, str(size["domain"]), str(size["refined"]))
        console.print(shown)
        console.print(f"mean probability {number(result['mean_probability'])}")
        if stability:
            console.print(f"stability {number(result['stability'])} (adjusted Rand index between {stability} seeds)")

    emit(result, json, show)
