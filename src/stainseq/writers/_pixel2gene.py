"""The files that Pixel2Gene's scripts leave on the way from a run to its working files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..core import superpixels as original
from ..core.aggregate import Counter
from ..core.grids import project
from ..errors import InputError
from ._place import centres_px, grid_px
from ._table import Table, open_table

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ..image import LevelStack
    from ..regions import Region

MORPHOLOGY = "morphology"
_ALSO = ("qv", "cell_id", "overlaps_nucleus")


def write_intermediate(
    sdata: SpatialData,
    path: Path,
    *,
    prefix: str,
    region: Region,
    image: LevelStack,
    mpp: float,
    tables: tuple[str, ...],
) -> list[Path]:
    """Write what can be told of the way, as far as the slide has it.

    ========================================================= ==========================================================
    ``locs.tsv``, ``gene-names.txt``                          rescaled places; genes by total count
    ``mask-small-hs.png``, ``mask-small-<column>.png``        superpixels on tissue; columns of yes and no in obs, and
                                                              ``quality_good`` of `stainseq superpixels`' quality, 1 bit
    ``extras/stage_to_morph.txt``, ``morphology_to_he.txt``   um to morphology pixels to H&E pixels, 3 x 3
    ``transcript_he_pixel.parquet``                           transcripts with ``he_x``, ``he_y`` in H&E pixels
    ``transcript_cnts<size>_inimage.parquet``,                counts in bins of <size> px from the picture's corner,
    ``transcript_locs<size>_inimage.tsv``                     and their centres
    ========================================================= ==========================================================

    Xenium's microns begin at the corner of the morphology image: ``stage_to_morph.txt`` is a scale alone. The scripts
    themselves add the origin of the well to it, which moves every transcript wherever that is not 0.

    Parameters
    ----------
    sdata, path, prefix, tables
        As in `superpixel.write`.
    region
        The superpixels.
    image
        The H&E.
    mpp
        Microns per pixel of the rescaled picture.

    Returns
    -------
    list of Path
    """
    made: list[Path] = []
    if tables:
        table = open_table(sdata, tables[0])
        made += _of_counts(table, path, prefix, region, image, mpp)
        made += _masks(sdata, table, path, prefix, region, image, mpp)
    if MORPHOLOGY in sdata.images:
        made += _matrices(sdata, path, image)
    if keys.TRANSCRIPTS in sdata.points:
        made += _transcripts(sdata, path, prefix, image)
    return made


def _of_counts(table: Table, path: Path, prefix: str, region: Region, image: LevelStack, mpp: float) -> list[Path]:
    import pandas as pd

    from .superpixel import _rows_of

    xy = original.rescaled(centres_px(image, region, mpp=mpp)[_rows_of(table, region)], raw_mpp=image.mpp, mpp=mpp)
    places, genes = path / f"{prefix}locs.tsv", path / f"{prefix}gene-names.txt"
    pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1]}, index=pd.Index(table.ids, dtype=object)).to_csv(places, sep="\t")
    totals = np.zeros(len(table.genes))
    for _, block in table.rows():
        totals += block.sum(axis=0, dtype=np.float64)
    order = original.gene_order(table.genes, totals)
    genes.write_text("".join(f"{table.genes[i]}\n" for i in order), encoding="utf-8")
    return [places, genes]


def _masks(
    sdata: SpatialData, table: Table, path: Path, prefix: str, region: Region, image: LevelStack, mpp: float
) -> list[Path]:
    """One pixel per superpixel of the padded picture; none where the superpixels are not the picture's own."""
    from .superpixel import _rows_of

    laid = grid_px(image, region, mpp=mpp) if region.kind == "grid" else None
    if laid is None or laid != (original.SIDE_PX * mpp / image.mpp, 0.0, 0.0):
        return []
    geometry: Any = region.geometry
    shape = original.map_shape(*image.shape, raw_mpp=image.mpp, mpp=mpp)
    rows, cols = (np.minimum(v, side - 1) for v, side in zip((geometry.rows, geometry.cols), shape, strict=True))
    at = _rows_of(table, region)
    chosen = {"hs": np.ones(len(region), dtype=bool)}
    for name in table.obs.columns:
        if table.obs[name].dtype.kind == "b":
            chosen[str(name)] = _spread(table.obs[name].to_numpy(), at, len(region))
    quality = sdata.tables.get(f"quality_{region.name}")
    if quality is not None and "quality" in quality.obs:
        good = dict(zip(quality.obs_names, quality.obs["quality"].astype(str) == "good", strict=True))
        chosen["quality_good"] = np.array([bool(good.get(i, False)) for i in region.ids])
    made = []
    for name, kept in chosen.items():
        mask = np.zeros(shape, dtype=np.uint8)
        mask[rows[kept], cols[kept]] = 255
        made.append(write_mask(path / f"{prefix}mask-small-{name}.png", mask))
    return made


