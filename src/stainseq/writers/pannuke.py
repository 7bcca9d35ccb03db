"""PanNuke's arrays: images.npy, masks.npy, types.npy, in one folder or one a set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    dtype: Literal["int32", "uint16", "float64"] = "int32",
    patches: str = keys.PATCHES,
    tissue: str | None = None,
    scores: str | None = None,
    min_jaccard: float | None = None,
    card: bool = False,
    licence: str = "not stated",
) -> list[Path]:
    """Write patches and their masks as plain arrays.

    Parameters
    ----------
    slides, path, region, tables, facts, labels, labels_table, label_map, unlabelled, patches, tissue, scores, \
min_jaccard, card, licence
        As for `cellvit.write`; no card by default.
    split
        Each set is a folder then; without, all lies in one.
    dtype
        Of the masks. Default int32; "float64" is what the original's are said to be, "uint16" the smallest.

    Notes
    -----
    ``images.npy`` uint8 [n, h, w, 3]. ``masks.npy`` [n, h, w, classes + 1]: channel c holds the instances of class c,
    numbered 1 ... over all classes of the patch (so that no number returns in another channel), the last is 1 on
    background. ``types.npy`` str [n], tissue. Beside them ``patch_ids.npy`` str [n], ``instances.csv`` (patch, instance
    and the cell that it is), ``cell_ids.csv``, ``patches.csv``, ``annot_dicts_<map>``. The arrays are written through
    memory maps, block by block.
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
    counts = _arrays(path, data, np.dtype(dtype), apart=split is not None)
    _samples.patch_table(data).to_csv(path / "patches.csv", index=False)
    _samples.write_ids(path / "cell_ids.csv", data)
    write_dictionaries(path, data)
    _card.write(path, data, counts, facts, licence=licence, form="pannuke", card=card)
    return sorted(p for p in path.rglob("*") if p.is_file())


def _arrays(path: Path, data: _samples.DataSet, dtype: np.dtype[Any], *, apart: bool) -> list[tuple[str, np.ndarray]]:
    side, n_classes = data.size_px, len(data.classes.names)
    folders = {p: path / p if apart else path for p in data.parts}
    sizes = {p: sum(int((s.parts[s.chosen] == p).sum()) for s in data.sources) for p in data.parts}
    images, masks, at = {}, {}, dict.fromkeys(data.parts, 0)
    for part, folder in folders.items():
        folder.mkdir(exist_ok=True)
        shape = (sizes[part], side, side)
        images[part] = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(*shape, 3))
        masks[part] = np.lib.format.open_memmap(
            folder / "masks.npy", mode="w+", dtype=dtype, shape=(*shape, n_classes + 1)
        )
    names: dict[str, list[tuple[str, str]]] = {p: [] for p in data.parts}
    counted = []
    with (path / "instances.csv").open("w", encoding="utf-8", newline="") as file:
        file.write("patch_id,instance,cell_id_int,class\n")

        def encode(patch: _samples.Patch) -> tuple[np.ndarray, np.ndarray]:
            return patch.pixels(), _channels(patch, n_classes, dtype)

        for patch, (pixels, channels) in _samples.stream(data, encode, what="pannuke"):
            part, row = patch.part, at[patch.part]
            images[part][row], masks[part][row] = pixels, channels
            at[part] = row + 1
            names[part].append((patch.name, patch.source.tissue))
            numbers = patch.source.numbers[patch.drawn.members] - 1
            file.writelines(
                f"{patch.name},{i + 1},{number},{kind}\n"
                for i, (number, kind) in enumerate(zip(numbers.tolist(), patch.kinds.tolist(), strict=True))
            )
            counted.append((part, patch.counts(n_classes)))
    for part, folder in folders.items():
        images[part].flush()
        masks[part].flush()
        np.save(folder / "types.npy", np.array([t for _, t in names[part]]))
        np.save(folder / "patch_ids.npy", np.array([n for n, _ in names[part]]))
    return counted


def _channels(patch: _samples.Patch, n_classes: int, dtype: np.dtype[Any]) -> np.ndarray:
    """[h, w, classes + 1] of one patch."""
    drawn = patch.drawn
    out = np.zeros((*patch.shape, n_classes + 1), dtype=dtype)
    out[..., n_classes] = 1
    rows = np.repeat(np.arange(patch.shape[0]), np.diff(drawn.indptr))
    out[rows, drawn.indices, n_classes] = 0
    out[rows, drawn.indices, patch.of_pixels(patch.kinds) - 1] = drawn.instances
    return out
