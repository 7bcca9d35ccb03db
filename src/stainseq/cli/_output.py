"""What commands print: a table for people on stdout, and the same as JSON where it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

Json = Annotated[Path | None, Parameter(help="Write the figures as JSON too; /dev/stdout prints them alone.")]
Seed = Annotated[int, Parameter(help="Seed of everything random.")]
Overwrite = Annotated[bool, Parameter(negative=(), help="Replace what is there already.")]


class Output:
    """Prints for people unless JSON goes to stdout.

    Parameters
    ----------
    to
        Where JSON goes; None for nowhere.
    """

    def __init__(self, to: Path | None) -> None:
        self.to = to
        self.quiet = to is not None and str(to) in ("/dev/stdout", "-")

    def line(self, text: str = "") -> None:
        """One line on stdout."""
        if not self.quiet:
            sys.stdout.write(text + "\n")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
        """A table on stdout; numbers are set right."""
        if self.quiet:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, box=box.SIMPLE, title_justify="left", pad_edge=False)
        rows = [[_show(v) for v in row] for row in rows]
        for i, name in enumerate(columns):
            numeric = bool(rows) and all(_is_number(r[i]) for r in rows)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        # In a pipe a table is as wide as it needs to be: nobody greps folded cells.
        Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)

    def json(self, value: Any) -> None:
        """Write the machine copy, complete or not at all."""
        if self.to is None:
            return
        text = json.dumps(value, indent=1, allow_nan=False, default=str) + "\n"
        if self.quiet:
            sys.stdout.write(text)
        elif self.to.exists() and not self.to.is_file():
            self.to.write_text(text)
        else:
            staged = self.to.with_name(f".{self.to.name}.partial")
            staged.write_text(text)
            staged.replace(self.to)


def _show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.2e}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_show(v) for v in value)
    return str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "-"
    return True


def open_slide(path: Path) -> Any:
    """Open a store for a command."""
    from .. import store

    return store.open(path)
