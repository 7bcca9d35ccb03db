"""Landmarks as people and viewers write them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FormatError, InputError, MissingError

_LEVEL = re.compile(r"#(\d+)")
_COLUMN = re.compile(r"(?P<name>.*?)_?(?P<axis>[xy])_?(?P<unit>um|px)?$")
SIDES = ("alignment", "fixed")
"""The image that is laid onto another, and that one."""


@dataclass(frozen=True)
class Keypoints:
    """Landmarks of one picture.

    Parameters
    ----------
    xy
        float64 [n, 2], (x, y) in the unit below; pixels are those of the full resolution.
    unit
        "px" or "um"; None where the file does not tell.
    level
        Pyramid level at which they were written; already multiplied out.
    names
        Landmark names where the file has them.
    two_sided
        The file lists the landmarks of another picture, too.
    """

    xy: np.ndarray
    unit: str | None
    level: int
    names: tuple[str, ...] | None = None
    two_sided: bool = False


def read_keypoints(
    path: str | os.PathLike[str], *, level: int | None = None, unit: str | None = None, side: str = "fixed"
) -> Keypoints:
    """Read the landmarks of one picture.

    Two columns x and y, separated by blanks, tabs or commas, with or without a header; a further column ``name`` or
    ``id`` is kept. A header that ends in ``_um`` or ``_px`` tells the unit, ``#2`` in the file's name the pyramid level
    (as Pixel2Gene's ``he#2_keypoints.txt``). Files that hold both pictures, `side` saying which is meant: Xenium
    Explorer's (``fixedX, fixedY, alignmentX, alignmentY``, pixels), and pairs of columns as of STalign's landmarks
    (``merfish_x_um, merfish_y_um, visium_x_px, visium_y_px``), where the one in pixels is laid onto the one in um, and
    of two in the same unit the first onto the second.

    Parameters
    ----------
    path
        The file.
    level
        Pyramid level of the coordinates, each half as fine as the one before; 0 is full resolution. Default: the
        number after "#" in the file's name, else 0.
    unit
        "px" or "um", where the file does not tell.
    side
        "alignment" or "fixed", for files that hold both: the image that is laid onto the other, and that one.

    Returns
    -------
    Keypoints

    Raises
    ------
    MissingError
        No such file.
    FormatError
        No table of two columns of numbers.
    InputError
        A level below 0, or a level of coordinates in um.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError("no such file of landmarks", where=path, fix="check the path")
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (UnicodeDecodeError, OSError) as e:
        raise FormatError(f"the landmarks cannot be read ({e})", where=path, fix="give a text file") from e
    rows = [re.split(r"[\s,;]+", line) for line in lines if not line.startswith("//")]
    header = [] if not rows or _numbers(rows[0][:2]) else [h.strip('"').lower() for h in rows.pop(0)]
    x, y, name, told, two_sided = _columns(header, side, path)
    values = [_numbers([row[i] for i in (x, y) if i < len(row)]) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if value is None or len(value) < 2:
            raise FormatError(
                f"a landmark that is not two numbers ({' '.join(row)[:60]})", where=path, fix="give x and y of each"
            )
    if not values:
        raise FormatError("a file without landmarks", where=path, fix="give one landmark a line: x y")
    if told is not None and unit is not None and told != unit:
        raise InputError(
            f"the file says {told} where {unit} was asked for", where=path, fix="leave the unit to the file"
        )
    found = _LEVEL.search(path.name)
    level = level if level is not None else int(found.group(1)) if found else 0
    unit = told or unit or ("px" if found else None)
    if level < 0 or (level and unit == "um"):
        raise InputError(
            f"level {level} of coordinates in {unit or 'unknown units'}", where=path, fix="levels are of px"
        )
    names = tuple(row[name] for row in rows) if name is not None and all(len(r) > name for r in rows) else None
    return Keypoints(np.array(values, dtype=np.float64) * 2.0**level, unit, level, names, two_sided)


def write_keypoints(xy: np.ndarray, path: str | os.PathLike[str], *, level: int = 0) -> Path:
    """Write the landmarks of one picture as Pixel2Gene takes them: x and y in pixels, no header.

    Parameters
    ----------
    xy
        float [n, 2], (x, y) in pixels of the full resolution.
    path
        Text file. A level above 0 must stand in its name (``he#2_keypoints.txt``), where readers look for it.
    level
        Pyramid level whose pixels are written, each half as fine as the one before.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        No pairs of numbers; a level that the name does not tell.
    StoreError
        The file cannot be written.
    """
    from .._files import write_file

    path = Path(path)
    xy = np.asarray(xy, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2 or not len(xy) or not np.isfinite(xy).all():
        raise InputError(f"landmarks of shape {xy.shape}", where=path, fix="give [n, 2] finite numbers: x and y")
    told = _LEVEL.search(path.name)
    if level < 0 or (int(told[1]) if told else 0) != level:
        raise InputError(
            f"level {level} is not what the name tells", where=path, fix=f"name it he#{max(level, 0)}_keypoints.txt"
        )
    lines = "".join(f"{x!r} {y!r}\n" for x, y in (xy / 2.0**level).tolist())
    return write_file(path, lambda staged: staged.write_text(lines, encoding="utf-8"))


def _columns(header: list[str], side: str, path: Path) -> tuple[int, int, int | None, str | None, bool]:
    """Where x, y and the names stand, the unit that the header tells, and whether it has both sides."""
    if side not in SIDES:
        raise InputError(f"no side named {side!r}", where=path, fix=" or ".join(SIDES))
    if not header:
        return 0, 1, None, None, False
    place = {m.group("name", "axis", "unit"): i for i, h in enumerate(header) if (m := _COLUMN.fullmatch(h))}
    pairs = [(name, unit, place[name, "x", unit]) for name, axis, unit in place if axis == "x"]
    pairs = [(name, unit, x) for name, unit, x in pairs if (name, "y", unit) in place]
    if len(pairs) not in (1, 2):
        raise FormatError(
            f"columns {', '.join(header[:6])} where x and y are needed",
            where=path,
            fix="name them x, y (or x_um, y_um, x_px, y_px), with a prefix each where there are two pairs",
        )
    name, unit, x = pairs[0] if len(pairs) == 1 else _pair(pairs, side)
    told = unit or ("px" if {p[0] for p in pairs} == set(SIDES) else None)
    named = next((i for i, h in enumerate(header) if h in ("name", "id", "landmark")), None)
    return x, place[name, "y", unit], named, told, len(pairs) == 2


def _pair(pairs: list[tuple[str, str | None, int]], side: str) -> tuple[str, str | None, int]:
    """The pair of columns that is a side."""
    by_name = {name: (name, unit, x) for name, unit, x in pairs}
    if set(by_name) == set(SIDES):
        return by_name[side]
    if {unit for _, unit, _ in pairs} == {"um", "px"}:
        pairs = sorted(pairs, key=lambda p: p[1] == "um")
    return pairs[SIDES.index(side)]


def _numbers(fields: list[str]) -> list[float] | None:
    try:
        values = [float(f) for f in fields]
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None
