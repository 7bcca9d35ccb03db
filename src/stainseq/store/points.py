"""Points: sorted by place, so that a window reads only its part of the files.

Rows are ordered along a Morton curve of cells of 32 um, hence by tile of 256 um and by its 8 x 8 parts inside,
in Parquet row groups of 65,536 rows whose minima and maxima let a reader skip all that lie elsewhere. Any
Parquet reader, and plain spatialdata, opens them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import keys
from ..core.grids import morton
from ..errors import InputError, MissingError
from . import content

TILE_UM = 256.0
_CELL_UM = 32.0
ROW_GROUP = 65_536
_GROUPS_PER_FILE = 64
_IN_MEMORY_ROWS = 4_000_000
_BUCKET_SHIFT = 10  # 2**10 cells: square buckets of 1,024 um
_MOST_BUCKETS = 2_048
_FINER = 4  # a square that is too full is parted into 16


def data_files(folder: Path) -> list[Path]:
    """The Parquet files of a points element, in row order."""
    at = folder / "points.parquet"
    if at.is_file():
        return [at]
    return sorted(at.glob("*.parquet"), key=lambda p: [int(s) if s.isdigit() else s for s in p.name.split(".")])


def dataset(sdata: Any, name: str) -> Any:
    """The stored points as an Arrow dataset, or None for points that are in memory only."""
    import pyarrow.dataset as ds

    folder = Path(sdata.path) / "points" / name if sdata.path is not None else None
    if folder is None or not folder.is_dir():
        return None
    return ds.dataset([str(f) for f in data_files(folder)], format="parquet")


def scan(sdata: Any, name: str, *, columns: list[str], keep: Any = None, rows: int = 1 << 19) -> Iterator[Any]:
    """Points as Arrow record batches, in stored order.

    Parameters
    ----------
    sdata, name
        The slide and its points element.
    columns
        Columns to read.
    keep
        A `pyarrow.compute` expression that says which rows.
    rows
        Most rows in a batch.
    """
    stored = dataset(sdata, name)
    if stored is not None:
        yield from stored.to_batches(columns=columns, filter=keep, batch_size=rows)
        return
    element = sdata.points[name]
    for part in _partitions(element):
        part = part if keep is None else part.filter(keep)
        yield from part.select(columns).combine_chunks().to_batches(max_chunksize=rows)


def _partitions(element: Any) -> Iterator[Any]:
    """Partitions of a dask DataFrame as Arrow tables; its graph is optimised once, not once a partition."""
    for part in element.to_delayed(optimize_graph=True):
        yield _as_arrow(part.compute(scheduler="threads"))


def _as_arrow(frame: Any) -> Any:
    """A pandas frame as an Arrow table, without index and attributes (which hold transformations, not JSON)."""
    import pyarrow as pa

    frame = frame.copy(deep=False)
    frame.attrs = {}
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def write(element: Any, store: Path, *, name: str, scratch: Path) -> dict[str, Any]:
    """Write points into a new store of their own, in bounded memory.

    Parameters
    ----------
    element
        dask DataFrame as `PointsModel` makes it.
    store
        Folder to make.
    name
        Name of the element.
    scratch
        Folder for the sorting's temporary files.

    Returns
    -------
    dict
        ``content`` (fingerprint) and ``rows``.

    Raises
    ------
    InputError
        Points without coordinates (NaN or infinite).
    """
    folder = _skeleton(element, store, name=name)
    cell = _CELL_UM / um_per_unit(element)
    rows = 0
    running = None
    for table in sorted_tables(element, cell=cell, scratch=scratch):
        if running is None:
            running = content.Columns(table.schema)
            writer = _Writer(folder / "points.parquet", table.schema)
        running.update(table)
        writer.write(table)
        rows += table.num_rows
    writer.close()
    return {"content": running.digest(content.transformations(element)), "rows": rows}  # type: ignore[union-attr]


def um_per_unit(element: Any) -> float:
    """Mean length in microns of a unit of an element's own coordinates; 1 where it has no "um"."""
    matrix = to_um(element)
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2])))) if matrix is not None else 1.0


def to_um(element: Any) -> np.ndarray | None:
    """3 x 3 matrix from an element's own x, y to microns, or None."""
    from spatialdata.transformations import get_transformation

    found = dict(get_transformation(element, get_all=True))
    if keys.UM not in found:
        return None
    return np.asarray(found[keys.UM].to_affine_matrix(("x", "y"), ("x", "y")), dtype=float)


def sorted_tables(element: Any, *, cell: float, scratch: Path) -> Iterator[Any]:
    """Arrow tables of 65,536 rows (the last one less) in Morton order; ties keep the source's order.

    Up to 4 million rows are sorted in memory. More go to one temporary file per square of 1,024 um first, each of
    which is then sorted by itself: the order, and so the bytes, do not depend on which way was taken.
    """
    batches = _batches(element)
    pending: list[Any] = []
    buckets: _Buckets | None = None
    for table in batches:
        if buckets is not None:
            buckets.add(table)
            continue
        pending.append(table)
        if sum(t.num_rows for t in pending) > _IN_MEMORY_ROWS:
            buckets = _Buckets(scratch, cell)
            for one in pending:
                buckets.add(one)
            pending = []
    whole = buckets.tables() if buckets is not None else iter([_concat(pending)])
    yield from _in_groups((_sort(t, cell) for t in whole), ROW_GROUP)


