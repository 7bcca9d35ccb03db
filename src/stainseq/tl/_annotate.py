"""Cell types of a slide from a labelled reference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import keys
from ..errors import FormatError, InputError, MissingError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

NAMES_OF_GENES = (
    "gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "gene_symbols", "gene_symbol", "gene_name",
    "gene_names", "symbol", "feature_name",
)  # fmt: skip
"""Columns of var under which data sets keep the genes' other names."""

FEW = "few counts"
"""Label of cells that are too poor to be labelled; STHELAR's less10."""

LEAST_SHARED = 5


class Shared(NamedTuple):
    """Genes that both sides have: their columns in each, and how they were matched."""

    ours: np.ndarray
    theirs: np.ndarray
    by: str


def annotate(
    data: Any,
    reference: AnnData | str | os.PathLike[str],
    *,
    method: str | None = None,
    label_key: str = "ct",
    reference_layer: str | None = None,
    region: str = keys.CELLS,
    table_key: str | None = None,
    layer: str | None = None,
    sample: str | None = None,
    min_counts: int = 10,
    min_reference_cells: int = 1,
    key: str | None = None,
    csv: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Give every cell the type of a labelled reference that its expression fits.

    Parameters
    ----------
    data
        A slide, an AnnData, or the path of a store or h5ad file; raw counts.
    reference
        AnnData or h5ad file of single cells with raw counts and labels.
    method
        See ``stainseq list annotators``; default the documented one.
    label_key
        Column of the reference's obs with the types; "ct" as sopa and STHELAR name it.
    reference_layer
        Layer of the reference with raw counts, instead of X.
    region
        With a slide: whose counts are taken, "cells" or "nuclei".
    table_key, layer, sample
        See `svg`.
    min_counts
        Cells with at most so many counts are not labelled but called "few counts"; 10 as STHELAR. None is dropped.
    min_reference_cells
        Types with fewer cells in the reference are left out, and named in the result.
    key
        Prefix of the results; default the method.
    csv, out
        Files for the labels and for the table with its results. A file that was given is never changed.
    seed
        Of everything random.
    options
        Of the method.

    Returns
    -------
    DataFrame
        One row per cell: ``id``, ``label``, ``proportion`` (of that label; NaN with few counts). In ``attrs["info"]``
        the shared genes and how they were matched, the cells without a label, the types left out. Written to the
        table: ``obs["<key>.label"]`` categorical, ``obsm["<key>.proportions"]`` a DataFrame of cells x types,
        ``uns["<key>"]``.

    Raises
    ------
    MissingError
        No such column, table or file.
    InputError
        No shared genes (symbols against Ensembl ids: the message says which column has the other names); values that
        are no counts; no cell with enough counts.
    """
    import pandas as pd

    from .. import registry
    from .._progress import progress
    from ..core import normalize
    from . import _tables

    _tables.keep_source(data, out, csv)
    chosen = _tables.expression(data, region=region, table_key=table_key, layer=layer, sample=sample)
    name = method or registry.default("annotators")
    plugin, key = registry.load("annotators", name), key or name
    given = {"reference", "types", "n_types", "seed", "progress"}
    _tables.check_options(plugin.assign, name, options, given=given)
    held, where = _reference(reference)
    types, names, left_out = _types(held, label_key, min_reference_cells, where)
    shared = match_genes(chosen.table, held, where=chosen.where)
    counts = _counts(normalize.check_counts(chosen.values, where=chosen.where), chosen.where)[:, shared.ours]
    if reference_layer is not None and reference_layer not in held.layers:
        there = ", ".join(held.layers) or "none"
        raise MissingError(f"no layer {reference_layer!r}", where=where, fix=f"reference_layer, one of: {there}")
    profiles = held.X if reference_layer is None else held.layers[reference_layer]
    profiles = _counts(normalize.check_counts(profiles, where=where), where)[types >= 0][:, shared.theirs]
    silent = np.setdiff1d(np.arange(len(names)), types[types >= 0][np.asarray(profiles.sum(axis=1)).ravel() > 0])
    if len(silent):
        named = ", ".join(repr(names[i]) for i in silent[:3])
        raise InputError(
            f"no counts of type {named} in the {len(shared.ours)} shared genes",
            where=where,
            fix="leave such types out of the reference",
        )
    rich = np.asarray(chosen.values.sum(axis=1)).ravel() > min_counts
    if not rich.any():
        raise InputError(f"no cell has more than {min_counts} counts", where=chosen.where, fix="lower min_counts")
    with progress(f"annotate {name}") as advance:
        labels, proportions, info = plugin.assign(
            counts[rich], reference=profiles, types=types[types >= 0], n_types=len(names), seed=seed,
            progress=advance, **options,
        )  # fmt: skip
    ids = chosen.table.obs_names.to_numpy()[chosen.rows]
    codes = np.full(len(ids), len(names), dtype=np.int64)
    codes[rich] = labels
    full = np.full((len(ids), len(names)), np.nan, dtype=np.float32)
    full[rich] = proportions
    best = np.full(len(ids), np.nan)
    best[rich] = proportions[np.arange(len(labels)), labels]
    told = {
        **{k: v for k, v in info.items() if np.isscalar(v)},
        "shared_genes": len(shared.ours),
        "matched_by": shared.by,
        "few_counts": int((~rich).sum()),
        "types_left_out": left_out,
    }
    parameters = {"method": name, "label_key": label_key, "min_counts": min_counts, "seed": seed, "reference": where}
    parameters |= _tables.settings(plugin.assign, options, given=given)
    _put(chosen, key, codes, [*names, FEW], full, {"params": parameters, "info": told})
    frame = pd.DataFrame({"id": ids, "label": np.array([*names, FEW])[codes], "proportion": best})
    frame.attrs["info"] = told
    if csv is not None:
        _tables.write_csv(frame, csv)
    chosen.save(step="annotate", parameters=parameters, out=out)
    return frame


def _reference(reference: AnnData | str | os.PathLike[str]) -> tuple[AnnData, str]:
    from .. import tables

    if not isinstance(reference, (str, os.PathLike)):
        return reference, "the reference"
    path = Path(reference)
    if not path.is_file():
        raise MissingError("there is no such reference", where=path, fix="give an h5ad file of labelled cells")
    held = tables.open_path(path)
    if not hasattr(held, "obs"):
        raise FormatError("no AnnData", where=path, fix="give an h5ad file of labelled cells")
    return held, str(path)


def _types(held: AnnData, label_key: str, min_cells: int, where: str) -> tuple[np.ndarray, list[str], list[str]]:
    """Code of each reference cell (-1: left out), names of the types, types left out."""
    import pandas as pd

    if label_key not in held.obs:
        raise MissingError(
            f"no column {label_key!r}", where=where, fix=f"label_key, one of: {', '.join(map(str, held.obs)) or 'none'}"
        )
    labels = pd.Series(held.obs[label_key]).astype("string")
    labels = labels.mask(labels == FEW)  # no type: cells that an earlier run could not label
    sizes = labels.value_counts()
    names = sorted(str(n) for n in sizes.index[sizes >= max(min_cells, 1)])
    if len(names) < 2:
        raise InputError(f"{len(names)} types in column {label_key!r}", where=where, fix="give at least two types")
    code = {n: i for i, n in enumerate(names)}
    types = np.array([-1 if pd.isna(v) else code.get(v, -1) for v in labels], dtype=np.int64)
    return types, names, sorted(str(n) for n in sizes.index[sizes < max(min_cells, 1)])


def match_genes(ours: AnnData, theirs: AnnData, *, where: str) -> Shared:
    """Genes by name whatever the case, or by another name that either side keeps in a column of var.

    Parameters
    ----------
    ours, theirs
        The tables.
    where
        The first, for messages.

    Raises
    ------
    InputError
        Fewer than 5 genes in common under any pair of names.
    """
    best = Shared(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), "")
    for a, left in _gene_names(ours):
        for b, right in _gene_names(theirs):
            found = _joined(left, right)
            # Plain names first: another column must match clearly more to be preferred.
            if len(found[0]) > 1.2 * len(best.ours):
                best = Shared(*found, "names" if a == b == "names" else f"{a} with {b} of the reference")
    if len(best.ours) < LEAST_SHARED:
        kinds = [_kind(t.var_names) for t in (ours, theirs)]
        differ = f": {kinds[0]} here, {kinds[1]} in the reference" if kinds[0] != kinds[1] else ""
        raise InputError(
            f"{len(best.ours)} shared genes{differ}",
            where=where,
            fix=f"keep the other names in a column of var, such as {NAMES_OF_GENES[0]} or gene_symbols, of either side",
        )
    return best


def _gene_names(table: AnnData) -> list[tuple[str, np.ndarray]]:
    found = [("names", table.var_names.to_numpy())]
    found += [(c, table.var[c].to_numpy()) for c in NAMES_OF_GENES if c in table.var]
    return [(c, np.array([_plain(v) for v in values], dtype=object)) for c, values in found]


def _plain(name: Any) -> str:
    """Without case; Ensembl ids without their version."""
    text = str(name).upper()
    return text.split(".")[0] if text.startswith("ENS") and "." in text else text


def _joined(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of names that both have once."""
    import pandas as pd

    sides = [pd.Series(np.arange(len(v)), index=v) for v in (left, right)]
    sides = [s[~s.index.duplicated(keep=False)] for s in sides]
    both = sides[0].index.intersection(sides[1].index, sort=False)
    return sides[0][both].to_numpy(), sides[1][both].to_numpy()


def _kind(names: Any) -> str:
    ensembl = np.mean([str(n).upper().startswith("ENS") for n in names[:200]]) if len(names) else 0
    return "Ensembl ids" if ensembl > 0.5 else "symbols"


def _counts(values: Any, where: object) -> Any:
    import scipy.sparse as sp

    from ..core.values import is_counts

    if not is_counts(values):
        raise InputError("values are no counts", where=where, fix="give raw counts (layer, reference_layer)")
    return sp.csr_matrix(values)


def _put(chosen: Any, key: str, codes: np.ndarray, names: list[str], proportions: np.ndarray, facts: Any) -> None:
    import pandas as pd

    table = chosen.table
    used = names if (codes == len(names) - 1).any() else names[:-1]
    table.obs[f"{key}.label"] = pd.Categorical.from_codes(chosen.column(codes, fill=-1), used)
    full = proportions
    if len(chosen.rows) != table.n_obs:
        full = np.full((table.n_obs, proportions.shape[1]), np.nan, dtype=np.float32)
        full[chosen.rows] = proportions
    table.obsm[f"{key}.proportions"] = pd.DataFrame(full, index=table.obs_names, columns=names[:-1])
    table.uns[key] = facts
