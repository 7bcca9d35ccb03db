"""Arrays: labels, PanNuke's masks, sparse maps of CellViT and STHELAR, HoVer-Net's .mat."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError
from ._model import Mask, Masks, checked

MOST_CHANNELS = 32
"""A last axis this short is one of classes; no image is so narrow."""

_DAMAGED = (ValueError, OSError, EOFError, KeyError, IndexError, zipfile.BadZipFile, zlib.error)


def open_npy(path: Path) -> Masks:
    """Labels or PanNuke's masks, memory-mapped; see `stainseq.masks.open_masks`."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGED as e:
        raise FormatError(f"no array that can be read ({e})", where=path, fix="save plain arrays") from e
    channels = values.ndim >= 3 and values.shape[-1] <= MOST_CHANNELS
    one = 3 if channels else 2
    if values.ndim == one:
        return Masks([path.stem], lambda name, shape: _from_stack(np.asarray(values), channels, path), str(path))
    if values.ndim != one + 1:
        raise FormatError(f"an array of shape {values.shape}", where=path, fix="give [n, h, w] or [n, h, w, channels]")

    def read(name: str, shape: tuple[int, int] | None) -> Mask:
        return _from_stack(np.asarray(values[int(name)]), channels, f"{path}, image {name}")

    return Masks([str(i) for i in range(len(values))], read, str(path))


def _from_stack(values: np.ndarray, channels: bool, where: object) -> Mask:
    if not channels:
        return checked(values, None, where)
    instances, classes = np.zeros(values.shape[:2], dtype=np.int64), np.zeros(values.shape[:2], dtype=np.int32)
    for c in range(values.shape[2] - 1):  # the last channel is PanNuke's background, or STHELAR's class index
        layer = checked(values[..., c], None, where).instances.astype(np.int64)
        here = layer > 0
        # An id may return in another channel and is another nucleus there.
        instances[here] = layer[here] * values.shape[2] + c
        classes[here] = c + 1
    return Mask(instances, classes)


def open_npz(path: Path) -> Masks:
    """Dense or sparse maps of one patch; see `stainseq.masks.open_masks`."""

    def read(name: str, shape: tuple[int, int] | None) -> Mask:
        with open(path, "rb") as file:  # numpy leaves a damaged archive open that it has opened itself
            return _from_npz(file, path)

    return Masks([path.stem], read, str(path))


def open_zip(path: Path) -> Masks:
    """Many .npz in one archive, as CellViT for STHELAR keeps its labels."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {Path(n).stem: n for n in archive.namelist() if n.endswith(".npz")}
    except _DAMAGED as e:
        raise FormatError(f"no zip archive that can be read ({e})", where=path, fix="copy it again") from e
    if not members:
        raise FormatError("no .npz in this archive", where=path, fix="give CellViT's labels.zip")

    def read(name: str, shape: tuple[int, int] | None) -> Mask:
        where = f"{path}, {members[name]}"
        try:
            with zipfile.ZipFile(path) as archive:
                data = archive.read(members[name])
        except _DAMAGED as e:
            raise FormatError(f"damaged ({e})", where=where, fix="copy it again") from e
        return _from_npz(io.BytesIO(data), where)

    return Masks(list(members), read, str(path))


def _from_npz(file: Any, where: object) -> Mask:
    try:
        with np.load(file, allow_pickle=False) as held:
            names = set(held.files)
            if "inst_map" in names:
                return checked(held["inst_map"], held["type_map"] if "type_map" in names else None, where)
            if "inst_map_data" in names:
                typed = "type_map_data" in names
                return checked(csr(held, "inst_map_"), csr(held, "type_map_") if typed else None, where)
            if {"data", "indices", "indptr", "shape"} <= names:
                return checked(csr(held, ""), None, where)
            if len(names) == 1:
                return checked(held[held.files[0]], None, where)
    except _DAMAGED as e:
        raise FormatError(f"no arrays that can be read ({e})", where=where, fix="write it again") from e
    raise FormatError(f"arrays {sorted(names)}", where=where, fix="name them inst_map and type_map")


def csr(parts: Any, prefix: str) -> np.ndarray:
    """A dense map from the parts of a CSR matrix, named by a prefix in a mapping of arrays."""
    import scipy.sparse as sp

    data, indices, indptr, shape = (np.asarray(parts[prefix + k][...]) for k in ("data", "indices", "indptr", "shape"))
    held = sp.csr_matrix((data, indices, indptr), shape=tuple(int(v) for v in shape))
    held.check_format(full_check=True)  # places outside the map would be written there, to whatever memory it is
    return held.toarray()


def open_mat(path: Path) -> Masks:
    """HoVer-Net's inst_map and type_map."""

    def read(name: str, shape: tuple[int, int] | None) -> Mask:
        from scipy.io import loadmat

        try:
            held = loadmat(path)
        except (*_DAMAGED, TypeError, NotImplementedError) as e:
            raise FormatError(f"no .mat that can be read ({e})", where=path, fix="save it in version 5") from e
        if "inst_map" not in held:
            raise FormatError("no inst_map", where=path, fix="HoVer-Net's files have inst_map and type_map")
        return checked(held["inst_map"], held.get("type_map"), path)

    return Masks([path.stem], read, str(path))
