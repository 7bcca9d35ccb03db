"""What Pixel2Gene's scripts leave on the way: tables in pieces, masks, transcripts in H&E pixels, maps of genes."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .. import keys
from ..core import delimited, pickles
from ..core import superpixels as original
from ..errors import FormatError, InputError, MissingError
from ._tables import Counts, check_ids, read_text_counts
from ._xenium import UNASSIGNED

if TYPE_CHECKING:
    import pandas as pd

    from ._build import Notes

BINNED = re.compile(r"transcript_cnts(\d+(?:\.\d+)?)(_inimage)?\.parquet$")
TRANSCRIPTS = "transcript_he_pixel.parquet"
STAGE = "stage_to_morph.txt"
"""Files of the way from transcripts to counts."""

_BLOCK_BYTES = 64 << 20
_PLACES = (("he_x", "he_y"), ("x_he", "y_he"), ("x_pixel", "y_pixel"), ("x_px", "y_px"), ("x", "y"))
"""Columns that may hold H&E pixels, ours first; vendors' ``x_location`` are microns and are never taken for them."""

_MAPS = (".npy", ".tsv", ".tiff", ".pickle")
_ONE_PIXEL = 1.0


def read_counts(path: Path) -> Counts:
    """``cnts`` as sparse counts, some rows in memory at a time.

    Parameters
    ----------
    path
        ``.parquet`` or ``.tsv``; ids are the index or the first column.

    Raises
    ------
    FormatError
        Truncated or damaged; columns that are no numbers.
    InputError
        Missing or double ids; counts that are negative, missing or fractional.
    """
    counts = _parquet_counts(path) if path.suffix == ".parquet" else read_text_counts(path)
    check_ids(counts.ids, what=path.name, where=path)
    return counts


