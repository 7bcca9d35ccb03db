"""What a table holds: sizes, values, samples, coordinates, results of ours, problems. In memory or in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import FormatError, InputError, MissingError

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame

_SLOTS = ("layers", "obsm", "varm", "obsp", "uns")
_BLOCK = 1 << 22
_WIDTH = 100


class Summary(dict[str, Any]):
    """What is known of a table: a dict for programs that shows as text to people."""

    def __repr__(self) -> str:
        return "\n".join(_lines(self))

    __str__ = __repr__


def view(data: Any, *, sample: str | None = None) -> Summary:
    """Say what a table holds: sizes, value range, samples, coordinates, results, problems.

    Parameters
    ----------
    data
        AnnData, MuData, a slide, or the path of an h5ad file, an h5mu file or a store. A file's values are streamed.
    sample
        Value of ``obs["sample"]``; then only its rows are described (in memory alone).

    Returns
    -------
    Summary
        A dict that prints as text: ``kind``, ``what``; of a table ``sizes`` (rows, genes, samples, and the names in
        each slot), ``types`` (of the columns of obs and var), ``elements`` (name, kind, holds: the matrices,
        coordinates, and the results of svg, domains, integrate, markers and metagene) and ``problems`` (in words:
        duplicate ids, no coordinates, values that are no counts, ...). Of several: ``tables`` with one such dict each.

    Raises
    ------
    MissingError
        No such file, sample or column of samples.
    FormatError
        Not such a file, or damaged.
    """
    from .. import tables

    if isinstance(data, (str, os.PathLike)):
        file, modality = tables.split_modality(data)
        if file.suffix in (tables.H5AD, tables.H5MU) and sample is None and modality is None:
            return of_file(file)
        data = tables.open_path(data)
    if tables.is_mudata(data):
        return _several({str(k): _of_anndata(v, sample) for k, v in data.mod.items()}, "MuData", "modalities")
    if hasattr(data, "tables"):
        return _several({str(k): _of_anndata(v, sample) for k, v in data.tables.items()}, "slide", "tables")
    return _of_anndata(data, sample)


def of_file(path: Path) -> Summary:
    """As `view`, of an h5ad or h5mu file; its values are streamed, never held."""
    import h5py

    if not path.is_file():
        raise MissingError("no such file", where=path, fix="check the path")
    try:
        with h5py.File(path, "r") as file:
            if "mod" in file:
                found = {str(name): _describe(_InFile(group)) for name, group in file["mod"].items()}
                return Summary({"path": str(path)} | _several(found, "MuData", "modalities"))
            return Summary({"path": str(path)} | _describe(_InFile(file)))
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise FormatError(f"not an AnnData or MuData file, or damaged ({e})", where=path, fix="write it again") from e


def _several(found: dict[str, Summary], kind: str, many: str) -> Summary:
    return Summary(
        {
            "kind": "table",
            "what": f"{kind}, {len(found)} {many}",
            "sizes": {k: f"{v['sizes']['rows']:,} x {v['sizes']['genes']:,}" for k, v in found.items()},
            "elements": [e | {"name": f"{name}/{e['name']}"} for name, one in found.items() for e in one["elements"]],
            "problems": [f"{name}: {line}" for name, one in found.items() for line in one["problems"]],
            "tables": found,
        }
    )


# ---- one table, wherever it lies -----------------------------------------------------------------------------------


@dataclass
class _Matrix:
    """Values that can be read in pieces: the stored ones of a sparse matrix, or the rows of a dense one."""

    data: Any
    shape: tuple[int, ...]
    form: str

    def pieces(self) -> Iterator[np.ndarray]:
        per_row = int(np.prod(self.data.shape[1:], dtype=np.int64)) or 1
        step = max(1, _BLOCK // per_row)
        for start in range(0, self.data.shape[0], step):
            part = self.data[start : start + step]
            part = part.compute() if hasattr(part, "compute") else part
            yield np.asarray(part.toarray() if hasattr(part, "toarray") else part)


class _InMemory:
    """An AnnData as `_describe` reads it."""

    def __init__(self, table: AnnData) -> None:
        self.table, self.obs, self.var = table, table.obs, table.var

    def names(self, slot: str) -> list[str]:
        return sorted(str(k) for k in getattr(self.table, slot))

    def matrix(self, slot: str, name: str | None = None) -> _Matrix | None:
        found = getattr(self.table, slot) if name is None else getattr(self.table, slot)[name]
        if found is None or not hasattr(found, "shape"):
            return None
        if hasattr(found, "indptr"):
            return _Matrix(found.data, found.shape, str(found.format))
        return _Matrix(found, found.shape, "table" if hasattr(found, "columns") else "dense")

    def array(self, slot: str, name: str) -> np.ndarray:
        return np.asarray(getattr(self.table, slot)[name])

    def uns(self, *path: str) -> Any:
        found: Any = self.table.uns
        for step in path:
            if not isinstance(found, Mapping) or step not in found:
                return None
            found = found[step]
        return found


class _InFile:
    """A group of an HDF5 file as `_describe` reads it."""

    def __init__(self, group: Any) -> None:
        from anndata.io import read_elem

        self.group, self._read = group, read_elem
        self.obs, self.var = (read_elem(group[slot]) for slot in ("obs", "var"))

    def names(self, slot: str) -> list[str]:
        return sorted(str(k) for k in self.group.get(slot, {}))

    def matrix(self, slot: str, name: str | None = None) -> _Matrix | None:
        if slot not in self.group:
            return None
        found = self.group[slot] if name is None else self.group[slot][name]
        kind = str(found.attrs.get("encoding-type", ""))
        if "data" in found if hasattr(found, "keys") else False:
            return _Matrix(found["data"], tuple(found.attrs["shape"]), kind.removesuffix("_matrix"))
        if hasattr(found, "keys"):  # a data frame
            columns = list(found.attrs.get("column-order", []))
            return _Matrix(np.zeros((0, len(columns))), (len(self.obs), len(columns)), "table")
        return _Matrix(found, found.shape, "dense")

    def array(self, slot: str, name: str) -> np.ndarray:
        return np.asarray(self._read(self.group[slot][name]))

    def uns(self, *path: str) -> Any:
        where = "/".join(("uns", *path))
        if where not in self.group:
            return None
        found = self.group[where]
        if hasattr(found, "keys") and found.attrs.get("encoding-type") == "dict":
            return {str(k): None for k in found}
        return self._read(found)


def _of_anndata(table: Any, sample: str | None) -> Summary:
    from anndata import AnnData

    if not isinstance(table, AnnData):
        raise InputError(f"a {type(table).__name__} is no table", fix="give an AnnData, a MuData, a slide or a path")
    if sample is not None:
        if keys.SAMPLE not in table.obs:
            raise MissingError(f"no sample {sample!r}", where="the table", fix='it has no obs["sample"]')
        rows = (table.obs[keys.SAMPLE].astype(str) == sample).to_numpy()
        if not rows.any():
            there = ", ".join(map(str, table.obs[keys.SAMPLE].unique()))
            raise MissingError(f"no sample {sample!r}", where="the table", fix=f"one of: {there}")
        table = table[rows]
    return _describe(_InMemory(table))


def _describe(source: Any) -> Summary:
    problems: list[str] = []
    elements = [*_matrices(source, problems), *_results(source)]
    rows, genes = len(source.obs), len(source.var)
    sizes: dict[str, Any] = {"rows": rows, "genes": genes}
    if keys.SAMPLE in source.obs:
        counted = source.obs[keys.SAMPLE].astype(str).value_counts(sort=False)
        sizes["samples"] = {str(k): int(v) for k, v in sorted(counted.items()) if v}
    for slot in ("obs", "var"):
        sizes[slot] = [str(c) for c in getattr(source, slot).columns]
    sizes |= {slot: source.names(slot) for slot in _SLOTS}
    _ids(source, problems)
    placed = _coordinates(source, problems)
    return Summary(
        {
            "kind": "table",
            "what": f"AnnData, {rows:,} x {genes:,}",
            "sizes": {k: v for k, v in sizes.items() if v not in ([], {}, None)},
            "types": {slot: _types(getattr(source, slot)) for slot in ("obs", "var")},
            "elements": elements[:1] + placed + elements[1:],
            "problems": problems,
        }
    )


def _types(frame: DataFrame) -> dict[str, str]:
    kinds = {"i": "int", "u": "uint", "f": "float", "b": "bool"}
    tags = {}
    for name, dtype in frame.dtypes.items():
        if str(dtype) == "category":
            tags[str(name)] = "cat"
        elif dtype.kind in kinds:
            tags[str(name)] = f"{kinds[dtype.kind]}{dtype.itemsize * 8}" if dtype.kind != "b" else "bool"
        else:
            tags[str(name)] = "text"
    return tags


def _matrices(source: Any, problems: list[str]) -> list[dict[str, str]]:
    out = []
    counts = False
    found = source.matrix("X")
    if found is None:
        out.append({"name": "X", "kind": "values", "holds": "nothing"})
    else:
        text, is_counts, wrong = _values(found)
        counts |= is_counts
        problems += [f"X {w}" for w in wrong]
        out.append({"name": "X", "kind": "values", "holds": text})
    for name in source.names("layers"):
        layer = source.matrix("layers", name)
        text, is_counts, wrong = ("not read", False, []) if layer is None else _values(layer)
        counts |= is_counts
        problems += [f"layer {name!r} {w}" for w in wrong]
        out.append({"name": name, "kind": "layer", "holds": text})
    for name in source.names("obsm"):
        array = source.matrix("obsm", name)
        if name != keys.SPATIAL and array is not None:
            wide = array.shape[1] if len(array.shape) > 1 else 1
            out.append({"name": name, "kind": "obsm", "holds": f"{wide} columns"})
    if found is not None and not counts and len(source.obs) and len(source.var):
        problems.append("no raw counts in X or a layer: tests on counts (spatialde2, spatialde, sparkx) refuse it")
    return out


def _values(matrix: _Matrix) -> tuple[str, bool, list[str]]:
    """In words; whether these are counts; what is wrong."""
    low, high, zeros, bad, whole = np.inf, -np.inf, 0, 0, True
    for piece in matrix.pieces():
        if piece.dtype.kind == "f":
            finite = np.isfinite(piece)
            bad += int(piece.size - finite.sum())
            piece = piece[finite]
            whole = whole and bool((piece == np.rint(piece)).all())
        if piece.size:
            low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        zeros += int((piece == 0).sum())
    size = int(np.prod(matrix.shape, dtype=np.int64))
    unstored = size - int(np.prod(matrix.data.shape, dtype=np.int64)) if matrix.form in ("csr", "csc") else 0
    if unstored:
        low, high = min(low, 0.0), max(high, 0.0)
    share = (zeros + unstored) / size if size else 0.0
    form = "" if matrix.form == "dense" else f" {matrix.form}"
    span = "" if not np.isfinite(low) else f", {low:.6g} to {high:.6g}"
    counts = whole and low >= 0 and not bad
    what = "counts" if counts else "whole numbers" if whole else "values"
    wrong = [f"holds {bad:,} values that are NaN or infinite"] if bad else []
    wrong += ["holds negative whole numbers, which are no counts"] if whole and low < 0 else []
    return f"{matrix.data.dtype}{form}, {what}{span}, {100 * share:.1f} % zeros", counts, wrong


def _ids(source: Any, problems: list[str]) -> None:
    for slot, what in (("obs", "ids"), ("var", "gene names")):
        index = getattr(source, slot).index
        twice = index[index.duplicated()]
        if len(twice):
            problems.append(f"{len(twice):,} {what} occur again, such as {str(twice[0])!r}: make them unique")
    if not len(source.obs) or not len(source.var):
        problems.append("the table is empty")


def _coordinates(source: Any, problems: list[str]) -> list[dict[str, str]]:
    if keys.SPATIAL not in source.names("obsm"):
        problems.append('no obsm["spatial"]: methods that need places refuse it')
        return []
    xy = source.array("obsm", keys.SPATIAL)
    if xy.ndim != 2 or xy.shape[1] < 2 or xy.dtype.kind not in "iuf":
        problems.append(f'obsm["spatial"] is {xy.dtype} {xy.shape}, not x and y')
        return []
    xy = xy[:, :2].astype(float)
    there = np.isfinite(xy).all(1)
    if not there.all():
        problems.append(f'{int((~there).sum()):,} rows have no coordinates (NaN in obsm["spatial"])')
    if not there.any():
        return []
    sample = source.obs[keys.SAMPLE].astype(str).to_numpy() if keys.SAMPLE in source.obs else np.zeros(len(xy), int)
    same, apart = 0, []
    for name in np.unique(sample[there]):
        mine = xy[there & (sample == name)]
        same += len(mine) - len(np.unique(mine, axis=0))
        apart.append(_spacing(mine))
    if same:
        problems.append(f"{same:,} rows lie at the same place as another of their sample")
    if isinstance(source.uns(keys.SPATIAL), Mapping) and source.uns(keys.STAMP) is None:
        problems.append(
            'obsm["spatial"] may be in pixels, as uns["spatial"] is there: lengths are taken as um, so convert the '
            "source instead, or multiply by um per pixel"
        )
    low, high = xy[there].min(0), xy[there].max(0)
    span = ", ".join(f"{axis} {a:.6g} to {b:.6g}" for axis, a, b in zip("xy", low, high, strict=True))
    pitch = float(np.nanmedian(apart)) if np.isfinite(apart).any() else np.nan
    near = f", nearest neighbours {pitch:.4g} apart" if np.isfinite(pitch) else ""
    return [{"name": keys.SPATIAL, "kind": "coordinates", "holds": f"{span}{near} (taken as um)"}]


def _spacing(xy: np.ndarray) -> float:
    from scipy.spatial import cKDTree

    places = np.unique(xy, axis=0)
    if len(places) < 2:
        return float("nan")
    some = places[:: max(1, len(places) // 10_000)]
    return float(np.median(cKDTree(places).query(some, k=2)[0][:, 1]))


# ---- results of ours -----------------------------------------------------------------------------------------------


def results(table: AnnData) -> list[dict[str, str]]:
    """Results of svg, domains, integrate, markers and metagene in a table: name, kind, holds."""
    return _results(_InMemory(table))


def _results(source: Any) -> list[dict[str, str]]:
    """svg by its columns of var, domains by those of obs, the rest by its entries of uns."""
    out = []
    for column in source.var.columns:
        key = str(column).removesuffix(".rank")
        if key != column and f"{key}.svg" in source.var:
            ranked, marked = int(source.var[column].notna().sum()), int(source.var[f"{key}.svg"].sum())
            out.append({"name": key, "kind": "svg", "holds": f"{marked:,} spatially variable of {ranked:,} tested"})
    for column in source.obs.columns:
        key = str(column).removesuffix(".domain")
        if key != column:
            named = source.obs[column].dropna()
            mixing = source.uns(key, "mixing")
            over = "" if mixing is None else f", over samples, mixing {float(mixing):.2f}"
            refined = ", refined" if f"{key}.refined" in source.obs else ""
            out.append({"name": key, "kind": "domains", "holds": f"{named.nunique()} domains{refined}{over}"})
    for key in source.names("uns"):
        formula, status = source.uns(key, "formula"), source.uns(key, "status")
        if formula is not None:
            out.append({"name": key, "kind": "metagene", "holds": str(formula)})
        elif status is not None and hasattr(status, "columns"):
            found = source.uns(key, "table")
            of = f"{len(found):,} markers of " if hasattr(found, "columns") else ""
            out.append({"name": key, "kind": "markers", "holds": f"{of}{len(status)} domains"})
    return out


# ---- as text -------------------------------------------------------------------------------------------------------


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield (f"{found['path']}: " if "path" in found else "") + str(found["what"])
    for name, one in found.get("tables", {}).items():
        yield f"\n{name}"
        yield from (f"  {line}" for line in _lines(one))
    if "tables" in found:
        return
    sizes = found["sizes"]
    if "samples" in sizes:
        yield from _wrapped("samples", [f"{k} ({n:,})" for k, n in sizes["samples"].items()])
    for element in found["elements"]:
        yield f"{element['name']} <{element['kind']}>: {element['holds']}"
    for slot in ("obs", "var"):
        if sizes.get(slot):
            yield from _wrapped(slot, [f"{c} <{found['types'][slot].get(c, '?')}>" for c in sizes[slot]])
    for slot in _SLOTS:
        if sizes.get(slot):
            yield from _wrapped(slot, sizes[slot])
    for line in found["problems"]:
        yield f"problem: {line}"


def _wrapped(title: str, words: list[str]) -> Iterator[str]:
    import textwrap

    indent = " " * (len(title) + 2)
    yield from textwrap.wrap(
        ", ".join(words), _WIDTH, initial_indent=f"{title}: ", subsequent_indent=indent, break_long_words=False
    )
