"""Covariance kernels over tissue: length scales, and operators that never need more than a bounded part of n x n.

Three kernels, as in SpatialDE2: ``SE`` exp(-d^2 / 2 l^2), ``PER`` cos(2 pi (s_i - s_j) / l) with s = x + y, and
``linear`` x_i . x_j. An operator multiplies a kernel K, its elementwise square and its elementwise cube with vectors,
and takes quadratic forms of many residual vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy import sparse
from scipy.linalg import lapack
from scipy.spatial import ConvexHull, QhullError, cKDTree
from scipy.spatial.distance import cdist

from ..errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAMES = ("SE", "PER", "linear")
_PAIRS = 1 << 22
_FACTOR_TOLERANCE = 1e-12
"""Trace left out of a pivoted Cholesky factor, relative to the largest diagonal; bounds the relative error of r'Kr."""


@dataclass(frozen=True)
class Kernel:
    """Name and length scale.

    Parameters
    ----------
    name
        "SE", "PER" or "linear".
    length
        Length scale or period in units of the coordinates; NaN for "linear".
    """

    name: str
    length: float


class Operator(Protocol):
    """What the score test asks of a kernel K of [n, n]."""

    diagonal: NDArray[np.float64]

    def apply(self, x: NDArray[np.float64], power: int = 1) -> NDArray[np.float64]:
        """K @ x for x [n, b]; with power 2 or 3, of the elementwise square or cube of K."""
        ...

    def trace3(self, w: NDArray[np.float64]) -> float:
        """tr((B diag(w))^3), B = K less its w-weighted row and column means (K between projections)."""
        ...


def extent(coordinates: NDArray[Any]) -> tuple[float, float, float]:
    """Smallest and median distance to the nearest other place, and largest distance.

    Parameters
    ----------
    coordinates
        float [n, 2]. Rows at one place count as one place.

    Raises
    ------
    InputError
        All rows are at one place.
    """
    places = np.unique(np.asarray(coordinates, dtype=np.float64), axis=0)
    if len(places) < 2:
        raise InputError("all rows are at one place", where="coordinates", fix="give spatial coordinates")
    nearest = cKDTree(places).query(places, k=2)[0][:, 1]
    try:
        outer = places[ConvexHull(places).vertices]
    except (QhullError, ValueError):  # on one line, or two places: the ends in sorted order are the farthest
        outer = places[[0, -1]]
    # A hull of very many vertices (a perfect circle) is thinned by blocks.
    largest = max(float(cdist(outer[i : i + 2048], outer).max()) for i in range(0, len(outer), 2048))
    return float(nearest.min()), float(np.median(nearest)), largest


def default_lengths(coordinates: NDArray[Any], *, base: str = "median", count: int = 5) -> NDArray[np.float64]:
    """Length scales from twice the spacing to the largest distance, evenly in log.

    Parameters
    ----------
    coordinates
        float [n, 2].
    base
        "minimum" (smallest distance of two places, as SpatialDE2) or "median" (of the distances to the nearest
        place: single cells can almost touch, which would make the smallest distance meaningless).
    count
        Number of length scales.
    """
    smallest, median, largest = extent(coordinates)
    start = 2.0 * (smallest if base == "minimum" else median)
    return np.logspace(np.log10(start), np.log10(largest), count)


def kernel_list(space: Mapping[str, Any] | None, coordinates: NDArray[Any], *, base: str = "median") -> list[Kernel]:
    """Kernels of a kernel space.

    Parameters
    ----------
    space
        Kernel name to one or several length scales, such as ``{"SE": [200.0, 800.0], "linear": 0}``; None for five
        length scales each of "SE" and "PER".
    coordinates
        float [n, 2], for the default.
    base
        As for `default_lengths`.

    Raises
    ------
    InputError
        A kernel name that is not known, a length scale that is not positive, or an empty space.
    """
    if space is None:
        lengths = default_lengths(coordinates, base=base)
        space = {"SE": lengths, "PER": lengths}
    found = []
    for name, lengths in space.items():
        if name not in NAMES:
            raise InputError(f"no kernel named {name!r}", where="kernel_space", fix=f"one of: {', '.join(NAMES)}")
        if name == "linear":
            found.append(Kernel(name, float("nan")))
            continue
        for length in np.atleast_1d(np.asarray(lengths, dtype=np.float64)):
            if not (np.isfinite(length) and length > 0):
                raise InputError(f"length scale {length} of kernel {name}", where="kernel_space", fix="give it above 0")
            found.append(Kernel(name, float(length)))
    if not found:
        raise InputError("no kernels", where="kernel_space", fix="leave kernel_space out for the ten default ones")
    return found


