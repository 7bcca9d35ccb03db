"""How much a method's domains depend on its random seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import clusters
from ..errors import InputError


def stability(method: Any, X: Any, *, n_seeds: int = 5, seed: int = 0, **options: Any) -> tuple[float, np.ndarray]:
    """Mean adjusted Rand index between the domains of different seeds.

    Parameters
    ----------
    method
        A domain method (plug-in module).
    X
        What its ``assign`` takes: counts or log-normalised values.
    n_seeds
        Runs, at least 2.
    seed
        First seed; the others follow it.
    options
        Everything else that ``assign`` takes.

    Returns
    -------
    score, labels
        1 when every seed gives the same domains; int32 [n_seeds, n], domains of each seed.
    """
    if n_seeds < 2:
        raise InputError(f"stability over {n_seeds} seed(s)", where="stability", fix="ask for two or more")
    labels = np.stack([method.assign(X, seed=seed + i, **options)[0] for i in range(n_seeds)])
    return clusters.stability(list(labels)), labels
