"""What a fitted head is: a flat dict of numpy arrays, with its settings as JSON bytes under ``_config``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ..errors import FormatError
from ..spec import canonical

State = dict[str, np.ndarray]

CONFIG = "_config"
VERSION = 1


def pack(head: str, config: dict[str, Any], **arrays: np.ndarray) -> State:
    """A state that safetensors can hold.

    Parameters
    ----------
    head
        Name of the head.
    config
        JSON-able settings that `predict` needs or a reader wants to see.
    arrays
        Arrays by name; made contiguous, as safetensors writes raw memory.
    """
    text = canonical({"head": head, "version": VERSION, **config}).encode()
    state = {name: np.array(value, order="C") for name, value in arrays.items()}
    state[CONFIG] = np.frombuffer(text, dtype=np.uint8).copy()
    return state


def config(state: State, head: str | None = None) -> dict[str, Any]:
    """Settings of a state.

    Parameters
    ----------
    state
        From a head's `fit`, or read back.
    head
        Name of the head that is about to use it.

    Raises
    ------
    FormatError
        No settings, a newer version, or another head's state.
    """
    if CONFIG not in state:
        raise FormatError("this is not the state of a head: it has no settings", where="state", fix="train again")
    found = json.loads(np.asarray(state[CONFIG], dtype=np.uint8).tobytes())
    if found.get("version", 0) > VERSION:
        raise FormatError(
            f"the state is of version {found['version']}, this stainseq reads up to {VERSION}",
            where="state",
            fix="upgrade stainseq",
        )
    if head is not None and found.get("head") != head:
        raise FormatError(f"the state is of head {found.get('head')!r}, not {head!r}", where="state")
    return found
