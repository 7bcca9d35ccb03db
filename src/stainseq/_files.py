"""Results in files of their own (CSV, JSON, HTML, h5ad): complete or not at all, refusals in one clear line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import StoreError

REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space and run the command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the command again"),
    errno.EROFS: ("the file system is read-only", "write to another folder"),
    errno.EACCES: ("no permission", "choose another place, or change the permissions"),
    errno.EPERM: ("no permission", "choose another place, or change the permissions"),
    errno.EISDIR: ("this is a folder", "name a file"),
    errno.ENOTDIR: ("a part of the path is a file", "correct the path"),
    errno.EEXIST: ("a part of the path is a file", "correct the path"),
}
"""What the system refuses, in words: what is wrong, how to fix it."""


def check_output(*paths: str | os.PathLike[str] | None) -> None:
    """Refuse before long work what could not be written after it. Nothing is made.

    Parameters
    ----------
    paths
        Files that shall be written; None is nowhere, devices such as /dev/stdout are let pass.

    Raises
    ------
    StoreError
        Its folder is not there, or may not be written to; a folder has that name.
    """
    for path in (Path(p) for p in paths if p is not None):
        if path.is_relative_to("/dev") or path.is_relative_to("/proc"):
            continue
        if path.is_dir():
            what, fix = REASONS[errno.EISDIR]
            raise StoreError(what, where=path, fix=fix)
        if any(part.is_file() for part in path.parents):
            what, fix = REASONS[errno.ENOTDIR]
            raise StoreError(what, where=path, fix=fix)
        if not path.parent.is_dir():
            raise StoreError("there is no such folder", where=path.parent, fix="make it first, or correct the path")
        target = path if path.exists() else path.parent
        if not os.access(target, os.W_OK) or not os.access(path.parent, os.W_OK):
            what, fix = REASONS[errno.EACCES]
            raise StoreError(what, where=path, fix=fix)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Refuse before long work a folder (a store, a model) that could not be written after it. Nothing is made.

    Parameters
    ----------
    path
        The folder, there already or not. What is written is staged beside it, so that its own folder must take files.

    Raises
    ------
    StoreError
        A part of the path is a file, or no permission.
    """
    path = Path(path).absolute()
    for place in (next(p for p in path.parents if p.exists()), *([path] if path.exists() else [])):
        what, fix = REASONS[errno.EACCES if place.is_dir() else errno.ENOTDIR]
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise StoreError(what, where=place, fix=fix)


def write_file(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> Path:
    """Write a file beside its place and move it there; devices such as /dev/stdout are written directly.

    Parameters
    ----------
    path
        Where it shall be. Folders are made as needed.
    write
        Is called with the path to write to.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    StoreError
        No permission, full disk, a folder of that name.
    """
    path = Path(path)
    staged = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        # Redirected to a file, /dev/stdout looks like one; it must never be moved over.
        if path.is_relative_to("/dev") or path.is_relative_to("/proc") or (path.exists() and not path.is_file()):
            write(path)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(staged)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
    except BrokenPipeError:
        raise
    except OSError as e:
        what, fix = REASONS.get(e.errno or 0, (f"the file cannot be written ({e.strerror or e})", None))
        raise StoreError(what, where=path, fix=fix) from e
    return path


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write JSON; what is not finite becomes null, arrays become lists.

    Parameters
    ----------
    path
        As for `write_file`.
    value
        Anything of dicts, lists, numbers, text, arrays and paths.
    """
    text = json.dumps(plain(value), indent=1, allow_nan=False) + "\n"
    return write_file(path, lambda staged: staged.write_text(text, encoding="utf-8"))


def plain(value: Any) -> Any:
    """The same value in what JSON can hold.

    Parameters
    ----------
    value
        Dicts, sequences, arrays, numbers, text, paths.
    """
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)
