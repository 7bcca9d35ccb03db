"""Cell types by multinomial likelihood: profiles known, gene factors of the platform and type frequencies fitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

PSEUDO = 0.5
"""Counts a gene spread over each profile like the mean profile: a gene unseen in a type is rare, not impossible."""

TOLERANCE = 1e-4
"""Rounds end when no gene factor moves by more than this share."""


class Fit(NamedTuple):
    """What was fitted.

    Parameters
    ----------
    posterior
        float32 [n, types], rows sum to one.
    factors
        float64 [genes], how much more of a gene the platform catches than the reference did; geometric mean 1.
    frequencies
        float64 [types].
    overdispersion
        Pearson's statistic per degree of freedom at the likeliest types, at least 1.
    rounds
        Of expectation maximisation.
    """

    posterior: np.ndarray
    factors: np.ndarray
    frequencies: np.ndarray
    overdispersion: float
    rounds: int


def fit(
    profiles: np.ndarray,
    counts: sp.csr_matrix,
    *,
    platform: bool = True,
    max_rounds: int = 50,
    progress: Callable[[int], None] | None = None,
) -> Fit:
    """Type of each cell.

    Parameters
    ----------
    profiles
        float [types, genes], summed counts of each type in the reference.
    counts
        CSR [n, genes], raw.
    platform
        Fit gene factors.
    max_rounds
        At most so many rounds.
    progress
        Called with 1 after each.

    Notes
    -----
    Expected counts of cell i and type t are L_i q_tg with q_tg proportional to f_g p_tg. Given the posteriors r, the
    factor that matches the observed total of a gene is f_g = x_.g / sum_it r_it L_i p_tg / z_t with
    z_t = sum_g f_g p_tg, a step of iterative proportional fitting, which raises the likelihood. The overdispersion
    divides log-likelihoods as in quasi-likelihood (McCullagh & Nelder 1989, chapter 9): segmentation lets neighbours'
    molecules in, and a multinomial posterior would be sure of the wrong type.
    """
    mean = profiles.sum(axis=0) / profiles.sum()
    p = (profiles + PSEUDO * mean * profiles.shape[1]) / (
        profiles.sum(axis=1, keepdims=True) + PSEUDO * profiles.shape[1]
    )
    p = np.maximum(p, 1e-300)
    library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    seen = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    factors, frequencies, spread = np.ones(len(seen)), np.full(len(p), 1 / len(p)), 1.0
    by_gene = np.log(p)
    posterior = np.zeros((counts.shape[0], len(p)))
    for rounds in range(1, max_rounds + 1):
        z = p @ factors
        # log f_g is the same for all types: it cancels in the posterior, z does not.
        score = counts @ by_gene.T - np.outer(library, np.log(z))
        posterior = _posterior(score / spread, frequencies)
        spread = _overdispersion(counts, library, p * factors / z[:, None], score.argmax(axis=1))
        frequencies = (posterior.sum(axis=0) + 1) / (len(posterior) + len(p))
        moved = 0.0
        if platform:
            expected = (library @ posterior / z) @ p
            update = np.where(seen > 0, seen / np.maximum(expected, 1e-300), factors)
            update = np.maximum(update, 1e-12)
            update /= np.exp(np.log(update[seen > 0]).mean()) if (seen > 0).any() else 1.0
            moved = float(np.abs(update / factors - 1)[seen > 0].max(initial=0))
            factors = update
        if progress is not None:
            progress(1)
        if rounds > 1 and moved < TOLERANCE:
            break
    z = p @ factors
    score = counts @ by_gene.T - np.outer(library, np.log(z))
    posterior = _posterior(score / spread, frequencies)
    return Fit(posterior.astype(np.float32), factors, frequencies, spread, rounds)


def _posterior(score: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    score = score + np.log(frequencies)
    score -= score.max(axis=1, keepdims=True)
    np.exp(score, out=score)
    return np.asarray(score / score.sum(axis=1, keepdims=True))


def _overdispersion(counts: sp.csr_matrix, library: np.ndarray, q: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's statistic over all cells and genes; zeros need no visit, as the expectations of a cell sum to L."""
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    mu = library[rows] * q[labels[rows], counts.indices]
    # (x - mu)^2 / mu summed: x^2 / mu - 2 x + mu; the mu of all genes of a cell sum to its library.
    statistic = float((counts.data.astype(np.float64) ** 2 / np.maximum(mu, 1e-3)).sum() - library.sum())
    freedom = counts.shape[0] * (counts.shape[1] - 1)
    return max(statistic / max(freedom, 1), 1.0)
