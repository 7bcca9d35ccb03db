"""Splits that do not leak, do not depend on row order, and name what would leak."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from ..errors import InputError

_BLOCK_ROWS = 8192


class Fold(NamedTuple):
    """Row numbers (int64, sorted) of one fold.

    Parameters
    ----------
    train
        Rows to fit on.
    test
        Rows to score.
    buffer
        Rows in neither: too near to a test row.
    """

    train: np.ndarray
    test: np.ndarray
    buffer: np.ndarray


def row_hash(values: Any, *, seed: int = 0) -> np.ndarray:
    """A 64-bit number per row that depends on its content alone, not on its place.

    Parameters
    ----------
    values
        [n] labels (numbers or strings) or [n, d] numbers, dense or CSR. Equal rows have equal hashes.
    seed
        Another seed gives unrelated hashes.

    Returns
    -------
    uint64 [n]
    """
    if sparse.issparse(values):
        return _hash_sparse(values.tocsr(), seed)
    values = np.asarray(values)
    if values.dtype.kind in "OSU":
        values = values.astype(str)
        width = values.dtype.itemsize // 4
        # Unicode is stored with trailing zeros, which add nothing: the hash does not depend on the longest label.
        words = np.ascontiguousarray(values).view(np.uint32).reshape(len(values), width) if width else values[:, None]
        words = words.astype(np.uint64) if width else np.zeros((len(values), 1), np.uint64)
        return _mix(words @ _multipliers(words.shape[1], seed))
    values = values.reshape(len(values), -1) if values.ndim != 2 else values
    factors = _multipliers(values.shape[1], seed)
    out = np.empty(len(values), dtype=np.uint64)
    for start in range(0, len(values), _BLOCK_ROWS):
        out[start : start + _BLOCK_ROWS] = _words(values[start : start + _BLOCK_ROWS]) @ factors
    return _mix(out)


def _words(values: np.ndarray) -> np.ndarray:
    # + 0.0 turns -0.0 into 0.0, which compares equal but has other bits.
    return (np.ascontiguousarray(values, dtype=np.float64) + 0.0).view(np.uint64)


def _multipliers(width: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 7]).integers(0, 2**63, size=width, dtype=np.uint64) * np.uint64(2) + np.uint64(
        1
    )


def _mix(h: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: makes the low and high bits equally random."""
    h = h.astype(np.uint64)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def _hash_sparse(values: Any, seed: int) -> np.ndarray:
    factors = _multipliers(values.shape[1], seed)
    products = _words(values.data) * factors[values.indices]
    total = np.concatenate([[np.uint64(0)], np.cumsum(products, dtype=np.uint64)])
    return _mix(total[values.indptr[1:]] - total[values.indptr[:-1]])


def group_folds(groups: np.ndarray, *, n_folds: int | None = None, seed: int = 0) -> np.ndarray:
    """Fold of each row, groups kept whole and folds balanced by rows.

    Parameters
    ----------
    groups
        [n] patient, slide or block of each row; numbers or strings.
    n_folds
        None: one fold per group. More than there are groups is cut to their number.
    seed
        Decides between groups of equal size, by a hash of their names.

    Returns
    -------
    int32 [n] in 0 .. n_folds - 1. Row order and the presence of other rows of a group do not change who goes together.
    """
    names, codes, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    keys = row_hash(names, seed=seed)
    count = len(names) if n_folds is None else min(n_folds, len(names))
    if count < 1:
        raise InputError("there is nothing to split", where="groups", fix="give at least one row")
    assigned = np.empty(len(names), dtype=np.int32)
    heap = [(0, f) for f in range(count)]
    for g in np.lexsort((keys, -sizes)):
        load, fold = heapq.heappop(heap)
        assigned[g] = fold
        heapq.heappush(heap, (load + int(sizes[g]), fold))
    return assigned[codes.ravel()]


def by_group(groups: np.ndarray, *, n_folds: int | None = None, seed: int = 0) -> list[Fold]:
    """Leave groups out: each group is tested once and never trained on by the model that is tested on it.

    Parameters
    ----------
    groups
        [n] patient (the honest choice), slide, or block of each row.
    n_folds
        None: leave one group out; else that many folds, balanced by rows.
    seed
        See `group_folds`.

    Raises
    ------
    InputError
        Fewer than two groups.
    """
    groups = np.asarray(groups)
    if len(np.unique(groups)) < 2:
        raise InputError("one group cannot be split by group", where="groups", fix="split by block")
    return _folds(group_folds(groups, n_folds=n_folds, seed=seed))


def _folds(labels: np.ndarray) -> list[Fold]:
    none = np.zeros(0, dtype=np.int64)
    return [Fold(np.flatnonzero(labels != f), np.flatnonzero(labels == f), none) for f in range(labels.max() + 1)]


