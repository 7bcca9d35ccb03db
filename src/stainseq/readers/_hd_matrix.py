"""Counts of Visium HD: matrices that are larger than memory, barcodes that tell their place."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ..errors import FormatError, InputError, StainseqError

if TYPE_CHECKING:
    from ._tables import Counts

LAZY_NONZEROS = 20_000_000
"""Larger matrices are read piece by piece when they are written: as much as 240 MB in memory."""

_BLOCK_NONZEROS = 8_000_000
_FEW = 1 << 26
"""Bins that are counted in a table: a few times those of the largest array, 11 mm of 2 um."""
_VERSION = re.compile(r"spaceranger-(\d+)[.\d]*")
KNOWN = (3, 4)
"""Versions of Space Ranger whose Visium HD outputs are known; earlier ones made none."""


@dataclass(frozen=True)
class Matrix:
    """Counts of bins or cells as read.

    Parameters
    ----------
    counts
        Its ``X`` is CSR int32, in memory, or a dask array of CSR blocks where it is large; its ``ids`` are empty.
    ids
        Barcodes, Arrow strings [n].
    left_out
        Features that are no genes, for a note, or None.
    """

    counts: Counts
    ids: Any
    left_out: str | None


def open_matrix(path: Path, *, version: int | None = None) -> Matrix:
    """A matrix of bins, [bins, genes]; genes only.

    Parameters
    ----------
    path
        HDF5, or a folder of text files.
    version
        Of Space Ranger, to be taken for the file's own.

    Raises
    ------
    FormatError
        Truncated, no such matrix, or of an unknown version.
    InputError
        Counts that cannot be, double barcodes.
    """
    import pyarrow as pa

    from ._tables import genes_only, read_10x_mtx

    if path.is_dir():
        counts, left = genes_only(read_10x_mtx(path))
        found = Matrix(counts, pa.array(counts.ids, type=pa.string()), left)
    else:
        found = _open_h5(path, version)
    told = places(found.ids)
    if twice(*told[1:]) is not None if told is not None else len(found.ids.unique()) < len(found.ids):
        double = [v["values"] for v in found.ids.value_counts().to_pylist() if v["counts"] > 1]
        raise InputError(
            f"barcodes that occur twice in the matrix ({', '.join(double[:3])})", where=path, fix="download it again"
        )
    return found


def _open_h5(path: Path, version: int | None) -> Matrix:
    import h5py
    import pyarrow as pa

    from ._tables import Counts

    try:
        with h5py.File(path, "r") as h5:
            check_version(h5.attrs.get("software_version"), version, where=path)
            group = h5["matrix"]
            features = {k: _text(group["features"][k]) for k in ("id", "name", "feature_type")}
            n_features, n = (int(v) for v in group["shape"][:])
            ids = pa.array(group["barcodes"][:]).cast(pa.string())
            indptr = group["indptr"][:].astype(np.int64)
            stored = {int(group[k].shape[0]) for k in ("data", "indices")}
    except StainseqError:
        raise
    except (OSError, KeyError, ValueError, pa.ArrowInvalid) as e:
        raise FormatError(
            f"not a 10x matrix, or truncated ({e})", where=path, fix="download it again (feature_bc_matrix.h5)"
        ) from e
    fits = len(features["name"]) == n_features and len(ids) == n == len(indptr) - 1 and stored == {int(indptr[-1])}
    if not fits or (np.diff(indptr) < 0).any():
        raise FormatError("a 10x matrix whose parts do not fit together", where=path, fix="download it again")
    genes = np.array(features["feature_type"]) == "Gene Expression"
    left = None
    if genes.all() or not genes.any():
        genes = np.ones(n_features, dtype=bool)
    else:
        kinds, times = np.unique(np.array(features["feature_type"])[~genes], return_counts=True)
        left = "features left out: " + ", ".join(f"{t} {k}" for k, t in zip(kinds, times, strict=True))
    # Column of each feature among the genes; -1 for what is left out.
    columns = np.where(genes, np.cumsum(genes) - 1, -1).astype(np.int32)
    named = {k: [v for v, kept in zip(values, genes, strict=True) if kept] for k, values in features.items()}
    counts = Counts(_rows(path, indptr, columns), [], named["name"], named["id"], named["feature_type"])
    return Matrix(counts, ids, left)


def _text(dataset: Any) -> list[str]:
    return [v.decode() for v in dataset[:]]


def check_version(told: Any, given: int | None, *, where: Path) -> None:
    """Refuse a version of Space Ranger that is not known, unless one is given.

    Raises
    ------
    FormatError
        With the way out.
    """
    text = told.decode() if isinstance(told, bytes) else str(told or "")
    match = _VERSION.search(text)
    major = given if given is not None else int(match[1]) if match else None
    if major is not None and major not in KNOWN:
        known = " and ".join(map(str, KNOWN))
        raise FormatError(
            f"an unknown version of Space Ranger ({major if given is not None else match and match[0]})",
            where=where,
            fix=f"{known} are known; --option version={KNOWN[-1]} reads it as that version",
        )


def _rows(path: Path, indptr: np.ndarray, columns: np.ndarray) -> Any:
    """The whole matrix, or a dask array of it."""
    width = int(columns.max()) + 1
    if int(indptr[-1]) <= LAZY_NONZEROS:
        return _block(path, indptr, columns)
    import dask
    import dask.array as da

    cuts = np.searchsorted(indptr, np.arange(0, int(indptr[-1]), _BLOCK_NONZEROS), side="left")
    cuts = np.unique(np.append(cuts, len(indptr) - 1))
    meta = sparse.csr_matrix((0, width), dtype=np.int32)
    load = dask.delayed(_block)
    blocks = [
        da.from_delayed(load(path, indptr[a : b + 1], columns), shape=(int(b - a), width), dtype=np.int32, meta=meta)
        for a, b in itertools.pairwise(cuts)
    ]
    return da.concatenate(blocks, axis=0)


def _block(path: Path, indptr: np.ndarray, columns: np.ndarray) -> Any:
    """Some rows, CSR int32; `indptr` says which values they are."""
    import h5py

    from ._tables import whole_counts

    first, last = int(indptr[0]), int(indptr[-1])
    try:
        with h5py.File(path, "r") as h5:
            data, indices = (h5["matrix"][k][first:last] for k in ("data", "indices"))
    except OSError as e:
        raise FormatError(f"the matrix cannot be read ({e})", where=path, fix="download it again") from e
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(columns):
        raise FormatError("a 10x matrix whose parts do not fit together", where=path, fix="download it again")
    whole = whole_counts(data, path)
    place, pointers = columns[indices], indptr - first
    if (columns < 0).any():
        kept = place >= 0
        pointers = np.concatenate([[0], np.cumsum(kept)])[pointers]
        place, whole = place[kept], whole[kept]
    shape = (len(indptr) - 1, int(columns.max()) + 1)
    return sparse.csr_matrix((whole, place, pointers.astype(np.int32)), shape=shape)


def twice(rows: np.ndarray, cols: np.ndarray) -> tuple[int, int] | None:
    """A row and column that occur more than once, or None; int [n], 0 and above."""
    wide = int(cols.max()) + 1
    key = rows.astype(np.int64) * wide + cols
    if (int(rows.max()) + 1) * wide <= _FEW:
        times = np.bincount(key)
        found = int(times.argmax())
        return divmod(found, wide) if times[found] > 1 else None
    values, times = np.unique(key, return_counts=True)
    found = int(times.argmax())
    return divmod(int(values[found]), wide) if times[found] > 1 else None


def blocks(X: Any) -> Any:
    """(first row, CSR) of each piece of a matrix of either kind."""
    if not hasattr(X, "dask"):
        yield 0, X
        return
    ends = np.cumsum((0, *X.chunks[0]))
    for i, start in enumerate(ends[:-1]):
        yield int(start), X.blocks[i].compute(scheduler="synchronous")


def places(ids: Any) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Bin size (um), rows and columns that barcodes tell; None where they are of another form.

    Parameters
    ----------
    ids
        Arrow strings [n].
    """
    import pyarrow as pa

    from ..core import barcodes

    if ids.null_count:
        return None
    fixed = ids.cast(pa.large_string())
    fixed = fixed.combine_chunks() if isinstance(fixed, pa.ChunkedArray) else fixed
    starts = np.frombuffer(fixed.buffers()[1], dtype="<i8")[fixed.offset : fixed.offset + len(fixed) + 1]
    if not len(fixed) or not (np.diff(starts) == barcodes.LENGTH).all():
        return None
    text = np.frombuffer(fixed.buffers()[2], dtype=np.uint8)[starts[0] : starts[-1]]
    return barcodes.read(text.reshape(len(fixed), barcodes.LENGTH))


def names(size_um: int, rows: np.ndarray, cols: np.ndarray) -> Any:
    """Barcodes of bins, Arrow strings [n]: the inverse of `places`."""
    import pyarrow as pa

    from ..core import barcodes

    text = barcodes.write(size_um, rows, cols)
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * barcodes.LENGTH
    return pa.StringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(text))
