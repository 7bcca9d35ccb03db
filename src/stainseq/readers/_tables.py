"""Counts and coordinates of spots as vendors and authors write them."""

from __future__ import annotations

import gzip
import io
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from scipy import sparse

from ..core import delimited
from ..errors import FormatError, InputError, MissingError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("stainseq")

BLOCK = 4 << 20
"""Text read at a time: large enough to vectorise over, small enough to stay near the caches."""

_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}")
_XY = re.compile(r"(-?\d+(?:\.\d+)?)x(-?\d+(?:\.\d+)?)$")


@dataclass(frozen=True)
class Counts:
    """A counts matrix as read.

    Parameters
    ----------
    X
        int32 CSR [spots, genes], raw counts.
    ids
        The source's spot ids.
    symbols
        The source's gene names, duplicates and all.
    gene_ids
        Gene ids where the source has them.
    feature_types
        Feature types where the source has them.
    """

    X: Any
    ids: list[str]
    symbols: list[str]
    gene_ids: list[str] | None = None
    feature_types: list[str] | None = None


def open_text(path: Path) -> IO[bytes]:
    """Open a text file for reading bytes, unzipped when its content is gzip, whatever its suffix."""
    with open(path, "rb") as f:
        zipped = f.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(path, "rb")) if zipped else open(path, "rb")


def first_line(path: Path, *, limit: int = 1 << 22) -> str:
    """First line of a text file, unzipped; "" when it is no text."""
    try:
        with open_text(path) as f:
            line = f.readline(limit)
    except (OSError, EOFError, zlib.error):
        return ""
    if b"\0" in line[:4096]:
        return ""
    return line.decode("utf-8-sig", "replace").rstrip("\r\n")


def separator_of(line: str) -> str:
    """Tab, comma or semicolon: the commonest of them in a header line."""
    return max("\t,;", key=line.count)


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """A small delimited table, separator by content, text kept as text.

    Raises
    ------
    FormatError
        Empty, or no table.
    """
    import pandas as pd

    head = first_line(path)
    if not head:
        raise FormatError("an empty or unreadable table", where=path, fix="copy or download it again")
    try:
        with open_text(path) as f:
            return pd.read_csv(f, sep=separator_of(head), encoding="utf-8-sig", **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, EOFError, OSError, UnicodeDecodeError, zlib.error) as e:
        raise FormatError(f"the table cannot be read ({e})", where=path, fix="copy or download it again") from e


def read_text_counts(path: Path, *, is_spot: Callable[[str], bool] | None = None) -> Counts:
    """Counts as delimited text, spots in rows (or in columns, when `is_spot` says that the header holds spots).

    Streamed in blocks: memory is that of the non-zeros.

    Parameters
    ----------
    path
        Table, tab or comma, gzip or not; the header may lack the corner field (as R writes it).
    is_spot
        Tells a spot id from a gene name.

    Raises
    ------
    FormatError
        Empty, truncated, ragged.
    InputError
        Negative, fractional or missing counts; the message names spot and gene.
    """
    header = first_line(path, limit=1 << 28)
    sep = separator_of(header)
    names = [h.strip().strip('"') for h in header.split(sep)]
    if len(names) < 2 and not header.strip():
        raise FormatError("an empty counts table", where=path, fix="copy or download it again")
    parts: list[delimited.SparseRows] = []
    columns: list[str] | None = None
    try:
        with open_text(path) as f:
            f.readline()
            for block in _whole_lines(f):
                if columns is None:
                    fields = block.split(b"\n", 1)[0].count(sep.encode()) + 1
                    columns = names if len(names) == fields - 1 else names[1:]
                parts.append(delimited.scan(block, separator=sep, columns=len(columns)))
    except delimited.BadField as e:
        gene = "" if e.column is None or columns is None else f", gene {columns[e.column]}"
        error = FormatError if e.column is None else InputError
        fix = "the file is truncated or damaged" if e.column is None else "give raw counts"
        raise error(f"{e.why} in row {e.row}{gene}", where=path, fix=fix) from e
    except (EOFError, OSError, zlib.error) as e:
        raise FormatError(f"the file ends too early ({e})", where=path, fix="copy or download it again") from e
    if columns is None:
        raise FormatError("a counts table without rows", where=path, fix="copy or download it again")
    rows = [n for p in parts for n in p.names]
    matrix = _stack(parts, len(columns))
    if is_spot is not None and not any(map(is_spot, rows[:50])) and any(map(is_spot, columns[:50])):
        matrix, rows, columns = matrix.T.tocsr(), columns, rows
    return Counts(matrix, rows, list(columns))


