"""The parts of a Visium HD output: what is there, bins, their grid, segmented cells.

https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/output-overview
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import registration
from ..errors import FormatError, InputError, ScaleError

if TYPE_CHECKING:
    from ._tables import Counts

_SQUARE = re.compile(r"square_(\d{3})um$")
_BARCODE = re.compile(r"s_(\d{3})um_(\d{5})_(\d{5})-1$")
_FIT_ROWS = 200_000
_IMAGES = ("microscope_image/*", "*_tissue_image.*", "*tissue_image.btf", "extras/he-raw.*", "he-raw.*")


@dataclass
class Bins:
    """Files of one bin size.

    Parameters
    ----------
    size_um
        Side of a bin.
    folder
        square_XXXum.
    """

    size_um: int
    folder: Path

    @property
    def positions(self) -> Path:
        """Of the bins."""
        return self.folder / "spatial" / "tissue_positions.parquet"

    def matrix(self, kind: str) -> Path | None:
        """HDF5 before the folder of text files; the other kind where only that is there."""
        for k in (kind, "raw" if kind == "filtered" else "filtered"):
            for name in (f"{k}_feature_bc_matrix.h5", f"{k}_feature_bc_matrix"):
                if (self.folder / name).exists():
                    return self.folder / name
        return None

    def scales(self) -> dict[str, float]:
        """Scale factors.

        Raises
        ------
        FormatError
            Missing or no JSON.
        """
        path = self.folder / "spatial" / "scalefactors_json.json"
        try:
            found = dict(json.loads(path.read_text()))
        except (ValueError, OSError) as e:
            raise FormatError(f"the scale factors cannot be read ({e})", where=path, fix="download it again") from e
        return found


@dataclass
class Output:
    """Files of one slide."""

    folder: Path
    bins: dict[int, Bins] = field(default_factory=dict)
    image: Path | None = None
    segmented: Path | None = None


def find(path: Path) -> Output | None:
    """The output at a folder (``outs``, the one above, ``binned_outputs``, one ``square_XXXum``) or a file in it."""
    folder = path.parent if path.is_file() else path
    for here in (folder, folder / "outs", *list(folder.parents)[:3]):
        if _SQUARE.search(here.name):
            continue
        squares = [*(here / "binned_outputs").glob("square_*um"), *here.glob("square_*um")]
        bins = {int(m[1]): Bins(int(m[1]), s) for s in sorted(squares) if (m := _SQUARE.search(s.name))}
        bins = {k: b for k, b in bins.items() if b.positions.is_file()}
        if _SQUARE.search(folder.name) and int(folder.name[7:10]) in bins:
            bins = {int(folder.name[7:10]): bins[int(folder.name[7:10])]}
        if bins:
            images = [p for q in _IMAGES for p in sorted(here.glob(q)) if p.is_file()]
            segmented = here / "segmented_outputs"
            return Output(here, bins, images[0] if images else None, segmented if segmented.is_dir() else None)
    return None


@dataclass(frozen=True)
class Grid:
    """Bins of one size and where they lie.

    Parameters
    ----------
    rows, cols
        int32 [n].
    barcodes
        Arrow strings [n].
    in_tissue
        bool [n].
    shape
        Rows and columns of the whole grid.
    transform
        float64 [3, 3], (column, row) to full-resolution pixels; a bin covers [c, c + 1] x [r, r + 1].
    residual_px
        Largest distance of a position from the fit.
    """

    rows: np.ndarray
    cols: np.ndarray
    barcodes: Any
    in_tissue: np.ndarray
    shape: tuple[int, int]
    transform: np.ndarray
    residual_px: float


def read_grid(bins: Bins, scales: dict[str, float]) -> Grid:
    """Bins and the projective grid that they lie on.

    Raises
    ------
    FormatError
        Damaged, or no such table.
    InputError
        Double bins, or positions that lie on no grid.
    ScaleError
        Positions and scale factors contradict each other.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = bins.positions
    columns = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise FormatError(f"the positions cannot be read ({e})", where=path, fix="download it again") from e
    absent = [c for c in columns if c not in table.column_names]
    if absent:
        raise FormatError(f"no column {', '.join(absent)}", where=path, fix=f"columns: {', '.join(table.column_names)}")
    rows, cols = (table.column(c).to_numpy().astype(np.int32) for c in columns[2:4])
    xy = np.column_stack([table.column(c).to_numpy() for c in columns[:3:-1]])
    if not np.isfinite(xy).all():
        raise InputError(f"{int((~np.isfinite(xy)).any(axis=1).sum())} bins without a place", where=path)
    shape = (int(rows.max()) + 1, int(cols.max()) + 1)
    key = rows.astype(np.int64) * shape[1] + cols
    if len(np.unique(key)) < len(key):
        raise InputError("bins that occur twice", where=path, fix="give the positions of one slide")
    step = max(1, len(rows) // _FIT_ROWS)
    centres = np.column_stack([cols, rows]).astype(np.float64) + 0.5
    transform = registration.fit(centres[::step], xy[::step], kind="projective" if len(rows) >= 8 else "affine")
    off = np.linalg.norm(registration.apply(transform, centres) - xy, axis=1)
    pitch = _pitch(transform, shape)
    if off.max() > pitch:
        raise InputError(
            f"positions up to {off.max() / pitch:.1f} bins off a regular grid", where=path, fix="download it again"
        )
    stated = float(scales.get("bin_size_um", bins.size_um)) / float(scales.get("microns_per_pixel", np.nan))
    if abs(pitch / stated - 1) > 0.02:
        raise ScaleError(
            f"positions and scale factors contradict each other: bins are {pitch:.3f} px apart, not {stated:.3f}",
            where=path,
            fix="give the files of one run",
        )
    barcodes = table.column("barcode").cast(pa.string())
    return Grid(rows, cols, barcodes, table.column("in_tissue").to_numpy() == 1, shape, transform, float(off.max()))


def _pitch(transform: np.ndarray, shape: tuple[int, int]) -> float:
    """Side of a bin at the middle of the grid, px."""
    at = registration.apply(transform, np.array([shape[1], shape[0]]) / 2 + [[0, 0], [1, 0], [0, 1]])
    a, b = at[1] - at[0], at[2] - at[0]
    return float(np.sqrt(abs(a[0] * b[1] - a[1] * b[0])))


def order_of(grid: Grid, barcodes: Any, *, where: object) -> np.ndarray:
    """Row of the grid for each barcode of a matrix, int64 [n].

    Raises
    ------
    InputError
        A barcode without a position, or double ones.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(pa.array(barcodes, type=pa.string()), value_set=grid.barcodes.combine_chunks())
    if found.null_count:
        missing = found.is_null().to_numpy(zero_copy_only=False).argmax()
        raise InputError(
            f"{found.null_count} of {len(barcodes)} barcodes of the matrix have no position ({barcodes[missing]})",
            where=where,
            fix="give matrix and positions of one run",
        )
    at = found.to_numpy(zero_copy_only=False).astype(np.int64)
    if len(np.unique(at)) < len(at):
        raise InputError("barcodes that occur twice in the matrix", where=where, fix="download it again")
    return at


def read_matrix(path: Path) -> Counts:
    """A matrix of bins, in the memory of its non-zeros: [bins, features] CSR int32."""
    from ._tables import read_10x_h5, read_10x_mtx

    return read_10x_h5(path) if path.is_file() else read_10x_mtx(path)


def outlines(path: Path) -> tuple[list[str], np.ndarray]:
    """Cell ids and polygons (full-resolution pixels) of a GeoJSON of segmented cells or nuclei.

    Raises
    ------
    FormatError
        No GeoJSON, or features that are no polygons.
    """
    import shapely

    try:
        features = json.loads(path.read_text())["features"]
        ids = [str(f["properties"]["cell_id"]) for f in features]
        shapes = shapely.from_geojson([json.dumps(f["geometry"]) for f in features])
    except (ValueError, KeyError, TypeError, OSError, shapely.GEOSException) as e:
        raise FormatError(f"no GeoJSON of cells ({e})", where=path, fix="download it again") from e
    return ids, shapes
