"""Transcripts, streamed: filtered by quality and kind while they are read, never all in memory from Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FormatError, InputError
from ._xenium import UNASSIGNED

if TYPE_CHECKING:
    from dask.dataframe import DataFrame

_KEPT = ("transcript_id", "overlaps_nucleus", "nucleus_distance", "fov_name", "codeword_category")
_BLOCK = 1 << 20
_SAMPLED_GROUPS = 8
_CONTROL = r"^(BLANK|NegControl|UnassignedCodeword|DeprecatedCodeword|Intergenic_Region|GenomicControl|antisense_)"


@dataclass(frozen=True)
class Wanted:
    """Which transcripts are kept.

    Parameters
    ----------
    min_qv
        Least quality; Xenium's own matrix counts 20 and above.
    controls
        Control probes and codewords, too.
    genes
        Names of the panel's genes, for files that do not say which features are; None goes by the names of controls.
    """

    min_qv: float
    controls: bool = False
    genes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Survey:
    """What a first look at two or three columns tells.

    Parameters
    ----------
    total, kept
        Transcripts in the file, and those that are wanted.
    names
        Features of those that are wanted, sorted.
    tells_genes
        The file says of each whether it is a gene.
    """

    total: int
    kept: int
    names: tuple[str, ...]
    tells_genes: bool = False


def open_transcripts(
    path: Path, wanted: Wanted, *, extent: tuple[str, np.ndarray] | None = None
) -> tuple[DataFrame, Survey]:
    """Transcripts as a dask DataFrame: x, y, z (um), feature_name, cell_id, qv and what else there is.

    Parameters
    ----------
    path
        transcripts.parquet (read part by part), or transcripts.csv.gz (which cannot be, and is held in memory after
        the filter, some 80 bytes a transcript).
    wanted
        Which.
    extent
        Name and box (min_x, min_y, max_x, max_y) um of what most of them must lie in; a sample is looked at.

    Raises
    ------
    FormatError
        Truncated, damaged, or without a column.
    InputError
        None of the quality that is wanted; or they lie elsewhere, as they do in pixels or in another run's frame.
    """
    import dask.dataframe as dd
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    with _as_format_errors(path):
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                _check_columns(schema.names, path)
                survey = _survey(_columns_of(file, wanted), wanted)
                _check_place(_sample(file), extent, path)
                parts = _parts(file.metadata)
            source: Any = path
        else:
            with pc.open_csv(path) as reader:
                _check_columns(reader.schema.names, path)
                source, total = _filtered(reader, wanted)
            survey = Survey(total, source.num_rows, _survey([source], wanted).names)
            _check_place([source], extent, path)
            schema = source.schema
            parts = [(i, _BLOCK) for i in range(0, max(1, source.num_rows), _BLOCK)]
    if survey.total and not survey.kept:
        raise InputError(
            f"none of {survey.total} transcripts is wanted (quality {wanted.min_qv:g} or more)",
            where=path,
            fix="lower it by --min-qv 0, or leave transcripts out by --option transcripts=false",
        )
    survey = replace(survey, tells_genes="is_gene" in schema.names)
    options = {"source": source, "wanted": wanted, "names": survey.names}
    meta = _as_pandas(_select(schema.empty_table(), wanted), survey.names)
    return dd.from_map(_part, parts, meta=meta, **options), survey


@contextmanager
def _as_format_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, OSError, EOFError) as e:
        raise FormatError(
            f"the transcripts cannot be read ({e}): truncated or damaged", where=path, fix="copy the bundle again"
        ) from e


def _check_columns(names: list[str], path: Path) -> None:
    absent = [c for c in ("feature_name", "x_location", "y_location", "qv") if c not in names]
    if absent:
        raise FormatError(f"no column {', '.join(absent)}", where=path, fix=f"columns here: {', '.join(names)}")


def _sample(file: Any) -> Iterator[Any]:
    """Places in some row groups over the whole file."""
    groups = file.metadata.num_row_groups
    for i in sorted({int(i) for i in np.linspace(0, groups - 1, min(groups, _SAMPLED_GROUPS))}):
        yield file.read_row_group(i, columns=["x_location", "y_location"])


def _check_place(tables: Iterable[Any], extent: tuple[str, np.ndarray] | None, path: Path) -> None:
    inside = total = 0
    if extent is None:
        return
    name, box = extent
    for table in tables:
        xy = np.column_stack([table.column(f"{a}_location").to_numpy() for a in "xy"])
        inside += int(((xy >= box[:2]) & (xy <= box[2:])).all(axis=1).sum())
        total += len(xy)
    if inside < 0.5 * total:
        raise InputError(
            f"{inside / total:.0%} of the transcripts lie in {name}, which spans {box[0]:.0f} to {box[2]:.0f} and "
            f"{box[1]:.0f} to {box[3]:.0f} um",
            where=path,
            fix="they belong to another run or are in pixels: give microns, or leave them out by "
            "--option transcripts=false",
        )


def _columns_of(file: Any, wanted: Wanted) -> Iterator[Any]:
    columns = ["qv", "feature_name"]
    columns += ["is_gene"] if not wanted.controls and "is_gene" in file.schema_arrow.names else []
    import pyarrow as pa

    for batch in file.iter_batches(batch_size=_BLOCK, columns=columns):
        yield pa.Table.from_batches([batch])


def _survey(tables: Iterable[Any], wanted: Wanted) -> Survey:
    import pyarrow as pa
    import pyarrow.compute as pc

    total = kept = 0
    names: set[str] = set()
    for table in tables:
        total += table.num_rows
        chosen = _select(table, wanted)
        kept += chosen.num_rows
        names |= set(pc.unique(chosen.column("feature_name")).cast(pa.string()).to_pylist())
    return Survey(total, kept, tuple(sorted(n for n in names if n is not None)))


def _filtered(reader: Any, wanted: Wanted) -> tuple[Any, int]:
    import pyarrow as pa

    kept, total = [], 0
    for batch in reader:
        total += batch.num_rows
        kept.append(_select(pa.Table.from_batches([batch]), wanted))
    return (pa.concat_tables(kept) if kept else reader.schema.empty_table()), total


def _parts(metadata: Any) -> list[Any]:
    """Row groups as (number, None), large ones (the oldest runs have one of all rows) in pieces as (number, first)."""
    found: list[Any] = []
    for i in range(metadata.num_row_groups):
        rows = metadata.row_group(i).num_rows
        found += [(i, None)] if rows <= 2 * _BLOCK else [(i, first) for first in range(0, rows, _BLOCK)]
    return found or [None]


_open_groups: dict[tuple[Path, int, int], Iterator[Any]] = {}
"""Readers of large row groups by file, number and the row they stand at: whoever asks for that row goes on with it."""


def _piece(path: Path, group: int, first: int) -> Any:
    """Rows of a large row group, which can only be read from its start on."""
    import pyarrow as pa

    batches = _open_groups.pop((path, group, first), None)
    if batches is None:
        _open_groups.clear()
        batches = _batches(path, group)
        for _ in range(first // _BLOCK):
            next(batches)
    table = pa.Table.from_batches([next(batches)])
    _open_groups[path, group, first + _BLOCK] = batches
    return table


def _batches(path: Path, group: int) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_BLOCK, row_groups=[group])


def _part(part: Any, source: Any, wanted: Wanted, names: tuple[str, ...]) -> Any:
    """A row group or piece of one, or rows of a table that is in memory, as pandas."""
    import pyarrow.parquet as pq

    if not isinstance(source, Path):
        table = source.slice(*part)
    elif part is None:
        table = pq.read_schema(source).empty_table()
    else:
        with _as_format_errors(source):
            if part[1] is not None:
                table = _piece(source, *part)
            else:
                with pq.ParquetFile(source) as file:
                    table = file.read_row_group(part[0])
    return _as_pandas(_select(table, wanted), names)


def _as_pandas(table: Any, names: tuple[str, ...]) -> Any:
    import pandas as pd

    table = _plain(table)
    features = table.column("feature_name").dictionary_encode().combine_chunks()
    frame = table.drop_columns(["feature_name"]).to_pandas(types_mapper=_types)
    kind = _category(names)
    place = kind.categories.get_indexer(features.dictionary.to_pylist())
    codes = np.r_[place, -1][features.indices.fill_null(len(place)).to_numpy(zero_copy_only=False)]
    at = [c for c in "xyz" if c in frame.columns]
    frame.insert(len(at), "feature_name", pd.Categorical.from_codes(codes, dtype=kind))
    return frame


@lru_cache(maxsize=2)
def _category(names: tuple[str, ...]) -> Any:
    import pandas as pd

    return pd.CategoricalDtype(list(names))


def _types(kind: Any) -> Any:
    """Text stays Arrow's: pandas' objects would take five times the memory."""
    import pandas as pd
    import pyarrow as pa

    return pd.ArrowDtype(kind) if pa.types.is_string(kind) else None


def _select(table: Any, wanted: Wanted) -> Any:
    """Rows that are wanted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    keep = pc.greater_equal(table.column("qv"), wanted.min_qv)
    if wanted.controls:
        return table.filter(keep)
    names = table.column("feature_name")
    if "is_gene" in table.column_names:
        keep = pc.and_(keep, table.column("is_gene"))
    elif wanted.genes is not None:
        # Names are compared in the file's own type: bytes in the oldest runs.
        keep = pc.and_(keep, pc.is_in(names, value_set=pa.array(wanted.genes, type=pa.string()).cast(names.type)))
    else:
        keep = pc.and_(keep, pc.invert(pc.match_substring_regex(names.cast(pa.string()), _CONTROL)))
    return table.filter(keep)


def _plain(table: Any) -> Any:
    """Columns as every version gets them: names, types, one word for "in no cell"."""
    import pyarrow as pa
    import pyarrow.compute as pc

    out = {}
    for axis in ("x", "y", "z"):
        if f"{axis}_location" in table.column_names:
            out[axis] = table.column(f"{axis}_location").cast(pa.float32())
    out["feature_name"] = table.column("feature_name").cast(pa.string())
    if "cell_id" in table.column_names:
        ids = table.column("cell_id").cast(pa.string())
        nowhere = pc.or_kleene(pc.is_null(ids), pc.is_in(ids, value_set=pa.array(["-1", ""])))
        out["cell_id"] = pc.if_else(nowhere, UNASSIGNED, ids)
    out["qv"] = table.column("qv").cast(pa.float32())
    for name in _KEPT:
        if name in table.column_names:
            column = table.column(name)
            text = pa.types.is_binary(column.type) or pa.types.is_large_string(column.type)
            out[name] = column.cast(pa.string()) if text else column
    return pa.table(out)
