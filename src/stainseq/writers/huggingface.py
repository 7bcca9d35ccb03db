"""STHELAR's Hugging Face layout: parquet of pictures with the map of cells of each, and tables of cells and patches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from . import _card, _compact, _samples
from ._format import Format
from .cellvit import write_dictionaries

if TYPE_CHECKING:
    from spatialdata import SpatialData

FORMAT = Format(
    tables="optional", prefers=("counts_",), region=keys.NUCLEI, needs_region=True, image=True, several=True
)

_SHARD_BYTES = 400 << 20
"""Of a file; the Hub streams files of some hundred megabytes best."""

_GROUP = 100
"""Rows of a row group, about 12 MB: what a reader of single rows must fetch."""


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
    card: bool = True,
    licence: str = "not stated",
) -> list[Path]:
    """Write patches as a data set of `datasets.load_dataset`.

    Parameters
    ----------
    slides, path, region, tables, facts, split, labels, labels_table, label_map, unlabelled, patches, tissue, scores, \
min_jaccard, card, licence
        As for `cellvit.write`.

    Notes
    -----
    ``data/<set>-<k>-of-<n>.parquet``: file_name, image {bytes, path} (PNG), slide_id, tissue (class label), cell_id_map
    (bytes of a ``save_npz`` CSR, id + 1), Dice, Jaccard, bPQ (float16, -1: not scored). A set "valid" is called
    "validation", as the Hub calls it. ``patches_overview.parquet``: file_name, slide_id, xmin, ymin, xmax, ymax, Dice,
    Jaccard, bPQ. ``cell_metadata/<slide>_cell_metadata.parquet``: cell_id_int, cell_id, id (of the nucleus), label,
    class, class_number. ``annot_dicts_<map>``.
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
    counts = _pictures(path / "data", data)
    _tables(path, data)
    write_dictionaries(path, data)
    _card.write(path, data, counts, facts, licence=licence, form="huggingface", card=card, head=_head(data, licence))
    return sorted(p for p in path.rglob("*") if p.is_file())


def _pictures(folder: Path, data: _samples.DataSet) -> list[tuple[str, np.ndarray]]:
    folder.mkdir()
    tissues = list(dict.fromkeys(s.tissue for s in data.sources))
    files = {p: _Shards(folder, _hub(p), tissues) for p in data.parts}
    counted = []

    def encode(patch: _samples.Patch) -> tuple[bytes, bytes]:
        ids = patch.of_pixels(patch.source.numbers[patch.drawn.members]).astype(data.id_type)
        parts = {"data": ids, "indices": patch.drawn.indices, "indptr": patch.drawn.indptr}
        return patch.png(), _compact.csr({k: _compact.pack(v) for k, v in parts.items()}, patch.shape)

    for patch, (image, ids) in _samples.stream(data, encode, what="huggingface"):
        name = f"{patch.name}.png"
        files[patch.part].add({
            "file_name": name,
            "image": {"bytes": image, "path": name},
            "slide_id": patch.source.slide,
            "tissue": tissues.index(patch.source.tissue),
            "cell_id_map": ids,
            **dict(zip(_samples.SCORES, patch.source.scores[patch.index].astype(np.float16), strict=True)),
        }, len(image) + len(ids))  # fmt: skip
        counted.append((patch.part, patch.counts(len(data.classes.names))))
    for shards in files.values():
        shards.close()
    return counted


class _Shards:
    """Parquet files of one set, a new one when one is full; named when it is known how many there are."""

    def __init__(self, folder: Path, part: str, tissues: list[str]) -> None:
        import pyarrow as pa

        fields = [
            ("file_name", pa.string()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("slide_id", pa.string()),
            ("tissue", pa.int64()),
            ("cell_id_map", pa.binary()),
            *((s, pa.float16()) for s in _samples.SCORES),
        ]
        told = {
            "file_name": {"dtype": "string", "_type": "Value"},
            "image": {"_type": "Image"},
            "slide_id": {"dtype": "string", "_type": "Value"},
            "tissue": {"names": tissues, "_type": "ClassLabel"},
            "cell_id_map": {"dtype": "binary", "_type": "Value"},
            **{s: {"dtype": "float16", "_type": "Value"} for s in _samples.SCORES},
        }
        about = {"huggingface": json.dumps({"info": {"features": told}})}
        self._schema = pa.schema(fields, metadata=about)
        self._folder, self._part = folder, part
        self._rows: list[dict[str, Any]] = []
        self._files: list[Path] = []
        self._file: Any = None
        self._bytes = 0

    def add(self, row: dict[str, Any], size: int) -> None:
        """One more row, and how large it is."""
        self._rows.append(row)
        self._bytes += size
        if len(self._rows) >= _GROUP:
            self._flush()
        if self._bytes >= _SHARD_BYTES:
            self._finish()

    def _flush(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        if not self._rows:
            return
        if self._file is None:
            self._files.append(self._folder / f"{self._part}-{len(self._files):05d}.part")
            # Pictures are compressed already.
            self._file = parquet.ParquetWriter(self._files[-1], self._schema, compression="none", use_dictionary=False)
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def _finish(self) -> None:
        self._flush()
        if self._file is not None:
            self._file.close()
        self._file, self._bytes = None, 0

    def close(self) -> None:
        """Give the files their names."""
        self._finish()
        for k, file in enumerate(self._files):
            file.rename(self._folder / f"{self._part}-{k:05d}-of-{len(self._files):05d}.parquet")


def _hub(part: str) -> str:
    return "validation" if part in ("valid", "val") else part


def _tables(path: Path, data: _samples.DataSet) -> None:
    import pandas as pd

    table = _samples.patch_table(data)
    table.insert(0, "file_name", table["patch_id"] + ".png")
    columns = ["file_name", "slide_id", "xmin", "ymin", "xmax", "ymax", *_samples.SCORES]
    table[columns].to_parquet(path / "patches_overview.parquet", index=False)
    folder = path / "cell_metadata"
    folder.mkdir()
    named = np.array([None, *data.classes.names], dtype=object)
    for s in data.sources:
        cells = {"cell_id_int": s.numbers - 1, "cell_id": s.owners, "id": s.ids, "label": s.labels}
        frame = pd.DataFrame({**cells, "class": named[s.kinds], "class_number": s.kinds})
        frame.to_parquet(folder / f"{s.slide}_cell_metadata.parquet", index=False)


def _head(data: _samples.DataSet, licence: str) -> str:
    """What the Hub reads at the top of a README."""
    lines = ["---", *([f"license: {licence.lower()}"] if licence != "not stated" else [])]
    lines += ["configs:", "- config_name: default", "  data_files:"]
    for part in data.parts:
        lines += [f"  - split: {_hub(part)}", f"    path: data/{_hub(part)}-*.parquet"]
    return "\n".join([*lines, "---", "", ""])
