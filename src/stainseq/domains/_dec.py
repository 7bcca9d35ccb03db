"""SpaGCN's model: one linear graph layer trained by deep embedded clustering, with its gradients written out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

ALPHA = 0.2  # of the Student kernel
REFRESH = 3  # epochs between new targets
_TINY, _FLOOR = 1e-8, 1e-6
_BLOCK_ROWS = 8192
_T = TypeVar("_T")


class Model(NamedTuple):
    """Weights of the layer z = (A X) W + b and the cluster centres.

    Parameters
    ----------
    W, b
        float64 [d, d], [d].
    centres
        float64 [K, d].
    """

    W: np.ndarray
    b: np.ndarray
    centres: np.ndarray


def initial_weights(d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """W and b uniform in +-1/sqrt(d).

    Parameters
    ----------
    d
        Width.
    seed
        Of the draw.
    """
    rng = np.random.default_rng([seed, 3])
    bound = 1 / np.sqrt(d)
    return rng.uniform(-bound, bound, (d, d)), rng.uniform(-bound, bound, d)


def assignment(z: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Soft assignment q [n, K] and the kernel u it is made of.

    Parameters
    ----------
    z
        [n, d] embedding.
    centres
        [K, d].
    """
    origin = centres.mean(axis=0)  # near the data: keeps the expanded squares accurate
    z, centres = z - origin, centres - origin
    squares = (z * z).sum(axis=1)[:, None] - 2 * (z @ centres.T) + (centres * centres).sum(axis=1)
    u = 1 / (1 + np.maximum(squares, 0) / ALPHA + _TINY)
    s = u ** (1 + ALPHA) / 2
    return s / s.sum(axis=1, keepdims=True), u


def train(
    ax: np.ndarray, start: Model, labels: np.ndarray, *, epochs: int, lr: float, tol: float, move_centres: bool = False
) -> tuple[Model, np.ndarray, np.ndarray, int]:
    """Sharpen the clusters: Adam on KL(p || q), p refreshed every third epoch.

    Rows go through in blocks whose sums are added in order, so that memory is bounded and the result exact.

    Parameters
    ----------
    ax
        float64 [n, d], the smoothed principal components A X.
    start
        Initial weights and centres.
    labels
        int [n] initial clusters, for the stopping rule.
    epochs
        At most.
    lr
        Learning rate.
    tol
        Stop when fewer than this share of rows changed cluster in the epoch after a refresh.
    move_centres
        Train the centres too. SpaGCN 1.2.7 does not: its optimiser is made before the centres are.

    Returns
    -------
    model, labels, q, epochs
        Trained model, argmax and soft assignment under it, epochs made.
    """
    params = [start.W.copy(), start.b.copy(), start.centres.copy()]
    first, second = [np.zeros_like(x) for x in params], [np.zeros_like(x) for x in params]
    n, last, made = len(ax), labels, 0
    q = np.empty((n, len(start.centres)))
    target = q
    for epoch in range(epochs):
        if epoch % REFRESH == 0:
            target = _target(_forward(ax, Model(*params), q))
        gradients = _step(ax, Model(*params), target, q)[: 3 if move_centres else 2]
        for x, g, m, v in zip(params, gradients, first, second, strict=False):
            m *= 0.9
            m += 0.1 * g
            v *= 0.999
            v += 0.001 * g * g
            x -= lr * (m / (1 - 0.9 ** (epoch + 1))) / (np.sqrt(v / (1 - 0.999 ** (epoch + 1))) + 1e-8)
        made = epoch + 1
        now = q.argmax(axis=1)
        changed = float((now != last).mean())
        last = now
        if epoch > 0 and (epoch - 1) % REFRESH == 0 and changed < tol:
            break
    model = Model(*params)
    _forward(ax, model, q)
    return model, q.argmax(axis=1), q, made


def embed(ax: np.ndarray, model: Model) -> np.ndarray:
    """Embedding z, float64 [n, d].

    Parameters
    ----------
    ax
        [n, d].
    model
        Trained.
    """
    return ax @ model.W + model.b


def predict(ax: np.ndarray, model: Model) -> np.ndarray:
    """Soft assignment q of every row, float64 [n, K].

    Parameters
    ----------
    ax
        [n, d].
    model
        Trained.
    """
    return _forward(ax, model, np.empty((len(ax), len(model.centres))))


def _forward(ax: np.ndarray, model: Model, q: np.ndarray) -> np.ndarray:
    def work(rows: slice) -> None:
        q[rows] = assignment(ax[rows] @ model.W + model.b, model.centres)[0]

    for _ in _each_block(work, len(ax)):
        pass
    return q


def _target(q: np.ndarray) -> np.ndarray:
    p = q * q / q.sum(axis=0)
    p /= p.sum(axis=1, keepdims=True)
    return p


def _step(ax: np.ndarray, model: Model, target: np.ndarray, q: np.ndarray) -> list[np.ndarray]:
    """Gradients of the loss by W, b and centres; fills q with the assignment of this epoch."""

    def work(rows: slice) -> list[np.ndarray]:
        z = ax[rows] @ model.W + model.b
        soft, u = assignment(z, model.centres)
        q[rows] = soft
        by_q = -target[rows] / (soft + _FLOOR) / len(ax)
        by_distance = -(1 + ALPHA) / ALPHA * u * soft * (by_q - (by_q * soft).sum(axis=1, keepdims=True))
        pull = by_distance.sum(axis=1)[:, None] * z - by_distance @ model.centres
        push = by_distance.sum(axis=0)[:, None] * model.centres - by_distance.T @ z
        return [2 * ax[rows].T @ pull, 2 * pull.sum(axis=0), 2 * push]

    total = [np.zeros_like(x) for x in model]
    for part in _each_block(work, len(ax)):
        for sum_, x in zip(total, part, strict=True):
            sum_ += x
    return total


def _each_block(work: Callable[[slice], _T], n: int) -> Iterator[_T]:
    """Results of all blocks of rows in order, so that sums over them do not depend on the threads that made them."""
    blocks = [slice(start, min(n, start + _BLOCK_ROWS)) for start in range(0, n, _BLOCK_ROWS)]
    if len(blocks) < 3:
        yield from map(work, blocks)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        yield from pool.map(work, blocks)
