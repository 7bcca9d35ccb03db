"""Ids of cells as integers: Xenium's spell one in letters, others are numbered."""

from __future__ import annotations

import numpy as np

from ..errors import InputError

_LETTERS = 8
_ENDING = "-1"
_A = ord("a")


def spelled(ids: np.ndarray) -> np.ndarray | None:
    """Integers that 10x's ids spell: base 16 in letters a to p, eight of them, then ``-1``.

    Parameters
    ----------
    ids
        [n] text.

    Returns
    -------
    uint32 [n], or None where an id has another form. ``aaaachba-1`` is 10000.
    """
    held = np.asarray(ids).astype(str)
    width = _LETTERS + len(_ENDING)
    if not len(held) or held.dtype.itemsize // 4 != width:
        return None
    letters = np.ascontiguousarray(held).view(np.uint32).reshape(len(held), width)
    digits = letters[:, :_LETTERS].astype(np.int64) - _A
    if ((digits < 0) | (digits > 15)).any() or (letters[:, _LETTERS:] != [ord(c) for c in _ENDING]).any():
        return None
    return (digits @ (16 ** np.arange(_LETTERS - 1, -1, -1, dtype=np.int64))).astype(np.uint32)


def spell(numbers: np.ndarray) -> np.ndarray:
    """10x's ids of integers; the inverse of `spelled`.

    Parameters
    ----------
    numbers
        [n] of 0 to 2**32 - 1.

    Raises
    ------
    InputError
        Others.
    """
    held = np.asarray(numbers)
    if held.size and (held.min() < 0 or held.max() > np.iinfo(np.uint32).max):
        raise InputError("numbers that do not fit 32 bits", fix="10x's ids spell 0 to 4294967295")
    text = np.empty((len(held), _LETTERS + len(_ENDING)), dtype=np.uint32)
    shifts = np.arange(4 * (_LETTERS - 1), -1, -4, dtype=np.int64)
    text[:, :_LETTERS] = (held.astype(np.int64)[:, None] >> shifts) % 16 + _A
    text[:, _LETTERS:] = [ord(c) for c in _ENDING]
    return text.view(f"<U{text.shape[1]}").ravel()


def numbers(ids: np.ndarray) -> np.ndarray:
    """An integer for each id, the same for the same id.

    Parameters
    ----------
    ids
        [n] text; an id may occur several times, as a cell's does with several nuclei.

    Returns
    -------
    uint32 [n]. What 10x's ids spell; others are numbered from 0 in the order in which they first come. So are 10x's
    where one spells 2**32 - 1, which leaves no room for a background.
    """
    told = spelled(ids)
    if told is not None and (not len(told) or int(told.max()) < np.iinfo(np.uint32).max):
        return told
    held = np.asarray(ids).astype(str)
    _, first, inverse = np.unique(held, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.uint32)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first), dtype=np.uint32)
    return rank[inverse.ravel()]
