"""10x Visium: output of Space Ranger 1 to 3 and of CytAssist runs, complete or in parts.

https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/spatial-outputs
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import frames
from ..errors import FormatError, InputError, MissingError, ScaleError

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from ._build import Notes
    from ._picture import Picture

PRIORITY = 30

SPOT_UM = 55.0
PITCH_UM = 100.0

DIAMETER_UM = (50.0, 75.0)
"""What ``spot_diameter_fullres`` may come to in um: Space Ranger writes 65 in old runs, 70 in new ones, never 55."""

COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]

_POSITIONS = (
    "tissue_positions.parquet",
    "tissue_positions.csv",
    "tissue_positions_list.csv",
    "tissue_positions_list.txt",
)
_SCALES = ("scalefactors_json.json", "scalefactors.json")
_IMAGES = {
    "hires": (r"tissue_hires_image\.\w+", "tissue_hires_scalef"),
    "lowres": (r"tissue_lowres_image\.\w+", "tissue_lowres_scalef"),
    "aligned_fiducials": (r"aligned_fiducials\.\w+", "tissue_hires_scalef"),
    "detected_tissue": (r"detected_tissue_image\.\w+", "tissue_hires_scalef"),
}

_SCALE_NAMES = ("tissue_hires_scalef", "tissue_lowres_scalef")


@dataclass
class _Slide:
    """Files of one slide."""

    name: str
    positions: Path | None = None
    scales: Path | None = None
    h5: dict[str, Path] = field(default_factory=dict)
    mtx: dict[str, tuple[Path, str]] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Positions and counts are there."""
        return self.positions is not None and bool(self.h5 or self.mtx)


def sniff(path: Path) -> str | None:
    """What is recognised at `path`, or None.

    Parameters
    ----------
    path
        An ``outs`` folder, the folder above it, a matrix file in it, or a path prefix (``GSM123_S1``).
    """
    slide = _find(path)
    if slide is None or not slide.complete or slide.positions is None or _is_hd(slide):
        return None
    version = "1" if slide.positions.name.split(".")[0].endswith("_list") else "2 or later"
    return f"Visium (Space Ranger {version})"


def read(
    path: Path,
    *,
    mpp: float | None = None,
    facts: dict[str, Any] | None = None,
    image: str | Path | None = None,
    image_scale: float | None = None,
    matrix: str = "filtered",
    obs: str | Path | None = None,
    off_tissue: bool = False,
    check_frame: bool = True,
) -> SpatialData:
    """Read a Visium slide.

    The pixel size is fitted from the lattice (columns 50 um, rows 87 um apart, as in every Space Ranger output looked
    at) and checked against ``spot_diameter_fullres``. The picture is the best that is there: hires before lowres;
    those with drawn-on fiducials or tissue only when asked for. Spots have the physical diameter of 55 um.
    Coordinate systems: "global" (pixels of the picture), "um", "fullres" (pixels of the picture given to Space Ranger).

    Parameters
    ----------
    path
        An ``outs`` folder, the folder above it, a matrix file in it, or a path prefix.
    mpp
        Microns per full-resolution pixel; default from the lattice.
    facts
        slide, patient, tissue, platform where known.
    image
        "hires", "lowres", "aligned_fiducials", "detected_tissue", "none", or a file: the full-resolution picture unless
        it is one of those.
    image_scale
        Pixels of `image` per full-resolution pixel; default by the scale factors, 1 for another file.
    matrix
        "filtered" or "raw"; the other is taken where only that is there.
    obs
        Table of further columns by barcode (layers, published clusterings).
    off_tissue
        Keep spots that are not under tissue too (``obs["in_tissue"]``).
    check_frame
        Refuse spots that do not lie on the picture's tissue.

    Raises
    ------
    FormatError
        No such slide, truncated files.
    InputError
        Duplicate or missing barcodes, missing coordinates, counts that are none, no spots.
    ScaleError
        The pixel size cannot be fitted or contradicts the scale factors; image and spots are in different frames.
    """
    from ._build import Notes, Spots, assemble, join, join_side_table, used_files
    from ._tables import check_ids, genes_only, var_table

    slide = _complete(path)
    facts = {**(facts or {}), "platform": "visium"}
    facts["slide"] = facts.get("slide") or slide.name
    notes = Notes(str(facts["slide"]))
    positions = read_positions(slide.positions)
    scales = _scale_factors(slide.scales)
    counts, counts_path = _counts(slide, matrix, notes)
    counts, left = genes_only(counts)
    if left:
        notes(left)
    check_ids(counts.ids, what="the counts", where=counts_path)
    wanted = positions if off_tissue else positions[positions["in_tissue"] == 1]
    rows = join(
        wanted.index, counts.ids, notes=notes, where=counts_path, what="spots" if off_tissue else "spots on tissue"
    )
    unknown = len(set(counts.ids) - set(positions.index))
    if unknown:
        notes(f"{unknown} barcodes of the counts without a position left out")
    kept, rows = wanted[rows >= 0], rows[rows >= 0]
    facts |= _software(counts_path, scales)
    full_mpp, mirrored = _pixel_size(positions, scales, mpp, facts, notes)
    picture, k, file = _picture(slide, image, image_scale, scales, facts, notes)
    facts["mpp"] = full_mpp / k
    if picture is not None and check_frame:
        facts["frame"] = _checked(picture, kept, k, scales, mpp=facts["mpp"], notes=notes, mirrored=mirrored)
    var, renamed = var_table(counts)
    if renamed:
        notes(f"{renamed} duplicated gene names made unique")
    xy = kept[COLUMNS[:3:-1]].to_numpy(dtype=float)
    spots = Spots(list(kept.index), xy * full_mpp, SPOT_UM / 2, counts.X[rows], var)
    spots.obs = kept.drop(columns=[c for c in kept if c not in COLUMNS])
    if obs is not None:
        spots.obs = spots.obs.join(join_side_table(Path(obs), spots.ids, notes=notes), rsuffix="_obs")
    used = {"positions": slide.positions, "scalefactors": slide.scales, "counts": counts_path, "image": file}
    facts["files"] = used_files(**used, obs=Path(obs) if obs else None) | _matrix_parts(counts_path)
    others = {"fullres": 1 / full_mpp} if k != 1 else None
    return assemble(facts=facts, notes=notes, picture=picture, spots=spots, others=others)


