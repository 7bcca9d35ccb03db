"""STimage-1K4M: an image, a coord csv (y before x, radius), a count csv, and optionally an annotation csv per slide.

Layout of https://huggingface.co/datasets/jiawennnn/STimage-1K4M (``{tech}/image``, ``{tech}/coord``,
``{tech}/gene_exp``, ``annotation``, ``meta``), and the flat one of the repository's ``example`` folder. Images are all
called .png and are PNG, JPEG or TIFF.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import frames
from ..errors import FormatError, MissingError, ScaleError

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from ._build import Notes

PRIORITY = 20

TECHNOLOGIES = ("ST", "Visium", "VisiumHD")

DROPPED_LABELS = ("", "undetermined", "Exclude")
"""Labels that the authors leave out of probing; their spots stay, without a label."""

_FOLDERS = ("image", "coord", "gene_exp")
_TABLE = re.compile(r"(.+)_(coord|count)\.csv(\.gz)?", re.IGNORECASE)
_TECH = re.compile(r"_(ST|VisiumHD|Visium)(?=_|$)", re.IGNORECASE)
_RADIUS_UM = {"1k": 50.0, "2k": 55.0, "Visium": 27.5, "VisiumHD": 1.0}
_PITCH_UM = {"1k": 200.0, "2k": 150.0, "Visium": 100.0, "VisiumHD": 2.0}


@dataclass(frozen=True)
class _Slide:
    """Files of one slide."""

    name: str
    coord: Path
    counts: Path
    image: Path | None
    annotation: Path | None
    meta: Path | None


def sniff(path: Path) -> str | None:
    """What is recognised at `path`, or None.

    Parameters
    ----------
    path
        The root, a folder, a slide's file, or a folder or root followed by the slide's id.
    """
    tables = _coord_tables(*_folder_and_name(path))
    if not tables:
        return None
    return "STimage-1K4M slide" if len(tables) == 1 else f"STimage-1K4M ({len(tables)} slides)"


def read(
    path: Path,
    *,
    mpp: float | None = None,
    facts: dict[str, Any] | None = None,
    tech: str | None = None,
    image: str | Path | None = None,
    obs: str | Path | None = None,
    pitch_um: float | None = None,
    scale: float = 1.0,
    check_frame: bool = True,
) -> SpatialData:
    """Read a slide of STimage-1K4M.

    No file of the data set holds a pixel size: it is fitted from the spots' lattice, with the pitch of the technology
    (ST 200 um, or 150 um where the occupied places are those of the 2k array; Visium 100; Visium HD 2). The data set's
    own radius ``r`` is kept in ``obs["r_px"]`` and compared: it assumes 100 um spots at 200 um for all ST slides, which
    was wrong for GSM4284316.

    Parameters
    ----------
    path
        The root or a folder (with ``facts["slide"]`` where it holds several), one of the slide's files, or a folder
        followed by the slide's id.
    mpp
        Microns per pixel of the image; default from the lattice.
    facts
        slide, patient, tissue, platform where known. ``tissue`` is taken from ``meta/meta_all_gene.csv`` if absent.
    tech
        "ST", "Visium" or "VisiumHD"; default by the slide's id, folder or spot ids.
    image
        The image, where it lies elsewhere; "none" reads the tables alone.
    obs
        Table of further columns by spot id.
    pitch_um
        Centre-to-centre distance, where the technology's is wrong.
    scale
        Pixels of the image per pixel of the coord csv.
    check_frame
        Refuse spots that do not lie on the picture's tissue.

    Raises
    ------
    FormatError
        No such slide, several slides, truncated files.
    InputError
        Duplicate or missing ids, missing coordinates, counts that are none.
    ScaleError
        The pixel size cannot be fitted; image and spots are in different frames.
    """
    from ._build import Notes, Spots, assemble, check, join, join_side_table, used_files
    from ._images import open_image
    from ._scale import check_mpp
    from ._tables import check_ids, read_text_counts, var_table, xy_of_id

    facts = dict(facts or {})
    slide = _one(path, facts.get("slide"), image)
    facts |= {"slide": facts.get("slide") or slide.name, "platform": "stimage"}
    notes = Notes(slide.name)
    coord = _coordinates(slide.coord)
    counts = read_text_counts(slide.counts)
    check_ids(counts.ids, what="the counts", where=slide.counts)
    rows = join(coord.index, counts.ids, notes=notes, where=slide.coord)
    unknown = len(set(counts.ids) - set(coord.index))
    if unknown:
        notes(f"{unknown} rows of counts without coordinates left out")
    kept, rows = coord[rows >= 0], rows[rows >= 0]
    facts["tech"] = _technology(slide, list(coord.index), tech)
    kind, fit = _fit(coord, facts["tech"], scale=scale, pitch_um=pitch_um, forced=mpp is not None)
    mirrored = bool(fit.pop("mirrored", False))
    facts["mpp"] = check_mpp(mpp, fitted=fit.get("mpp"), where=slide.name) if mpp is not None else fit["mpp"]
    facts["mpp_from"] = "--mpp" if mpp is not None else "array pitch"
    xy_px = kept[["xaxis", "yaxis"]].to_numpy(dtype=float) * scale
    radius = _RADIUS_UM[kind] * (pitch_um or _PITCH_UM[kind]) / _PITCH_UM[kind]
    facts |= {"array": kind, "pitch_um": pitch_um or _PITCH_UM[kind], "spot_diameter_um": 2 * radius}
    _report(kept, facts, fit, radius, scale, notes)
    picture = open_image(slide.image) if slide.image else None
    if picture is not None and check_frame:
        cell = _cell_um2(kind, facts["pitch_um"])
        facts["frame"] = check(picture, xy_px, mpp=facts["mpp"], cell_um2=cell, notes=notes, mirrored=mirrored)
    var, renamed = var_table(counts)
    if renamed:
        notes(f"{renamed} duplicated gene names made unique")
    spots = Spots(list(kept.index), xy_px * facts["mpp"], radius, counts.X[rows], var)
    columns = kept.rename(columns={"xaxis": "pixel_x", "yaxis": "pixel_y", "r": "r_px"})
    places = [xy_of_id(s) for s in spots.ids] if facts["tech"] == "ST" else [None]
    if all(p is not None for p in places):
        columns[["array_col", "array_row"]] = np.array(places, dtype=float)
    if slide.annotation is not None:
        columns["annotation"] = _annotation(slide.annotation, spots.ids, notes)
    if obs is not None:
        columns = columns.join(join_side_table(Path(obs), spots.ids, notes=notes), rsuffix="_obs")
    spots.obs = columns
    if facts.get("tissue") is None and slide.meta is not None:
        facts |= _from_meta(slide.meta, slide.name)
    used = {"coord": slide.coord, "counts": slide.counts, "image": slide.image, "annotation": slide.annotation}
    facts["files"] = used_files(**used, obs=Path(obs) if obs else None)
    return assemble(facts=facts, notes=notes, picture=picture, spots=spots)


def _folder_and_name(path: Path) -> tuple[Path | None, str | None]:
    """Folder to look in and the slide's id, where the path names it."""
    if path.is_dir():
        return path, None
    if not path.parent.is_dir():
        return None, None
    if path.is_file():
        match = _TABLE.fullmatch(path.name)
        return path.parent, match[1] if match else path.name.removesuffix("_anno.csv").rsplit(".", 1)[0]
    return path.parent, path.name


