"""Expression tables that analyses take and give back: of a slide, of an AnnData, of a file."""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys, tables
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
    samples
        Rows of each sample that is meant, by name; one entry named "" where the table names none.
    file
        The h5ad file that the table was opened from with its matrices left in it; None otherwise.
    given
        The path that the user gave; None for objects.
    """

    table: AnnData
    rows: np.ndarray
    sdata: SpatialData | None
    name: str | None
    layer: str | None
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    file: Path | None = None
    given: Path | None = None

    @property
    def matrix(self) -> Any:
        """[all rows, genes], as it is stored."""
        return self.table.X if self.layer is None else self.table.layers[self.layer]

    @property
    def values(self) -> Any:
        """[rows, genes], as it is stored."""
        return self.matrix if len(self.rows) == self.table.n_obs else self.matrix[self.rows]

    @property
    def predicted(self) -> bool:
        """Whether the values were predicted from images."""
        stamp = self.table.uns.get(keys.STAMP)
        step = stamp.get("step") if isinstance(stamp, dict) else None
        return str(step) == "predict" or (self.name or "").startswith("pred_")

    @property
    def coordinates(self) -> np.ndarray:
        """float64 [rows, 2], um."""
        return np.asarray(self.table.obsm[keys.SPATIAL], dtype=np.float64)[self.rows, :2]

    @property
    def where(self) -> str:
        """The table as messages name it."""
        if self.sdata is None:
            return "the table" if self.given is None else str(self.given)
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
        if out is not None and self.file is not None:
            from ._lazy import copy_with_results

            source = self.file
            write_file(out, lambda path: copy_with_results(source, path, self.table))
            return
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
    sample: str | Sequence[str] | None = None,
    several: bool = False,
    max_gb: float | None = None,
) -> Expression:
    """Find the table that is meant.

    Parameters
    ----------
    data
        AnnData, MuData, SpatialData, or the path of an h5ad file, an h5mu file or a store.
    region
        With a slide: its counts table is taken, or else its only prediction table.
    table_key
        Name of the table, instead of `region`; with a MuData, of the modality.
    layer
        Layer instead of X.
    sample
        Value of ``obs["sample"]``, needed where there are several and the method takes one.
    several
        Whether the method takes several samples: `sample` may then be a list, and None is all of them.
    max_gb
        With a path, matrices larger than half of this stay on disk, as Dask arrays; None reads everything.

    Raises
    ------
    MissingError
        No such table, layer, sample or coordinates.
    InputError
        Several samples for a method that takes one; an empty table; duplicate ids.
    """
    from anndata import AnnData

    path = Path(data) if isinstance(data, (str, os.PathLike)) else None
    if path is not None:
        data = open_path(path, max_gb=max_gb, modality=table_key)
    elif tables.is_mudata(data):
        data = tables.modality(data, name=table_key)
    if isinstance(data, AnnData):
        found = Expression(data, np.arange(data.n_obs), None, None, layer, given=path)
        if hasattr(found.table.X, "dask") or any(hasattr(v, "dask") for v in data.layers.values()):
            found.file = path
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
        ids = not table.obs_names.is_unique
        names = table.obs_names if ids else table.var_names
        twice = names[names.duplicated()].unique()
        told = ", ".join(map(str, twice[:5])) + (", ..." if len(twice) > 5 else "")
        raise InputError(
            f"{'ids' if ids else 'gene names'} that occur twice: {told}",
            where=found.where,
            fix=f"make them unique first ({'obs' if ids else 'var'}_names_make_unique)",
        )
    found.samples = _samples(table, sample, found.where, several=several)
    found.rows = np.sort(np.concatenate(list(found.samples.values())))
    return found


def open_path(path: str | os.PathLike[str], *, max_gb: float | None = None, modality: str | None = None) -> Any:
    """Open an h5ad or h5mu file or a slide store.

    Parameters
    ----------
    path
        File or folder; ``X.h5mu/NAME`` is a modality.
    max_gb
        Matrices of h5ad files and stores that are larger than half of this stay on disk, as Dask arrays; None reads
        everything.
    modality
        Of an h5mu file; default the only one, or the only one with coordinates.
    """
    file, _ = tables.split_modality(path)
    if file.suffix == tables.H5AD and file.is_file() and max_gb is not None:
        import h5py

        from ..store import matrices

        try:
            with h5py.File(file) as opened:
                if matrices.largest_matrix(opened) > max_gb * 2**29:
                    return matrices.read_table(opened, max_bytes=max_gb * 2**29)
        except (OSError, KeyError, ValueError) as e:
            raise FormatError(f"not an AnnData file, or damaged ({e})", where=file, fix="write it again") from e
    if file.suffix in (tables.H5AD, tables.H5MU):
        return tables.open_path(path, modality=modality)
    return _open_store(file, max_gb)


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
        An unknown option (the message lists those there are), or one that is plainly of another type.
    """
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [p for p, value in parameters.items() if value.kind is value.KEYWORD_ONLY and p not in given]
    wrong = [o for o in options if o not in known]
    if wrong:
        here = [f"{o} is {_ELSEWHERE[o]} here" for o in wrong if o in _ELSEWHERE]
        told = f"its options: {', '.join(known) or 'none'}"
        raise InputError(f"{name} has no option {', '.join(wrong)}", fix="; ".join([*here, told]))
    for option, value in options.items():
        wanted = _wanted(parameters[option].annotation, value)
        if wanted:
            raise InputError(f"{option} is {value!r}", where=name, fix=f"give {wanted}")


