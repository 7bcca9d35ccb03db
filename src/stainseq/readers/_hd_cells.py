"""Cells and nuclei of Space Ranger 4: outlines, their counts, and the bins that belong to them.

https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/segmented-outputs
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import FormatError

if TYPE_CHECKING:
    from ._build import Notes
    from ._hd import Output

_OUTLINES = ((keys.CELLS, "cell_segmentations.geojson"), (keys.NUCLEI, "nucleus_segmentations.geojson"))
_MATRIX = "filtered_feature_cell_matrix.h5"


@dataclass(frozen=True)
class Members:
    """Which cell each bin of 2 um belongs to.

    Parameters
    ----------
    names
        Cell ids as the outlines have them.
    cell
        int32 [n], position in `names`, -1 for none.
    in_nucleus, in_cell
        bool [n].
    """

    names: list[str]
    cell: np.ndarray
    in_nucleus: np.ndarray
    in_cell: np.ndarray


def members(path: Path, rows: np.ndarray, cols: np.ndarray) -> Members:
    """Read barcode_mappings.parquet for some bins of 2 um.

    Parameters
    ----------
    path
        The file: square_002um, cell_id, in_nucleus, in_cell, one row a bin.
    rows, cols
        int [n], the bins.

    Raises
    ------
    FormatError
        Damaged, or no such table.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from ._hd_matrix import places

    wide, high = int(cols.max()) + 1, int(rows.max()) + 1
    lookup = np.full(high * wide, -1, dtype=np.int64)
    lookup[rows.astype(np.int64) * wide + cols] = np.arange(len(rows))
    cell = np.full(len(rows), -1, dtype=np.int32)
    flags = {name: np.zeros(len(rows), dtype=bool) for name in ("in_nucleus", "in_cell")}
    seen: dict[str, int] = {}
    try:
        with pq.ParquetFile(path) as file:
            wanted = ["square_002um", "cell_id", *(n for n in flags if n in file.schema_arrow.names)]
            for batch in file.iter_batches(batch_size=1 << 20, columns=wanted):
                told = places(batch.column("square_002um"))
                if told is None or told[0] != 2:
                    raise FormatError("bins that are not of 2 um", where=path, fix="download it again")
                _, row, column = told
                inside = (row < high) & (column < wide)
                at = lookup[np.where(inside, row.astype(np.int64) * wide + column, 0)]
                at[~inside] = -1
                kept = at >= 0
                coded = pc.dictionary_encode(batch.column("cell_id").cast(pa.string()))
                index = [seen.setdefault(plain_id(v), len(seen)) for v in coded.dictionary.to_pylist()]
                codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
                cell[at[kept]] = np.append(index, -1).astype(np.int32)[codes][kept]
                for name in wanted[2:]:
                    flag = batch.column(name).cast(pa.bool_()).fill_null(False)
                    flags[name][at[kept]] = flag.to_numpy(zero_copy_only=False)[kept]
    except (pa.ArrowException, KeyError, OSError) as e:
        raise FormatError(f"the barcode mappings cannot be read ({e})", where=path, fix="download it again") from e
    return Members(list(seen), cell, flags["in_nucleus"], flags["in_cell"])


def read(
    found: Output, full: float, to: dict[str, Any], elements: dict[str, dict[str, Any]], notes: Notes
) -> dict[str, Path]:
    """Add cells and nuclei, and their counts, to `elements`.

    Counts of cells are those of the matrix of cells; where that is missing, and for nuclei, they are summed from the
    bins of 2 um by barcode_mappings.parquet.

    Parameters
    ----------
    found
        The output.
    full
        Microns per full-resolution pixel.
    to
        Transformations of shapes.
    elements
        What was read so far; with bins of 2 um among it, they are told which cell they belong to.
    notes
        Told what was found.

    Returns
    -------
    dict
        Files used, by role.
    """
    used: dict[str, Path] = {}
    for name, file in _OUTLINES:
        if found.segmented is not None and (found.segmented / file).is_file():
            elements["shapes"][name] = _shapes(found.segmented / file, full, to)
            used[name] = found.segmented / file
    if not used:
        return used
    fine = elements["tables"].get(keys.counts("bins_002um"))
    owners: Members | None = None
    if found.mappings is not None and fine is not None:
        owners = members(found.mappings, fine.obs["array_row"].to_numpy(), fine.obs["array_col"].to_numpy())
        used["mappings"] = found.mappings
        _label(fine, owners)
        notes(f"{int((owners.cell >= 0).sum())} of {len(owners.cell)} bins of 2 um belong to a cell")
    matrix = found.segmented / _MATRIX if found.segmented is not None else None
    if keys.CELLS in used and matrix is not None and matrix.is_file():
        used["cell_counts"] = matrix
        _counted(matrix, elements, notes)
    elif keys.CELLS in used and owners is not None:
        _summed(keys.CELLS, fine, owners, owners.in_cell, elements, notes)
    if keys.NUCLEI in used and owners is not None:
        _summed(keys.NUCLEI, fine, owners, owners.in_nucleus, elements, notes)
    elif keys.NUCLEI in used:
        notes("no counts of nuclei: they need the bins of 2 um and barcode_mappings.parquet")
    return used


