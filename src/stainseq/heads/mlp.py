"""Ensemble of small neural networks on principal components, with spatial context and count losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import eigh

from ..errors import InputError
from . import _mlp
from ._features import Scaler, blocks, check_context, fit_scaler, with_context
from ._inputs import Rows, canonical_order, check_counts, check_fit, check_predict, find_line
from ._state import State, config, pack

NEEDS = ("torch",)
SEPARABLE = False

_PCA_ROWS = 20_000  # rows that components are computed from: more change no component that matters


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
    loss: str = "mse",
    target: float = 1e4,
    context_um: float | None = None,
    context_k: int | None = None,
    per_slide: bool = False,
    pca: int = 256,
    members: int = 8,
    hidden: int = 256,
    dropout: float = 0.3,
    lr: float = 5e-4,
    decay: float = 0.1,
    batch: int | None = None,
    max_epochs: int = 300,
    patience: int = 20,
    device: str | None = None,
) -> State:
    """Find the number of epochs on held-out groups, then train the ensemble on all rows.

    Inputs are principal components of the standardised features, with their mean over the neighbouring rows beside them
    if context is asked for. Members are two GELU layers with a linear path around them; they differ in their starts and
    batches and are trained side by side, on one thread: the same seed gives the same bits whatever the machine's
    threads.

    Parameters
    ----------
    X
        float32 [n, d] features.
    Y
        float32 [n, genes] normalised targets.
    counts, library
        [n, genes] raw counts and [n] total counts over all genes; only for count losses.
    coordinates, slides
        [n, 2] um and [n]: for context.
    groups, folds
        What is held out together when the number of epochs is found; see the ridge head.
    weights
        [n] of the rows.
    seed
        Of starts, batches and dropout.
    loss
        "mse" on standardised `Y` (default: every gene weighs the same, and it is the fastest), or "poisson" or "nb"
        (negative binomial with a dispersion per gene) on counts with the library size as offset. Predictions are in the
        unit of `Y` either way: log1p(rate x `target`), then a line per gene fitted on held-out rows.
    target
        What `Y` was scaled to, for count losses.
    context_um, context_k, per_slide
        As in the ridge head.
    pca
        Components: enough for what encoders give on tissue, and 20 times cheaper than the features.
    members
        Networks averaged. Beyond 8 the mean hardly moves.
    hidden, dropout, lr, decay
        Width of layers, share of units dropped, step and weight decay of AdamW. Small and strongly regularised:
        training sets are hundreds to thousands of spots.
    batch
        Rows a step; None is rows / 16 between 64 and 1024.
    max_epochs, patience
        Training stops when the held-out loss has not fallen for `patience` epochs.
    device
        Torch device; None is `settings.device`. Another kind of device gives other last digits.

    Returns
    -------
    Scaler, components and weights of all members, "line" [2, genes], "centre", "scale" and "residual" [genes] (standard
    deviation of held-out residuals, NaN where rows were too few to split).

    Raises
    ------
    InputError
        See `_inputs.check_fit`; a count loss without counts or library sizes; context without coordinates.
    """
    context = check_context(context_um, context_k)
    options = {"loss": loss, "target": target, "per_slide": per_slide, **context}
    if loss not in _mlp.LOSSES:
        raise InputError(f"no loss named {loss!r}", fix=f"one of: {', '.join(_mlp.LOSSES)}")
    rows = check_fit(
        X, Y, coordinates=coordinates, slides=slides, groups=groups, folds=folds, weights=weights, seed=seed
    )
    raw, sizes = None, None
    if loss != "mse":
        sparse_counts, sizes = check_counts(counts, library, rows.Y.shape, where="mlp")
        raw = sparse_counts.toarray()
    order = canonical_order(rows.X, rows.Y)
    with _mlp.limit_threads():
        features = with_context(rows.X, {"per_slide": per_slide}, None, slides)
        scaler = fit_scaler(features[order], rows.weights[order])
        z = _scaled(features, scaler)
        components = _components(z[order], pca)
        x = with_context(z @ components, context, coordinates, slides)[order]
        rows = Rows(x, rows.Y[order], rows.weights[order], None if rows.folds is None else rows.folds[order])
        data, centre, scale = _data(
            loss, rows, None if raw is None else raw[order], None if sizes is None else sizes[order]
        )
        plan = _mlp.Plan(
            loss, hidden, dropout, lr, decay, batch or int(np.clip(len(x) // 16, 64, 1024)), max_epochs, patience, seed
        )
        where = _mlp.pick_device(device)
        line = np.stack([np.ones(len(centre)), np.zeros(len(centre))]).astype(np.float32)
        residual, epochs = np.full(len(centre), np.nan, dtype=np.float32), 20
        if rows.folds is not None:
            epochs, outputs = _mlp.find_epochs(plan, data, rows.folds, where)
            guess = _unit(outputs, loss, target, centre, scale)
            line = line if loss == "mse" else find_line(guess, rows.Y, rows.weights)
            off = rows.Y - (guess * line[0] + line[1])
            residual = np.sqrt(rows.weights @ off**2 / rows.weights.sum()).astype(np.float32)
        ensemble = _mlp.train(plan, data, members, epochs, where)
        if rows.folds is None and loss != "mse":
            # No held-out rows to fit a line on: only the level of the training rows is put right.
            guess = _unit(ensemble.predict(data.x), loss, target, centre, scale).mean(axis=0)
            line[1] = centre - rows.weights @ guess / rows.weights.sum()
    kept = {k: v for k, v in ensemble.arrays().items() if k != "dispersion" or loss == "nb"}
    return pack(
        "mlp",
        {"n_features": len(scaler.mean), "epochs": epochs, "hidden": hidden, **options},
        mean=scaler.mean, gain=scaler.gain, components=components, centre=centre, scale=scale, line=line,
        residual=residual, **kept,
    )  # fmt: skip


def predict(
    state: State, X: np.ndarray, *, coordinates: np.ndarray | None = None, slides: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the members, and the spread of members and residuals together.

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
    options = config(state, "mlp")
    context = {k: options[k] for k in ("context_um", "context_k")}
    X = with_context(check_predict(X, options["n_features"]), {"per_slide": options["per_slide"]}, None, slides)
    with _mlp.limit_threads():
        scaler = Scaler(state["mean"], state["gain"])
        low = np.concatenate([scaler(X[b]) @ state["components"] for b in blocks(len(X))] or [X[:, :0]])
        x = with_context(low, context, coordinates, slides) if len(X) else np.zeros((0, len(state["w1"][0])))
        mean = np.empty((len(X), len(state["centre"])), dtype=np.float32)
        spread = np.empty_like(mean)
        for b in blocks(len(X), 4096):
            each = _unit(_forward(state, x[b]), options["loss"], options["target"], state["centre"], state["scale"])
            each = each * state["line"][0] + state["line"][1]
            mean[b] = each.mean(axis=0)
            spread[b] = np.sqrt(each.var(axis=0) + state["residual"] ** 2)
    return mean, spread


def _forward(state: State, x: np.ndarray) -> np.ndarray:
    """Outputs of all members, [members, n, genes], in torch for its error function."""
    import torch
    from torch.nn.functional import gelu

    v = {k: torch.from_numpy(np.ascontiguousarray(state[k])) for k in ("w1", "b1", "w2", "b2", "w3", "b3", "skip")}
    with torch.no_grad():
        inputs = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).expand(len(v["w1"]), -1, -1)
        h = gelu(torch.baddbmm(v["b1"], inputs, v["w1"]))
        h = gelu(torch.baddbmm(v["b2"], h, v["w2"]))
        return (torch.baddbmm(v["b3"], h, v["w3"]) + torch.bmm(inputs, v["skip"])).numpy()


def _scaled(features: np.ndarray, scaler: Scaler) -> np.ndarray:
    return np.concatenate([scaler(features[b]) for b in blocks(len(features))])


def _components(z: np.ndarray, pca: int) -> np.ndarray:
    """Principal directions, scaled so that the components' mean variance is 1: float32 [d, k]."""
    step = -(-len(z) // _PCA_ROWS)
    sample = z[::step].astype(np.float64)
    k = min(pca, *sample.shape)
    centred = sample - sample.mean(axis=0)
    wide = centred.shape[1] > centred.shape[0]
    gram = centred @ centred.T if wide else centred.T @ centred
    size = len(gram)
    values, vectors = eigh(gram, subset_by_index=[size - k, size - 1], check_finite=False)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    directions = centred.T @ vectors / np.sqrt(np.maximum(values, 1e-12)) if wide else vectors
    # The sign of an eigenvector is the library's whim.
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(k)])
    return (directions / np.sqrt(max(values.mean() / len(sample), 1e-12))).astype(np.float32)


