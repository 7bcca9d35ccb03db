"""The parts of a Visium HD output: what is there, bins and the grid on which they lie.

https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/output-overview
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..core import registration
from ..errors import FormatError, InputError, MissingError, ScaleError

if TYPE_CHECKING:
    from ._hd_matrix import Matrix
    from ._hd_slices import Slices

_SQUARE = re.compile(r"square_(\d{3})um$")
_FIT_ROWS = 200_000
_IMAGES = ("microscope_image/*", "*tissue_image.*", "extras/he-raw.*", "he-raw.*")
_IMAGE_ENDINGS = (".btf", ".tif", ".tiff", ".jpg", ".jpeg", ".png")
_SPACING = 0.02
"""Share by which scale factors and the spacing of bins may differ: arrays are stretched by less when they are laid."""


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
        """Scale factors; none where positions are missing, too.

        Raises
        ------
        FormatError
            Missing or no JSON.
        """
        if not (self.folder / "spatial").is_dir():
            return {}
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
    slices: Path | None = None
    mappings: Path | None = None


def find(path: Path) -> Output | None:
    """The output at a folder (``outs``, the one above, ``binned_outputs``, one ``square_XXXum``) or a file in it."""
    folder = path.parent if path.is_file() else path
    for here in (folder, folder / "outs", *list(folder.parents)[:3]):
        if _SQUARE.search(here.name):
            continue
        squares = [*(here / "binned_outputs").glob("square_*um"), *here.glob("square_*um")]
        bins = {int(m[1]): Bins(int(m[1]), s) for s in sorted(squares) if (m := _SQUARE.search(s.name))}
        slices = next((p for p in sorted(here.glob("*feature_slice.h5")) if p.is_file()), None)
        bins = {k: b for k, b in bins.items() if b.positions.is_file() or (slices and b.matrix("filtered"))}
        if _SQUARE.search(folder.name) and int(folder.name[7:10]) in bins:
            bins = {int(folder.name[7:10]): bins[int(folder.name[7:10])]}
        if bins or slices:
            segmented = here / "segmented_outputs"
            mappings = [p for p in (here, segmented) if (p / "barcode_mappings.parquet").is_file()]
            return Output(
                here,
                bins,
                _image_in(here),
                segmented if segmented.is_dir() else None,
                slices,
                mappings[0] / "barcode_mappings.parquet" if mappings else None,
            )
    return None


def _image_in(folder: Path) -> Path | None:
    """The full-resolution picture that lies with an output."""
    found = (p for q in _IMAGES for p in sorted(folder.glob(q)))
    return next((p for p in found if p.is_file() and p.name.lower().endswith(_IMAGE_ENDINGS)), None)


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


def read_grid(bins: Bins) -> Grid:
    """Bins and the projective grid that they lie on.

    Raises
    ------
    FormatError
        Damaged, or no such table.
    InputError
        Double bins, or positions that lie on no grid.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ._hd_matrix import twice

    path = bins.positions
    columns = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise FormatError(f"the positions cannot be read ({e})", where=path, fix="download it again") from e
    absent = [c for c in columns if c not in table.column_names]
    if absent:
        raise FormatError(f"no column {', '.join(absent)}", where=path, fix=f"columns: {', '.join(table.column_names)}")
    try:
        rows, cols = (table.column(c).cast(pa.int32()).fill_null(-1).to_numpy() for c in columns[2:4])
        xy = np.column_stack([table.column(c).cast(pa.float64()).to_numpy() for c in columns[:3:-1]])
    except pa.ArrowException as e:
        raise FormatError(f"positions that are no numbers ({e})", where=path, fix="download it again") from e
    if not np.isfinite(xy).all():
        raise InputError(f"{int((~np.isfinite(xy)).any(axis=1).sum())} bins without a place", where=path)
    if not len(rows) or min(rows.min(), cols.min()) < 0:
        raise FormatError("no bins, or rows below 0", where=path, fix="download it again")
    shape = (int(rows.max()) + 1, int(cols.max()) + 1)
    double = twice(rows, cols)
    if double is not None:
        raise InputError(
            "bins that occur twice (row {}, column {})".format(*double),
            where=path,
            fix="give the positions of one slide",
        )
    step = max(1, len(rows) // _FIT_ROWS)
    centres = np.column_stack([cols, rows]).astype(np.float64) + 0.5
    transform = registration.fit(centres[::step], xy[::step], kind="projective" if len(rows) >= 8 else "affine")
    off = np.linalg.norm(registration.apply(transform, centres) - xy, axis=1)
    pitch = pitch_px(transform, shape)
    if off.max() > pitch:
        raise InputError(
            f"positions up to {off.max() / pitch:.1f} bins off a regular grid", where=path, fix="download it again"
        )
    barcodes = table.column("barcode").cast(pa.string())
    return Grid(rows, cols, barcodes, table.column("in_tissue").to_numpy() == 1, shape, transform, float(off.max()))


def check_spacing(grid: Grid, size_um: int, mpp: float, *, given: bool, where: Path) -> None:
    """Bins are as far apart as their size and the size of a pixel say.

    Raises
    ------
    ScaleError
        They are not.
    """
    pitch, stated = pitch_px(grid.transform, grid.shape), size_um / mpp
    if abs(pitch / stated - 1) > _SPACING:
        wrong = f"a pixel size of {mpp:g} um" if given else "scale factors"
        raise ScaleError(
            f"positions and {wrong} contradict each other: bins are {pitch:.3f} px apart, not {stated:.3f}",
            where=where,
            fix=f"leave --mpp out, or give {size_um / pitch:.5g}" if given else "give the files of one run",
        )


def pitch_px(transform: np.ndarray, shape: tuple[int, int]) -> float:
    """Side of a bin at the middle of the grid, px."""
    at = registration.apply(transform, np.array([shape[1], shape[0]]) / 2 + [[0, 0], [1, 0], [0, 1]])
    a, b = at[1] - at[0], at[2] - at[0]
    return float(np.sqrt(abs(a[0] * b[1] - a[1] * b[0])))


def order_of(grid: Grid, barcodes: Any, *, where: object) -> np.ndarray:
    """Row of the grid for each barcode of a matrix, int64 [n].

    Parameters
    ----------
    grid
        Bins with positions.
    barcodes
        Arrow strings [n], none of them double.
    where
        What a message names.

    Raises
    ------
    InputError
        A barcode without a position.
    """
    import pyarrow.compute as pc

    from ._hd_matrix import places

    told, wanted = places(grid.barcodes), places(barcodes)
    if told is not None and wanted is not None and told[0] == wanted[0]:
        (_, rows, cols), (_, row, column) = told, wanted
        wide = int(max(cols.max(), column.max())) + 1
        lookup = np.full((int(max(rows.max(), row.max())) + 1) * wide, -1, dtype=np.int64)
        lookup[rows.astype(np.int64) * wide + cols] = np.arange(len(rows))
        found = lookup[row.astype(np.int64) * wide + column]
    else:
        at = pc.index_in(barcodes, value_set=grid.barcodes.combine_chunks())
        found = at.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    lost = int((found < 0).sum())
    if lost:
        raise InputError(
            f"{lost} of {len(found)} barcodes of the matrix have no position ({barcodes[int((found < 0).argmax())]})",
            where=where,
            fix="give matrix and positions of one run",
        )
    return found


@dataclass(frozen=True)
class Loaded:
    """Bins of one size with their counts.

    Parameters
    ----------
    grid
        All bins that are known.
    matrix
        Counts.
    at
        Row of the grid for each row of the matrix, int64 [n].
    files
        What was used, by role.
    sliced
        What came from the feature slices: "counts", "places".
    """

    grid: Grid
    matrix: Matrix
    at: np.ndarray
    files: dict[str, Path]
    sliced: tuple[str, ...]


def load(found: Output, size: int, kind: str, *, slices: Slices | None, version: int | None) -> Loaded:
    """Bins of a size, from the files of their own or from the feature slices where one is missing.

    Parameters
    ----------
    found
        The output.
    size
        Side of a bin, um.
    kind
        "filtered" or "raw".
    slices
        Feature slices, where there are any.
    version
        Of Space Ranger, to be taken for the files' own.

    Raises
    ------
    MissingError
        Neither there nor in feature slices.
    """
    from ._hd_matrix import open_matrix

    bins = found.bins.get(size)
    path = bins.matrix(kind) if bins is not None else None
    placed = bins if bins is not None and bins.positions.is_file() else None
    if slices is None and (path is None or placed is None):
        what = f"{kind}_feature_bc_matrix.h5" if placed else "spatial/tissue_positions.parquet"
        raise MissingError(
            f"no {'matrix of counts' if placed else 'positions'} of the bins of {size} um",
            where=found.folder,
            fix=f"copy {what} or feature_slice.h5, too",
        )
    files = {"counts": path} if path is not None and path.is_file() else {}
    files |= {"positions": placed.positions} if placed is not None else {}
    matrix = open_matrix(path, version=version) if path is not None else None
    if slices is None or (placed is not None and matrix is not None):
        grid, counts = read_grid(cast("Bins", placed)), cast("Matrix", matrix)
        return Loaded(grid, counts, order_of(grid, counts.ids, where=path), files, ())
    files["slices"] = slices.path
    grid = read_grid(placed) if placed is not None else _sliced_grid(slices, size, kind, matrix, path)
    if matrix is not None:
        return Loaded(grid, matrix, order_of(grid, matrix.ids, where=path), files, ("places",))
    at = np.flatnonzero(grid.in_tissue) if kind == "filtered" else np.arange(len(grid.rows))
    counts = slices.counts(size, grid.rows[at], grid.cols[at])
    return Loaded(grid, counts, at, files, ("counts",) if placed is not None else ("counts", "places"))


def _sliced_grid(slices: Slices, size: int, kind: str, matrix: Matrix | None, path: Path | None) -> Grid:
    """The grid as the feature slices tell it, of the bins of a matrix or of those under tissue."""
    from ._hd_matrix import names, places

    shape, tissue = slices.shape_of(size), slices.mask(size)
    if matrix is None:
        rows, cols = (v.astype(np.int32) for v in np.nonzero(tissue if kind == "filtered" else slices.measured(size)))
        barcodes: Any = names(size, rows, cols)
    else:
        told = places(matrix.ids)
        if told is None or told[0] != size or told[1].max() >= shape[0] or told[2].max() >= shape[1]:
            raise InputError(
                "barcodes that are no bins of these feature slices",
                where=path,
                fix="give matrix and feature_slice.h5 of one run",
            )
        (_, rows, cols), barcodes = told, matrix.ids
    import pyarrow as pa

    return Grid(rows, cols, pa.chunked_array([barcodes]), tissue[rows, cols], shape, slices.transform_of(size), 0.0)
