"""Expression from histology: apply a MODEL to a slide."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ..model import Model

ROWS = 20_000
"""Regions predicted at a time: bounds the memory of neighbours' features and of ensembles."""


def predict(
    model: Model | str | os.PathLike[str],
    sdata: SpatialData,
    *,
    region: str | None = None,
    weights: str | Path | None = None,
    image_key: str = keys.HE,
    mode: Literal["infer", "enhance"] = "infer",
    truth: str | None = None,
    key_added: str | None = None,
    device: str = "auto",
) -> SpatialData:
    """Predict expression for every region of a slide from its image.

    Works on a slide with H&E alone (lay a grid first, see `pp.grid`); features are computed when they are missing.
    On a slide that the model has learned from, every region is predicted by the fold model that did not see it (the
    fold of the nearest training region), so that predictions may be compared with the measurement.

    Parameters
    ----------
    model
        A MODEL folder, or a loaded model.
    sdata
        The slide; written to when it is on disk.
    region
        Regions to predict. Default those that the model learned from, or the grid of a slide that has none of them.
    weights
        Local weights of the encoder, as given to train.
    image_key
        Image element.
    mode
        "infer": from the image alone. "enhance": combined with the region's counts where there are any, each by what
        it is worth (`core.enhance`); regions without counts keep the prediction.
    truth
        Table of counts for "enhance"; default ``counts_<region>``.
    key_added
        Name of the table; default ``pred_<head>_<region>``.
    device
        For encoding.

    Returns
    -------
    SpatialData
        The same object; adds ``tables[key_added]``: X float32 [n, genes] predicted mean (units in uns),
        layers["spread"] predictive standard deviation, layers["baseline_colour"] the colour baseline's prediction,
        var["train_mean"], obs["fold"] (-1: the full model; k: the model that did not see fold k),
        obsm["spatial"] centres in um. Enhanced tables hold the combined mean in X, layers["predicted"],
        layers["weight"] (share of the measurement, 0 to 1) and var["enhance.*"]. The stamp says what the model is and
        how it scored (`Model.facts`).

    Raises
    ------
    InputError
        The features are of another encoder or scale than the model's.
    """
    from .. import featurise, lineage, regions, registry, store
    from ..model import Model as Loaded
    from ..model import check_encoder, load
    from ..trainset import COLOUR

    if mode not in ("infer", "enhance"):
        raise InputError(f"mode {mode!r} is not one of: infer, enhance")
    learned = model if isinstance(model, Loaded) else load(model)
    config = learned.config
    region = region or region_for(learned, sdata)
    measured = truth or keys.counts(region)
    if mode == "enhance" and measured not in sdata.tables:
        raise MissingError(
            f"no table {measured!r} to enhance",
            where=sdata.path,
            fix="count first (stainseq aggregate), or --mode infer",
        )
    name = key_added or keys.prediction(str(config["head"]), region)
    lineage.claim(sdata, name, step="predict")
    encoder = str(config["encoder"]["name"])
    where = regions.get(sdata, region)
    features, stamp = featurise.ensure_features(
        sdata, region=region, encoder=encoder, weights=weights, image_key=image_key, device=device
    )
    found = stamp["encoder"]
    check_encoder(
        config, name=str(found["name"]), encoder_fingerprint=str(found["fingerprint"]), where=sdata.path or region
    )
    image = stamp["inputs"][image_key]
    of_fold = folds_of(learned, image=image, centres_um=where.centres_um)
    plugin = registry.load("heads", str(config["head"]))
    # Neighbours and means over a slide are those of the whole slide, whatever is predicted of it.
    whole = any(config["options"].get(k) for k in ("context_um", "context_k", "per_slide"))
    mean, spread = _by_fold(plugin, learned.state, learned.folds, features.X, of_fold, where.centres_um, whole)
    table = featurise.region_table(mean, where, region)
    table.var_names = learned.genes
    table.layers[keys.SPREAD] = spread
    table.var["train_mean"] = np.asarray(config["gene_mean"], dtype=np.float32)
    table.obs[keys.FOLD] = of_fold
    if learned.colour:
        colour, _ = featurise.ensure_features(sdata, region=region, encoder=COLOUR, image_key=image_key, device="cpu")
        ridge = registry.load("heads", "ridge")
        table.layers["baseline_colour"] = _by_fold(
            ridge, learned.colour[0], learned.colour[1:], colour.X, of_fold, where.centres_um
        )[0]
    inputs = {"model": learned.fingerprint, image_key: image, region: lineage.ids_fingerprint(where.ids)}
    more: dict[str, Any] = {}
    if mode == "enhance":
        from ._enhance import combine

        more["enhanced"] = combine(table, sdata.tables[measured], where, units=str(config["units"]))
        inputs[measured] = store.fingerprint_of(sdata, measured)
    store.write_element(
        sdata,
        name,
        table,
        step="predict",
        parameters={"region": region, "head": config["head"], "mode": mode, "image_key": image_key},
        inputs=inputs,
        more={
            "units": config["units"],
            "encoder": encoder,
            "out_of_fold": int((of_fold >= 0).sum()),
            "model": learned.facts(),
            **more,
        },
    )
    return sdata