def _find(path: Path) -> _Slide | None:
    """Files of the slide at a folder, prefix or matrix file."""
    prefix = ""
    if path.is_file():
        match = re.fullmatch(r"(.*?)_?(filtered|raw)_feature_bc_matrix\.h5", path.name)
        if not match:
            return None
        folder, prefix = path.parent, match[1]
    elif path.is_dir():
        folder = path / "outs" if (path / "outs").is_dir() else path
        if folder.name in ("spatial", "filtered_feature_bc_matrix", "raw_feature_bc_matrix"):
            folder = folder.parent
    elif path.parent.is_dir():
        folder, prefix = path.parent, path.name
    else:
        return None
    name = prefix or (folder.parent.name if folder.name == "outs" else folder.name)
    slide = _Slide(name)
    if not prefix:
        prefixes = {
            p.name[: -len("filtered_feature_bc_matrix.h5")] for p in folder.glob("*filtered_feature_bc_matrix.h5")
        }
        prefix = next(iter(prefixes)).rstrip("_") if len(prefixes) == 1 else ""
    _fill(slide, folder, prefix)
    return slide


def _fill(slide: _Slide, folder: Path, prefix: str) -> None:
    heads = [f"{prefix}_", prefix, ""] if prefix else [""]
    homes = [folder / f"{head}spatial" for head in heads] + [folder]
    tries = [(home, head) for home in homes if home.is_dir() for head in heads]
    for home, head in tries:
        for role, names in (("positions", _POSITIONS), ("scales", _SCALES)):
            if getattr(slide, role) is None:
                options = [home / f"{head}{n}{gz}" for n in names for gz in ("", ".gz")]
                setattr(slide, role, next((p for p in options if p.is_file()), None))
        for key, (pattern, _) in _IMAGES.items():
            if key not in slide.images:
                found = [p for p in home.iterdir() if re.fullmatch(re.escape(head) + pattern, p.name) and p.is_file()]
                slide.images |= {key: found[0]} if found else {}
    for kind in ("filtered", "raw"):
        for head in heads:
            h5, mtx = folder / f"{head}{kind}_feature_bc_matrix.h5", folder / f"{head}{kind}_feature_bc_matrix"
            if h5.is_file():
                slide.h5.setdefault(kind, h5)
            if any((mtx / f"matrix.mtx{gz}").is_file() for gz in ("", ".gz")):
                slide.mtx.setdefault(kind, (mtx, ""))
    for head in heads:  # GEO lays the three files flat
        if not slide.mtx and any((folder / f"{head}matrix.mtx{gz}").is_file() for gz in ("", ".gz")):
            slide.mtx["filtered"] = (folder, head)


def _is_hd(slide: _Slide) -> bool:
    try:
        if "bin_size_um" in _scale_factors(slide.scales):
            return True
    except FormatError:
        return False  # reading says what is wrong with it
    return slide.positions is not None and slide.positions.parent.parent.name.startswith("square_")


