"""Patches with their nuclei, class by class, as data sets for training want them: prepared per slide, then streamed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .. import patches as windows
from .._progress import progress
from .._settings import settings
from ..core import cell_ids
from ..errors import InputError, MissingError
from . import _classes, _compact
from ._flat import name_of
from ._labels import labels_of, owners_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

T = TypeVar("T")

BLOCK = 128
"""Patches whose masks are drawn at a time: 32 MiB of label images of 256 px."""

NO_SCORE = -1.0
"""Where a patch was not scored, as STHELAR writes it."""

SCORES = ("Dice", "Jaccard", "bPQ")
TRAIN = "train"


@dataclass(frozen=True, eq=False)
class Source:
    """One slide of a data set.

    Parameters
    ----------
    slide
        Its name in the files: letters, digits and ``_``.
    tissue
        What it is of.
    patches
        All that it has.
    open_nuclei
        Reads the outlines; `DataSet.nuclei` holds those of one slide at a time.
    ids
        [m] of the nuclei.
    names
        [n] of the patches, ``<slide>_<number>``.
    parts
        [n] object, the set of each patch; None where it is in none.
    chosen
        int64, patches that are written, in order.
    kinds
        int32 [m] class of each nucleus, 1 ...; 0 is not drawn.
    numbers
        int64 [m], 1 + the integer that stands for the id of the nucleus.
    owners, labels
        [m] cell of each nucleus, and its label (None: without).
    scores
        float32 [n, 3], Dice, Jaccard, bPQ; -1 where there is none.
    facts
        Of the slide.
    """

    slide: str
    tissue: str
    patches: windows.Patches
    open_nuclei: Callable[[], windows.Nuclei]
    ids: np.ndarray
    names: np.ndarray
    parts: np.ndarray
    chosen: np.ndarray
    kinds: np.ndarray
    numbers: np.ndarray
    owners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class DataSet:
    """All slides of a data set.

    Parameters
    ----------
    sources
        One a slide.
    classes
        Common to all.
    parts
        Names of the sets, train first.
    """

    sources: list[Source]
    classes: _classes.Classes
    parts: tuple[str, ...]
    _held: dict[int, windows.Nuclei] = field(default_factory=dict, repr=False)

    def nuclei(self, source: Source) -> windows.Nuclei:
        """Outlines of one slide; those of the one before are let go."""
        if id(source) not in self._held:
            self._held.clear()
            self._held[id(source)] = source.open_nuclei()
        return self._held[id(source)]

    def __len__(self) -> int:
        return sum(len(s.chosen) for s in self.sources)

    @cached_property
    def id_type(self) -> type[np.integer[Any]]:
        """int32, as others write ids, where it holds them all; else uint32, which 10x ids may need."""
        most = max((int(s.numbers.max(initial=0)) for s in self.sources), default=0)
        return np.int32 if most <= np.iinfo(np.int32).max else np.uint32

    @property
    def size_px(self) -> int:
        """Side of the patches."""
        return self.sources[0].patches.size_px


@dataclass(frozen=True, eq=False)
class Patch:
    """One patch, in a thread of its own.

    Parameters
    ----------
    source, index
        Slide, and number among its patches.
    drawn
        Its nuclei, pixel by pixel.
    shape
        (height, width).
    """

    source: Source
    index: int
    drawn: _compact.Drawn
    shape: tuple[int, int]

    @property
    def name(self) -> str:
        """``<slide>_<number>``."""
        return str(self.source.names[self.index])

    @property
    def part(self) -> str:
        """Its set."""
        return str(self.source.parts[self.index])

    @property
    def kinds(self) -> np.ndarray:
        """int32 [k], classes of the nuclei that show."""
        return self.source.kinds[self.drawn.members]

    def counts(self, n_classes: int) -> np.ndarray:
        """int64 [classes], nuclei that show."""
        return np.bincount(self.kinds - 1, minlength=n_classes)

    def pixels(self) -> np.ndarray:
        """uint8 [size, size, 3]."""
        return self.source.patches.pixels(self.index)

    def of_pixels(self, per_nucleus: np.ndarray) -> np.ndarray:
        """A value of each nucleus at each pixel that is drawn.

        Parameters
        ----------
        per_nucleus
            [k].
        """
        return per_nucleus[self.drawn.instances - 1]

    def dense(self, values: np.ndarray) -> np.ndarray:
        """[size, size] of values at the pixels that are drawn; 0 elsewhere."""
        from scipy import sparse

        return sparse.csr_matrix((values, self.drawn.indices, self.drawn.indptr), shape=self.shape).toarray()

    def png(self) -> bytes:
        """Its picture as PNG."""
        return png(self.pixels())


def png(pixels: np.ndarray) -> bytes:
    """uint8 [h, w, 3] RGB as PNG.

    OpenCV's default is both smaller and faster on tissue than any level of compression that is asked for.
    """
    import cv2

    return bytes(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes())


def prepare(
    slides: Sequence[SpatialData],
    *,
    region: str,
    tables: Sequence[str],
    split: Mapping[str, str] | None,
    labels: str | None,
    labels_table: str | None,
    label_map: str | None,
    unlabelled: str,
    patches: str,
    tissue: str | None,
    scores: str | None,
    min_jaccard: float | None,
) -> DataSet:
    """Read everything but pixels, and refuse what cannot be written.

    Parameters
    ----------
    slides
        With patches of one size and resolution.
    region
        Polygons that are drawn.
    tables
        Of the region, whose obs has the labels.
    split
        Slide or patch to its set. None: all is "train".
    labels, labels_table, label_map, unlabelled
        See `cellvit.write`.
    patches
        Shapes element of the patches.
    tissue
        Where slides do not say.
    scores
        CSV of the scores of patches.
    min_jaccard
        Patches below are left out.

    Raises
    ------
    InputError, MissingError
        No patches, no polygons, no labels, sizes that differ, names that clash, nothing left.
    """
    from ..tl._annotate import FEW

    chosen_map = _classes.load_map(label_map)
    opened = [windows.load(s, patches=patches) for s in slides]
    first = opened[0]
    for sdata, one in zip(slides, opened, strict=True):
        if (one.size_px, one.mpp) != (first.size_px, first.mpp):
            raise InputError(
                f"patches of {one.size_px} px at {one.mpp:g} um/px, others of {first.size_px} at {first.mpp:g}",
                where=sdata.path,
                fix="cut all slides alike (stainseq patches)",
            )
    openers = [partial(windows.nuclei, s, p, region=region) for s, p in zip(slides, opened, strict=True)]
    # Outlines of many slides are more than memory holds: now their ids, and what cannot be drawn is told.
    ids = [one().ids for one in openers]
    owners = [owners_of(s, region, i) for s, i in zip(slides, ids, strict=True)]
    texts = [
        labels_of(s, i, o, labels=labels, table=labels_table or (tables[0] if tables else None))
        for s, i, o in zip(slides, ids, owners, strict=True)
    ]
    if label_map is None:  # maps say what becomes of cells that were too poor to be labelled
        texts = [_without(t, FEW) for t in texts]
    classes, kinds = _classes.classify(texts, chosen_map, unlabelled=unlabelled)
    scored = _score_table(scores)
    sources = []
    for sdata, p, opener, own, owner, text, kind in zip(
        slides, opened, openers, ids, owners, texts, kinds, strict=True
    ):
        names = _names(p.ids)
        parts = _parts(p.ids, names, name_of(sdata), split, sdata.path)
        values = _scores(sdata, patches, p.ids, names, scored)
        kept = np.array([v is not None for v in parts], dtype=bool)
        if min_jaccard is not None:
            kept &= values[:, 1] >= min_jaccard
        facts = {k: v for k, v in _facts(sdata).items() if v}
        numbers = cell_ids.numbers(owner).astype(np.int64) + 1
        sources.append(
            Source(
                slide=names[0].rsplit("_", 1)[0],
                tissue=str(tissue or facts.get("tissue") or "Unknown"),
                patches=p,
                open_nuclei=opener,
                ids=own,
                names=names,
                parts=parts,
                chosen=np.flatnonzero(kept),
                kinds=kind,
                numbers=numbers,
                owners=owner,
                labels=text,
                scores=values,
                facts=facts,
            )
        )
    called = [s.slide for s in sources]
    if len(set(called)) < len(called):
        raise InputError(f"two slides would be called {max(called, key=called.count)!r}", fix="rename one of them")
    made = DataSet(sources, classes, _order({v for s in sources for v in s.parts[s.chosen]}))
    if not len(made):
        raise InputError("no patch is left to write", fix="look at the split and at min_jaccard")
    return made


def _without(labels: np.ndarray, label: str) -> np.ndarray:
    out = labels.copy()
    out[out == label] = None
    return out


def _facts(sdata: SpatialData) -> dict[str, Any]:
    from .. import store

    told = store.facts(sdata)
    return {k: told.get(k) for k in ("slide", "patient", "tissue", "platform", "mpp")}


def _names(ids: np.ndarray) -> np.ndarray:
    """``<slide>_<number>`` in letters, digits and ``_``, which loaders take names apart by."""
    return np.array([re.sub(r"[^A-Za-z0-9_]+", "_", str(i)) for i in ids], dtype=object)


def _parts(ids: np.ndarray, names: np.ndarray, slide: str, split: Mapping[str, str] | None, where: Any) -> np.ndarray:
    out = np.full(len(ids), TRAIN, dtype=object)
    if split is None:
        return out
    if slide in split:
        out[:] = split[slide]
        return out
    out[:] = [split.get(str(i), split.get(str(n))) for i, n in zip(ids, names, strict=True)]
    if (out == None).all():  # noqa: E711  elementwise
        raise MissingError(
            f"the split names neither {slide} nor its patches", where=where, fix="make it with stainseq split"
        )
    return out


def _order(parts: set[str]) -> tuple[str, ...]:
    usual = (TRAIN, "valid", "val", "validation", "test")
    return tuple(p for p in usual if p in parts) + tuple(sorted(parts - set(usual)))


def _score_table(path: str | None) -> Any:
    if path is None:
        return None
    from ..readers._tables import read_table

    if not Path(path).is_file():
        raise MissingError("no such scores", where=path, fix="give the CSV of stainseq maskqc")
    table = read_table(Path(path))
    table.columns = [str(c).strip().lower() for c in table.columns]
    key = next((c for c in ("patch_id", "name", "image", "img") if c in table), None)
    if key is None or "jaccard" not in table:
        raise MissingError("no columns name and jaccard", where=path, fix="give the CSV of stainseq maskqc")
    table.index = table[key].astype(str).str.removesuffix(".png")
    return table[~table.index.duplicated()]


def _scores(sdata: SpatialData, key: str, ids: np.ndarray, names: np.ndarray, table: Any) -> np.ndarray:
    """float32 [n, 3]: of the table where one is given, else of the patches' own columns."""
    held, index = (table, names) if table is not None else (sdata.shapes[key], ids)
    columns = {str(c).lower(): c for c in held.columns}
    out = np.full((len(ids), len(SCORES)), NO_SCORE, dtype=np.float32)
    for i, score in enumerate(SCORES):
        column = columns.get(score.lower(), columns.get("pq") if score == "bPQ" else None)
        if column is not None:
            values = held[column].reindex(index).to_numpy(dtype=np.float32)
            out[:, i] = np.where(np.isfinite(values), values, NO_SCORE)
    return out


