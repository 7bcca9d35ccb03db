"""What domains are made of: markers, metagene; one set of domains over samples: integrate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ._common import Json, NoSeed, Options, Seed, TableKey, emit, number, options, table

if TYPE_CHECKING:
    from rich.console import Console

Data = Annotated[Path, Parameter(help="A slide store, NAME.zarr, or an AnnData file, X.h5ad (which is not changed).")]


def markers(
    data: Data,
    /,
    *,
    domain_key: str,
    domains: Annotated[list[str] | None, Parameter(name=("--domain", "--domains"))] = None,
    region: str = "spots",
    table_key: TableKey = None,
    layer: str | None = None,
    sample: list[str] | None = None,
    against: Literal["neighbours", "rest"] = "neighbours",
    min_in_group_fraction: float = 0.8,
    min_in_out_group_ratio: float = 1.0,
    min_fold_change: float = 1.5,
    max_q: float = 0.05,
    num_neighbours: int = 3,
    ratio: float = 0.5,
    radius_quantiles: tuple[float, float] = (0.001, 0.1),
    num_min: float = 10,
    num_max: float = 14,
    max_run: int = 100,
    key: str = "markers",
    csv: Path | None = None,
    out: Path | None = None,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Find the genes that mark each domain against those around it.

    Parameters
    ----------
    domain_key
        Column of obs with the domains, such as spagcn.refined.
    domains
        Domain to look at; may be repeated; all when left out.
    region
        Regions whose counts table is taken.
    layer
        Layer instead of X.
    sample
        Value of obs["sample"]; may be repeated; all, taken together, when left out.
    against
        neighbours: the domains around it; rest: all other spots.
    min_in_group_fraction
        Least share of the domain's spots that have the gene, 0 to 1.
    min_in_out_group_ratio
        That share over the one outside must exceed this.
    min_fold_change
        exp of the difference of mean log expression must exceed this.
    max_q
        Benjamini-Hochberg value must be below this.
    num_neighbours
        Neighbouring domains compared with, at most.
    ratio
        A domain is a neighbour if its spots are met more often than this times its size.
    radius_quantiles
        Quantiles of all distances between which the search for the radius starts.
    num_min
        Least mean number of spots within the radius in which spots are met.
    num_max
        Largest such number.
    max_run
        Steps of the search for the radius.
    key
        Entry of uns that the result goes to.
    csv
        File for the markers.
    out
        File (h5ad) for the table with its results.
    """
    import stainseq as ss

    from .._files import check_output

    check_output(json)
    found = ss.tl.markers(
        data,
        domain_key=domain_key,
        domains=domains,
        region=region,
        table_key=table_key,
        layer=layer,
        sample=sample,
        against=against,
        min_in_group_fraction=min_in_group_fraction,
        min_in_out_group_ratio=min_in_out_group_ratio,
        min_fold_change=min_fold_change,
        max_q=max_q,
        num_neighbours=num_neighbours,
        ratio=ratio,
        radius_quantiles=radius_quantiles,
        num_min=num_min,
        num_max=num_max,
        max_run=max_run,
        key=key,
        csv=csv,
        out=out,
    )
    status = found.attrs["status"]
    result = {"domains": status, "failed": found.attrs["failed"], "markers": found.to_dict(orient="records")}

    def show(console: Console) -> None:
        shown = table("domain", "gene", "pct.in>", "pct.out>", "fc>", "log10.q>")
        for name in status:
            for row in found[found["domain"] == name].head(5).to_dict(orient="records"):
                cells = (number(row[c]) for c in ("pct.in", "pct.out", "fc"))
                shown.add_row(name, str(row["gene"]), *cells, number(row["log10.q"], 1))
        console.print(f"{len(found)} markers of {len(status)} domains; the first five of each:")
        console.print(shown)
        for name, state in status.items():
            if name not in set(found["domain"]):
                console.print(f"domain {name}: {state}")

    emit(result, json, show)


