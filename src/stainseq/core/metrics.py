"""Agreement of predicted with measured expression: per-gene scores and SSIM on the array."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import correlate1d
from scipy.stats import rankdata

from ..errors import InputError
from .lattice import Lattice

_BLOCK_VALUES = 1 << 23


def per_gene(truth: np.ndarray, prediction: np.ndarray, *, spearman: bool = True) -> dict[str, np.ndarray]:
    """Pearson, Spearman, RMSE, MSE and R2 of every gene.

    Parameters
    ----------
    truth, prediction
        [n, genes]. A NaN in the truth is a missing measurement: its row is left out for that gene.
    spearman
        False leaves ranks out (they cost a sort per gene).

    Returns
    -------
    float64 [genes] each: "pearson", "spearman" (average ranks for ties), "rmse", "mse", "r2" = 1 - SSE/SST. A gene
    whose truth is constant has no correlation and no R2: NaN. One whose prediction is constant has no correlation: NaN.

    Raises
    ------
    InputError
        Shapes differ, or the prediction holds NaN.
    """
    truth, prediction = _pair(truth, prediction)
    n, g = truth.shape
    names = ("pearson", "spearman", "rmse", "mse", "r2") if spearman else ("pearson", "rmse", "mse", "r2")
    out = {name: np.full(g, np.nan) for name in names}
    step = max(1, _BLOCK_VALUES // max(n, 1))
    for start in range(0, g if n else 0, step):
        part = slice(start, start + step)
        t, p = truth[:, part].astype(np.float64), prediction[:, part].astype(np.float64)
        holes = np.isnan(t).any(axis=0)
        for name, values in _scores(t[:, ~holes], p[:, ~holes], spearman).items():
            out[name][part][~holes] = values
        for j in np.flatnonzero(holes):
            known = ~np.isnan(t[:, j])
            if known.any():
                for name, values in _scores(t[known, j : j + 1], p[known, j : j + 1], spearman).items():
                    out[name][start + j] = values[0]
    return out


def _scores(truth: np.ndarray, prediction: np.ndarray, spearman: bool) -> dict[str, np.ndarray]:
    error = ((truth - prediction) ** 2).mean(axis=0) if len(truth) else np.full(truth.shape[1], np.nan)
    spread = truth.var(axis=0)
    varies = np.ptp(truth, axis=0) > 0 if len(truth) else np.zeros(truth.shape[1], dtype=bool)
    out = {
        "pearson": pearson(truth, prediction),
        "mse": error,
        "rmse": np.sqrt(error),
        "r2": 1 - np.divide(error, spread, out=np.full_like(error, np.nan), where=varies),
    }
    if spearman:
        out["spearman"] = pearson(rankdata(truth, axis=0), rankdata(prediction, axis=0))
    return out


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of the columns of two [n, genes] arrays, float64 [genes]; NaN where one is constant.

    Constant means that all values are equal, not that the variance is small: genes of tiny scale count.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(a) < 2:
        return np.full(a.shape[1], np.nan)
    varies = (np.ptp(a, axis=0) > 0) & (np.ptp(b, axis=0) > 0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    # Scaled first, so that squares neither overflow nor vanish.
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = a / np.abs(a).max(axis=0), b / np.abs(b).max(axis=0)
        r = (a * b).sum(axis=0) / np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return np.where(varies, np.clip(r, -1, 1), np.nan)


def ssim_maps(
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    lattice: Lattice,
    data_range: np.ndarray | None = None,
    sigma: float = 1.5,
    truncate: float = 3.5,
) -> np.ndarray:
    """Structural similarity around every spot, on the array lattice.

    Wang et al. 2004 with a Gaussian window (sigma 1.5, K1 0.01, K2 0.03, population covariance). The window is
    normalised over the spots that are there, so that tissue borders and missing spots are no edges; away from them
    it is scikit-image's ``structural_similarity(gaussian_weights=True, use_sample_covariance=False)``. Distances are
    true ones in pitch units, also on hexagonal arrays.

    Parameters
    ----------
    truth, prediction
        [n, genes] of one section, rows as in `lattice`. Rows on one node are averaged.
    data_range
        [genes]; None is the range (max - min) of the truth at hand.
    sigma
        Width of the window in pitches.
    truncate
        Window radius in sigmas.

    Returns
    -------
    float64 [n, genes]; NaN for genes whose data range is 0.
    """
    truth, prediction = _pair(truth, prediction)
    n, g = truth.shape
    if data_range is None:
        data_range = np.ptp(truth, axis=0) if n else np.zeros(g)
    data_range = np.asarray(data_range, dtype=np.float64)
    windows = [_window(sigma / step, truncate) for step in lattice.step]
    node, inverse = np.unique(lattice.row * lattice.shape[1] + lattice.col, return_inverse=True)
    inverse = inverse.ravel()
    size = lattice.shape[0] * lattice.shape[1]
    shared = np.bincount(inverse, minlength=len(node))[:, None]
    present = np.zeros((size, 1))
    present[node] = 1
    weight = _blur(present.reshape(*lattice.shape, 1), windows)
    out = np.full((n, g), np.nan)
    step = max(1, _BLOCK_VALUES // max(size, 1))
    for start in range(0, g if n else 0, step):
        part = slice(start, start + step)
        x, y = (_on_nodes(v[:, part], inverse, shared, node, size) for v in (truth, prediction))
        x, y = x.reshape(*lattice.shape, -1), y.reshape(*lattice.shape, -1)
        values = _ssim(x, y, lambda v: _blur(v, windows) / np.maximum(weight, 1e-300), data_range[part])
        out[:, part] = values.reshape(size, -1)[node][inverse]
    out[:, data_range == 0] = np.nan
    return out


def _ssim(x: np.ndarray, y: np.ndarray, mean: Callable[[np.ndarray], np.ndarray], data_range: np.ndarray) -> np.ndarray:
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    ux, uy = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - ux * ux, mean(y * y) - uy * uy, mean(x * y) - ux * uy
    top = (2 * ux * uy + c1) * (2 * vxy + c2)
    bottom = (ux * ux + uy * uy + c1) * (vx + vy + c2)
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _window(sigma: float, truncate: float) -> np.ndarray:
    radius = int(truncate * sigma + 0.5)
    w = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return w / w.sum()


def _blur(image: np.ndarray, windows: list[np.ndarray]) -> np.ndarray:
    for axis, window in enumerate(windows):
        image = correlate1d(image, window, axis=axis, mode="constant")
    return image


def _on_nodes(values: np.ndarray, inverse: np.ndarray, shared: np.ndarray, node: np.ndarray, size: int) -> np.ndarray:
    image = np.zeros((size, values.shape[1]))
    if len(node) == len(inverse):
        image[node[inverse]] = values
        return image
    sums = np.zeros((len(node), values.shape[1]))
    np.add.at(sums, inverse, values.astype(np.float64))
    image[node] = sums / shared
    return image


def _pair(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.ndim != 2 or truth.shape != prediction.shape:
        raise InputError(
            f"truth {truth.shape} and prediction {prediction.shape} are not two [n, genes] arrays of one shape",
            where="metrics",
            fix="join both by id and by gene first",
        )
    if not np.isfinite(prediction).all():
        raise InputError("the prediction holds NaN or infinite values", where="metrics", fix="predict again")
    if np.isinf(truth).any():
        raise InputError("the truth holds infinite values", where="metrics", fix="normalise it again")
    return truth, prediction
