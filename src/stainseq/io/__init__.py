"""Reading and writing: slides, tables, foreign formats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..experiment import Experiment, read_experiment, write_experiment
from ._cohort import convert_cohort
from ._export import export
from ._image import get_image
from ._info import info
from ._keypoints import Keypoints, read_keypoints, write_keypoints
from ._read import convert, read, sniff
from ._tables import read_table, write_table
from ._view import view

if TYPE_CHECKING:
    from spatialdata import SpatialData

__all__ = [
    "Experiment",
    "Keypoints",
    "convert",
    "convert_cohort",
    "export",
    "get_image",
    "info",
    "open",
    "read",
    "read_experiment",
    "read_keypoints",
    "read_table",
    "sniff",
    "view",
    "write",
    "write_experiment",
    "write_keypoints",
    "write_table",
]


def open(path: str | os.PathLike[str]) -> SpatialData:
    """Open a slide store (``NAME.zarr`` or ``NAME.zarr.zip``).

    What an interrupted write left behind is finished or dropped first. Images, labels and points are lazy.

    Parameters
    ----------
    path
        The store.

    Raises
    ------
    stainseq.errors.StoreError
        Not a store, written by a newer stainseq, or damaged.
    """
    from .. import store

    return store.open(path)


def write(
    sdata: SpatialData,
    path: str | os.PathLike[str],
    *,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> SpatialData:
    """Write a slide to a new store, and open it from there.

    The store appears under its name only when it is complete.

    Parameters
    ----------
    sdata
        Any SpatialData; may be lazy. Something in it must be placed in microns ("um").
    path
        Folder to make, by custom ``NAME.zarr``.
    facts
        Facts of the slide: slide, patient, tissue, platform, mpp (microns per pixel of `he`).
    overwrite
        Replace a store that is there.

    Returns
    -------
    SpatialData
        The slide, opened from `path`.

    Raises
    ------
    stainseq.errors.StoreError
        `path` exists, is read-only, or the disk is full; what was there is unchanged.
    """
    from .. import store

    return store.create(path, sdata, step="write", parameters={}, facts=facts, overwrite=overwrite)


def __dir__() -> list[str]:
    return __all__