def _whole_lines(f: IO[bytes]) -> Iterable[bytes]:
    rest = b""
    while piece := f.read(BLOCK):
        end = piece.rfind(b"\n") + 1
        if end == 0:
            rest += piece
            continue
        yield rest + piece[:end]
        rest = piece[end:]
    if rest.strip():
        yield rest


def _stack(parts: Sequence[delimited.SparseRows], columns: int) -> Any:
    pointers = np.concatenate([[0], *[np.diff(p.indptr) for p in parts]]).cumsum()
    indices = np.concatenate([p.indices for p in parts])
    values = np.concatenate([p.values for p in parts])
    return sparse.csr_matrix((values, indices, pointers), shape=(len(pointers) - 1, columns), dtype=np.int32)


def read_10x_h5(path: Path) -> Counts:
    """Counts of a 10x HDF5 file (Cell Ranger 3 layout, or the older one of one group per genome).

    Raises
    ------
    FormatError
        Not such a file, or truncated.
    InputError
        Negative or fractional counts.
    """
    import h5py

    try:
        with h5py.File(path, "r") as h5:
            group = h5["matrix"] if "matrix" in h5 else next(g for g in h5.values() if "barcodes" in g)
            barcodes, shape = _strings(group["barcodes"]), tuple(int(n) for n in group["shape"][:])
            features = group.get("features", group)
            names = _strings(features["name" if "name" in features else "gene_names"])
            ids = _strings(features["id" if "id" in features else "genes"])
            types = _strings(features["feature_type"]) if "feature_type" in features else None
            data, indices, indptr = (group[k][:] for k in ("data", "indices", "indptr"))
    except (OSError, KeyError, StopIteration) as e:
        raise FormatError(
            f"not a 10x matrix, or truncated ({e})", where=path, fix="give a feature_barcode_matrix.h5"
        ) from e
    consistent = (
        shape == (len(names), len(barcodes))
        and len(indptr) == len(barcodes) + 1
        and int(indptr[-1]) == len(data) == len(indices)
        and (len(indices) == 0 or 0 <= indices.min() <= indices.max() < len(names))
    )
    if not consistent:
        raise FormatError("a 10x matrix whose parts do not fit together", where=path, fix="download it again")
    matrix = sparse.csr_matrix((whole_counts(data, path), indices, indptr), shape=shape[::-1])
    return Counts(matrix, barcodes, names, ids, types)


def _strings(dataset: Any) -> list[str]:
    return [s.decode() if isinstance(s, bytes) else str(s) for s in dataset[:]]


def whole_counts(data: np.ndarray, path: Path) -> np.ndarray:
    """Counts as int32, not copied where they are.

    Raises
    ------
    InputError
        Negative, missing, fractional or too large ones.
    """
    if data.size and not (np.isfinite(data).all() and data.min() >= 0 and data.max() <= delimited.MAX_COUNT):
        raise InputError("negative, missing or too large counts", where=path, fix="give raw counts")
    whole = data.astype(np.int32, copy=False)
    if data.dtype.kind == "f" and not np.array_equal(whole, data):
        raise InputError("counts that are no whole numbers", where=path, fix="give raw counts, not normalised ones")
    return whole


def read_10x_mtx(folder: Path, *, prefix: str = "") -> Counts:
    """Counts of a 10x folder: matrix.mtx, barcodes.tsv, features.tsv or genes.tsv, each plain or gzip.

    Raises
    ------
    FormatError
        A file is missing, truncated, or they do not fit together.
    InputError
        Negative or fractional counts.
    """
    from scipy.io import mmread

    found = {}
    for role, stems in {
        "matrix": ("matrix.mtx",),
        "barcodes": ("barcodes.tsv",),
        "features": ("features.tsv", "genes.tsv"),
    }.items():
        options = [folder / f"{prefix}{stem}{suffix}" for stem in stems for suffix in (".gz", "")]
        present = [p for p in options if p.is_file()]
        if not present:
            raise FormatError(f"no {stems[0]} beside the matrix", where=folder, fix="give the whole matrix folder")
        found[role] = present[0]
    barcodes = [r.split("\t")[0] for r in _lines(found["barcodes"])]
    features = [r.split("\t") for r in _lines(found["features"])]
    try:
        with open_text(found["matrix"]) as f:
            matrix = mmread(io.BytesIO(f.read())).tocsc()
    except (ValueError, EOFError, OSError, OverflowError, zlib.error) as e:
        raise FormatError(f"the matrix cannot be read ({e})", where=found["matrix"], fix="download it again") from e
    if matrix.shape != (len(features), len(barcodes)):
        raise FormatError(
            f"a matrix of {matrix.shape} with {len(features)} features and {len(barcodes)} barcodes",
            where=folder,
            fix="download it again",
        )
    data = whole_counts(matrix.data, found["matrix"])
    X = sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape[::-1])
    types = [f[2] for f in features] if features and len(features[0]) > 2 else None
    return Counts(X, barcodes, [f[1] if len(f) > 1 else f[0] for f in features], [f[0] for f in features], types)


