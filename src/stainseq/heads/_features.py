"""Features made comparable: standardised on training rows, with the neighbours' mean beside them if asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..core.neighbors import knn_graph, neighbour_mean, radius_graph
from ..core.splits import slide_codes
from ..errors import InputError
from ._inputs import check_predict, need_places
from ._state import State, config

BLOCK_ROWS = 8192
CLIP = 5.0
"""Standard deviations beyond which a feature is cut: a fold or a pen mark may be tens away and pull every gene."""


class Scaler(NamedTuple):
    """Mean and reciprocal standard deviation, float32 [d]; the reciprocal of a constant feature is 0."""

    mean: np.ndarray
    gain: np.ndarray

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Standardised and clipped features, float32."""
        z = X - self.mean
        z *= self.gain
        return np.clip(z, -CLIP, CLIP, out=z)


def fit_scaler(X: np.ndarray, weights: np.ndarray) -> Scaler:
    """Weighted mean and standard deviation of every feature, in one pass over blocks of rows.

    Blocks are summed in float32 around a first guess of the mean, so that nothing cancels, and added up in float64.
    """
    total, d = weights.sum(), X.shape[1]
    guess = X[:1024].mean(axis=0, dtype=np.float64).astype(np.float32)
    shift, square = np.zeros(d), np.zeros(d)
    for rows in blocks(len(X), 1024):
        off = X[rows] - guess
        w = weights[rows].astype(np.float32)
        shift += w @ off
        off *= off
        square += w @ off
    shift /= total
    mean = guess + shift
    sd = np.sqrt(np.maximum(square / total - shift * shift, 0))
    # A feature that varies only in its last digits is constant: float32 keeps about seven.
    varies = sd > 1e-6 * np.maximum(np.abs(mean), 1e-30)
    return Scaler(mean.astype(np.float32), np.divide(1, sd, out=np.zeros(d), where=varies).astype(np.float32))


def blocks(n: int, size: int = BLOCK_ROWS) -> list[slice]:
    """Slices that cover n rows."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def check_context(context_um: float | None, context_k: int | None) -> dict[str, Any]:
    """Settings of the context option, JSON-able."""
    if context_um is not None and context_k is not None:
        raise InputError("context_um and context_k are both given", where="context", fix="give one of them")
    return {"context_um": context_um, "context_k": context_k}


def with_context(
    X: np.ndarray,
    settings: dict[str, Any],
    coordinates: np.ndarray | None,
    slides: np.ndarray | None,
) -> np.ndarray:
    """Features per slide z-scored if `per_slide`, then with their neighbours' mean appended if context is on.

    Both look at the other rows of the section, so a section must come whole: a part of it gets other values.
    """
    if settings.get("per_slide"):
        X = _per_slide(X, slides)
    if settings.get("context_um") is None and settings.get("context_k") is None:
        return X
    places = need_places(coordinates, len(X), what="context")
    if settings.get("context_um") is not None:
        graph = radius_graph(places, radius_um=settings["context_um"], slides=slides)
    else:
        graph = knn_graph(places, k=settings["context_k"], slides=slides)
    return np.concatenate([X, neighbour_mean(graph, X)], axis=1)


def open_state(
    state: State, head: str, X: np.ndarray, coordinates: np.ndarray | None, slides: np.ndarray | None
) -> tuple[dict[str, Any], np.ndarray]:
    """What every `predict` begins with: the head's settings, and checked features with the context it was fitted with.

    Raises
    ------
    FormatError
        Another head's state.
    InputError
        Features that do not fit; context without coordinates.
    """
    settings = config(state, head)
    return settings, with_context(check_predict(X, settings["n_features"]), settings, coordinates, slides)


def by_rows(
    X: np.ndarray, spread: np.ndarray, predicted: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction block by block of rows, in bounded memory, with the same spread [genes] for each row."""
    mean = np.empty((len(X), len(spread)), dtype=np.float32)
    for rows in blocks(len(X)):
        mean[rows] = predicted(X[rows])
    return mean, np.broadcast_to(spread, mean.shape).copy()


def _per_slide(X: np.ndarray, slides: np.ndarray | None) -> np.ndarray:
    codes = slide_codes(slides, len(X))
    out = np.empty_like(X)
    for s in range(codes.max(initial=-1) + 1):
        rows = codes == s
        out[rows] = fit_scaler(X[rows], np.ones(int(rows.sum())))(X[rows])
    return out
