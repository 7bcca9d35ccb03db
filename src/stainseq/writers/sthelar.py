"""STHELAR's arrays: sparse masks of all patches of a slide as one matrix, and cells beside them."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from . import _card, _samples
from ._format import Format
from .cellvit import write_dictionaries

if TYPE_CHECKING:
    from spatialdata import SpatialData

FORMAT = Format(
    tables="optional", prefers=("counts_",), region=keys.NUCLEI, needs_region=True, image=True, several=True
)

_DAY = (1980, 1, 1, 0, 0, 0)


def write(
    slides: list[SpatialData],
    path: Path,
    *,
    region: str,
    tables: tuple[str, ...],
    facts: dict[str, Any],
    split: Mapping[str, str] | None = None,
    labels: str | None = None,
    labels_table: str | None = None,
    label_map: str | None = None,
    unlabelled: Literal["class", "skip", "error"] = "class",
    patches: str = keys.PATCHES,
    tissue: str | None = None,
    scores: str | None = None,
    min_jaccard: float | None = None,
    card: bool = False,
    licence: str = "not stated",
) -> list[Path]:
    """Write each slide's patches and sparse masks; several slides, a folder each.

    Parameters
    ----------
    slides, path, region, tables, facts, labels, labels_table, label_map, unlabelled, patches, tissue, scores, \
min_jaccard, card, licence
        As for `cellvit.write`; no card by default.
    split
        Patches of no set are left out; ``patches.csv`` tells the sets.

    Notes
    -----
    ``images.npy`` uint8 [n, h, w, 3]. ``masks_<slide>.npz``: CSR int32 of ``scipy.sparse.save_npz``, [n * h * w,
    classes + 1]; patch i is rows [i * h * w, (i + 1) * h * w); channel c holds the instances of class c, numbered over
    the whole patch, the last the class number, 1 ... ``masks_cells.npz``: CSR [n, h * w], id + 1. ``patch_ids.npy`` int
    [n], the number in ``<slide>_<number>``; ``types.npy`` str [n]. Beside them ``patches.csv``, ``cell_ids.csv``,
    ``annot_dicts_<map>``. Matrices are written part by part: only a patch is ever in memory.
    """
    data = _samples.prepare(
        slides,
        region=region,
        tables=tables,
        split=split,
        labels=labels,
        labels_table=labels_table,
        label_map=label_map,
        unlabelled=unlabelled,
        patches=patches,
        tissue=tissue,
        scores=scores,
        min_jaccard=min_jaccard,
    )
    counts = []
    for source in data.sources:
        if not len(source.chosen):
            continue
        folder = path / source.slide if len(data.sources) > 1 else path
        folder.mkdir(exist_ok=True)
        counts += _slide(folder, _samples.DataSet([source], data.classes, data.parts), data.id_type)
    _samples.patch_table(data).to_csv(path / "patches.csv", index=False)
    _samples.write_ids(path / "cell_ids.csv", data)
    write_dictionaries(path, data)
    _card.write(path, data, counts, facts, licence=licence, form="sthelar", card=card)
    return sorted(p for p in path.rglob("*") if p.is_file())


def _slide(folder: Path, data: _samples.DataSet, id_type: type[np.integer[Any]]) -> list[tuple[str, np.ndarray]]:
    (source,) = data.sources
    side, n_classes, n = data.size_px, len(data.classes.names), len(data)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(n, side, side, 3))
    counted = []
    with tempfile.TemporaryDirectory(dir=folder) as parts:
        masks = _Matrix(Path(parts) / "masks", np.dtype(np.int32))
        cells = _Matrix(Path(parts) / "cells", np.dtype(id_type))
        with masks, cells:
            for row, (patch, (pixels, of_masks, of_cells)) in enumerate(
                _samples.stream(data, lambda p: (p.pixels(), _rows(p, n_classes), _cells(p)), what="sthelar")
            ):
                images[row] = pixels
                masks.add(*of_masks)
                cells.add(*of_cells)
                counted.append((patch.part, patch.counts(n_classes)))
        images.flush()
        masks.save(folder / f"masks_{source.slide}.npz", (n * side * side, n_classes + 1))
        cells.save(folder / "masks_cells.npz", (n, side * side))
    names = source.names[source.chosen]
    np.save(folder / "patch_ids.npy", np.array([int(str(v).rsplit("_", 1)[1]) for v in names]))
    np.save(folder / "types.npy", np.full(n, source.tissue))
    return counted


def _rows(patch: _samples.Patch, n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values, columns, entries of each row): a row a pixel, two entries where there is a nucleus."""
    drawn = patch.drawn
    kinds = patch.of_pixels(patch.kinds)
    values = np.stack([drawn.instances, kinds], axis=1).ravel()
    columns = np.stack([kinds - 1, np.full_like(kinds, n_classes)], axis=1).ravel()
    lengths = np.zeros(patch.shape[0] * patch.shape[1], dtype=np.int64)
    lengths[_places(patch)] = 2
    return values.astype(np.int32), columns.astype(np.int32), lengths


