"""Gaussian mixtures whose clusters share one covariance, by expectation maximisation from given labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_FLOOR = 1e-6  # of each column's variance, added to a covariance
_BLOCK_ROWS = 65536
_ROWS_PER_COLUMN = 5  # fewer rows a column do not tell a full covariance


class Mixture(NamedTuple):
    """A fitted mixture.

    Parameters
    ----------
    means
        float64 [k, d].
    unmix
        float64 [d, d], triangular; ``values @ unmix`` has the identity as covariance within clusters.
    log_share
        float64 [k], log of each cluster's share of the rows.
    """

    means: np.ndarray
    unmix: np.ndarray
    log_share: np.ndarray

    def posterior(self, values: np.ndarray) -> np.ndarray:
        """Probability of each cluster for each row, float64 [n, k], rows sum to 1.

        Parameters
        ----------
        values
            [n, d].
        """
        centres = self.means @ self.unmix
        out = np.empty((len(values), len(centres)))
        for first in range(0, len(values), _BLOCK_ROWS):
            block = slice(first, first + _BLOCK_ROWS)
            log = (values[block] @ self.unmix) @ centres.T - 0.5 * (centres**2).sum(axis=1) + self.log_share
            log = np.exp(log - log.max(axis=1, keepdims=True))
            out[block] = log / log.sum(axis=1, keepdims=True)
        return out


def fit(values: np.ndarray, labels: np.ndarray, k: int, *, spherical: bool, max_steps: int = 200) -> Mixture:
    """Maximum likelihood means, shares and the common covariance of k Gaussians, started from labels.

    k-means is the limit in which each row belongs to one cluster wholly and clusters have equal shares, which draws
    borders midway between centres however different the clusters are in size. Shares that are free put a border where
    the densities cross.

    Parameters
    ----------
    values
        float64 [n, d].
    labels
        int [n], every value of 0 .. k - 1.
    k
        Clusters.
    spherical
        One variance for all directions, instead of a full covariance (which takes at least 5 rows a column: with fewer
        the fit is one step from the labels).
    max_steps
        Of expectation maximisation, at most; it ends when no probability changes by more than 1e-4.

    Returns
    -------
    Mixture
        That of the labels themselves, one step on, where a cluster would be no row's most probable one.

    Notes
    -----
    G. Celeux and G. Govaert, Pattern Recognition 28, 781 (1995): models [lambda I] and [lambda D A D^T], free
    proportions. Run it under one BLAS thread for the same bits on every machine.
    """
    weight = np.eye(k)[labels]
    first = model = _step(values, weight, spherical)
    if k == 1 or (not spherical and len(values) < _ROWS_PER_COLUMN * values.shape[1]):
        return first
    for _ in range(max_steps):
        new = model.posterior(values)
        change = float(np.abs(new - weight).max())
        weight = new
        if change < 1e-4:
            break
        model = _step(values, weight, spherical)
    return model if len(np.unique(model.posterior(values).argmax(axis=1))) == k else first


def _step(values: np.ndarray, weight: np.ndarray, spherical: bool) -> Mixture:
    """Means, shares and covariance given memberships [n, k]."""
    from scipy.linalg import cholesky, solve_triangular

    n, d = values.shape
    size = weight.sum(axis=0) + 1e-12
    means = (weight.T @ values) / size[:, None]
    variance = values.var(axis=0)
    if spherical:
        within = ((values**2).sum() - (size[:, None] * means**2).sum()) / (n * d)
        within = max(within, _FLOOR * float(variance.mean())) + 1e-12
        unmix = np.eye(d) / np.sqrt(within)
    else:
        total = (values.T @ values - (means.T * size) @ means) / n + np.diag(_FLOOR * variance + 1e-12)
        unmix = solve_triangular(cholesky(total, lower=True), np.eye(d), lower=True).T
    return Mixture(means, unmix, np.log(size / n))
