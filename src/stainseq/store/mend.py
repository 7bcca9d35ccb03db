"""Finish or drop what a killed write left behind, and bring the list of elements in step with the disk."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..errors import StoreError
from . import files, metadata
from .lock import holder, lock_file, locked
from .swap import Stage

_WORDS = {"write": "writing {name!r}", "delete": "deleting {name!r}", "create": "writing the store"}


def leftovers(path: Path) -> list[Path]:
    """Stages beside a store, sorted by name."""
    pattern = re.compile(re.escape(f".{path.name}-") + "[0-9a-f]{32}")
    if not path.parent.is_dir():
        return []
    return sorted(p for p in path.parent.iterdir() if pattern.fullmatch(p.name) and p.is_dir())


def is_untidy(path: Path) -> bool:
    """Whether a store has leftovers (a dead process's lock file too), or a list of elements unlike the disk; cheap."""
    return bool(leftovers(path)) or lock_file(path).exists() or not is_listed_right(path)


def is_listed_right(path: Path) -> bool:
    """Whether the list of elements, where a store has one, is that of the complete elements on disk."""
    listed = metadata.elements_listed(path) if metadata.is_store(path) else None
    there = metadata.elements_on_disk(path)
    return listed is None or listed == [e for e in there if metadata.is_complete(path / e[0] / e[1], e[0])]


def repair(path: Path, *, set_aside: bool = True) -> list[str]:
    """Mend a store; see `stainseq.store.repair`.

    Parameters
    ----------
    path
        The store.
    set_aside
        Also move elements that cannot be opened out of the store. Opening does not: it only leaves them
        off the list.
    """
    done: list[str] = []
    if not leftovers(path) and not metadata.is_store(path):
        return done
    with files.as_store_errors(path), locked(path):
        for folder in leftovers(path):
            done.append(_finish(Stage(path, folder)))
        if metadata.is_store(path):
            if set_aside:
                done += _set_aside(path)
            done += _relist(path)
    return done


def _finish(stage: Stage) -> str:
    """Finish what was past its point of no return, and drop everything else."""
    journal = _journal(stage)
    op, kind, name = journal.get("op", ""), journal.get("kind", ""), journal.get("name", "")
    target = stage.path / kind / name if op in ("write", "delete") else stage.path
    outcome = "dropped the unfinished part"
    if journal.get("phase") == "swap":
        if op == "delete" and not (stage.folder / "root.json").exists():  # it is off the list already
            if target.exists():
                os.rename(target, stage.old)
            outcome = "finished it"
        elif op != "delete" and not target.exists():  # killed between the two renames, or before the only one
            source = stage.new if stage.new.exists() else stage.old
            if source.exists():
                target.parent.mkdir(exist_ok=True)
                os.rename(source, target)
                outcome = "finished it"
    files.remove(stage.folder)
    return f"{_WORDS.get(op, 'a write').format(name=name)} had been interrupted: {outcome}"


def _journal(stage: Stage) -> dict[str, Any]:
    file = stage.folder / "journal.json"
    if not file.is_file():
        return {}
    try:
        return dict(files.read_json(file))
    except StoreError:
        return {}


def _set_aside(path: Path) -> list[str]:
    done = []
    for kind, name in metadata.elements_on_disk(path):
        folder = path / kind / name
        if not metadata.is_complete(folder, kind):
            aside = _free_name(path.with_name(f"{path.name}.broken") / kind / name)
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.rename(folder, aside)
            done.append(f"{kind}/{name} cannot be opened (an interrupted write): moved to {aside}")
    return done


def _free_name(path: Path) -> Path:
    free, i = path, 1
    while free.exists():
        free, i = path.with_name(f"{path.name}-{i}"), i + 1
    return free


def _relist(path: Path) -> list[str]:
    before, after = metadata.root(path), metadata.consolidated(path)
    done = []
    if "consolidated_metadata" not in before or before["consolidated_metadata"] != after["consolidated_metadata"]:
        if (path / "labels").is_dir():
            files.write_json(path / "labels" / "zarr.json", metadata.kind_group(path, "labels"))
            after = metadata.consolidated(path)
        files.write_json(path / "zarr.json", after)
        done.append("the list of elements was out of step with the disk: refreshed it")
    return done


def problems(path: Path) -> list[str]:
    """What is wrong with the files of a store, in words, without changing anything."""
    found = []
    who = holder(path)
    if who is not None:
        found.append(f"process {who.get('pid')} on {who.get('host')} is writing to it")
    elif leftovers(path):
        found.append("an interrupted write left files behind: `stainseq info` repairs this")
    if not metadata.is_store(path):
        return [*found, "not a slide store"]
    for kind, name in metadata.elements_on_disk(path):
        if not metadata.is_complete(path / kind / name, kind):
            found.append(f"{kind}/{name} cannot be opened: its writing was interrupted")
    listed = metadata.elements_listed(path)
    if listed is None:
        found.append("it has no list of elements (consolidated metadata)")
    elif who is None and not is_listed_right(path):
        found.append("its list of elements is out of step with the disk")
    try:
        metadata.check_versions(path)
    except StoreError as e:
        found.append(e.what)
    return found
