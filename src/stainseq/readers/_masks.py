"""cells.zarr.zip of a Xenium bundle: the masks that the run counted by, and its outlines.

https://www.10xgenomics.com/support/software/xenium-onboard-analysis/latest/advanced/xoa-output-zarr
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, InputError
from ._picture import lazy

if TYPE_CHECKING:
    from dask.array import Array

_CHUNK = 2048
_SAMPLE = 64


@dataclass(frozen=True)
class Mask:
    """One raster of labels and what its labels mean.

    Parameters
    ----------
    raster
        uint32 [h, w], lazy.
    matrix
        [3, 3] from pixels (the first covers 0 to 1) to um.
    labels, owner
        int64 [n] labels in order, and object [n] id of the cell of each; None where the file does not tell.
    corners
        float64 [vertices, 2] um and int64 [vertices] row of `labels` of each, of the simplified outlines; or None.
    path
        File.
    """

    raster: Array
    matrix: np.ndarray
    labels: np.ndarray
    owner: np.ndarray
    corners: tuple[np.ndarray, np.ndarray] | None
    path: Path

    def outlines(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows of `labels` that have an outline, int64 [k], and the polygons, object [k]; or None."""
        from ._vertices import polygons

        if self.corners is None:
            return None
        xy, row = self.corners
        first, shapes = polygons([row], xy[:, 0], xy[:, 1], where=self.path)
        return row[first], shapes

    def check(self, labels: np.ndarray, xy_um: np.ndarray) -> None:
        """Labels lie where their cells are (a sample is looked at).

        Raises
        ------
        InputError
            Fewer than half do.
        """
        chosen = np.unique(np.linspace(0, len(labels) - 1, min(_SAMPLE, len(labels))).astype(int))
        inverse = np.linalg.inv(self.matrix)
        x, y = np.floor(xy_um[chosen] @ inverse[:2, :2].T + inverse[:2, 2]).astype(np.int64).T
        height, width = self.raster.shape
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        seen = [int(self.raster[b, a]) if i else 0 for a, b, i in zip(x, y, inside, strict=True)]
        right = float(np.mean(np.array(seen) == labels[chosen])) if len(chosen) else 1.0
        if right < 0.5:
            raise InputError(
                f"{right:.0%} of the cells lie on their own label in the masks",
                where=self.path,
                fix="masks of another run or frame: leave them out by --option masks=false",
            )


class _Chunks:
    """A Zarr array whose damage is told in our words."""

    def __init__(self, array: Any, path: Path) -> None:
        self._array, self._path = array, path
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, key: Any) -> np.ndarray:
        with _told(self._path):
            return np.asarray(self._array[key])


