"""The variance-component score test of SpatialDE2 for all genes at once, in closed form.

A gene's null (mean m s_i, dispersion alpha) enters the moments of the statistic only through t = alpha m, up to a
factor: with v_i = s_i / (1 + t s_i) the weights are W = m v(t), so that the expectation is m times, and the
information m^2 times, a function of t alone. These functions are computed on Chebyshev nodes once, for all genes.
No work per gene touches an n x n matrix.

I. Kats, R. Vento-Tormo and O. Stegle, SpatialDE2: fast and localized variance component analysis of spatial
transcriptomics, bioRxiv 2021.10.27.466045.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from .chi2mix import log_chi2_sf

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .kernels import Operator

_CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class NullWeights:
    """The family v(t) of weights, scaled so that it stays finite from the Poisson limit (t = 0) to t = infinity.

    Parameters
    ----------
    sizes
        float64 [n] size factors.
    centre
        Scale of t at the middle of the nodes: x = q / (1 + q) with q = sqrt(t * centre).
    nodes
        float64 [j] values of x in [0, 1], both ends among them (Chebyshev-Lobatto).
    """

    sizes: NDArray[np.float64]
    centre: float
    nodes: NDArray[np.float64]

    @classmethod
    def of(cls, sizes: NDArray[np.float64], count: int = 65) -> NullWeights:
        """Nodes for given size factors."""
        nodes = 0.5 * (1.0 - np.cos(np.pi * np.arange(count) / (count - 1)))
        return cls(sizes, float(np.exp(np.log(sizes).mean())), nodes)

    @classmethod
    def gaussian(cls, places: int) -> NullWeights:
        """The constant weights of a Gaussian null: one node."""
        return cls(np.ones(places), 1.0, np.zeros(1))

    def weights(self, chosen: slice | NDArray[Any]) -> NDArray[np.float64]:
        """s (1 + t centre) / (1 + t s) at some of the nodes, [n, nodes]."""
        return self.weights_at(self.nodes[chosen])

    def weights_at(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same at any x, [n, len(x)]."""
        inside, outside = x**2, (1.0 - x) ** 2  # t centre = inside / outside
        s = self.sizes[:, None]
        return s * (outside + inside) / (outside + inside * (s / self.centre))

    def third(self, chosen: slice | NDArray[Any]) -> NDArray[np.float64]:
        """Third moments of the residuals up to a factor, s (1 + 2 t s) / (1 + t s)^2 scaled alike, [n, nodes]."""
        x = self.nodes[chosen]
        inside, outside = x**2, (1.0 - x) ** 2
        s = self.sizes[:, None]
        relative = s / self.centre
        return s * (outside + 2.0 * inside * relative) * (outside + inside) / (outside + inside * relative) ** 2

    def coarser(self, step: int) -> NullWeights:
        """Every `step`-th node, both ends kept (the number of nodes less one must be a multiple of it)."""
        return self if len(self.nodes) == 1 else NullWeights(self.sizes, self.centre, self.nodes[::step])

    def from_finer(self, values: NDArray[np.float64], finer: NullWeights) -> NDArray[np.float64]:
        """Values at the nodes of a finer family, at these nodes, which are some of them."""
        return values[:: max((len(finer.nodes) - 1) // max(len(self.nodes) - 1, 1), 1)]

    def from_coarser(self, values: Any, coarser: NullWeights) -> NDArray[np.float64]:
        """Values at the nodes of a coarser family, interpolated to these nodes."""
        return coarser.interpolate(np.asarray(values, dtype=np.float64), self.nodes)

    def place(self, m: NDArray[np.float64], alpha: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """x of each gene, and the factor that its scaled weights carry: W = scale * weights(x)."""
        t = alpha * m * self.centre
        q = np.sqrt(t)
        return q / (1.0 + q), m / (1.0 + t)

    def interpolate(self, values: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Barycentric interpolation of values [j, ...] at the nodes to x [g]; returns [g, ...]."""
        count = len(self.nodes)
        if count == 1:
            return np.broadcast_to(values[0], (len(x), *values.shape[1:]))
        w = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
        w[[0, -1]] *= 0.5
        gap = x[:, None] - self.nodes
        hit = gap == 0.0
        with np.errstate(divide="ignore"):
            basis = w / gap
        basis = np.where(hit.any(axis=1)[:, None], hit, basis)
        basis /= basis.sum(axis=1, keepdims=True)
        return np.tensordot(basis, values, axes=1)


def compatible_moments(op: Operator, family: NullWeights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expectation and information of U = r'Kr / 2 at the nodes, as SpatialDE2 defines them.

    With P = diag(W) - W W' / sum W: e = tr(PK) / 2, I = I_tt - I_th^2 / I_hh, I_tt = sum (PK)_ij^2 / 2,
    I_th = sum (PK o P) / 2, I_hh = sum P^2 / 2.

    Returns
    -------
    e, information
        float64 [j] each, for the scaled weights: multiply by scale and scale^2.
    """
    n = len(family.sizes)
    k2 = op.apply(np.ones((n, 1)), 2)[:, 0]
    e, information = np.empty(len(family.nodes)), np.empty(len(family.nodes))
    for part in node_chunks(family, columns=5):
        v = family.weights(part)
        v2 = v * v
        s1, s2, s3 = v.sum(axis=0), v2.sum(axis=0), (v2 * v).sum(axis=0)
        kv, kv2 = op.apply(v), op.apply(v2)
        c = kv / s1
        vkv = (v * kv).sum(axis=0)
        e[part] = 0.5 * (op.diagonal @ v - vkv / s1)
        itt = 0.5 * (k2 @ v2 - 2.0 * (kv2 * c).sum(axis=0) + s2 * (c * c).sum(axis=0))
        ith = 0.5 * (op.diagonal @ v2 - (v2 * c).sum(axis=0) - ((v * kv2).sum(axis=0) - s2 * vkv / s1) / s1)
        ihh = 0.5 * (s2 - 2.0 * s3 / s1 + s2 * s2 / (s1 * s1))
        information[part] = itt - ith**2 / ihh
    return e, information


def node_chunks(family: NullWeights, *, columns: int) -> list[slice]:
    """Slices of nodes whose working arrays (so many [n, nodes] at a time) stay within a fixed amount of memory."""
    width = int(max(1, _CHUNK_BYTES // (8 * len(family.sizes) * columns)))
    count = len(family.nodes)
    return [slice(i, min(i + width, count)) for i in range(0, count, width)]


def chi2_test(u: Any, e: Any, information: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """kappa, nu and natural log p of a statistic by matching two moments: U / kappa ~ chi-square with nu."""
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = information / (2.0 * e)
        nu = 2.0 * e**2 / information
        return kappa, nu, log_chi2_sf(u / kappa, nu)


@njit(cache=True, nogil=True)
def residuals(data, indices, indptr, m, alpha, sizes):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """r = (y - mu) / (1 + alpha mu) of a block of genes, [n, g] in column order (one gene after the other)."""
    n = sizes.size
    out = np.empty((m.size, n))
    for g in range(m.size):
        t = alpha[g] * m[g]
        for i in range(n):
            out[g, i] = -m[g] * sizes[i] / (1.0 + t * sizes[i])
        for e in range(indptr[g], indptr[g + 1]):
            i = indices[e]
            out[g, i] += data[e] / (1.0 + t * sizes[i])
    return out
