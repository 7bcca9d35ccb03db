"""Opens dense maps that other programs made: .npy, .zarr, and pickles of HIPT embeddings, without running any code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .core import pickles
from .errors import FormatError, InputError, MissingError
from .spec import fingerprint, fingerprint_file

HIPT_KEYS = ("cls", "sub", "rgb")
"""Order of the parts of HIPT embeddings: 192 + 384 + 3 channels."""

_FIX = "give .npy or .zarr of [rows, columns, features], or the pickle of HIPT embeddings"


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, str]]:
    """A map and the fingerprint of its content.

    Parameters
    ----------
    path
        A .npy file, a .zarr folder, or a .pickle or .pkl of ``{"cls", "sub", "rgb"}``, each a list of 2-D arrays
        (one a channel), as iStar and Pixel2Gene write.

    Yields
    ------
    tuple
        [rows, columns, features] that slices to numpy, on disk where the format allows, and its fingerprint.

    Raises
    ------
    MissingError
        No such file.
    FormatError
        Another format, a damaged file, or a pickle that holds anything but arrays of numbers.
    InputError
        Not three axes of numbers.
    """
    if not path.exists():
        raise MissingError("no such map", where=path, fix="check the path")
    if path.suffix == ".npy":
        values: Any = _npy(path)
        content = fingerprint_file(path)
    elif path.is_dir():
        values = _zarr(path)
        files = sorted(p for p in path.rglob("*") if p.is_file())
        content = fingerprint([(str(p.relative_to(path)), fingerprint_file(p)) for p in files])
    elif path.suffix in (".pickle", ".pkl"):
        values, content = _hipt(path), fingerprint_file(path)
    else:
        raise FormatError("a map of unknown format", where=path, fix=_FIX)
    if values.ndim != 3 or values.dtype.kind not in "fiu" or 0 in values.shape:
        raise InputError(f"a map of shape {tuple(values.shape)} and {values.dtype}", where=path, fix=_FIX)
    yield values, content


def _npy(path: Path) -> np.ndarray:
    try:
        found: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as e:
        raise FormatError(f"the map cannot be read ({e})", where=path, fix=_FIX) from e
    if not isinstance(found, np.ndarray):
        found.close()
        raise FormatError("an archive of arrays (.npz), not one array", where=path, fix=_FIX)
    return found


def _zarr(path: Path) -> Any:
    import zarr

    try:
        found: Any = zarr.open(path, mode="r")
    except (OSError, ValueError, KeyError) as e:
        raise FormatError(f"the map cannot be read ({e})", where=path, fix=_FIX) from e
    if isinstance(found, zarr.Array):
        return found
    arrays = [a for _, a in found.arrays() if a.ndim == 3]
    if len(arrays) != 1:
        raise FormatError(f"a group with {len(arrays)} maps", where=path, fix="name the array inside it")
    return arrays[0]


def _hipt(path: Path) -> np.ndarray:
    loaded = pickles.load(path)
    if not isinstance(loaded, dict) or not set(HIPT_KEYS) & set(loaded) or set(loaded) - set(HIPT_KEYS):
        raise FormatError("the pickle holds no HIPT embeddings", where=path, fix="a dict of cls, sub and rgb is read")
    parts = [loaded.pop(k, []) for k in HIPT_KEYS]
    planes = [np.asarray(p) for part in parts if isinstance(part, (list, tuple, np.ndarray)) for p in part]
    if len({p.shape for p in planes}) != 1 or planes[0].ndim != 2:
        raise FormatError("the channels are no 2-D arrays of one shape", where=path, fix="write the embeddings again")
    return np.stack(planes, axis=-1)
