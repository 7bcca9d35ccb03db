"""Analyses of tables: svg, domains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ._common import Json, Options, Seed, TableKey, emit, number, options, table

if TYPE_CHECKING:
    from rich.console import Console

Data = Annotated[Path, Parameter(help="A slide store, NAME.zarr, or an AnnData file, X.h5ad (which is not changed).")]


def svg(
    data: Data,
    /,
    *,
    method: str | None = None,
    region: str = "spots",
    table_key: TableKey = None,
    layer: str | None = None,
    sample: str | None = None,
    n_svg: int = 500,
    fdr: float = 0.05,
    min_spots: int = 3,
    key: str | None = None,
    csv: Path | None = None,
    out: Path | None = None,
    option: Options = None,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Rank genes by how much their expression depends on place.

    Parameters
    ----------
    method
        Test (stainseq list svg); the documented default when left out.
    region
        Regions whose counts table is taken.
    layer
        Layer instead of X.
    sample
        Value of obs["sample"], where there are several.
    n_svg
        At most so many genes are marked as spatially variable.
    fdr
        And only those whose adjusted p-value is at most this.
    min_spots
        Genes seen in fewer spots are not tested.
    key
        Prefix of the results; the method's name when left out.
    csv
        File for the whole ranking.
    out
        File (h5ad) for the table with its results.
    """
    import stainseq as ss

    found = ss.tl.svg(
        data,
        method=method,
        region=region,
        table_key=table_key,
        layer=layer,
        sample=sample,
        n_svg=n_svg,
        fdr=fdr,
        min_spots=min_spots,
        key=key,
        csv=csv,
        out=out,
        seed=seed,
        **options(option),
    )
    tested = found[found["rank"].notna()]
    significant = int((tested["padj"] <= fdr).sum())
    result = {
        "tested": len(tested),
        "significant": significant,
        "marked": int(found["svg"].sum()),
        "genes": found.to_dict(orient="records"),
    }

    def show(console: Console) -> None:
        own = [c for c in found.columns if c not in ("gene", "padj", "svg", "rank")]
        shown = table("rank>", "gene", *(f"{c}>" for c in own), "padj>")
        for row in found.head(10).to_dict(orient="records"):
            cells = (_value(row[c]) for c in own)
            shown.add_row(f"{row['rank']:.0f}", str(row["gene"]), *cells, _value(row["padj"]))
        console.print(f"tested {len(tested)} genes; {significant} significant at fdr {fdr:g}")
        console.print(shown)

    emit(result, json, show)


def domains(
    data: Data,
    /,
    *,
    n_domains: int,
    method: str | None = None,
    region: str = "spots",
    table_key: TableKey = None,
    layer: str | None = None,
    sample: str | None = None,
    image_features: str | None = None,
    layout: str | None = None,
    key: str | None = None,
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
    image_features
        Features table that is joined to the expression.
    layout
        hexagon, square or free; found from the distances when left out.
    key
        Prefix of the results; the method's name when left out.
    csv
        File for id, domain, refined, probability.
    out
        File (h5ad) for the table with its results.
    """
    import stainseq as ss

    found = ss.tl.domains(
        data,
        n_domains=n_domains,
        method=method,
        region=region,
        table_key=table_key,
        layer=layer,
        sample=sample,
        image_features=image_features,
        layout=layout,
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

    def show(console: Console) -> None:
        shown = table("domain", "spots>", "after refinement>")
        for name, size in sizes.items():
            shown.add_row(name, str(size["domain"]), str(size["refined"]))
        console.print(shown)
        console.print(f"mean probability {number(result['mean_probability'])}")

    emit(result, json, show)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.4g}"
    return str(value)
