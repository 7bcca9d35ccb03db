"""Any slide with H&E alone: SVS, TIFF, OME-TIFF, BigTIFF, JPEG, PNG, and what openslide reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatialdata import SpatialData

PRIORITY = 0


def sniff(path: Path) -> str | None:
    """What is recognised at `path`, or None.

    Parameters
    ----------
    path
        An image file.
    """
    from ._images import kind_of

    if not path.is_file():
        return None
    kind = kind_of(path)
    if kind is not None:
        return f"{kind.upper()} image"
    try:
        import openslide
    except ImportError:
        return None
    vendor = openslide.OpenSlide.detect_format(path)
    return f"{vendor} slide (openslide)" if vendor else None


def read(
    path: Path,
    *,
    mpp: float | None = None,
    facts: dict[str, Any] | None = None,
    backend: str | None = None,
) -> SpatialData:
    """Read a slide image lazily, with its pyramid.

    Parameters
    ----------
    path
        The image; its kind is told by content.
    mpp
        Microns per pixel; default the metadata's (Aperio MPP, OME PhysicalSize, openslide's, TIFF resolution in cm or
        inch when finer than 10 um). It is never guessed.
    facts
        slide, patient, tissue, platform where known.
    backend
        "openslide" to read through openslide.

    Raises
    ------
    FormatError
        Not an image, truncated or damaged.
    ScaleError
        No pixel size in the metadata and none given.
    """
    from ._build import Notes, assemble, used_files
    from ._images import open_image
    from ._scale import resolve_mpp

    facts = {**(facts or {}), "platform": "wsi"}
    facts["slide"] = facts.get("slide") or path.name.split(".")[0]
    notes = Notes(str(facts["slide"]))
    picture = open_image(path, backend=backend)
    facts["mpp"], facts["mpp_from"] = resolve_mpp(picture, mpp)
    if mpp is not None and picture.mpp is not None and abs(mpp / picture.mpp[0] - 1) > 0.02:
        notes(f"--mpp {mpp:g} overrides {picture.mpp[0]:g} of the metadata ({picture.mpp_from})")
    height, width = picture.shape
    levels = len(picture.levels)
    notes(f"{picture.kind} of {width} x {height} px, {levels} level{'s'[: levels > 1]}, {facts['mpp']:.4g} um/px")
    facts["files"] = used_files(image=path)
    return assemble(facts=facts, notes=notes, picture=picture, spots=None)