def _shapes(path: Path, full: float, to: dict[str, Any]) -> Any:
    import geopandas as gpd
    import pandas as pd
    import shapely
    from spatialdata.models import ShapesModel

    from ._tables import check_ids

    ids, shapes = outlines(path)
    check_ids(ids, what=path.name, where=path)
    shapes = shapely.transform(shapes, lambda xy: xy * full)
    frame = gpd.GeoDataFrame({"cell_id": ids}, geometry=shapes, index=pd.Index(ids, dtype=object))
    return ShapesModel.parse(frame, transformations=to)


def _label(fine: Any, owners: Members) -> None:
    """Bins say which cell they belong to."""
    import pandas as pd

    fine.obs["cell_id"] = pd.Categorical.from_codes(owners.cell, categories=owners.names)
    fine.obs["in_nucleus"], fine.obs["in_cell"] = owners.in_nucleus, owners.in_cell


def _counted(path: Path, elements: dict[str, dict[str, Any]], notes: Notes) -> None:
    """The matrix of cells."""
    from ._build import join
    from ._hd_matrix import open_matrix
    from ._tables import var_table

    matrix = open_matrix(path)
    frame = elements["shapes"][keys.CELLS]
    barcodes = matrix.ids.to_pylist()
    names = [plain_id(i) for i in barcodes]
    if not set(names) & set(frame.index):
        names = barcodes
    rows = join(frame.index, names, notes=notes, where=path, what="segmented cells")
    var, _ = var_table(matrix.counts)
    _table(keys.CELLS, frame[rows >= 0], matrix.counts.X[rows[rows >= 0]], var, elements)


def _summed(
    name: str, fine: Any, owners: Members, inside: np.ndarray, elements: dict[str, dict[str, Any]], notes: Notes
) -> None:
    """Counts of cells or nuclei as sums over their bins."""
    import pandas as pd
    from scipy import sparse

    from ._hd_matrix import blocks

    frame = elements["shapes"][name]
    position = np.append(pd.Index(frame.index).get_indexer(owners.names), -1)  # the last: of no cell
    mine = np.where(inside, position[owners.cell], -1)
    total = sparse.csr_matrix((len(frame), fine.n_vars), dtype=np.int32)
    for start, block in blocks(fine.X):
        at = mine[start : start + block.shape[0]]
        kept = np.flatnonzero(at >= 0)
        ones = np.ones(len(kept), dtype=np.int32)
        join = sparse.csr_matrix((ones, (at[kept], kept)), shape=(len(frame), block.shape[0]))
        total = total + join @ block
    notes(f"counts of {name} are sums of their bins of 2 um")
    _table(name, frame, sparse.csr_matrix(total), fine.var.copy(), elements)


def _table(name: str, frame: Any, X: Any, var: Any, elements: dict[str, dict[str, Any]]) -> None:
    import pandas as pd
    from anndata import AnnData
    from spatialdata.models import TableModel

    obs = pd.DataFrame(index=pd.Index(frame.index, dtype=object))
    obs[keys.REGION_KEY] = pd.Categorical([name] * len(obs))
    obs[keys.INSTANCE_KEY] = list(obs.index)
    table = AnnData(X, obs=obs, var=var)
    centres = frame.geometry.centroid
    table.obsm[keys.SPATIAL] = np.column_stack([centres.x, centres.y])
    elements["tables"][keys.counts(name)] = TableModel.parse(
        table, region=name, region_key=keys.REGION_KEY, instance_key=keys.INSTANCE_KEY
    )


def plain_id(barcode: str) -> str:
    """ "cellid_000000017-1" of matrices is cell 17 of the outlines."""
    text = barcode.removeprefix("cellid_").split("-")[0]
    return str(int(text)) if text.isdigit() else barcode


def outlines(path: Path) -> tuple[list[str], np.ndarray]:
    """Cell ids and polygons (full-resolution pixels) of a GeoJSON of segmented cells or nuclei.

    Raises
    ------
    FormatError
        No GeoJSON, or features that are no polygons.
    """
    import shapely

    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        ids = [str(f["properties"]["cell_id"]) for f in features]
        shapes = shapely.from_geojson([json.dumps(f["geometry"]) for f in features])
    except (ValueError, KeyError, TypeError, OSError, shapely.GEOSException) as e:
        raise FormatError(f"no GeoJSON of cells ({e})", where=path, fix="download it again") from e
    others = ~np.isin(shapely.get_type_id(shapes), (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    if others.any():
        raise FormatError(
            f"{int(others.sum())} of {len(ids)} cells are no polygons (cell {ids[int(others.argmax())]})",
            where=path,
            fix="download it again",
        )
    return ids, shapes
