"""Slides to the formats of other tools: chosen and checked first, written aside, moved into place in one step."""

from __future__ import annotations

import errno
import os
import re
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import registry, spec
from ..errors import FormatError, InputError, MissingError, StoreError
from ._options import check_values

if TYPE_CHECKING:
    from spatialdata import SpatialData

FACTS = "export.json"
"""What was written from what; in the folder of an export, and beside one that is a file as ``NAME.export.json``."""

TABLE = "table"
"""What the table of an AnnData or MuData file is called."""

_GIVEN = ("sdata", "slides", "path", "region", "tables", "facts")


def export(
    slides: Any,
    path: str | os.PathLike[str],
    *,
    to: str,
    region: str | None = None,
    table: str | Sequence[str] | None = None,
    split_file: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> list[Path]:
    """Write slides in the format of another tool.

    What is written appears under its name only when it is complete, with the facts of what it was made from
    (``export.json`` in a folder, ``NAME.export.json`` beside a file).

    Parameters
    ----------
    slides
        A slide (SpatialData or the path of a store), or several. For formats that need expression alone, an h5ad or
        h5mu file does (``FILE.h5mu/NAME`` names a modality).
    path
        File or folder to make. For "superpixel" it may end in the beginning of the file names (``data/P2/P2-``), and
        the folder before it is made. Several slides: a folder with one output each, unless the format holds several.
    to
        Name of a writer (`stainseq list writers`).
    region
        Regions. Default: those of the table, or the format's own.
    table
        Table, or tables where the format takes several. Default: the region's counts, or its only prediction,
        whichever the format is for.
    split_file
        What `tl.split` writes (JSON: ``{"sets": {"train": [...], ...}}``, of slides or patches), or a CSV with the
        columns ``slide`` and ``part``: what goes to which part. Patches can be told apart only by formats of patches.
    overwrite
        Replace an earlier export; nothing else is ever replaced. The old one stays until the new one is complete.
    options
        Of the writer.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    MissingError
        An unknown format (the message lists them), no such table or regions.
    InputError
        Options or an output that the format does not have; values that it cannot hold.
    StoreError
        `path` exists (without `overwrite`), is no export, or cannot be written; nothing has changed then.
    """
    writer = registry.load("writers", to)
    form = writer.FORMAT
    _check_options(writer, to, options)
    opened = _opened(slides)
    target, prefix = _target(Path(path), form, several=len(opened) > 1)
    if prefix:
        options = {"prefix": prefix, **options}
    _check_target(target, overwrite=overwrite)
    parts = _parts(Path(split_file), list(opened), patches=form.several) if split_file is not None else {}
    if parts and not {"part", "split"} & set(_parameters(writer)):
        raise InputError(f"{to} knows no parts", fix="leave the split file out")
    wanted = [table] if isinstance(table, str) else list(table or ())
    with _staged(target) as stage:
        made: list[Path] = []
        stamps = []
        if form.several:
            chosen, stamp = _of_several(opened, form, to, region, wanted, options)
            more = {"split": parts} if parts else {}
            made += _write(writer, list(opened.values()), stage, form, chosen, stamp, {**options, **more})
            stamps.append(stamp)
        else:
            many = len(opened) > 1
            for name, sdata in opened.items():
                chosen_one = _choose(sdata, form, to, region, wanted)
                stamp = spec.stamp("export", parameters=_told(to, chosen_one, options), inputs={}, slide=_facts(sdata))
                stamp["inputs"] = _inputs(sdata, form, chosen_one)
                own = {"part": parts[name]} if parts else {}
                place = stage / (name + (form.suffixes[0] if form.suffixes else "")) if many else stage
                made += _write(writer, sdata, place, form, chosen_one, stamp, {**options, **own})
                stamps.append(stamp)
        _take(stage, target, stamps if len(stamps) > 1 else stamps[0])
    return [target / p.relative_to(stage) if p != stage else target for p in made]


def _of_several(
    opened: dict[str, SpatialData], form: Any, to: str, region: str | None, wanted: list[str], options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """What is meant, the same on all slides, and the facts of one output of all."""
    chosen = {name: _choose(s, form, to, region, wanted) for name, s in opened.items()}
    first = next(iter(chosen.values()))
    other = next((name for name, c in chosen.items() if c != first), None)
    if other is not None:
        raise InputError(
            f"the slides differ in what would be written: {first[0]} with {', '.join(first[1]) or 'no table'}, and "
            f"{chosen[other][0]} with {', '.join(chosen[other][1]) or 'no table'} of {other}",
            fix="name the region and the table that all have",
        )
    inputs = {name: _inputs(s, form, first) for name, s in opened.items()}
    facts = [_facts(s) for s in opened.values()]
    told = {"slide": facts[0]} if len(facts) == 1 else {"slides": facts}
    stamp = spec.stamp("export", parameters=_told(to, first, options), inputs={}, **told)
    stamp["inputs"] = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return first, stamp


def _write(writer: Any, data: Any, place: Path, form: Any, chosen: Any, stamp: dict[str, Any], options: Any) -> Any:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not form.suffixes:
        place.mkdir(exist_ok=True)
    return writer.write(data, place, region=chosen[0], tables=chosen[1], facts=stamp, **options)


def _opened(slides: Any) -> dict[str, SpatialData]:
    """Slides by name."""
    from ..writers._flat import name_of

    listed = [slides] if isinstance(slides, (str, os.PathLike)) or hasattr(slides, "tables") else list(slides)
    if not listed:
        raise InputError("no slide to export", fix="name one or more slide stores")
    out: dict[str, SpatialData] = {}
    for slide in listed:
        sdata = _open(Path(slide)) if isinstance(slide, (str, os.PathLike)) else slide
        name = re.sub(r"[^\w.+-]+", "_", name_of(sdata)).lstrip(".") or "slide"
        if name in out:
            raise InputError(f"two slides are called {name!r}", where=sdata.path, fix="export them one by one")
        out[name] = sdata
    return out


def _open(path: Path) -> SpatialData:
    """A slide store; or an AnnData or MuData file, as a slide of one table."""
    from .. import store, tables

    file, _ = tables.split_modality(path)
    if file.suffix not in (tables.H5AD, tables.H5MU):
        return store.open(path)
    from spatialdata import SpatialData

    sdata = SpatialData(tables={TABLE: tables.open_path(path)})
    sdata.attrs["stainseq"] = {"slide": file.stem}
    return sdata


def _facts(sdata: SpatialData) -> dict[str, Any]:
    from .. import store

    told = store.facts(sdata)
    return {k: told[k] for k in ("slide", "patient", "tissue", "platform", "mpp") if k in told}


def _target(path: Path, form: Any, *, several: bool) -> tuple[Path, str]:
    """Where the output goes, and the beginning of its file names."""
    folder = not form.suffixes or (several and not form.several)
    if folder:
        if form.prefix and path.name.endswith(("-", "_")) and not several:
            return path.absolute().parent, path.name
        return path.absolute(), ""
    if not any(path.name.endswith(s) and path.name != s for s in form.suffixes):
        raise InputError(
            f"the format is a file that ends in {' or '.join(form.suffixes)}",
            where=path,
            fix=f"name it {path.name.split('.')[0] or 'out'}{form.suffixes[0]}",
        )
    return path.absolute(), ""


def _check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse before the work what could not be written after it, and whatever is no earlier export."""
    from .._files import check_folder

    for place in (target, *target.parents):
        if place.is_file() and place != target:
            raise StoreError("a part of the path is a file", where=place, fix="correct the path")
    check_folder(target.parent)
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise StoreError(
            "there is something already", where=target, fix="give another name, or overwrite it (--overwrite)"
        )
    if target.is_symlink() or not _facts_file(target).is_file():
        raise StoreError(
            "this is no export, and is not replaced", where=target, fix="give another name, or remove it yourself"
        )


def _facts_file(target: Path) -> Path:
    return target / FACTS if target.is_dir() else target.with_name(f"{target.name}.{FACTS}")


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A name in a hidden folder beside the target; the folder is gone afterwards."""
    from ..store import files

    where = f".{target.name}.export-{socket.gethostname()}-"
    with _as_store_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f"{_literal(where)}*"):
            if not _alive(left.name[len(where) :].split("-")[0]):
                files.remove(left)
        folder = target.with_name(f"{where}{os.getpid()}-{uuid.uuid4().hex[:8]}")
        folder.mkdir()
        try:
            yield folder / target.name
        finally:
            files.remove_for_good(folder)


@contextmanager
def _as_store_errors(target: Path) -> Iterator[None]:
    """What the system refuses to write, in words; what it refuses to read is not about the output, and passes."""
    from .._files import REASONS

    try:
        yield
    except OSError as e:
        of_the_disk = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        named = e.filename if isinstance(e.filename, (str, os.PathLike)) else None
        if named is not None and not of_the_disk and not Path(named).absolute().is_relative_to(target.parent):
            raise
        what, fix = REASONS.get(e.errno or 0, (f"the output cannot be written ({e.strerror or e})", None))
        raise StoreError(f"{what}; nothing was written or changed", where=target, fix=fix) from e


def _literal(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _alive(pid: str) -> bool:
    import psutil

    return pid.isdigit() and psutil.pid_exists(int(pid))


def _take(stage: Path, target: Path, stamp: Any) -> None:
    """Give what is complete its name, its facts first: no output is ever seen without them."""
    from ..store import files

    text = spec.canonical(stamp)
    facts = stage / FACTS if stage.is_dir() else _facts_file(stage)
    facts.write_text(text + "\n", encoding="utf-8")
    if stage.is_dir():
        files.sync_tree(stage)
    else:
        files.sync(stage)
        files.sync(facts)
        os.replace(facts, _facts_file(target))
    with files.taking(stage, target, old=stage.with_name("old")):
        pass
    files.sync(target.parent)


def _choose(sdata: SpatialData, form: Any, to: str, region: str | None, wanted: list[str]) -> Any:
    """(region, tables) that are meant."""
    from .. import regions
    from ..writers._table import region_of

    there = list(sdata.tables)
    for name in wanted:
        if name not in there:
            raise MissingError(f"no table {name!r}", where=sdata.path, fix=f"one of: {', '.join(there) or 'none'}")
    if len(wanted) > 1 and form.tables != "several":
        raise InputError(f"{to} takes one table, {len(wanted)} are named", fix="export them one by one")
    if wanted and form.tables == "none":
        raise InputError(f"{to} takes no table", fix="leave it out")
    own = region_of(sdata.tables[wanted[0]]) if wanted else None
    if region is not None and form.needs_region:
        regions.get(sdata, region)  # names those there are
    if region is not None and own is not None and own != region:
        raise InputError(
            f"table {wanted[0]!r} belongs to {own!r}, not to {region!r}", where=sdata.path, fix="leave the region out"
        )
    if region is None and own is None and form.region in regions.names(sdata):
        region = form.region
    tables = tuple(wanted) or _default_tables(sdata, form, region or own)
    region = region or own or (region_of(sdata.tables[tables[0]]) if tables else None)
    if form.needs_region and region is None:
        raise MissingError(
            "no regions are named", where=sdata.path, fix=f"--region, one of: {', '.join(regions.names(sdata)) or '-'}"
        )
    if form.needs_region and region not in regions.names(sdata):
        regions.get(sdata, str(region))
    return region, tables


def _default_tables(sdata: SpatialData, form: Any, region: str | None) -> tuple[str, ...]:
    from ..writers._table import region_of

    if form.tables == "none" or (form.tables == "optional" and region is None):
        return ()
    mine = [n for n, t in sdata.tables.items() if region is None or region_of(t) == region]
    for start in form.prefers:
        found = [n for n in mine if n.startswith(start)]
        if form.tables == "several" and found:
            return tuple(found)
        if region is not None and f"{start}{region}" in found:
            return (f"{start}{region}",)
        if len(found) == 1:
            return (found[0],)
        if found and form.tables == "one":
            raise MissingError(
                f"{len(found)} tables could be meant", where=sdata.path, fix=f"--table, one of: {', '.join(found)}"
            )
    if form.tables == "optional":
        return ()
    if mine == [TABLE] or (len(mine) == 1 and region is not None):
        return (mine[0],)
    what = "no table" if region is None else f"no table of {region!r}"
    raise MissingError(
        what,
        where=sdata.path,
        fix=f"name one (--table), of: {', '.join(sdata.tables) or 'none: count or predict first'}",
    )


def _inputs(sdata: SpatialData, form: Any, chosen: Any) -> dict[str, str]:
    """Fingerprints of the elements that are written."""
    from .. import keys, regions, store

    names = [*chosen[1], *([chosen[0]] if chosen[0] in regions.names(sdata) else [])]
    names += [keys.HE] if form.image and keys.HE in sdata.images else []
    return {name: store.fingerprint_of(sdata, name) for name in names}


def _told(to: str, chosen: Any, options: dict[str, Any]) -> dict[str, Any]:
    plain = {
        k: v if isinstance(v, (str, int, float, bool, list, tuple, type(None))) else str(v) for k, v in options.items()
    }
    return {"to": to, "region": chosen[0], "tables": list(chosen[1]), **plain}


def _parameters(writer: Any) -> list[str]:
    import inspect

    return [k for k in inspect.signature(writer.write).parameters if k not in _GIVEN]


def _check_options(writer: Any, to: str, options: dict[str, Any]) -> None:
    """Options that the writer has, with values that it names."""
    known = _parameters(writer)
    wrong = [k for k in options if k not in known]
    if wrong:
        raise InputError(f"{to} has no option {', '.join(wrong)}", fix=f"its options: {', '.join(known) or 'none'}")
    check_values(writer.write, options)


def _parts(path: Path, names: list[str], *, patches: bool) -> dict[str, str]:
    """Part of each slide, or of each patch."""
    if not path.is_file():
        raise MissingError("no such split file", where=path, fix="check the path")
    if path.suffix.lower() == ".json":
        parts = _parts_json(path)
    else:
        parts = _parts_csv(path)
    missing = [n for n in names if n not in parts]
    # Patches are named after their slides; the format itself looks whether it finds them.
    if missing and not (patches and path.suffix.lower() == ".json"):
        raise MissingError(f"no part for {', '.join(missing[:5])}", where=path, fix="name every slide")
    return parts if patches else {n: parts[n] for n in names}


def _parts_json(path: Path) -> dict[str, str]:
    import json

    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        sets = {str(name): [str(v) for v in members] for name, members in held["sets"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise FormatError("the split file has no sets", where=path, fix="make it with stainseq split") from e
    parts: dict[str, str] = {}
    for name, members in sets.items():
        for member in members:
            if parts.setdefault(member, name) != name:
                raise InputError(f"{member} is in {parts[member]} and in {name}", where=path, fix="one set each")
    return parts


def _parts_csv(path: Path) -> dict[str, str]:
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=str)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as e:
        raise FormatError(f"the split file cannot be read ({e})", where=path, fix="CSV with slide and part") from e
    if not {"slide", "part"} <= set(frame.columns):
        raise MissingError(
            "no columns slide and part", where=path, fix=f"columns there: {', '.join(map(str, frame.columns[:8]))}"
        )
    told = frame.dropna(subset=["slide", "part"]).drop_duplicates(["slide", "part"])
    if told["slide"].duplicated().any():
        both = ", ".join(told["slide"][told["slide"].duplicated()].unique()[:3])
        raise InputError(f"slides in several parts: {both}", where=path, fix="one part a slide")
    return {str(k): str(v) for k, v in zip(told["slide"], told["part"], strict=True)}
