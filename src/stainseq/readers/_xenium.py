"""The parts of a Xenium bundle: what is there, transcripts, cells, outlines.

https://www.10xgenomics.com/support/software/xenium-onboard-analysis/latest/analysis/xoa-output-understanding-outputs
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, InputError, MissingError, ScaleError
from ._scale import check_mpp

if TYPE_CHECKING:
    import pandas as pd
    from pyarrow import Table

    from ._build import Notes

PIXEL_UM = 0.2125
"""Microns per pixel of every Xenium instrument so far; used where neither experiment.xenium nor OME metadata tells."""

NEWEST = 4
"""Major version of the newest onboard analysis whose files are known."""

UNASSIGNED = "UNASSIGNED"
"""Cell of a transcript that lies in none; -1 before onboard analysis 1.3."""

_HE = ("*he_image.ome.tif", "*he_image.tif", "extras/he-raw.ome.tif")
_ALIGNMENT = ("*he_imagealignment.csv", "*he_alignment.csv")


@dataclass
class Bundle:
    """Files of one run.

    Parameters
    ----------
    folder
        Where they lie.
    experiment
        experiment.xenium, or empty.
    tables
        "cells", "cell_boundaries", "nucleus_boundaries", "transcripts" to their files.
    morphology
        Image files of the channels, best focus; or the one stack.
    is_stack
        The image is a stack of depths.
    he, alignment
        H&E image and its alignment, where there are any.
    masks
        cells.zarr.zip, or the folder it was unpacked to.
    """

    folder: Path
    experiment: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Path] = field(default_factory=dict)
    matrix: Path | None = None
    morphology: list[Path] = field(default_factory=list)
    is_stack: bool = False
    he: Path | None = None
    alignment: Path | None = None
    masks: Path | None = None

    @property
    def version(self) -> str:
        """Of the analysis that wrote the files: Xenium Ranger's where it ran, else the instrument's; "" unknown."""
        ranger = self.experiment.get("xenium_ranger") or {}
        text = str(ranger.get("version") or self.experiment.get("analysis_sw_version") or "")
        return text.rsplit("-", 1)[-1]


def find(path: Path) -> Bundle | None:
    """The bundle at a path (its folder, the folder above "outs", or a file in it), or None."""
    folder = path.parent if path.is_file() else path
    for here in (folder, folder / "outs"):
        tables: dict[str, Path] = {}
        for name in ("cells", "cell_boundaries", "nucleus_boundaries", "transcripts"):
            found = [p for end in (".parquet", ".csv.gz", ".csv") if (p := here / f"{name}{end}").is_file()]
            if found:
                tables[name] = found[0]
        experiment = here / "experiment.xenium"
        if (
            not experiment.is_file()
            and not {"cells", "transcripts"} <= set(tables)
            and not _is_cell_table(here, tables)
        ):
            continue
        bundle = Bundle(here, _experiment(experiment), tables)
        matrices = [here / "cell_feature_matrix.h5", here / "cell_feature_matrix"]
        bundle.matrix = next((p for p in matrices if p.exists()), None)
        bundle.morphology, bundle.is_stack = _morphology(here)
        bundle.he = _first(here, _HE)
        bundle.alignment = _first(here, _ALIGNMENT)
        bundle.masks = next((p for p in (here / "cells.zarr.zip", here / "cells.zarr") if p.exists()), None)
        return bundle
    return None


def _is_cell_table(folder: Path, tables: dict[str, Path]) -> bool:
    """Cells and their matrix alone, as many studies deposit."""
    from ._tables import first_line

    if "cells" not in tables or not (folder / "cell_feature_matrix.h5").is_file():
        return False
    if tables["cells"].suffix == ".parquet":
        return True
    return "x_centroid" in first_line(tables["cells"])


def _experiment(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError) as e:
        raise FormatError(f"not JSON ({e})", where=path, fix="copy the bundle again") from e
    if not isinstance(found, dict):
        raise FormatError("not an object of JSON", where=path, fix="copy the bundle again")
    return found


def _morphology(folder: Path) -> tuple[list[Path], bool]:
    """Focused images before projections before the stack; versions 4, 2 to 3, and 1 name them differently."""
    focus = folder / "morphology_focus"
    several = sorted(focus.glob("ch*.ome.tif")) or sorted(focus.glob("morphology_focus_*.ome.tif"))
    if several:
        return several, False
    for name in ("morphology_focus.ome.tif", "morphology_mip.ome.tif"):
        if (folder / name).is_file():
            return [folder / name], False
    stack = folder / "morphology.ome.tif"
    return ([stack], True) if stack.is_file() else ([], False)


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    found = [p for here in (folder, folder / "extras", folder.parent) for q in patterns for p in sorted(here.glob(q))]
    return found[0] if found else None


def read_alignment(path: Path) -> np.ndarray:
    """Matrix of an alignment file, float64 [3, 3].

    Raises
    ------
    FormatError
        Not three rows of three numbers, or a matrix that cannot be inverted.
    """
    if not path.is_file():
        raise MissingError("no such alignment file", where=path, fix="export it from Xenium Explorer")
    try:
        # Separated by commas from 10x, by blanks from others.
        matrix = np.loadtxt(path.read_text(encoding="utf-8-sig").replace(",", " ").splitlines(), dtype=np.float64)
    except (ValueError, OSError, UnicodeDecodeError) as e:
        raise FormatError(f"not a matrix ({e})", where=path, fix="give three rows of three numbers") from e
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise FormatError(
            f"a matrix of shape {matrix.shape} that maps no plane", where=path, fix="give three rows of three numbers"
        )
    return matrix / matrix[2, 2]


def read_frame(path: Path, columns: list[str] | None = None) -> Table:
    """A table of the bundle as Arrow, text as text (the oldest runs hold bytes).

    Raises
    ------
    FormatError
        Truncated or damaged, or without a column.
    """
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        else:
            table = pc.read_csv(path)
    except (pa.ArrowInvalid, OSError, EOFError) as e:
        raise FormatError(f"the table cannot be read ({e})", where=path, fix="copy the bundle again") from e
    absent = [c for c in columns or [] if c not in table.column_names]
    if absent:
        raise FormatError(
            f"no column {', '.join(absent)}", where=path, fix=f"columns here: {', '.join(table.column_names)}"
        )
    return table


def as_ids(column: Any) -> np.ndarray:
    """Cell ids as text: integers, bytes and text of any Arrow kind; object [n]."""
    import pyarrow as pa

    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return np.asarray(column.cast(pa.string()).to_numpy(zero_copy_only=False), dtype=object)


def cells(bundle: Bundle) -> pd.DataFrame:
    """Cells by id: columns as the bundle has them, ``x_centroid`` and ``y_centroid`` in um.

    Raises
    ------
    InputError
        Missing or double ids, cells without a place.
    """
    from ._tables import check_coordinates, check_ids

    path = bundle.tables["cells"]
    table = read_frame(path, ["cell_id", "x_centroid", "y_centroid"])
    ids = as_ids(table.column("cell_id"))
    frame = table.drop_columns(["cell_id"]).to_pandas()
    frame.index = ids
    check_ids([str(i) for i in ids], what="the cell table", where=path)
    check_coordinates(frame, ["x_centroid", "y_centroid"], where=path)
    return frame


def outlines(path: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Outlines of cells or nuclei.

    Returns
    -------
    tuple
        Cell id of each polygon, object [n]; its label within the run, int64 [n] (from version 2 on, else None); and
        the polygons.
    """
    from ._vertices import polygons

    table = read_frame(path, ["cell_id", "vertex_x", "vertex_y"])
    ids = as_ids(table.column("cell_id"))
    labels = table.column("label_id").to_numpy() if "label_id" in table.column_names else None
    x, y = (table.column(c).to_numpy().astype(np.float64) for c in ("vertex_x", "vertex_y"))
    if labels is None:
        # The first files of version 2 do not number the nuclei of a cell: one ends where it comes back to its start.
        labels, known = _rings(ids, x, y), False
    else:
        known = True
    rows, shapes = polygons([ids, labels], x, y, where=path)
    return ids[rows], labels[rows].astype(np.int64) if known else None, shapes


