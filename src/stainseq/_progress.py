"""Progress bars on stderr; silent when `settings.progress` is off or stderr is no terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._settings import settings


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar that is advanced by calling what `with` yields.

    Parameters
    ----------
    what
        What is being done.
    total
        Number of steps; None when unknown.
    """
    if not (settings.progress and sys.stderr.isatty()):
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    lock = threading.Lock()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(n: int) -> None:
            with lock:
                bar.advance(task, n)

        yield advance
