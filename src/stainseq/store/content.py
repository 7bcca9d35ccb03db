"""Fingerprints of what an element holds, whatever way it is chunked, compressed or split into files.

* Rasters: every level in blocks of 512 x 512 px (all channels), each hashed by its values, then shapes, type,
  channel names and transformations.
* Points and shapes: every column as one run of values, lengths and nulls, so that row groups and files
  do not count; geometry as WKB; transformations.
* Tables: every array of the AnnData by its values, with ``uns["stainseq"]`` left out.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from .. import keys, spec

BLOCK_PX = 512
_VOLATILE = {"version", "encoding-version", "spatialdata_software_version", keys.STAMP}


def block(values: np.ndarray) -> bytes:
    """Digest of one block of a raster (any shape), by value."""
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).digest()


def raster(levels: list[dict[str, Any]], digests: list[list[bytes]], *, channels: Any, transformations: Any) -> str:
    """Fingerprint of a raster from the digests of its blocks, level by level, row by row."""
    return spec.fingerprint("raster", levels, channels, transformations, *(b"".join(d) for d in digests))


def transformations(element: Any) -> dict[str, Any]:
    """Coordinate system to transformation, in plain values."""
    from spatialdata.transformations import get_transformation

    found = get_transformation(element, get_all=True)
    plain = {}
    for name, t in dict(found).items():
        axes = ("x", "y")
        plain[str(name)] = np.asarray(t.to_affine_matrix(axes, axes), dtype=float).tolist()
    return plain


class Columns:
    """Running fingerprint of a table of rows that comes in pieces of any size.

    Parameters
    ----------
    schema
        Arrow schema; dictionary columns count as what they stand for.
    """

    def __init__(self, schema: Any) -> None:
        self._types = {f.name: str(_plain_type(f.type)) for f in schema}
        self._values = {name: hashlib.blake2b(digest_size=16) for name in self._types}
        self._lengths = {name: hashlib.blake2b(digest_size=16) for name in self._types}
        self._nulls = {name: hashlib.blake2b(digest_size=16) for name in self._types}
        self._rows = 0

    def update(self, table: Any) -> None:
        """Add the rows of an Arrow table or record batch."""
        for name in self._types:
            column, row = table.column(name), self._rows
            for chunk in getattr(column, "chunks", [column]):
                self._add(name, chunk, row)
                row += len(chunk)
        self._rows += table.num_rows

    def _add(self, name: str, chunk: Any, first_row: int) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        chunk = chunk.cast(_plain_type(chunk.type)) if chunk.type != _plain_type(chunk.type) else chunk
        kind = chunk.type
        if chunk.null_count:
            rows = np.flatnonzero(np.asarray(pc.is_null(chunk))) + first_row
            self._nulls[name].update(rows.astype("<i8").tobytes())
            chunk = chunk.drop_null()
        if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
            offsets = np.frombuffer(chunk.buffers()[1], dtype="<i8")[chunk.offset : chunk.offset + len(chunk) + 1]
            self._lengths[name].update(np.diff(offsets).tobytes())
            if len(chunk) and chunk.buffers()[2] is not None:
                self._values[name].update(memoryview(chunk.buffers()[2])[int(offsets[0]) : int(offsets[-1])])
        elif pa.types.is_primitive(kind) and not pa.types.is_boolean(kind):
            self._values[name].update(np.ascontiguousarray(chunk.to_numpy(zero_copy_only=False)).tobytes())
        elif pa.types.is_boolean(kind):
            self._values[name].update(np.asarray(chunk, dtype=bool).tobytes())
        else:
            self._values[name].update(spec.canonical([str(v) for v in chunk.to_pylist()]).encode())

    def digest(self, *more: Any) -> str:
        """The fingerprint; `more` are further facts that count."""
        kept = (self._values, self._lengths, self._nulls)
        parts = {n: [t, *(digests[n].hexdigest() for digests in kept)] for n, t in self._types.items()}
        return spec.fingerprint("rows", self._rows, parts, *more)


def _plain_type(kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_timestamp(kind) or pa.types.is_date64(kind) or pa.types.is_duration(kind):
        return pa.int64()
    return kind


def shapes(frame: Any) -> str:
    """Fingerprint of a GeoDataFrame of shapes: ids, geometry, columns and transformations, in order."""
    import pandas as pd
    import pyarrow as pa
    import shapely

    plain = pd.DataFrame({c: frame[c] for c in frame.columns if c != frame.geometry.name})
    plain = plain.reset_index(names="__index__")
    plain["__wkb__"] = shapely.to_wkb(np.asarray(frame.geometry))
    for column in plain.columns:
        if plain[column].dtype == object and column != "__wkb__":
            plain[column] = plain[column].map(lambda v: v if v is None else str(v))
    table = pa.Table.from_pandas(plain, preserve_index=False)
    running = Columns(table.schema)
    running.update(table)
    return running.digest(transformations(frame))


def zarr_tree(group: Any) -> str:
    """Fingerprint of all arrays and attributes below a Zarr group, by value; our stamp does not count."""
    found: dict[str, Any] = {}
    _walk(group, "", found)
    return spec.fingerprint("tree", found)


def _walk(group: Any, at: str, found: dict[str, Any]) -> None:
    import zarr

    found[at] = {k: v for k, v in dict(group.attrs).items() if k not in _VOLATILE}
    for name, node in sorted(group.members()):
        key = f"{at}/{name}"
        if key == f"/uns/{keys.STAMP}":
            continue
        if isinstance(node, zarr.Group):
            _walk(node, key, found)
        else:
            attributes = {k: v for k, v in dict(node.attrs).items() if k not in _VOLATILE}
            found[key] = [attributes, list(node.shape), str(node.dtype), _array(node)]


def _array(node: Any) -> str:
    running = hashlib.blake2b(digest_size=16)
    if node.ndim == 0:
        _update(running, np.asarray(node[()]))
        return running.hexdigest()
    step = max(1, node.chunks[0]) if node.size else 1
    for start in range(0, node.shape[0] if node.size else 0, step):
        _update(running, np.asarray(node[start : start + step]))
    return running.hexdigest()


def _update(running: Any, values: np.ndarray) -> None:
    if values.dtype.kind in "biufcSU":
        running.update(np.ascontiguousarray(values).tobytes())
    else:
        # Variable-length strings: length before text, so that ("ab", "c") is not ("a", "bc").
        encoded = [str(v).encode() for v in values.ravel().tolist()]
        running.update(np.array([len(e) for e in encoded], dtype="<i8").tobytes() + b"".join(encoded))