def _batches(element: Any) -> Iterator[Any]:
    """Partitions of a dask DataFrame as Arrow tables of one schema, without its index."""
    schema = None
    for part in _partitions(element):
        table = _checked(part)
        if schema is None:
            schema = table.schema
        elif table.schema != schema:
            table = table.cast(schema)
        for start in range(0, max(1, table.num_rows), 1 << 20):
            yield table.slice(start, 1 << 20)


def _checked(table: Any) -> Any:
    """Dictionaries with 32-bit codes (partitions may differ in theirs), and no point without a place."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for i, f in enumerate(table.schema):
        if pa.types.is_dictionary(f.type):
            text = pa.types.is_string(f.type.value_type) or pa.types.is_large_string(f.type.value_type)
            plain = pa.string() if text or pa.types.is_null(f.type.value_type) else f.type.value_type
            if f.type != pa.dictionary(pa.int32(), plain):
                table = table.set_column(i, f.name, _with_codes(table.column(i), plain))
        elif pa.types.is_large_string(f.type) or pa.types.is_null(f.type):
            table = table.set_column(i, f.name, table.column(i).cast(pa.string()))
    for axis in ("x", "y"):
        column = table.column(axis)
        bad = column.null_count
        if pa.types.is_floating(column.type):
            bad += pc.sum(pc.invert(pc.is_finite(column.drop_null()))).as_py() or 0
        if bad:
            raise InputError(f"{bad} points have no {axis} coordinate", fix="drop them before writing")
    return table


def _with_codes(column: Any, values: Any) -> Any:
    """A dictionary column with 32-bit codes and values of a type, without a look at the rows."""
    import pyarrow as pa

    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), chunk.dictionary.cast(values))
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, type=pa.dictionary(pa.int32(), values))


def _concat(tables: list[Any]) -> Any:
    import pyarrow as pa

    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _codes(table: Any, cell: float) -> np.ndarray:
    return morton(table.column("x").to_numpy(), table.column("y").to_numpy(), cell=cell)


def _sort(table: Any, cell: float) -> Any:
    import pyarrow as pa

    order = np.argsort(_codes(table, cell), kind="stable")
    return table.take(pa.array(order))


class _Buckets:
    """Temporary files, one or more per square, in order of arrival; squares that are too full are parted again."""

    def __init__(self, scratch: Path, cell: float, shift: int | None = None) -> None:
        self._scratch, self._cell = scratch, cell
        self._shift, self._whole = _BUCKET_SHIFT if shift is None else shift, shift is None
        self._files: dict[int, list[Path]] = {}
        self._count = 0
        scratch.mkdir(parents=True, exist_ok=True)

    def add(self, table: Any) -> None:
        import pyarrow as pa

        codes = _codes(table, self._cell) >> np.uint64(self._shift)
        order = np.argsort(codes, kind="stable")
        codes = codes[order]
        table = table.take(pa.array(order))
        starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
        for start, stop in zip(starts, np.r_[starts[1:], len(codes)], strict=True):
            self._append(int(codes[start]), table.slice(start, stop - start))
        while self._whole and len(self._files) > _MOST_BUCKETS:  # the parts of one square are few
            self._coarsen()

    def _append(self, bucket: int, table: Any) -> None:
        import pyarrow as pa

        # A file a piece: Arrow streams cannot be continued, and open writers would run into the limit on files.
        file = self._scratch / f"{self._count}.arrow"
        self._count += 1
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        self._files.setdefault(bucket, []).append(file)

    def _coarsen(self) -> None:
        self._shift += 2
        merged: dict[int, list[Path]] = {}
        for bucket, found in self._files.items():
            merged.setdefault(bucket >> 2, []).extend(found)
        # Pieces were numbered as they came, and ties must keep that order.
        self._files = {b: sorted(f, key=lambda p: int(p.stem)) for b, f in merged.items()}

    def tables(self) -> Iterator[Any]:
        """Rows of each square, in the order of squares."""
        for bucket in sorted(self._files):
            files = self._files[bucket]
            if self._shift and sum(_rows(file) for file in files) > _IN_MEMORY_ROWS:
                finer = _Buckets(self._scratch / str(bucket), self._cell, max(0, self._shift - _FINER))
                for file in files:
                    finer.add(_taken(file))
                yield from finer.tables()
            else:
                yield _concat([_taken(file) for file in files])


def _rows(file: Path) -> int:
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        return sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))


def _taken(file: Path) -> Any:
    """The rows of a temporary file, which is removed."""
    import pyarrow as pa

    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    file.unlink()
    return table


def _in_groups(tables: Iterable[Any], rows: int) -> Iterator[Any]:
    import pyarrow as pa

    kept: Any = None
    begun = False
    for table in tables:
        kept = table if kept is None else pa.concat_tables([kept, table])
        start = 0
        while kept.num_rows - start >= rows:
            yield kept.slice(start, rows)
            start, begun = start + rows, True
        kept = kept.slice(start)
    if kept is not None and (kept.num_rows or not begun):
        yield kept


class _Writer:
    """Part files of 64 row groups."""

    def __init__(self, folder: Path, schema: Any) -> None:
        self._folder, self._schema = folder, schema
        self._part, self._groups = -1, 0
        self._writer: Any = None
        folder.mkdir()

    def write(self, table: Any) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None or self._groups == _GROUPS_PER_FILE:
            self.close()
            self._part, self._groups = self._part + 1, 0
            file = self._folder / f"part.{self._part}.parquet"
            # A dictionary of coordinates costs a third of the time and is thrown away.
            repeated = [f.name for f in self._schema if not pa.types.is_floating(f.type)]
            options = {"compression": "zstd", "compression_level": 1, "use_dictionary": repeated}
            self._writer = pq.ParquetWriter(file, _with_pandas(self._schema), **options)
        self._writer.write_table(table.cast(self._schema).combine_chunks(), row_group_size=ROW_GROUP)
        self._groups += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _with_pandas(schema: Any) -> Any:
    """The schema with pandas metadata, from which dask knows the categorical columns."""
    import pyarrow as pa

    empty = schema.empty_table().to_pandas()
    return schema.with_metadata(pa.Schema.from_pandas(empty, preserve_index=False).metadata)


def _skeleton(element: Any, store: Path, *, name: str) -> Path:
    """Let spatialdata write its metadata for the same points without their rows."""
    import dask.dataframe as dd
    from spatialdata import SpatialData
    from spatialdata.models import PointsModel
    from spatialdata.transformations import get_transformation

    from .files import remove

    rows = element._meta.iloc[:0].reset_index(drop=True)
    for column in rows.columns[rows.dtypes == "category"]:
        # Unknown categories would make spatialdata compute them over all rows.
        rows[column] = rows[column].astype(str).astype("category")
    empty = dd.from_pandas(rows, npartitions=1)
    attrs = element.attrs.get("spatialdata_attrs", {})
    options = {k: attrs[k] for k in ("feature_key", "instance_key") if k in attrs}
    tiny = PointsModel.parse(
        empty,
        coordinates={a: a for a in ("x", "y", "z") if a in element.columns},
        transformations=dict(get_transformation(element, get_all=True)),
        **options,
    )
    SpatialData(points={name: tiny}).write(store)
    folder = store / "points" / name
    remove(folder / "points.parquet")
    return folder


def window(sdata: Any, name: str, box_um: tuple[float, float, float, float], *, columns: Any = None) -> Any:
    """See `stainseq.store.read_points_window`."""
    import pyarrow.dataset as ds

    if name not in sdata.points:
        raise MissingError(f"no points named {name!r}", fix=f"one of: {', '.join(sorted(sdata.points)) or 'none'}")
    element = sdata.points[name]
    matrix = to_um(element)
    matrix = np.eye(3) if matrix is None else matrix
    low, high = _own_box(matrix, box_um)
    x, y = ds.field("x"), ds.field("y")
    pick = (x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1])
    wanted = list(element.columns) if columns is None else list(columns)
    missing = [c for c in wanted if c not in element.columns]
    if missing:
        raise MissingError(
            f"points {name!r} have no column {missing[0]!r}", fix=f"one of: {', '.join(element.columns)}"
        )
    read = list(dict.fromkeys(["x", "y", *wanted]))
    stored = dataset(sdata, name)
    if stored is not None:
        table = stored.to_table(columns=read, filter=pick)
    else:
        table = _as_arrow(element[read].compute()).filter(pick)
    return _in_um(table, matrix, box_um).select(wanted)


def _own_box(matrix: np.ndarray, box: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    corners = np.array([[box[i], box[j], 1.0] for i in (0, 2) for j in (1, 3)])
    own = (corners @ np.linalg.inv(matrix).T)[:, :2]
    return own.min(0), own.max(0)


def _in_um(table: Any, matrix: np.ndarray, box: tuple[float, float, float, float]) -> Any:
    """Points in microns, cut to the box where the transformation turns it."""
    import pyarrow as pa

    if np.array_equal(matrix, np.eye(3)):
        return table
    xy = np.stack([table.column("x").to_numpy(), table.column("y").to_numpy()], axis=1).astype(float)
    xy = xy @ matrix[:2, :2].T + matrix[:2, 2]
    for i, axis in enumerate("xy"):
        table = table.set_column(table.schema.get_field_index(axis), axis, pa.array(xy[:, i]))
    inside = (xy[:, 0] >= box[0]) & (xy[:, 0] <= box[2]) & (xy[:, 1] >= box[1]) & (xy[:, 1] <= box[3])
    return table if inside.all() else table.filter(pa.array(inside))


def content_of(element: Any, scratch: Path) -> str:
    """Fingerprint that points would have, once written."""
    running = None
    for table in sorted_tables(element, cell=_CELL_UM / um_per_unit(element), scratch=scratch):
        running = content.Columns(table.schema) if running is None else running
        running.update(table)
    return running.digest(content.transformations(element))  # type: ignore[union-attr]
