"""Barcodes of Visium HD, which tell the bin's size and its place: "s_008um_00012_00345-1"."""

from __future__ import annotations

import numpy as np

LENGTH = 21
_FORM = "s_{:03d}um_00000_00000-1"
_SIZE, _ROW, _COLUMN = slice(2, 5), 8, 14
_TENS = np.array([10_000, 1_000, 100, 10, 1], dtype=np.int32)
_ZERO = ord("0")


def write(size_um: int, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Barcodes of bins.

    Parameters
    ----------
    size_um
        Side of a bin, 1 to 999.
    rows, cols
        int [n], 0 to 99,999.

    Returns
    -------
    numpy.ndarray
        uint8 [n, 21], their letters.
    """
    text = np.tile(np.frombuffer(_FORM.format(size_um).encode(), dtype=np.uint8), (len(rows), 1))
    for start, values in ((_ROW, rows), (_COLUMN, cols)):
        for i, ten in enumerate(_TENS):
            text[:, start + i] += (np.asarray(values) // ten % 10).astype(np.uint8)
    return text


def read(text: np.ndarray) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Size (um), rows and columns that barcodes tell.

    Parameters
    ----------
    text
        uint8 [n, 21].

    Returns
    -------
    tuple or None
        int, int32 [n], int32 [n]; None where a barcode has another form, or sizes differ.
    """
    if not len(text):
        return None
    size = bytes(text[0, _SIZE])
    if not size.isdigit():
        return None
    form = np.frombuffer(_FORM.format(int(size)).encode(), dtype=np.uint8)
    fixed = np.ones(LENGTH, dtype=bool)
    for start in (_ROW, _COLUMN):
        fixed[start : start + len(_TENS)] = False
    if (text[:, fixed] != form[fixed]).any():
        return None
    digits = text[:, ~fixed] - _ZERO
    if (digits > 9).any():
        return None
    half = len(_TENS)
    return int(size), digits[:, :half].astype(np.int32) @ _TENS, digits[:, half:].astype(np.int32) @ _TENS