def stream(data: DataSet, make: Callable[[Patch], T], *, what: str = "patches") -> Iterator[tuple[Patch, T]]:
    """Patches of all slides in order, each with what a thread made of it.

    Masks are drawn for a block of patches by all threads at once; then each patch is made by one. What is in memory is
    one block.

    Parameters
    ----------
    data
        From `prepare`.
    make
        Called in threads; what releases the GIL (pictures, compression, compiled code) runs beside the rest.
    what
        Title of the progress bar.
    """
    side = data.size_px
    buffer = np.zeros((min(BLOCK, len(data)), side, side), dtype=np.uint32)
    own = threading.local()

    def one(source: Source, index: int, mask: np.ndarray) -> tuple[Patch, T]:
        seen = getattr(own, "seen", None)
        if seen is None or len(seen) <= len(source.kinds):
            own.seen = seen = np.zeros(len(source.kinds) + 1, dtype=np.int32)
        patch = Patch(source, index, _compact.drawn(mask, seen), mask.shape)
        return patch, make(patch)

    with ThreadPoolExecutor(max(1, settings.n_jobs)) as pool, progress(what, len(data)) as advance:
        for source in data.sources:
            shown, nuclei = source.kinds > 0, data.nuclei(source)
            for start in range(0, len(source.chosen), BLOCK):
                rows = source.chosen[start : start + BLOCK]
                masks = nuclei.masks(source.patches, rows, out=buffer, shown=None if shown.all() else shown)
                for made in pool.map(one, [source] * len(rows), rows.tolist(), masks):
                    advance(1)
                    yield made
            source.patches.image.forget()


