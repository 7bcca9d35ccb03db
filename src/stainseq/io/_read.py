"""Any supported source to a slide: told by content, read lazily, converted to a store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import keys, registry
from ..errors import FormatError, InputError
from ._options import check_values

if TYPE_CHECKING:
    from spatialdata import SpatialData

__all__ = ["convert", "read", "sniff"]

LOOKED_INTO = 50
"""Sub-folders that are looked into for a hint, where a folder is no slide itself."""


def sniff(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Which platform a source is of, by its content.

    Parameters
    ----------
    path
        A folder, a path prefix (``her2st/C2/C2``), or a file that names the slide.

    Returns
    -------
    tuple
        Name of the reader, and what it recognised.

    Raises
    ------
    FormatError
        Nothing is there, or no reader knows it; says what each looks for.
    """
    path = Path(path)
    there = path.exists()
    if there and path.is_dir() and not any(path.iterdir()):
        raise FormatError("an empty folder", where=path, fix="check the path")
    if there and (path / "zarr.json").is_file():
        raise FormatError("a store already", where=path, fix="open it (stainseq.io.open)")
    for name in _by_priority():
        what = registry.load("readers", name).sniff(path)
        if what is not None:
            return name, str(what)
    if not there and not _is_prefix(path):
        raise FormatError("nothing there", where=path, fix="give a folder, a file, or a path prefix such as DIR/C2")
    inside = _recognised(path)
    if inside:
        shown = ", ".join(f"{name} ({platform})" for name, platform in inside[:6]) + (", ..." if inside[6:] else "")
        raise FormatError(
            f"{len(inside)} slides in it, not one", where=path, fix=f"name one, or all of them in a cohort CSV: {shown}"
        )
    raise FormatError(
        "no supported platform recognised",
        where=path,
        fix=f"looked for {', '.join(registry.names('readers'))} (`stainseq list readers` says what each is); if it is "
        "one of them, --platform NAME tells what is missing",
    )


def _recognised(folder: Path) -> list[tuple[str, str]]:
    """Sub-folders that are slides of a platform, and which."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(p for p in folder.iterdir() if p.is_dir())[:LOOKED_INTO]:
        for name in _by_priority():
            if registry.load("readers", name).sniff(path) is not None:
                found.append((path.name, name))
                break
    return found


def _is_prefix(path: Path) -> bool:
    return path.parent.is_dir() and any(p.name.startswith(path.name) for p in path.parent.iterdir())


def _by_priority() -> list[str]:
    """Readers, the more particular first."""

    def rank(name: str) -> tuple[int, str]:
        return -int(getattr(registry.load("readers", name), "PRIORITY", 0)), name

    return sorted(registry.names("readers"), key=rank)


def read(
    path: str | os.PathLike[str],
    *,
    platform: str | None = None,
    mpp: float | None = None,
    slide: str | None = None,
    patient: str | None = None,
    tissue: str | None = None,
    **options: Any,
) -> SpatialData:
    """Read a source of any supported platform, lazily, without writing anything.

    Parameters
    ----------
    path
        A folder, a path prefix, or a file that names the slide.
    platform
        Name of a reader (`stainseq list readers`); default by content.
    mpp
        Microns per pixel; default from the array's pitch or the metadata, reported in the facts.
    slide, patient, tissue
        Facts of the slide. `slide` defaults to the source's own name; where a folder holds several, it picks one.
    options
        Of the reader, such as ``image=``, ``obs=``, ``pitch_um=``.

    Returns
    -------
    SpatialData
        - image ``he`` : uint8 (c, y, x), lazy, with the file's pyramid; coordinate systems "global" (pixels), "um".
        - shapes ``spots`` : points and radius, um.
        - table ``counts_spots`` : raw counts, CSR int32; ``obsm["spatial"]`` in um; ``uns["stainseq_read"]["notes"]``
          says what was joined, dropped and changed.
        - ``attrs["stainseq"]`` : slide, patient, tissue, platform, mpp, mpp_from, and what the reader found.

    Raises
    ------
    FormatError
        No supported platform; truncated or damaged files.
    InputError
        Data that cannot be right (duplicate ids, missing coordinates, counts that are none), an unknown option.
    ScaleError
        No pixel size; image and coordinates in different frames.
    """
    path = Path(path)
    name = platform or sniff(path)[0]
    reader = registry.load("readers", name)
    facts = {k: str(v) for k, v in {"slide": slide, "patient": patient, "tissue": tissue}.items() if v is not None}
    _check_options(reader, name, {"mpp": mpp, **options})
    return reader.read(path, mpp=None if mpp is None else float(mpp), facts=facts, **options)


def _check_options(reader: Any, name: str, options: dict[str, Any]) -> None:
    import inspect

    known = inspect.signature(reader.read).parameters
    own = [k for k in known if k not in ("path", "mpp", "facts")]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    wrong = [k for k in options if k not in known or k in ("path", "facts")]
    if wrong and not open_ended:
        raise InputError(
            f"the reader {name} has no option {', '.join(wrong)}", fix=f"its options: {', '.join(own) or 'none'}"
        )
    check_values(reader.read, options)


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    platform: str | None = None,
    mpp: float | None = None,
    patient: str | None = None,
    tissue: str | None = None,
    slide: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> SpatialData:
    """Convert a source of any supported platform to a slide store.

    Images are streamed; the store appears under its name only when it is complete, and its elements carry the
    fingerprints of the files they were made from.

    Parameters
    ----------
    source
        A folder, a path prefix, or a file that names the slide.
    out
        The store to make, by custom ``NAME.zarr``.
    platform
        Name of a reader; default by content.
    mpp
        Microns per pixel; default from the array's pitch or the metadata.
    patient, tissue, slide
        Facts of the slide, kept in ``attrs["stainseq"]``.
    overwrite
        Replace a store that is there; it stays until the new one is complete.
    options
        Of the reader.

    Returns
    -------
    SpatialData
        The slide, opened from `out`.

    Raises
    ------
    FormatError, InputError, ScaleError
        As `read`.
    StoreError
        `out` exists (without `overwrite`), cannot be written, or the disk is full.
    """
    from .. import spec, store

    _check_out(Path(out), overwrite=overwrite)
    sdata = read(source, platform=platform, mpp=mpp, slide=slide, patient=patient, tissue=tissue, **options)
    facts = sdata.attrs.pop(keys.STAMP)
    files = {role: Path(p) for role, p in facts.pop("files", {}).items()}
    inputs = {f"{role}: {p.name}": spec.fingerprint_file(p) for role, p in files.items()}
    facts["files"] = {role: p.name for role, p in files.items()}
    parameters = {"platform": facts["platform"], "mpp": mpp, **{k: _plain(v) for k, v in options.items()}}
    return store.create(
        out, sdata, step="convert", parameters=parameters, inputs=inputs, facts=facts, overwrite=overwrite
    )


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse before minutes of reading what the store would refuse after."""
    from .._files import check_folder
    from ..errors import StoreError

    if out.exists() and not overwrite:
        raise StoreError(
            "there is something already", where=out, fix="give another name, or overwrite it (--overwrite)"
        )
    check_folder(out)


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Path) else value
