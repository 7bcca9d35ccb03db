"""Linear ridge with a penalty per gene, chosen by grouped cross-validation; the default head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from . import _denoise, _ridge
from ._features import Scaler, by_rows, check_context, open_state, with_context
from ._inputs import check_fit
from ._state import State, pack

DEFAULT = True
SEPARABLE = True
TOGETHER = {"denoise": "lowrank"}
"""Options with which genes are not fitted apart: a part of the genes has other principal directions than all."""

ALPHAS = tuple(float(a) for a in np.logspace(0, 7, 22))
"""Three penalties per decade. For standardised features the best one is about (features) x (noise / signal) and does
not grow with rows: 1 suits a few clean features, 1e7 predicts the gene mean."""


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
    alphas: Sequence[float] = ALPHAS,
    criterion: str = "mse",
    denoise: str | None = None,
    per_slide: bool = False,
    context_um: float | None = None,
    context_k: int | None = None,
) -> State:
    """Fit all genes at once.

    Features are standardised on the training rows and cut at 5 standard deviations, targets are centred. Each gene's
    penalty is the best over inner folds (given, else by group, slide, spatial block or row). One decomposition per fold
    serves all penalties and genes (`_ridge`).

    Parameters
    ----------
    X
        float32 [n, d] features.
    Y
        float32 [n, genes] normalised targets.
    counts, library
        Not used.
    coordinates
        [n, 2] um: for context, and for inner spatial blocks where there is one group.
    slides
        [n] section of each row.
    groups
        [n] what inner folds keep together: the patient, else the slide.
    folds
        [n] inner folds, instead.
    weights
        [n] of the rows.
    seed
        Deals groups or rows to inner folds; the fit itself has no randomness.
    alphas
        Penalties tried.
    criterion
        What decides: "mse" (default: it is the loss that is fitted, and stable where a gene barely varies) or "pearson"
        (mean over folds).
    denoise
        Train on denoised targets; how strongly (including not at all) is chosen per gene with its penalty, by raw
        held-out targets. "spatial": mixed with the mean of the 8 nearest spots of the slide (and inner fold).
        "lowrank": projected on their first principal directions. Off: about 0.01 of Pearson gained on some slides is
        lost on others (docs/her2st.md).
    per_slide
        Standardise features within each slide first, against stain differences. Off: a row's prediction would depend on
        which other rows of its slide are predicted with it, for a gain near the noise (docs/her2st.md).
    context_um, context_k
        Append the mean features of the neighbours within this radius, or of this many nearest ones, of the same slide.

    Returns
    -------
    "mean", "gain" [d'], "coef" [d', genes], "intercept", "spread", "alpha", "denoised" (number of the chosen strength),
    "cv_pearson" [genes]. The spread is the
    standard deviation of inner cross-validation residuals (NaN where rows were too few to split).

    Raises
    ------
    InputError
        See `_inputs.check_fit`; penalties that are not positive; context without coordinates.
    """
    grid = np.asarray(alphas, dtype=np.float64)
    if grid.ndim != 1 or not len(grid) or not (grid > 0).all():
        raise InputError("penalties are not a list of positive numbers", where="alphas")
    if criterion not in ("mse", "pearson"):
        raise InputError(f"no criterion named {criterion!r}", fix="one of: mse, pearson")
    rows = check_fit(
        X, Y, coordinates=coordinates, slides=slides, groups=groups, folds=folds, weights=weights, seed=seed
    )
    settings = {"per_slide": per_slide, **check_context(context_um, context_k)}
    features = with_context(rows.X, settings, coordinates, slides)
    if denoise is not None and denoise not in _denoise.KINDS:
        raise InputError(f"no denoising named {denoise!r}", fix=f"one of: {', '.join(_denoise.KINDS)}")
    columns, variants = _denoise.prepare(denoise, rows.Y, rows.weights, rows.folds, coordinates, slides)
    problem = _ridge.make(features, columns, rows.weights, rows.folds, variants=variants)
    variant = np.zeros(rows.Y.shape[1], dtype=np.int64)
    if rows.folds is None:
        # Nothing to choose by: the middle of the grid, which neither copies the rows nor ignores the features.
        alpha = np.full(rows.Y.shape[1], grid[len(grid) // 2])
        spread = correlation = np.full(rows.Y.shape[1], np.nan)
    else:
        setting, spread, correlation = choose(problem.path(grid), criterion)
        alpha, variant = grid[setting % len(grid)], setting // len(grid)
    fitted = problem.solve(alpha, variant)
    return pack(
        "ridge",
        {"n_features": rows.X.shape[1], "criterion": criterion, "denoise": denoise, **settings},
        mean=fitted.scaler.mean,
        gain=fitted.scaler.gain,
        coef=fitted.coef,
        intercept=fitted.intercept,
        spread=spread.astype(np.float32),
        alpha=alpha,
        denoised=variant,
        cv_pearson=correlation.astype(np.float32),
    )


def choose(path: _ridge.Path, criterion: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best setting, its residual standard deviation and cross-validated Pearson of every gene, [genes] each.

    Parameters
    ----------
    path
        Scores of every fold, setting and gene.
    criterion
        "mse" or "pearson".
    """
    error = path.sse.sum(axis=0) / path.total.sum()
    r = np.nan_to_num(path.pearson).mean(axis=0)
    # Ties (a gene without signal, or constant) go to the last setting: the strongest denoising and penalty.
    loss = error if criterion == "mse" else -r
    best = len(loss) - 1 - loss[::-1].argmin(axis=0)
    gene = np.arange(error.shape[1])
    return best, np.sqrt(error[best, gene]), r[best, gene]


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
        Needed if the head was fitted with context or `per_slide`; then give whole slides.

    Returns
    -------
    mean, spread : float32 [n, genes]
    """
    _, X = open_state(state, "ridge", X, coordinates, slides)
    scaler = Scaler(state["mean"], state["gain"])
    return by_rows(X, state["spread"], lambda x: scaler(x) @ state["coef"] + state["intercept"])
