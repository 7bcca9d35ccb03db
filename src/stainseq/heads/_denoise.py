"""Denoised training targets for the ridge: maps on target columns, chosen like penalties, by held-out raw targets.

A variant turns the products of features and targets into those with denoised targets. Being linear on columns it needs
no decomposition of its own, so trying several costs only their scoring.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..core.neighbors import knn_graph, neighbour_mean
from ..core.splits import slide_codes
from ..errors import InputError
from ._inputs import need_places

KINDS = ("spatial", "lowrank")
MIXES = (0.0, 0.25, 0.5, 0.75)
RANKS = (0, 3, 6, 12, 25)
NEIGHBOURS = 8
"""The first ring of a square array; more blur detail that crops of 100 to 200 um can tell."""


class Variant(Protocol):
    """A map on target columns."""

    def columns(self, values: np.ndarray, fold: int) -> np.ndarray:
        """[.., all columns] -> [.., genes] for a model that is trained without `fold` (-1: on all rows)."""

    def centre(self, means: np.ndarray) -> np.ndarray:
        """Column means -> means of the denoised targets."""


class Plain:
    """The targets as they are: the first columns."""

    def __init__(self, n_genes: int) -> None:
        self.n_genes = n_genes

    def columns(self, values: np.ndarray, fold: int) -> np.ndarray:
        """The first columns."""
        return values[..., : self.n_genes]

    def centre(self, means: np.ndarray) -> np.ndarray:
        """The first columns."""
        return means[: self.n_genes]


class Spatial(Plain):
    """Targets mixed with the mean of the neighbouring spots, which stands in the second half of the columns."""

    def __init__(self, n_genes: int, mix: float) -> None:
        super().__init__(n_genes)
        self.mix = mix

    def columns(self, values: np.ndarray, fold: int) -> np.ndarray:
        """(1 - mix) own + mix neighbours."""
        return (1 - self.mix) * values[..., : self.n_genes] + self.mix * values[..., self.n_genes :]

    def centre(self, means: np.ndarray) -> np.ndarray:
        """(1 - mix) own + mix neighbours."""
        return self.columns(means, -1)


class LowRank(Plain):
    """Centred targets projected on their first principal directions over the training rows of each fold."""

    def __init__(self, n_genes: int, rank: int, directions: dict[int, np.ndarray]) -> None:
        super().__init__(n_genes)
        self.rank, self.directions = rank, directions

    def columns(self, values: np.ndarray, fold: int) -> np.ndarray:
        """Projected on the directions of the fold's training rows."""
        v = self.directions[fold][:, : self.rank]
        return values @ v @ v.T


def prepare(
    kind: str | None,
    Y: np.ndarray,
    weights: np.ndarray,
    folds: np.ndarray | None,
    coordinates: np.ndarray | None,
    slides: np.ndarray | None,
) -> tuple[np.ndarray, list[Variant]]:
    """Target columns that the sums are taken over, and the variants to try.

    Parameters
    ----------
    kind
        None, "spatial" or "lowrank".
    Y
        float32 [n, genes].
    weights, folds, coordinates, slides
        Of the rows. Neighbours are sought inside a fold, so that no held-out target enters a training target.
    """
    g = Y.shape[1]
    if kind is None or folds is None:
        return Y, [Plain(g)]
    if kind == "spatial":
        places = need_places(coordinates, len(Y), what="spatial denoising")
        graph = knn_graph(places, k=NEIGHBOURS, slides=slide_codes(slides, len(Y)) * (int(folds.max()) + 1) + folds)
        return np.concatenate([Y, neighbour_mean(graph, Y)], axis=1), [Spatial(g, t) for t in MIXES]
    if kind == "lowrank":
        trained = {-1: np.ones(len(Y), dtype=bool)} | {f: folds != f for f in range(int(folds.max()) + 1)}
        directions = {f: _directions(Y[rows], weights[rows], max(RANKS)) for f, rows in trained.items()}
        ranks = [r for r in RANKS if 0 < r < g]
        return Y, [Plain(g), *(LowRank(g, r, directions) for r in ranks)]
    raise InputError(f"no denoising named {kind!r}", fix=f"one of: {', '.join(KINDS)}")


def _directions(Y: np.ndarray, weights: np.ndarray, most: int) -> np.ndarray:
    """First principal directions of weighted, centred targets: float64 [genes, at most `most`]."""
    total = max(weights.sum(), 1e-300)
    centred = (Y - weights @ Y / total) * np.sqrt(weights)[:, None]
    n, g = centred.shape
    k = min(most, n, g)
    if g <= n:
        return np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :k]
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    return centred.T @ vectors / np.sqrt(np.maximum(values, 1e-12 * max(values[0], 1e-300)))
