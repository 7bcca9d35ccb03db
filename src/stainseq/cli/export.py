"""Slides to the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ._common import Json, NoSeed, emit, options

if TYPE_CHECKING:
    from rich.console import Console


def export(
    *paths: Annotated[Path, Parameter(help="Slide stores (or h5ad files), then the file or folder to make.")],
    to: Annotated[str, Parameter(help="Format (stainseq list writers).")],
    region: str | None = None,
    table: Annotated[list[str] | None, Parameter(name=("--table", "--table-key"))] = None,
    split_file: Path | None = None,
    overwrite: bool = False,
    option: Annotated[
        list[str] | None,
        Parameter(name="--option", help="NAME=VALUE, an option of the format; an unknown one lists those there are."),
    ] = None,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Write slides in the format of another tool; what is written appears only when it is complete.

    Parameters
    ----------
    region
        Regions; those of the table, or the format's own, when left out.
    table
        Table that is written; may be repeated where the format takes several. The region's counts or prediction when
        left out.
    split_file
        What goes to which part: JSON of stainseq split, or CSV with the columns slide and part (train, test).
    overwrite
        Replace an earlier export. Nothing else is ever replaced.
    """
    import stainseq as ss

    from ..errors import InputError

    if len(paths) < 2:
        raise InputError(
            "the slides, then what to make, are needed", fix="stainseq export SLIDE.zarr --to superpixel FOLDER"
        )
    made = ss.io.export(
        list(paths[:-1]),
        paths[-1],
        to=to,
        region=region,
        table=table,
        split_file=split_file,
        overwrite=overwrite,
        **options(option),
    )
    result: dict[str, Any] = {"to": to, "out": paths[-1], "files": made}

    def show(console: Console) -> None:
        size = sum(p.stat().st_size for p in made)
        names = ", ".join(p.name for p in made[:8]) + (", ..." if len(made) > 8 else "")
        console.print(f"{paths[-1]}: {len(made)} files, {size / 1e6:.1f} MB ({names})")

    emit(result, json, show)
