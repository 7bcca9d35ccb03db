"""A folder of samples with a metadata table, read and saved as one: all of it or nothing, and no pickles.

::

    FOLDER/
      metadata.tsv             one row a sample: sample, modality, path (of slides), and whatever else is known of it
      MODALITY/SAMPLE.h5ad     one file a sample
      integrated.h5mu | .h5ad  all samples in one, where there is such a table

A save writes every file beside its place first (``.new-*``), then a list of what is to be moved (``.commit.json``),
then moves. Killed before the list is there, the old experiment stands; after it, the next read or save ends the move.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import FormatError, InputError, MissingError, StoreError

if TYPE_CHECKING:
    from pandas import DataFrame

METADATA, COMMIT, INTEGRATED = "metadata.tsv", ".commit.json", "integrated"
MODALITY = "expression"
"""Folder of samples whose metadata name no modality."""


class Experiment(NamedTuple):
    """Samples that belong together.

    Parameters
    ----------
    metadata
        One row a sample, in order; index ``sample``; every column is text. ``modality`` and, for slides, ``path`` are
        always there.
    samples
        By name: AnnData, or a slide (SpatialData).
    integrated
        All samples in one AnnData or MuData, or None.
    """

    metadata: DataFrame
    samples: dict[str, Any]
    integrated: Any = None


def write_experiment(
    samples: Experiment | Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    metadata: DataFrame | None = None,
    integrated: Any = None,
    overwrite: bool = False,
) -> Path:
    """Save samples with their metadata as one folder: all of it or nothing.

    Parameters
    ----------
    samples
        AnnData by name; or slides, which stay where their stores are and are referred to; or an `Experiment`.
    folder
        Where. It may hold other files, which are left alone.
    metadata
        One row a sample (index: its name, or a column ``sample``), any columns. Default: of the `Experiment`, or names
        alone. Values are kept as text. A column ``modality`` names the sub-folder of a sample's file; default
        "expression".
    integrated
        An AnnData or MuData of all samples. Default: of the `Experiment`.
    overwrite
        Replace an experiment that is there; files of samples that it no longer has are removed.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    InputError
        No sample; metadata that do not fit the samples; a name that is no file name; a slide that is not on disk; a
        value that the format cannot hold. Nothing has been changed.
    StoreError
        An experiment is there (without `overwrite`), or the folder cannot be written.
    """
    from . import tables
    from .store import files
    from .store.lock import locked

    if isinstance(samples, Experiment):
        metadata = samples.metadata if metadata is None else metadata
        integrated = samples.integrated if integrated is None else integrated
        samples = samples.samples
    folder = Path(folder)
    listed = _listed(samples, metadata, folder)
    with files.as_store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            _finish(folder)
            for left in folder.glob(".new-*"):  # of a save that was killed
                shutil.rmtree(left, ignore_errors=True)
            if (folder / METADATA).exists() and not overwrite:
                raise StoreError(
                    "an experiment is there already", where=folder, fix="name another folder, or overwrite"
                )
            stage = folder / f".new-{uuid.uuid4().hex}"
            try:
                written = [METADATA]
                stage.mkdir()
                for name, sample in samples.items():
                    if not _is_slide(sample):
                        written.append(_file(listed.loc[name, "modality"], name))
                        tables.write_table(sample, stage / written[-1])
                if integrated is not None:
                    written.append(INTEGRATED + (tables.H5MU if tables.is_mudata(integrated) else tables.H5AD))
                    tables.write_table(integrated, stage / written[-1])
                (stage / METADATA).write_text(_as_tsv(listed), encoding="utf-8", newline="")
                files.sync_tree(stage)
                old = [f for f in _own_files(folder) if f not in written]
                files.write_json(stage / "commit.json", {"stage": stage.name, "move": written, "remove": old})
                os.replace(stage / "commit.json", folder / COMMIT)  # from here on the new experiment counts
                files.sync(folder)
            except BaseException:
                if not (folder / COMMIT).exists():
                    shutil.rmtree(stage, ignore_errors=True)
                raise
            _finish(folder)
    return folder


def read_experiment(
    folder: str | os.PathLike[str],
    *,
    samples: str | Sequence[str] | None = None,
    modality: str | None = None,
    integrated: bool = True,
) -> Experiment:
    """Read a folder of samples with their metadata.

    Folders that exprmat saved are read, too: ``metadata.tsv``, ``<modality>/<sample>.h5ad``, ``integrated.h5mu``. Its
    pickle (``spec.pkl``) is never opened.

    Parameters
    ----------
    folder
        The folder.
    samples
        Names of those to read; default all.
    modality
        Only samples of it; needed where a sample has several.
    integrated
        Read the table of all samples, where there is one.

    Returns
    -------
    Experiment
        Slides are opened lazily, tables are in memory.

    Raises
    ------
    MissingError
        No such folder, sample, modality or file; all that are absent are named.
    FormatError
        Metadata that are none; a damaged file.
    InputError
        A sample is listed twice.
    """
    from . import store, tables

    folder = Path(folder)
    metadata = _metadata(folder, modality)
    if samples is not None:
        wanted = [samples] if isinstance(samples, str) else list(samples)
        unknown = [s for s in wanted if s not in metadata.index]
        if unknown:
            raise MissingError(
                f"no sample {', '.join(map(repr, unknown))}", where=folder, fix=f"one of: {', '.join(metadata.index)}"
            )
        metadata = metadata.loc[wanted]
    places = {name: _place(folder, name, row) for name, row in metadata.iterrows()}
    absent = [str(p.relative_to(folder) if p.is_relative_to(folder) else p) for p in places.values() if not p.exists()]
    if absent:
        raise MissingError(f"not there: {', '.join(absent)}", where=folder, fix="put the files back, or name samples")
    read = {
        str(name): tables.read_h5ad(place) if place.suffix == tables.H5AD else store.open(place)
        for name, place in places.items()
    }
    joint: Any = None
    if integrated and (folder / f"{INTEGRATED}{tables.H5MU}").is_file():
        joint = tables.read_h5mu(folder / f"{INTEGRATED}{tables.H5MU}")
    elif integrated and (folder / f"{INTEGRATED}{tables.H5AD}").is_file():
        joint = tables.read_h5ad(folder / f"{INTEGRATED}{tables.H5AD}")
    return Experiment(metadata, read, joint)


def describe(folder: Path) -> dict[str, Any]:
    """What `stainseq info` says of such a folder; no values are read."""
    metadata = _metadata(folder, None, several=True)
    elements, problems = [], []
    for name, row in metadata.iterrows():
        place = _place(folder, str(name), row)
        holds = _size(place) if place.suffix == ".h5ad" and place.is_file() else "slide"
        if not place.exists():
            problems.append(f"not there: {place}")
            holds = "absent"
        elements.append({"name": str(name), "kind": str(row["modality"]), "holds": holds})
    joint = [p.name for p in folder.glob(f"{INTEGRATED}.h5*")]
    return {
        "path": str(folder),
        "kind": "experiment",
        "what": f"experiment, {len(metadata)} samples" + (f", {joint[0]}" if joint else ""),
        "facts": {c: sorted(set(metadata[c])) for c in metadata if c not in ("path", "location")},
        "elements": elements,
        "problems": problems,
    }


def _size(path: Path) -> str:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            rows, genes = (len(file[slot][file[slot].attrs["_index"]]) for slot in ("obs", "var"))
    except (OSError, KeyError) as e:
        return f"damaged ({e})"
    return f"{rows:,} x {genes:,}"


# ---- metadata ------------------------------------------------------------------------------------------------------


def _listed(samples: Mapping[str, Any], metadata: DataFrame | None, folder: Path) -> DataFrame:
    """The metadata as they are written: checked, as text, in the order of the samples."""
    import pandas as pd

    if not samples:
        raise InputError("no sample to save", where=folder, fix="give a dict of names and tables")
    names = list(samples)
    table = pd.DataFrame(index=names) if metadata is None else metadata.copy()
    if "sample" in table:
        table = table.set_index("sample")
    table.index, table.columns = table.index.map(str), table.columns.map(str)
    if not table.index.is_unique or set(table.index) != set(names):
        only = sorted(set(table.index) ^ set(names))
        what = f"metadata and samples differ in {', '.join(only[:6])}" if only else "metadata list a sample twice"
        raise InputError(what, where=folder, fix="give one row a sample, with its name as index")
    if not table.columns.is_unique:
        raise InputError("two columns of the metadata have one name", where=folder, fix="rename one")
    table = table.loc[names]
    table = table.astype(object).where(table.notna(), "").astype(str)
    table["modality"] = table["modality"].replace("", MODALITY) if "modality" in table else MODALITY
    table["path"] = [_reference(samples[n], n, folder) for n in names]
    for name, row in table.iterrows():
        for text in (str(name), str(row["modality"])):
            if text in ("", ".", "..") or text.startswith(".") or any(c in text for c in '/\\\0\n\r\t:*?"<>|'):
                raise InputError(f"{text!r} cannot be the name of a file", where=folder, fix="rename it")
    folded = [_file(m, n).casefold() for n, m in table["modality"].items()]
    if len(set(folded)) < len(folded):
        raise InputError("two samples differ in case alone", where=folder, fix="rename one: some disks know no case")
    return table


def _as_tsv(table: DataFrame) -> str:
    import csv

    text: str = table.to_csv(sep="\t", index_label="sample", lineterminator="\n")
    if "\r" in text:  # which is quoted by itself only where it ends lines
        text = table.to_csv(sep="\t", index_label="sample", lineterminator="\n", quoting=csv.QUOTE_ALL)
    return text


def _reference(sample: Any, name: str, folder: Path) -> str:
    """Path of a slide's store as the metadata keep it: relative where it can be."""
    from anndata import AnnData

    if isinstance(sample, AnnData):
        return ""
    if not _is_slide(sample):
        raise InputError(f"sample {name!r} is a {type(sample).__name__}", where=folder, fix="give AnnData or slides")
    if sample.path is None:
        raise InputError(f"the slide {name!r} is not on disk", where=folder, fix="write it first (io.write)")
    return os.path.relpath(sample.path, folder)


