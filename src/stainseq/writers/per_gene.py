"""Maps of genes as Pixel2Gene writes them, one file a gene: cnts-super/GENE.npy (or tsv, tiff, pickle).

One pixel a superpixel, rows and columns of the picture; NaN where no superpixel is. The default is float32 ``.npy``;
``file=pickle`` gives the original's float16 pickles, whose maps reach over the padded picture.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from ..core import superpixels as original
from ..errors import InputError
from ._format import Format
from ._place import grid_px
from ._table import open_table

if TYPE_CHECKING:
    from spatialdata import SpatialData

FORMAT = Format(prefers=("pred_", "counts_"), region=keys.SUPERPIXELS, needs_region=True)


def write(
    sdata: SpatialData,
    path: Path,
    *,
    region: str | None,
    tables: tuple[str, ...],
    facts: dict[str, Any],
    file: Literal["npy", "tsv", "tiff", "pickle"] = "npy",
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    padded: bool | None = None,
    image_key: str = keys.HE,
) -> list[Path]:
    """Write ``cnts-super/`` and ``predict-gene-names.txt``; a few genes are in memory at a time.

    Parameters
    ----------
    sdata, path, region, tables, facts
        See the package: a folder, a grid and its table.
    file
        Format of the maps: [rows, columns] float32, of "pickle" float16.
    layer
        Layer instead of X, such as "spread".
    genes
        Those that are wanted; default all.
    padded
        Maps over the picture padded to multiples of 256 px of 0.5 um, as the original's; default for "pickle" alone.
    image_key
        The picture that is padded.

    Returns
    -------
    list of Path

    Raises
    ------
    InputError
        The regions are no grid; values that float16 cannot hold.
    """
    from .. import regions
    from .superpixel import _rows_of

    if file not in ("npy", "tsv", "tiff", "pickle"):
        raise InputError(f"no format {file!r} of maps", fix="one of: npy, tsv, tiff, pickle")
    where = regions.get(sdata, str(region))
    if where.kind != "grid":
        raise InputError(
            f"{region!r} is no grid", where=sdata.path, fix="maps need superpixels or bins (stainseq superpixels)"
        )
    table = open_table(sdata, tables[0], layer=layer, genes=genes)
    at = _rows_of(table, where)
    geometry: Any = where.geometry
    shape = geometry.shape
    if file == "pickle" if padded is None else padded:
        shape = _padded(sdata, where, image_key)
    if shape[0] <= geometry.rows[at].max() or shape[1] <= geometry.cols[at].max():
        raise InputError("superpixels beyond the padded picture", where=table.where, fix="padded=false")
    flat = geometry.rows[at].astype(np.int64) * shape[1] + geometry.cols[at]
    folder = path / "cnts-super"
    folder.mkdir()
    names = file_names(table.genes)
    made = []
    for i, values in table.by_gene():
        dense = np.full(shape, np.nan, dtype=np.float32)
        dense.ravel()[flat] = values
        made.append(folder / f"{names[i]}.{file}")
        _save(made[-1], dense, table.genes[i])
    made.append(path / "predict-gene-names.txt")
    made[-1].write_text("".join(f"{g}\n" for g in table.genes), encoding="utf-8")
    if names != table.genes:
        made.append(path / "file-names.tsv")
        rows = "".join(f"{g}\t{n}.{file}\n" for g, n in zip(table.genes, names, strict=True))
        made[-1].write_text("gene\tfile\n" + rows, encoding="utf-8")
    facts |= {"shape": list(shape), "transform_to_um": np.asarray(geometry.transform).tolist(), "layer": layer}
    return made


def _padded(sdata: Any, region: Any, image_key: str) -> tuple[int, int]:
    from .. import image

    opened = image.open_image(sdata, image_key)
    mpp = region.geometry.pitch_um() / original.SIDE_PX
    laid = grid_px(opened, region, mpp=mpp)
    if laid is None or laid[1:] != (0.0, 0.0):
        raise InputError(
            f"{region.name!r} does not begin at the corner of the picture", where=sdata.path, fix="padded=false"
        )
    return original.map_shape(*opened.shape, raw_mpp=opened.mpp, mpp=mpp)


def _save(path: Path, values: np.ndarray, gene: str) -> None:
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".tsv":
        np.savetxt(path, values, delimiter="\t", fmt="%.9g")
    elif path.suffix == ".tiff":
        import tifffile

        tifffile.imwrite(path, values, compression="zlib", metadata=None, software=False)
    else:
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.isinf(half).any():
            raise InputError(f"{gene}: values above 65,504, which float16 cannot hold", fix="write npy (file=npy)")
        with open(path, "wb") as file:
            pickle.dump(half, file)


def file_names(genes: Sequence[str]) -> list[str]:
    """Names of genes as names of files: no separators, no two that a file system takes for one."""
    out, seen = [], set()
    for gene in genes:
        name = plain = re.sub(r'[/\\:*?"<>|\s\x00-\x1f]', "_", gene).lstrip(".-") or "_"
        k = 1
        while name.casefold() in seen:
            k += 1
            name = f"{plain}~{k}"
        seen.add(name.casefold())
        out.append(name)
    return out
