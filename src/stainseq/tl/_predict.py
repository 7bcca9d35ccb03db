"""Expression from histology: apply a MODEL to a slide."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from .. import keys
from ..errors import InputError, MissingError
from ..quality import usable
from ..trainset import COLOUR
from ._blocks import COVERAGE, Work, coverage, fill
from ._enhance import combine

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ..model import Model


def predict(
    model: Model | str | os.PathLike[str],
    sdata: SpatialData,
    *,
    region: str | None = None,
    weights: str | Path | None = None,
    image_key: str = keys.HE,
    mode: Literal["infer", "enhance"] = "infer",
    truth: str | None = None,
    quality: str | None = None,
    key_added: str | None = None,
    device: str = "auto",
) -> SpatialData:
    """Predict expression for every region of a slide from its image.

    Works on a slide with H&E alone (lay a grid first, see `pp.grid`); features are computed when they are missing.
    On a slide that the model has learned from, every region is predicted by the fold model that did not see it (the
    fold of the nearest training region), so that predictions may be compared with the measurement.

    Memory holds a block of regions (of genes, to enhance), never all regions by all genes: the table is written as it
    is computed, takes its name when it is complete, and stays on disk (as Dask arrays) where a matrix exceeds 256 MB.

    Parameters
    ----------
    model
        A MODEL folder, or a loaded model.
    sdata
        The slide; written to when it is on disk.
    region
        Regions to predict. Default those that the model learned from, or the grid of a slide that has none of them
        (the command line lays superpixels, or a grid, where they are not there).
    weights
        Local weights of the encoder, as given to train.
    image_key
        Image element.
    mode
        "infer": from the image alone. "enhance": combined with the region's counts where there are any, each by what
        it is worth (`core.enhance`); regions without counts keep the prediction.
    truth
        Table of counts for "enhance"; default ``counts_<region>``.
    quality
        Table of quality (`pp.quality`): regions that are not good get no row. Default ``quality_<region>`` where it is
        there; "none" predicts all regions.
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
        obs["coverage"] (share of the region that its features saw: that of the feature table, else what lies in the
        picture), obsm["spatial"] centres in um. Enhanced tables hold the combined mean in X, layers["predicted"],
        layers["weight"] (share of the measurement, 0 to 1) and var["enhance.*"]. The stamp says what the model is and
        how it scored (`Model.facts`).

    Raises
    ------
    MissingError
        No such image or regions; nothing to enhance from.
    InputError
        The features are of another encoder or scale than the model's; no gene in common with the counts to enhance.
    """
    from .. import featurise, lineage, regions, store
    from ..model import Model as Loaded
    from ..model import check_encoder, load

    if mode not in ("infer", "enhance"):
        raise InputError(f"mode {mode!r} is not one of: infer, enhance")
    learned = model if isinstance(model, Loaded) else load(model)
    config = learned.config
    region = region or region_for(learned, sdata)
    check_image(sdata, image_key)
    where = regions.get(sdata, region)
    measured = _measured(learned, sdata, truth or keys.counts(region)) if mode == "enhance" else None
    name = key_added or keys.prediction(str(config["head"]), region)
    lineage.claim(sdata, name, step="predict")
    encoder = str(config["encoder"]["name"])
    features, stamp = featurise.ensure_features(
        sdata, region=region, encoder=encoder, weights=weights, image_key=image_key, device=device,
        like=config["encoder"],
    )  # fmt: skip
    found = stamp["encoder"]
    check_encoder(
        config, name=str(found["name"]), encoder_fingerprint=str(found["fingerprint"]), where=sdata.path or region
    )
    image = stamp["inputs"][image_key]
    kept, left_out = usable(sdata, region, where.ids, table_key=quality)
    rows = np.flatnonzero(kept)
    inputs = {"model": learned.fingerprint, image_key: image, region: lineage.ids_fingerprint(where.ids)}
    where = where if len(rows) == len(where) else where.take(rows)
    of_fold = folds_of(learned, image=image, centres_um=where.centres_um)
    works = [Work(str(config["head"]), learned.state, learned.folds, features.X, rows, config["options"])]
    if learned.colour:
        colour, _ = featurise.ensure_features(
            sdata, region=region, encoder=COLOUR, image_key=image_key, device="cpu",
            like=featurise.colour_like(config["encoder"]),
        )  # fmt: skip
        works.append(Work("ridge", learned.colour[0], learned.colour[1:], colour.X, rows, {}))
    table = _frame(sdata, where, learned, of_fold)
    seen = features.obsm.get(COVERAGE)
    covered = coverage(sdata, where, image_key) if seen is None else np.asarray(seen)[rows].mean(axis=1)
    table.obs[COVERAGE] = covered.astype(np.float32)
    if measured is not None:
        inputs[measured] = store.fingerprint_of(sdata, measured)
    mean = "X" if measured is None else "predicted"
    layers = [(mean, keys.SPREAD), ("baseline_colour", None)][: len(works)]
    extra = () if measured is None else ("X", "weight")
    kinds = dict.fromkeys((*(k for pair in layers for k in pair if k), *extra), np.float32)
    about = {"region": region, "head": config["head"], "mode": mode, "image_key": image_key, "quality": quality}
    with store.stream_table(sdata, name, table, kinds, step="predict", parameters=about, inputs=inputs) as (out, more):
        more |= {
            "units": config["units"],
            "encoder": encoder,
            "out_of_fold": int((of_fold >= 0).sum()),
            "left_out": left_out,
            "model": learned.facts(),
        }
        fill(out, works, layers, of_fold=of_fold, coordinates=where.centres_um)
        if measured is not None:
            more["enhanced"] = combine(out, table, sdata.tables[measured], where, units=str(config["units"]))
    return sdata


def _frame(sdata: SpatialData, where: Any, learned: Model, of_fold: np.ndarray) -> AnnData:
    """The prediction table without its matrices."""
    from .. import regions

    empty = sparse.csr_matrix((len(where), len(learned.genes)), dtype=np.float32)
    table = regions.table(where, empty, var_names=learned.genes)
    table.X = None
    table.var["train_mean"] = np.asarray(learned.config["gene_mean"], dtype=np.float32)
    table.obs[keys.FOLD] = of_fold
    return table


def check_image(sdata: SpatialData, image_key: str) -> None:
    """Refuse a slide without the picture.

    Raises
    ------
    MissingError
        It is not there; the message lists the images that are.
    """
    if image_key not in sdata.images:
        there = ", ".join(sdata.images) or "none"
        raise MissingError(
            f"no image {image_key!r} to predict from: the slide has no H&E",
            where=sdata.path,
            fix=f"add it (stainseq convert, stainseq align), or name one by --image-key; images there: {there}",
        )


def _measured(learned: Model, sdata: SpatialData, name: str) -> str:
    """The table of counts to enhance from."""
    if name not in sdata.tables:
        raise MissingError(
            f"no table {name!r} to enhance",
            where=sdata.path,
            fix="count first (stainseq aggregate), or --mode infer",
        )
    if not set(learned.genes) & set(sdata.tables[name].var_names):
        raise InputError(
            f"nothing to enhance: none of the model's {len(learned.genes)} genes is in {name!r}",
            where=sdata.path,
            fix=f"name genes alike (the model's are {', '.join(learned.genes[:3])} ...), or --mode infer",
        )
    return name


def region_for(model: Model, sdata: SpatialData) -> str:
    """Regions that a model predicts when none are named: those it learned from, else a grid of their kind.

    Parameters
    ----------
    model
        The model.
    sdata
        The slide.

    Returns
    -------
    str
        The model's own region where the slide has it, or where it can be laid (superpixels); else "grid".
    """
    from .. import regions

    own = str(model.config["region"])
    return own if own in regions.names(sdata) or own == keys.SUPERPIXELS else keys.GRID


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
