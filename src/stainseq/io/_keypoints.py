"""Landmarks as people and viewers write them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FormatError, InputError, MissingError

_LEVEL = re.compile(r"#(\d+)")
_EXPLORER = ("fixedx", "fixedy", "alignmentx", "alignmenty")


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
    """

    xy: np.ndarray
    unit: str | None
    level: int
    names: tuple[str, ...] | None = None


def read_keypoints(
    path: str | os.PathLike[str], *, level: int | None = None, unit: str | None = None, side: str = "fixed"
) -> Keypoints:
    """Read the landmarks of one picture.

    Two columns x and y, separated by blanks, tabs or commas, with or without a header; a further column ``name`` or
    ``id`` is kept. A header that ends in ``_um`` or ``_px`` tells the unit, ``#2`` in the file's name the pyramid level
    (as Pixel2Gene's ``he#2_keypoints.txt``). Xenium Explorer's keypoints (``fixedX, fixedY, alignmentX, alignmentY``)
    hold both pictures in pixels: `side` says which is meant.

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
        "fixed" or "alignment", for Xenium Explorer's files: the morphology image and the image laid onto it.

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
    x, y, name, told = _columns(header, side, path)
    values = [_numbers([row[i] for i in (x, y) if i < len(row)]) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if value is None or len(value) < 2:
            raise FormatError(f"a landmark that is not two numbers ({' '.join(row)[:60]})", where=path)
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
    return Keypoints(np.array(values, dtype=np.float64) * 2.0**level, unit, level, names)


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


def _columns(header: list[str], side: str, path: Path) -> tuple[int, int, int | None, str | None]:
    """Where x, y and the names stand, and the unit that the header tells."""
    if set(_EXPLORER) <= set(header):
        if side not in ("fixed", "alignment"):
            raise InputError(f"no side named {side!r}", where=path, fix="fixed or alignment")
        return header.index(f"{side}x"), header.index(f"{side}y"), None, "px"
    if not header:
        return 0, 1, None, None
    for unit in ("um", "px", None):
        ends = f"_{unit}" if unit else ""
        xs, ys = ([i for i, h in enumerate(header) if h in (axis + ends, f"{axis}{unit}")] for axis in "xy")
        if len(xs) == 1 and len(ys) == 1:
            named = next((i for i, h in enumerate(header) if h in ("name", "id", "landmark")), None)
            return xs[0], ys[0], named, unit
    raise FormatError(
        f"columns {', '.join(header[:6])} where x and y are needed",
        where=path,
        fix="name them x, y (or x_um, y_um, x_px, y_px)",
    )


def _numbers(fields: list[str]) -> list[float] | None:
    try:
        values = [float(f) for f in fields]
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None
