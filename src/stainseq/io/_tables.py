"""AnnData and MuData files, read and written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData


def read_table(path: str | os.PathLike[str], *, modality: str | None = None) -> AnnData:
    """Read an expression table from an AnnData or MuData file.

    Parameters
    ----------
    path
        ``X.h5ad``, ``X.h5mu``, or ``X.h5mu/NAME`` for a modality, as mudata writes it.
    modality
        Of a MuData file; only that one is read. Default: the only one, or the only one with ``obsm["spatial"]``.

    Returns
    -------
    AnnData
        In memory.

    Raises
    ------
    MissingError
        No such file or modality; several modalities and none named.
    FormatError
        Not such a file, or damaged.
    InputError
        Another ending; a modality of an h5ad file.
    """
    from .. import tables

    file, inside = tables.split_modality(path)
    if file.suffix not in (tables.H5AD, tables.H5MU):
        raise InputError("not an h5ad or h5mu file", where=file, fix="open stores with io.open, sources with io.read")
    if file.suffix == tables.H5AD and modality is not None:
        raise InputError("an h5ad file has no modalities", where=file, fix="leave modality out")
    found: AnnData = tables.open_path(path, modality=modality or inside)
    return found


def write_table(table: Any, path: str | os.PathLike[str]) -> Path:
    """Write an AnnData (``.h5ad``) or a MuData (``.h5mu``); the file appears only when it is complete.

    Parameters
    ----------
    table
        AnnData or MuData, with as many samples as ``obs["sample"]`` names.
    path
        File to write; one that is there is replaced in one step.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        The ending does not fit the object; something in it that the format cannot hold.
    StoreError
        No permission, full disk.
    """
    from .. import tables

    return tables.write_table(table, path)
