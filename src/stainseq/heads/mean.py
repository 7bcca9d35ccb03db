"""Gene means of the training rows: the baseline that every head must beat."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._features import by_rows, open_state
from ._inputs import check_fit
from ._state import State, pack

SEPARABLE = True


def fit(
    X: np.ndarray,
    Y: np.ndarray,
    *,
    counts: Any = None,
    library: np.ndarray | None = None,
    coordinates: np.ndarray | None = None,
    slides: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> State:
    """Weighted mean and standard deviation of every gene.

    Parameters
    ----------
    X
        float32 [n, d] features; only their number is kept.
    Y
        float32 [n, genes] normalised targets.
    counts, library, coordinates, slides, groups, folds, seed
        Not used.
    weights
        [n] of the rows; None weighs all alike.

    Returns
    -------
    "mean" and "spread", float32 [genes]; the spread is NaN for a single row, whose scatter is unknown.
    """
    rows = check_fit(X, Y, slides=slides, groups=groups, folds=folds, weights=weights, seed=seed)
    y, w = rows.Y.astype(np.float64), rows.weights / rows.weights.sum()
    mean = w @ y
    variance = w @ (y - mean) ** 2 if len(y) > 1 else np.full(y.shape[1], np.nan)
    return pack(
        "mean",
        {"n_features": rows.X.shape[1]},
        mean=mean.astype(np.float32),
        spread=np.sqrt(variance).astype(np.float32),
    )


def predict(
    state: State, X: np.ndarray, *, coordinates: np.ndarray | None = None, slides: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The same mean and spread for every row.

    Parameters
    ----------
    state
        From `fit`.
    X
        float32 [n, d].
    coordinates, slides
        Not used.

    Returns
    -------
    mean, spread : float32 [n, genes]
    """
    _, X = open_state(state, "mean", X, coordinates, slides)
    return by_rows(X, state["spread"], lambda x: state["mean"])
