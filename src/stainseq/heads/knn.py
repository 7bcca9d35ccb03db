"""Retrieval: the weighted mean expression of the training rows that look most alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from ..errors import InputError
from ._features import Scaler, check_context, fit_scaler, open_state, with_context
from ._inputs import canonical_order, check_fit
from ._state import State, pack

SEPARABLE = True

CANDIDATES = (1, 3, 5, 10, 20, 35, 50, 100)
_BLOCK_VALUES = 1 << 25  # similarities held at once: 128 MB


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
    k: int | None = None,
    candidates: Sequence[int] = CANDIDATES,
    cv_rows: int = 5000,
    per_slide: bool = False,
    context_um: float | None = None,
    context_k: int | None = None,
) -> State:
    """Keep the training rows; choose the number of neighbours of each gene.

    Features are standardised on the training rows, cut at 5 standard deviations, and both query and training rows are
    scaled to length 1, so that the inner product is the cosine. Neighbours weigh by their similarity (at least 0).

    Parameters
    ----------
    X
        float32 [n, d] features.
    Y
        float32 [n, genes] normalised targets.
    counts, library
        Not used.
    coordinates, slides, groups, folds
        As in the ridge head: inner folds and context.
    weights
        [n] of the rows, multiplied onto the similarity.
    seed
        Deals groups or rows to inner folds and draws the rows of `cv_rows`.
    k
        Neighbours; None chooses for each gene among `candidates` by squared error over inner folds (20 where rows are
        too few to split).
    candidates
        Numbers of neighbours tried.
    cv_rows
        Rows asked at most when choosing: the choice is among few numbers, and all pairs of 100,000 rows take minutes.
    per_slide, context_um, context_k
        As in the ridge head.

    Returns
    -------
    "unit" float32 [n, d'], "Y" [n, genes], "weights" [n], "k" int64 [genes], "cv_spread" [genes], "mean", "gain" [d'].
    """
    ks = np.unique(np.asarray(candidates if k is None else [k], dtype=np.int64))
    if not len(ks) or ks[0] < 1:
        raise InputError("numbers of neighbours are not a list of positive whole numbers", where="k")
    rows = check_fit(
        X, Y, coordinates=coordinates, slides=slides, groups=groups, folds=folds, weights=weights, seed=seed
    )
    settings = {"per_slide": per_slide, **check_context(context_um, context_k)}
    features = with_context(rows.X, settings, coordinates, slides)
    scaler = fit_scaler(features, rows.weights)
    unit = _unit(scaler(features))
    order = canonical_order(rows.X, rows.Y)
    unit, targets, w = unit[order], rows.Y[order], rows.weights[order].astype(np.float32)
    chosen = np.full(targets.shape[1], min(20 if k is None else k, len(unit)), dtype=np.int64)
    spread = np.full(targets.shape[1], np.nan, dtype=np.float32)
    if rows.folds is not None:
        error = _errors(unit, targets, w, rows.folds[order], ks, cv_rows, seed)
        best = len(ks) - 1 - error[::-1].argmin(axis=0)  # ties go to more neighbours
        chosen = np.minimum(ks[best], len(unit))
        spread = np.sqrt(error[best, np.arange(len(best))]).astype(np.float32)
    return pack(
        "knn",
        {"n_features": rows.X.shape[1], **settings},
        unit=unit,
        Y=targets,
        weights=w,
        k=chosen,
        cv_spread=spread,
        mean=scaler.mean,
        gain=scaler.gain,
    )


def predict(
    state: State, X: np.ndarray, *, coordinates: np.ndarray | None = None, slides: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of the neighbours.

    Parameters
    ----------
    state
        From `fit`.
    X
        float32 [n, d].
    coordinates, slides
        Needed if the head was fitted with context or `per_slide`; then give whole slides.

    Returns
    -------
    mean, spread : float32 [n, genes]
        A gene with one neighbour gets its cross-validated error as spread.
    """
    _, X = open_state(state, "knn", X, coordinates, slides)
    scaler = Scaler(state["mean"], state["gain"])
    targets, ks = state["Y"], np.unique(state["k"])
    mean = np.empty((len(X), targets.shape[1]), dtype=np.float32)
    spread = np.empty_like(mean)
    for rows in _query_blocks(len(X), len(targets)):
        near, weight = _nearest(_unit(scaler(X[rows])), state["unit"], state["weights"], int(ks[-1]))
        for k in ks:
            genes = np.flatnonzero(state["k"] == k)
            mix = _mixture(near[:, :k], weight[:, :k], len(targets))
            y = targets[:, genes]
            centre = y.mean(axis=0)  # squares of small deviations from a large mean would cancel
            first, second = mix @ (y - centre), mix @ (y - centre) ** 2
            mean[rows, genes] = first + centre
            deviation = np.sqrt(np.maximum(second - first**2, 0))
            spread[rows, genes] = deviation if k > 1 else state["cv_spread"][genes]
    return mean, spread


def _errors(
    unit: np.ndarray, Y: np.ndarray, weights: np.ndarray, folds: np.ndarray, ks: np.ndarray, cv_rows: int, seed: int
) -> np.ndarray:
    """Mean squared error over inner folds of every number of neighbours and gene."""
    square, total = np.zeros((len(ks), Y.shape[1])), 0.0
    for f in range(int(folds.max()) + 1):
        train, test = np.flatnonzero(folds != f), np.flatnonzero(folds == f)
        share = max(1, round(cv_rows * len(test) / len(folds)))
        if len(test) > share:
            test = np.random.default_rng([seed, f]).choice(test, share, replace=False)
        for rows in _query_blocks(len(test), len(train)):
            asked = test[rows]
            near, weight = _nearest(unit[asked], unit[train], weights[train], int(ks[-1]))
            for i, k in enumerate(ks):
                guess = _mixture(near[:, :k], weight[:, :k], len(train)) @ Y[train]
                square[i] += weights[asked] @ (Y[asked] - guess) ** 2
        total += float(weights[test].sum())
    return square / max(total, 1e-300)


def _nearest(query: np.ndarray, unit: np.ndarray, weights: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar rows, best first, and their weights: int [b, k], float32 [b, k]."""
    k = min(k, len(unit))
    similarity = query @ unit.T
    near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    found = np.take_along_axis(similarity, near, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    near, found = np.take_along_axis(near, order, axis=1), np.take_along_axis(found, order, axis=1)
    # Nothing alike at all: a plain mean of those asked.
    return near, np.maximum(found, 1e-6) * weights[near]


def _mixture(near: np.ndarray, weight: np.ndarray, n: int) -> sparse.csr_array:
    total = weight.sum(axis=1, keepdims=True)
    share = np.divide(weight, total, out=np.full_like(weight, 1 / max(weight.shape[1], 1)), where=total > 0)
    starts = np.arange(0, near.size + 1, near.shape[1])
    return sparse.csr_array((share.ravel(), near.ravel(), starts), shape=(len(near), n))


def _query_blocks(n: int, n_train: int) -> list[slice]:
    size = max(1, min(4096, _BLOCK_VALUES // max(n_train, 1)))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _unit(Z: np.ndarray) -> np.ndarray:
    return Z / np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12)
