"""Sets for training and testing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ._common import Json, Seed, emit
from ._common import table as shown_table

if TYPE_CHECKING:
    from rich.console import Console


def split(
    *paths: Annotated[Path, Parameter(help="A cohort CSV, or slide stores.")],
    out: Path,
    by: Literal["patient", "slide", "block"] = "patient",
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    block_um: float = 1000.0,
    buffer_um: float = 32.0,
    patches: str = "patches",
    region: str | None = None,
    labels: str | None = None,
    table: Annotated[str | None, Parameter(name=("--table", "--table-key"))] = None,
    label_map: str | None = None,
    max_shared: float | None = None,
    compat: bool = False,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Deal slides or patches to train, valid and test; fails where the sets share pixels, pictures or patients.

    Parameters
    ----------
    out
        JSON to write; `stainseq export --split-file` takes it.
    by
        Slides of a patient together, slides, or blocks of tissue within each slide.
    fractions
        Of train, valid and test.
    block_um
        Side of a block, um.
    buffer_um
        Least distance between patches of different sets with --by block, um.
    patches
        Name of the patches.
    region
        Nuclei or cells that the table of classes counts; nuclei, else cells, when left out.
    labels
        Their labels: a column of obs, or a CSV of id and label; the only NAME.label when left out.
    table
        Table of that column; the region's counts when left out.
    label_map
        ct_1, ct_2, ct_3, curated, or a file of label and category.
    max_shared
        Share that two sets may have in common, 0 to 1; 0 when left out.
    compat
        STHELAR's published random split of patches instead, with its leaks listed.
    """
    import stainseq as ss

    from ..errors import InputError

    if not paths:
        raise InputError("no slides given", fix="stainseq split COHORT.csv --out split.json")
    made = ss.tl.split(
        [str(p) for p in paths],
        by=by,
        fractions=fractions,
        seed=seed,
        block_um=block_um,
        buffer_um=buffer_um,
        patches=patches,
        region=region,
        labels=labels,
        table=table,
        label_map=label_map,
        max_shared=max_shared,
        compat=compat,
        out=out,
    )
    emit(made, json, lambda console: _show(console, made, out))


def _show(console: Console, made: dict[str, Any], out: Path) -> None:
    unit = "patches" if made["unit"] == "patch" else "slides"
    classes = list(next(iter(made["balance"].values()), {}))
    shown = shown_table("set", f"{unit}>", "share>", *(f"{c}>" for c in classes))
    for name, members in made["sets"].items():
        counts = (f"{made['balance'][name][c]:,}" for c in classes)
        shown.add_row(name, f"{len(members):,}", f"{made['shares'][name]:.1%}", *counts)
    console.print(shown)
    if made["left_out"]:
        console.print(f"{len(made['left_out'])} patches left out, between the sets")
    for leak in made["leaks"]:
        console.print(
            f"{' and '.join(leak['sets'])} share {leak['kind']}: {leak['a']}, {leak['b']}, {leak['shared']:.1%}"
        )
    console.print(f"{out}: " + (f"{len(made['leaks'])} leaks" if made["leaks"] else "nothing is shared"))
