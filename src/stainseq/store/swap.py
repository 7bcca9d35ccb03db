"""Staged writes: all work happens in a hidden folder beside the store, and one rename makes it count.

The folder is ``.NAME-<32 hex digits>`` and holds ``journal.json`` (what is being done), ``new`` (what is to
take the name), ``root.json`` (the store's next metadata) and, where a name was moved aside, ``old``. Everything
that needs disk space is written before the first move, so that a full disk can only stop a write, never split it.
What a kill leaves behind is finished or dropped by `repair`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import files, metadata
from .lock import locked


@dataclass(frozen=True)
class Stage:
    """One staged write.

    Parameters
    ----------
    path
        The store.
    folder
        The hidden folder beside it.
    """

    path: Path
    folder: Path

    @property
    def new(self) -> Path:
        """Where to put what is to take the name."""
        return self.folder / "new"

    @property
    def old(self) -> Path:
        """Where what had the name is moved to."""
        return self.folder / "old"


@contextmanager
def staging(path: Path, *, op: str, kind: str = "", name: str = "") -> Iterator[Stage]:
    """Lock a store and open a stage beside it; the stage is gone afterwards, whatever happens.

    Raises
    ------
    StoreError
        The store is locked, the folder is read-only, the disk is full.
    """
    with files.as_store_errors(path), locked(path):
        stage = Stage(path, path.with_name(f".{path.name}-{uuid.uuid4().hex}"))
        try:
            stage.folder.mkdir()
            note(stage, op=op, kind=kind, name=name, phase="write")
            yield stage
        except BaseException:
            files.remove_for_good(stage.folder)
            raise
        files.remove(stage.folder)


def note(stage: Stage, **facts: Any) -> None:
    """Write the journal."""
    files.write_json(stage.folder / "journal.json", facts)


def commit_element(stage: Stage, element: Path, *, kind: str, name: str) -> None:
    """Give a finished element folder its name in the store, and list it; an error on the way undoes both."""
    target = stage.path / kind / name
    files.sync_tree(element)
    plan = {f"{kind}/{name}": element}
    files.write_json(stage.folder / "root.json", metadata.consolidated(stage.path, replace=plan))
    files.write_json(stage.folder / "kind.json", metadata.kind_group(stage.path, kind, replace=plan))
    os.rename(element, stage.new)
    note(stage, op="write", kind=kind, name=name, phase="swap")
    target.parent.mkdir(exist_ok=True)
    os.replace(stage.folder / "kind.json", target.parent / "zarr.json")
    with files.taking(stage.new, target, old=stage.old):
        os.replace(stage.folder / "root.json", stage.path / "zarr.json")
    files.sync(target.parent)
    files.sync(stage.path)


def commit_store(stage: Stage) -> None:
    """Give a finished store its name."""
    files.sync_tree(stage.new)
    note(stage, op="create", kind="", name="", phase="swap")
    with files.taking(stage.new, stage.path, old=stage.old):
        pass
    files.sync(stage.path.parent)


def commit_delete(stage: Stage, *, kind: str, name: str) -> None:
    """Take an element off the list, then out of the store; an error on the way undoes both."""
    plan: dict[str, Path | None] = {f"{kind}/{name}": None}
    places = {"root.json": stage.path / "zarr.json", "kind.json": stage.path / kind / "zarr.json"}
    for file, place in places.items():
        files.write_json(stage.folder / f"old-{file}", files.read_json(place))
    files.write_json(stage.folder / "root.json", metadata.consolidated(stage.path, replace=plan))
    files.write_json(stage.folder / "kind.json", metadata.kind_group(stage.path, kind, replace=plan))
    note(stage, op="delete", kind=kind, name=name, phase="swap")
    try:
        for file, place in places.items():
            os.replace(stage.folder / file, place)
        os.rename(stage.path / kind / name, stage.old)
    except BaseException:
        for file, place in places.items():
            os.replace(stage.folder / f"old-{file}", place)
        raise
    files.sync(stage.path / kind)
    files.sync(stage.path)
