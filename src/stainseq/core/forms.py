"""Quadratic forms r'Kr of many residual vectors with several kernels at once, for few and for many places."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy.spatial import cKDTree

from . import fourier, kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

DENSE_PLACES = 3000
"""Up to so many places one matrix product with factors of the kernels beats the Fourier mesh."""

_SPARSE_NEIGHBOURS = 150
"""A kernel that joins fewer places than this goes by pairs: its mesh would have many nodes a place."""


class Forms(Protocol):
    """Kernels on a set of places."""

    def __len__(self) -> int: ...

    def operator(self, index: int) -> kernels.Operator:
        """Operator of one kernel; all are to be asked for before `quadratic`, and let go, to hold few at a time."""
        ...

    def quadratic(self, r: NDArray[np.float64]) -> NDArray[np.float64]:
        """r'Kr for r [g, n]; returns [g, kernels]."""
        ...


Product = Callable[["NDArray[np.float64]", "NDArray[np.float64]", "NDArray[Any]"], "NDArray[np.float64]"]
"""r [g, n], factors [n, columns], first column of each kernel -> sums of squares of r @ factors, [g, kernels]."""


def build(
    chosen: list[kernels.Kernel],
    coordinates: NDArray[np.float64],
    *,
    omnibus: bool = False,
    product: Product | None = None,
) -> Forms:
    """The form that suits the number of places.

    Parameters
    ----------
    chosen
        Kernels.
    coordinates
        float64 [n, 2].
    omnibus
        One test of the sum of all kernels.
    product
        Does the work of `DenseForms` elsewhere (on a GPU); default numpy.
    """
    form: Forms
    if len(coordinates) <= DENSE_PLACES:
        form = DenseForms(chosen, coordinates, product)
    else:
        form = SpectralForms(chosen, coordinates)
    return SumForms(form, chosen, coordinates) if omnibus else form


class DenseForms:
    """Through factors of kernels held as arrays: one matrix product for all kernels."""

    def __init__(
        self, chosen: list[kernels.Kernel], coordinates: NDArray[np.float64], product: Product | None = None
    ) -> None:
        self._chosen, self._coordinates, self._product = chosen, coordinates, product or _squares
        self._factors: dict[int, NDArray[np.float64]] = {}
        self._stacked: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self._chosen)

    def operator(self, index: int) -> Any:
        """Operator of one kernel; its factor is kept."""
        kernel = self._chosen[index]
        if kernel.name == "SE":
            op: Any = kernels.DenseOperator(kernels.dense(kernel, self._coordinates))
        else:
            op = kernels.LowRankOperator(kernels.low_rank_factor(kernel, self._coordinates))
        self._factors[index] = op.factor()
        return op

    def quadratic(self, r: NDArray[np.float64]) -> NDArray[np.float64]:
        """r'Kr for r [g, n]; returns [g, kernels]."""
        factors = [self._factors[k] for k in range(len(self._chosen))]
        if self._stacked is None:
            self._stacked = np.ascontiguousarray(np.concatenate(factors, axis=1))
        return self._product(r, self._stacked, np.cumsum([0] + [f.shape[1] for f in factors[:-1]]))


def _squares(r: NDArray[np.float64], factors: NDArray[np.float64], starts: NDArray[Any]) -> NDArray[np.float64]:
    z = r @ factors
    z *= z
    return np.asarray(np.add.reduceat(z, starts, axis=1))


class SpectralForms:
    """SE kernels through one Fourier mesh (very short ones through pairs of places), others through their factors."""

    def __init__(self, chosen: list[kernels.Kernel], coordinates: NDArray[np.float64]) -> None:
        self._chosen, self._coordinates = chosen, coordinates
        found = fourier.lattice_of(coordinates)
        self._aligned = coordinates if found is None else found[0]
        self._lattice = None if found is None else found[1]
        self._pairs: dict[int, kernels.SparseOperator] = {}
        mesh: list[int] = []
        factors: list[int] = []
        tree, sample = cKDTree(coordinates), coordinates[:: max(1, len(coordinates) // 1000)]
        for k, kernel in enumerate(chosen):
            if kernel.name != "SE":
                factors.append(k)
            elif self._lattice is None and (
                tree.query_ball_point(sample, fourier.REACH * kernel.length, return_length=True).mean()
                < _SPARSE_NEIGHBOURS
            ):
                self._pairs[k] = kernels.SparseOperator(coordinates, kernel.length, fourier.REACH)
            else:
                mesh.append(k)
        self._mesh, self._factors = mesh, factors
        lengths = [chosen[k].length for k in mesh]
        self._spectra = fourier.PowerSpectra(self._aligned, lengths, self._lattice) if mesh else None
        columns = [kernels.low_rank_factor(chosen[k], coordinates) for k in factors]
        self._columns = np.concatenate(columns, axis=1) if columns else None

    def __len__(self) -> int:
        return len(self._chosen)

    def operator(self, index: int) -> Any:
        """Operator of one kernel."""
        kernel = self._chosen[index]
        if index in self._pairs:
            return self._pairs[index]
        if kernel.name == "SE":
            return fourier.SquaredExponential(self._aligned, kernel.length, self._lattice)
        return kernels.LowRankOperator(kernels.low_rank_factor(kernel, self._coordinates))

    def quadratic(self, r: NDArray[np.float64]) -> NDArray[np.float64]:
        """r'Kr for r [g, n]; returns [g, kernels]."""
        out = np.empty((len(r), len(self._chosen)))
        if self._spectra is not None:
            out[:, self._mesh] = self._spectra.quadratic(r)
        if self._columns is not None:
            squares = (r @ self._columns) ** 2
            out[:, self._factors] = squares[:, ::2] + squares[:, 1::2]
        for k, op in self._pairs.items():
            out[:, k] = op.quadratic(r)
        return out


class SumForms:
    """One kernel that is the sum of all.

    Its elementwise square and cube are sums of products of kernels, which is written out for as few places as one
    array allows; for many places each kernel's own test is both cheaper and more telling.
    """

    def __init__(self, form: Forms, chosen: list[kernels.Kernel], coordinates: NDArray[np.float64]) -> None:
        self._form, self._chosen, self._coordinates = form, chosen, coordinates

    def __len__(self) -> int:
        return 1

    def operator(self, index: int) -> Any:
        """Operator of the sum; the single kernels are prepared too, for `quadratic`."""
        for k in range(len(self._form)):
            self._form.operator(k)
        total = kernels.dense(self._chosen[0], self._coordinates)
        for kernel in self._chosen[1:]:
            total += kernels.dense(kernel, self._coordinates)
        return kernels.DenseOperator(total)

    def quadratic(self, r: NDArray[np.float64]) -> NDArray[np.float64]:
        """r'Kr for r [g, n]; returns [g, 1]."""
        return self._form.quadratic(r).sum(axis=1, keepdims=True)