def _cells(patch: _samples.Patch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with a row a patch."""
    numbers = patch.of_pixels(patch.source.numbers[patch.drawn.members])
    places = _places(patch)
    return numbers, places.astype(np.int32), np.array([len(places)], dtype=np.int64)


def _places(patch: _samples.Patch) -> np.ndarray:
    rows = np.repeat(np.arange(patch.shape[0]), np.diff(patch.drawn.indptr))
    return rows * patch.shape[1] + patch.drawn.indices


class _Matrix:
    """A CSR matrix that is written as it comes; .npz wants to know the lengths first, so parts wait in files."""

    def __init__(self, stem: Path, dtype: np.dtype[Any]) -> None:
        self._paths = {k: stem.with_name(f"{stem.name}_{k}") for k in ("data", "indices", "indptr")}
        self._dtype = dtype
        self._entries = self._rows = 0

    def __enter__(self) -> _Matrix:
        self._files: dict[str, IO[bytes]] = {k: p.open("wb") for k, p in self._paths.items()}
        self._files["indptr"].write(np.zeros(1, dtype=np.int64).tobytes())
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, values: np.ndarray, columns: np.ndarray, lengths: np.ndarray) -> None:
        """Some more rows."""
        ends = self._entries + np.cumsum(lengths)
        self._files["data"].write(values.astype(self._dtype, copy=False).tobytes())
        self._files["indices"].write(columns.tobytes())
        self._files["indptr"].write(ends.astype(np.int64, copy=False).tobytes())
        self._entries, self._rows = int(ends[-1]), self._rows + len(lengths)

    def save(self, path: Path, shape: tuple[int, int]) -> None:
        """Put the parts together as ``scipy.sparse.save_npz`` does."""
        # Both index arrays have one type in scipy: that which holds the number of entries.
        index: np.dtype[Any] = np.dtype(np.int32 if self._entries <= np.iinfo(np.int32).max else np.int64)
        lengths = {"indices": self._entries, "indptr": self._rows + 1, "data": self._entries}
        held: dict[str, np.dtype[Any]] = {
            "indices": np.dtype(np.int32),
            "indptr": np.dtype(np.int64),
            "data": self._dtype,
        }
        wanted: dict[str, np.dtype[Any]] = {"indices": index, "indptr": index, "data": self._dtype}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True, compresslevel=1) as archive:
            for key, value in (("format", np.array(b"csr")), ("shape", np.array(shape, dtype=np.int64))):
                with archive.open(_entry(key), "w") as out:
                    np.lib.format.write_array(out, value, allow_pickle=False)
            for key, n in lengths.items():
                with archive.open(_entry(key), "w", force_zip64=True) as out:
                    head = {"descr": wanted[key].str, "fortran_order": False, "shape": (n,)}
                    np.lib.format.write_array_header_1_0(out, head)
                    self._copy(key, held[key], wanted[key], out)

    def _copy(self, key: str, held: np.dtype[Any], wanted: np.dtype[Any], out: IO[bytes]) -> None:
        with self._paths[key].open("rb") as file:
            if held == wanted:
                shutil.copyfileobj(file, out, 1 << 22)
                return
            while piece := file.read(1 << 22):
                out.write(np.frombuffer(piece, dtype=held).astype(wanted).tobytes())


def _entry(key: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{key}.npy", _DAY)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
