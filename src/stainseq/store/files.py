"""Moves that leave either the old or the new on disk, never a mixture.

A file or folder becomes visible only by one ``rename`` (or one exchange of two names) after its bytes
have been handed to the disk.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import StoreError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_MANY_FILES = 64


@lru_cache(maxsize=1)
def _libc() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):  # no C library to be had this way, as on Windows
        return None


def exchange(a: Path, b: Path) -> bool:
    """Swap two existing names in one step, where the system can.

    Returns
    -------
    bool
        False where kernel, file system or C library lack the call; nothing has moved then.

    Raises
    ------
    OSError
        The system has the call and refused it (permissions, read-only file system).
    """
    libc = _libc()
    one, two = os.fsencode(a), os.fsencode(b)
    if sys.platform.startswith("linux") and hasattr(libc, "renameat2"):
        result = libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, two, _RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        result = libc.renamex_np(one, two, _RENAME_EXCHANGE)
    else:
        return False
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(b))


@contextmanager
def taking(new: Path, target: Path, *, old: Path) -> Iterator[None]:
    """Let a finished file or folder take a name; an error in what follows gives the name back.

    Where the system can exchange two names, there is no moment at which `target` is missing.

    Parameters
    ----------
    new
        What takes the name. What had it lies here afterwards, where names can be exchanged.
    target
        The name.
    old
        Where what had the name lies afterwards, where names cannot be exchanged.
    """
    if not target.exists():
        undo = [(target, new)]
        os.rename(new, target)
    elif exchange(new, target):
        undo = []
    else:
        # Two renames: what is killed between them must be mended from the outside (a store's journal tells `repair`).
        undo = [(target, new), (old, target)]
        os.rename(target, old)
        try:
            os.rename(new, target)
        except BaseException:
            os.rename(old, target)
            raise
    try:
        yield
    except BaseException:
        for a, b in undo:
            os.rename(a, b)
        if not undo:
            exchange(new, target)
        raise


def sync(path: Path) -> None:
    """Hand one file or folder entry to the disk."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except PermissionError:
        if os.name == "nt":  # Windows cannot open folders
            return
        raise
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems refuse folders
            raise
    finally:
        os.close(fd)


def sync_tree(root: Path) -> None:
    """Hand a folder with all its content to the disk.

    Few files are synced one by one. For many, one ``syncfs`` is used where there is one: an image of
    10,000 chunks would otherwise wait 10,000 times.
    """
    files = [Path(folder) / f for folder, _, names in os.walk(root) for f in names]
    libc = _libc()
    if len(files) > _MANY_FILES and sys.platform.startswith("linux") and hasattr(libc, "syncfs"):
        fd = os.open(root, os.O_RDONLY)
        try:
            if libc.syncfs(fd) == 0:
                return
            code = ctypes.get_errno()
            if code in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise OSError(code, os.strerror(code), str(root))
        finally:
            os.close(fd)
    for f in files:
        sync(f)
    for folder, _, _ in os.walk(root):
        sync(Path(folder))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that a reader sees the old or the new text, never a part of one."""
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with open(part, "w", encoding="utf-8") as f:
            json.dump(content, f, indent=2)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises
    ------
    StoreError
        The file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise StoreError(f"damaged metadata ({e})", where=path, fix="`stainseq info` repairs what can be") from e


def remove(path: Path) -> None:
    """Remove a file or a folder with its content; nothing is done when it is not there."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path)


def remove_for_good(path: Path, *, seconds: float = 15.0) -> None:
    """Remove a folder that others may still be writing to.

    zarr writes chunks side by side; when one fails, or the user interrupts, those under way go on for a while
    and would make the folder anew. What they leave after `seconds` is left to `repair`.
    """
    stop, calm = time.monotonic() + seconds, 0
    while calm < 3 and time.monotonic() < stop:
        try:
            remove(path)
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
                return
        calm = 0 if path.exists() else calm + 1
        time.sleep(0.02)


_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space and run the command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the command again"),
    errno.EROFS: ("the file system is read-only", "write to another folder"),
    errno.EACCES: ("no permission to write here", "write to another folder or change its permissions"),
    errno.EPERM: ("no permission to write here", "write to another folder or change its permissions"),
}
_REASONS[errno.EXDEV] = (
    "the file system cannot rename this folder (as in the image of a container)",
    "copy the store to another folder and work there",
)
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextmanager
def as_store_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write into one clear `StoreError`.

    What is written may be read lazily from elsewhere: an error that names a file outside the store's folder is not
    about the store, and passes.
    """
    try:
        yield
    except OSError as e:
        named = e.filename if isinstance(e.filename, (str, os.PathLike)) else None
        if named is not None and e.errno not in _OF_THE_DISK and not _is_below(Path(named), path.parent):
            raise
        what, fix = _REASONS.get(e.errno or 0, (f"the store cannot be written ({e.strerror or e})", None))
        raise StoreError(f"{what}; nothing in the store has changed", where=path, fix=fix) from e


def _is_below(file: Path, folder: Path) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))
