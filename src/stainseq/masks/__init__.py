"""Instance maps of others: images, arrays, CellViT's and PanNuke's files, outlines; opened lazily, one map at a time.

A file or folder becomes `Masks`: names in order, and a function that reads one. A new format is one function in
`_FORMATS`, by the ending of the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import FormatError, InputError, MissingError
from . import _arrays, _hdf, _outlines, _pictures
from ._model import Mask, Masks

__all__ = ["Mask", "Masks", "open_masks"]

_FORMATS = {
    ".png": _pictures.open_picture,
    ".tif": _pictures.open_picture,
    ".tiff": _pictures.open_picture,
    ".bmp": _pictures.open_picture,
    ".npy": _arrays.open_npy,
    ".npz": _arrays.open_npz,
    ".zip": _arrays.open_zip,
    ".mat": _arrays.open_mat,
    ".h5": _hdf.open_h5,
    ".hdf5": _hdf.open_h5,
    ".geojson": _outlines.open_outlines,
    ".json": _outlines.open_outlines,
}


def open_masks(*paths: str | os.PathLike[str]) -> Masks:
    """Open instance maps, and class maps where the format has them.

    Parameters
    ----------
    paths
        A file or a folder; several are joined (a slide that was predicted in several runs).

        - ``.png .tif .bmp``: integer labels, or RGB with one colour an instance; 0 and black are background.
        - ``.npy``: labels [h, w] or [n, h, w]; PanNuke's masks [n, h, w, classes + 1], whose last channel is left out,
          memory-mapped.
        - ``.npz``: arrays ``inst_map``, ``type_map``; CellViT's CSR parts ``inst_map_data`` ... of STHELAR; a matrix of
          ``scipy.sparse.save_npz``. ``.zip``: many of these.
        - ``.mat``: ``inst_map`` and ``type_map`` as HoVer-Net writes them.
        - ``.h5``: CellViT's ``instance_map_predictions``, four data sets a patch.
        - ``.geojson``, ``.json``: outlines (QuPath, CellViT's cells), drawn by the even-odd rule; their classification
          becomes the class.

    Raises
    ------
    MissingError
        There is no such file, or no map in the folder.
    FormatError
        An unknown or damaged format.
    InputError
        A name occurs twice.
    """
    if not paths:
        raise InputError("no masks given", fix="name a file or a folder")
    return _joined([_open(Path(p)) for p in paths])


def _open(path: Path) -> Masks:
    if path.is_dir():
        if (path / "masks.npy").is_file():  # PanNuke's folder, with images.npy and types.npy beside
            return _open(path / "masks.npy")
        # What exports of ours say of themselves lies among their files.
        there = (p for p in path.iterdir() if p.suffix.lower() in _FORMATS and not p.name.endswith("export.json"))
        found = sorted(there, key=natural)
        if not found:
            raise MissingError("no instance maps in this folder", where=path, fix=f"of {', '.join(_FORMATS)}")
        if len(found) == 1:
            return _open(found[0])
        # One map a file needs not be opened to know its name; containers do.
        return _joined([_one(p) if p.suffix.lower() not in (".h5", ".hdf5", ".zip") else _open(p) for p in found])
    if not path.exists():
        raise MissingError("there is no such file", where=path, fix="correct the path")
    kind = path.suffix.lower()
    if kind not in _FORMATS:
        raise FormatError(f"no format of instance maps ends in {kind!r}", where=path, fix=f"of {', '.join(_FORMATS)}")
    return _FORMATS[kind](path)


def _one(path: Path) -> Masks:
    """A file of a folder, opened when its map is read."""

    def read(name: str, shape: tuple[int, int] | None) -> Mask:
        inner = _FORMATS[path.suffix.lower()](path)
        if len(inner.names) != 1:
            raise FormatError(
                f"{len(inner.names)} maps in one file of a folder", where=path, fix="name the file itself"
            )
        return inner.read(inner.names[0], shape)

    return Masks([path.stem], read, str(path))


def _joined(parts: Sequence[Masks]) -> Masks:
    if len(parts) == 1:
        return parts[0]
    owner: dict[str, Masks] = {}
    for part in parts:
        for name in part.names:
            if name in owner:
                raise InputError(
                    f"the map {name!r} is there twice",
                    where=f"{owner[name].where} and {part.where}",
                    fix="leave one of them out",
                )
            owner[name] = part
    return Masks(list(owner), lambda name, shape: owner[name].read(name, shape), str(parts[0].where))


def natural(path: Path) -> list[object]:
    """Sort key: 2 before 10."""
    return [(0, int(t), "") if t.isdecimal() else (1, 0, t) for t in re.split(r"(\d+)", path.name)]