def _complete(path: Path) -> Any:
    slide = _find(path)
    if slide is None or not slide.complete:
        missing = [] if slide is None else ["positions"] * (slide.positions is None)
        missing += ["a matrix"] * (slide is not None and not (slide.h5 or slide.mtx))
        raise FormatError(
            f"no Visium slide{': no ' + ' and no '.join(missing) if missing else ''}",
            where=path,
            fix="give a folder with spatial/tissue_positions* and filtered_feature_bc_matrix(.h5)",
        )
    if _is_hd(slide):
        raise FormatError("a Visium HD bin folder", where=path, fix="use --platform visium-hd")
    return slide


def read_positions(path: Path) -> pd.DataFrame:
    """Spot positions of any Space Ranger: csv with or without header, or parquet, by barcode.

    Parameters
    ----------
    path
        tissue_positions_list.csv (1.x), tissue_positions.csv (2 and later) or tissue_positions.parquet.

    Returns
    -------
    pandas.DataFrame
        in_tissue, array_row, array_col, pxl_row_in_fullres, pxl_col_in_fullres by barcode.

    Raises
    ------
    FormatError, InputError
        No such table; duplicate or missing barcodes; missing coordinates of spots under tissue.
    """
    import pandas as pd

    from ._tables import check_coordinates, check_ids, first_line, read_table, require_columns

    if path.suffix == ".parquet":
        from pyarrow import ArrowException

        try:
            table = pd.read_parquet(path)
        except (ArrowException, OSError, ValueError) as e:
            raise FormatError(f"the table cannot be read ({e})", where=path, fix="download it again") from e
    else:
        header = 0 if first_line(path).lower().lstrip('"').startswith("barcode") else None
        table = read_table(path, header=header)
        if header is None:
            if table.shape[1] != len(COLUMNS):
                raise FormatError(f"{table.shape[1]} columns where positions have 6", where=path, fix="give positions")
            table.columns = COLUMNS
    require_columns(table, COLUMNS, where=path)
    barcodes = ["" if pd.isna(b) else b.decode() if isinstance(b, bytes) else str(b) for b in table["barcode"]]
    check_ids(barcodes, what="the positions", where=path)
    table = table[COLUMNS[1:]].set_axis(pd.Index(barcodes), axis=0)
    for name in table:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    check_coordinates(table[table["in_tissue"] == 1], COLUMNS[2:], where=path)
    table["in_tissue"] = table["in_tissue"].fillna(0).astype(np.int8)
    return table


def _scale_factors(path: Path | None) -> dict[str, float]:
    from ._tables import open_text

    if path is None:
        return {}
    try:
        with open_text(path) as f:
            return dict(json.load(f))
    except (ValueError, OSError, EOFError) as e:
        raise FormatError(f"the scale factors cannot be read ({e})", where=path, fix="download it again") from e


def _counts(slide: _Slide, matrix: str, notes: Notes) -> tuple[Any, Path]:
    from ._tables import read_10x_h5, read_10x_mtx

    if matrix not in ("filtered", "raw"):
        raise InputError(f"matrix={matrix!r}", fix="filtered or raw")
    have = set(slide.h5) | set(slide.mtx)
    kind = matrix if matrix in have else next(iter(have))
    if kind != matrix:
        notes(f"no {matrix} matrix here: the {kind} one is read")
    if kind in slide.h5:
        return read_10x_h5(slide.h5[kind]), slide.h5[kind]
    folder, head = slide.mtx[kind]
    return read_10x_mtx(folder, prefix=head), folder


def _software(path: Path, scales: dict[str, float]) -> dict[str, Any]:
    """What the matrix file says of its making."""
    import h5py

    said: dict[str, Any] = {"cytassist": True} if "regist_target_img_scalef" in scales else {}
    if path.is_file():
        with h5py.File(path, "r") as h5:
            for name, key in (("software", "software_version"), ("chemistry", "chemistry_description")):
                if key in h5.attrs:
                    value = h5.attrs[key]
                    said[name] = value.decode() if isinstance(value, bytes) else str(value)
    return said


def _matrix_parts(path: Path) -> dict[str, str]:
    """Files of a matrix folder, which stand for the folder among the files used."""
    if not path.is_dir():
        return {}
    parts = [
        p
        for p in sorted(path.iterdir())
        if re.search(r"(matrix\.mtx|barcodes\.tsv|(features|genes)\.tsv)(\.gz)?$", p.name)
    ]
    return {
        "counts": str(parts[0].absolute()),
        **{f"counts_{i}": str(p.absolute()) for i, p in enumerate(parts[1:], 1)},
    }


