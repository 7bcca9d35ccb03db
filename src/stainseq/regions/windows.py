"""Counts of the regions in a window, from a table that stays on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import keys
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame

_PLACE = ("array_row", "array_col")


def read(sdata: Any, name: str, frame: GeoDataFrame, table: str) -> AnnData:
    """See `stainseq.regions.read_counts`; `frame` holds the regions of the window."""
    stored = None if sdata.path is None else Path(sdata.path) / "tables" / table
    if table in sdata.tables:
        found: Any = sdata.tables[table]
        rows, _ = _rows(frame, lambda column: found.obs[column].to_numpy() if column in found.obs else None)
        part = found[rows].copy()
    elif stored is not None and stored.is_dir():
        part = _stored(stored, frame)
    else:
        raise MissingError(
            f"no table {table!r}", where=sdata.path, fix=f"tables here: {', '.join(sdata.tables) or 'none'}"
        )
    if len(part) and set(map(str, part.obs[keys.REGION_KEY].unique())) != {name}:
        raise InputError(f"table {table!r} is of other regions than {name!r}", fix="give their table")
    part.X = part.X.compute() if hasattr(part.X, "compute") else part.X
    return part


def _stored(folder: Path, frame: GeoDataFrame) -> AnnData:
    """Rows of a stored table; of all others only what tells which they are is read."""
    import pandas as pd
    import zarr
    from anndata import AnnData
    from anndata.io import read_elem

    group = zarr.open_group(folder, mode="r", use_consolidated=False)
    obs: Any = group["obs"]
    rows, ids = _rows(frame, lambda column: _column(obs, column))
    # Names and links of bins are their ids, which the window has told: a chunk of text is slow to decode.
    known = {} if ids is None else {obs.attrs["_index"]: ids, keys.INSTANCE_KEY: ids}
    columns = {c: known[c] if c in known else _part(obs[c], rows) for c in obs.attrs["column-order"]}
    named = obs.attrs["_index"]
    index = pd.Index(known[named] if named in known else _part(obs[named], rows), dtype=object)
    part = AnnData(_matrix(group["X"], rows), obs=pd.DataFrame(columns, index=index), var=read_elem(group["var"]))
    centres: Any = group.get(f"obsm/{keys.SPATIAL}")
    if centres is not None:
        part.obsm[keys.SPATIAL] = np.asarray(centres.oindex[rows])
    return part


def _part(node: Any, rows: np.ndarray) -> Any:
    """Some rows of a stored column."""
    import pandas as pd
    import zarr
    from anndata.io import read_elem

    if not isinstance(node, zarr.Group):
        values = np.asarray(node.oindex[rows])
        return values.astype(object) if values.dtype.kind in "TUS" else values
    if node.attrs["encoding-type"] == "categorical":
        codes: Any = node["codes"]
        kept = np.asarray(codes.oindex[rows])
        return pd.Categorical.from_codes(kept, read_elem(node["categories"]), ordered=bool(node.attrs["ordered"]))
    return read_elem(node)[rows]


def _matrix(node: Any, rows: np.ndarray) -> Any:
    """Some rows of a stored matrix: each of its chunks is read once, whatever rows it holds."""
    import zarr
    from anndata.io import sparse_dataset
    from scipy import sparse

    if not isinstance(node, zarr.Group):
        return np.asarray(node.oindex[rows])
    if node.attrs["encoding-type"] != "csr_matrix":
        return sparse.csr_matrix(sparse_dataset(node)[rows])
    shape = cast("list[int]", node.attrs["shape"])
    low = int(rows.min(initial=shape[0]))
    indptr = np.asarray(cast("zarr.Array[Any]", node["indptr"])[low : int(rows.max(initial=-1)) + 2])
    first = indptr[rows - low]
    times = indptr[rows - low + 1] - first
    pointers = np.concatenate([[0], np.cumsum(times)])
    at = np.repeat(first - pointers[:-1], times) + np.arange(pointers[-1])
    data, indices = (np.asarray(cast("zarr.Array[Any]", node[k]).oindex[at]) for k in ("data", "indices"))
    return sparse.csr_matrix((data, indices, pointers), shape=(len(rows), int(shape[1])))


def _rows(frame: GeoDataFrame, column: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of a table that are the window's regions, in the order of the table, and their ids where they are bins."""
    import pandas as pd

    wanted = frame["label"].to_numpy() if "label" in frame else np.asarray(frame.index)
    row, col = (column(c) for c in _PLACE) if {"row", "col"} <= set(frame.columns) else (None, None)
    if row is None or col is None:
        ids = column(keys.INSTANCE_KEY)
        if ids is None:
            raise InputError("a table that names no regions", fix=f"give one with a column {keys.INSTANCE_KEY!r}")
        return np.flatnonzero(pd.Index(wanted).get_indexer(np.asarray(ids[:])) >= 0), None
    # Bins tell their row and column, which is found without reading millions of ids. Tables are nearly always in the
    # order of rows, so that few columns need to be read.
    if not len(frame):
        return np.zeros(0, dtype=np.int64), None
    (r0, r1), (c0, c1) = ((int(frame[c].min()), int(frame[c].max())) for c in ("row", "col"))
    row = np.asarray(row[:])
    near = np.flatnonzero((row >= r0) & (row <= r1))
    if not len(near):
        return near, None
    col = np.asarray(col[int(near[0]) : int(near[-1]) + 1])[near - near[0]]
    inside = (col >= c0) & (col <= c1)
    near, col = near[inside], col[inside]
    which = np.full((r1 - r0 + 1, c1 - c0 + 1), -1)
    which[frame["row"] - r0, frame["col"] - c0] = np.arange(len(frame))
    found = which[row[near] - r0, col - c0]
    return near[found >= 0], wanted[found[found >= 0]]


def _column(obs: Any, name: str) -> Any:
    """A stored column to be sliced, or None."""
    import zarr
    from anndata.io import read_elem

    if name not in obs:
        return None
    return np.asarray(read_elem(obs[name])) if isinstance(obs[name], zarr.Group) else obs[name]
