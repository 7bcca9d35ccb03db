"""Spatial Transcriptomics (1k and 2k arrays): a counts table, a spot table and an H&E picture.

The layout of the her2st repository (``C2_counts.tsv.gz``, ``C2_selection.tsv``, ``C2_HE.jpg``) and of STUtility
(``MOB1_alignment_table.tsv``). Files are told apart by content. Andersson et al., Nature Communications 2021; Stahl et
al., Science 2016.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import frames
from ..errors import FormatError, InputError, ScaleError

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from ._build import Notes
    from ._picture import Picture
    from ._tables import Counts

PRIORITY = 10

_TABLE = re.compile(r"\.(tsv|csv|txt)(\.gz)?$", re.IGNORECASE)
_NAMED_COUNTS = re.compile(r"count|stdata|umi|matrix", re.IGNORECASE)
_NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|nan|na|", re.IGNORECASE)
_ENDING = re.compile(r"[._-]*(counts?|stdata|count_matrix|data)?$", re.IGNORECASE)
_RADIUS_UM = {"1k": 50.0, "2k": 55.0}
_STEP_UM = {"1k": frames.ST_1K_STEP_UM, "2k": frames.ST_2K_STEP_UM}
_PITCH_UM = {"1k": 200.0, "2k": 150.0}


@dataclass
class _Slide:
    """Files of one slide."""

    name: str
    counts: Path
    positions: Path | None = None
    image: Path | None = None
    labels: list[Path] = field(default_factory=list)
    shares: list[Path] = field(default_factory=list)


def sniff(path: Path) -> str | None:
    """What is recognised at `path`, or None.

    Parameters
    ----------
    path
        A folder, a path prefix such as ``her2st/C2/C2``, or one of the slide's files.
    """
    slides = _slides(path)
    if not slides:
        return None
    if len(slides) > 1:
        return f"{len(slides)} Spatial Transcriptomics slides"
    have = [what for what, there in (("positions", slides[0].positions), ("image", slides[0].image)) if there]
    return f"Spatial Transcriptomics ({', '.join(['counts', *have])})"


def read(
    path: Path,
    *,
    mpp: float | None = None,
    facts: dict[str, Any] | None = None,
    counts: str | Path | None = None,
    positions: str | Path | None = None,
    image: str | Path | None = None,
    obs: str | Path | None = None,
    pitch_um: float | None = None,
    spot_diameter_um: float | None = None,
    scale: float = 1.0,
    off_tissue: bool = False,
    check_frame: bool = True,
) -> SpatialData:
    """Read a Spatial Transcriptomics slide.

    The pixel size is fitted by regression of the spots' pixels on their place in the array, and reported in the facts
    (``mpp``, ``mpp_from``, ``fit``). Tables found beside are joined by spot: clusters into ``obs["cluster"]``, labels
    into ``obs["label"]``, tables of proportions into ``obsm``, their column names into ``uns``.

    Parameters
    ----------
    path
        A folder of one slide, a path prefix, or one of the slide's files.
    mpp
        Microns per pixel of the image; default from the array's pitch.
    facts
        slide, patient, tissue, platform where known.
    counts, positions, image
        Files, where they lie elsewhere. `image` "none" reads the tables alone.
    obs
        Table of further columns by spot id.
    pitch_um
        Centre-to-centre distance; default 200 (1k array) or 150 (2k array), told by the places that are occupied.
    spot_diameter_um
        Default 100 (1k) or 110 (2k).
    scale
        Pixels of the image per pixel of the spot table, where the picture was resized.
    off_tissue
        Keep spots whose ``selected`` is 0 too (``obs["in_tissue"]``).
    check_frame
        Refuse spots that do not lie on the picture's tissue.

    Raises
    ------
    FormatError
        No such slide, several slides, truncated files.
    InputError
        Duplicate or missing ids, missing coordinates, counts that are none, no spots.
    ScaleError
        The pixel size cannot be fitted; image and spots are in different frames.
    """
    from ._build import Notes, assemble, check, used_files
    from ._images import open_image

    slide = _one(path, counts=counts, positions=positions, image=image)
    facts = {**(facts or {}), "platform": "st"}
    facts["slide"] = facts.get("slide") or slide.name
    notes = Notes(str(facts["slide"]))
    spots, table, everywhere = _joined(slide, notes, off_tissue=off_tissue)
    picture = open_image(slide.image) if slide.image else None
    frame = _place(table, everywhere, facts, mpp=mpp, pitch_um=pitch_um, scale=scale, picture=picture, notes=notes)
    if picture is not None and check_frame:
        inside = table["in_tissue"].to_numpy() == 1 if "in_tissue" in table else np.ones(len(table), bool)
        cell = frame.step_um[0] * frame.step_um[1] * (2 if frame.array == "2k" else 1)
        xy_px = frame.xy_um[inside] / facts["mpp"]
        facts["frame"] = check(picture, xy_px, mpp=facts["mpp"], cell_um2=cell, notes=notes, mirrored=frame.mirrored)
    spots.xy_um = frame.xy_um
    spots.radius_um = (spot_diameter_um or 2 * _RADIUS_UM.get(frame.array or "", frame.pitch_um / 4)) / 2
    facts |= {"array": frame.array, "pitch_um": frame.pitch_um, "spot_diameter_um": 2 * spots.radius_um}
    _side_tables(slide, spots, table, notes, obs=Path(obs) if obs else None)
    given = {f"labels_{i}": p for i, p in enumerate(slide.labels + slide.shares + ([Path(obs)] if obs else []))}
    facts["files"] = used_files(counts=slide.counts, positions=slide.positions, image=slide.image, **given)
    return assemble(facts=facts, notes=notes, picture=picture, spots=spots)


def _slides(path: Path) -> list[_Slide]:
    """Slides at a folder, prefix or file: one per counts table."""
    if path.is_dir():
        folder, prefix = path, ""
    elif path.parent.is_dir():
        folder, prefix = path.parent, path.name
    else:
        return []
    files = sorted(p for p in folder.iterdir() if p.is_file())
    if len(files) > 2000:
        return []
    tables = {p: what for p in files if _TABLE.search(p.name) and (what := _role(p))}
    found = [_Slide(_stem(p), p) for p, what in tables.items() if what == "counts"]
    if not found and "positions" in tables.values():
        # Beside a spot table, counts that are empty or of other ids are still meant to be counts: reading says why not.
        found = [_Slide(_stem(p), p) for p, what in tables.items() if what == "counts?"]
    if path.is_file():
        found = [s for s in found if s.counts == path or _belongs(path, s.name) or len(found) == 1]
    elif prefix:
        found = [s for s in found if s.name == prefix] or [s for s in found if _belongs(s.counts, prefix)]
    for slide in found:
        own = [p for p in files if (len(found) == 1 and not prefix) or _belongs(p, slide.name)]
        pick = {what: [p for p in own if tables.get(p) == what] for what in ("positions", "labels", "shares")}
        slide.positions = next(iter(pick["positions"]), None)
        slide.labels, slide.shares = pick["labels"], pick["shares"]
        slide.image = next(iter(_pictures(own)), None)
    return found


def _stem(counts: Path) -> str:
    return _ENDING.sub("", _TABLE.sub("", counts.name)) or counts.parent.name


def _belongs(path: Path, name: str) -> bool:
    rest = path.name.removeprefix(name)
    return rest != path.name and (not rest or not rest[0].isalnum())


def _pictures(files: list[Path]) -> list[Path]:
    from ._images import is_image, named_as_image

    found = [p for p in files if not _TABLE.search(p.name) and (is_image(p) or named_as_image(p))]
    return sorted(found, key=lambda p: (not is_image(p), "he" not in re.split(r"[._-]", p.name.lower()), p.name))


def _role(path: Path) -> str | None:
    """ "counts", "positions", "labels" or "shares" by the header and first row; None for anything else.

    "counts?" is what is named as counts without looking like them: empty, or of ids that are no places.
    """
    from ._tables import open_text, separator_of, xy_of_id

    named = "counts?" if _NAMED_COUNTS.search(path.name) else None
    try:
        with open_text(path) as f:
            lines = [f.readline(1 << 24).decode("utf-8-sig", "replace").rstrip("\r\n") for _ in range(2)]
    except (OSError, EOFError, zlib.error):
        return named
    sep = separator_of(lines[0])
    header, row = ([v.strip().strip('"') for v in line.split(sep)] for line in lines)
    names = {h.lower() for h in header}
    if {"x", "y"} <= names:
        if "label" in names:
            return "labels"
        return "positions" if {"pixel_x", "pixel_y"} <= names or {"new_x", "new_y"} <= names else None
    if len(row) < 2 or not re.fullmatch(r"X?-?[\d.]+x-?[\d.]+", row[0]) or xy_of_id(row[0]) is None:
        spots_in_header = sum(re.fullmatch(r"X?[\d.]+x[\d.]+", h) is not None for h in header[:20])
        return "counts" if spots_in_header >= 3 else named
    values = [v for v in row[1:] if v]
    if all(re.fullmatch(r"-?\d+(\.0+)?", v) for v in values[:200]):
        return "counts"
    if not all(_NUMBER.fullmatch(v) for v in values[:200]):
        return named
    # Fractions: proportions where there are few and none is named as counts, else counts that reading will refuse.
    return "counts" if named or len(values) >= 200 else "shares"


def _one(path: Path, **given: str | Path | None) -> _Slide:
    slides = _slides(Path(given["counts"]) if given["counts"] else path)
    if len(slides) > 1:
        names = ", ".join(str(s.counts.parent / s.name) for s in slides[:6])
        raise FormatError(f"{len(slides)} slides", where=path, fix=f"name one: {names}")
    if not slides:
        raise FormatError(
            "no Spatial Transcriptomics slide",
            where=path,
            fix="give a folder with counts (rows such as 10x21), a spot table (x, y, pixel_x, pixel_y) and an image",
        )
    slide = slides[0]
    if given["positions"]:
        slide.positions = Path(str(given["positions"]))
    if given["image"]:
        slide.image = None if str(given["image"]).lower() == "none" else Path(str(given["image"]))
    return slide


def _joined(slide: _Slide, notes: Notes, *, off_tissue: bool) -> tuple[Any, pd.DataFrame, pd.DataFrame]:
    """Spots with counts; row for row, their line of the spot table; the whole spot table."""
    from ._build import Spots, join
    from ._tables import check_coordinates, check_ids, read_text_counts, var_table, xy_of_id

    counts = read_text_counts(slide.counts, is_spot=lambda s: xy_of_id(s) is not None)
    check_ids(counts.ids, what="the counts", where=slide.counts)
    table = _positions(slide, counts)
    where = slide.positions or slide.counts
    keys, table["_key"] = _keys(counts, table, where=where)
    check_ids(list(table["_key"]), what="the spot table", where=where)
    check_ids(keys, what="the counts", where=slide.counts)
    unknown = len(set(keys) - set(table["_key"]))
    table = table.set_index("_key")
    kept = table if off_tissue or "selected" not in table else table[table["selected"] == 1]
    what = "selected spots" if len(kept) < len(table) or "selected" in table else "spots"
    rows = join(kept.index, keys, notes=notes, where=where, what=what)
    if unknown:
        notes(f"{unknown} rows of counts without a position left out")
    kept = kept[rows >= 0]
    check_coordinates(kept, [c for c in kept.columns if c in _NUMBERS], where=where)
    rows = rows[rows >= 0]
    var, renamed = var_table(counts)
    if renamed:
        notes(f"{renamed} duplicated gene names made unique")
    spots = Spots([counts.ids[i] for i in rows], np.empty((0, 2)), 0.0, counts.X[rows], var)
    return spots, kept.rename(columns={"selected": "in_tissue"}), table


_NUMBERS = ("x", "y", "new_x", "new_y", "pixel_x", "pixel_y")


def _positions(slide: _Slide, counts: Counts) -> pd.DataFrame:
    """The spot table, or the places that the ids of the counts give."""
    import pandas as pd

    from ._tables import read_table, require_columns, xy_of_id

    if slide.positions is None:
        places = [xy_of_id(s) for s in counts.ids]
        lost = [s for s, place in zip(counts.ids, places, strict=True) if place is None]
        if lost:
            raise InputError(
                f"{len(lost)} ids without a place ({', '.join(lost[:3])})",
                where=slide.counts,
                fix="give the spot table (--option positions=FILE)",
            )
        return pd.DataFrame(places, columns=["x", "y"])
    table = read_table(slide.positions)
    table.columns = [str(c).strip().lower() for c in table.columns]
    require_columns(table, ["x", "y"], where=slide.positions)
    for name in (*_NUMBERS, "selected"):
        if name in table:
            table[name] = pd.to_numeric(table[name], errors="coerce")
    return table[[c for c in (*_NUMBERS, "selected") if c in table]]


def _keys(counts: Counts, table: pd.DataFrame, *, where: object) -> tuple[list[str], list[str]]:
    """Common keys of counts and spot table: array coordinates, rounded where only one side has fractions."""
    from ._tables import xy_of_id

    places = [xy_of_id(s) for s in counts.ids]
    missing = table[["x", "y"]].isna().any(axis=1)
    if missing.any():
        rows = ", ".join(str(i + 1) for i in np.flatnonzero(missing)[:5])
        raise InputError(f"{int(missing.sum())} spots without x and y (rows {rows})", where=where, fix="drop them")
    at = table[["x", "y"]].to_numpy(dtype=float)
    given = np.array([p if p else (np.nan, np.nan) for p in places], dtype=float).reshape(-1, 2)
    fractions = [bool(np.nanmax(np.abs(v - np.round(v)), initial=0) > 1e-6) for v in (at, given)]
    if fractions[0] != fractions[1]:
        at, given = np.round(at), np.round(given)
    keys = [f"{x:g}x{y:g}" if np.isfinite(x) else s for (x, y), s in zip(given, counts.ids, strict=True)]
    return keys, [f"{x:g}x{y:g}" for x, y in at]


@dataclass
class _Frame:
    """Where the spots are."""

    xy_um: np.ndarray
    array: str | None
    pitch_um: float
    step_um: tuple[float, float]
    mirrored: bool = False


def _place(
    table: pd.DataFrame,
    everywhere: pd.DataFrame,
    facts: dict[str, Any],
    *,
    mpp: float | None,
    pitch_um: float | None,
    scale: float,
    picture: Picture | None,
    notes: Notes,
) -> _Frame:
    """Spots in microns; writes ``mpp``, ``mpp_from`` and ``fit`` into the facts."""
    from ._scale import check_mpp

    array = frames.st_array(everywhere[["x", "y"]].to_numpy(dtype=float))
    nominal = _PITCH_UM.get(array or "", np.nan)
    pitch = float(pitch_um or nominal)
    # A pitch that is given means a square lattice, unless the occupied places are a chequerboard.
    step_x, step_y = (s * pitch / nominal for s in _STEP_UM[array]) if array else (pitch, pitch)
    step = (step_x, step_y)
    if not {"pixel_x", "pixel_y"} <= set(table):
        if picture is not None:
            raise ScaleError(
                "the spots have no pixel coordinates for this image",
                where=facts["slide"],
                fix="give a spot table with pixel_x and pixel_y, or leave the image out (--option image=none)",
            )
        if not np.isfinite(pitch):
            raise _undecided(facts)
        notes(f"no image: places times the pitch of {pitch:g} um")
        return _Frame(_places(table) * step, array, pitch, step)
    fit = _fit(everywhere, step, pitch, scale=scale, forced=mpp is not None, facts=facts)
    xy_px = table[["pixel_x", "pixel_y"]].to_numpy(dtype=float) * scale
    fitted = fit.mpp if fit else None
    facts["mpp"] = check_mpp(mpp, fitted=fitted, where=facts["slide"]) if mpp is not None else fitted or np.nan
    facts["mpp_from"] = "--mpp" if mpp is not None else "array pitch"
    if fit:
        facts["fit"] = fit.told()
        said = f"array pitch of {pitch:g} um ({array or 'given'}): {fit.mpp:.4f} um/px"
        notes(f"{said}, stretch {fit.stretch:.4f}, residual {fit.rms_um:.2f} um, {fit.n} spots")
        if mpp is not None and abs(mpp / fit.mpp - 1) > 0.02:
            notes(f"--mpp {mpp:g} differs by {mpp / fit.mpp - 1:+.1%} from what the array's pitch says")
    return _Frame(xy_px * facts["mpp"], array, pitch, step, mirrored=fit is not None and fit.mirrored)


def _places(table: pd.DataFrame) -> np.ndarray:
    """Array coordinates, the refined ones where there are any."""
    return table[["new_x", "new_y"] if {"new_x", "new_y"} <= set(table) else ["x", "y"]].to_numpy(dtype=float)


def _fit(
    table: pd.DataFrame, step: tuple[float, float], pitch: float, *, scale: float, forced: bool, facts: dict[str, Any]
) -> frames.PitchFit | None:
    if not np.isfinite(pitch):
        if forced:
            return None
        raise _undecided(facts)
    xy_px = table[["pixel_x", "pixel_y"]].to_numpy(dtype=float) * scale
    try:
        return frames.fit_design(_places(table) * step, xy_px, pitch_um=pitch)
    except ScaleError:
        if forced:
            return None
        raise


def _undecided(facts: dict[str, Any]) -> ScaleError:
    return ScaleError(
        "the places do not tell a 1k from a 2k array",
        where=facts["slide"],
        fix="pass the pixel size (--mpp), or the array's pitch (--option pitch_um=200 for 1k, 150 for 2k)",
    )


def _side_tables(slide: _Slide, spots: Any, table: pd.DataFrame, notes: Notes, *, obs: Path | None) -> None:
    """obs and obsm from the spot table and the tables beside it."""
    import pandas as pd

    from ._build import join_side_table
    from ._tables import read_table

    columns = table.rename(columns={"x": "array_col", "y": "array_row"})
    if "in_tissue" in columns:
        columns["in_tissue"] = columns["in_tissue"].fillna(0).astype(np.int8)
    columns.index = pd.Index(spots.ids)
    for path in slide.labels:
        columns = columns.join(_labels(path, table, spots.ids, notes), rsuffix="_labels")
    if obs is not None:
        columns = columns.join(join_side_table(obs, spots.ids, notes=notes), rsuffix="_obs")
    spots.obs = columns
    for path in slide.shares:
        shares = read_table(path, index_col=0)
        name = _TABLE.sub("", path.name).removeprefix(slide.name).strip("._-") or "shares"
        at = pd.Index(shares.index.astype(str)).get_indexer(spots.ids)
        values = np.full((len(spots.ids), shares.shape[1]), np.nan)
        values[at >= 0] = shares.to_numpy(dtype=float)[at[at >= 0]]
        spots.obsm[name] = values
        spots.uns[name] = {"columns": [str(c) for c in shares.columns]}
        notes(f"{int((at >= 0).sum())} of {len(spots.ids)} spots have a row in {path.name}")


def _labels(path: Path, table: pd.DataFrame, ids: list[str], notes: Notes) -> pd.DataFrame:
    """Columns of a label table, matched by pixel position where both have it (ids there may be rounded otherwise)."""
    import pandas as pd
    from scipy.spatial import cKDTree

    from ._build import tidy
    from ._tables import read_table

    labels = read_table(path)
    labels.columns = [str(c).strip() for c in labels.columns]
    pixels = ["pixel_x", "pixel_y"]
    if set(pixels) <= set(labels) and set(pixels) <= set(table):
        known = labels[pixels].notna().all(axis=1)
        labels = labels[known]
        distance, at = cKDTree(labels[pixels].to_numpy(float)).query(table[pixels].to_numpy(float))
        at = np.where(distance <= 1.0, at, -1)
    else:
        keys = [f"{x:g}x{y:g}" for x, y in np.round(labels[["x", "y"]].to_numpy(float))]
        at = pd.Index(keys).drop_duplicates().get_indexer([f"{x:g}x{y:g}" for x, y in table[["x", "y"]].to_numpy()])
    drop = {"x", "y", *pixels, "new_x", "new_y", "Row.names", "patient_id", "ids"}
    columns = [c for c in labels.columns if c not in drop and not c.startswith("Unnamed")]
    whole = labels["label"].map(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v).astype(object)
    labels = labels[columns].assign(label=whole.where(whole.isna(), whole.astype(str)))
    out = labels.reset_index(drop=True).reindex(at)
    out.index = pd.Index(ids)
    notes(f"{int((at >= 0).sum())} of {len(ids)} spots have a label in {path.name}")
    return tidy(out.rename(columns={"label": "cluster" if "cluster" in path.name.lower() else "label"}))