def _homes(folder: Path) -> list[Path]:
    """Folders that may hold coord, gene_exp and image folders (or the files themselves)."""
    if folder.name in _FOLDERS:
        return [folder.parent]
    if folder.name == "annotation":
        folder = folder.parent
    inner = sorted(d for d in folder.iterdir() if d.is_dir() and (d / "coord").is_dir())
    return [folder, *inner]


def _coord_tables(folder: Path | None, name: str | None) -> dict[str, Path]:
    """Coord csv of each slide that also has a count csv."""
    from ._tables import first_line

    if folder is None:
        return {}
    found: dict[str, Path] = {}
    for home in _homes(folder):
        for place in (home / "coord", home):
            if not place.is_dir():
                continue
            names = [f"{name}_coord.csv", f"{name}_coord.csv.gz"] if name else None
            files = [place / n for n in names] if names else sorted(place.glob("*_coord.csv*"))
            for file in files:
                match = _TABLE.fullmatch(file.name)
                if match and file.is_file() and _sibling(file, match[1], "gene_exp", ("_count.csv", "_count.csv.gz")):
                    found[match[1]] = file
    if len(found) <= 3:
        found = {k: v for k, v in found.items() if {"yaxis", "xaxis"} <= set(first_line(v).replace('"', "").split(","))}
    return found


def _sibling(coord: Path, name: str, folder: str, endings: tuple[str, ...]) -> Path | None:
    home = coord.parent.parent / folder if coord.parent.name == "coord" else coord.parent
    return next((home / f"{name}{e}" for e in endings if (home / f"{name}{e}").is_file()), None)


