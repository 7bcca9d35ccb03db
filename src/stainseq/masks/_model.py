"""What every format yields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import FormatError


class Mask(NamedTuple):
    """One instance map.

    Parameters
    ----------
    instances
        Integer [height, width], 0 background.
    classes
        Class of each pixel, 0 background, [height, width]; None where the format knows none.
    kinds
        Names of the classes 1, 2, ..., where the format names them.
    """

    instances: np.ndarray
    classes: np.ndarray | None = None
    kinds: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Masks:
    """Instance maps by name.

    Parameters
    ----------
    names
        In order.
    read
        Called with a name and, for outlines without a size of their own, the (height, width) to draw on.
    where
        File or folder, for messages.
    """

    names: list[str]
    read: Callable[[str, tuple[int, int] | None], Mask]
    where: str


def checked(instances: np.ndarray, classes: np.ndarray | None, where: object) -> Mask:
    """A `Mask` of whole numbers in two dimensions, or an error that says what it is instead."""
    labels = _whole(instances, "instance map", where)
    if classes is None:
        return Mask(labels)
    kinds = _whole(classes, "class map", where)
    if kinds.shape != labels.shape:
        raise FormatError(f"class map {kinds.shape}, instance map {labels.shape}", where=where)
    return Mask(labels, kinds)


def _whole(values: np.ndarray, what: str, where: object) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2:
        raise FormatError(f"the {what} has shape {values.shape}", where=where, fix="give [height, width]")
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
            raise FormatError(f"the {what} holds fractions or NaN", where=where, fix="give whole numbers")
        values = values.astype(np.int64)
    elif values.dtype.kind == "b":
        values = values.astype(np.int32)
    elif values.dtype.kind not in "iu":
        raise FormatError(f"the {what} holds {values.dtype}", where=where, fix="give whole numbers")
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise FormatError(f"the {what} holds negative numbers", where=where, fix="0 is background")
    return values
