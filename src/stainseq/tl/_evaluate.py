"""Score a prediction against the measurement, beside its baselines and the noise ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def evaluate(
    sdata: SpatialData,
    *,
    truth: str = keys.counts(keys.SPOTS),
    prediction: str,
    genes: Sequence[str] | None = None,
    block_um: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a prediction table gene by gene.

    Parameters
    ----------
    sdata
        The slide.
    truth
        Table of raw counts; normalised here as the model's units say.
    prediction
        Table of predictions, as `predict` writes it.
    genes
        Genes to score; default all that both tables have.
    block_um
        Side of the spatial blocks that the bootstrap draws for intervals; default about 12 blocks a slide.
    seed
        Of bootstrap and count splitting.

    Returns
    -------
    dict
        n, genes (pearson, spearman, rmse, mse, r2, ssim per gene), summary (means, 95 % interval of the Pearson),
        baseline (gene_mean from the training set, colour), ceiling (what a perfect predictor could reach given the
        counting noise), out_of_fold (regions of training slides, predicted by a model that did not see them), truth,
        prediction.

    Raises
    ------
    MissingError
        A table is not there, or no gene or id is shared.
    InputError
        The prediction is none (it states no units, or others than ours), the truth is no table of raw counts, or fewer
        than three regions have counts.
    """
    from scipy import sparse

    from ..core import ceiling, normalize, scores

    counts, predicted, kind = _tables_of(sdata, truth, prediction)
    shared = predicted.var_names.intersection(counts.var_names, sort=False)
    if genes is not None:
        absent = [g for g in genes if g not in shared]
        if absent:
            raise MissingError(f"genes that are not in both tables: {', '.join(absent[:5])}", where=sdata.path)
        shared = shared[shared.isin(list(genes))]
    ids = predicted.obs_names.intersection(counts.obs_names, sort=False)
    if not len(shared) or not len(ids):
        what = "genes" if not len(shared) else "ids"
        raise MissingError(
            f"{truth} and {prediction} share no {what}", where=sdata.path, fix="score tables of one region"
        )
    raw = sparse.csr_matrix(counts[ids].X)
    library = np.asarray(raw.sum(axis=1), dtype=float).ravel()
    if kind != "raw":  # a region without any count has no depth to be divided by
        ids, raw, library = ids[library > 0], raw[library > 0], library[library > 0]
    if len(ids) < 3:
        raise InputError(
            f"{len(ids)} regions with counts are too few to score", where=truth, fix="three or more are needed"
        )
    raw = raw[:, counts.var_names.get_indexer(shared)]
    target = normalize.normalized(raw, library=library, kind=kind)
    subset = predicted[ids, shared]
    baselines = {}
    if "train_mean" in predicted.var:
        level = subset.var["train_mean"].to_numpy(dtype=np.float32)
    else:
        level = target.mean(axis=0)
    baselines["gene_mean"] = np.broadcast_to(level, target.shape)
    baselines |= {
        k.removeprefix("baseline_"): np.asarray(v) for k, v in subset.layers.items() if k.startswith("baseline_")
    }
    # An enhanced table has seen the counts: what is scored is the prediction that it was made from.
    X = subset.layers.get("predicted", subset.X)
    result = scores.score(
        target,
        np.asarray(X.toarray() if sparse.issparse(X) else X, dtype=np.float32),
        genes=list(shared),
        coordinates=np.asarray(subset.obsm[keys.SPATIAL], dtype=float),
        baselines=baselines,
        ceiling=ceiling.noise_ceiling(raw, library=library, normalize=kind, seed=seed)["pearson"],
        block_um=block_um,
        seed=seed,
    )
    fold = subset.obs[keys.FOLD].to_numpy() if keys.FOLD in subset.obs else np.full(len(ids), -1)
    result["out_of_fold"] = int((fold >= 0).sum())
    result["truth"], result["prediction"] = truth, prediction
    if "predicted" in subset.layers:
        result["note"] = "an enhanced table has seen the counts: its prediction alone is scored"
    return result


def _tables_of(sdata: SpatialData, truth: str, prediction: str) -> tuple[AnnData, AnnData, str]:
    """Both tables, after making sure that one holds raw counts and the other predictions, and how these are scaled."""
    from .. import store
    from ..core.normalize import UNITS
    from ..core.values import is_counts

    for name in (truth, prediction):
        if name not in sdata.tables:
            raise MissingError(
                f"no table {name!r}", where=sdata.path, fix=f"tables here: {', '.join(sdata.tables) or 'none'}"
            )
    where = sdata.path or "the slide"
    units = {name: (store.stamp_of(sdata, name) or {}).get("units") for name in (truth, prediction)}
    kinds = {unit: kind for kind, unit in UNITS.items()}
    if units[prediction] is None:
        predicted = [n for n in sdata.tables if (store.stamp_of(sdata, n) or {}).get("units") in kinds]
        raise InputError(
            f"table {prediction!r} is no prediction",
            where=where,
            fix=f"predictions here: {', '.join(predicted) or 'none'}; one that was made elsewhere says so by "
            f'uns["{keys.STAMP}"]["units"] = "{UNITS["cp10k"]}"',
        )
    if units[prediction] not in kinds:
        raise InputError(
            f"predictions in {units[prediction]!r} cannot be scored",
            where=prediction,
            fix=f"predict in {' or '.join(kinds)}",
        )
    if units[truth] is not None or not is_counts(sdata.tables[truth].X):
        what = "is a prediction" if units[truth] is not None else "holds no raw counts"
        raise InputError(
            f"table {truth!r} {what}, and can be no truth", where=where, fix="name the table of raw counts (--truth)"
        )
    return sdata.tables[truth], sdata.tables[prediction], kinds[str(units[prediction])]
