"""Maps of a patch as CSR parts, and the bytes of .npz files of them.

Both stand on the way of every patch: one compiled pass finds all nuclei, and arrays that several files share are
compressed once. What is written is plain ``numpy.savez_compressed`` to whoever reads it.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np

_LEVEL = 6
"""Of libdeflate: smaller than level 1 on such maps in the same time, an eighth of what the picture costs."""

_DAY = (1 << 5) | 1  # 1980-01-01, the first day that an archive can tell: the same content is the same file


class Drawn(NamedTuple):
    """The nuclei of one patch, pixel by pixel.

    Parameters
    ----------
    members
        int64 [k], positions of the nuclei that show, ascending.
    indices, indptr
        int32, columns of the pixels that are not background, and where each row starts: CSR.
    instances
        int32, 1 + position in `members` at those pixels.
    """

    members: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    instances: np.ndarray


def drawn(mask: np.ndarray, seen: np.ndarray) -> Drawn:
    """Number the nuclei of a label image 1 ... k, and leave the background out.

    Parameters
    ----------
    mask
        uint32 [h, w], 1 + position of a nucleus, 0 background.
    seen
        int32 [more than the largest value], zeros; zeros again afterwards.
    """
    return Drawn(*_drawn(mask, seen))


@numba.njit(cache=True, nogil=True)
def _drawn(mask, seen):  # type: ignore[no-untyped-def]
    height, width = mask.shape
    # One pass over all pixels, and one over those that are drawn.
    indices, values = np.empty(height * width, dtype=np.int32), np.empty(height * width, dtype=np.int32)
    indptr = np.zeros(height + 1, dtype=np.int32)
    found = np.empty(256, dtype=np.int64)
    n, at = 0, 0
    last = np.uint32(0)
    for r in range(height):
        for c in range(width):
            v = mask[r, c]
            if v == 0:
                continue
            indices[at] = c
            values[at] = np.int32(v)
            at += 1
            if v == last:
                continue
            last = v
            if seen[v] == 0:
                seen[v] = 1
                if n == len(found):
                    more = np.empty(2 * n, dtype=np.int64)
                    more[:n] = found
                    found = more
                found[n] = v
                n += 1
        indptr[r + 1] = at
    members = np.sort(found[:n])
    for i in range(n):
        seen[members[i]] = i + 1
    instances = np.empty(at, dtype=np.int32)
    for k in range(at):
        instances[k] = seen[values[k]]
    for i in range(n):
        seen[members[i]] = 0
        members[i] -= 1
    return members, indices[:at].copy(), indptr, instances


class Packed(NamedTuple):
    """One compressed .npy, to be put into archives."""

    crc: int
    size: int
    data: bytes


def pack(array: np.ndarray) -> Packed:
    """Compress an array as .npy."""
    import imagecodecs

    held = io.BytesIO()
    head = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(held, head)
    raw = held.getvalue() + array.tobytes()
    # libdeflate's checksum is ten times as fast as zlib's.
    return Packed(
        imagecodecs.deflate_crc32(raw), len(raw), bytes(imagecodecs.deflate_encode(raw, level=_LEVEL, raw=True))
    )


@lru_cache(maxsize=64)
def pack_shape(shape: tuple[int, int], dtype: str) -> Packed:
    """The shape of a matrix, the same for all patches."""
    return pack(np.array(shape, dtype=dtype))


@lru_cache(maxsize=1)
def _csr_word() -> Packed:
    return pack(np.array(b"csr"))


def npz(arrays: Mapping[str, Packed]) -> bytes:
    """The bytes of an .npz file; see PKWARE's APPNOTE 6.3, sections 4.3.7, 4.3.12 and 4.3.16."""
    body, directory = [], []
    at = 0
    for name, (crc, size, data) in arrays.items():
        called = f"{name}.npy".encode()
        # Version 2.0, no flags, deflate, time, day, checksum, sizes, length of the name, no extra field.
        common = struct.pack("<5H3L2H", 20, 0, 8, 0, _DAY, crc, len(data), size, len(called), 0)
        body += [b"PK\x03\x04", common, called, data]
        directory += [b"PK\x01\x02", struct.pack("<H", 20), common, struct.pack("<3H2L", 0, 0, 0, 0, at), called]
        at += 30 + len(called) + len(data)
    listed = b"".join(directory)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(arrays), len(arrays), len(listed), at, 0)
    return b"".join([*body, listed, end])


def csr(packed: Mapping[str, Packed], shape: tuple[int, int]) -> bytes:
    """As ``scipy.sparse.save_npz`` writes a CSR matrix.

    Parameters
    ----------
    packed
        ``data``, ``indices``, ``indptr``.
    shape
        Of the matrix.
    """
    return npz({
        "indices": packed["indices"],
        "indptr": packed["indptr"],
        "format": _csr_word(),
        "shape": pack_shape(shape, "int64"),
        "data": packed["data"],
    })  # fmt: skip
