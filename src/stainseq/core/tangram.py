"""Tangram's mapping of reference clusters onto cells, by its closed-form gradient.

The mapping M (clusters x cells, each row a softmax over the cells) is only ever needed through sums over the cells: the
cosine of gene g between measured X and mapped Y = M'S is xy_g / (|x_g| |y_g|) with xy_g = S_g . (M X)_g and
|y_g|^2 = S_g' (M M') S_g. So no cells x genes product is formed: an epoch costs a pass over the non-zero counts and the
mapping, 4 nnz T + 4 n T^2 flops instead of 4 n T G, and 16 n T bytes beside the counts.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's constants, torch's defaults."""

COSINE_FLOOR = 1e-8
"""Under the cosine's norms, as torch.nn.functional.cosine_similarity has it."""

BLOCK = 8192
"""Cells summed at a time; the sums are added in the order of the blocks, whatever the threads."""


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of the loss, by Tangram's names and with its defaults.

    Parameters
    ----------
    g1
        Cosine of each gene over the cells, mean over genes.
    g2
        Cosine of each cell over the genes, mean over cells.
    d
        Kullback-Leibler divergence of the mapped density from the given one.
    r
        Entropy of the mapping.
    """

    g1: float = 1.0
    g2: float = 0.0
    d: float = 1.0
    r: float = 0.0


def map_clusters(
    reference: np.ndarray,
    counts: sp.csr_matrix,
    *,
    density: np.ndarray | None = None,
    source_density: np.ndarray | None = None,
    weights: Weights | None = None,
    epochs: int = 1000,
    lr: float = 0.1,
    start: np.ndarray | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Where in space each cluster of a reference lies.

    Parameters
    ----------
    reference
        float [clusters, genes]: summed (Tangram's ``scale=True``) or mean expression.
    counts
        CSR [cells, genes] of the same genes, in the same order; raw counts as Tangram takes them.
    density
        float [cells], sums to one: the share of expression that each cell shall get. None: no density term.
    source_density
        float [clusters], sums to one: share of each cluster. None: all alike.
    weights
        Of the loss; default Tangram's.
    epochs
        Steps of Adam; 1,000 in Tangram.
    lr
        Its learning rate; 0.1 in Tangram.
    start
        float [clusters, cells] logits to start from. Default: standard normal, float32, from `seed`.
    seed
        Of the start.
    progress
        Called with 1 after every epoch.

    Returns
    -------
    tuple
        float32 [clusters, cells] M, whose rows sum to one, and the terms of the loss after the last step: "gv" (mean
        cosine over genes), "vg", "kl", "entropy".

    Raises
    ------
    ValueError
        Shapes do not fit; a cluster or the density is empty or negative.

    Notes
    -----
    Biancalani et al., Nature Methods 2021; equal to tangram-sc 1.0.4 in mode "clusters" up to rounding.
    """
    weights = weights or Weights()
    n, n_genes = counts.shape
    if reference.ndim != 2 or reference.shape[1] != n_genes:
        raise ValueError(f"a reference of {reference.shape} for counts of {counts.shape}")
    n_types = len(reference)
    if start is None:
        rng = np.random.default_rng([seed, 0])
        start = rng.standard_normal((n_types, n), dtype=np.float32)
    if start.shape != (n_types, n):
        raise ValueError(f"a start of {start.shape} for {n_types} clusters and {n} cells")
    problem = _Problem(reference, counts, density, source_density, weights)
    state = _State(np.ascontiguousarray(start.T, dtype=np.float32))
    blocks = [slice(i, min(i + BLOCK, n)) for i in range(0, n, BLOCK)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        sums = _add(pool.map(lambda b: problem.accumulate(state, b), blocks))
        for epoch in range(1, epochs + 1):
            scale = problem.gradient(sums)
            cells = _add(pool.map(lambda b, s=scale: problem.over_cells(state, b, s), blocks))
            problem.finish(scale, cells)
            sums = _add(pool.map(lambda b, s=scale, k=epoch: problem.step(state, b, s, lr, k), blocks))
            state.shift = sums.top
            if progress is not None:
                progress(1)
        scale = problem.gradient(sums)
        cells = _add(pool.map(lambda b: problem.over_cells(state, b, scale), blocks))
    mapping = np.empty((n_types, n), dtype=np.float32)
    np.multiply(state.weight.T, scale.inverse[:, None].astype(np.float32), out=mapping)
    return mapping, {"gv": scale.cosine, "vg": cells.cosine, "kl": cells.kl, "entropy": -cells.plogp}


class _State:
    """Logits, Adam's moments and exp(logit - shift), all cells x clusters."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits
        self.first, self.second = np.zeros_like(logits), np.zeros_like(logits)
        self.shift = logits.max(axis=0)
        self.weight = np.empty_like(logits)


@dataclass
class _Sums:
    """Over cells: Z, M X and M M' before normalisation, and the highest logits."""

    z: np.ndarray
    mx: np.ndarray
    mm: np.ndarray
    top: np.ndarray

    def __iadd__(self, other: _Sums) -> _Sums:
        self.z += other.z
        self.mx += other.mx
        self.mm += other.mm
        np.maximum(self.top, other.top, out=self.top)
        return self


@dataclass
class _Cells:
    """Over cells: sum of M times the gradient of what is not a sum over cells, and these terms themselves."""

    pull: np.ndarray
    cosine: float
    kl: float
    plogp: float

    def __iadd__(self, other: _Cells) -> _Cells:
        self.pull += other.pull
        self.cosine += other.cosine
        self.kl += other.kl
        self.plogp += other.plogp
        return self


@dataclass
class _Scale:
    """What turns a cell's counts and weights into its gradient."""

    inverse: np.ndarray
    per_gene: np.ndarray
    per_pair: np.ndarray
    centre: np.ndarray
    cosine: float


def _add(parts):  # type: ignore[no-untyped-def]
    parts = iter(parts)
    total = next(parts)
    for part in parts:
        total += part
    return total


class _Problem:
    """The data, and the passes over blocks of cells."""

    def __init__(
        self,
        reference: np.ndarray,
        counts: sp.csr_matrix,
        density: np.ndarray | None,
        source_density: np.ndarray | None,
        weights: Weights,
    ) -> None:
        self.s = np.ascontiguousarray(reference.T, dtype=np.float64)  # genes x clusters: one row a non-zero count
        if not np.isfinite(self.s).all() or (self.s.sum(axis=0) <= 0).any():
            raise ValueError("a cluster without expression, or not finite")
        self.indptr = counts.indptr.astype(np.int64)
        self.indices = counts.indices.astype(np.int32)
        self.data = counts.data.astype(np.float32)
        self.gene_norm = np.sqrt(np.bincount(self.indices, self.data.astype(np.float64) ** 2, minlength=len(self.s)))
        squares = np.add.reduceat(
            np.r_[self.data.astype(np.float64) ** 2, 0], np.minimum(self.indptr[:-1], len(self.data))
        )
        self.cell_norm = np.sqrt(np.where(np.diff(self.indptr) > 0, squares, 0))
        self.lambdas = weights
        self.d = np.zeros(counts.shape[0]) if density is None else np.asarray(density, dtype=np.float64)
        self.by_density = weights.d if density is not None else 0.0
        self.w = np.full(self.s.shape[1], 1 / self.s.shape[1]) if source_density is None else np.asarray(source_density)
        if len(self.d) != counts.shape[0] or len(self.w) != self.s.shape[1] or (self.d < 0).any() or (self.w < 0).any():
            raise ValueError("a density of another length, or negative")
        self.among = self.s.T @ self.s
        self.n = counts.shape[0]

    def accumulate(self, state: _State, block: slice) -> _Sums:
        """exp(logit - shift) of a block, and its sums."""
        weight = state.weight[block]
        np.subtract(state.logits[block], state.shift, out=weight)
        np.exp(weight, out=weight)
        n_types = weight.shape[1]
        sums = _Sums(
            np.zeros(n_types), np.zeros_like(self.s), np.zeros((n_types, n_types)), state.logits[block].max(axis=0)
        )
        _accumulate(weight, self.indptr[block.start : block.stop + 1], self.indices, self.data, sums.z, sums.mx)
        wide = weight.astype(np.float64)
        sums.mm = wide.T @ wide
        return sums

    def gradient(self, sums: _Sums) -> _Scale:
        """The part of the gradient that sums over cells determine."""
        inverse = 1 / sums.z
        mx, mm = sums.mx * inverse, sums.mm * inverse[:, None] * inverse
        y_norm = np.sqrt(np.maximum(np.einsum("gt,tu,gu->g", self.s, mm, self.s, optimize=True), 0))
        under = np.maximum(self.gene_norm, COSINE_FLOOR) * np.maximum(y_norm, COSINE_FLOOR)
        cosine = (self.s * mx).sum(axis=1) / under
        share = self.lambdas.g1 / len(self.s)
        per_gene = self.s * (share / under)[:, None]
        along = np.where(y_norm > COSINE_FLOOR, share * cosine / np.maximum(y_norm, COSINE_FLOOR) ** 2, 0)
        per_pair = self.s.T @ (self.s * along[:, None])
        centre = (per_pair * mm).sum(axis=0) - (per_gene * mx).sum(axis=0)
        return _Scale(inverse, per_gene, per_pair, centre, float(cosine.mean()))

    def over_cells(self, state: _State, block: slice, scale: _Scale) -> _Cells:
        """Terms whose gradient differs from cell to cell: density, cosine per cell, entropy."""
        mapping = state.weight[block] * scale.inverse
        slopes, cosine = self._own(mapping, block)
        pull = (mapping * slopes).sum(axis=0)
        d = self.d[block]
        mapped = np.maximum(mapping @ self.w, np.finfo(float).tiny)
        seen = d > 0
        kl = float((d[seen] * np.log(d[seen] / mapped[seen])).sum()) if self.by_density else 0.0
        plogp = float((mapping * np.log(np.maximum(mapping, 1e-300))).sum()) if self.lambdas.r else 0.0
        return _Cells(pull, cosine, kl, plogp)

    def _own(self, mapping: np.ndarray, block: slice) -> tuple[np.ndarray, float]:
        """d(loss)/dM of the terms that belong to a cell, and the sum of the cells' cosines over their number."""
        slopes = np.zeros_like(mapping)
        cosine = 0.0
        if self.by_density:
            mapped = np.maximum(mapping @ self.w, np.finfo(float).tiny)
            slopes -= (self.by_density * self.d[block] / mapped)[:, None] * self.w
        if self.lambdas.r:
            slopes -= self.lambdas.r * (np.log(np.maximum(mapping, 1e-300)) + 1)
        if self.lambdas.g2:
            onto = np.empty_like(mapping)
            _gather(self.indptr[block.start : block.stop + 1], self.indices, self.data, self.s, onto)
            among = mapping @ self.among
            norm = np.sqrt(np.maximum((mapping * among).sum(axis=1), 0))
            under = np.maximum(self.cell_norm[block], COSINE_FLOOR) * np.maximum(norm, COSINE_FLOOR)
            each = (mapping * onto).sum(axis=1) / under
            along = np.where(norm > COSINE_FLOOR, each / np.maximum(norm, COSINE_FLOOR) ** 2, 0)
            slopes -= self.lambdas.g2 / self.n * (onto / under[:, None] - along[:, None] * among)
            cosine = float(each.sum()) / self.n
        return slopes, cosine

    def finish(self, scale: _Scale, cells: _Cells) -> None:
        """Softmax over cells: gradients count relative to their mean under the mapping."""
        scale.centre = scale.centre + cells.pull

    def step(self, state: _State, block: slice, scale: _Scale, lr: float, epoch: int) -> _Sums:
        """One step of Adam on a block, and its new sums."""
        mapping = state.weight[block] * scale.inverse
        slopes, _ = self._own(mapping, block)
        slopes += mapping @ scale.per_pair
        _update(
            self.indptr[block.start : block.stop + 1],
            self.indices,
            self.data,
            scale.per_gene,
            mapping,
            slopes,
            scale.centre,
            state.logits[block],
            state.first[block],
            state.second[block],
            np.float32(lr / (1 - BETA1**epoch)),
            np.float32(np.sqrt(1 - BETA2**epoch)),
        )
        return self.accumulate(state, block)


@numba.njit(cache=True, nogil=True)
def _accumulate(weight, indptr, indices, data, z, mx):  # type: ignore[no-untyped-def]
    n_types = weight.shape[1]
    for c in range(len(weight)):
        for t in range(n_types):
            z[t] += weight[c, t]
        for k in range(indptr[c], indptr[c + 1]):
            row, value = mx[indices[k]], data[k]
            for t in range(n_types):
                row[t] += value * weight[c, t]


@numba.njit(cache=True, nogil=True)
def _gather(indptr, indices, data, table, out):  # type: ignore[no-untyped-def]
    n_types = table.shape[1]
    for c in range(len(out)):
        for t in range(n_types):
            out[c, t] = 0.0
        for k in range(indptr[c], indptr[c + 1]):
            row, value = table[indices[k]], data[k]
            for t in range(n_types):
                out[c, t] += value * row[t]


@numba.njit(cache=True, nogil=True)
def _update(indptr, indices, data, per_gene, mapping, slopes, centre, logits, first, second, rate, root):  # type: ignore[no-untyped-def]
    n_types = mapping.shape[1]
    one, two = np.float32(BETA1), np.float32(BETA2)
    floor = np.float32(EPSILON)
    for c in range(len(mapping)):
        for k in range(indptr[c], indptr[c + 1]):
            row, value = per_gene[indices[k]], data[k]
            for t in range(n_types):
                slopes[c, t] -= value * row[t]
        for t in range(n_types):
            g = np.float32(mapping[c, t] * (slopes[c, t] - centre[t]))
            m = one * first[c, t] + (np.float32(1) - one) * g
            v = two * second[c, t] + (np.float32(1) - two) * g * g
            first[c, t], second[c, t] = m, v
            logits[c, t] -= rate * m / (np.sqrt(v) / root + floor)
