"""Cohorts: what a CSV of slides holds, and all of its sources to stores."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, StainseqError

if TYPE_CHECKING:
    import pandas as pd

COHORT_FILE = "cohort.csv"
_STORES = (".zarr", ".zarr.zip")


def is_cohort(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a cohort CSV, or STimage-1K4M's table of slides, by its header.

    Parameters
    ----------
    path
        Any path.
    """
    from ..readers._tables import first_line, separator_of

    path = Path(path)
    if path.suffix.lower() not in (".csv", ".tsv", ".txt") or not path.is_file():
        return False
    head = first_line(path)
    names = {name.strip().strip('"') for name in head.split(separator_of(head))}
    return {"slide", "path"} <= names or {"slide", "tech", "spot_num", "gene_num"} <= names


def convert_cohort(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False, **options: Any
) -> dict[str, Any]:
    """Convert every slide of a cohort; a slide that cannot be read does not stop the others.

    Parameters
    ----------
    source
        A cohort CSV whose paths are sources (see `cohort.read_cohort`), or STimage-1K4M's ``meta_all_gene.csv``: then
        the slides that lie beside it.
    out
        Folder for ``SLIDE.zarr`` and ``cohort.csv``, which names them and is what `train` takes. Stores that are there
        are kept, so that an interrupted run is gone on with.
    overwrite
        Convert again what is there.
    options
        Of `convert`, for every slide.

    Returns
    -------
    dict
        cohort (path of the new CSV), converted, kept (numbers), failed (reason by slide).

    Raises
    ------
    InputError, FormatError
        No cohort.
    StoreError
        `out` cannot be written.
    """
    from .._files import check_folder, write_file
    from .._progress import progress
    from ..cohort import read_cohort
    from ._read import convert

    cohort, out = read_cohort(source), Path(out)
    check_folder(out / ".new")
    failed: dict[str, str] = {}
    rows, kept = [], 0
    with progress("convert", len(cohort)) as advance:
        for row in cohort:
            target = out / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', row['slide'])}.zarr"
            facts = {k: row[k] for k in ("slide", "patient", "tissue", "platform") if row.get(k)}
            try:
                if str(row["path"]).endswith(_STORES):
                    target = Path(row["path"])
                elif target.exists() and not overwrite:
                    kept += 1
                else:
                    convert(row["path"], target, overwrite=overwrite, **{**facts, **options})
            except StainseqError as e:
                failed[row["slide"]] = str(e)
            else:
                rows.append({**row, "path": str(target.relative_to(out) if target.is_relative_to(out) else target)})
            advance(1)
    if rows:
        made = cohort.table.__class__(rows)
        write_file(out / COHORT_FILE, lambda path: made.to_csv(path, index=False))
    done = sum(not str(r["path"]).endswith(_STORES) for r in cohort) - kept - len(failed)
    return {"cohort": str(out / COHORT_FILE) if rows else None, "converted": done, "kept": kept, "failed": failed}


def describe(path: Path) -> dict[str, Any]:
    """What a cohort CSV holds, for `info`.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FormatError
        Not a table, or no cohort.
    """
    from ..readers._tables import read_table

    frame = read_table(path, dtype=str, keep_default_na=False)
    frame.columns = [str(c).strip() for c in frame.columns]
    if {"tech", "spot_num", "gene_num"} <= set(frame.columns):
        return _stimage(path)
    missing = [c for c in ("slide", "path") if c not in frame]
    if missing:
        raise FormatError(
            f"a CSV, but no cohort: no column {', '.join(missing)}", where=path, fix="a cohort has slide, path, patient"
        )
    absent = [p for p in frame["path"] if p and not ((path.parent / p).exists() or Path(p).exists())]
    problems = [f"not there: {p}" for p in absent]
    if "patient" not in frame:
        problems.append("no column patient, which train needs: it tells what is held out together")
    sources = sum(not p.endswith(_STORES) for p in frame["path"] if p not in absent)
    facts: dict[str, Any] = {"slides": len(frame), **_shares(frame, "patient", "tissue", "platform", "split")}
    if sources:
        facts["not converted"] = f"{sources}; convert them with `stainseq convert {path.name} FOLDER`"
    patients = frame["patient"].nunique() if "patient" in frame else 0
    return {
        "path": str(path),
        "kind": "cohort",
        "what": f"cohort, {len(frame)} slides" + (f" of {patients} patients" if patients else ""),
        "facts": facts,
        "elements": _slides(frame),
        "problems": problems,
    }


def _stimage(path: Path) -> dict[str, Any]:
    from ..cohort import from_stimage

    table = from_stimage(path).table
    here = table[[Path(p).is_file() for p in table["path"]]]
    facts = {
        "slides": len(table),
        "here": f"{len(here)}; convert them with `stainseq convert {path.name} FOLDER`" if len(here) else 0,
        "studies": table["study"].nunique(),
        "spots": int(table["spot_num"].sum()),
        "with cancer": int(table["involve_cancer"].sum()) if "involve_cancer" in table else None,
        **_shares(table, "tech", "species", "tissue"),
    }
    root = path.absolute().parent.parent
    return {
        "path": str(path),
        "kind": "cohort",
        "what": f"STimage-1K4M's table of slides: {len(table):,} slides, {len(here)} of them here",
        "facts": {k: v for k, v in facts.items() if v is not None},
        "elements": _slides(here),
        "problems": [] if len(here) else [f"no slide lies beside it (looked for {root}/ST/coord/SLIDE_coord.csv)"],
    }


def _shares(frame: pd.DataFrame, *columns: str, most: int = 12) -> dict[str, dict[str, int]]:
    """How often each value occurs, commonest first."""
    found = {}
    for name in columns:
        if name in frame and frame[name].astype(bool).any():
            counts = frame.loc[frame[name].astype(bool), name].value_counts()
            shown = {str(k): int(n) for k, n in counts[:most].items()}
            found[name] = shown | (
                {f"{len(counts) - most} others": int(counts[most:].sum())} if counts[most:].any() else {}
            )
    return found


def _slides(frame: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {"name": str(r["slide"]), "kind": "slide", "holds": str(r["path"]), "step": str(r.get("patient", "") or "")}
        for r in frame.to_dict(orient="records")
    ]
