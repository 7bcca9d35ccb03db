"""Expression of cells from predictions of superpixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from .. import keys
from ..core.values import in_range
from ..errors import InputError, MissingError
from ._blocks import COVERAGE

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ..regions import Region


def per_cell(
    sdata: SpatialData,
    table_key: str,
    *,
    region: str = keys.CELLS,
    weight: Literal["area", "centre"] = "area",
    min_coverage: float = 0.0,
    key_added: str | None = None,
) -> SpatialData:
    """Mean of a table of superpixels (or other bins) under every cell or nucleus.

    The table is read and written in blocks of genes; memory never holds all superpixels by all genes.

    Parameters
    ----------
    sdata
        The slide; written to when it is on disk.
    table_key
        Table of a grid, such as ``pred_ridge_superpixels``: predicted or enhanced.
    region
        Cells, nuclei or any other regions: polygons, circles or labels.
    weight
        "area": each superpixel counts by the exact share of the cell that lies in it, the default, since a cell of
        10 um touches several superpixels of 8 um. "centre": the superpixel under the cell's centre alone.
    min_coverage
        Cells of which this share or less lies in superpixels of the table get no row. Default 0: those that lie in
        none.
    key_added
        Name of the table; default ``pred_<head>_<region>``.

    Returns
    -------
    SpatialData
        The same object; adds ``tables[key_added]``. X and every layer float32 [cells, genes] hold the weighted mean
        in the table's own unit (of log1p values, so a mean of logs); ``layers["spread"]`` the weighted mean of the
        spreads, as if the errors of neighbours were one, which is an upper bound. ``obs["coverage"]``: share of the
        cell inside superpixels of the table. ``obs["fold"]``: that of the superpixel with the largest share.

    Raises
    ------
    MissingError
        No such table or regions.
    InputError
        A table of regions that are no grid (with areas), or no cell under it.
    """
    from .. import lineage, regions, store
    from ..store.matrices import column_blocks

    in_range("per_cell", min_coverage=(min_coverage, 0, 1))
    source_table = _table(sdata, table_key)
    source_name = _region_of(source_table, table_key)
    stamp = store.stamp_of(sdata, table_key) or {}
    head = stamp.get("parameters", {}).get("head")
    name = key_added or (keys.prediction(str(head), region) if head else f"{table_key}_{region}")
    lineage.claim(sdata, name, step="per_cell")
    target = regions.get(sdata, region)
    found = regions.shares(target, _rows_of(sdata, source_name, source_table), by=weight)
    total = np.asarray(found.sum(axis=1)).ravel()
    covered = np.minimum(total, 1.0)
    kept = np.flatnonzero(covered > min_coverage)
    if not len(kept):
        raise InputError(
            f"none of {len(target)} {region} lies under {table_key!r}",
            where=sdata.path,
            fix="check that both are placed on the same tissue (stainseq plot), or lower min_coverage",
        )
    found = sparse.csr_array(sparse.diags_array(1 / total[kept]) @ found[kept])
    table = _frame(target.take(kept), source_table, found, covered[kept])
    names = ["X", *source_table.layers]
    about = {"table": table_key, "region": region, "weight": weight, "min_coverage": min_coverage, "head": head}
    inputs = {
        table_key: store.fingerprint_of(sdata, table_key),
        region: lineage.ids_fingerprint(target.ids),
    }
    kinds = dict.fromkeys(names, np.float32)
    with store.stream_table(sdata, name, table, kinds, step="per_cell", parameters=about, inputs=inputs) as (out, more):
        more |= {k: stamp[k] for k in ("units", "encoder", "model", "enhanced") if k in stamp}
        more["left_out"] = len(target) - len(kept)
        for key in names:
            matrix = source_table.X if key == "X" else source_table.layers[key]
            for block in column_blocks(*source_table.shape):
                part = matrix[:, block]
                part = np.asarray(part.toarray() if sparse.issparse(part) else part, dtype=np.float64)
                out[key][:, block] = found @ part
    return sdata


def _table(sdata: SpatialData, name: str) -> AnnData:
    if name not in sdata.tables:
        there = ", ".join(sdata.tables) or "none"
        raise MissingError(f"no table {name!r}", where=sdata.path, fix=f"predict first; tables: {there}")
    return sdata.tables[name]


def _region_of(table: AnnData, name: str) -> str:
    region = table.uns.get("spatialdata_attrs", {}).get("region")
    region = region if isinstance(region, str) or region is None else next(iter(region))
    if region is None:
        raise InputError(f"table {name!r} belongs to no region", fix="give a table of superpixels")
    return str(region)


def _rows_of(sdata: SpatialData, name: str, table: AnnData) -> Region:
    """The regions of a table's rows, in their order."""
    import pandas as pd

    from .. import regions

    opened = regions.get(sdata, name)
    at = pd.Index(opened.ids).get_indexer(table.obs_names)
    if (at < 0).any():
        raise InputError(
            f"{int((at < 0).sum())} of {len(at)} rows are not among the {name}",
            where=sdata.path,
            fix="the regions were made anew: predict again",
        )
    return opened if np.array_equal(at, np.arange(len(opened))) else opened.take(at)


def _frame(target: Region, source: AnnData, found: Any, covered: np.ndarray) -> AnnData:
    """The table without its matrices."""
    from .. import regions

    empty = sparse.csr_matrix((len(target), source.n_vars), dtype=np.float32)
    obs: dict[str, Any] = {COVERAGE: covered.astype(np.float32)}
    if keys.FOLD in source.obs:
        obs[keys.FOLD] = source.obs[keys.FOLD].to_numpy()[_largest(found)]
    table = regions.table(target, empty, var_names=source.var_names, obs=obs)
    table.X = None
    table.var = source.var.copy()
    return table


def _largest(found: Any) -> np.ndarray:
    """Column of the largest value of every row; no row is empty."""
    row = np.repeat(np.arange(found.shape[0]), np.diff(found.indptr))
    order = np.lexsort((found.data, row))
    return np.asarray(found.indices[order[found.indptr[1:] - 1]])
