"""For superpixels, bins and cells: one network for all genes, trained in seconds; also Pixel2Gene's own recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.splits import block_labels, group_folds, row_hash
from ..core.values import in_range
from ..errors import InputError
from . import _ranks, _trunk
from ._features import blocks, by_rows, open_state
from ._inputs import Rows, canonical_order, check_counts, check_fit, find_line
from ._mlp import limit_threads, pick_device
from ._state import State, pack

NEEDS = ("torch",)
SEPARABLE = False
"""All genes share the trunk."""

RECIPES = ("fast", "reference")
WIDTH, LAYERS, SLOPE, FLOOR = 256, 4, 0.1, 0.01
_RATES = ((10_000, 1e-4), (500_000, 1e-5))
_LINE_ROWS = 20_000
_HELD = 10
"""One in so many blocks is kept from training, to stop by."""


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
    recipe: str = "fast",
    loss: str = "poisson",
    target: float = 1e4,
    epochs: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    width: int = 256,
    layers: int = 3,
    dropout: float = 0.3,
    feature_dropout: float = 0.2,
    decay: float = 0.05,
    patience: int = 5,
    given_order: bool = False,
    threads: int = 1,
    device: str | None = None,
) -> State:
    """Train one network for all genes on cached features.

    "fast" (default): standardised features, layers with LeakyReLU(0.1), large batches, one cycle of the step size
    (Smith and Topin 2019, arXiv:1708.07120), and the weights of the epoch that was best on spatial blocks kept from
    training. Features may be float16 or a memory map: they are read in batches, never copied whole.

    "reference": Pixel2Gene's network and recipe as published, for numbers that can be compared with its own: four
    layers of 256 with LeakyReLU(0.1), an output of ELU(0.01) + 0.01, targets scaled to [0, 1] per gene by the smallest
    and largest training value, MSE, Adam, no validation; on held-out tissue it is best long before its 600 epochs end
    (bioRxiv 10.64898/2026.02.21.707168; its ancestor iStar, Nature Biotechnology 2024).

    Started by torchrun, the processes share every batch and end with the same model as one process does, up to the
    last digits.

    Parameters
    ----------
    X
        [n, d] features of any float type.
    Y
        float32 [n, genes] targets; the publication's are raw counts of superpixels.
    counts, library
        [n, genes] raw counts and [n] total counts over all genes, for count losses; without them "mse" is taken.
    coordinates, slides, groups, folds
        Where the blocks lie that stopping is decided on: a tenth of them. Without coordinates a tenth of the groups, of
        the rows where there is one group; of given folds the first.
    weights
        [n] of the rows; "fast" only.
    seed
        Of starts, batches and dropout.
    recipe
        "fast" or "reference".
    loss
        "poisson" (default: superpixels hold few counts, whose noise it knows), "nb" (with a dispersion per gene) or
        "mse" on standardised `Y`. Of count losses the exposure is the library size over `target`; predictions are
        log1p of the rate, brought to `Y` by a line per gene.
    target
        What `Y` was scaled to, for count losses.
    epochs
        Length of the cycle; None is 25 for "fast", the publication's 600 for "reference".
    lr
        Largest step; None is 2e-3 for "fast", and for "reference" by the publication's table: 1e-4 below 10,000 rows,
        1e-5 below 500,000, else 1e-6.
    batch
        Rows a step; None is n / 32 between 32 and 4096 for "fast", min(128, n // 16) for "reference".
    width, layers, dropout, feature_dropout, decay
        Of "fast": units and number of layers, shares of units and of features dropped, weight decay of AdamW. Features
        of an encoder repeat each other: a network that misses some at every step relies on none.
    patience
        Of "fast": epochs without a better loss, once the step is falling, after which training stops.
    given_order
        Of "reference": shuffle the rows as they come, as the original does, and not from an order of their own.
    threads
        Of "fast", on the CPU. 1 gives the same bits on every machine; more are faster and give other last digits.
    device
        Torch device; None is `settings.device` for "fast", the CPU for "reference", where the bits are the original's.

    Returns
    -------
    "weight_<i>", "bias_<i>" of the layers and "spread" [genes]. "fast": "mean", "gain" [d], "centre", "scale", "line"
    [2, genes]; the spread is that of residuals on the rows kept from training, NaN where rows were too few.
    "reference": "low", "span" [genes]; the spread is that of the training rows, too small where it over-fits.

    Raises
    ------
    InputError
        See `_inputs.check_fit`; an unknown recipe or loss; counts that do not fit.
    """
    if recipe not in RECIPES:
        raise InputError(f"no recipe {recipe!r}", fix=f"one of: {', '.join(RECIPES)}")
    _check_steps(epochs, lr, batch)
    if recipe == "fast":
        given: dict[str, Any] = {
            "counts": counts,
            "library": library,
            "coordinates": coordinates,
            "slides": slides,
            "groups": groups,
        }
        own: dict[str, Any] = {
            "loss": loss,
            "target": target,
            "epochs": epochs,
            "lr": lr,
            "batch": batch,
            "width": width,
        }
        own |= {
            "layers": layers,
            "dropout": dropout,
            "feature_dropout": feature_dropout,
            "decay": decay,
            "patience": patience,
            "threads": threads,
        }
        return fit_parts(X, Y, None, folds=folds, weights=weights, seed=seed, device=device, **given, **own)[0]
    import torch

    rows = check_fit(
        X, Y, coordinates=coordinates, slides=slides, groups=groups, folds=folds, weights=weights, seed=seed
    )
    order = np.arange(len(rows.X)) if given_order else canonical_order(rows.X, rows.Y)
    low, high = rows.Y.min(axis=0), rows.Y.max(axis=0)
    span = high - low
    scaled = (rows.Y - low) / np.where(span > 0, span, 1)
    rate, epochs = lr or rate_of(len(order)), 600 if epochs is None else epochs
    size = batch or max(1, min(128, len(order) // 16))
    x, y = (
        torch.from_numpy(np.ascontiguousarray(v[order], dtype=np.float32)).to(device or "cpu") for v in (rows.X, scaled)
    )
    # Layers this small gain nothing from threads, and with one the bits are the same on every machine.
    with limit_threads(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network(x.shape[1], y.shape[1]).to(x.device)
        train(net, x, y, epochs=epochs, lr=rate, batch=size)
    arrays: dict[str, np.ndarray] = {}
    for i, layer in enumerate(m for m in net if isinstance(m, torch.nn.Linear)):
        arrays[f"weight_{i}"] = layer.weight.detach().cpu().numpy()
        arrays[f"bias_{i}"] = layer.bias.detach().cpu().numpy()
    arrays |= {"low": low, "span": span}
    off = rows.Y - _outputs(arrays, rows.X)
    settings = {"recipe": recipe, "n_features": rows.X.shape[1], "epochs": epochs, "lr": rate, "batch": size}
    return pack(
        "pixel2gene",
        settings,
        spread=np.sqrt((off**2).mean(axis=0)) if len(off) > 1 else np.full(len(low), np.nan),
        **arrays,
    )


def _check_steps(epochs: int | None, lr: float | None, batch: int | None) -> None:
    given = {"epochs": (epochs, 1, np.inf), "lr": (lr, 1e-12, np.inf), "batch": (batch, 1, np.inf)}
    in_range("pixel2gene", **{k: (v, low, high) for k, (v, low, high) in given.items() if v is not None})


def fit_parts(
    X: Any,
    Y: np.ndarray,
    parts: list[np.ndarray] | None,
    *,
    counts: Any = None,
    library: np.ndarray | None = None,
    coordinates: np.ndarray | None = None,
    slides: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    seed: int = 0,
    loss: str = "poisson",
    target: float = 1e4,
    epochs: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    width: int = 256,
    layers: int = 3,
    dropout: float = 0.3,
    feature_dropout: float = 0.2,
    decay: float = 0.05,
    patience: int = 5,
    threads: int = 1,
    device: str | None = None,
) -> list[State]:
    """Fit the fast recipe on several parts of the rows at once: every batch is read once, for all of them.

    Parameters
    ----------
    X, Y
        See `fit`; all rows.
    parts
        Row numbers of each part (the training part of every fold); None is one part of all rows. Targets and counts of
        other rows change nothing in a part's state.
    counts, library, coordinates, slides, groups, folds, weights, seed
        As in `fit`, for all rows.
    loss, target, epochs, lr, batch, width, layers, dropout, feature_dropout, decay, patience, threads, device
        See `fit`.

    Returns
    -------
    A state for each part, as from `fit`.
    """
    _check_steps(epochs, lr, batch)
    in_range(
        "pixel2gene", target=(target, 1e-9, np.inf), width=(width, 1, np.inf), layers=(layers, 1, np.inf),
        dropout=(dropout, 0, 0.99), feature_dropout=(feature_dropout, 0, 0.99), decay=(decay, 0, np.inf),
        patience=(patience, 1, np.inf), threads=(threads, 1, np.inf),
    )  # fmt: skip
    rows = check_fit(
        X,
        Y,
        coordinates=coordinates,
        slides=slides,
        groups=groups,
        folds=folds,
        weights=weights,
        seed=seed,
        stream=True,
    )
    n = len(rows.Y)
    if loss not in _trunk.LOSSES:
        raise InputError(f"no loss named {loss!r}", fix=f"one of: {', '.join(_trunk.LOSSES)}")
    if loss != "mse" and (counts is None or library is None):
        loss = "mse"
    raw, sizes = check_counts(counts, library, rows.Y.shape, where="pixel2gene") if loss != "mse" else (None, None)
    # In pieces: hashing makes float64 of what it is given.
    key = np.concatenate([row_hash(rows.X[b]) for b in blocks(n, 2048)])
    # Not by targets: those of other parts' rows must not decide who shares a batch.
    tie = row_hash(rows.Y) if coordinates is None else row_hash(np.asarray(coordinates))
    order = np.lexsort((tie, key))
    inside = np.zeros((1, n) if parts is None else (len(parts), n), dtype=bool)
    for k, part in enumerate([np.arange(n)] if parts is None else parts):
        inside[k, part] = True
    held = inside & _held_out(n, key, coordinates, slides, groups, folds, seed)
    # A part that would keep nothing to learn from keeps nothing to stop by.
    held[held.sum(axis=1) == inside.sum(axis=1)] = False
    offset = np.zeros(n, np.float32) if sizes is None else np.log(np.maximum(sizes, 1e-3) / target).astype(np.float32)
    data = _trunk.Data(
        rows.X,
        rows.Y if raw is None else raw,
        offset,
        order,
        np.where(inside & ~held, rows.weights, 0).astype(np.float32),
        held,
    )
    size = batch or int(np.clip(inside.sum(axis=1).max() // 32, 32, 4096))
    length, step = 25 if epochs is None else epochs, lr or 2e-3
    plan = _trunk.Plan(loss, width, layers, dropout, feature_dropout, step, decay, size, length, patience, seed)
    ranks, where = _ranks.join(pick_device(device))
    with limit_threads(threads):
        m = _trunk.moments(data, loss)
        networks = _trunk.Networks(plan, m, where)
        chosen = _trunk.train(networks, data, ranks)
    values = {k: v.detach().cpu().numpy() for k, v in networks.values.items() if k != "dispersion"}
    if not all(np.isfinite(v).all() for v in values.values()):
        raise InputError("training ran away: weights are not finite", where="pixel2gene", fix=f"lower lr ({step:g})")
    told = {"recipe": "fast", "loss": loss, "layers": layers, "epochs": length, "lr": step, "batch": size}
    states = []
    for k in range(len(inside)):
        own = {name: v[k] for name, v in values.items()}
        own |= {"mean": m.mean[k], "gain": m.gain[k], "centre": m.centre[k], "scale": m.scale[k]}
        config = {**told, "n_features": int(rows.X.shape[1]), "best_epoch": int(chosen[k])}
        states.append(_finished(own, config, rows, order[inside[k, order]], np.flatnonzero(held[k])))
    return states


def _held_out(n: int, key: np.ndarray, coordinates: Any, slides: Any, groups: Any, folds: Any, seed: int) -> np.ndarray:
    """Rows that stopping is decided on, bool [n]: a tenth of the spatial blocks, groups or rows."""
    if folds is not None:
        return np.asarray(np.unique(np.asarray(folds), return_inverse=True)[1].ravel() == 0)
    if n < 4:
        return np.zeros(n, dtype=bool)
    labels: Any = key if groups is None or len(np.unique(groups)) < 2 else np.asarray(groups)
    if coordinates is not None:
        extent = np.ptp(np.asarray(coordinates, dtype=np.float64), axis=0)
        side = float(np.sqrt(max(extent[0], 1e-9) * max(extent[1], 1e-9) / (5 * _HELD)))
        squares = block_labels(coordinates, block_um=max(side, extent.max() / 100, 1e-9), slides=slides)
        labels = squares if squares.max() > 0 else labels
    dealt = group_folds(labels, n_folds=_HELD, seed=seed)
    return np.asarray((dealt == 0) & (dealt.max() > 0))


def _finished(
    arrays: dict[str, np.ndarray], settings: dict[str, Any], rows: Rows, part: np.ndarray, held: np.ndarray
) -> State:
    """The state with its line, from rows of the part, and its spread, from the rows kept from training."""
    genes = rows.Y.shape[1]

    def guess(at: np.ndarray) -> np.ndarray:
        pieces = [at[b] for b in blocks(len(at))]
        return np.concatenate([_rates(arrays, settings, np.asarray(rows.X[b], dtype=np.float32)) for b in pieces])

    line = np.stack([np.ones(genes), np.zeros(genes)]).astype(np.float32)
    if settings["loss"] != "mse":
        # More rows move it in the third digit, and those kept from training are too few for rare genes.
        some = part[:: -(-len(part) // _LINE_ROWS)]
        line = find_line(guess(some), rows.Y[some], rows.weights[some] + 1e-12)
    spread = np.full(genes, np.nan, dtype=np.float32)
    if len(held) > 1:
        off = rows.Y[held] - (guess(held) * line[0] + line[1])
        spread = np.sqrt(np.average(off**2, axis=0, weights=rows.weights[held] + 1e-12))
    return pack("pixel2gene", settings, line=line, spread=spread.astype(np.float32), **arrays)


def predict(
    state: State, X: np.ndarray, *, coordinates: np.ndarray | None = None, slides: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted mean, in the unit of `Y`, and the spread of residuals.

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
    settings, X = open_state(state, "pixel2gene", X, coordinates, slides)
    if settings.get("recipe", "reference") == "reference":
        return by_rows(X, state["spread"], lambda x: _outputs(state, x))
    return by_rows(X, state["spread"], lambda x: _rates(state, settings, x) * state["line"][0] + state["line"][1])


def _rates(state: State, settings: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """The fast network in numpy: log1p of rates, or targets (loss "mse"); float32 [n, genes]."""
    h = np.clip((x - state["mean"]) * state["gain"], -_trunk.CLIP, _trunk.CLIP)
    for i in range(settings["layers"]):
        h = h @ state[f"weight_{i}"] + state[f"bias_{i}"]
        h = np.where(h > 0, h, _trunk.SLOPE * h)
    out = h @ state[f"weight_{settings['layers']}"] + state[f"bias_{settings['layers']}"]
    if settings["loss"] == "mse":
        return np.asarray(out * state["scale"] + state["centre"], dtype=np.float32)
    return np.asarray(np.log1p(np.exp(np.clip(out, -30, 15))), dtype=np.float32)


def _outputs(state: State, x: np.ndarray) -> np.ndarray:
    """The network in numpy, in the unit of the targets: float32 [n, genes]."""
    for i in range(LAYERS):
        x = x @ state[f"weight_{i}"].T + state[f"bias_{i}"]
        x = np.where(x > 0, x, SLOPE * x)
    x = x @ state[f"weight_{LAYERS}"].T + state[f"bias_{LAYERS}"]
    x = np.where(x > 0, x, FLOOR * np.expm1(np.minimum(x, 0))) + FLOOR
    return np.asarray(x * state["span"] + state["low"], dtype=np.float32)


def network(features: int, genes: int) -> Any:
    """The untrained network; its output still lacks the + 0.01."""
    from torch import nn

    layers: list[Any] = []
    for width in (features, *[WIDTH] * (LAYERS - 1)):
        layers += [nn.Linear(width, WIDTH), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, genes), nn.ELU(alpha=FLOOR))


def rate_of(n: int) -> float:
    """Step of Adam that the publication's table gives for n rows."""
    return next((r for limit, r in _RATES if n < limit), 1e-6)


def train(
    net: Any,
    x: Any,
    y: Any,
    *,
    epochs: int,
    lr: float,
    batch: int,
    max_steps: int | None = None,
    after: Callable[[int], None] | None = None,
) -> None:
    """Adam on the mean squared error, in the order that torch's DataLoader would give.

    A loader draws two numbers from the global generator at the start of an epoch; the second seeds the permutation.
    Slicing tensors by it gives the same batches without collating them row by row, which takes most of the original's
    time. `after` is told the number of every epoch that is done.
    """
    import torch
    from torch.nn.functional import mse_loss

    optimiser = torch.optim.Adam(net.parameters(), lr=lr)
    steps = 0
    for epoch in range(epochs):
        torch.empty((), dtype=torch.int64).random_()
        generator = torch.Generator()
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for start in range(0, len(x), batch):
            rows = order[start : start + batch]
            optimiser.zero_grad()
            mse_loss(net(x[rows]) + FLOOR, y[rows]).backward()
            optimiser.step()
            steps += 1
            if steps == max_steps:
                return
        if after is not None:
            after(epoch + 1)