def _pixel_size(
    positions: pd.DataFrame, scales: dict[str, float], mpp: float | None, facts: dict[str, Any], notes: Notes
) -> tuple[float, bool]:
    """Microns per full-resolution pixel, and whether the array lies mirrored."""
    from ._scale import check_mpp

    design = positions[["array_col", "array_row"]].to_numpy(dtype=float) * frames.VISIUM_STEP_UM
    xy = positions[COLUMNS[:3:-1]].to_numpy(dtype=float)
    try:
        fit = frames.fit_design(design, xy, pitch_um=PITCH_UM)
    except ScaleError:
        if mpp is None:
            raise
        fit = None
    fitted = fit.mpp if fit else None
    full = check_mpp(mpp, fitted=fitted, where=facts["slide"]) if mpp is not None else fitted or np.nan
    facts |= {
        "mpp_from": "--mpp" if mpp is not None else "array pitch",
        "pitch_um": PITCH_UM,
        "spot_diameter_um": SPOT_UM,
    }
    facts["mpp_fullres"] = full
    if fit is not None:
        facts["fit"] = fit.told()
        notes(
            f"lattice of 50 x 87 um: {fit.mpp:.4f} um per full-resolution pixel, stretch {fit.stretch:.5f}, residual "
            f"{fit.rms_um:.2f} um, {fit.n} spots"
        )
    if "spot_diameter_fullres" in scales:
        diameter = float(scales["spot_diameter_fullres"]) * full
        facts["spot_diameter_fullres_um"] = diameter
        if mpp is None and not DIAMETER_UM[0] <= diameter <= DIAMETER_UM[1]:
            raise ScaleError(
                f"positions and scale factors contradict each other: spot_diameter_fullres is {diameter:.1f} um by the "
                f"lattice, it should be about 65",
                where=facts["slide"],
                fix="give the files of one run, or the pixel size (--mpp)",
            )
    return float(full), fit is not None and fit.mirrored


def _picture(
    slide: _Slide,
    image: str | Path | None,
    image_scale: float | None,
    scales: dict[str, float],
    facts: dict[str, Any],
    notes: Notes,
) -> tuple[Picture | None, float, Path | None]:
    """The picture, its pixels per full-resolution pixel, and its file."""
    from ._images import open_image

    if image is not None and str(image).lower() == "none":
        return None, 1.0, None
    key = str(image) if image is not None else next((k for k in ("hires", "lowres") if k in slide.images), None)
    if key is None:
        notes("no picture here: spots and counts only (--option image=FILE gives one)")
        return None, 1.0, None
    if key in _IMAGES:
        if key not in slide.images:
            raise MissingError(f"no {key} picture", where=slide.name, fix=f"here: {', '.join(slide.images) or 'none'}")
        file: Path = slide.images[key]
        scale = _named_scale(key, image_scale, scales, slide)
    else:
        file = Path(key)
        like = next((k for k, (pattern, _) in _IMAGES.items() if re.search(pattern + "$", file.name)), None)
        scale = _named_scale(like, image_scale, scales, slide) if like else (image_scale or 1.0)
        key = like or "fullres"
    picture = open_image(file)
    facts["image"] = key
    notes(f"picture: {file.name}, {picture.shape[1]} x {picture.shape[0]} px, {scale:.6g} of full resolution")
    return picture, scale, file


def _named_scale(key: str, given: float | None, scales: dict[str, float], slide: _Slide) -> float:
    name = _IMAGES[key][1]
    if given is not None:
        return float(given)
    if not float(scales.get(name, 0)) > 0:
        raise ScaleError(
            f"no {name} for the {key} picture",
            where=slide.scales or slide.name,
            fix="give its pixels per full-resolution pixel (--option image_scale=)",
        )
    return float(scales[name])


def _checked(
    picture: Picture,
    kept: pd.DataFrame,
    k: float,
    scales: dict[str, float],
    *,
    mpp: float,
    notes: Notes,
    mirrored: bool,
) -> dict[str, float]:
    """Frame check of the spots under tissue; the scale factors are what is tried first."""
    from ._build import check

    xy = kept.loc[kept["in_tissue"] == 1, COLUMNS[:3:-1]].to_numpy(dtype=float) * k
    named: dict[str, float] = {n: float(scales[n]) / k for n in _SCALE_NAMES if n in scales}
    cell = 2 * frames.VISIUM_STEP_UM[0] * frames.VISIUM_STEP_UM[1]
    return check(picture, xy, mpp=mpp, cell_um2=cell, named=named, notes=notes, mirrored=mirrored)
