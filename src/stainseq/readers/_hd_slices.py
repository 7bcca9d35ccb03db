"""feature_slice.h5 of Visium HD: one sparse picture of the finest bins a gene, from which bins of any size are made.

https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/output-overview
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ..errors import FormatError, InputError, MissingError, StainseqError
from ._hd_matrix import Matrix, check_version, names

_FORMATS = ("1.0",)
# The vendor's matrices place the centre of bin (0, 0) at (0, 0); ours its corner.
_CORNER = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])


@dataclass(frozen=True)
class Slices:
    """What feature_slice.h5 tells of the array.

    Parameters
    ----------
    path
        The file.
    shape
        Rows and columns of the finest bins.
    pitch_um
        Their side.
    transform
        float64 [3, 3], (column, row) of the finest bins to full-resolution pixels, a bin covering [c, c + 1] x
        [r, r + 1]; None where the run had no microscope image.
    """

    path: Path
    shape: tuple[int, int]
    pitch_um: float
    transform: np.ndarray | None

    def factor(self, size_um: int) -> int:
        """Finest bins along a bin of a size.

        Raises
        ------
        InputError
            Not a whole number of them.
        """
        times = size_um / self.pitch_um
        if times < 1 or abs(times - round(times)) > 1e-9:
            raise InputError(f"bins of {size_um} um", where=self.path, fix=f"give a multiple of {self.pitch_um:g} um")
        return round(times)

    def shape_of(self, size_um: int) -> tuple[int, int]:
        """Rows and columns of bins of a size; those at the end may be cut off."""
        k = self.factor(size_um)
        return -(-self.shape[0] // k), -(-self.shape[1] // k)

    def transform_of(self, size_um: int) -> np.ndarray:
        """As `transform`, for bins of a size.

        Raises
        ------
        MissingError
            The file has none.
        """
        if self.transform is None:
            raise MissingError(
                "feature_slice.h5 does not tell where bins lie in a microscope image",
                where=self.path,
                fix="copy spatial/tissue_positions.parquet of this bin size, too",
            )
        k = self.factor(size_um)
        return np.asarray(self.transform @ np.diag([k, k, 1.0]))

    def mask(self, size_um: int) -> np.ndarray:
        """Bins under tissue, bool [rows, columns]: a coarse bin is, where any of its finest ones is."""
        shape, k = self.shape_of(size_um), self.factor(size_um)
        out = np.zeros(shape, dtype=bool)
        with _open(self.path) as h5:
            own = f"masks/square_{size_um:03d}um"
            if own in h5:
                rows, cols, _ = _coo(h5[own])
            elif "masks/filtered" in h5:
                rows, cols, _ = _coo(h5["masks/filtered"])
                rows, cols = rows // k, cols // k
            else:
                return np.ones(shape, dtype=bool)
        _inside(rows, cols, shape, self.path)
        out[rows, cols] = True
        return out

    def measured(self, size_um: int) -> np.ndarray:
        """Bins with any count, bool [rows, columns]."""
        shape, k = self.shape_of(size_um), self.factor(size_um)
        out = np.zeros(shape, dtype=bool)
        with _open(self.path) as h5:
            rows, cols, _ = _coo(h5["umis/total"])
        _inside(rows // k, cols // k, shape, self.path)
        out[rows // k, cols // k] = True
        return out

    def counts(self, size_um: int, rows: np.ndarray, cols: np.ndarray) -> Matrix:
        """Counts of bins of a size.

        Parameters
        ----------
        size_um
            Side of a bin.
        rows, cols
            The bins wanted, int [n].

        Returns
        -------
        Matrix
            In the memory of its non-zeros, twice.
        """
        from ._tables import Counts, whole_counts

        shape, k = self.shape_of(size_um), self.factor(size_um)
        lookup = np.full(shape[0] * shape[1], -1, dtype=np.int32)
        lookup[rows.astype(np.int64) * shape[1] + cols] = np.arange(len(rows), dtype=np.int32)
        with _open(self.path) as h5:
            told = h5["features"]
            kinds = _text(told["feature_type"]) if "feature_type" in told else ["Gene Expression"] * len(told["name"])
            genes = [i for i, kind in enumerate(kinds) if kind == "Gene Expression"] or list(range(len(kinds)))
            slices = h5["feature_slices"]
            total = sum(int(slices[str(i)]["data"].shape[0]) for i in genes if str(i) in slices)
            at, data = np.empty(total, dtype=np.int32), np.empty(total, dtype=np.int32)
            ends, end = np.zeros(len(genes) + 1, dtype=np.int64), 0
            for position, i in enumerate(genes):
                if str(i) in slices:
                    row, column, values = _coo(slices[str(i)])
                    _inside(row // k, column // k, shape, self.path)
                    found = lookup[row // k * shape[1] + column // k]
                    kept = found >= 0
                    start, end = end, end + int(kept.sum())
                    at[start:end], data[start:end] = found[kept], whole_counts(values, self.path)[kept]
                ends[position + 1] = end
            symbols, ids = ([v[i] for i in genes] for v in (_text(told["name"]), _text(told["id"])))
        # Bins of one gene that fall into the same coarse bin stand side by side once rows are compressed.
        X = sparse.csc_matrix((data[:end], at[:end], ends), shape=(len(rows), len(genes))).tocsr()
        X.sum_duplicates()
        left = f"{len(kinds) - len(genes)} features that are no genes left out" if len(genes) < len(kinds) else None
        counts = Counts(X, [], symbols, ids, ["Gene Expression"] * len(genes))
        return Matrix(counts, names(size_um, rows, cols), left)


def open_slices(path: Path, *, version: int | None = None) -> Slices:
    """What a feature_slice.h5 tells of the array.

    Parameters
    ----------
    path
        The file.
    version
        Of Space Ranger, to be taken for the file's own.

    Raises
    ------
    FormatError
        Truncated, no such file, of an unknown version.
    """
    with _open(path) as h5:
        check_version(h5.attrs.get("software_version"), version, where=path)
        told = json.loads(h5.attrs["metadata_json"])
        layout = told.get("hd_layout_json") or {}
        layout = json.loads(layout) if isinstance(layout, str) else layout
        form = str(layout.get("file_format", _FORMATS[0]))
        if form not in _FORMATS and version is None:
            raise FormatError(
                f"feature slices of an unknown format ({form})",
                where=path,
                fix=f"{', '.join(_FORMATS)} is known; --option version=4 reads it as that",
            )
        matrix = (told.get("transform_matrices") or {}).get("spot_colrow_to_microscope_colrow")
        shape = int(told["nrows"]), int(told["ncols"])
        if not ("feature_slices" in h5 and "features" in h5):
            raise FormatError("no feature slices", where=path, fix="download it again")
        transform = None if matrix is None else np.asarray(matrix, dtype=np.float64).reshape(3, 3) @ _CORNER
    return Slices(path, shape, float(told.get("spot_pitch", 2.0)), transform)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    import h5py

    try:
        with h5py.File(path, "r") as h5:
            yield h5
    except StainseqError:
        raise
    except (OSError, KeyError, ValueError, TypeError) as e:
        raise FormatError(
            f"not the feature slices of Visium HD, or truncated ({e})", where=path, fix="download it again"
        ) from e


def _coo(group: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row, column, data = (group[k][:] for k in ("row", "col", "data"))
    if not len(row) == len(column) == len(data):
        raise KeyError("row, col and data differ in length")
    return row.astype(np.int64, copy=False), column.astype(np.int64, copy=False), data


def _inside(rows: np.ndarray, cols: np.ndarray, shape: tuple[int, int], path: Path) -> None:
    if len(rows) and (min(rows.min(), cols.min()) < 0 or rows.max() >= shape[0] or cols.max() >= shape[1]):
        raise FormatError(f"bins outside an array of {shape[0]} x {shape[1]}", where=path, fix="download it again")


def _text(dataset: Any) -> list[str]:
    return [v.decode() for v in dataset[:]]