def _one(path: Path, slide: str | None, image: str | Path | None) -> _Slide:
    from ._images import is_image, named_as_image

    folder, name = _folder_and_name(path)
    tables = _coord_tables(folder, name)
    if name is None and slide is not None and len(tables) != 1:
        tables = {k: v for k, v in tables.items() if k == slide}
        if not tables:
            raise MissingError(f"no slide {slide!r}", where=path, fix="give the id as it is in the file names")
    if not tables:
        raise FormatError(
            "no STimage-1K4M slide",
            where=path,
            fix="give SLIDE_coord.csv beside SLIDE_count.csv, or the data set's root",
        )
    if len(tables) > 1:
        raise FormatError(
            f"{len(tables)} slides ({', '.join(list(tables)[:3])}, ...)", where=path, fix="name one (--slide ID)"
        )
    [(name, coord)] = tables.items()
    counts = _sibling(coord, name, "gene_exp", ("_count.csv", "_count.csv.gz"))
    home = coord.parent.parent if coord.parent.name == "coord" else coord.parent
    pictures = home / "image" if coord.parent.name == "coord" else home
    options = sorted(pictures.glob(f"{_escaped(name)}.*")) if pictures.is_dir() else []
    found = next((p for p in options if is_image(p)), next((p for p in options if named_as_image(p)), None))
    if image is not None:
        found = None if str(image).lower() == "none" else Path(image)
    annotations = [root / f"{name}_anno.csv" for root in (home.parent / "annotation", home / "annotation", home)]
    metas = [root / "meta" / "meta_all_gene.csv" for root in (home.parent, home)]
    if counts is None:
        raise MissingError("no count csv", where=coord, fix=f"put {name}_count.csv beside it or into gene_exp")
    return _Slide(name, coord, counts, found, _first_file(annotations), _first_file(metas))


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _first_file(options: list[Path]) -> Path | None:
    return next((p for p in options if p.is_file()), None)


def _coordinates(path: Path) -> pd.DataFrame:
    """yaxis, xaxis, r by spot id."""
    from ._tables import check_coordinates, check_ids, read_table, require_columns

    table = read_table(path, index_col=0)
    table.index = table.index.map(str)
    require_columns(table, ["yaxis", "xaxis"], where=path)
    check_ids(list(table.index), what="the coordinates", where=path)
    check_coordinates(table, ["yaxis", "xaxis"], where=path)
    return table[[c for c in ("yaxis", "xaxis", "r") if c in table]].astype(float)


def _technology(slide: _Slide, ids: list[str], given: str | None) -> str:
    """ST, Visium or VisiumHD."""
    named = {t.lower(): t for t in TECHNOLOGIES}
    if given is not None:
        if given.lower() not in named:
            raise MissingError(f"no technology {given!r}", fix=f"one of: {', '.join(TECHNOLOGIES)}")
        return named[given.lower()]
    match = _TECH.search(slide.name)
    folder = slide.coord.parent.parent.name.lower() if slide.coord.parent.name == "coord" else ""
    by_folder = named.get(folder)
    if match or by_folder:
        return by_folder or named[match[1].lower()] if match else str(by_folder)
    tail = ids[0].removeprefix(slide.name).lstrip("_")
    for pattern, tech in ((r"s_\d+um_", "VisiumHD"), (r"[ACGT]{14,}(-\d+)?", "Visium"), (r"[\d.]+x[\d.]+", "ST")):
        if re.match(pattern, tail):
            return tech
    raise MissingError(
        "the technology cannot be told", where=slide.coord, fix=f"--option tech={'|'.join(TECHNOLOGIES)}"
    )


def _fit(
    coord: pd.DataFrame, tech: str, *, scale: float, pitch_um: float | None, forced: bool
) -> tuple[str, dict[str, Any]]:
    """Kind of array and the fit of the pixel size ({} where it fails but is not needed)."""
    from ._tables import xy_of_id

    xy = coord[["xaxis", "yaxis"]].to_numpy(dtype=float) * scale
    kind = tech
    try:
        if tech == "ST":
            places = [xy_of_id(s) for s in coord.index]
            at = np.array([p for p in places if p is not None], dtype=float).reshape(-1, 2)
            kind = (frames.st_array(at) if len(at) == len(coord) else None) or "1k"
            pitch = pitch_um or _PITCH_UM[kind]
            step = frames.ST_2K_STEP_UM if kind == "2k" else frames.ST_1K_STEP_UM
            if len(at) == len(coord):
                fit = frames.fit_design(at * step * (pitch / _PITCH_UM[kind]), xy, pitch_um=pitch)
                return kind, {**fit.told(), "mirrored": fit.mirrored}
        lattice = frames.fit_lattice(xy)
        angle = 60 if kind == "Visium" else 84 if kind == "2k" else 90
        if abs(lattice.angle_deg - angle) > 3:
            raise ScaleError(
                f"the spots lie on a lattice of {lattice.angle_deg:.0f} degrees where {tech} has {angle}",
                fix="pass the technology (--option tech=), or the pixel size (--mpp)",
            )
        mpp = float(np.sqrt(_cell_um2(kind, pitch_um or _PITCH_UM[kind]) / lattice.cell_px2))
        return kind, {"mpp": mpp, "rms_um": lattice.rms_px * mpp, "n": lattice.n, "angle": lattice.angle_deg}
    except ScaleError:
        if not forced:
            raise
        return kind, {}


