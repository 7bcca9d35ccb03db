"""Points per region as tables."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .. import keys
from .._settings import settings
from ..core.aggregate import Counter
from ..core.grids import project
from ..errors import InputError, MissingError
from ..store.points import scan, to_um
from .model import Region

_BATCH_ROWS = 1 << 19


def aggregate(
    sdata: Any,
    region: Region,
    points: str,
    *,
    value_column: str,
    keep: Any,
    weight_column: str | None,
    overlap: str,
    n_jobs: int | None,
) -> Any:
    """See `stainseq.regions.aggregate`."""
    if points not in sdata.points:
        raise MissingError(f"no points named {points!r}", fix=f"one of: {', '.join(sorted(sdata.points)) or 'none'}")
    element = sdata.points[points]
    for column in filter(None, (value_column, weight_column)):
        if column not in element.columns:
            raise MissingError(
                f"points {points!r} have no column {column!r}", fix=f"one of: {', '.join(map(str, element.columns))}"
            )
    matrix = to_um(element)
    wanted = list(dict.fromkeys(["x", "y", value_column, *([weight_column] if weight_column else [])]))
    values, total = _values(sdata, points, value_column)
    counter = Counter(len(region), len(values))
    order = {v: i for i, v in enumerate(values)}
    seen = {"counted": 0, "outside": 0}

    def locate(batch: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
        xy = np.column_stack([np.asarray(batch.column("x")), np.asarray(batch.column("y"))]).astype(np.float64)
        xy = xy if matrix is None else project(matrix, xy)
        codes = _codes(batch.column(value_column), order)
        weights = np.asarray(batch.column(weight_column), dtype=np.float64) if weight_column else None
        if overlap == "first":
            return region.geometry.assign(xy), codes, weights, len(xy)
        at, regions = region.geometry.members(xy)
        return regions, codes[at], None if weights is None else weights[at], len(xy)

    for regions, codes, weights, n in _in_order(
        locate, scan(sdata, points, columns=wanted, keep=keep, rows=_BATCH_ROWS), n_jobs or settings.n_jobs
    ):
        counter.add(regions, codes, weights)
        counted = int(np.count_nonzero(regions >= 0))
        seen["counted"] += counted
        seen["outside"] += n - counted if overlap == "first" else 0
        total -= n
    counts = counter.matrix(np.float64 if weight_column else np.int32)
    made = table(region, counts, var_names=values)
    made.uns["aggregate"] = {**seen, "left_out": int(total), "points": points, "value_column": value_column}
    return made


def _values(sdata: Any, points: str, column: str) -> tuple[list[str], int]:
    """Distinct values of a column, sorted, and the number of rows."""
    import pyarrow.compute as pc

    found: set[str] = set()
    rows = 0
    for batch in scan(sdata, points, columns=[column]):
        part = batch.column(column)
        part = part.dictionary if hasattr(part, "dictionary") else pc.unique(part)
        found.update(_text(v) for v in part.to_pylist() if v is not None)
        rows += batch.num_rows
    return sorted(found), rows


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _codes(column: Any, order: dict[str, int]) -> np.ndarray:
    """Position of each value among the sorted ones; -1 for null."""
    import pyarrow as pa

    column = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    table = np.array([order.get(_text(v), -1) for v in column.dictionary.to_pylist()] + [-1], dtype=np.int64)
    return table[np.asarray(column.indices.fill_null(len(table) - 1))]


def _in_order(work: Any, batches: Iterator[Any], n_jobs: int) -> Iterator[Any]:
    """Results in the order of the batches, with few batches in memory."""
    pending: list[Any] = []
    with ThreadPoolExecutor(max(1, n_jobs)) as pool:
        for batch in batches:
            pending.append(pool.submit(work, batch))
            if len(pending) > n_jobs:
                yield pending.pop(0).result()
        for done in pending:
            yield done.result()


def table(region: Region, X: Any, *, var_names: Any, obs: Any = None) -> Any:
    """See `stainseq.regions.table`."""
    import anndata as ad
    import pandas as pd
    from spatialdata.models import TableModel

    if X.shape[0] != len(region):
        raise InputError(f"{X.shape[0]} rows for {len(region)} regions", where=region.name, fix="one row per region")
    index = pd.Index(region.ids, dtype=object)
    frame = pd.DataFrame(index=index) if obs is None else pd.DataFrame(obs)
    frame = frame.set_axis(index, axis=0)
    frame[keys.REGION_KEY] = pd.Categorical.from_codes(np.zeros(len(region), np.int8), categories=[region.name])
    frame[keys.INSTANCE_KEY] = region.instances
    made = ad.AnnData(X, obs=frame, var=pd.DataFrame(index=pd.Index(list(var_names), dtype=object)))
    made.obsm[keys.SPATIAL] = region.centres_um
    return TableModel.parse(made, region=region.name, region_key=keys.REGION_KEY, instance_key=keys.INSTANCE_KEY)