def region_for(model: Model, sdata: SpatialData) -> str:
    """Regions that a model predicts when none are named: those it learned from, else a grid.

    Parameters
    ----------
    model
        The model.
    sdata
        The slide.
    """
    from .. import regions

    own = str(model.config["region"])
    return own if own in regions.names(sdata) else keys.GRID


def folds_of(model: Model, *, image: str, centres_um: np.ndarray) -> np.ndarray:
    """Which fold model may predict each region: -1 (the full model) on slides that were not in training.

    Slides are recognised by the content of their image, whatever they are called.

    Parameters
    ----------
    model
        The model.
    image
        Fingerprint of the slide's image.
    centres_um
        float [n, 2].

    Returns
    -------
    numpy.ndarray
        int64 [n].
    """
    from scipy.spatial import cKDTree

    seen = [i for i, s in enumerate(model.config["slides"]) if s["image"] == image]
    rows = model.training[model.training["slide"].isin(seen)]
    if not len(rows):
        return np.full(len(centres_um), -1)
    _, nearest = cKDTree(rows[["x_um", "y_um"]].to_numpy()).query(centres_um)
    return rows["fold"].to_numpy()[nearest].astype(np.int64)


def _by_fold(
    plugin: Any, full: Any, folds: list[Any], X: Any, of_fold: np.ndarray, coordinates: np.ndarray, whole: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Predict each region with its own state. Neighbours are looked up over the whole slide, whatever their fold."""
    out: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    X = np.asarray(X, dtype=np.float32) if len(X) <= ROWS else X
    for k in np.unique(of_fold):
        rows = np.flatnonzero(of_fold == k)
        mean, spread = _in_pieces(plugin, full if k < 0 else folds[k], X, rows, coordinates, whole)
        out.append((rows, mean, spread))
    n_genes = out[0][1].shape[1] if out else 0
    mean, spread = np.empty((len(of_fold), n_genes), np.float32), np.empty((len(of_fold), n_genes), np.float32)
    for rows, m, s in out:
        mean[rows], spread[rows] = m, s
    return mean, spread


def _in_pieces(
    plugin: Any, state: Any, X: Any, rows: np.ndarray, coordinates: np.ndarray, whole: bool
) -> tuple[np.ndarray, np.ndarray]:
    slide = np.zeros(len(coordinates), dtype=np.int64)
    if whole:
        mean, spread = plugin.predict(state, np.asarray(X, dtype=np.float32), coordinates=coordinates, slides=slide)
        return mean[rows], spread[rows]
    pieces = [rows[a : a + ROWS] for a in range(0, len(rows), ROWS)]
    done = [
        plugin.predict(state, np.asarray(X[p], dtype=np.float32), coordinates=coordinates[p], slides=slide[p])
        for p in pieces
    ]
    return np.concatenate([m for m, _ in done]), np.concatenate([s for _, s in done])
