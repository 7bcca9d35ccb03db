"""Pixel2Gene's and iStar's working files: counts, places, H&E and pixel sizes under one path prefix.

``PREFcnts.tsv|parquet``, ``PREFlocs-raw.tsv|parquet``, ``PREFhe-raw.jpg|png|tif|tiff|btf|ome.tif``,
``PREFradius-raw.txt``, ``PREFpixel-size-raw.txt``, ``PREFpixel-size.txt``; a testing folder holds the image and its
pixel size alone. What their scripts leave on the way is read, too: ``transcript_cnts<size>[_inimage].parquet``,
``transcript_he_pixel.parquet``, ``PREFmask-small-*.png`` and, on request, maps of predictions (``cnts-super``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from ..core import superpixels as original
from ..errors import FormatError, InputError, MissingError, ScaleError

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ._build import Notes

PRIORITY = 20

_IMAGES = ("jpg", "jpeg", "png", "tif", "tiff", "btf", "ome.tif", "ome.tiff")
_SIZES = (("pixel_size", "pixel-size-raw"), ("target_size", "pixel-size"), ("radius", "radius-raw"))
_ON_GRID = 0.02
"""Largest distance of a place from a regular grid, in its pitch, for the places to count as bins of one."""
_EXACT_PX = 1e-6
"""Places that are off whole superpixels of the picture by no more than this lie on them; rounding alone."""


@dataclass(frozen=True)
class _Files:
    prefix: str
    image: Path
    pixel_size: Path | None
    target_size: Path | None
    radius: Path | None
    counts: Path | None
    places: Path | None
    binned: Path | None = None
    transcripts: Path | None = None

    @property
    def folder(self) -> Path:
        return self.places.parent if self.places is not None else self.image.parent


@dataclass(frozen=True)
class _Frame:
    """The picture that everything is placed in."""

    pixel: float
    size: float
    shape: tuple[int, int]
    to: dict[str, Any]

    @property
    def whole(self) -> float:
        """Side of a superpixel in pixels of the picture."""
        return original.SIDE_PX * self.size / self.pixel


@dataclass(frozen=True)
class _Laid:
    """Places on a square grid."""

    pitch: float
    corner: np.ndarray
    at: np.ndarray  # int64 [n, 2] column and row
    shape: tuple[int, int]
    whole: bool  # counted from the corner of the picture


def sniff(path: Path) -> str | None:
    """What is recognised at `path`, or None.

    Parameters
    ----------
    path
        A folder, or a path prefix (``data/CRC-P2/CRC-P2-``).
    """
    found = _find(path)
    if len(found) != 1:
        return None
    if found[0].counts is not None:
        return "Pixel2Gene folder"
    if found[0].binned is not None or found[0].transcripts is not None:
        # A Xenium run that they have worked in is read better as what it is.
        own = (found[0].binned or found[0].transcripts or found[0].image).parent
        return None if (own / "experiment.xenium").exists() else "Pixel2Gene folder, intermediate files"
    return None if found[0].pixel_size is None else "Pixel2Gene folder, H&E alone"


def read(
    path: Path,
    *,
    mpp: float | None = None,
    facts: dict[str, Any] | None = None,
    radius_unit: Literal["diameter_um", "radius_px"] = "diameter_um",
    predictions: str | Path | None = None,
) -> SpatialData:
    """Read a Pixel2Gene folder.

    Places on a regular grid become the grid ``superpixels``, counted from the corner of the picture where they are its
    own superpixels; others (spots, cells) the circles ``spots``. Without ``cnts``, binned transcripts are taken;
    transcripts in H&E pixels become points. ``mask-small-hs.png`` becomes ``tissue``, other masks columns of obs.

    Parameters
    ----------
    path
        A folder, or a path prefix.
    mpp
        Microns per pixel of ``he-raw``; default ``pixel-size-raw.txt``, or what the name of binned transcripts tells.
    facts
        slide, patient, tissue, platform where known.
    radius_unit
        What ``radius-raw.txt`` holds. Pixel2Gene's instructions say the diameter in microns; its scripts, and iStar,
        write the radius in pixels of ``he-raw`` (0 for Xenium). Which was taken is noted.
    predictions
        Folder with ``cnts-super/GENE.pickle`` (or ``.npy``, ``.tsv``, ``.tiff``), read as the table
        ``pred_pixel2gene_superpixels``. Of pickles, only arrays are read, and nothing in them is run.

    Raises
    ------
    FormatError
        Truncated or damaged tables, pictures or masks, a size that is no number, a pickle that holds more than arrays.
    InputError
        Double or missing ids, counts that are none, places outside the image; the well's origin was added.
    MissingError
        A part of the folder is not there.
    ScaleError
        No pixel size, or one that no picture of superpixels has.
    """
    from spatialdata import SpatialData
    from spatialdata.transformations import Identity, Scale

    from ._build import NOTES, Notes, image_element, used_files
    from ._images import open_image

    if radius_unit not in ("diameter_um", "radius_px"):
        raise InputError(f"radius_unit={radius_unit!r}", fix="diameter_um or radius_px")
    files = _one(path)
    facts = {**(facts or {}), "platform": "superpixel"}
    facts["slide"] = facts.get("slide") or files.prefix.rstrip("-_") or files.image.parent.name
    notes = Notes(facts["slide"])
    pixel, mpp_from = _pixel(files, mpp)
    picture = open_image(files.image)
    facts |= {"mpp": pixel, "mpp_from": mpp_from}
    to = {keys.UM: Identity(), "global": Scale([1 / pixel, 1 / pixel], axes=("x", "y"))}
    frame = _Frame(pixel, _target(files, pixel), picture.shape, to)
    elements: dict[str, dict[str, Any]] = {"images": {}, "points": {}, "shapes": {}, "tables": {}}
    elements["images"][keys.HE] = image_element(picture, mpp=pixel)
    laid = _measured(files, frame, radius_unit, elements, notes)
    _extras(files, frame, laid, elements, notes)
    if predictions is not None:
        _predicted(Path(predictions), frame, laid, elements, notes)
    roles = ("image", "pixel_size", "target_size", "radius", "counts", "places", "binned", "transcripts")
    facts["files"] = used_files(**{role: getattr(files, role) for role in roles})
    sdata = SpatialData(**elements)
    sdata.attrs[keys.STAMP] = facts | {NOTES: list(notes.lines)}
    return sdata


def _find(path: Path) -> list[_Files]:
    """What lies under a prefix; in a folder, under every prefix that has an image."""
    from ._pixel2gene import BINNED, TRANSCRIPTS

    if path.is_dir():
        folder = path
        prefixes = sorted({p.name[: p.name.find("he-raw.")] for p in path.glob("*he-raw.*")} or {""})
    elif path.is_file():
        marks = ("he-raw", "cnts", "locs-raw")
        folder = path.parent
        prefixes = [next((path.name[: path.name.find(k)] for k in marks if k in path.name), "\0")]
    else:
        folder, prefixes = path.parent, [path.name]
    if not folder.is_dir() or "\0" in prefixes:
        return []
    between = sorted(p for p in folder.glob("*transcript_cnts*.parquet") if BINNED.search(p.name))
    found = []
    for prefix in prefixes:
        places = [folder / f"{prefix}he-raw.{e}" for e in _IMAGES] + [folder / f"extras/he-raw.{e}" for e in _IMAGES]
        image = next((p for p in places if p.is_file()), None)
        if image is None:
            continue
        rest = {role: p if (p := folder / f"{prefix}{name}.txt").is_file() else None for role, name in _SIZES}
        counts, at = (
            next((p for e in ("parquet", "tsv") if (p := folder / f"{prefix}{name}.{e}").is_file()), None)
            for name in ("cnts", "locs-raw")
        )
        mine = [p for p in between if p.name.startswith(prefix)]
        inside = [p for p in mine if "_inimage" in p.name] or mine
        moved = next((p for p in (folder / f"{prefix}{TRANSCRIPTS}", folder / TRANSCRIPTS) if p.is_file()), None)
        whole = _Files(prefix, image, **rest, counts=counts, places=at, transcripts=moved)
        if counts is None and inside:
            whole = _Files(prefix, image, **rest, counts=None, places=None, transcripts=moved, binned=inside[0])
        if any((rest["pixel_size"], counts, inside, moved)):
            found.append(whole)
    return found


def _one(path: Path) -> _Files:
    found = _find(path)
    if len(found) > 1:
        raise FormatError(
            f"{len(found)} prefixes in one folder",
            where=path,
            fix=f"name one: {', '.join(str(path / f.prefix) for f in found[:4])}",
        )
    if not found:
        raise FormatError(
            "no Pixel2Gene folder", where=path, fix="give the folder or prefix of he-raw and pixel-size-raw"
        )
    files = found[0]
    for one, other, name in ((files.counts, files.places, "locs-raw"), (files.places, files.counts, "cnts")):
        if one is not None and other is None and files.binned is None:
            raise MissingError(
                f"{one.name} without {name}",
                where=one.parent,
                fix=f"put {files.prefix}{name}.tsv beside it",
            )
    return files


def _pixel(files: _Files, mpp: float | None) -> tuple[float, str]:
    """Microns per pixel of the picture, and who says so."""
    from ._pixel2gene import BINNED
    from ._scale import check_mpp

    stated = None if files.pixel_size is None else _number(files.pixel_size)
    named = None
    if files.binned is not None and (match := BINNED.search(files.binned.name)) is not None:
        named = original.SIDE_PX * original.TARGET_MPP / float(match[1])
    if stated is None and named is None and mpp is None:
        raise ScaleError(
            "no pixel size of the H&E",
            where=files.folder,
            fix=f"write its microns per pixel into {files.prefix}pixel-size-raw.txt, or pass --mpp",
        )
    for value, where in ((stated, files.pixel_size), (named, files.binned), (mpp, "--mpp")):
        if value is not None and not 0 < value <= _coarsest(files):
            raise ScaleError(
                f"a pixel size of {value:g} um",
                where=where,
                fix="give microns per pixel of the H&E; a superpixel of 8 um has 16 x 16 px at 0.5",
            )
    told = stated if stated is not None else named
    if mpp is not None:
        return check_mpp(mpp, fitted=told, where=files.pixel_size or files.binned), "--mpp"
    source = files.pixel_size if stated is not None else files.binned
    return check_mpp(float(told or 0), where=source), source.name if source is not None else ""


def _coarsest(files: _Files) -> float:
    """Pixels that are larger than a superpixel cannot tell superpixels apart."""
    size = original.TARGET_MPP if files.target_size is None else _number(files.target_size)
    return original.SIDE_PX * max(size, original.TARGET_MPP)


def _target(files: _Files, pixel: float) -> float:
    """Microns per pixel after rescaling."""
    if files.target_size is None:
        return original.TARGET_MPP
    size = _number(files.target_size)
    if not 0.05 <= size <= 100:
        raise ScaleError(
            f"a pixel size of {size:g} um",
            where=files.target_size,
            fix="um per pixel after rescaling; 0.5 is theirs",
        )
    return size


def _number(path: Path) -> float:
    try:
        value = float(path.read_text(encoding="utf-8-sig").strip())
    except (ValueError, OSError) as e:
        raise FormatError(f"no number ({e})", where=path, fix="write one number there") from e
    if not np.isfinite(value):
        raise FormatError(f"no number ({value})", where=path, fix="write one number there")
    return value


def _measured(
    files: _Files, frame: _Frame, radius_unit: str, elements: dict[str, dict[str, Any]], notes: Notes
) -> _Laid | None:
    """Places and counts, joined by id; the grid where they are one."""
    from ._build import join
    from ._pixel2gene import binned, read_counts, read_places

    if files.counts is not None and files.places is not None:
        counts, places = read_counts(files.counts), read_places(files.places)
        rows = join(places.index, counts.ids, notes=notes, where=files.counts, what="places")
        ids = [str(i) for i in places.index[rows >= 0]]
        xy = places[["x", "y"]].to_numpy(dtype=np.float64)[rows >= 0]
        X, where = counts.X[rows[rows >= 0]], files.places
        grid = _grid(xy, frame)
    elif files.binned is not None:
        counts, xy, size = binned(files.binned)
        ids, X, where = counts.ids, counts.X, files.binned
        at = np.floor(xy / size).astype(np.int64)
        grid = _Laid(size, np.zeros(2), at, _extent(frame.shape, size, at), True)
        notes(f"{files.binned.name}: bins of {size:g} px = {size * frame.pixel:.4g} um")
    else:
        return None
    inside = ((xy >= 0) & (xy < np.array(frame.shape[::-1]))).all(axis=1).mean()
    if inside < 0.9:
        raise InputError(
            f"{inside:.0%} of the places lie in the image",
            where=where,
            fix="locs-raw must be in pixels of he-raw; check that both belong together, and pixel-size-raw.txt",
        )
    size_um = _size(files, frame.pixel, radius_unit, notes)
    if grid is not None:
        _as_grid(grid, ids, X, counts.symbols, frame, elements, notes)
    else:
        _as_circles(xy * frame.pixel, size_um, ids, X, counts.symbols, frame.to, elements, notes)
    return grid


def _extras(
    files: _Files, frame: _Frame, laid: _Laid | None, elements: dict[str, dict[str, Any]], notes: Notes
) -> None:
    """Transcripts in H&E pixels, and masks."""
    from ._pixel2gene import mask_shapes, masks, read_mask, tissue_element, transcripts

    if files.transcripts is not None and files.counts is None:
        elements["points"][keys.TRANSCRIPTS] = transcripts(
            files.transcripts, frame.pixel, frame.shape, frame.to, notes=notes
        )
    shapes = mask_shapes(frame.shape, pixel=frame.pixel, size=frame.size)
    for name, path in masks(files.folder, files.prefix).items():
        mask = read_mask(path, shapes=shapes)
        side = frame.whole * frame.pixel
        if name == "hs":
            elements["shapes"][keys.TISSUE] = tissue_element(path, mask, side, frame.to, notes)
        elif laid is not None and laid.whole:
            col, row = laid.at.T
            known = (row < mask.shape[0]) & (col < mask.shape[1])
            column = np.zeros(len(row), dtype=bool)
            column[known] = mask[row[known], col[known]]
            elements["tables"][keys.counts(keys.SUPERPIXELS)].obs[name] = column
            notes(f"obs[{name!r}] from {path.name}: {int(column.sum())} of {len(column)} superpixels")


def _predicted(
    folder: Path, frame: _Frame, laid: _Laid | None, elements: dict[str, dict[str, Any]], notes: Notes
) -> None:
    """Maps of genes as a table of the superpixels."""
    from ._pixel2gene import read_maps

    if laid is None or not laid.whole:
        raise InputError(
            "maps of predictions need superpixels of the picture",
            where=folder,
            fix="give a folder whose locs-raw are its superpixels, uncropped",
        )
    values, genes = read_maps(folder, laid.at[:, 1], laid.at[:, 0])
    counts = elements["tables"][keys.counts(keys.SUPERPIXELS)]
    ids = list(counts.obs_names)
    name = keys.prediction("pixel2gene", keys.SUPERPIXELS)
    elements["tables"][name] = _table(keys.SUPERPIXELS, counts.obsm[keys.SPATIAL], ids, values, genes, notes)
    notes(f"{name}: maps of {len(genes)} genes from {folder}")


def _size(files: _Files, pixel: float, unit: str, notes: Notes) -> float | None:
    """Diameter in um, or None where the file says 0 or is not there."""
    if files.radius is None:
        return None
    value = _number(files.radius)
    if not value > 0:
        return None
    size = value if unit == "diameter_um" else 2 * value * pixel
    words = "the diameter in um" if unit == "diameter_um" else "the radius in px"
    notes(f"{files.radius.name} = {value:g} was taken for {words}: {size:.4g} um across (--radius-unit)")
    return size


def _grid(xy: np.ndarray, frame: _Frame) -> _Laid | None:
    """Places on a square grid, else None; superpixels of the picture itself are found to the last bit."""
    whole = frame.whole
    at = np.rint(xy / whole - 0.5)
    if np.abs(xy - (at + 0.5) * whole).max() <= _EXACT_PX and at.min() >= 0 and len(np.unique(at, axis=0)) == len(at):
        at = at.astype(np.int64)
        return _Laid(whole, np.zeros(2), at, _extent(frame.shape, whole, at), True)
    pitches = []
    for axis in (0, 1):
        steps = np.diff(np.unique(xy[:, axis].round(3)))
        steps = steps[steps > 1e-2]
        if not len(steps):
            return None
        pitches.append(float(np.median(steps[steps <= 1.5 * steps.min()])))
    if abs(pitches[0] / pitches[1] - 1) > 1e-3:
        return None
    pitch = float(np.mean(pitches))
    first = xy.min(axis=0)
    at = np.rint((xy - first) / pitch)
    for _ in range(2):  # the pitch by regression over the whole width, which rounded places blur
        design = np.column_stack([at.ravel(), np.tile(np.eye(2), (len(at), 1))])
        solved = np.linalg.lstsq(design, xy.ravel(), rcond=None)[0]
        pitch, first = float(solved[0]), solved[1:]
        at = np.rint((xy - first) / pitch)
    off = np.abs(xy - first - at * pitch).max()
    if off > max(_ON_GRID * pitch, 0.51) or len(np.unique(at, axis=0)) < len(at):
        return None
    at = at.astype(np.int64)
    return _Laid(pitch, first - pitch / 2, at, (int(at[:, 1].max()) + 1, int(at[:, 0].max()) + 1), False)


def _extent(shape: tuple[int, int], pitch: float, at: np.ndarray) -> tuple[int, int]:
    """Rows and columns of superpixels of the whole picture."""
    rows, cols = (int(np.ceil(side / pitch)) for side in shape)
    return max(rows, int(at[:, 1].max()) + 1), max(cols, int(at[:, 0].max()) + 1)


def _as_grid(
    grid: _Laid,
    ids: list[str],
    X: Any,
    genes: list[str],
    frame: _Frame,
    elements: dict[str, dict[str, Any]],
    notes: Notes,
) -> None:
    from ..regions.grid import as_element

    pixel, pitch, at = frame.pixel, grid.pitch, grid.at
    x0, y0 = grid.corner * pixel
    transform = np.array([[pitch * pixel, 0, x0], [0, pitch * pixel, y0], [0, 0, 1.0]])
    told = "of the picture itself" if grid.whole else "in a phase of its own"
    notes(
        f"a grid of {grid.shape[0]} x {grid.shape[1]} superpixels {told}, {pitch:.3f} px = {pitch * pixel:.3f} um apart"
    )
    element = as_element(at[:, 1], at[:, 0], ids, shape=grid.shape, transform=transform)
    elements["points"][keys.SUPERPIXELS] = element
    centres = (at + 0.5) * (pitch * pixel) + (x0, y0)
    elements["tables"][keys.counts(keys.SUPERPIXELS)] = _table(keys.SUPERPIXELS, centres, ids, X, genes, notes)


def _as_circles(
    xy_um: np.ndarray,
    size: float | None,
    ids: list[str],
    X: Any,
    genes: list[str],
    to: dict[str, Any],
    elements: dict[str, dict[str, Any]],
    notes: Notes,
) -> None:
    import geopandas as gpd
    import pandas as pd
    import shapely
    from scipy.spatial import cKDTree
    from spatialdata.models import ShapesModel

    if size is None:
        size = float(np.median(cKDTree(xy_um).query(xy_um, k=2)[0][:, 1])) if len(xy_um) > 1 else 8.0
        notes(f"no radius: circles of {size:.3g} um, the distance of neighbours")
    frame = gpd.GeoDataFrame(
        {"radius": np.full(len(ids), size / 2)}, geometry=shapely.points(xy_um), index=pd.Index(ids, dtype=object)
    )
    elements["shapes"][keys.SPOTS] = ShapesModel.parse(frame, transformations=to)
    elements["tables"][keys.counts(keys.SPOTS)] = _table(keys.SPOTS, xy_um, ids, X, genes, notes)


def _table(region: str, xy_um: np.ndarray, ids: list[str], X: Any, genes: list[str], notes: Notes) -> Any:
    import pandas as pd
    from anndata import AnnData
    from spatialdata.models import TableModel

    from ._build import READ
    from ._tables import unique

    names, changed = unique(genes)
    if changed:
        notes(f"{changed} duplicated gene names made unique")
    obs = pd.DataFrame(index=pd.Index(ids, dtype=object))
    obs[keys.REGION_KEY] = pd.Categorical([region] * len(ids))
    obs[keys.INSTANCE_KEY] = list(ids)
    table = AnnData(X, obs=obs, var=pd.DataFrame({"symbol": genes}, index=names))
    table.obsm[keys.SPATIAL] = xy_um
    table.uns[READ] = {"notes": list(notes.lines)}
    return TableModel.parse(table, region=region, region_key=keys.REGION_KEY, instance_key=keys.INSTANCE_KEY)