def block_labels(coordinates: np.ndarray, *, block_um: float, slides: np.ndarray | None = None) -> np.ndarray:
    """Number of the square block that each row lies in.

    Parameters
    ----------
    coordinates
        [n, 2] x, y in um.
    block_um
        Side of a block.
    slides
        [n] section of each row: blocks never join sections. Each section's blocks start at its own corner.

    Returns
    -------
    int64 [n], consecutive from 0.
    """
    coordinates = _coordinates(coordinates)
    if not block_um > 0:
        raise InputError(f"block_um is {block_um}", fix="give a positive length in um")
    codes = slide_codes(slides, len(coordinates))
    corner = np.full((codes.max(initial=0) + 1, 2), np.inf)
    np.minimum.at(corner, codes, coordinates)
    cells = np.floor((coordinates - corner[codes]) / block_um + 1e-9).astype(np.int64)
    keys = np.column_stack([codes, cells])
    return np.unique(keys, axis=0, return_inverse=True)[1].ravel().astype(np.int64)


def by_block(
    coordinates: np.ndarray,
    slides: np.ndarray | None = None,
    *,
    block_um: float,
    buffer_um: float,
    n_folds: int = 5,
    seed: int = 0,
) -> list[Fold]:
    """Spatial blocks as folds, with a buffer that is neither trained on nor scored.

    Parameters
    ----------
    coordinates
        [n, 2] x, y in um.
    slides
        [n] section of each row.
    block_um
        Side of a block; wider than the distance over which the image crop and the tissue are alike.
    buffer_um
        Rows of the same section nearer than this to a test row are left out of training. At least the field of view
        of the encoder, or crops of both sides share pixels.
    n_folds
        Folds that the blocks are dealt to, balanced by rows.
    seed
        Which blocks go together.

    Raises
    ------
    InputError
        Fewer blocks than folds, or a fold whose training set is eaten by the buffer.
    """
    coordinates = _coordinates(coordinates)
    codes = slide_codes(slides, len(coordinates))
    blocks = block_labels(coordinates, block_um=block_um, slides=codes)
    n_blocks = int(blocks.max(initial=-1)) + 1
    if n_folds < 2 or n_blocks < n_folds:
        several, smaller = "s"[: n_blocks != 1], block_um
        while n_folds >= 2 and len(coordinates) and smaller > 1 and _count(coordinates, codes, smaller) < n_folds:
            smaller /= 2
        fewer = f"take smaller blocks (--block-um {smaller:g})"
        raise InputError(
            f"{n_blocks} block{several} of {block_um:g} um cannot make {n_folds} fold{'s'[: n_folds != 1]}",
            fix="ask for at least two folds (--folds)" if n_folds < 2 else fewer,
        )
    labels = group_folds(blocks, n_folds=n_folds, seed=seed)
    folds = []
    for f in range(n_folds):
        test = labels == f
        near = _near(coordinates, codes, test, buffer_um)
        fold = Fold(np.flatnonzero(~test & ~near), np.flatnonzero(test), np.flatnonzero(near))
        if len(fold.train) == 0:
            raise InputError(
                f"the buffer of {buffer_um:g} um leaves fold {f} no training rows",
                where="coordinates",
                fix="use larger blocks or a smaller buffer",
            )
        folds.append(fold)
    return folds


def _count(coordinates: np.ndarray, codes: np.ndarray, block_um: float) -> int:
    return int(block_labels(coordinates, block_um=block_um, slides=codes).max(initial=-1)) + 1


def _near(coordinates: np.ndarray, codes: np.ndarray, test: np.ndarray, buffer_um: float) -> np.ndarray:
    near = np.zeros(len(coordinates), dtype=bool)
    if buffer_um <= 0:
        return near
    for s in np.unique(codes[test]):
        inside, outside = np.flatnonzero(test & (codes == s)), np.flatnonzero(~test & (codes == s))
        if len(outside):
            distance, _ = cKDTree(coordinates[inside]).query(coordinates[outside])
            near[outside] = distance < buffer_um
    return near


def find_leaks(
    sets: dict[str, np.ndarray],
    *,
    patients: np.ndarray | None = None,
    rows: Any = None,
    slides: np.ndarray | None = None,
    min_nonzero: int = 10,
) -> list[dict[str, Any]]:
    """What two sets of a split share.

    Parameters
    ----------
    sets
        Row numbers by the set's name, as {"train": ..., "test": ...}.
    patients
        [n] patient of each row. A patient in two sets is a leak.
    rows
        [n, d] features or counts, dense or CSR. A row with the same content in two sets is a leak.
    slides
        [n] names used in the report for duplicated rows; else the row numbers.
    min_nonzero
        Rows with fewer non-zero entries are not compared: empty spots and cells of a few molecules are alike by chance.

    Returns
    -------
    One dict per leaking pair: "kind" ("patient" or "rows"), "sets" (two names), "a" and "b" (patient or slide on
    either side), "shared" (share of the smaller side's rows that leak, 0..1).
    """
    found: list[dict[str, Any]] = []
    names = sorted(sets)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = np.asarray(sets[first]), np.asarray(sets[second])
            if patients is not None:
                found += _shared_patients(first, second, np.asarray(patients)[a], np.asarray(patients)[b])
            if rows is not None:
                found += _shared_rows(first, second, a, b, rows, slides, min_nonzero)
    return found


