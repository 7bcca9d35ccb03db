"""Real tissue that comes with the package."""

from __future__ import annotations

from pathlib import Path

from ..errors import MissingError

HER2ST = ("C2", "C3", "C4")
"""Sections of one HER2-positive breast tumour that come with the package."""


def her2st(section: str) -> Path:
    """Folder of real tissue that comes with the package: an ST section of a HER2-positive breast tumour.

    Andersson et al., Nature Communications 12, 6012 (2021); Zenodo 4751624, CC BY 4.0.

    Parameters
    ----------
    section
        "C2", "C3" or "C4", all of patient C.

    Returns
    -------
    pathlib.Path
        A source for `io.convert`: H&E image, counts and spot positions.

    Raises
    ------
    MissingError
        No such section.
    """
    if section not in HER2ST:
        raise MissingError(f"no section {section!r} comes with the package", fix=f"one of: {', '.join(HER2ST)}")
    return Path(__file__).parents[1] / "data" / "her2st" / section