def _parquet_counts(path: Path) -> Counts:
    import pyarrow.parquet as pq

    with as_format_errors(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        at = _id_column(schema)
        columns = [i for i in range(len(schema)) if i != at]
        genes = [schema.names[i] for i in columns]
        if not genes:
            raise FormatError("a table without genes", where=path, fix="genes are columns, places are rows")
        ids: list[str] = []
        parts = []
        for batch in file.iter_batches(batch_size=max(64, _BLOCK_BYTES // (8 * len(genes)))):
            mine = (
                [str(v) for v in batch.column(at).to_pylist()]
                if at is not None
                else [str(k) for k in range(len(ids), len(ids) + batch.num_rows)]
            )
            parts.append(_block(batch, columns, genes, mine, path))
            ids += mine
    if not parts:
        raise FormatError("a table without rows", where=path, fix="copy it again")
    return Counts(sparse.csr_matrix(sparse.vstack(parts, format="csr"), dtype=np.int32), ids, genes)


def _id_column(schema: Any) -> int | None:
    """The index as pandas wrote it, else a first column of text; None where rows have numbers alone."""
    import pyarrow as pa

    told = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    if told and isinstance(told[0], str) and told[0] in schema.names:
        return int(schema.names.index(told[0]))
    kind = schema.types[0] if len(schema) else None
    text = kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
    return 0 if text else None


def _block(batch: Any, columns: list[int], genes: list[str], ids: list[str], path: Path) -> Any:
    """One piece of a dense table as sparse int32."""
    try:
        values = np.column_stack(
            [np.asarray(batch.column(i).to_numpy(zero_copy_only=False), dtype=np.float64) for i in columns]
        )
    except (TypeError, ValueError) as e:
        raise FormatError(f"a column of counts that are no numbers ({e})", where=path, fix="genes are columns") from e
    with np.errstate(invalid="ignore"):
        bad = ~((values >= 0) & (values <= delimited.MAX_COUNT) & (values == np.rint(values)))
    if bad.any():
        i, j = (int(k[0]) for k in np.nonzero(bad))
        raise InputError(
            f"counts that are negative, missing or no whole numbers ({values[i, j]:g} of {genes[j]} in {ids[i]})",
            where=path,
            fix="give raw counts",
        )
    return sparse.csr_matrix(values.astype(np.int32))


@contextmanager
def as_format_errors(path: Path) -> Iterator[None]:
    """What Arrow says of a damaged file, as one clear error."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        text = " ".join(str(e).split())[:200]
        raise FormatError(
            f"the table cannot be read ({text}): truncated or damaged", where=path, fix="copy it again"
        ) from e


def read_places(path: Path) -> pd.DataFrame:
    """``locs`` by id: x, y in pixels.

    Raises
    ------
    FormatError, InputError, MissingError
        Damaged; missing or double ids, places that are no numbers; no columns x and y.
    """
    import pandas as pd

    from ._tables import check_coordinates, read_table, require_columns

    if path.suffix == ".parquet":
        with as_format_errors(path):
            frame = pd.read_parquet(path)
        if isinstance(frame.index, pd.RangeIndex) and not pd.api.types.is_numeric_dtype(frame.dtypes.iloc[0]):
            frame = frame.set_index(frame.columns[0])
    else:
        frame = read_table(path)
        frame = frame.set_index(frame.columns[0])
    frame.index = frame.index.astype(str)
    check_ids(list(frame.index), what=path.name, where=path)
    require_columns(frame, ["x", "y"], where=path)
    check_coordinates(frame, ["x", "y"], where=path)
    return frame


def binned(path: Path) -> tuple[Counts, np.ndarray, float]:
    """Binned transcripts: counts, float64 [n, 2] centres in H&E pixels, side of a bin in pixels.

    Parameters
    ----------
    path
        ``transcript_cnts<size>[_inimage].parquet``; ids are ``<column>_<row>`` of bins from the picture's corner.

    Raises
    ------
    FormatError
        Another name, ids that are no bins.
    """
    match = BINNED.search(path.name)
    if match is None:
        raise FormatError("the name does not tell the side of a bin", where=path, fix="transcript_cnts29.22.parquet")
    size = float(match[1])
    counts = read_counts(path)
    try:
        at = np.array([(int(col), int(row)) for col, row in (i.split("_") for i in counts.ids)], dtype=np.int64)
    except ValueError as e:
        raise FormatError(
            f"ids that are no bins ({counts.ids[0]}, ...)", where=path, fix="ids are <column>_<row>, such as 12_30"
        ) from e
    if (at < 0).any():
        raise InputError(f"bins left of or above the picture ({counts.ids[int(at.min(1).argmin())]})", where=path)
    return counts, (at + 0.5) * size, size


def transcripts(path: Path, pixel: float, shape: tuple[int, int], to: dict[str, Any], *, notes: Notes) -> Any:
    """Transcripts that their scripts have put into H&E pixels, as lazy points in um.

    Parameters
    ----------
    path
        ``transcript_he_pixel.parquet``.
    pixel
        Microns per pixel of the H&E.
    shape
        Its height and width.
    to
        Coordinate systems of the points.
    notes
        Told what was taken.

    Raises
    ------
    FormatError
        Damaged, or without columns that hold names and pixels.
    InputError
        Most of them lie outside of the picture, or the well's origin was added on the way.
    """
    import dask.dataframe as dd
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from spatialdata.models import PointsModel

    _check_stage(path)
    with as_format_errors(path), pq.ParquetFile(path) as file:
        there = file.schema_arrow.names
        x, y = next(((a, b) for a, b in _PLACES if a in there and b in there), (None, None))
        if x is None or y is None or "feature_name" not in there:
            known = ", ".join("/".join(p) for p in _PLACES)
            raise FormatError(
                "no columns of names and H&E pixels", where=path, fix=f"feature_name and one of {known}; there: {there}"
            )
        groups = list(range(file.metadata.num_row_groups))
        names: set[str] = set()
        total = inside = 0
        for batch in file.iter_batches(columns=[x, y, "feature_name"]):
            names |= {_text(v) for v in pc.unique(batch.column(2)).to_pylist() if v is not None}
            at = [np.asarray(batch.column(i), dtype=np.float64) for i in (0, 1)]
            inside += int(((at[0] >= 0) & (at[1] >= 0) & (at[0] < shape[1]) & (at[1] < shape[0])).sum())
            total += batch.num_rows
    if total and inside < 0.5 * total:
        raise InputError(
            f"{inside / total:.0%} of the transcripts lie in the picture",
            where=path,
            fix=f"{x}, {y} must be pixels of this H&E",
        )
    notes(f"{total} transcripts in pixels of the H&E ({x}, {y}), {inside} of them in the picture; no quality filter")
    extra = [c for c in ("qv", "cell_id", "overlaps_nucleus") if c in there]
    options: dict[str, Any] = {"path": path, "at": (x, y), "extra": extra, "pixel": pixel, "names": sorted(names)}
    frame = dd.from_map(_transcript_part, groups, meta=_transcript_part(None, **options), **options)
    with warnings.catch_warnings():
        # Parts have indices of their own; the store puts points in an order of its own anyway.
        warnings.filterwarnings("ignore", message="The index of the dataframe is not monotonic")
        instance = {"instance_key": "cell_id"} if "cell_id" in extra else {}
        return PointsModel.parse(
            frame,
            coordinates={"x": "x", "y": "y"},
            feature_key="feature_name",
            transformations=to,
            sort=False,
            **instance,
        )


def _transcript_part(
    group: int | None, path: Path, at: tuple[str, str], extra: list[str], pixel: float, names: list[str]
) -> Any:
    import pandas as pd
    import pyarrow.parquet as pq

    wanted = [*at, "feature_name", *extra]
    with as_format_errors(path), pq.ParquetFile(path) as file:
        read = file.schema_arrow.empty_table() if group is None else file.read_row_group(group, columns=wanted)
        table = read.select(wanted).to_pandas()
    out = pd.DataFrame({a: table[c].astype(np.float64) * pixel for a, c in zip("xy", at, strict=True)})
    out["feature_name"] = pd.Categorical([_text(v) for v in table["feature_name"]], categories=names)
    for column in extra:
        out[column] = table[column]
    if "cell_id" in extra:
        ids = table["cell_id"].map(_text, na_action="ignore")
        out["cell_id"] = ids.mask(ids.isna() | ids.isin(["-1", ""]), UNASSIGNED).astype("string[pyarrow]")
    return out


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_stage(path: Path) -> None:
    """Refuse transcripts that were moved by the well's origin, which is no part of Xenium's coordinates."""
    from ._xenium import read_alignment

    stage = next((p for p in (path.parent / "extras" / STAGE, path.parent / STAGE) if p.is_file()), None)
    if stage is None:
        return
    shift = read_alignment(stage)[:2, 2]
    if np.abs(shift).max() > _ONE_PIXEL:
        raise InputError(
            f"the well's origin ({shift[0]:g}, {shift[1]:g} px) was added to the transcripts on their way to the H&E, "
            "though Xenium's microns begin at the corner of the morphology image: all of them lie off by that much",
            where=stage,
            fix="convert the Xenium run itself, with --he-alignment extras/morphology_to_he.txt "
            "--option he_direction=morphology_to_he",
        )


def masks(folder: Path, prefix: str) -> dict[str, Path]:
    """Masks of superpixels by their name: ``hs`` (tissue), ``filter_he_qc`` (good ones), ..."""
    start = f"{prefix}mask-small-"
    return {p.stem[len(start) :]: p for p in sorted(folder.glob("*mask-small-*.png")) if p.name.startswith(start)}


def read_mask(path: Path, *, shapes: tuple[tuple[int, int], ...]) -> np.ndarray:
    """A mask of superpixels, bool [rows, columns].

    Parameters
    ----------
    path
        PNG of any depth; what is not black is in it.
    shapes
        Sizes that it may have: of the padded picture, of the picture.

    Raises
    ------
    FormatError
        No picture, or damaged.
    InputError
        Of another size.
    """
    import cv2

    # As it is: conversion to 8 bits of grey would make black of small numbers and dark colours. Opacity does not count.
    read = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if read is None:
        raise FormatError("the mask cannot be read: no PNG, or damaged", where=path, fix="copy it again")
    pixels = read.any(axis=2)
    if pixels.shape not in shapes:
        want = " or ".join(f"{h} x {w}" for h, w in dict.fromkeys(shapes))
        raise InputError(
            f"a mask of {pixels.shape[0]} x {pixels.shape[1]} where the picture has {want} superpixels",
            where=path,
            fix="masks have one pixel per superpixel of the whole picture",
        )
    return np.asarray(pixels)


def outlines(mask: np.ndarray, side_um: float) -> list[Any]:
    """Polygons in um that cover just the superpixels of a mask, largest first."""
    import shapely

    padded = np.pad(mask.astype(np.int8), ((0, 0), (1, 1)))
    step = np.diff(padded, axis=1)
    row, first = np.nonzero(step == 1)
    _, last = np.nonzero(step == -1)
    runs = shapely.box(first * side_um, row * side_um, last * side_um, (row + 1) * side_um)
    parts = shapely.get_parts(shapely.union_all(runs))
    return sorted(parts, key=lambda p: -p.area)


def read_map(path: Path) -> np.ndarray:
    """One gene's map, float32 [rows, columns]: ``.npy``, ``.tsv``, ``.tiff``, or a pickle, of which nothing is run.

    Raises
    ------
    FormatError
        Damaged, no map, or a pickle that holds more than an array.
    """
    try:
        if path.suffix == ".pickle":
            values = pickles.load(path)
        elif path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        elif path.suffix == ".tiff":
            import tifffile

            values = tifffile.imread(path)
        else:
            values = np.loadtxt(path, delimiter="\t", ndmin=2)
        made = np.asarray(values, dtype=np.float32)
    except FormatError:
        raise
    except (ValueError, OSError, EOFError, TypeError) as e:
        raise FormatError(f"the map cannot be read ({e})", where=path, fix="write it again") from e
    if made.ndim != 2:
        raise FormatError(f"an array of shape {made.shape} is no map", where=path, fix="maps are rows x columns")
    return made


def read_maps(folder: Path, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Values of superpixels in all maps of a folder, float32 [n, genes], and the genes.

    Parameters
    ----------
    folder
        ``cnts-super``, or the folder that holds it.
    rows, cols
        [n] superpixels, counted from the corner of the picture.

    Raises
    ------
    MissingError
        No maps.
    FormatError
        Damaged maps, or smaller than the picture.
    """
    inner = folder / "cnts-super"
    inner = inner if inner.is_dir() else folder
    found = {p.stem: p for p in sorted(inner.iterdir()) if p.suffix in _MAPS} if inner.is_dir() else {}
    if not found:
        raise MissingError(
            "no maps of genes", where=folder, fix="the folder that holds cnts-super/GENE.pickle (or .npy, .tsv, .tiff)"
        )
    listed = inner.parent / "predict-gene-names.txt"
    renamed = inner.parent / "file-names.tsv"
    files = dict(found)
    if renamed.is_file():
        lines = [line.partition("\t")[::2] for line in renamed.read_text(encoding="utf-8").splitlines()[1:]]
        files = {gene: inner / name for gene, name in lines if (inner / name).is_file()}
    order = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else list(files)
    genes = [g for g in order if g in files]
    out = np.empty((len(rows), len(genes)), dtype=np.float32)
    for i, gene in enumerate(genes):
        values = read_map(files[gene])
        if values.shape[0] <= rows.max() or values.shape[1] <= cols.max():
            raise FormatError(
                f"a map of {values.shape[0]} x {values.shape[1]} that does not cover all superpixels",
                where=files[gene],
                fix="maps have one pixel per superpixel of the whole picture",
            )
        out[:, i] = values[rows, cols]
    return out, genes


def mask_shapes(shape: tuple[int, int], *, pixel: float, size: float) -> tuple[tuple[int, int], ...]:
    """Sizes of masks and maps: of the padded picture, and of the picture alone."""
    padded = original.map_shape(*shape, raw_mpp=pixel, mpp=size)
    side = original.SIDE_PX * size / pixel
    return padded, (int(np.ceil(shape[0] / side)), int(np.ceil(shape[1] / side)))


def tissue_element(path: Path, mask: np.ndarray, side_um: float, to: dict[str, Any], notes: Notes) -> Any:
    """Tissue outlines of a mask, as `stainseq tissue` writes them."""
    import geopandas as gpd
    from spatialdata.models import ShapesModel

    polygons = outlines(mask, side_um)
    if not polygons:
        raise InputError("a mask without tissue", where=path, fix="leave the file out")
    frame = gpd.GeoDataFrame({"area_um2": [p.area for p in polygons]}, geometry=polygons)
    frame.index = [f"{keys.TISSUE}_{i}" for i in range(len(frame))]
    notes(f"tissue from {path.name}: {int(mask.sum())} superpixels in {len(polygons)} pieces")
    return ShapesModel.parse(frame, transformations=to)
