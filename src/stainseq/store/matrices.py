"""Matrices of tables that are larger than memory should hold: opened lazily, and written while they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

LAZY_ABOVE = 256 << 20
"""Bytes of a dense matrix from which it stays on disk when its slide is opened."""

_CHUNK_BYTES = 64 << 20
_DENSE_CHUNK = 512
_READ_BYTES, _CHUNK_ROWS, _FILE_BYTES = 8 << 20, 65_536, 2 << 20
_SLAB_BYTES = 128 << 20
"""Rows of a chunk times all columns: what one pass over rows (writing, fingerprints) holds in memory."""


def stored_bytes(element: Any) -> int:
    """Bytes that a stored matrix (HDF5 or Zarr, dense or sparse) has in memory."""
    parts = [element] if hasattr(element, "shape") else [element[k] for k in ("data", "indices", "indptr")]
    return int(sum(np.prod(p.shape, dtype=float) * p.dtype.itemsize for p in parts))


def lazy(element: Any) -> Any:
    """Dask array of a stored matrix, in chunks of fixed bytes along the axis it is stored by.

    Dense Zarr arrays are cut along their own chunks, so that columns are read as cheaply as rows.
    """
    from anndata.experimental import read_elem_lazy

    if hasattr(element, "shape"):
        return read_elem_lazy(element, chunks=_dense_chunks(element))
    shape = tuple(int(k) for k in element.attrs["shape"])
    major = 1 if element.attrs["encoding-type"] == "csc_matrix" else 0
    each = max(stored_bytes(element) / max(shape[major], 1), 1.0)
    chunks = list(shape)
    chunks[major] = int(np.clip(_CHUNK_BYTES / each, 1, max(shape[major], 1)))
    return read_elem_lazy(element, chunks=tuple(chunks))


def _dense_chunks(element: Any) -> tuple[int, int]:
    n, g = (max(int(k), 1) for k in element.shape)
    own = getattr(element, "chunks", None)
    if own is None or not hasattr(element, "metadata"):
        width = min(_DENSE_CHUNK, g)
        return min(max(1, int(_CHUNK_BYTES // (width * element.dtype.itemsize))), n), width
    # Chunks of a few hundred kB make graphs of many thousand tasks: as many rows of them are read together.
    times = max(1, int(_READ_BYTES // (own[0] * own[1] * element.dtype.itemsize)))
    return min(int(own[0]) * times, n), min(int(own[1]), g)


def largest_matrix(group: Any, *, dense_only: bool = False) -> int:
    """Bytes in memory of the largest of X and layers."""
    found = [group["X"]] if "X" in group else []
    found += [group[f"layers/{k}"] for k in group["layers"]] if "layers" in group else []
    kept = (e for e in found if not dense_only or getattr(e, "ndim", 0) == 2)
    return max((stored_bytes(e) for e in kept if _is_matrix(e)), default=0)


def _is_matrix(element: Any) -> bool:
    return getattr(element, "ndim", 0) == 2 if hasattr(element, "shape") else "indptr" in element


def stored_tables(path: Path) -> dict[str, Any]:
    """Zarr group of each table of a slide store; none where it is no folder."""
    import zarr

    folder = path / "tables"
    if not folder.is_dir():
        return {}
    found = sorted(p.name for p in folder.iterdir() if (p / "zarr.json").is_file() or (p / ".zgroup").is_file())
    return {name: zarr.open_group(folder / name, mode="r", use_consolidated=False) for name in found}


def read_table(group: Any, *, max_bytes: float, dense_only: bool = False) -> AnnData:
    """A stored table whose matrices stay on disk where they are larger than `max_bytes`; all else is read.

    Parameters
    ----------
    group
        Open HDF5 file or Zarr group.
    max_bytes
        Largest matrix that is read.
    dense_only
        Read sparse matrices whatever their size.
    """
    from anndata import AnnData
    from anndata.io import read_elem

    def matrix(element: Any) -> Any:
        if not _is_matrix(element) or (dense_only and not hasattr(element, "shape")):
            return read_elem(element)
        return lazy(element) if stored_bytes(element) > max_bytes else read_elem(element)

    layers = {k: matrix(group[f"layers/{k}"]) for k in group.get("layers", ())}
    parts = {k: read_elem(group[k]) for k in ("obs", "var", "uns", "obsm", "varm", "obsp", "varp") if k in group}
    table = AnnData(matrix(group["X"]) if "X" in group else None, layers=layers, **parts)
    linked = table.uns.get("spatialdata_attrs", {})
    if isinstance(linked.get("region"), np.ndarray):
        linked["region"] = linked["region"].tolist()
    return table


def chunks_for(n_rows: int, n_columns: int, itemsize: int = 4) -> tuple[int, int]:
    """Chunks of a matrix that is written by rows and read by columns: 2 MB or more, so that files stay few."""
    rows = int(np.clip(_SLAB_BYTES // (itemsize * max(n_columns, 1)), 1024, _CHUNK_ROWS))
    rows = max(1, min(rows, n_rows))
    width = int(np.clip(_FILE_BYTES // (itemsize * rows), 8, max(n_columns, 8)))
    return rows, max(1, min(width, n_columns))


def new_arrays(folder: Path, shape: tuple[int, int], dtypes: Mapping[str, Any]) -> dict[str, Any]:
    """Empty Zarr arrays in a folder, as AnnData expects them in a table's group.

    Parameters
    ----------
    folder
        Where they are made.
    shape
        Of all of them.
    dtypes
        Type of each, by "X" or the name of a layer.
    """
    import zarr
    from zarr.codecs import BloscCodec

    made = {}
    for name, dtype in dtypes.items():
        made[name] = zarr.create_array(
            folder / name,
            shape=shape,
            dtype=np.dtype(dtype),
            chunks=chunks_for(*shape, itemsize=np.dtype(dtype).itemsize),
            # A tenth of the time of zarr's own default, for the same size.
            compressors=BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"),
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        )
    return made


def take_arrays(folder: Path, table: Path) -> None:
    """Move arrays (see `new_arrays`) into the stored table that they belong to."""
    from . import files

    for source in sorted(folder.iterdir()):
        target = table / "X" if source.name == "X" else table / "layers" / source.name
        if target.exists():
            files.remove(target)
        source.rename(target)


def row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Slices of rows as `chunks_for` cuts them: written in this order, no chunk is written twice."""
    step = chunks_for(n_rows, n_columns)[0]
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def column_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Slices of columns as `chunks_for` cuts them."""
    step = chunks_for(n_rows, n_columns)[1]
    for start in range(0, n_columns, step):
        yield slice(start, min(start + step, n_columns))
