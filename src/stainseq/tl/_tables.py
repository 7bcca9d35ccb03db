"""Expression tables that analyses take and give back: of a slide, of an AnnData, of a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from .._files import write_file
from ..errors import FormatError, InputError, MissingError

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame
    from spatialdata import SpatialData

_STANDARD = {"format_version", "package_version", "step", "parameters", "inputs", "created", "content", "history"}


@dataclass
class Expression:
    """A table, where it came from, and the rows that are meant.

    Parameters
    ----------
    table
        The whole table; results are written into it.
    rows
        int64, rows of the sample that was asked for (all without one).
    sdata, name
        Slide and name of the table in it, where it came from one.
    layer
        Layer that is read; None is X.
    """

    table: AnnData
    rows: np.ndarray
    sdata: SpatialData | None
    name: str | None
    layer: str | None

    @property
    def values(self) -> Any:
        """[rows, genes], as it is stored."""
        values = self.table.X if self.layer is None else self.table.layers[self.layer]
        return values if len(self.rows) == self.table.n_obs else values[self.rows]

    @property
    def coordinates(self) -> np.ndarray:
        """float64 [rows, 2], um."""
        return np.asarray(self.table.obsm[keys.SPATIAL], dtype=np.float64)[self.rows, :2]

    @property
    def where(self) -> str:
        """The table as messages name it."""
        if self.sdata is None:
            return "the table"
        return f"table {self.name!r} of {self.sdata.path or 'the slide'}"

    def column(self, values: np.ndarray, *, fill: Any = np.nan) -> np.ndarray:
        """Values of the rows that are meant, spread over all rows."""
        if len(self.rows) == self.table.n_obs:
            return values
        out = np.full(self.table.n_obs, fill, dtype=np.result_type(values.dtype, type(fill)))
        out[self.rows] = values
        return out

    def save(self, *, step: str, parameters: dict[str, Any], out: str | os.PathLike[str] | None) -> None:
        """Write the changed table: into its slide, or to a new file. An AnnData that was given is changed in place.

        Earlier stamps are kept under "history", and facts that the table carries (units, encoder) stay.
        """
        if out is not None:
            write_file(out, lambda path: self.table.write_h5ad(path))
            return
        if self.sdata is None or self.name is None:
            return
        from .. import store

        earlier = store.stamp_of(self.sdata, self.name) or {}
        more = {k: v for k, v in earlier.items() if k not in _STANDARD}
        history = [*earlier.pop("history", [])]
        if earlier and earlier.get("step") != step:
            history.append(
                {k: earlier[k] for k in ("step", "parameters", "package_version", "created") if k in earlier}
            )
        store.write_element(
            self.sdata,
            self.name,
            self.table,
            step=step,
            parameters=parameters,
            inputs=earlier.get("inputs"),
            more={**more, "history": history},
        )


def expression(
    data: Any,
    *,
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    sample: str | None = None,
) -> Expression:
    """Find the table that is meant.

    Parameters
    ----------
    data
        AnnData, SpatialData, or the path of an h5ad file or a store.
    region
        With a slide: its counts table is taken, or else its only prediction table.
    table_key
        Name of the table, instead of `region`.
    layer
        Layer instead of X.
    sample
        Value of ``obs["sample"]``, needed where there are several.

    Raises
    ------
    MissingError
        No such table, layer, sample or coordinates.
    InputError
        Several samples and none named; an empty table; duplicate ids.
    """
    from anndata import AnnData

    if isinstance(data, (str, os.PathLike)):
        data = open_path(data)
    if isinstance(data, AnnData):
        found = Expression(data, np.arange(data.n_obs), None, None, layer)
    else:
        name = table_key or _only_table(data, region)
        if name not in data.tables:
            raise MissingError(f"no table {name!r}", where=data.path, fix=f"one of: {', '.join(data.tables) or 'none'}")
        found = Expression(data.tables[name], np.arange(data.tables[name].n_obs), data, name, layer)
    table = found.table
    if keys.SPATIAL not in table.obsm:
        raise MissingError("no coordinates", where=found.where, fix='put x and y into obsm["spatial"], in um')
    if layer is not None and layer not in table.layers:
        there = ", ".join(table.layers) or "none"
        raise MissingError(f"no layer {layer!r}", where=found.where, fix=f"layers there: {there}")
    if not table.n_obs or not table.n_vars:
        raise InputError(f"the table is empty ({table.n_obs} x {table.n_vars})", where=found.where)
    if not table.obs_names.is_unique or not table.var_names.is_unique:
        raise InputError(
            "ids or gene names occur twice",
            where=found.where,
            fix="make them unique first (obs_names_make_unique, var_names_make_unique)",
        )
    found.rows = _rows(table, sample, found.where)
    return found


def open_path(path: str | os.PathLike[str]) -> Any:
    """Open an h5ad file or a slide store."""
    path = Path(path)
    if path.suffix != ".h5ad":
        from .. import store

        return store.open(path)
    import anndata

    if not path.is_file():
        raise MissingError("no such file", where=path, fix="check the path")
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as e:
        raise FormatError(f"not an AnnData file, or damaged ({e})", where=path, fix="write it again") from e


def check_options(function: Callable[..., Any], name: str, options: dict[str, Any], *, given: set[str]) -> None:
    """Refuse options that a method does not have, instead of failing somewhere inside it.

    Parameters
    ----------
    function
        The plug-in's function.
    name
        Its name.
    options
        What the user asked for.
    given
        Parameters that are not the user's to set.

    Raises
    ------
    InputError
        An unknown option; the message lists those there are.
    """
    import inspect

    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [p for p, value in parameters.items() if value.kind is value.KEYWORD_ONLY and p not in given]
    wrong = [o for o in options if o not in known]
    if wrong:
        raise InputError(f"{name} has no option {', '.join(wrong)}", fix=f"its options: {', '.join(known) or 'none'}")


def keep_source(data: Any, *outputs: str | os.PathLike[str] | None) -> None:
    """Refuse to write results over the file that they are computed from: a user's own file is never changed.

    Parameters
    ----------
    data
        What the user gave; only paths are looked at.
    outputs
        Where results shall go; None is nowhere.

    Raises
    ------
    InputError
        An output is the source itself, also by another name (a link, a relative path).
    """
    if not isinstance(data, (str, os.PathLike)) or not Path(data).exists():
        return
    for out in outputs:
        if out is not None and Path(out).exists() and os.path.samefile(data, out):
            raise InputError("results would replace the file they come from", where=out, fix="name another file")


def write_csv(frame: DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table; the file appears under its name only when it is complete."""
    write_file(path, lambda staged: frame.to_csv(staged, index=False))


