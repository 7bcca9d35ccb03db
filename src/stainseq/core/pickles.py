"""Pickles of others, read without running what is in them: arrays and builtin containers, nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from ..errors import FormatError

_ADMITTED = {
    ("builtins", "complex"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("builtins", "slice"),
    ("builtins", "bytearray"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}

_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OSError,
    ImportError,
    MemoryError,
    OverflowError,
)
"""What an unpickler raises for bytes that are no pickle of arrays."""


class _Admitting(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of it")


def load(path: Path) -> Any:
    """What a pickle file holds, if that is arrays, numbers, text and containers of these.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FormatError
        It asks for anything else (and could run any code), or is damaged.
    """
    try:
        with open(path, "rb") as file:
            found = _Admitting(file).load()
    except _DAMAGED as e:
        raise _refused(e, path) from e
    if _holds_objects(found):
        raise _refused(pickle.UnpicklingError("it holds arrays of objects"), path)
    return found


def _refused(e: BaseException, path: Path) -> FormatError:
    return FormatError(
        f"a pickle that is damaged or holds more than arrays ({e})", where=path, fix="save it as .npy and read that"
    )


def _holds_objects(value: Any, depth: int = 0) -> bool:
    if hasattr(value, "dtype"):
        return bool(value.dtype.hasobject)
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, (list, tuple)) and depth < 8 and any(_holds_objects(v, depth + 1) for v in value)