def _is_slide(sample: Any) -> bool:
    return hasattr(sample, "images") and hasattr(sample, "tables")


def _metadata(folder: Path, modality: str | None, *, several: bool = False) -> DataFrame:
    import pandas as pd

    if not (folder / METADATA).is_file() and not (folder / COMMIT).is_file():
        raise MissingError(f"no {METADATA}", where=folder, fix="give a folder that io.write_experiment made")
    _recover(folder)
    try:
        table = pd.read_csv(folder / METADATA, sep="\t", dtype=str, keep_default_na=False, na_filter=False)
    except (ValueError, OSError) as e:
        raise FormatError(f"not a table ({e})", where=folder / METADATA, fix="tab-separated text with a header") from e
    if "sample" not in table:
        there = ", ".join(map(str, table.columns))
        raise FormatError("no column 'sample'", where=folder / METADATA, fix=f"columns there: {there}")
    table["modality"] = table["modality"].replace("", MODALITY) if "modality" in table else MODALITY
    if modality is not None:
        known = sorted(set(table["modality"]))
        table = table[table["modality"] == modality]
        if table.empty:
            raise MissingError(f"no modality {modality!r}", where=folder, fix=f"one of: {', '.join(known)}")
    if "path" not in table:
        table["path"] = ""
    twice = table["sample"][table["sample"].duplicated()]
    if len(twice) and not several:
        raise InputError(
            f"the sample {twice.iloc[0]!r} is listed twice",
            where=folder / METADATA,
            fix=f"name a modality: {', '.join(sorted(set(table['modality'])))}",
        )
    return table.set_index("sample")


