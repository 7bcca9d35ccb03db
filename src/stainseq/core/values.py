"""What kind of numbers a table holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError

_PIECE = 1 << 20


def is_counts(values: Any) -> bool:
    """Whether values look like raw counts: nothing between integers.

    Parameters
    ----------
    values
        Array of any shape, or CSR or CSC.

    Raises
    ------
    InputError
        All are integers, but some are negative.
    """
    data = values.data if hasattr(values, "indptr") else np.asarray(values).ravel()
    negative = False
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        if piece.dtype.kind == "f" and (piece != np.rint(piece)).any():
            return False
        negative |= piece.dtype.kind in "if" and bool((piece < 0).any())
    if negative:
        raise InputError("counts are negative", fix="give raw counts, or values that are normalised but not rounded")
    return True


def in_range(where: str, **options: tuple[float, float, float]) -> None:
    """Refuse numbers that mean nothing.

    Parameters
    ----------
    where
        The method.
    options
        Each option's value, least and greatest.

    Raises
    ------
    InputError
        One is outside, or not a number.
    """
    for name, (value, low, high) in options.items():
        if not low <= value <= high:
            wanted = f"at least {low:g}" if high == np.inf else f"{low:g} to {high:g}"
            raise InputError(f"{name} is {value:g}", where=where, fix=f"give {wanted}")
