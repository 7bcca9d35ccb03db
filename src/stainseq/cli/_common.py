"""What the commands share: parameters, and printing for people and for machines."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from spatialdata import SpatialData


def _writable(kind: Any, path: Path | None) -> None:
    """Refuse a file that cannot be written before the command does its work."""
    from .._files import check_output

    check_output(path)


Slide = Annotated[Path, Parameter(help="A slide store, NAME.zarr.")]
Json = Annotated[
    Path | None,
    Parameter(
        name="--json", validator=_writable, help="Write the figures as JSON to this file, too; /dev/stdout works."
    ),
]
Seed = Annotated[int, Parameter(help="Seed of everything random.")]
NoSeed = Annotated[int, Parameter(name="--seed", help="Taken by every command; nothing here is random.")]
Options = Annotated[
    list[str] | None,
    Parameter(name="--option", help="NAME=VALUE, an option of the method or reader itself; may be repeated."),
]

Key = Annotated[
    str | None, Parameter(name=("--key", "--key-added"), help="Another name for the table that is written.")
]
TableKey = Annotated[
    str | None,
    Parameter(
        name=("--table", "--table-key", "--modality"),
        help="Name of the table, or of the modality of an h5mu file; the region's counts, or the only one that has "
        "coordinates, when left out.",
    ),
]

_STDOUT = ("/dev/stdout", "-", "/dev/fd/1", "/proc/self/fd/1")


def emit(result: Any, json: Path | None, show: Callable[[Console], None]) -> None:
    """Print for people on stdout, and write for machines where asked; with JSON on stdout, nothing else is there.

    Parameters
    ----------
    result
        What the JSON holds.
    json
        Where it goes, or None.
    show
        Prints the same for people.
    """
    from .._files import plain, write_json

    if json is not None and str(json) in _STDOUT:
        sys.stdout.write(jsonlib.dumps(plain(result), indent=1, allow_nan=False) + "\n")
        return
    if json is not None:
        write_json(json, result)
    from rich.console import Console

    # Square brackets are text, as in "pip install 'stainseq[timm]'". Where there is no terminal, tables are not cut.
    show(Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140))


def open_to_change(path: Path) -> SpatialData:
    """Open a slide store that the command will write to; refused at once where that cannot be.

    Parameters
    ----------
    path
        The store.

    Raises
    ------
    StoreError
        There is none, or it is read-only.
    """
    import stainseq as ss

    from .._files import check_folder

    sdata = ss.io.open(path)
    check_folder(path)
    return sdata


def options(given: Sequence[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs; values are read as JSON where they are, else as text.

    Parameters
    ----------
    given
        As typed.

    Raises
    ------
    InputError
        No "=".
    """
    out: dict[str, Any] = {}
    for item in given or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InputError(f"--option {item!r} is not NAME=VALUE", fix="write for instance --option n_neighbors=8")
        try:
            out[name.strip().replace("-", "_")] = jsonlib.loads(value)
        except ValueError:
            out[name.strip().replace("-", "_")] = value
    return out


def table(*columns: str, title: str | None = None) -> Table:
    """A plain table; columns whose name ends in ">" are flushed right."""
    from rich.table import Table

    made = Table(title=title, box=None, pad_edge=False, title_justify="left", header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        right = name.endswith(">")
        made.add_column(name.rstrip(">"), justify="right" if right else "left", overflow="fold")
    return made


def number(value: Any, digits: int = 3) -> str:
    """A number to so many decimals; a dash where there is none."""
    if value is None or value != value:
        return "-"
    return f"{value:.{digits}f}"


def show_scores(console: Console, metrics: dict[str, Any]) -> None:
    """Scores beside their baselines and ceiling, as every command that scores prints them.

    Parameters
    ----------
    console
        Where to.
    metrics
        As `tl.evaluate` returns them.
    """
    names = [m for m in ("pearson", "spearman", "rmse", "r2", "ssim") if metrics["summary"].get(m) is not None]
    shown = table("", *(f"{m}>" for m in names), "95 % interval of pearson")
    rows = [("this model", metrics["summary"])]
    rows += [(k.replace("_", " "), v) for k, v in metrics.get("baseline", {}).items()]
    for name, entry in rows:
        interval = entry.get("interval")
        known = interval is not None and None not in interval
        span = f"{number(interval[0])} to {number(interval[1])}" if known else ""
        shown.add_row(name, *(number(entry.get(m)) for m in names), span)
    ceiling = metrics.get("ceiling") or {}
    if ceiling.get("pearson") is not None:
        shown.add_row("noise ceiling", *(number(ceiling.get(m)) if m in ceiling else "" for m in names), "")
    console.print(f"{metrics.get('n', '?')} regions, {len(metrics.get('genes', []))} genes, means over genes")
    if metrics.get("note"):
        console.print(metrics["note"])
    console.print(shown)
