"""Pixel2Gene's and iStar's working files: counts, places, H&E and pixel sizes under one path prefix.

``PREFcnts.tsv|parquet``, ``PREFlocs-raw.tsv|parquet``, ``PREFhe-raw.jpg|png|tif|tiff|btf|ome.tif``,
``PREFradius-raw.txt``, ``PREFpixel-size-raw.txt``; a testing folder holds the image and its pixel size alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from ..errors import FormatError, InputError, ScaleError

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from ._build import Notes

PRIORITY = 20

_IMAGES = ("jpg", "jpeg", "png", "tif", "tiff", "btf", "ome.tif", "ome.tiff")
_ON_GRID = 0.02
"""Largest distance of a place from a regular grid, in its pitch, for the places to count as bins of one."""


@dataclass(frozen=True)
class _Files:
    prefix: str
    image: Path
    pixel_size: Path
    radius: Path | None
    counts: Path | None
    places: Path | None


def sniff(path: Path) -> str | None:
    """What is recognised at `path`, or None.

    Parameters
    ----------
    path
        A folder, or a path prefix (``data/CRC-P2/CRC-P2-``).
    """
    found = _find(path)
    if found is None:
        return None
    return "Pixel2Gene folder" if found.counts is not None else "Pixel2Gene folder, H&E alone"


def read(
    path: Path,
    *,
    mpp: float | None = None,
    facts: dict[str, Any] | None = None,
    radius_unit: Literal["diameter_um", "radius_px"] = "diameter_um",
) -> SpatialData:
    """Read a Pixel2Gene folder.

    Places on a regular grid become the grid ``superpixels``; others (spots, cells) the circles ``spots``.

    Parameters
    ----------
    path
        A folder, or a path prefix.
    mpp
        Microns per pixel of ``he-raw``; default ``pixel-size-raw.txt``.
    facts
        slide, patient, tissue, platform where known.
    radius_unit
        What ``radius-raw.txt`` holds. Pixel2Gene's instructions say the diameter in microns; its scripts, and iStar,
        write the radius in pixels of ``he-raw`` (0 for Xenium). Which was taken is noted.

    Raises
    ------
    FormatError
        Truncated or damaged tables, a size that is no number.
    InputError
        Double or missing ids, counts that are none, places outside the image.
    ScaleError
        A pixel size that is not positive.
    """
    from spatialdata import SpatialData
    from spatialdata.transformations import Identity, Scale

    from ._build import NOTES, Notes, image_element, used_files
    from ._images import open_image
    from ._scale import check_mpp

    files = _find(path)
    if files is None:
        raise FormatError(
            "no Pixel2Gene folder", where=path, fix="give the folder or prefix of he-raw and pixel-size-raw"
        )
    facts = {**(facts or {}), "platform": "superpixel"}
    facts["slide"] = facts.get("slide") or files.prefix.rstrip("-_") or files.image.parent.name
    notes = Notes(facts["slide"])
    stated = _number(files.pixel_size)
    if not stated > 0:
        raise ScaleError(f"a pixel size of {stated:g}", where=files.pixel_size, fix="write microns per pixel there")
    pixel = check_mpp(mpp, fitted=stated, where=files.pixel_size) if mpp is not None else stated
    picture = open_image(files.image)
    facts |= {"mpp": pixel, "mpp_from": "--mpp" if mpp is not None else files.pixel_size.name}
    elements: dict[str, dict[str, Any]] = {"images": {}, "points": {}, "shapes": {}, "tables": {}}
    elements["images"][keys.HE] = image_element(picture, mpp=pixel)
    to = {keys.UM: Identity(), "global": Scale([1 / pixel, 1 / pixel], axes=("x", "y"))}
    if files.counts is not None and files.places is not None:
        _measured(files, pixel, picture.shape, radius_unit, to, elements, notes)
    facts["files"] = used_files(
        image=files.image, pixel_size=files.pixel_size, radius=files.radius, counts=files.counts, places=files.places
    )
    sdata = SpatialData(**elements)
    sdata.attrs[keys.STAMP] = facts | {NOTES: list(notes.lines)}
    return sdata


def _find(path: Path) -> _Files | None:
    """Files under a prefix; in a folder, the one prefix that has an image and its pixel size."""
    if path.is_dir():
        prefixes = sorted({p.name[: -len("pixel-size-raw.txt")] for p in path.glob("*pixel-size-raw.txt")})
        folder = path
    elif path.is_file():
        folder, prefixes = (
            path.parent,
            [path.name[: path.name.find(k)] for k in ("he-raw", "cnts", "locs-raw") if k in path.name],
        )
    else:
        folder, prefixes = path.parent, [path.name]
    found = []
    for prefix in prefixes:
        image = next((p for e in _IMAGES if (p := folder / f"{prefix}he-raw.{e}").is_file()), None)
        size = folder / f"{prefix}pixel-size-raw.txt"
        if image is not None and size.is_file():
            radius = folder / f"{prefix}radius-raw.txt"
            tables = [
                next((p for e in ("parquet", "tsv") if (p := folder / f"{prefix}{name}.{e}").is_file()), None)
                for name in ("cnts", "locs-raw")
            ]
            found.append(_Files(prefix, image, size, radius if radius.is_file() else None, *tables))
    return found[0] if len(found) == 1 else None


def _number(path: Path) -> float:
    try:
        return float(path.read_text().strip())
    except (ValueError, OSError) as e:
        raise FormatError(f"no number ({e})", where=path, fix="write one number there") from e


def _frame(path: Path) -> pd.DataFrame:
    """A table by its first column or index."""
    import pandas as pd
    from pyarrow import ArrowException

    from ._tables import check_ids, read_table

    if path.suffix == ".parquet":
        try:
            frame = pd.read_parquet(path)
        except (ArrowException, OSError, ValueError) as e:
            raise FormatError(f"the table cannot be read ({e})", where=path, fix="copy it again") from e
        if isinstance(frame.index, pd.RangeIndex) and not pd.api.types.is_numeric_dtype(frame.dtypes.iloc[0]):
            frame = frame.set_index(frame.columns[0])
    else:
        frame = read_table(path)
        frame = frame.set_index(frame.columns[0])
    frame.index = frame.index.astype(str)
    check_ids(list(frame.index), what=path.name, where=path)
    return frame


def _measured(
    files: _Files,
    pixel: float,
    shape: tuple[int, int],
    radius_unit: str,
    to: dict[str, Any],
    elements: dict[str, dict[str, Any]],
    notes: Notes,
) -> None:
    """Places and counts, joined by id."""
    from scipy import sparse

    from ._build import join
    from ._tables import check_coordinates, require_columns

    counts, places = (_frame(p) for p in (files.counts, files.places) if p is not None)
    require_columns(places, ["x", "y"], where=files.places)
    check_coordinates(places, ["x", "y"], where=files.places)
    rows = join(places.index, list(counts.index), notes=notes, where=files.counts, what="places")
    places, rows = places[rows >= 0], rows[rows >= 0]
    values = counts.to_numpy()[rows]
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.rint(values)).any():
        raise InputError(
            "counts that are negative, missing or no whole numbers", where=files.counts, fix="give raw counts"
        )
    xy = places[["x", "y"]].to_numpy(dtype=np.float64)
    inside = ((xy >= 0) & (xy < np.array(shape[::-1]))).all(axis=1).mean()
    if inside < 0.9:
        raise InputError(
            f"{inside:.0%} of the places lie in the image",
            where=files.places,
            fix="locs-raw must be in pixels of he-raw; check that both belong together",
        )
    X = sparse.csr_matrix(values.astype(np.int32))
    grid = _grid(xy)
    size = _size(files, pixel, radius_unit, notes)
    ids = [str(i) for i in places.index]
    if grid is not None:
        _as_grid(grid, ids, X, [str(c) for c in counts.columns], pixel, elements, notes)
    else:
        _as_circles(xy * pixel, size, ids, X, [str(c) for c in counts.columns], to, elements, notes)


def _size(files: _Files, pixel: float, unit: str, notes: Notes) -> float | None:
    """Diameter in um, or None where the file says 0 or is not there."""
    if files.radius is None:
        return None
    value = _number(files.radius)
    if not value > 0:
        return None
    size = value if unit == "diameter_um" else 2 * value * pixel
    words = "the diameter in um" if unit == "diameter_um" else "the radius in px"
    notes(f"{files.radius.name} = {value:g} was taken for {words}: {size:.4g} um across (--option radius_unit=...)")
    return size


def _grid(xy: np.ndarray) -> tuple[float, np.ndarray, np.ndarray] | None:
    """(pitch, first corner, [n, 2] column and row) of places on a square grid, else None."""
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
    return pitch, first - pitch / 2, at.astype(np.int64)


def _as_grid(
    grid: tuple[float, np.ndarray, np.ndarray],
    ids: list[str],
    X: Any,
    genes: list[str],
    pixel: float,
    elements: dict[str, dict[str, Any]],
    notes: Notes,
) -> None:
    from ..regions.grid import as_element

    pitch, corner, at = grid
    transform = np.array([[pitch * pixel, 0, corner[0] * pixel], [0, pitch * pixel, corner[1] * pixel], [0, 0, 1.0]])
    shape = (int(at[:, 1].max()) + 1, int(at[:, 0].max()) + 1)
    notes(f"a grid of {shape[0]} x {shape[1]} superpixels, {pitch:.3f} px = {pitch * pixel:.3f} um apart")
    elements["points"][keys.SUPERPIXELS] = as_element(at[:, 1], at[:, 0], ids, shape=shape, transform=transform)
    centres = (corner + (at + 0.5) * pitch) * pixel
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
