"""Stores in one file, ``NAME.zarr.zip``: unpacked into the cache for reading, packed for handing on."""

from __future__ import annotations

import os
import uuid
import zipfile
from pathlib import Path

from .. import spec
from .._settings import settings
from ..errors import StoreError
from . import files, metadata


def _folder() -> Path:
    return Path(os.path.realpath(settings.cache_dir)) / "zips"


def is_unpacked(path: Path) -> bool:
    """Whether a store is the cache's copy of a zip file."""
    return path.is_relative_to(_folder())


def unpacked(path: Path) -> Path:
    """Folder with a zip's content, made when it is not there yet or the zip has changed.

    Raises
    ------
    StoreError
        No such file, damaged, or no store in it.
    """
    if not path.is_file():
        raise StoreError("there is no store", where=path, fix="give a .zarr folder or a .zarr.zip file")
    facts = path.stat()
    home = _folder() / spec.fingerprint(str(path))
    target = home / f"{facts.st_mtime_ns:x}-{facts.st_size:x}"
    if not target.is_dir():
        try:
            files.remove(home)
            home.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StoreError(
                f"the cache that zip files are unpacked into cannot be written ({e.strerror or e})",
                where=home,
                fix="set STAINSEQ_CACHE_DIR to a folder that can be written, or unpack the file yourself",
            ) from e
        with files.as_store_errors(home):
            part = home / uuid.uuid4().hex
            try:
                with zipfile.ZipFile(path) as z:
                    z.extractall(part)
            except zipfile.BadZipFile as e:
                raise StoreError(f"damaged zip file ({e})", where=path, fix="copy or pack it again") from e
            os.rename(part, target)
    for root in (target, *sorted(p for p in target.iterdir() if p.is_dir())):
        if metadata.is_store(root):
            return root
    raise StoreError("no slide store in this zip file", where=path, fix="zip the .zarr folder of a slide")


def pack(path: Path, out: Path) -> Path:
    """Put a store into one uncompressed zip file (its parts are compressed already), in one step.

    Raises
    ------
    StoreError
        Not a store; no permission, full disk.
    """
    metadata.root(path)
    part = out.with_name(f".{out.name}-{uuid.uuid4().hex}")
    with files.as_store_errors(out):
        try:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as z:
                for folder, _, names in sorted(os.walk(path)):
                    for name in sorted(names):
                        file = Path(folder) / name
                        z.write(file, file.relative_to(path).as_posix())
            files.sync(part)
            os.replace(part, out)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return out
