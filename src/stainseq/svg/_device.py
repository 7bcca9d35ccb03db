"""The one product that pays on a GPU: residuals by kernel factors, squared and summed per kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def product(device: str | None) -> TorchProduct | None:
    """The product on a torch device; None (numpy's) without one.

    Raises
    ------
    InputError
        torch knows no such device, or it is not there.
    """
    if device is None:
        return None
    import torch

    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as e:
        raise InputError(f"device {device!r} cannot be used ({str(e).splitlines()[0]})",
                         fix="leave device out, or name one that torch has, such as cuda") from e  # fmt: skip
    return TorchProduct(device)


class TorchProduct:
    """Sums of squares of r @ factors over the columns of each kernel.

    Factors stay on the device from the first call on.

    Parameters
    ----------
    device
        Name of a torch device with float64.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._held: tuple[Any, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchProduct, (self._device,)

    def __call__(self, r: NDArray[np.float64], factors: NDArray[np.float64], starts: NDArray[Any]) -> NDArray[Any]:
        """[g, kernels], for r [g, n], factors [n, columns] and the first column of each kernel."""
        import torch

        if self._held is None or self._held[0] is not factors:
            self._held = factors, torch.from_numpy(factors).to(self._device)
        z = torch.from_numpy(r).to(self._device) @ self._held[1]
        widths = np.diff([*starts, factors.shape[1]]).tolist()
        sums = [part.square().sum(dim=1) for part in z.split(widths, dim=1)]
        return np.asarray(torch.stack(sums, dim=1).cpu().numpy())
