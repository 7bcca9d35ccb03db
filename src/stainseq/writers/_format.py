"""What a writer says of itself, and what every writer is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Format:
    """What a format takes and makes; `io.export` chooses and checks by it, before anything is written.

    Parameters
    ----------
    suffixes
        Endings of the file; none: a folder.
    tables
        "one", "several", "optional" (one or none) or "none".
    prefers
        Which tables are meant where none is named, by the start of their names, the first that is there.
    region
        Regions that are meant where none are named and the slide has them.
    needs_region
        Whether there must be a region.
    image
        Whether the picture is written, too.
    several
        One output of all slides: ``write`` gets a list of slides. Otherwise each is written by itself, several into a
        folder, each by its name.
    prefix
        The last part of the output may be the beginning of all file names (``data/P2/P2-``).
    """

    suffixes: tuple[str, ...] = ()
    tables: Literal["one", "several", "optional", "none"] = "one"
    prefers: tuple[str, ...] = ("counts_", "pred_")
    region: str | None = None
    needs_region: bool = False
    image: bool = False
    several: bool = False
    prefix: bool = False