def _cell_um2(kind: str, pitch_um: float) -> float:
    """Area of array per spot, um2."""
    step = {"1k": frames.ST_1K_STEP_UM, "2k": frames.ST_2K_STEP_UM, "Visium": frames.VISIUM_STEP_UM}.get(
        kind, (2.0, 2.0)
    )
    spots = 2 if kind in ("2k", "Visium") else 1  # every other place is occupied
    return step[0] * step[1] * spots * (pitch_um / _PITCH_UM[kind]) ** 2


def _report(
    coord: pd.DataFrame, facts: dict[str, Any], fit: dict[str, Any], radius: float, scale: float, notes: Notes
) -> None:
    if fit:
        facts["fit"] = fit
        notes(
            f"{facts['array']} array of {facts['pitch_um']:g} um pitch: {fit['mpp']:.4f} um/px, residual "
            f"{fit['rms_um']:.2f} um, {fit['n']} spots"
        )
    if "r" in coord and np.isfinite(coord["r"]).any():
        r_um = float(coord["r"].median() * scale * facts["mpp"])
        facts["r_um"] = r_um
        if abs(r_um / radius - 1) > 0.1:
            notes(f"r of the coord csv is {r_um:.1f} um where the array's spots have {radius:g} um: r is not used")


def _annotation(path: Path, ids: list[str], notes: Notes) -> Any:
    """Labels (column V2 or the only one) by spot, first of duplicated ids, dropped labels missing."""
    import pandas as pd

    from ._tables import read_table

    table = read_table(path, index_col=0, keep_default_na=False, dtype=str)
    columns = [c for c in table.columns if c == "V2"] or [c for c in table.columns if c != "sample_name"]
    if not columns:
        raise MissingError("no label column", where=path, fix="give a csv of spot id and V2")
    double = int(table.index.duplicated().sum())
    if double:
        notes(f"{double} repeated ids in {path.name}: the first of each is kept")
    labels = table.loc[~table.index.duplicated(), columns[0]].str.strip().reindex(ids)
    dropped = labels.isin([*DROPPED_LABELS, "NA", "NaN", "nan"])
    known = labels.notna() & ~dropped
    notes(f"{int(known.sum())} of {len(ids)} spots have a label, {int(dropped.sum())} undetermined or excluded")
    return pd.Categorical(labels.where(known, np.nan))


def read_meta(path: str | Path) -> pd.DataFrame:
    """The data set's table of slides (``meta_all_gene.csv``; an older version is separated by tabs).

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    pandas.DataFrame
        slide, species, tissue, pmid (text, comma-joined where there are several), title, abstract, keywords (missing
        is ""), involve_cancer (bool), tech ("ST", "Visium", "VisiumHD"), spot_num, gene_num.

    Raises
    ------
    FormatError, MissingError
        No table, or not this one.
    """
    from ._tables import check_ids, read_table, require_columns

    path = Path(path)
    table = read_table(path, dtype=str, keep_default_na=False)
    table.columns = [str(c).strip() for c in table.columns]
    require_columns(table, ["slide", "species", "tissue", "tech", "spot_num", "gene_num"], where=path)
    check_ids(list(table["slide"]), what="the slides", where=path)
    table = table.replace({"NA": "", "NaN": ""})
    for name in ("spot_num", "gene_num"):
        table[name] = table[name].astype(int)
    if "involve_cancer" in table:
        table["involve_cancer"] = table["involve_cancer"].str.strip().str.lower().isin(["true", "1", "yes"])
    named = {t.lower(): t for t in TECHNOLOGIES}
    table["tech"] = table["tech"].map(lambda t: named.get(t.replace(" ", "").lower(), t))
    return table


def _from_meta(path: Path, name: str) -> dict[str, Any]:
    table = read_meta(path).set_index("slide")
    if name not in table.index:
        return {}
    row = table.loc[name]
    return {k: row[k] for k in ("tissue", "species") if row[k]}