def _lines(path: Path) -> list[str]:
    try:
        with open_text(path) as f:
            return [line for line in f.read().decode().splitlines() if line]
    except (EOFError, OSError, UnicodeDecodeError, zlib.error) as e:
        raise FormatError(f"the file ends too early ({e})", where=path, fix="copy or download it again") from e


def genes_only(counts: Counts) -> tuple[Counts, str | None]:
    """Gene expression features only, and what was left out."""
    if counts.feature_types is None:
        return counts, None
    types = np.array(counts.feature_types)
    keep = types == "Gene Expression"
    if keep.all() or not keep.any():
        return counts, None
    left = ", ".join(f"{int((types == t).sum())} {t}" for t in np.unique(types[~keep]))
    chosen = replace(
        counts,
        X=counts.X[:, np.flatnonzero(keep)],
        symbols=[s for s, k in zip(counts.symbols, keep, strict=True) if k],
        gene_ids=[s for s, k in zip(counts.gene_ids or counts.symbols, keep, strict=True) if k],
        feature_types=[t for t, k in zip(counts.feature_types, keep, strict=True) if k],
    )
    return chosen, f"features left out: {left}"


def var_table(counts: Counts) -> tuple[pd.DataFrame, int]:
    """`var` of a counts table and how many names had to be changed.

    Names are the symbols; the second and later of a duplicated one get "-1", "-2", ...; the symbol as written is in
    ``symbol``, the id in ``gene_id`` (where the source has ids, or the names are Ensembl ids).
    """
    import pandas as pd

    names, changed = unique(counts.symbols)
    var = pd.DataFrame({"symbol": counts.symbols}, index=names)
    if counts.gene_ids is not None:
        var["gene_id"] = counts.gene_ids
    elif counts.symbols and all(_ENSEMBL.match(s) for s in counts.symbols[:100]):
        var["gene_id"] = counts.symbols
    return var, changed


def unique(names: Sequence[str]) -> tuple[list[str], int]:
    """Names made unique by suffixes that no other name has; how many were changed."""
    taken, seen, out, changed = set(names), set(), [], 0
    tails: dict[str, int] = {}
    for name in names:
        chosen = name
        if chosen in seen:
            changed += 1
            k = tails.get(name, 0)
            while chosen in taken or chosen in seen:
                k += 1
                chosen = f"{name}-{k}"
            tails[name] = k
        seen.add(chosen)
        out.append(chosen)
    return out, changed


def check_ids(ids: Sequence[str], *, what: str, where: object) -> None:
    """Ids are there and unique.

    Raises
    ------
    InputError
        Naming some that are missing or double.
    """
    blank = [i for i, s in enumerate(ids) if not s or s.lower() in ("nan", "na", "none")]
    if blank:
        rows = ", ".join(str(i + 1) for i in blank[:5])
        raise InputError(f"{len(blank)} missing ids in {what} (rows {rows})", where=where, fix="give every spot an id")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        double = list(dict.fromkeys(s for s in ids if s in seen or seen.add(s)))  # type: ignore[func-returns-value]
        named = ", ".join(double[:5]) + (", ..." if len(double) > 5 else "")
        raise InputError(f"{len(double)} duplicate ids in {what} ({named})", where=where, fix="keep one row per id")


def check_coordinates(frame: pd.DataFrame, columns: Sequence[str], *, where: object) -> None:
    """Coordinates are finite numbers.

    Raises
    ------
    InputError
        Naming some spots whose are not.
    """
    import pandas as pd

    values = frame[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        named = ", ".join(map(str, frame.index[bad][:5])) + (", ..." if bad.sum() > 5 else "")
        raise InputError(
            f"{int(bad.sum())} spots without coordinates ({named})", where=where, fix="drop them or give their place"
        )


def require_columns(frame: pd.DataFrame, columns: Sequence[str], *, where: object) -> None:
    """All columns are there.

    Raises
    ------
    MissingError
        Naming the absent and the present ones.
    """
    absent = [c for c in columns if c not in frame.columns]
    if absent:
        raise MissingError(
            f"no column {', '.join(absent)}",
            where=where,
            fix=f"columns here: {', '.join(map(str, frame.columns[:12]))}",
        )


def xy_of_id(spot: str) -> tuple[float, float] | None:
    """Array coordinates in an id such as "10x21", "16.92x9.015" or "SLIDE_10x21"; None when it has none."""
    match = _XY.search(spot)
    return (float(match[1]), float(match[2])) if match else None