def _spread(values: np.ndarray, at: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros(n, dtype=bool)
    out[at] = values
    return out


def write_mask(path: Path, mask: np.ndarray) -> Path:
    """A mask as PNG of 1 bit per pixel."""
    import cv2

    done, coded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_BILEVEL, 1])
    if not done:
        raise InputError(f"a mask of {mask.shape} cannot be written as PNG", where=path)
    path.write_bytes(coded.tobytes())
    return path


def _matrices(sdata: SpatialData, path: Path, image: LevelStack) -> list[Path]:
    from spatialdata.transformations import get_transformation

    placed = get_transformation(sdata.images[MORPHOLOGY], get_all=True)
    if keys.UM not in placed:
        return []
    to_um = np.asarray(placed[keys.UM].to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y")))
    folder = path / "extras"
    folder.mkdir(exist_ok=True)
    to_he = image.from_um @ to_um
    made = []
    for name, matrix in (("stage_to_morph", np.linalg.inv(to_um)), ("morphology_to_he", to_he / to_he[2, 2])):
        made.append(folder / f"{name}.txt")
        made[-1].write_text("".join(",".join(map(repr, row)) + "\n" for row in matrix.tolist()), encoding="utf-8")
    return made


def _transcripts(sdata: SpatialData, path: Path, prefix: str, image: LevelStack) -> list[Path]:
    """Transcripts in H&E pixels and their counts in bins, in one pass."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..regions.counting import _codes, _values
    from ..store.points import scan, to_um
    from .superpixel import write_counts, write_places

    element = sdata.points[keys.TRANSCRIPTS]
    matrix = to_um(element)
    also = [c for c in _ALSO if c in element.columns]
    features, _ = _values(sdata, keys.TRANSCRIPTS, "feature_name")
    genes = [f for f in features if f.partition("_")[0] not in original.CONTROLS]
    place = {g: i for i, g in enumerate(genes)}
    size = original.bin_size(image.mpp)
    n_rows, n_cols = (int(np.ceil(side / size)) for side in image.shape)
    counter = Counter(n_rows * n_cols, len(genes))
    moved = path / f"{prefix}transcript_he_pixel.parquet"
    writer = None
    try:
        for batch in scan(sdata, keys.TRANSCRIPTS, columns=["x", "y", "feature_name", *also]):
            xy = np.column_stack([np.asarray(batch.column(a), dtype=np.float64) for a in ("x", "y")])
            um = xy if matrix is None else project(matrix, xy)
            px = project(image.from_um, um)
            names = batch.column("feature_name").cast(pa.string())
            columns = {"feature_name": names, "x_location": um[:, 0], "y_location": um[:, 1]}
            columns |= {"he_x": px[:, 0], "he_y": px[:, 1]} | {c: batch.column(c) for c in also}
            table = pa.table(columns).replace_schema_metadata(None)
            writer = writer or pq.ParquetWriter(moved, table.schema, compression="zstd")
            writer.write_table(table)
            inside = ((px >= 0) & (px < image.shape[::-1])).all(axis=1)
            col, row = np.floor(px / size).astype(np.int64).T
            counter.add(np.where(inside, row * n_cols + col, -1), _codes(batch.column("feature_name"), place), None)
    finally:
        if writer is not None:
            writer.close()
    counts = counter.matrix(np.int32)
    kept = np.flatnonzero(np.asarray(counts.sum(axis=1)).ravel() > 0)
    if not len(kept):
        raise InputError("no transcript lies in the picture", where=sdata.path, fix="align the picture first")
    row, col = np.divmod(kept, n_cols)
    ids = np.array([f"{c}_{r}" for r, c in zip(row, col, strict=True)], dtype=object)
    made = Table("transcripts", ids, genes, None, None, counts[kept], np.arange(len(genes)), "transcripts")
    centres = np.column_stack([(col + 0.5) * size, (row + 0.5) * size])
    return [
        moved,
        write_counts(path / f"{prefix}transcript_cnts{size:g}_inimage.parquet", made),
        write_places(path / f"{prefix}transcript_locs{size:g}_inimage.tsv", ids, centres),
    ]
