"""The HEST benchmark's regression: standardise, PCA 256, ridge with its fixed tiny penalty, no intercept."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError
from ._features import by_rows, open_state
from ._inputs import check_fit
from ._state import State, pack

NEEDS = ("sklearn",)
SEPARABLE = False
"""The penalty is 100 / (features x genes): fitting genes in parts needs `n_genes`."""


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
    pca: int | None = 256,
    n_genes: int | None = None,
) -> State:
    """Fit as the HEST benchmark does, for numbers that can be compared with its tables.

    StandardScaler, PCA(256, random_state=1), float32, then Ridge(solver="lsqr", alpha=100 / (features x genes),
    fit_intercept=False, max_iter=1000, random_state=1). The penalty is orders of magnitude too small and targets are
    not centred, which is why this head is here to compare with and not to use (its R2 means nothing).

    Parameters
    ----------
    X
        float32 [n, d] features.
    Y
        float32 [n, genes] targets; the benchmark's are log1p of raw counts.
    counts, library
        Not used.
    coordinates, slides, groups, folds
        Only for the inner folds that the spread comes from.
    weights
        Not part of the benchmark: must be absent.
    seed
        Of the inner folds; the fit's own seed is the benchmark's 1.
    pca
        Components; None is the benchmark paper's variant without PCA. With fewer rows or features than components,
        where the benchmark stops with an error, as many as there can be.
    n_genes
        Number of genes in the penalty, if `Y` is a part of them; None is the genes given.

    Returns
    -------
    "feature_mean", "feature_scale" [d], "components" [k, d], "offset" [k] (PCA's mean, projected), "coef" [k, genes],
    "spread" [genes]: standard deviation of residuals over inner folds, from the closed form on the same components.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    if weights is not None:
        raise InputError("the HEST benchmark has no row weights", where="weights", fix="use --head ridge")
    rows = check_fit(X, Y, coordinates=coordinates, slides=slides, groups=groups, folds=folds, seed=seed)
    scaler = StandardScaler()
    Z = scaler.fit_transform(rows.X)
    arrays: dict[str, np.ndarray] = {}
    if pca is not None:
        # fit_transform, as the benchmark's pipeline: transform differs in the last digits, and lsqr stops at a
        # tolerance on ill-conditioned components, where that is enough to change predictions by a percent.
        reducer = PCA(n_components=min(pca, *Z.shape), random_state=1)
        # Features that are all alike have no variance to give shares of; the components are fine (zeros follow).
        with np.errstate(divide="ignore", invalid="ignore"):
            Z = reducer.fit_transform(Z)
        arrays = {"components": reducer.components_, "offset": reducer.mean_ @ reducer.components_.T}
    Z = Z.astype(np.float32)
    alpha = 100.0 / (Z.shape[1] * (n_genes or rows.Y.shape[1]))
    model = Ridge(solver="lsqr", alpha=alpha, random_state=1, fit_intercept=False, max_iter=1000).fit(Z, rows.Y)
    return pack(
        "hest",
        {"n_features": rows.X.shape[1], "pca": pca, "alpha": alpha},
        feature_mean=scaler.mean_,
        feature_scale=scaler.scale_,
        coef=np.atleast_2d(model.coef_).T,
        spread=_spread(Z, rows.Y, alpha, rows.folds),
        **arrays,
    )


def _spread(Z: np.ndarray, Y: np.ndarray, alpha: float, folds: np.ndarray | None) -> np.ndarray:
    if folds is None:
        return np.full(Y.shape[1], np.nan, dtype=np.float32)
    Z, square = Z.astype(np.float64), np.zeros(Y.shape[1])
    for f in range(int(folds.max()) + 1):
        train, test = folds != f, folds == f
        # Through the singular values, since the penalty is too small for the normal equations of few rows.
        u, s, vt = np.linalg.svd(Z[train], full_matrices=False)
        coef = vt.T @ ((s / (s * s + alpha))[:, None] * (u.T @ Y[train]))
        square += ((Y[test] - Z[test] @ coef) ** 2).sum(axis=0)
    return np.sqrt(square / len(Y)).astype(np.float32)


def predict(
    state: State, X: np.ndarray, *, coordinates: np.ndarray | None = None, slides: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted mean and spread.

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
    _, X = open_state(state, "hest", X, coordinates, slides)

    def predicted(x: np.ndarray) -> np.ndarray:
        Z = x.copy()
        Z -= state["feature_mean"]
        Z /= state["feature_scale"]
        if "components" in state:
            Z = Z @ state["components"].T
            Z -= state["offset"]
        return Z.astype(np.float32) @ state["coef"]

    return by_rows(X, state["spread"], predicted)
