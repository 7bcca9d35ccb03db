"""Quadratic forms r'Kr of many residual vectors with several kernels at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DenseForms:
    """Through factors of kernels held as arrays: one matrix product for all kernels; for some thousand places.

    Parameters
    ----------
    chosen
        Kernels.
    coordinates
        float64 [n, 2].
    omnibus
        One test of the sum of all kernels.
    """

    def __init__(
        self, chosen: list[kernels.Kernel], coordinates: NDArray[np.float64], *, omnibus: bool = False
    ) -> None:
        self._chosen, self._coordinates, self._omnibus = chosen, coordinates, omnibus
        self._factors: list[NDArray[np.float64]] = []
        self._stacked: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return 1 if self._omnibus else len(self._chosen)

    def operator(self, index: int) -> Any:
        """Operator of one kernel; asked for once each, in order, so that one n x n array is held at a time."""
        if self._omnibus:
            total = kernels.dense(self._chosen[0], self._coordinates)
            for kernel in self._chosen[1:]:
                total += kernels.dense(kernel, self._coordinates)
            op: Any = kernels.DenseOperator(total)
        elif self._chosen[index].name == "SE":
            op = kernels.DenseOperator(kernels.dense(self._chosen[index], self._coordinates))
        else:
            op = kernels.LowRankOperator(kernels.low_rank_factor(self._chosen[index], self._coordinates))
        self._factors.append(op.factor())
        return op

    def quadratic(self, r: NDArray[np.float64]) -> NDArray[np.float64]:
        """r'Kr for r [g, n]; returns [g, kernels]."""
        if self._stacked is None:
            self._stacked = np.ascontiguousarray(np.concatenate(self._factors, axis=1))
        z = r @ self._stacked
        z *= z
        starts = np.cumsum([0] + [f.shape[1] for f in self._factors[:-1]])
        return np.add.reduceat(z, starts, axis=1)
