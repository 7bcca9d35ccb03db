"""Cohorts: which slides, where, of whom."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FormatError, InputError, MissingError

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

__all__ = ["Cohort", "from_stimage", "read_cohort"]

REQUIRED = ("slide", "path", "patient")
OPTIONAL = ("tissue", "platform", "labels", "split")

_GEO = re.compile(r"(GSE\d+)_GSM\d+")
_STUDY = re.compile(r"(.+?_\d{8})(?=_|$)")


@dataclass(frozen=True)
class Cohort:
    """Slides of a study; they are opened one by one, when asked for.

    Parameters
    ----------
    table
        One row a slide: ``slide``, ``path`` (absolute), ``patient`` (the unit of cross-validation), and where given
        ``tissue``, ``platform``, ``labels`` (an obs column, or a CSV of id and label), ``split``, and whatever else.
    """

    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.table.to_dict("records"))

    def open(self, slide: str) -> SpatialData:
        """Open one slide: its store, or its source, lazily.

        Parameters
        ----------
        slide
            Its name in the table.

        Raises
        ------
        MissingError
            No such slide.
        """
        from . import store
        from .io._read import read

        rows = self.table[self.table["slide"] == slide]
        if rows.empty:
            raise MissingError(f"no slide {slide!r} in the cohort", fix=f"one of: {', '.join(self.table['slide'][:8])}")
        row = rows.iloc[0]
        path = Path(row["path"])
        if path.name.endswith((".zarr", ".zarr.zip")):
            return store.open(path)
        known = {k: row[k] for k in ("patient", "tissue", "platform") if row.get(k)}
        return read(path, slide=slide, **known)


def read_cohort(path: str | os.PathLike[str]) -> Cohort:
    """Read and check a cohort CSV.

    Parameters
    ----------
    path
        Columns ``slide, path, patient`` and optionally ``tissue, platform, labels, split``; more are kept. Paths are
        relative to the CSV's folder; comma, semicolon or tab.

        STimage-1K4M's ``meta_all_gene.csv`` is taken, too: its slides that lie beside it (see `from_stimage`).

    Raises
    ------
    InputError
        Everything that is wrong, in one message: missing columns, empty cells, duplicate slides, absent paths.
    """
    from .readers._tables import read_table

    path = Path(path)
    if not path.is_file():
        raise FormatError("no such cohort", where=path, fix="give a CSV of slide, path, patient")
    table = read_table(path, dtype=str, keep_default_na=False)
    table.columns = [str(c).strip() for c in table.columns]
    if {"tech", "spot_num", "gene_num"} <= set(table) and "path" not in table:
        found = from_stimage(path, present_only=True)
        if not len(found):
            raise MissingError(
                "STimage-1K4M's table, and none of its slides lies beside it",
                where=path,
                fix=f"download some: {path.absolute().parent.parent}/ST/coord, gene_exp and image",
            )
        return found
    absent = [c for c in REQUIRED if c not in table]
    if absent:
        raise InputError(
            f"a cohort without the column{'s' if len(absent) > 1 else ''} {', '.join(absent)}",
            where=path,
            fix=f"columns: {', '.join(REQUIRED)} and optionally {', '.join(OPTIONAL)}",
        )
    table = table.apply(lambda column: column.str.strip())
    problems = _problems(table, path.parent)
    if problems:
        raise InputError("; ".join(problems), where=path, fix="correct the rows")
    table["path"] = [str(_resolved(p, path.parent)) for p in table["path"]]
    if "labels" in table:
        beside = [path.parent / v for v in table["labels"]]
        table["labels"] = [str(p) if v and p.is_file() else v for v, p in zip(table["labels"], beside, strict=True)]
    return Cohort(table)


def _problems(table: pd.DataFrame, folder: Path) -> list[str]:
    problems = ["no slides"] if table.empty else []
    for column in REQUIRED:
        empty = [str(i + 2) for i, v in enumerate(table[column]) if not v]
        if empty:
            problems.append(f"no {column} in line {', '.join(empty[:8])}")
    double = table["slide"][table["slide"].duplicated() & (table["slide"] != "")].unique()
    if len(double):
        problems.append(f"slides named twice: {', '.join(double[:8])}")
    absent = [p for p in table["path"] if p and not _present(_resolved(p, folder))]
    if absent:
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        problems.append(f"paths that do not exist: {', '.join(absent[:8])}{more}")
    return problems


def _resolved(path: str, folder: Path) -> Path:
    given = Path(path).expanduser()
    return given if given.is_absolute() else (folder / given).resolve()


def _present(path: Path) -> bool:
    """A file, a folder, or a prefix of some."""
    if path.exists():
        return True
    return path.parent.is_dir() and any(p.name.startswith(path.name) for p in path.parent.iterdir())


def from_stimage(
    path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, present_only: bool = False
) -> Cohort:
    """The slides of STimage-1K4M as a cohort.

    Parameters
    ----------
    path
        ``meta_all_gene.csv`` (comma or tab).
    root
        Folder of ``ST``, ``Visium``, ``VisiumHD``; default the one above the table's folder.
    present_only
        Leave out slides whose coordinates are not there (not downloaded).

    Returns
    -------
    Cohort
        slide, path (the coord csv, from which `stainseq convert` finds the rest), patient, tissue, platform, study, and
        the meta table's own columns. The data set does not name patients: ``patient`` is the study (GEO series, or the
        id up to the date), which is what no patient crosses. Correct it where you know better.

    Raises
    ------
    FormatError, InputError, MissingError
        Not this table; duplicate or missing ids.
    """
    from .readers.stimage import read_meta

    path = Path(path)
    table = read_meta(path)
    home = Path(root) if root is not None else path.absolute().parent.parent
    table.insert(1, "path", [str(_coord(home, s, t)) for s, t in zip(table["slide"], table["tech"], strict=True)])
    table.insert(2, "patient", [_study(s) for s in table["slide"]])
    table["study"] = table["patient"]
    table["platform"] = "stimage"
    if present_only:
        table = table[[Path(p).is_file() for p in table["path"]]].reset_index(drop=True)
    return Cohort(table)


def _coord(home: Path, slide: str, tech: str) -> Path:
    name = f"{slide}_coord.csv"
    options = [home / tech / "coord" / name, home / "coord" / name, home / name]
    return next((p for p in options if p.is_file()), options[0])


def _study(slide: str) -> str:
    match = _GEO.fullmatch(slide) or _STUDY.match(slide)
    return match[1] if match else slide