def metagene(
    data: Data,
    /,
    *,
    target: str,
    domain_key: str,
    markers_key: str = "markers",
    start_gene: str | None = None,
    max_iter: int = 3,
    region: str = "spots",
    table_key: TableKey = None,
    layer: str | None = None,
    sample: list[str] | None = None,
    key: str | None = None,
    csv: Path | None = None,
    out: Path | None = None,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Find a sum and difference of genes that marks one domain more sharply than any gene alone.

    Parameters
    ----------
    target
        Domain to mark; all for every one.
    domain_key
        Column of obs with the domains, such as spagcn.refined.
    markers_key
        Entry of uns with markers, whose first gene the search starts from.
    start_gene
        Gene to start from; when left out, the first marker, or without markers the gene with the highest rank sum.
    max_iter
        Rounds at most; each adds one gene and subtracts one.
    region
        Regions whose counts table is taken.
    layer
        Layer instead of X.
    sample
        Value of obs["sample"]; may be repeated; all, taken together, when left out.
    key
        Column of obs and entry of uns; metagene.TARGET when left out.
    csv
        File for the genes, signs and rounds.
    out
        File (h5ad) for the table with its results.
    """
    import stainseq as ss

    from .._files import check_output

    check_output(json)
    found = ss.tl.metagene(
        data,
        target=target,
        domain_key=domain_key,
        markers_key=markers_key,
        start_gene=start_gene,
        max_iter=max_iter,
        region=region,
        table_key=table_key,
        layer=layer,
        sample=sample,
        key=key,
        csv=csv,
        out=out,
    )
    result: dict[str, Any] = {}
    for name, place in found.attrs["keys"].items():
        mine = found[found["domain"] == name]
        chain = [f"{'+' if s > 0 else '-'} {g}" for g, s in zip(mine["gene"], mine["sign"], strict=True)]
        records = mine.drop(columns="domain").to_dict(orient="records")
        result[name] = {"key": place, "formula": " ".join(chain).removeprefix("+ "), "genes": records}

    def show(console: Console) -> None:
        for name, one in result.items():
            rounds = [r for r in one["genes"] if r["round"] > 0]
            for plus, minus in zip(rounds[::2], rounds[1::2], strict=True):
                console.print(
                    f"round {plus['round']}: add {plus['gene']}, subtract {minus['gene']}; difference of means "
                    f"{number(plus['difference'])}; look-alikes outside {plus['outside']:.0f}"
                )
            console.print(f"metagene of {name} ({one['key']}): {one['formula']}")

    emit({"metagenes": result}, json, show)


def integrate(
    *data: Annotated[
        Path, Parameter(help='Two or more stores or AnnData files, or one file with several values of obs["sample"].')
    ],
    n_domains: Annotated[int, Parameter(name=("--n-domains", "--n-clusters"))],
    method: str | None = None,
    correction: Literal["none", "centre", "harmony"] | None = None,
    key: str = "integrated",
    region: str = "spots",
    table_key: TableKey = None,
    layer: str | None = None,
    histology: bool = False,
    image_features: str | None = None,
    window_um: float = 50.0,
    layout: str | None = None,
    csv: Path | None = None,
    out: Path | None = None,
    option: Options = None,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Divide several samples into one set of exactly so many domains.

    Parameters
    ----------
    n_domains
        How many over all samples; a sample need not have all of them.
    method
        Method (stainseq list domains); the documented default when left out.
    correction
        Of shifts between samples, in kmeans and kriging; the method's own way when left out.
    key
        Name of the result: column of obs, prefix of the rest.
    region
        Regions whose counts table is taken.
    layer
        Layer instead of X.
    histology
        Join the colour of the H&E around each spot to its expression.
    image_features
        Join these vectors in place of colour: an encoder whose features are there, a features table, or an obsm key.
        For images alone, name the features table with --table instead.
    window_um
        Side of the square whose colour is taken, um.
    layout
        hexagon, square or free; found from the distances when left out.
    csv
        File for sample, id, domain, refined, probability.
    out
        File (h5ad) for all samples in one table, or a folder for that and one file per sample. Without it, results are
        written into the stores; files are never changed.
    """
    import stainseq as ss

    from .._files import check_output

    check_output(json)
    found = ss.tl.integrate(
        list(data),
        n_domains=n_domains,
        method=method,
        correction=correction,
        key=key,
        region=region,
        table_key=table_key,
        layer=layer,
        histology=histology,
        image_features=image_features,
        window_um=window_um,
        layout=layout,
        csv=csv,
        out=out,
        seed=seed,
        **options(option),
    )
    names = [str(d) for d in range(n_domains)]
    sizes = {str(s): {d: int((f["refined"] == d).sum()) for d in names} for s, f in found.groupby("sample")}
    result = {"n_domains": n_domains, "key": key, "samples": sizes, "mixing": found.attrs["mixing"]}

    def show(console: Console) -> None:
        shown = table("domain", *(f"{s}>" for s in sizes))
        for name in names:
            shown.add_row(name, *(str(size[name]) for size in sizes.values()))
        console.print("spots of each sample after refinement")
        console.print(shown)
        console.print(f"mixing of samples (integration LISI: 0 apart, 1 like one sample) {number(result['mixing'])}")

    emit(result, json, show)
