"""The slide store: one SpatialData Zarr per slide, and the only place that writes it.

Every write is staged beside the store and takes its name in one step: whenever the process dies, the store
opens with the old or the new element. Everything written carries a stamp (`spec.stamp`) that says what made it
from what, and a fingerprint of its content. Plain ``spatialdata.read_zarr`` reads all of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import keys, spec
from ..errors import FormatError, InputError, MissingError, ScaleError, StoreError
from . import files, mend, metadata, swap
from .files import as_store_errors
from .streams import stream_table

if TYPE_CHECKING:
    from anndata import AnnData
    from dask.dataframe import DataFrame
    from geopandas import GeoDataFrame
    from pyarrow import Table
    from spatialdata import SpatialData
    from spatialdata.transformations.transformations import BaseTransformation
    from xarray import DataArray, DataTree

    Element: TypeAlias = DataArray | DataTree | DataFrame | GeoDataFrame | AnnData

__all__ = [
    "create",
    "delete_element",
    "facts",
    "fingerprint_of",
    "open",
    "problems",
    "read_points_window",
    "repair",
    "set_facts",
    "set_transformation",
    "stamp_of",
    "steps",
    "stream_table",
    "write_element",
]


def create(
    path: str | os.PathLike[str],
    sdata: SpatialData,
    *,
    step: str,
    parameters: dict[str, Any],
    inputs: dict[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> SpatialData:
    """Write a new slide, and open it.

    The store appears under its name only when it is complete. Images and points are streamed.

    Parameters
    ----------
    path
        Folder to make, by custom ``NAME.zarr``.
    sdata
        What to write; may be lazy, and may be backed by the store that is overwritten.
    step
        Name of the command or function that made it, such as "convert".
    parameters
        Its parameters, JSON-able.
    inputs
        Fingerprints of what it was made from, by name.
    facts
        Facts of the slide (slide, patient, tissue, platform, mpp); None values are left out.
    overwrite
        Replace a store that is there. The old one stays until the new one is complete.

    Returns
    -------
    SpatialData
        The slide, opened from `path`.

    Raises
    ------
    StoreError
        `path` exists (without `overwrite`), or is something else than a store; no permission, full disk, locked.
    ScaleError
        No element is placed in microns ("um").
    """
    from . import elements

    path = _real(path)
    _check_target(path, overwrite=overwrite)
    if list(sdata.gen_elements()) and keys.UM not in sdata.coordinate_systems:
        raise ScaleError(
            f"no element has a transformation to {keys.UM!r}", where=path, fix="give the pixel size (mpp) to the reader"
        )
    with as_store_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with swap.staging(path, op="create") as stage:
        _empty_store(stage.new, metadata.with_facts(dict(sdata.attrs), dict(facts or {})))
        for kind, name, element in sdata.gen_elements():
            stamp = spec.stamp(step, parameters=parameters, inputs=inputs, **elements.told(element))
            work = stage.folder / f"{kind}-{name}"
            work.mkdir()
            at = elements.write(elements.settle(element), work, kind=kind, name=name, stamp=stamp)
            (stage.new / kind).mkdir(exist_ok=True)
            at.rename(stage.new / kind / name)
            files.remove(work)
        for kind in metadata.KINDS:
            if (stage.new / kind).is_dir():
                files.write_json(stage.new / kind / "zarr.json", metadata.kind_group(stage.new, kind))
        files.write_json(stage.new / "zarr.json", metadata.consolidated(stage.new))
        swap.commit_store(stage)
    return open(path)


def open(path: str | os.PathLike[str], *, repair: bool = True) -> SpatialData:
    """Open a slide.

    What an interrupted write left behind is finished or dropped first, where the folder can be written to. Images,
    labels and points are lazy, shapes and tables are in memory; dense matrices above 256 MB are Dask arrays.

    Parameters
    ----------
    path
        A store, or a ``.zarr.zip`` of one, which is unpacked into the cache folder and opened for reading.
    repair
        Tidy up first.

    Raises
    ------
    StoreError
        Not a store, written by a newer stainseq, or damaged.
    """
    path = _real(path)
    if path.suffix == ".zip":
        from .archive import unpacked

        path = unpacked(path)
    _tidy(path) if repair else None
    if not path.exists():
        raise StoreError("there is no store", where=path, fix="make one with `stainseq convert SOURCE OUT.zarr`")
    metadata.check_versions(path)
    return _read(path, repair=repair)


def write_element(
    sdata: SpatialData,
    name: str,
    element: Element,
    *,
    step: str,
    parameters: dict[str, Any],
    inputs: dict[str, str] | None = None,
    more: dict[str, Any] | None = None,
) -> None:
    """Add or replace an element, in memory and on disk.

    Parameters
    ----------
    sdata
        The slide. Without a path (not written yet), only the object changes.
    name
        Name of the element.
    element
        Image, labels, points, shapes or table. May be lazy, and may come from the very element it replaces. A
        single-scale image or label image gets a pyramid; points are put in order of place.
    step
        Name of the command or function that made it.
    parameters
        Its parameters, JSON-able.
    inputs
        Fingerprints of what it was made from, by name.
    more
        Further facts for the stamp, JSON-able.

    Raises
    ------
    InputError
        Not an element, a name that is not allowed, or one that another kind of element has.
    StoreError
        No permission, full disk, locked; the store is unchanged.
    """
    from . import elements

    element = elements.settle(element)
    kind = elements.kind_of(element)
    elements.check_name(sdata, name, kind)
    stamp = spec.stamp(step, parameters=parameters, inputs=inputs, **(more or {}))
    if sdata.path is not None:
        path = _writable(sdata)
        with swap.staging(path, op="write", kind=kind, name=name) as stage:
            at = elements.write(element, _subfolder(stage.folder), kind=kind, name=name, stamp=stamp)
            swap.commit_element(stage, at, kind=kind, name=name)
    elements.attach(sdata, element, kind=kind, name=name, stamp=stamp)


def set_transformation(
    sdata: SpatialData,
    name: str,
    transformation: BaseTransformation,
    *,
    to: str = keys.UM,
    step: str,
    parameters: dict[str, Any],
    inputs: dict[str, str] | None = None,
    more: dict[str, Any] | None = None,
) -> None:
    """Say where an element lies, in memory and on disk; its values are neither read nor written.

    The element's fingerprint changes with its place, so what was computed from the old one is known to be stale. Its
    earlier stamps are kept under "history".

    Parameters
    ----------
    sdata
        The slide.
    name
        Image, labels, points or shapes.
    transformation
        A transformation of spatialdata, from the element's own coordinates.
    to
        Coordinate system.
    step, parameters, inputs, more
        See `write_element`.

    Raises
    ------
    MissingError
        There is no element of that name.
    InputError
        A table, which lies nowhere.
    StoreError
        No permission, full disk, locked; the store is unchanged.
    """
    from .place import place

    kind = _kind_in(sdata, name)
    if kind == "tables":
        raise InputError(f"table {name!r} lies nowhere", fix="place the regions that it annotates")
    earlier = stamp_of(sdata, name) or {}
    values = earlier.get("values") or fingerprint_of(sdata, name)
    stamp = spec.stamp(step, parameters=parameters, inputs=inputs, **(more or {}))
    stamp |= {k: earlier[k] for k in ("levels", "rows") if k in earlier} | {"values": values}
    told = {k: earlier[k] for k in ("step", "parameters", "inputs", "created", "package_version") if k in earlier}
    stamp["history"] = [*earlier.get("history", []), *([told] if told else [])]
    place(sdata, None if sdata.path is None else _writable(sdata), name, transformation, kind=kind, to=to, stamp=stamp)


def delete_element(sdata: SpatialData, name: str) -> None:
    """Remove an element, in memory and on disk.

    Raises
    ------
    MissingError
        There is none of that name.
    StoreError
        No permission, locked.
    """
    kind = _kind_in(sdata, name)
    if sdata.path is not None and (Path(sdata.path) / kind / name).exists():
        with swap.staging(_writable(sdata), op="delete", kind=kind, name=name) as stage:
            swap.commit_delete(stage, kind=kind, name=name)
    if name in getattr(sdata, kind):
        del sdata[name]


def stamp_of(sdata: SpatialData, name: str) -> dict[str, Any] | None:
    """The stamp of an element, or None where stainseq did not write it.

    Raises
    ------
    MissingError
        There is no element of that name.
    """
    from . import elements

    kind = _kind_in(sdata, name)
    if sdata.path is not None:
        stamp = metadata.read_stamp(Path(sdata.path) / kind / name)
        if stamp is not None:
            return stamp
    element = getattr(sdata, kind).get(name)
    if element is None:
        return None
    if kind == "tables":
        return elements.from_uns(element.uns.get(keys.STAMP))
    stamp = element.attrs.get(keys.STAMP)
    return dict(stamp) if stamp is not None else None


def fingerprint_of(sdata: SpatialData, name: str) -> str:
    """Fingerprint of what an element holds: 32 hex digits, the same for the same content written twice.

    It is taken from the stamp where it was recorded at writing, and else computed from the stored (or, for an
    element that is not stored, the given) values.

    Raises
    ------
    MissingError
        There is no element of that name.
    """
    from . import elements

    stamp = stamp_of(sdata, name)
    if stamp is not None and "content" in stamp:
        return str(stamp["content"])
    kind = _kind_in(sdata, name)
    with elements.quiet():
        return elements.fingerprint(sdata, kind=kind, name=name)


def facts(sdata: SpatialData) -> dict[str, Any]:
    """Facts of the slide: slide, patient, tissue, platform, mpp, as far as they are known."""
    return metadata.facts_of(dict(sdata.attrs))


def set_facts(sdata: SpatialData, **facts: Any) -> None:
    """Set facts of the slide, in memory and on disk; None removes one.

    Raises
    ------
    StoreError
        No permission, full disk, locked.
    """
    if sdata.path is not None:
        path = _writable(sdata)
        with swap.staging(path, op="facts") as stage:
            content = metadata.root(path)
            content["attributes"] = metadata.with_facts(content["attributes"], facts)
            files.write_json(stage.folder / "root.json", content)
            os.replace(stage.folder / "root.json", path / "zarr.json")
            files.sync(path)
    sdata.attrs = metadata.with_facts(dict(sdata.attrs), facts)


def steps(sdata: SpatialData) -> list[dict[str, Any]]:
    """What was done to a slide, oldest first: one stamp per element, with ``element`` and ``kind``."""
    found = []
    for kind in metadata.KINDS:
        for name in getattr(sdata, kind):
            stamp = stamp_of(sdata, name)
            if stamp is not None:
                found.append({"element": name, "kind": kind, **stamp})
    return sorted(found, key=lambda s: (s.get("created", ""), s["element"]))


def repair(path: str | os.PathLike[str]) -> list[str]:
    """Mend a store after interrupted writes, of stainseq or of plain spatialdata.

    Leftovers are finished or dropped, elements that cannot be opened are moved to ``NAME.zarr.broken`` beside the
    store, and its list of elements is brought in step with the disk. Nothing that can be opened is removed.

    Returns
    -------
    list of str
        What was done, in words; empty where all was well.

    Raises
    ------
    StoreError
        No permission, or a process is writing to it.
    """
    return mend.repair(_real(path))


def problems(path: str | os.PathLike[str]) -> list[str]:
    """What is wrong with a store, in words; nothing is changed."""
    return mend.problems(_real(path))


def read_points_window(
    sdata: SpatialData,
    name: str,
    box_um: tuple[float, float, float, float],
    columns: list[str] | None = None,
) -> Table:
    """Read the points in a window, and little else.

    Parameters
    ----------
    sdata
        The slide.
    name
        Points element, such as "transcripts".
    box_um
        min_x, min_y, max_x, max_y in microns; points on the border count.
    columns
        Columns to read; all unless given. ``x`` and ``y`` are in microns.

    Returns
    -------
    pyarrow.Table
        One row per point, in stored order.

    Raises
    ------
    MissingError
        No such points or column.
    """
    from . import points

    return points.window(sdata, name, box_um, columns=columns)


def _real(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(path))


def _subfolder(folder: Path) -> Path:
    work = folder / "work"
    work.mkdir()
    return work


def _check_target(path: Path, *, overwrite: bool) -> None:
    if path.suffix == ".zip":
        raise StoreError("a .zarr.zip cannot be written to", where=path, fix="write a .zarr")
    if not path.exists():
        return
    if not metadata.is_store(path) and not (path / ".zgroup").exists():
        raise StoreError("this exists and is not a slide store", where=path, fix="choose another path")
    if not overwrite:
        raise StoreError("the store exists already", where=path, fix="choose another path, or pass overwrite")


def _empty_store(path: Path, attributes: dict[str, Any]) -> None:
    from spatialdata import SpatialData

    SpatialData(attrs=attributes).write(path, consolidate_metadata=False)


def _writable(sdata: SpatialData) -> Path:
    from .archive import is_unpacked

    path = _real(sdata.path)
    if is_unpacked(path):
        raise StoreError("this slide was opened from a .zarr.zip", where=path, fix="unzip it, and open the folder")
    metadata.root(path)
    return path


def _kind_in(sdata: SpatialData, name: str) -> str:
    there = {n: kind for kind in metadata.KINDS for n in getattr(sdata, kind)}
    if sdata.path is not None:
        there = {n: kind for kind, n in metadata.elements_on_disk(Path(sdata.path))} | there
    if name not in there:
        raise MissingError(f"no element named {name!r}", fix=f"one of: {', '.join(sorted(there)) or 'none'}")
    return there[name]


def _tidy(path: Path) -> None:
    """Repair before opening, unless nothing is to be done, someone is writing, or the folder is read-only."""
    if not mend.is_untidy(path) or mend.holder(path) is not None or not os.access(path.parent, os.W_OK):
        return
    try:
        mend.repair(path, set_aside=False)
    except StoreError:
        # Someone began to write in between, or the file system is read-only: opening may still do.
        return


def _read(path: Path, *, repair: bool) -> SpatialData:
    from . import elements

    if not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")):
        raise FormatStoreError(
            "this is no slide store" if path.is_dir() else "this is a file, and no slide store",
            where=path,
            fix="a source is made into one by `stainseq convert SOURCE OUT.zarr`",
        )
    try:
        with elements.quiet():
            return elements.read_slide(path)
    except (KeyError, ValueError, OSError, TypeError, AttributeError) as e:
        if repair and _relisted(path):
            return _read(path, repair=False)
        raise FormatStoreError(
            f"the store cannot be opened ({type(e).__name__}: {e})",
            where=path,
            fix="`stainseq info` says what is wrong",
        ) from e


def _relisted(path: Path) -> bool:
    """Leave elements off the list that a foreign interrupted write made unreadable; whether there were any."""
    if not metadata.is_store(path) or not os.access(path, os.W_OK):
        return False
    try:
        return bool(mend.repair(path, set_aside=False))
    except StoreError:
        return False


class FormatStoreError(StoreError, FormatError):
    """A store whose files are damaged."""
