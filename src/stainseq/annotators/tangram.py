"""Tangram (Nature Methods 2021): reference types laid over the cells so that expression and density fit.

Mode "clusters" by the closed-form gradient of `core.tangram`, for a million cells in bounded memory; mode "cells" in
bags, as sopa runs it, with torch and on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from ..core import tangram as core
from ..core.values import in_range
from ..errors import InputError

DEFAULT = True


def assign(
    counts: sp.csr_matrix,
    *,
    reference: sp.csr_matrix,
    types: np.ndarray,
    n_types: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    mode: Literal["clusters", "cells"] = "clusters",
    epochs: int = 1000,
    lr: float = 0.1,
    density: Literal["rna", "uniform", "none"] = "rna",
    label: Literal["quantile", "largest"] = "quantile",
    bag: int = 10_000,
    device: str = "auto",
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Map and label.

    Parameters
    ----------
    counts, reference, types, n_types, seed, progress
        See the package.
    mode
        "clusters": one profile a type. "cells": every reference cell, both sides in bags of `bag`.
    epochs, lr
        Steps of Adam and its rate; 1,000 and 0.1 as tangram-sc.
    density
        What share of the mapping each cell shall get: its share of all counts ("rna", as tangram-sc and sopa 1 do), the
        same ("uniform", as sopa 2), or whatever comes out ("none").
    label
        "quantile": each type's column cut at its 5 and 95 % quantiles and scaled to 0 to 1, then the highest, as sopa
        and STHELAR: a type keeps its best cells however rare it is. "largest": the largest proportion.
    bag
        Cells a bag in mode "cells".
    device
        "auto", "cpu", "cuda": of mode "cells".
    """
    in_range("tangram", epochs=(epochs, 1, np.inf), lr=(lr, 1e-9, 10), bag=(bag, 1, np.inf))
    kept = np.flatnonzero(np.asarray(counts.sum(axis=1)).ravel() > 0)
    info: dict[str, Any] = {"mode": mode, "epochs": epochs}
    mapped = np.zeros((counts.shape[0], n_types), dtype=np.float32)
    if mode == "clusters":
        used = counts[kept]
        genes = np.flatnonzero(np.asarray(used.sum(axis=0)).ravel() > 0)
        profiles, shares = _profiles(reference[:, genes], types, n_types)
        mapping, terms = core.map_clusters(
            profiles,
            used[:, genes],
            density=_density(used, density),
            source_density=shares if density == "rna" else None,
            epochs=epochs,
            lr=lr,
            seed=seed,
            progress=progress,
        )
        mapped[kept] = mapping.T
        info |= {"score": terms["gv"], "genes": len(genes)}
    elif mode == "cells":
        mapped[kept] = _cells(
            counts[kept], reference, types, n_types, epochs, lr, density, bag, device, seed, progress, info
        )
    else:
        raise InputError(f"mode={mode!r}", fix='"clusters" or "cells"')
    total = mapped.sum(axis=1, keepdims=True)
    proportions = np.divide(mapped, total, out=np.full_like(mapped, 1 / n_types), where=total > 0)
    chosen = _hard(mapped) if label == "quantile" else mapped.argmax(axis=1)
    return chosen.astype(np.int32), proportions, info


def _profiles(reference: sp.csr_matrix, types: np.ndarray, n_types: int) -> tuple[np.ndarray, np.ndarray]:
    """Summed expression of each type, and its share of the cells."""
    sizes = np.bincount(types, minlength=n_types)
    one_hot = sp.csr_matrix((np.ones(len(types)), (types, np.arange(len(types)))), shape=(n_types, len(types)))
    summed = np.asarray((one_hot @ reference).todense(), dtype=np.float64)
    empty = np.flatnonzero(summed.sum(axis=1) == 0)
    if len(empty):
        raise InputError(f"type {int(empty[0])} has no counts in the shared genes", fix="leave that type out")
    return summed, sizes / sizes.sum()


def _density(counts: sp.csr_matrix, kind: str) -> np.ndarray | None:
    if kind == "none":
        return None
    n = counts.shape[0]
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    return total / total.sum() if kind == "rna" else np.full(n, 1 / n)


def _hard(mapped: np.ndarray) -> np.ndarray:
    """Columns cut at their 5 and 95 % quantiles, scaled to 0 to 1, the highest of a row."""
    low, high = np.quantile(mapped, [0.05, 0.95], axis=0)
    spread = np.where(high > low, high - low, 1)
    return np.asarray(((np.clip(mapped, low, high) - low) / spread).argmax(axis=1))


def _cells(
    counts: sp.csr_matrix,
    reference: sp.csr_matrix,
    types: np.ndarray,
    n_types: int,
    epochs: int,
    lr: float,
    density: str,
    bag: int,
    device: str,
    seed: int,
    progress: Callable[[int], None] | None,
    info: dict[str, Any],
) -> np.ndarray:
    """Every reference cell mapped, bag by bag of cells in a shuffled order."""
    rng = np.random.default_rng([seed, 0])
    if reference.shape[0] > bag:
        chosen = np.sort(rng.choice(reference.shape[0], bag, replace=False))
        reference, types = reference[chosen], types[chosen]
    n_bags = -(-counts.shape[0] // bag)
    out = np.zeros((counts.shape[0], n_types), dtype=np.float32)
    for i, rows in enumerate(np.array_split(rng.permutation(counts.shape[0]), n_bags)):
        used = counts[rows]
        genes = np.flatnonzero(np.asarray(used.sum(axis=0)).ravel() > 0)
        mapping = _fit(
            reference[:, genes].toarray(), used[:, genes].toarray(), _density(used, density), epochs, lr, device,
            np.random.default_rng([seed, 1, i]), progress,
        )  # fmt: skip
        for t in range(n_types):
            out[rows, t] = mapping[types == t].sum(axis=0)
    info |= {"bags": n_bags, "reference cells": reference.shape[0]}
    return out


def _fit(
    reference: np.ndarray,
    counts: np.ndarray,
    density: np.ndarray | None,
    epochs: int,
    lr: float,
    device: str,
    rng: np.random.Generator,
    progress: Callable[[int], None] | None,
) -> np.ndarray:
    """float32 [reference cells, cells]; the loss of tangram-sc with its default weights."""
    import torch

    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    s = torch.tensor(reference, dtype=torch.float32, device=where)
    g = torch.tensor(counts, dtype=torch.float32, device=where)
    d = None if density is None else torch.tensor(density, dtype=torch.float32, device=where)
    start = rng.standard_normal((len(reference), len(counts)), dtype=np.float32)
    logits = torch.tensor(start, device=where, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=lr)
    for _ in range(epochs):
        m = torch.softmax(logits, dim=1)
        loss = -torch.nn.functional.cosine_similarity(m.t() @ s, g, dim=0).mean()
        if d is not None:
            loss = loss + torch.nn.functional.kl_div(torch.log(m.sum(dim=0) / len(m)), d, reduction="sum")
        adam.zero_grad()
        loss.backward()
        adam.step()
        if progress is not None:
            progress(1)
    with torch.no_grad():
        return np.asarray(torch.softmax(logits, dim=1).cpu().numpy())
