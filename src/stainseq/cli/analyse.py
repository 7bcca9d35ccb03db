"""Analyses of tables: svg."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ._common import Json, Options, Seed, TableKey, emit, options, table

if TYPE_CHECKING:
    from rich.console import Console

Data = Annotated[Path, Parameter(help="A slide store, NAME.zarr, or an AnnData file, X.h5ad (which is not changed).")]


KeyPrefix = Annotated[
    str | None, Parameter(name=("--key", "--key-added"), help="Prefix of the results; the method's name when left out.")
]


def svg(
    data: Data,
    /,
    *,
    method: str | None = None,
    region: str = "spots",
    table_key: TableKey = None,
    layer: str | None = None,
    sample: list[str] | None = None,
    n_svg: int = 500,
    fdr: float = 0.05,
    min_spots: int = 3,
    min_counts: int = 0,
    kernel_space: str | None = None,
    sizefactors: str | None = None,
    obs_dist: Literal["negative_binomial", "normal"] | None = None,
    compat: bool | None = None,
    hvg: str | None = None,
    key: KeyPrefix = None,
    csv: Path | None = None,
    out: Path | None = None,
    max_gb: float = 4.0,
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
        Value of obs["sample"]; may be repeated. All samples when left out: each is tested on its own, and p-values
        are combined by Fisher's method.
    n_svg
        At most so many genes are marked as spatially variable.
    fdr
        And only those whose adjusted p-value is at most this (with --compat: whatever it is).
    min_spots
        Genes seen in fewer spots are not tested.
    min_counts
        Spots with fewer counts in all are left out; a note tells of spots with hardly any.
    kernel_space
        spatialde2, spatialde: length scales in um as JSON, such as '{"SE": [100, 400]}'.
    sizefactors
        spatialde2, spatialde: column of obs; total counts when left out.
    obs_dist
        spatialde2: null distribution; negative_binomial for counts when left out.
    compat
        spatialde2, spatialde: results as the original's, faults included.
    hvg
        Intersect with highly variable genes: a boolean column of var, or how many to take.
    csv
        File for the whole ranking.
    out
        File (h5ad) for the table with its results.
    max_gb
        Working memory, GB; larger matrices are read from disk in panels of genes.
    """
    import stainseq as ss

    given: dict[str, Any] = {
        "sizefactors": sizefactors,
        "obs_dist": obs_dist,
        "compat": compat,
        "kernel_space": None if kernel_space is None else options([f"kernel_space={kernel_space}"])["kernel_space"],
        "hvg": int(hvg) if hvg is not None and hvg.isdigit() else hvg,
    }
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
        min_counts=min_counts,
        key=key,
        csv=csv,
        out=out,
        max_gb=max_gb,
        seed=seed,
        **{**given, **options(option)},
    )
    tested = found[found["rank"].notna()]
    significant = int((tested["padj"] <= fdr).sum())
    genes = [{**g, "rank": None if g["rank"] != g["rank"] else int(g["rank"])} for g in found.to_dict(orient="records")]
    result = {
        "tested": len(tested),
        "significant": significant,
        "marked": int(found["svg"].sum()),
        **({"samples": int(found["n_samples"].max())} if "n_samples" in found else {}),
        **({"note": found.attrs["note"]} if "note" in found.attrs else {}),
        "genes": genes,
    }

    def show(console: Console) -> None:
        # As many as fit a line; files hold all.
        own = [c for c in found.columns if c not in ("gene", "padj", "svg", "rank")][:8]
        shown = table("rank>", "gene", *(f"{c}>" for c in own), "padj>")
        for row in genes[:10]:
            cells = (_value(row[c]) for c in own)
            rank = "-" if row["rank"] is None else str(row["rank"])
            shown.add_row(rank, str(row["gene"]), *cells, _value(row["padj"]))
        several = f" in {result['samples']} samples, combined by Fisher's method" if "samples" in result else ""
        console.print(f"tested {len(tested)} genes{several}; {significant} significant at fdr {fdr:g}")
        console.print(shown)
        if "note" in result:
            console.print(f"note: {result['note']}")

    emit(result, json, show)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.4g}"
    return str(value)