def dense(kernel: Kernel, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The kernel as an array [n, n]; for few places only."""
    if kernel.name == "SE":
        squared = (coordinates[:, :1] - coordinates[:, 0]) ** 2
        squared += (coordinates[:, 1:] - coordinates[:, 1]) ** 2
        squared *= -0.5 / kernel.length**2
        return np.asarray(np.exp(squared, out=squared))
    factor = low_rank_factor(kernel, coordinates)
    return factor @ factor.T


def low_rank_factor(kernel: Kernel, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """F [n, 2] with K = F F' of a "PER" or "linear" kernel."""
    if kernel.name == "linear":
        return np.array(coordinates)
    # Phases from the middle: whole turns that all places share would cost digits.
    along = (coordinates - 0.5 * (coordinates.max(axis=0) + coordinates.min(axis=0))).sum(axis=1)
    phase = (2.0 * np.pi / kernel.length) * along
    return np.column_stack([np.cos(phase), np.sin(phase)])


class DenseOperator:
    """A kernel held as an array.

    Parameters
    ----------
    matrix
        float64 [n, n], symmetric.
    """

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self.matrix = matrix
        self.diagonal = np.ascontiguousarray(matrix.diagonal())
        self._factor: NDArray[np.float64] | None = None

    def apply(self, x: NDArray[np.float64], power: int = 1) -> NDArray[np.float64]:
        """K @ x, or the elementwise power of K times x."""
        matrix = self.matrix
        for _ in range(power - 1):
            matrix = matrix * self.matrix
        return matrix @ x

    def trace3(self, w: NDArray[np.float64]) -> float:
        """tr((B diag(w))^3), B = K less its w-weighted row and column means (K between projections)."""
        return _trace3(self.factor(), w)

    def factor(self) -> NDArray[np.float64]:
        """F [n, rank] with K = F F' up to 1e-12 of its largest diagonal entry, by pivoted Cholesky."""
        if self._factor is not None:
            return self._factor
        scale = float(self.diagonal.max())
        lower, pivots, rank, _ = lapack.dpstrf(self.matrix, tol=_FACTOR_TOLERANCE * scale, lower=1)
        lower = np.tril(lower[:, :rank])
        out = np.empty_like(lower, order="C")
        out[pivots - 1] = lower
        self._factor = out
        return out


class LowRankOperator:
    """A kernel given by few columns: K = F F'.

    Parameters
    ----------
    factor
        float64 [n, r], r small.
    """

    def __init__(self, factor: NDArray[np.float64]) -> None:
        self._factor = factor
        self.diagonal = (factor**2).sum(axis=1)

    def apply(self, x: NDArray[np.float64], power: int = 1) -> NDArray[np.float64]:
        """K @ x, or the elementwise power of K times x (its factor is all products of the columns of F)."""
        columns = self._factor
        for _ in range(power - 1):
            columns = (columns[:, :, None] * self._factor[:, None, :]).reshape(len(columns), -1)
        return columns @ (columns.T @ x)

    def trace3(self, w: NDArray[np.float64]) -> float:
        """tr((B diag(w))^3), B = K less its w-weighted row and column means (K between projections)."""
        return _trace3(self._factor, w)

    def factor(self) -> NDArray[np.float64]:
        """F itself."""
        return self._factor


class SparseOperator:
    """An "SE" kernel much shorter than the tissue: only pairs of places that it joins.

    Parameters
    ----------
    coordinates
        float64 [n, 2].
    length
        Length scale; pairs farther apart than `reach` of it (K below 1e-9) are left out.
    """

    def __init__(self, coordinates: NDArray[np.float64], length: float, reach: float) -> None:
        n = len(coordinates)
        pairs = cKDTree(coordinates).query_pairs(reach * length, output_type="ndarray")
        first, second = (np.ascontiguousarray(pairs[:, k], dtype=np.int32) for k in (0, 1))
        del pairs
        values = np.empty(len(first))
        for start in range(0, len(first), _PAIRS):
            part = slice(start, start + _PAIRS)
            squared = ((coordinates[first[part]] - coordinates[second[part]]) ** 2).sum(axis=1)
            values[part] = np.exp(-0.5 * squared / length**2)
        # One of (i, j) and (j, i), without the diagonal of ones: half the memory and half the work.
        self.upper = sparse.csr_array(sparse.coo_array((values, (first, second)), shape=(n, n)))
        self.diagonal = np.ones(n)

    def apply(self, x: NDArray[np.float64], power: int = 1) -> NDArray[np.float64]:
        """K @ x, or an elementwise power of K times x."""
        upper = self.upper if power == 1 else self.upper.power(power)
        return np.asarray(x + upper @ x + upper.T @ x)

    def quadratic(self, r: NDArray[np.float64]) -> NDArray[np.float64]:
        """r'Kr of each row of r [g, n]."""
        columns = np.ascontiguousarray(r.T)
        return np.asarray(np.einsum("ng,ng->g", columns, columns + 2.0 * (self.upper @ columns)))

    def trace3(self, w: NDArray[np.float64]) -> float:
        """tr((B diag(w))^3), B = K less its w-weighted row and column means."""
        return trace3_by_probes(self.apply, w, 4)


def trace3_by_probes(apply: Callable[[NDArray[Any]], NDArray[Any]], w: NDArray[np.float64], probes: int) -> float:
    """tr((B diag(w))^3) from random signs (Hutchinson): z' (PMP)^3 z, M = D^(1/2) K D^(1/2), P off D^(1/2) 1."""
    rng = np.random.default_rng(0)
    root, total, found = np.sqrt(w), w.sum(), 0.0
    for _ in range(probes):
        z = rng.integers(0, 2, len(w)) * 2.0 - 1.0
        z -= root * ((root @ z) / total)
        u = root * apply((root * z)[:, None])[:, 0]
        u -= root * ((root @ u) / total)
        found += float((root * u) @ apply((root * u)[:, None])[:, 0])
    return found / probes


def _trace3(factor: NDArray[np.float64], w: NDArray[np.float64]) -> float:
    # Only the skewness of a null distribution hangs on this sum of positive terms: single precision is plenty.
    centred = factor - (w @ factor) / w.sum()
    centred *= np.sqrt(w)[:, None]
    scale = float(np.abs(centred).max())
    half = (centred / scale).astype(np.float32)
    gram = half.T @ half
    return float(np.einsum("ij,ij->", gram.T @ gram, gram, dtype=np.float64)) * scale**6
