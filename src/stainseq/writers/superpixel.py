"""Pixel2Gene's and iStar's working files: counts, places, H&E and pixel sizes, for training or testing.

``cnts``, ``locs-raw``, ``he-raw``, ``radius-raw.txt``, ``pixel-size-raw.txt``, ``pixel-size.txt``; a testing folder has
the picture and its sizes alone. `stainseq convert --platform superpixel` reads them back: the same counts on the same
grid, to the last bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from ..core import superpixels as original
from ..errors import InputError, ScaleError
from ._format import Format
from ._place import centres_px, grid_px, write_jpeg, write_tiff
from ._table import Table, open_table

if TYPE_CHECKING:
    from spatialdata import SpatialData

FORMAT = Format(
    tables="optional", prefers=("counts_",), region=keys.SUPERPIXELS, needs_region=True, image=True, prefix=True
)


def write(
    sdata: SpatialData,
    path: Path,
    *,
    region: str | None,
    tables: tuple[str, ...],
    facts: dict[str, Any],
    prefix: str = "",
    part: Literal["train", "test"] | None = None,
    counts: Literal["parquet", "tsv"] = "parquet",
    places: Literal["tsv", "parquet"] = "tsv",
    image: Literal["tif", "jpg"] = "tif",
    image_key: str = keys.HE,
    radius_unit: Literal["diameter_um", "radius_px"] = "diameter_um",
    pixel_size: float | None = None,
    intermediate: bool = False,
) -> list[Path]:
    """Write the folder.

    Parameters
    ----------
    sdata, path, region, tables, facts
        See the package: a folder, the regions and their counts.
    prefix
        Of all file names.
    part
        "train": with counts; "test": the picture and its sizes. Default: "train" where there are counts.
    counts, places
        Format of ``cnts`` and ``locs-raw``.
    image
        Of ``he-raw``: "tif" is tiled and lossless, "jpg" smaller, and limited to 65,500 px a side.
    image_key
        The H&E.
    radius_unit
        What ``radius-raw.txt`` is to hold: the diameter in um, as the instructions of Pixel2Gene say, or the radius in
        pixels of ``he-raw``, as its code takes it.
    pixel_size
        ``pixel-size.txt``, um per pixel after rescaling. Default: a sixteenth of the superpixels' side (0.5 for 8 um),
        0.5 for other regions.
    intermediate
        Also the files that their scripts leave on the way, see `_pixel2gene.write_intermediate`.

    Returns
    -------
    list of Path

    Raises
    ------
    InputError
        Values that are no counts; several kinds of regions in one table.
    ScaleError
        A pixel size that fits no superpixel.
    """
    from .. import image as images
    from .. import regions

    opened = images.open_image(sdata, image_key)
    where = regions.get(sdata, str(region))
    size = float(pixel_size) if pixel_size is not None else _pixel_size(where, opened.mpp)
    if not (np.isfinite(size) and 0.05 <= size <= original.SIDE_PX * 100):
        raise ScaleError(f"pixel_size={size:g}", fix="microns per pixel after rescaling; 0.5 is theirs")
    train = bool(tables) if part is None else part == "train"
    if train and not tables:
        raise InputError(
            "a training folder without counts", where=sdata.path, fix="count first (stainseq aggregate), or part=test"
        )
    across = _across(where)
    radius = across if radius_unit == "diameter_um" else across / 2 / opened.mpp
    made = [_text(path / f"{prefix}pixel-size-raw.txt", opened.mpp), _text(path / f"{prefix}pixel-size.txt", size)]
    made.append(_text(path / f"{prefix}radius-raw.txt", radius))
    he = path / f"{prefix}he-raw.{image}"
    (write_tiff if image == "tif" else write_jpeg)(opened, he)
    made.append(he)
    laid = grid_px(opened, where, mpp=size) if where.kind == "grid" else None
    facts |= {"radius_unit": radius_unit, "grid_px": laid, "part": "train" if train else "test"}
    if train:
        table = open_table(sdata, tables[0])
        rows = _rows_of(table, where)
        xy = centres_px(opened, where, mpp=size)[rows]
        _check_inside(xy, opened.shape, table)
        made.append(write_places(path / f"{prefix}locs-raw.{places}", table.ids, xy))
        made.append(write_counts(path / f"{prefix}cnts.{counts}", table))
    if intermediate:
        from ._pixel2gene import write_intermediate

        made += write_intermediate(sdata, path, prefix=prefix, region=where, image=opened, mpp=size, tables=tables)
    return made


def _pixel_size(region: Any, raw_mpp: float) -> float:
    """A sixteenth of the superpixels' side, such that a reader finds that side again to the last bit."""
    if region.kind != "grid":
        return original.TARGET_MPP
    side = float(np.asarray(region.geometry.transform)[0, 0])
    if abs(side / region.geometry.pitch_um() - 1) > 1e-6:  # turned against the slide, whose um it leaves
        return round(float(region.geometry.pitch_um()) / original.SIDE_PX, 9)
    near = side / original.SIDE_PX
    tried = [round(near, 9), *(near + k * np.spacing(near) for k in (0, 1, -1, 2, -2, 3, -3))]
    return next((float(size) for size in tried if original.SIDE_PX * size / raw_mpp * raw_mpp == side), tried[0])


def _across(region: Any) -> float:
    """Typical diameter of the regions, um."""
    if region.kind == "grid":
        pitch = float(region.geometry.pitch_um())
        return round(pitch, 6)
    return round(8 * float(region.geometry.spacing_um()), 3)


def _rows_of(table: Table, region: Any) -> np.ndarray:
    """Position in the region of each row of a table."""
    import pandas as pd

    at = pd.Index(region.ids).get_indexer(table.ids)
    if (at < 0).any():
        missing = ", ".join(map(str, table.ids[at < 0][:3]))
        raise InputError(
            f"{int((at < 0).sum())} rows belong to no region of {region.name!r} ({missing}, ...)",
            where=table.where,
            fix="name the table's own regions (--region)",
        )
    return np.asarray(at)


def _check_inside(xy: np.ndarray, shape: tuple[int, int], table: Table) -> None:
    inside = ((xy >= 0) & (xy < np.array(shape[::-1]))).all(axis=1).mean()
    if inside < 0.9:
        raise InputError(
            f"{inside:.0%} of the regions lie in the picture",
            where=table.where,
            fix="align the picture first (stainseq align), or name another (--option image_key=)",
        )


def _text(path: Path, value: float) -> Path:
    path.write_text(f"{value!r}\n", encoding="utf-8")
    return path


def write_places(path: Path, ids: np.ndarray, xy: np.ndarray) -> Path:
    """``locs``: id, x, y in pixels, to the last bit."""
    import pandas as pd

    frame = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1]}, index=pd.Index(ids, dtype=object))
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t")
    return path


def write_counts(path: Path, table: Table) -> Path:
    """``cnts``: ids in rows, genes in columns, dense; some rows are in memory at a time."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    try:
        for rows, block in table.rows():
            values = table.check_counts(rows, block)
            frame = pd.DataFrame(values, index=pd.Index(table.ids[rows], dtype=object), columns=table.genes)
            if path.suffix == ".tsv":
                frame.to_csv(path, sep="\t", mode="a", header=rows.start == 0)
                continue
            arrow = pa.Table.from_pandas(frame)
            writer = writer or pq.ParquetWriter(path, arrow.schema, compression="zstd")
            writer.write_table(arrow)
    finally:
        if writer is not None:
            writer.close()
    return path
