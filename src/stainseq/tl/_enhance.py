"""Predictions combined with what was measured, region by region."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from .._progress import progress
from ..core import enhance as core
from ..core.normalize import UNITS
from ..errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

    from ..regions import Region

_TARGET = 1e4
_FLOOR = 0.02
"""Least predicted rate, as a share of the gene's mean: a line may predict zero or less, a rate cannot be."""
_REACHES = (1.0, 2.0, 4.0)
"""Candidates for the reach of neighbours, in distances of neighbouring regions."""


def combine(
    out: dict[str, Any],
    table: AnnData,
    measured: AnnData,
    region: Region,
    *,
    units: str = UNITS["cp10k"],
    seed: int = 0,
) -> dict[str, int | float]:
    """Put the enhanced expression into a prediction table, gene by gene.

    Parameters
    ----------
    out
        Its matrices [regions, genes], read and written in blocks of columns (`store.stream_table`): "predicted" and
        "spread" hold the out-of-fold prediction, "X", "weight" and again "spread" take the result.
    table
        The rest of it, as `predict` makes it; var gets ``enhance.shape``, ``enhance.slope``, ``enhance.reach``.
    measured
        Raw counts of the same regions; rows in any order, regions may be missing.
    region
        The regions, in the order of the rows.
    units
        Of the prediction: log1p of counts per 10,000 (the exposure of a region is its depth), or log1p of counts (all
        regions are exposed alike).
    seed
        Of the sample of places that the choice of neighbours looks at.

    Returns
    -------
    dict
        How many regions were measured, how many genes were enhanced, and the mean weight of the measurement.

    Notes
    -----
    "X" becomes the enhanced mean, "weight" the share of the measurement (0 where nothing was measured: there the
    prediction stands unchanged), "spread" the posterior standard deviation by the delta method.

    Raises
    ------
    InputError
        No gene or no region in common.
    """
    import pandas as pd
    from scipy import sparse

    from .._settings import settings
    from ..store.matrices import column_blocks

    columns = measured.var_names.get_indexer(table.var_names)
    rows = pd.Index(measured.obs_names).get_indexer(table.obs_names)
    library = np.asarray(measured.X.sum(axis=1), dtype=np.float64).ravel()
    depth = np.where(rows >= 0, library[rows], np.nan)
    known = rows >= 0 if units == UNITS["raw"] else np.nan_to_num(depth) > 0
    if (columns < 0).all() or not known.any():
        raise InputError(
            "nothing to enhance: no gene or no measured region in common with the prediction",
            fix="check the ids, or predict with --mode infer",
        )
    exposure = np.where(known, depth, np.median(depth[known])) / _TARGET
    if units == UNITS["raw"]:
        exposure = np.ones(len(rows))
    counts = sparse.csc_array(measured.X[:, columns[columns >= 0]])
    at = np.cumsum(columns >= 0) - 1
    smoothers = _smoothers(region)
    fitted, total = np.full((table.n_vars, 3), np.nan), 0.0

    def one(j: int, predicted: np.ndarray, spread: np.ndarray, weight: np.ndarray) -> None:
        rate = np.expm1(predicted.astype(np.float64))
        y = np.full(len(rows), np.nan)
        y[known] = np.asarray(counts[:, [at[j]]].todense()).ravel()[rows[known]]
        level = max(np.nansum(y) / exposure[known].sum(), 1e-9)
        found = core.enhance(y, np.maximum(rate, _FLOOR * level), exposure=exposure, smoothers=smoothers, seed=seed)
        predicted[known] = np.log1p(found.rate[known])
        spread[known] = found.spread[known] / (1 + found.rate[known])
        weight[:] = found.weight
        reach = _REACHES[found.smoother] if found.smoother >= 0 else 0.0
        fitted[j] = found.shape if np.isfinite(found.shape) else np.nan, found.slope, reach

    with progress("enhance", table.n_vars) as advance, ThreadPoolExecutor(settings.n_jobs) as pool:
        for block in column_blocks(*table.shape):
            mean, spread = (np.array(out[k][:, block], dtype=np.float32, order="F") for k in ("predicted", keys.SPREAD))
            weight = np.zeros(mean.shape, dtype=np.float32, order="F")
            genes = [j for j in range(block.start, block.stop) if columns[j] >= 0]
            views = [tuple(a[:, j - block.start] for a in (mean, spread, weight)) for j in genes]
            list(pool.map(lambda task: one(task[0], *task[1]), zip(genes, views, strict=True)))
            for name, values in (("X", mean), (keys.SPREAD, spread), ("weight", weight)):
                out[name][:, block] = values
            total += float(weight.sum(dtype=np.float64))
            advance(block.stop - block.start)
    for k, name in enumerate(("shape", "slope", "reach")):
        table.var[f"enhance.{name}"] = fitted[:, k]
    mean_weight = total / max(table.n_obs * table.n_vars, 1)
    return {"measured": int(known.sum()), "genes": int((columns >= 0).sum()), "mean_weight": mean_weight}


def _smoothers(region: Region) -> list[core.Smoother]:
    geometry: Any = region.geometry
    if region.kind == "grid":
        return [core.on_grid(geometry.rows, geometry.cols, sigma=s) for s in _REACHES]
    if len(region) < 3:
        return []
    from scipy.spatial import cKDTree

    pitch = float(np.median(cKDTree(region.centres_um).query(region.centres_um, k=2)[0][:, 1]))
    if not pitch > 0:
        return []
    return [core.at_points(region.centres_um, sigma=s * pitch, neighbors=round(4 + 24 * s)) for s in _REACHES]