def _only_table(sdata: SpatialData, region: str) -> str:
    name = keys.counts(region)
    if name in sdata.tables:
        return name
    predicted = [t for t in sdata.tables if t.startswith("pred_") and t.endswith(f"_{region}")]
    if len(predicted) == 1:
        return predicted[0]
    there = ", ".join(sdata.tables) or "none"
    raise MissingError(
        f"no table {name!r}" + (", and several predictions" if predicted else ""),
        where=sdata.path,
        fix=f"name one by table_key (--table-key); tables there: {there}",
    )


def _rows(table: AnnData, sample: str | None, where: str) -> np.ndarray:
    if keys.SAMPLE not in table.obs:
        if sample is not None:
            raise MissingError(f"no sample {sample!r}", where=where, fix='the table has no obs["sample"]: leave it out')
        return np.arange(table.n_obs)
    names = table.obs[keys.SAMPLE].astype(str).to_numpy()
    there = sorted(set(names))
    if sample is None:
        if len(there) > 1:
            raise InputError(
                f"the table holds {len(there)} samples", where=where, fix=f"name one: sample= {', '.join(there)}"
            )
        return np.arange(table.n_obs)
    if sample not in there:
        raise MissingError(f"no sample {sample!r}", where=where, fix=f"one of: {', '.join(there)}")
    return np.flatnonzero(names == sample)