def write_ids(path: Path, data: DataSet) -> Path:
    """CSV of which integer stands for which cell, and its label and class.

    Columns ``slide_id, id, cell_id, cell_id_int, label, class``; masks hold ``cell_id_int`` + 1.
    """
    import pyarrow as pa
    from pyarrow import csv

    named = np.array([None, *data.classes.names], dtype=object)
    kind = pa.schema([(k, pa.string()) for k in ("slide_id", "id", "cell_id")])
    kind = kind.append(pa.field("cell_id_int", pa.int64()))
    for k in ("label", "class"):
        kind = kind.append(pa.field(k, pa.string()))
    with csv.CSVWriter(path, kind, write_options=csv.WriteOptions(quoting_style="needed")) as file:
        for s in data.sources:
            columns = [[s.slide] * len(s.kinds), s.ids.astype(str), s.owners, s.numbers - 1, s.labels]
            columns.append(named[s.kinds])
            file.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, kind, strict=True)], schema=kind))
    return path


def patch_table(data: DataSet) -> Any:
    """DataFrame of all patches that are written: name, set, place, scores."""
    import pandas as pd

    frames = []
    for s in data.sources:
        box = np.round(np.column_stack([s.patches.corners, s.patches.corners + s.patches.size_px]) * s.patches.factor)
        frame = pd.DataFrame(box[s.chosen].astype(np.int64), columns=["xmin", "ymin", "xmax", "ymax"])
        frame.insert(0, "patch_id", s.names[s.chosen])
        frame.insert(1, "slide_id", s.slide)
        frame.insert(2, "tissue", s.tissue)
        frame.insert(3, "split", s.parts[s.chosen].astype(str))
        for i, score in enumerate(SCORES):
            frame[score] = s.scores[s.chosen, i]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
