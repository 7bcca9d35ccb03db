"""One writer at a time: a lock file beside the store that names its holder.

The lock is the kernel's (POSIX record lock), so it goes when its holder dies, by whatever signal, and a file
that a dead process left behind holds nobody up. Its text (process, host) is for the message only. Where there
are no such locks (Windows) the file itself is the lock, and one of a dead process on this host is cleared.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ours: set[str] = set()
_guard = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ours.clear)  # record locks are not inherited


def lock_file(path: Path) -> Path:
    """The lock file of a store: `.NAME.lock` beside it."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock of a store.

    Raises
    ------
    StoreError
        Another thread or process is writing to it; the message names the process.
    """
    key = str(path)
    with _guard:
        # A record lock does not stop another thread of this process, and closing any descriptor of the
        # file would drop it, so that threads are kept apart here and never open the file twice.
        if key in _ours:
            raise _busy(path, {"pid": os.getpid(), "host": socket.gethostname()})
        _ours.add(key)
    try:
        fd = _acquire(path)
        try:
            yield
        finally:
            _release(path, fd)
    finally:
        with _guard:
            _ours.discard(key)


def holder(path: Path) -> dict[str, object] | None:
    """Process and host that are writing to the store now, or None."""
    key = str(path)
    with _guard:
        if key in _ours:
            return {"pid": os.getpid(), "host": socket.gethostname()}
        file = lock_file(path)
        if not file.exists():
            return None
        if fcntl is None:
            return None if _is_dead(_read(file)) else _read(file)
        try:
            fd = os.open(file, os.O_RDWR)
        except OSError:
            return None
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return _read(file)
        finally:
            os.close(fd)
        return None


def _acquire(path: Path) -> int:
    file = lock_file(path)
    for _ in range(100):
        if fcntl is None:
            try:
                fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                if not _is_dead(_read(file)):
                    raise _busy(path, _read(file)) from None
                file.unlink(missing_ok=True)
                continue
        else:
            fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                raise _busy(path, _read(file)) from None
            if not _same_file(fd, file):  # its last holder unlinked it between our open and our lock
                os.close(fd)
                continue
        os.ftruncate(fd, 0)
        os.write(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        return fd
    raise _busy(path, {})


def _release(path: Path, fd: int) -> None:
    lock_file(path).unlink(missing_ok=True)
    os.close(fd)


def _same_file(fd: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(file))
    except FileNotFoundError:
        return False


def _read(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead(who: dict[str, object]) -> bool:
    import psutil

    pid = who.get("pid")
    return who.get("host") == socket.gethostname() and isinstance(pid, int) and not psutil.pid_exists(pid)


def _busy(path: Path, who: dict[str, object]) -> StoreError:
    name = f"process {who['pid']} on {who.get('host')}" if who.get("pid") else "another process"
    return StoreError(
        f"{name} is writing to this store", where=path, fix="wait until it has finished, then run the command again"
    )
