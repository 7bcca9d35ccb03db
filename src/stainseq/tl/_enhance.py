"""Predictions combined with what was measured, region by region."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
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
    predicted: AnnData, measured: AnnData, region: Region, *, units: str = UNITS["cp10k"], seed: int = 0
) -> dict[str, int]:
    """Put the enhanced expression into a prediction table, in place.

    Parameters
    ----------
    predicted
        As `predict` makes it, out of fold, rows as in `region`.
    measured
        Raw counts of the same regions; rows in any order, regions may be missing.
    region
        The regions.
    units
        Of the prediction: log1p of counts per 10,000 (the exposure of a region is its depth), or log1p of counts (all
        regions are exposed alike).
    seed
        Of the sample of places that the choice of neighbours looks at.

    Returns
    -------
    dict
        How many regions were measured, and how many genes were enhanced.

    Notes
    -----
    ``X`` becomes the enhanced mean, ``layers["predicted"]`` keeps the prediction, ``layers["weight"]`` is the share of
    the measurement (0 where nothing was measured: there the prediction stands unchanged), ``layers["spread"]`` the
    posterior standard deviation by the delta method. ``var``: ``enhance.shape``, ``enhance.slope``, ``enhance.reach``.

    Raises
    ------
    InputError
        No gene or no region in common.
    """
    import pandas as pd
    from scipy import sparse

    genes = [g for g in predicted.var_names if g in measured.var_names]
    rows = pd.Index(measured.obs_names).get_indexer(predicted.obs_names)
    library = np.asarray(measured.X.sum(axis=1), dtype=np.float64).ravel()
    depth = np.where(rows >= 0, library[rows], np.nan)
    known = rows >= 0 if units == UNITS["raw"] else np.nan_to_num(depth) > 0
    if not genes or not known.any():
        raise InputError(
            "nothing to enhance: no gene or no measured region in common with the prediction",
            fix="check the ids, or predict with --mode infer",
        )
    counts = sparse.csc_array(measured[:, genes].X)
    exposure = np.where(known, depth, np.median(depth[known])) / _TARGET
    if units == UNITS["raw"]:
        exposure = np.ones(len(rows))
    smoothers = _smoothers(region)
    mean, weight = np.array(predicted.X, dtype=np.float32), np.zeros(predicted.shape, dtype=np.float32)
    spread = np.array(predicted.layers[keys.SPREAD], dtype=np.float32)
    fitted = np.full((predicted.n_vars, 3), np.nan)
    columns = predicted.var_names.get_indexer(genes)

    def one(i: int) -> None:
        j = columns[i]
        rate = np.expm1(mean[:, j].astype(np.float64))
        y = np.full(len(rows), np.nan)
        y[known] = np.asarray(counts[:, [i]].todense()).ravel()[rows[known]]
        level = max(np.nansum(y) / exposure[known].sum(), 1e-9)
        found = core.enhance(y, np.maximum(rate, _FLOOR * level), exposure=exposure, smoothers=smoothers, seed=seed)
        mean[known, j] = np.log1p(found.rate[known])
        spread[known, j] = found.spread[known] / (1 + found.rate[known])
        weight[:, j] = found.weight
        reach = _REACHES[found.smoother] if found.smoother >= 0 else 0.0
        fitted[j] = found.shape if np.isfinite(found.shape) else np.nan, found.slope, reach

    from .._settings import settings

    with ThreadPoolExecutor(settings.n_jobs) as pool:
        list(pool.map(one, range(len(genes))))
    predicted.layers["predicted"] = np.array(predicted.X)
    predicted.X = mean
    predicted.layers[keys.SPREAD], predicted.layers["weight"] = spread, weight
    for k, name in enumerate(("shape", "slope", "reach")):
        predicted.var[f"enhance.{name}"] = fitted[:, k]
    return {"measured": int(known.sum()), "genes": len(genes)}


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
