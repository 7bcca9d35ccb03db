"""Pixel2Gene's network as published, for numbers that can be compared with its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._features import by_rows, open_state
from ._inputs import canonical_order, check_fit
from ._mlp import one_thread
from ._state import State, pack

SEPARABLE = False
"""All genes share the trunk."""

WIDTH, LAYERS, SLOPE, FLOOR = 256, 4, 0.1, 0.01
_RATES = ((10_000, 1e-4), (500_000, 1e-5))


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
    epochs: int = 600,
    lr: float | None = None,
    batch: int | None = None,
    given_order: bool = False,
    device: str | None = None,
) -> State:
    """Train the reference network: four layers of 256 with LeakyReLU(0.1), an output of ELU(0.01) + 0.01, MSE, Adam.

    Targets are scaled to [0, 1] per gene by the smallest and largest training value; there is no validation and no
    early stopping, which is why this head is here to compare with and not to use: on held-out tissue it is best after
    a third of its epochs. (bioRxiv 10.64898/2026.02.21.707168; its ancestor iStar, Nature Biotechnology 2024.)

    Parameters
    ----------
    X
        float32 [n, d] features, taken as they are.
    Y
        float32 [n, genes]; the publication's are raw counts of superpixels.
    counts, library, coordinates, slides, groups, folds, weights
        Not used.
    seed
        Of starts and batches.
    epochs
        The publication's 600.
    lr
        Step of Adam; None by the publication's table: 1e-4 below 10,000 rows, 1e-5 below 500,000, else 1e-6.
    batch
        Rows a step; None is min(128, n // 16).
    given_order
        Shuffle the rows as they come, as the original does, and not from an order of their own.
    device
        Torch device; None is the CPU, where the bits are the original's.

    Returns
    -------
    "weight_<i>", "bias_<i>" of the five layers, "low" and "span" [genes], "spread" [genes]: standard deviation of the
    residuals on the training rows themselves, for nothing is held out; too small where it over-fits, NaN for one row.
    """
    import torch

    rows = check_fit(
        X, Y, coordinates=coordinates, slides=slides, groups=groups, folds=folds, weights=weights, seed=seed
    )
    order = np.arange(len(rows.X)) if given_order else canonical_order(rows.X, rows.Y)
    low, high = rows.Y.min(axis=0), rows.Y.max(axis=0)
    span = high - low
    scaled = (rows.Y - low) / np.where(span > 0, span, 1)
    rate = lr or next((r for limit, r in _RATES if len(order) < limit), 1e-6)
    size = batch or max(1, min(128, len(order) // 16))
    x, y = (
        torch.from_numpy(np.ascontiguousarray(v[order], dtype=np.float32)).to(device or "cpu") for v in (rows.X, scaled)
    )
    # Layers this small gain nothing from threads, and with one the bits are the same on every machine.
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network(x.shape[1], y.shape[1]).to(x.device)
        train(net, x, y, epochs=epochs, lr=rate, batch=size)
    arrays: dict[str, np.ndarray] = {}
    for i, layer in enumerate(m for m in net if isinstance(m, torch.nn.Linear)):
        arrays[f"weight_{i}"] = layer.weight.detach().cpu().numpy()
        arrays[f"bias_{i}"] = layer.bias.detach().cpu().numpy()
    arrays |= {"low": low, "span": span}
    off = rows.Y - _outputs(arrays, rows.X)
    settings = {"n_features": rows.X.shape[1], "epochs": epochs, "lr": rate, "batch": size}
    return pack(
        "pixel2gene",
        settings,
        spread=np.sqrt((off**2).mean(axis=0)) if len(off) > 1 else np.full(len(low), np.nan),
        **arrays,
    )


def predict(
    state: State, X: np.ndarray, *, coordinates: np.ndarray | None = None, slides: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted mean, in the unit of `Y`, and the spread of training residuals.

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
    _, X = open_state(state, "pixel2gene", X, coordinates, slides)
    return by_rows(X, state["spread"], lambda x: _outputs(state, x))


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


def train(net: Any, x: Any, y: Any, *, epochs: int, lr: float, batch: int, max_steps: int | None = None) -> None:
    """Adam on the mean squared error, in the order that torch's DataLoader would give.

    A loader draws two numbers from the global generator at the start of an epoch; the second seeds the permutation.
    Slicing tensors by it gives the same batches without collating them row by row, which takes most of the original's
    time.
    """
    import torch
    from torch.nn.functional import mse_loss

    optimiser = torch.optim.Adam(net.parameters(), lr=lr)
    steps = 0
    for _ in range(epochs):
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
