"""The command line: one thin command per public function. Nothing imports it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._run import run

__all__ = ["main", "run"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Parameters
    ----------
    argv
        Arguments; default those of the process.
    """
    raise SystemExit(run(list(sys.argv[1:] if argv is None else argv)))
