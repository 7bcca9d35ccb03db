"""The JSON side of a store: root attributes, the consolidated list of elements, stamps.

Zarr 3 keeps one ``zarr.json`` per group and array; the root's holds a copy of them all, which is what
``spatialdata.read_zarr`` lists elements from. Both are read and written here without opening any array.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import keys, spec
from ..errors import StoreError
from .files import read_json

KINDS = ("images", "labels", "points", "shapes", "tables")
_OURS = ("format_version", "package_version")


def is_store(path: Path) -> bool:
    """Whether a folder is a SpatialData store of Zarr 3."""
    file = path / "zarr.json"
    if not file.is_file():
        return False
    try:
        return "spatialdata_attrs" in read_json(file).get("attributes", {})
    except (StoreError, AttributeError):
        return False


def root(path: Path) -> dict[str, Any]:
    """The root's ``zarr.json``.

    Raises
    ------
    StoreError
        Not a store, or one of Zarr 2.
    """
    if not is_store(path):
        if (path / ".zgroup").exists():
            raise StoreError(
                "a store of Zarr 2 can be read but not written", where=path, fix="write it anew with `stainseq convert`"
            )
        raise StoreError("not a slide store", where=path, fix="make one with `stainseq convert SOURCE OUT.zarr`")
    return dict(read_json(path / "zarr.json"))


def elements_on_disk(path: Path) -> list[tuple[str, str]]:
    """(kind, name) of every element folder, sorted."""
    return [
        (kind, entry)
        for kind in KINDS
        if (path / kind).is_dir()
        for entry in sorted(os.listdir(path / kind))
        if not entry.startswith(".") and (path / kind / entry).is_dir()
    ]


def elements_listed(path: Path) -> list[tuple[str, str]] | None:
    """(kind, name) of every element in the consolidated metadata; None where there is none."""
    listed = (root(path).get("consolidated_metadata") or {}).get("metadata")
    if listed is None:
        return None
    parts = [tuple(key.split("/")) for key in listed]
    return sorted((p[0], p[1]) for p in parts if len(p) == 2 and p[0] in KINDS)


def is_complete(folder: Path, kind: str) -> bool:
    """Whether an element has everything that `spatialdata` needs to open it."""
    try:
        attributes = read_json(folder / "zarr.json")["attributes"]
        if kind in ("images", "labels"):
            datasets = attributes["ome"]["multiscales"][0]["datasets"]
            attributes["ome"]["multiscales"][0]["coordinateTransformations"]
            there = all((folder / d["path"] / "zarr.json").is_file() for d in datasets)
            return bool(datasets) and there and "spatialdata_attrs" in attributes
        if kind in ("points", "shapes"):
            data = folder / f"{kind}.parquet"
            return bool(attributes["coordinateTransformations"]) and data.exists() and "spatialdata_attrs" in attributes
        return {"spatialdata-encoding-type", "version"} <= set(attributes) and (folder / "obs" / "zarr.json").is_file()
    except (OSError, StoreError, KeyError, IndexError, TypeError):
        return False


def consolidated(path: Path, *, replace: Mapping[str, Path | None] | None = None) -> dict[str, Any]:
    """The root's ``zarr.json`` with an up-to-date list of all complete elements.

    Parameters
    ----------
    path
        The store.
    replace
        "kind/name" to the folder that is about to take that name, or None for one about to go.
    """
    replace = replace or {}
    found: dict[str, Any] = {}
    names = {f"{kind}/{name}": path / kind / name for kind, name in elements_on_disk(path)}
    folders = {key: folder for key, folder in {**names, **replace}.items() if folder is not None}
    for kind in KINDS:
        mine = {k: f for k, f in folders.items() if k.startswith(f"{kind}/") and is_complete(f, kind)}
        if mine or (path / kind / "zarr.json").is_file():
            found[kind] = _node(kind_group(path, kind, replace=replace))
        for key, folder in mine.items():
            _collect(folder, key, found)
    content = {k: v for k, v in root(path).items() if k != "consolidated_metadata"}
    order = sorted(found, key=lambda key: (key.count("/"), key))
    content["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {key: found[key] for key in order},
    }
    return content


def kind_group(path: Path, kind: str, *, replace: Mapping[str, Path | None] | None = None) -> dict[str, Any]:
    """``zarr.json`` of the group of a kind; that of labels lists their names, as NGFF wants."""
    file = path / kind / "zarr.json"
    content: dict[str, Any] = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
    content |= read_json(file) if file.is_file() else {}
    if kind == "labels":
        names = {name for k, name in elements_on_disk(path) if k == kind}
        for key, folder in (replace or {}).items():
            if key.startswith("labels/"):
                (names.discard if folder is None else names.add)(key.split("/", 1)[1])
        content["attributes"] = {**content["attributes"], "ome": {"labels": sorted(names)}}
    return content


def _collect(folder: Path, key: str, found: dict[str, Any]) -> None:
    file = folder / "zarr.json"
    if not file.is_file():
        return
    content = read_json(file)
    found[key] = _node(content)
    if content.get("node_type") == "group":
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if entry.is_dir() and not entry.name.startswith(".") and not entry.name.endswith(".parquet"):
                _collect(Path(entry.path), f"{key}/{entry.name}", found)


def _node(content: dict[str, Any]) -> dict[str, Any]:
    content = {k: v for k, v in content.items() if k != "consolidated_metadata"}
    if content.get("node_type") == "group":
        content["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": {}}
    return content


def stamps(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Stamps of all elements that carry one, by (kind, name)."""
    found = {}
    for kind, name in elements_on_disk(path):
        stamp = read_stamp(path / kind / name)
        if stamp is not None:
            found[kind, name] = stamp
    return found


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """Stamp of an element's folder, or None."""
    file = folder / "zarr.json"
    stamp = read_json(file).get("attributes", {}).get(keys.STAMP) if file.is_file() else None
    return stamp if isinstance(stamp, dict) else None


def check_versions(path: Path) -> None:
    """Refuse a store of a newer format.

    Raises
    ------
    StoreError
        An element, or the store, has a format version above `spec.FORMAT_VERSION`.
    """
    facts: dict[str, Any] = (root(path).get("attributes", {}).get(keys.STAMP) or {}) if is_store(path) else {}
    found: dict[str, dict[str, Any]] = {"the store": facts, **{f"{name!r}": s for (_, name), s in stamps(path).items()}}
    for name, stamp in found.items():
        version = stamp.get("format_version", 0)
        if isinstance(version, int) and version > spec.FORMAT_VERSION:
            raise StoreError(
                f"{name} was written in format {version} by stainseq {stamp.get('package_version', '?')}, and this "
                f"stainseq reads formats up to {spec.FORMAT_VERSION}",
                where=path,
                fix="pip install --upgrade stainseq",
            )


def facts_of(attributes: dict[str, Any]) -> dict[str, Any]:
    """Facts of the slide among the store's attributes."""
    return {k: v for k, v in (attributes.get(keys.STAMP) or {}).items() if k not in _OURS}


def with_facts(attributes: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The store's attributes with facts added; None removes one."""
    from .. import __version__

    merged = {**(attributes.get(keys.STAMP) or {}), **facts}
    merged = {k: v for k, v in merged.items() if v is not None}
    merged |= {"format_version": spec.FORMAT_VERSION, "package_version": __version__}
    return {**attributes, keys.STAMP: merged}
