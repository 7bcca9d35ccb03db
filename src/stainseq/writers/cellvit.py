"""CellViT's folders: one flat folder as STHELAR's fork reads it, or the original's folds."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .. import keys
from ..errors import InputError
from . import _card, _compact, _samples
from ._format import Format

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spatialdata import SpatialData

FORMAT = Format(
    tables="optional", prefers=("counts_",), region=keys.NUCLEI, needs_region=True, image=True, several=True
)

_DAY = (1980, 1, 1, 0, 0, 0)
_ZIPS = ("images.zip", "labels.zip", "masks_cell_ids_nuclei.zip")
_USUAL = ("train", "valid", "test")


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
    layout: Literal["flat", "folds"] = "flat",
    patches: str = keys.PATCHES,
    tissue: str | None = None,
    scores: str | None = None,
    min_jaccard: float | None = None,
    card: bool = True,
    licence: str = "not stated",
) -> list[Path]:
    """Write patches, instance and type maps of slides.

    Parameters
    ----------
    slides
        With patches (`pp.patches`) of one size and resolution.
    path
        The folder.
    region
        Polygons that are drawn: nuclei.
    tables
        Table of the region, whose obs has the labels.
    facts
        Of the export; the data card tells the version.
    split
        Set of each slide or patch; patches of no set are left out. None: all is train.
    labels
        Column of obs, such as "tangram.label", or a CSV of id and label. Default: the only ``<method>.label``; without
        one, all nuclei are one class.
    labels_table
        Another table that has them, as "counts_cells": a nucleus without a label of its own has its cell's.
    label_map
        "ct_1" (the nine classes of STHELAR), "ct_2", "ct_3", "curated", or a file; see `_classes.load_map`.
    unlabelled
        What cells without a label become. "class": the map's own class for them ("Dead" in ct_1), without a map a class
        "Unlabelled", the last; a nucleus drawn as background would teach a model not to find it. "skip": they are not
        drawn. "error".
    layout
        "flat" or "folds".
    patches
        Shapes element of the patches.
    tissue
        For slides that do not say.
    scores
        CSV of patches and their Dice, Jaccard, bPQ (`stainseq maskqc --csv`). Default: columns of the patches.
    min_jaccard
        Patches below are left out.
    card
        Whether to write README.md, dataset.json and examples.png.
    licence
        Of the data, for the card.

    Notes
    -----
    The flat folder: ``images.zip`` and ``labels.zip`` of ``<slide>_<number>.png`` and ``.npz`` (CSR parts of int32
    maps; instances 1 ... n in the order of the region, type 0 background), ``masks_cell_ids_nuclei.zip`` (id + 1; ids
    in ``cell_ids.csv``), ``types.csv``, ``cell_count.csv`` and one for each set, ``dataset_config.yaml``,
    ``weight_config.yaml``, ``patch_metrics.csv`` (-1: not scored), ``patches.csv``, ``annot_dicts_<map>``. Sets that
    the split does not have are tables without rows. Where nuclei overlap the later one lies above.
    """
    if layout not in ("flat", "folds"):
        raise InputError(f"layout={layout!r}", fix="flat or folds")
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
    counts = _flat(path, data) if layout == "flat" else _folds(path, data)
    made = [*_common(path, data), *_card.write(path, data, counts, facts, licence=licence, form="cellvit", card=card)]
    return sorted({*made, *(p for p in path.rglob("*") if p.is_file())})


class _Files(NamedTuple):
    """What a thread makes of a patch."""

    image: bytes
    labels: bytes
    ids: bytes
    counts: np.ndarray


def _encode(patch: _samples.Patch, data: _samples.DataSet) -> _Files:
    drawn = patch.drawn
    kinds = patch.of_pixels(patch.kinds)
    ids = patch.of_pixels(patch.source.numbers[drawn.members]).astype(data.id_type)
    shared = {"indices": _compact.pack(drawn.indices), "indptr": _compact.pack(drawn.indptr)}
    shape = _compact.pack_shape(patch.shape, "int32")
    arrays: dict[str, _compact.Packed] = {}
    for name, values in (("inst_map", drawn.instances), ("type_map", kinds.astype(np.int32))):
        parts = {"data": _compact.pack(values), **shared, "shape": shape}
        arrays |= {f"{name}_{k}": v for k, v in parts.items()}
    cells = _compact.csr({**shared, "data": _compact.pack(ids)}, patch.shape)
    return _Files(patch.png(), _compact.npz(arrays), cells, patch.counts(len(data.classes.names)))


def _flat(path: Path, data: _samples.DataSet) -> list[tuple[str, np.ndarray]]:
    counted = []
    with ExitStack() as stack:
        images, labels, ids = (
            stack.enter_context(zipfile.ZipFile(path / n, "w", zipfile.ZIP_STORED, allowZip64=True)) for n in _ZIPS
        )
        types = stack.enter_context(_Csv(path / "types.csv", ["img", "type"]))
        metrics = stack.enter_context(_Csv(path / "patch_metrics.csv", ["patch_id", *_samples.SCORES]))
        head = ["Image", *data.classes.names]
        parts = {p: "valid" if p in ("val", "validation") else p for p in data.parts}
        tables = {
            p: stack.enter_context(_Csv(path / f"cell_count_{_safe(p)}.csv", head))
            for p in dict.fromkeys([*_USUAL, *parts.values()])
        }
        all_counts = stack.enter_context(_Csv(path / "cell_count.csv", head))
        for patch, files in _samples.stream(data, lambda p: _encode(p, data), what="cellvit"):
            name = f"{patch.name}.png"
            images.writestr(zipfile.ZipInfo(name, _DAY), files.image)
            labels.writestr(zipfile.ZipInfo(f"{patch.name}.npz", _DAY), files.labels)
            ids.writestr(zipfile.ZipInfo(f"{patch.name}.npz", _DAY), files.ids)
            row = [name, *files.counts.tolist()]
            tables[parts[patch.part]].row(row)
            all_counts.row(row)
            types.row([name, patch.source.tissue])
            metrics.row([name, *(f"{v:.6g}" for v in patch.source.scores[patch.index])])
            counted.append((patch.part, files.counts))
    return counted


def _folds(path: Path, data: _samples.DataSet) -> list[tuple[str, np.ndarray]]:
    counted = []
    number = {part: k for k, part in enumerate(data.parts)}
    done = dict.fromkeys(data.parts, 0)

    def encode(patch: _samples.Patch) -> tuple[bytes, bytes, np.ndarray]:
        maps = {
            "inst_map": patch.dense(patch.drawn.instances).astype(np.float64),
            "type_map": patch.dense(patch.of_pixels(patch.kinds)).astype(np.int32),
        }
        held = io.BytesIO()
        np.save(held, np.array(maps, dtype=object), allow_pickle=True)  # the original's loader wants a dictionary
        return patch.png(), held.getvalue(), patch.counts(len(data.classes.names))

    with ExitStack() as stack:
        types, tables = {}, {}
        for part, k in number.items():
            for folder in ("images", "labels"):
                (path / f"fold{k}" / folder).mkdir(parents=True)
            types[part] = stack.enter_context(_Csv(path / f"fold{k}" / "types.csv", ["img", "type"]))
            head = ["Image", *data.classes.names]
            tables[part] = stack.enter_context(_Csv(path / f"fold{k}" / "cell_count.csv", head))
        origin = stack.enter_context(_Csv(path / "fold_patches.csv", ["img", "fold", "patch_id", "split"]))
        for patch, (image, maps, counts) in _samples.stream(data, encode, what="cellvit"):
            part, k = patch.part, number[patch.part]
            name = f"{k}_{done[part]}"
            done[part] += 1
            (path / f"fold{k}" / "images" / f"{name}.png").write_bytes(image)
            (path / f"fold{k}" / "labels" / f"{name}.npy").write_bytes(maps)
            types[part].row([f"{name}.png", patch.source.tissue])
            tables[part].row([f"{name}.png", *counts.tolist()])
            origin.row([f"{name}.png", k, patch.name, part])
            counted.append((part, counts))
    return counted


def _common(path: Path, data: _samples.DataSet) -> list[Path]:
    """What both layouts have: configuration, classes, ids, places."""
    table = _samples.patch_table(data)
    tissues = list(dict.fromkeys(s.tissue for s in data.sources))
    kinds = {"Background": 0, **{c: i + 1 for i, c in enumerate(data.classes.names)}}
    (path / "dataset_config.yaml").write_text(
        yaml({"tissue_types": {t: i for i, t in enumerate(tissues)}, "nuclei_types": kinds}), encoding="utf-8"
    )
    trained = table[table["split"] == data.parts[0]] if data.parts[0] == _samples.TRAIN else table
    numbers = trained["tissue"].value_counts()
    (path / "weight_config.yaml").write_text(
        yaml({"tissue": {t: int(numbers.get(t, 0)) for t in tissues}}), encoding="utf-8"
    )
    table.to_csv(path / "patches.csv", index=False)
    write_dictionaries(path, data)
    _samples.write_ids(path / "cell_ids.csv", data)
    return [path / n for n in ("dataset_config.yaml", "weight_config.yaml", "patches.csv", "cell_ids.csv")]


def write_dictionaries(path: Path, data: _samples.DataSet) -> list[Path]:
    """``annot_dicts_<map>`` with label2cat, cat2idx and cat2color."""
    folder = path / f"annot_dicts_{_safe(data.classes.map_name)}"
    folder.mkdir()
    made = []
    for name, held in data.classes.dictionaries().items():
        made.append(folder / f"{name}.json")
        made[-1].write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return made


def yaml(tables: Mapping[str, Mapping[str, int]]) -> str:
    """Tables of names and numbers as YAML."""
    lines = []
    for title, entries in tables.items():
        lines.append(f"{title}:")
        lines += [f"  {_plain(name)}: {number}" for name, number in entries.items()]
    return "\n".join(lines) + "\n"


def _plain(name: str) -> str:
    """As it is where YAML reads it as text, else quoted."""
    word = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
    reserved = name.lower() in ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return name if word and not reserved else json.dumps(name, ensure_ascii=False)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", name)


class _Csv:
    """A CSV that is written row by row."""

    def __init__(self, path: Path, head: Iterable[Any]) -> None:
        self._path, self._head = path, list(head)

    def __enter__(self) -> _Csv:
        self._file = self._path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self.row(self._head)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def row(self, values: Iterable[Any]) -> None:
        """One line."""
        self._writer.writerow(values)
