"""CellViT's instance_map_predictions: <patch>_data, _indices, _indptr and _shape of a CSR matrix."""

from __future__ import annotations

from pathlib import Path

from ..errors import FormatError
from ._arrays import csr
from ._model import Mask, Masks, checked


def open_h5(path: Path) -> Masks:
    """See `stainseq.masks.open_masks`."""
    import h5py

    try:
        with h5py.File(path) as file:
            names = [k.removesuffix("_shape") for k in file if k.endswith("_shape")]
            lacking = [n for n in names if any(f"{n}_{part}" not in file for part in ("data", "indices", "indptr"))]
    except OSError as e:
        raise FormatError(f"no HDF5 that can be read ({e})", where=path, fix="copy it again") from e
    if not names:
        raise FormatError("no patches in this file", where=path, fix="give CellViT's instance_map_predictions")
    if lacking:
        raise FormatError(f"{len(lacking)} patches are not complete ({lacking[0]!r})", where=path, fix="copy it again")

    def read(name: str, shape: tuple[int, int] | None) -> Mask:
        where = f"{path}, {name}"
        try:
            with h5py.File(path) as file:
                return checked(csr(file, f"{name}_"), None, where)
        except (OSError, ValueError, KeyError, IndexError) as e:
            raise FormatError(f"damaged ({e})", where=where, fix="copy it again") from e

    # Patch names carry the ending of the image that was predicted; the maps they are compared with do not.
    full = {n.removesuffix(".png"): n for n in names}
    return Masks(list(full), lambda name, shape: read(full[name], shape), str(path))