def open_masks(path: Path, *, pixel_um: float) -> dict[str, Mask]:
    """Masks by name ("nuclei", "cells"; imported segmentations may have one).

    Parameters
    ----------
    path
        cells.zarr.zip, or the folder that it was unpacked to.
    pixel_um
        Microns per pixel of the morphology image, for files that do not place their masks.

    Raises
    ------
    FormatError
        Truncated, damaged, or without masks.
    """
    import zarr

    with _told(path):
        store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else zarr.storage.LocalStore(path)
        root: Any = zarr.open_group(store, mode="r")
        if "masks" not in root or "cell_id" not in root:
            raise FormatError("no masks or no cell ids", where=path, fix="copy the bundle again")
        ids = cell_ids(np.asarray(root["cell_id"]))
        found = {}
        for kind, name in _kinds(root):
            mask = root["masks"][str(kind)]
            if mask.ndim != 2 or mask.dtype.kind not in "ui":
                raise FormatError(f"a mask of shape {mask.shape} and type {mask.dtype}", where=path)
            labels, owner = _labels(root, kind, ids)
            chunks = tuple(max(1, _CHUNK // c) * c for c in mask.chunks)
            raster = lazy(_Chunks(mask, path), chunks).astype(np.uint32)
            found[name] = Mask(raster, _matrix(root, pixel_um), labels, owner, _corners(root, kind), path)
    return found


@contextmanager
def _told(path: Path) -> Iterator[None]:
    import zipfile
    import zlib

    from zarr.errors import BaseZarrError

    try:
        yield
    except (zipfile.BadZipFile, zlib.error, BaseZarrError, OSError, EOFError, KeyError, RuntimeError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise FormatError(
            f"the masks cannot be read ({e}): truncated or damaged",
            where=path,
            fix="copy the bundle again, or leave them out by --option masks=false",
        ) from e


def cell_ids(stored: np.ndarray) -> np.ndarray:
    """Ids as text, object [n]: numbers before version 1.3, then eight letters (hexadecimal, a to p) and a suffix.

    Parameters
    ----------
    stored
        uint32 [n], or [n, 2] of prefix and suffix.
    """
    if stored.ndim == 1 or stored.shape[1] == 1:
        return stored.ravel().astype(str).astype(object)
    prefix, suffix = stored[:, 0].astype(np.int64), stored[:, 1]
    digits = (prefix[:, None] >> (4 * np.arange(7, -1, -1))) & 15
    letters = np.ascontiguousarray((digits + ord("a")).astype(np.uint8)).view("S8").ravel().astype("U8")
    return np.char.add(np.char.add(letters, "-"), suffix.astype(str)).astype(object)


def _kinds(root: Any) -> list[tuple[int, str]]:
    """Numbers of the masks and our names: nuclei and cells in this order unless the file names them."""
    told = [str(n).lower() for n in root.attrs.get("polygon_set_names", ())] or ["nucleus", "cell"]
    names = ["nuclei" if n.startswith("nuc") else "cells" for n in told]
    return [(i, name) for i, name in enumerate(names) if str(i) in root["masks"]]


def _labels(root: Any, kind: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and their cells: position + 1 from version 2 on, told apart before, and of one nucleus a cell."""
    if "polygon_sets" in root:
        owner = np.asarray(root["polygon_sets"][str(kind)]["cell_index"]).astype(np.int64)
        if len(owner) and not 0 <= owner.min() <= owner.max() < len(ids):
            raise FormatError("outlines of cells that are not there", where=root.store, fix="copy the bundle again")
        return np.arange(1, len(owner) + 1, dtype=np.int64), ids[owner]
    if "seg_mask_value" in root:
        return np.asarray(root["seg_mask_value"]).astype(np.int64), ids
    return np.arange(1, len(ids) + 1, dtype=np.int64), ids


def _matrix(root: Any, pixel_um: float) -> np.ndarray:
    """Pixels to microns, by what the file says (microns to pixels) where it says so."""
    if "homogeneous_transform" in root["masks"]:
        told = np.asarray(root["masks"]["homogeneous_transform"], dtype=np.float64)
        if told.shape == (4, 4) and np.isfinite(told).all():
            flat = np.array([[*row[:2], row[3]] for row in told[[0, 1, 3]]])
            # Stored in 32 bits: where it says what the pixel size says, that is the more exact.
            if abs(np.linalg.det(flat)) > 1e-9 and not np.allclose(flat, np.diag([1 / pixel_um] * 2 + [1]), rtol=1e-5):
                return np.linalg.inv(flat)
    return np.diag([pixel_um, pixel_um, 1.0])


def _corners(root: Any, kind: int) -> tuple[np.ndarray, np.ndarray] | None:
    if "polygon_sets" in root and "vertices" in root["polygon_sets"][str(kind)]:
        group = root["polygon_sets"][str(kind)]
        flat, count = np.asarray(group["vertices"]), np.asarray(group["num_vertices"])
    elif "polygon_vertices" in root:
        flat, count = np.asarray(root["polygon_vertices"][kind]), np.asarray(root["polygon_num_vertices"][kind])
    else:
        return None
    xy = flat.reshape(len(flat), -1, 2).astype(np.float64)
    there = np.arange(xy.shape[1]) < count[:, None]
    return xy[there], np.nonzero(there)[0]