def _file(modality: str, sample: str) -> str:
    return f"{modality}/{sample}.h5ad"


def _place(folder: Path, name: str, row: Any) -> Path:
    return folder / row["path"] if row["path"] else folder / _file(row["modality"], name)


# ---- all or nothing ------------------------------------------------------------------------------------------------


def _own_files(folder: Path) -> list[str]:
    """Files of the experiment that stands, by its own list."""
    if not (folder / METADATA).is_file():
        return []
    listed = _metadata(folder, None, several=True)
    own = [_file(row["modality"], str(name)) for name, row in listed.iterrows() if not row["path"]]
    own += [f"{INTEGRATED}{ending}" for ending in (".h5mu", ".h5ad")]
    return [f for f in own if (folder / f).is_file()]


def _recover(folder: Path) -> None:
    """End a save that was killed while it moved its files, unless it is still at it."""
    from .store import files
    from .store.lock import locked

    if (folder / COMMIT).is_file():
        with files.as_store_errors(folder), locked(folder):
            _finish(folder)


def _finish(folder: Path) -> None:
    """Move what the list says; whatever of it is done already is passed over."""
    from .store import files

    if not (folder / COMMIT).is_file():
        return
    plan = files.read_json(folder / COMMIT)
    stage = folder / plan["stage"]
    for name in plan["move"]:
        if (stage / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / name, folder / name)
    for name in plan["remove"]:
        (folder / name).unlink(missing_ok=True)
    for parent in {(folder / name).parent for name in (*plan["move"], *plan["remove"])}:
        if parent.is_dir():
            files.sync(parent)
            if parent != folder and not any(parent.iterdir()):
                parent.rmdir()
    (folder / COMMIT).unlink()
    shutil.rmtree(stage, ignore_errors=True)