def _shared_patients(first: str, second: str, a: np.ndarray, b: np.ndarray) -> list[dict[str, Any]]:
    smaller = a if len(a) <= len(b) else b
    return [
        {
            "kind": "patient",
            "sets": [first, second],
            "a": str(p),
            "b": str(p),
            "shared": float(np.mean(smaller == p)),
        }
        for p in np.intersect1d(a, b)
    ]


def _shared_rows(
    first: str, second: str, a: np.ndarray, b: np.ndarray, rows: Any, slides: np.ndarray | None, min_nonzero: int
) -> list[dict[str, Any]]:
    matrix: Any = rows.tocsr() if sparse.issparse(rows) else np.asarray(rows)
    smaller = min(len(a), len(b))
    full = np.diff(matrix.indptr) if sparse.issparse(matrix) else (matrix != 0).sum(axis=1)
    # The CSR of a table may hold its columns in any order; the hash of a row is a sum and does not mind.
    hashes = row_hash(matrix)
    a, b = a[full[a] >= min_nonzero], b[full[b] >= min_nonzero]
    common = np.intersect1d(hashes[a], hashes[b])
    if len(common) == 0:
        return []
    a, b = a[np.isin(hashes[a], common)], b[np.isin(hashes[b], common)]
    partner = dict(zip(hashes[b].tolist(), b.tolist(), strict=True))
    pairs = [(int(i), partner[h]) for i, h in zip(a, hashes[a].tolist(), strict=True)]
    pairs = [(i, j) for i, j in pairs if _equal_rows(matrix, i, j)]
    label = (lambda k: str(k)) if slides is None else (lambda k: str(np.asarray(slides)[k]))
    counted: dict[tuple[str, str], int] = {}
    for i, j in pairs:
        key = (label(i), label(j))
        counted[key] = counted.get(key, 0) + 1
    return [
        {"kind": "rows", "sets": [first, second], "a": x, "b": y, "shared": _share(k, x, y, slides, smaller)}
        for (x, y), k in sorted(counted.items())
    ]


def _share(count: int, x: str, y: str, slides: np.ndarray | None, smaller: int) -> float:
    if slides is None:
        return count / max(smaller, 1)
    names = np.asarray(slides).astype(str)
    return count / max(1, min(int((names == x).sum()), int((names == y).sum())))


def _equal_rows(matrix: Any, i: int, j: int) -> bool:
    if sparse.issparse(matrix):
        return (matrix[[i]] != matrix[[j]]).nnz == 0
    return bool(np.array_equal(matrix[i], matrix[j]))


def refuse_leaks(leaks: Sequence[dict[str, Any]], *, max_shared: float = 0.0) -> None:
    """Raise if sets share more than is allowed.

    Parameters
    ----------
    leaks
        From `find_leaks`.
    max_shared
        Share of rows above which a pair of duplicated rows counts; a shared patient always does.

    Raises
    ------
    InputError
        Names the first pairs.
    """
    bad = [x for x in leaks if x["kind"] == "patient" or x["shared"] > max_shared]
    if bad:
        shown = "; ".join(
            f"{x['kind']} {x['a']} in {x['sets'][0]} and {x['b']} in {x['sets'][1]} ({x['shared']:.0%})"
            for x in bad[:5]
        )
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise InputError(
            f"the split leaks: {shown}{more}", where="split", fix="split by patient, and remove duplicated slides"
        )


def slide_codes(slides: np.ndarray | None, n: int) -> np.ndarray:
    """Sections as consecutive numbers, int64 [n]; None is one section."""
    if slides is None:
        return np.zeros(n, dtype=np.int64)
    slides = np.asarray(slides)
    if slides.shape != (n,):
        raise InputError(f"slides have shape {slides.shape} for {n} rows", where="slides", fix="give one per row")
    return np.unique(slides, return_inverse=True)[1].ravel().astype(np.int64)


def _coordinates(coordinates: np.ndarray) -> np.ndarray:
    coordinates = np.asarray(coordinates, dtype=np.float64)
    if coordinates.ndim != 2 or coordinates.shape[1] != 2:
        raise InputError(
            f"coordinates have shape {coordinates.shape}", where="coordinates", fix="give [n, 2] x, y in um"
        )
    if not np.isfinite(coordinates).all():
        raise InputError("coordinates hold NaN or infinite values", where="coordinates", fix="remove those rows")
    return coordinates
