"""Cell types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ._common import Json, Options, Seed, TableKey, emit, number, options, table
from .analyse import Data, KeyPrefix

if TYPE_CHECKING:
    from rich.console import Console

Reference = Annotated[Path, Parameter(help="Labelled single cells with raw counts, an h5ad file.")]


def annotate(
    data: Data,
    /,
    *,
    reference: Reference,
    method: str | None = None,
    label_key: str = "ct",
    reference_layer: str | None = None,
    region: str = "cells",
    table_key: TableKey = None,
    layer: str | None = None,
    sample: str | None = None,
    min_counts: int = 10,
    min_reference_cells: int = 1,
    key: KeyPrefix = None,
    csv: Path | None = None,
    out: Path | None = None,
    option: Options = None,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Give every cell the type of a labelled reference that its expression fits.

    Parameters
    ----------
    method
        Method (stainseq list annotators); the documented default when left out.
    label_key
        Column of the reference's obs with the types.
    reference_layer
        Layer of the reference with raw counts, instead of X.
    region
        Whose counts are taken: cells or nuclei.
    layer
        Layer instead of X.
    sample
        Value of obs["sample"], where there are several.
    min_counts
        Cells with at most so many counts are called "few counts".
    min_reference_cells
        Types with fewer cells in the reference are left out.
    csv
        File for the labels.
    out
        File (h5ad) for the table with its results.
    """
    import stainseq as ss

    found = ss.tl.annotate(
        data,
        reference,
        method=method,
        label_key=label_key,
        reference_layer=reference_layer,
        region=region,
        table_key=table_key,
        layer=layer,
        sample=sample,
        min_counts=min_counts,
        min_reference_cells=min_reference_cells,
        key=key,
        csv=csv,
        out=out,
        seed=seed,
        **options(option),
    )
    sizes = found["label"].value_counts()
    sure = found.groupby("label")["proportion"].mean()
    rows = [(str(k), int(n), float(sure[k])) for k, n in sizes.items()]
    result: dict[str, Any] = {
        "cells": len(found),
        "labels": [dict(zip(("label", "cells", "mean_proportion"), row, strict=True)) for row in rows],
        **found.attrs["info"],
    }

    def show(console: Console) -> None:
        console.print(f"{len(found)} cells, {result['shared_genes']} shared genes (by {result['matched_by']})")
        if result["types_left_out"]:
            console.print(f"types left out of the reference: {', '.join(result['types_left_out'])}")
        shown = table("label", "cells>", "share>", "mean proportion>")
        for label, n, mean in rows:
            shown.add_row(label, str(n), f"{n / len(found):.1%}", number(mean))
        console.print(shown)

    emit(result, json, show)
