"""What every head checks before it fits or predicts, and how it splits its training rows inside."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ..core.splits import block_labels, group_folds, row_hash
from ..errors import InputError

MAX_FOLDS = 5
"""Inner folds: alpha, k and the like vary by factors, so more folds cost time and change nothing."""


class Rows(NamedTuple):
    """Checked training rows.

    Parameters
    ----------
    X
        float32 [n, d].
    Y
        float32 [n, genes].
    weights
        float64 [n], mean 1.
    folds
        int [n] inner fold of each row from 0, or None where the rows are too few to split.
    """

    X: np.ndarray
    Y: np.ndarray
    weights: np.ndarray
    folds: np.ndarray | None


def check_fit(
    X: np.ndarray,
    Y: np.ndarray,
    *,
    coordinates: np.ndarray | None = None,
    slides: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    seed: int = 0,
    stream: bool = False,
) -> Rows:
    """Training data of the right shape, finite, with inner folds; `stream` leaves features as they are stored.

    Raises
    ------
    InputError
        Shapes that do not fit, no rows or columns, NaN or infinite values, weights that are negative or all 0.
    """
    X, Y = _matrix(X, "features", stream=stream), _matrix(Y, "targets")
    n = len(X)
    if len(Y) != n:
        raise InputError(f"{n} rows of features and {len(Y)} of targets", where="fit", fix="join both by id")
    if not n or not X.shape[1] or not Y.shape[1]:
        raise InputError(f"nothing to learn from {X.shape} features and {Y.shape} targets", where="fit")
    for name, value in (("slides", slides), ("groups", groups), ("folds", folds), ("coordinates", coordinates)):
        if value is not None and len(value) != n:
            raise InputError(f"{len(value)} {name} for {n} rows", where="fit", fix="give one per row")
    return Rows(X, Y, _weights(weights, n), inner_folds(X, coordinates, slides, groups, folds, seed))


def check_predict(X: np.ndarray, width: int) -> np.ndarray:
    """Features as float32 [n, width].

    Raises
    ------
    InputError
        Another width than in training (another encoder), NaN or infinite values.
    """
    X = _matrix(X, "features")
    if X.shape[1] != width:
        raise InputError(
            f"{X.shape[1]} features where the head was trained on {width}",
            where="predict",
            fix="use the encoder that the model was trained with",
        )
    return X


def inner_folds(
    X: np.ndarray,
    coordinates: np.ndarray | None,
    slides: np.ndarray | None,
    groups: np.ndarray | None,
    folds: np.ndarray | None,
    seed: int,
) -> np.ndarray | None:
    """Inner fold of each training row: the given ones, else by group, slide, spatial block, or row, in this order.

    None of them depends on the order of rows: blocks come from coordinates, and rows are dealt by a hash of their
    features (which also keeps copies together). None where there are fewer than 4 rows or all rows are alike.
    """
    n = len(X)
    if folds is not None:
        codes = np.unique(np.asarray(folds), return_inverse=True)[1].ravel()
        if codes.max() < 1:
            raise InputError("all rows are in one inner fold", where="folds", fix="give two or more, or none")
        return codes
    if n < 4:
        return None
    for labels in (groups, slides):
        if labels is not None and len(np.unique(labels)) > 1:
            return group_folds(np.asarray(labels), n_folds=MAX_FOLDS, seed=seed)
    if coordinates is not None:
        coordinates = np.asarray(coordinates, dtype=np.float64)
        extent = np.ptp(coordinates, axis=0)
        side = float(np.sqrt(max(extent[0], 1e-9) * max(extent[1], 1e-9) / (5 * MAX_FOLDS)))
        blocks = block_labels(coordinates, block_um=max(side, extent.max() / 100, 1e-9), slides=slides)
        if blocks.max() >= MAX_FOLDS:
            return group_folds(blocks, n_folds=MAX_FOLDS, seed=seed)
    dealt = group_folds(row_hash(X, seed=seed), n_folds=MAX_FOLDS, seed=seed)
    return dealt if dealt.max() > 0 else None


def need_places(coordinates: np.ndarray | None, n: int, *, what: str) -> np.ndarray:
    """Coordinates that an option cannot do without."""
    if coordinates is None:
        raise InputError(f"{what} needs the coordinates of the rows", where="coordinates", fix="give [n, 2] in um")
    coordinates = np.asarray(coordinates, dtype=np.float64)
    if coordinates.shape != (n, 2):
        raise InputError(f"coordinates have shape {coordinates.shape} for {n} rows", where="coordinates")
    return coordinates


def check_counts(
    counts: Any, library: np.ndarray | None, shape: tuple[int, int], *, where: str
) -> tuple[sparse.csr_array, np.ndarray]:
    """Raw counts as float32 CSR, and library sizes, for losses that need both."""
    if counts is None or library is None:
        raise InputError("a count loss needs counts and library sizes", where=where, fix="give both, or loss='mse'")
    raw = sparse.csr_array(counts).astype(np.float32)
    sizes = np.asarray(library, dtype=np.float64).ravel()
    if raw.shape != shape or len(sizes) != shape[0]:
        raise InputError(f"counts {raw.shape} and {len(sizes)} library sizes for targets {shape}", where=where)
    if not np.isfinite(raw.data).all() or (raw.data < 0).any() or not (sizes >= 0).all():
        raise InputError("counts or library sizes are negative or not finite", where=where, fix="give raw counts")
    return raw, sizes


def find_line(guess: np.ndarray, Y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Slope and intercept per gene from guesses to targets; the log of a mean is not the mean of logs."""
    w = weights[:, None] / weights.sum()
    gm, ym = (w * guess).sum(axis=0), (w * Y).sum(axis=0)
    variance = (w * (guess - gm) ** 2).sum(axis=0)
    covariance = (w * (guess - gm) * (Y - ym)).sum(axis=0)
    slope = np.divide(covariance, variance, out=np.zeros_like(covariance), where=variance > 1e-10)
    slope = np.clip(slope, 0, 3)
    return np.stack([slope, ym - slope * gm]).astype(np.float32)


def _matrix(values: Any, what: str, *, stream: bool = False) -> np.ndarray:
    if not stream or getattr(values, "dtype", np.dtype(object)).kind != "f":
        values = np.ascontiguousarray(values, dtype=np.float32)
    if values.ndim != 2:
        raise InputError(f"{what} have {values.ndim} dimensions", where=what, fix="give rows x columns")
    # In pieces: what is stored on disk or in half precision is never there twice.
    pieces = [~np.isfinite(values[a : a + 8192]).all(axis=1) for a in range(0, len(values), 8192)]
    bad = np.concatenate(pieces) if pieces else np.zeros(0, dtype=bool)
    if bad.any():
        raise InputError(
            f"{what} of {int(bad.sum())} of {len(values)} rows hold NaN or infinite values (first: row {bad.argmax()})",
            where=what,
            fix="leave those rows out",
        )
    return values


def _weights(weights: np.ndarray | None, n: int) -> np.ndarray:
    if weights is None:
        return np.ones(n)
    weights = np.asarray(weights, dtype=np.float64).ravel()
    if len(weights) != n or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise InputError("weights are not one number >= 0 per row with a positive sum", where="weights")
    return weights / weights.mean()


def canonical_order(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Row numbers in an order that depends on the rows' content alone.

    Heads that break ties or draw batches by row number sort first, so that shuffled input gives the same model.
    """
    return np.lexsort((row_hash(Y), row_hash(X)))