_ELSEWHERE = {
    "key_added": "key", "n_clusters": "n_domains", "num_pcs": "n_components", "pca_n_comps": "n_components",
    "max_epochs": "epochs", "res_start": "resolution", "res_step": "step", "knn_k": "graph_k",
    "refine_shape": "layout", "shape": "layout", "use_image": "image_features", "beta": "window_um (in um)",
}  # fmt: skip
"""Names of options in other packages, and ours."""

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int, np.integer), "a whole number"),
    "float": ((int, float, np.integer, np.floating), "a number"),
    "str": ((str,), "a name"),
    "bool": ((bool, np.bool_), "true or false"),
    "None": ((type(None),), "null"),
}


def _wanted(annotation: Any, value: Any) -> str:
    """What an option should be where it plainly is not; "" where it is, or where its type is not a plain one."""
    if named := re.fullmatch(r"Literal\[(.*)\]", str(annotation)):
        known = ast.literal_eval(f"({named[1]},)")
        return "" if value in known else f"one of: {', '.join(map(str, known))}"
    kinds = [k.strip() for k in str(annotation).split("|")]
    if not set(kinds) <= set(_KINDS):
        return ""
    truth = isinstance(value, (bool, np.bool_))
    if any(isinstance(value, _KINDS[k][0]) and (k == "bool" or not truth) for k in kinds):
        return ""
    return " or ".join(_KINDS[k][1] for k in kinds)


def settings(function: Callable[..., Any], options: dict[str, Any], *, given: set[str]) -> dict[str, Any]:
    """Options as they hold in a run: those that were given, and the defaults of the others that can be stored.

    Parameters
    ----------
    function, options, given
        As in `check_options`.
    """
    plain = (str, bool, int, float)
    there = inspect.signature(function).parameters.values()
    rest = {p.name: p.default for p in there if p.kind is p.KEYWORD_ONLY and p.name not in given}
    return {**{k: v for k, v in rest.items() if isinstance(v, plain)}, **options}


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
        An output is the source itself, also by another name (a link, a relative path); a table would get the name of
        a MuData.
    """
    for out in outputs:
        if out is not None and Path(out).suffix == tables.H5MU:
            raise InputError("tables with results are written as h5ad", where=out, fix="name a file .h5ad")
    if not isinstance(data, (str, os.PathLike)):
        return
    source, _ = tables.split_modality(data)
    for out in outputs:
        if out is not None and source.exists() and Path(out).exists() and os.path.samefile(source, out):
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


def _open_store(path: Path, max_gb: float | None) -> SpatialData:
    """A slide; tables with larger matrices than half of `max_gb` are opened lazily."""
    from .. import store
    from ..store import matrices

    groups = matrices.stored_tables(path) if max_gb is not None else {}
    limit = (max_gb or 0.0) * 2**29
    if not any(matrices.largest_matrix(group) > limit for group in groups.values()):
        return store.open(path)
    import spatialdata

    sdata = spatialdata.read_zarr(path, selection=("images", "labels", "points", "shapes"))
    for name, group in groups.items():
        sdata.tables[name] = matrices.read_table(group, max_bytes=limit)
    return sdata


def _samples(table: AnnData, sample: str | Sequence[str] | None, where: str, *, several: bool) -> dict[str, np.ndarray]:
    wanted = [sample] if isinstance(sample, str) else list(dict.fromkeys(sample or ()))
    if keys.SAMPLE not in table.obs:
        if wanted:
            raise MissingError(
                f"no sample {wanted[0]!r}", where=where, fix='the table has no obs["sample"]: leave it out'
            )
        return {"": np.arange(table.n_obs)}
    missing = table.obs[keys.SAMPLE].isna().to_numpy()
    names = table.obs[keys.SAMPLE].astype(str).to_numpy()
    there = sorted(set(names[~missing]))
    for name in wanted:
        if name not in there:
            raise MissingError(f"no sample {name!r}", where=where, fix=f"one of: {', '.join(there)}")
    if not several and len(wanted or there) > 1:
        how_many = f"{len(wanted)} samples are named" if wanted else f"the table holds {len(there)} samples"
        raise InputError(how_many, where=where, fix=f"name one: sample= {', '.join(there)}")
    if not wanted and missing.any():
        raise InputError(
            f"{int(missing.sum())} rows have no sample",
            where=where,
            fix='complete obs["sample"], or name the samples that are meant',
        )
    return {name: np.flatnonzero((names == name) & ~missing) for name in wanted or there}