def _rings(ids: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """int64 [vertices]: 0 for a cell's first ring, 1 for the next, where rings of a cell follow each other."""
    ring = np.zeros(len(ids), dtype=np.int64)
    if not len(ids):
        return ring
    start = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    stop = np.r_[start[1:], len(ids)]
    first = np.repeat(start, stop - start)
    back = (x == x[first]) & (y == y[first]) & (np.arange(len(ids)) > first)
    back[stop - 1] = False
    for i in np.flatnonzero(np.add.reduceat(back, start)):
        at, end, number = start[i], stop[i], 0
        while at < end:
            again = np.flatnonzero((x[at + 1 : end] == x[at]) & (y[at + 1 : end] == y[at]))
            after = at + int(again[0]) + 2 if len(again) else end
            ring[at:after] = number
            at, number = after, number + 1
    return ring


def nucleus_ids(cell: np.ndarray, label: np.ndarray | None) -> list[str]:
    """A nucleus is called as its cell is, or ``<cell_id>:<label_id>`` where the cell has several.

    Without labels (before version 2) a cell has one nucleus; further polygons of it count from 2.
    """
    import pandas as pd

    text = pd.Series([str(c) for c in cell])
    several = text.duplicated(keep=False)
    within = (text.groupby(text).cumcount() + 1).to_numpy() if label is None else label
    return [f"{c}:{k}" if many else c for c, k, many in zip(text, within, several, strict=True)]


def check_version(bundle: Bundle, given: int | None, notes: Notes) -> None:
    """Refuse a version whose files nobody has seen, unless told to read it as one that is known.

    Raises
    ------
    FormatError
        With the way out.
    """
    major = (bundle.version or "").split(".")[0]
    known = f"1 to {NEWEST} are known"
    if given is not None and not 1 <= given <= NEWEST:
        raise FormatError(f"version={given}", where=_where(bundle), fix=known)
    if not bundle.version or (major.isdigit() and 1 <= int(major) <= NEWEST):
        return
    if given is None:
        raise FormatError(
            f"an unknown version of Xenium's analysis ({bundle.version})",
            where=_where(bundle),
            fix=f"{known}; --option version={NEWEST} reads it as that version",
        )
    notes(f"analysis version {bundle.version} was read as version {given}: check the figures below")


def pixel_size(bundle: Bundle, mpp: float | None) -> float:
    """Microns per pixel of the instrument, given or told by experiment.xenium; 0 where neither.

    Raises
    ------
    InputError
        Not a pixel size.
    """
    told = bundle.experiment.get("pixel_size")
    try:
        told = None if told is None else float(told)
    except (TypeError, ValueError) as e:
        raise InputError(f"pixel_size {told!r} is no number", where=_where(bundle), fix="give --mpp 0.2125") from e
    if mpp is not None:
        return check_mpp(mpp)
    return 0.0 if told is None else check_mpp(told, where=_where(bundle))


def agreed_pixel(bundle: Bundle, pixel: float, mpp: float | None, told: tuple[float, float] | None) -> float:
    """The instrument's pixel size, after a look at what the image says of its own.

    Raises
    ------
    ScaleError
        --mpp is neither experiment.xenium's nor the image's; or those two differ and nothing says which holds.
    """
    said = bundle.experiment.get("pixel_size")
    image = None if told is None else told[0]
    sources = {n: float(v) for n, v in {"experiment.xenium": said, "the morphology image": image}.items() if v}
    text = " and ".join(f"{name} says {value:g}" for name, value in sources.items())
    if mpp is not None and sources and not any(_close(mpp, v) for v in sources.values()):
        raise ScaleError(f"--mpp {mpp:g} um per pixel, but {text}", where=_where(bundle), fix="leave --mpp out")
    if mpp is None and len(sources) == 2 and not _close(*sources.values()):
        raise ScaleError(
            f"{text} um per pixel", where=_where(bundle), fix=f"give the instrument's by --mpp (usually {PIXEL_UM})"
        )
    return pixel


def _close(a: float, b: float) -> bool:
    return abs(a / b - 1) < 0.01


def _where(bundle: Bundle) -> Path:
    return bundle.folder / "experiment.xenium"


def check_inside(xy_um: np.ndarray, shape: tuple[int, int], pixel_um: float, *, where: object) -> None:
    """Cells lie in the morphology image.

    Raises
    ------
    InputError
        Most do not.
    """
    inside = ((xy_um >= 0) & (xy_um <= np.array(shape[::-1]) * pixel_um)).all(axis=1).mean()
    if inside < 0.5:
        raise InputError(
            f"{inside:.0%} of the cells lie in the morphology image, which spans {shape[1] * pixel_um:.0f} x "
            f"{shape[0] * pixel_um:.0f} um",
            where=where,
            fix="of a cut-out or re-saved image: --mpp and --option morphology_origin_um=[X,Y]; or morphology=false",
        )
