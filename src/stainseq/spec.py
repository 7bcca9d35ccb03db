"""Frozen facts that travel with results: fingerprints, stamps and run records."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
"""Major version of what we write; readers refuse a newer one."""


def canonical(obj: Any) -> str:
    """JSON with sorted keys and no spaces; arrays, paths and tuples are turned into plain values."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(obj: Any) -> Any:
    if hasattr(obj, "tolist"):
        return obj.tolist()
    if isinstance(obj, (set, frozenset)):
        return sorted(obj)
    if isinstance(obj, Path):
        return str(obj)
    raise TypeError(f"{type(obj).__name__} has no canonical form")


def fingerprint(*parts: Any) -> str:
    """32 hex digits that name a content.

    Parameters
    ----------
    parts
        bytes, numpy arrays (bytes, dtype and shape count) or anything that `canonical` takes.
    """
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, (bytes, bytearray, memoryview)):
            h.update(b"b")
            h.update(part)
        elif hasattr(part, "dtype") and hasattr(part, "tobytes") and part.dtype.kind in "biufcS":
            h.update(f"a{part.dtype.str}{part.shape}".encode())
            h.update(part.tobytes())
        else:
            h.update(b"j" + canonical(part).encode())
    return h.hexdigest()


def fingerprint_file(path: str | os.PathLike[str]) -> str:
    """Fingerprint of a file's bytes, read in pieces."""
    h = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        while piece := f.read(1 << 22):
            h.update(piece)
    return h.hexdigest()


def stamp(
    step: str, *, parameters: dict[str, Any], inputs: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """What every element that we write carries.

    Parameters
    ----------
    step
        Name of the command or function, such as "convert".
    parameters
        Its parameters, JSON-able.
    inputs
        Fingerprints of what it was computed from, by name.
    more
        Further facts (encoder, grid, seed), JSON-able.
    """
    from . import __version__

    return {
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "step": step,
        "parameters": json.loads(canonical(parameters)),
        "inputs": dict(inputs or {}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **json.loads(canonical(more)),
    }