def _data(
    loss: str, rows: Rows, raw: np.ndarray | None, sizes: np.ndarray | None
) -> tuple[_mlp.Data, np.ndarray, np.ndarray]:
    """Training data in the loss's unit, and the centre and scale [genes] that lead back to `Y`."""
    w = rows.weights / rows.weights.sum()
    centre = (w @ rows.Y.astype(np.float64)).astype(np.float32)
    sd = np.sqrt(w @ (rows.Y - centre).astype(np.float64) ** 2)
    scale = np.where(sd > 1e-6, sd, 1).astype(np.float32)
    n, g = rows.Y.shape
    weights = rows.weights.astype(np.float32)
    if raw is None or sizes is None:
        zero = np.zeros(g, dtype=np.float32)
        y = (rows.Y - centre) / scale
        data = _mlp.Data(rows.X, y, np.zeros(n, np.float32), zero, np.ones(g, np.float32), weights)
        return data, centre, scale
    share = (raw.sum(axis=0, dtype=np.float64) + 0.5) / (sizes.sum() + 0.5 * g)
    level = np.maximum(raw.mean(axis=0), 0.1)
    # Poisson errors grow with the mean: without this the few most abundant genes would be all that is learned.
    per_gene = (1 / level if loss == "poisson" else np.ones(g)).astype(np.float32)
    offset = np.log(np.maximum(sizes, 1)).astype(np.float32)
    return _mlp.Data(rows.X, raw, offset, np.log(share).astype(np.float32), per_gene, weights), centre, scale


def _unit(outputs: np.ndarray, loss: str, target: float, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Network outputs in the unit of `Y`."""
    if loss == "mse":
        return outputs * scale + centre
    return np.log1p(np.exp(np.clip(outputs, -30, 0)) * target)
