"""Spatially variable genes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame
    from spatialdata import SpatialData


def svg(
    data: SpatialData | AnnData | str | os.PathLike[str],
    *,
    method: str | None = None,
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    sample: str | None = None,
    n_svg: int = 500,
    fdr: float = 0.05,
    min_spots: int = 3,
    key: str | None = None,
    csv: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> DataFrame:
    """Rank genes by how much their expression depends on place.

    Parameters
    ----------
    data
        A slide, an AnnData with ``obsm["spatial"]`` in um, or the path of a store or an h5ad file. Raw counts are
        normalised as the method wants; other values (predictions) are tested as they are.
    method
        Name of a test (`stainseq list svg`); default the documented default.
    region
        With a slide: its counts table is taken, or else its only prediction table.
    table_key
        Name of the table, instead of `region`.
    layer
        Layer instead of X.
    sample
        Value of ``obs["sample"]``, needed where there are several.
    n_svg
        At most so many genes are marked as spatially variable.
    fdr
        And only those whose adjusted p-value is at most this.
    min_spots
        Genes seen in fewer spots are not tested: nothing can be told of them, and they would cost the others power.
    key
        Prefix of the results; default the method.
    csv
        File for the table that is returned.
    out
        File (h5ad) for the table with its results. A file that was given is never changed.
    seed
        Of methods that draw at random.
    options
        Further options of the method.

    Returns
    -------
    DataFrame
        One row per gene, best first: ``gene``, the method's own columns, ``padj`` (Benjamini-Hochberg), ``svg``,
        ``rank`` (1 is best). Genes that were not tested (unvarying, or in too few spots) come last with NaN.
        Written to the table: ``var["<key>.padj"]`` float64, ``var["<key>.svg"]`` bool, ``var["<key>.rank"]``
        float64; the whole table, the method and its options in ``uns["<key>"]``.

    Raises
    ------
    MissingError
        No such method, table, layer, sample or coordinates.
    InputError
        Fewer than four spots, no gene to test, or values that are not finite.
    """
    from scipy import sparse

    from .. import registry
    from ..core.autocorr import benjamini_hochberg
    from ..core.values import is_counts
    from . import _tables

    _tables.keep_source(data, out, csv)
    chosen = _tables.expression(data, region=region, table_key=table_key, layer=layer, sample=sample)
    if not 0 < fdr <= 1 or n_svg < 0:
        raise InputError(f"fdr {fdr} or n_svg {n_svg} is out of range", fix="give 0 < fdr <= 1 and n_svg >= 0")
    name = method or registry.default("svg")
    plugin, key = registry.load("svg", name), key or name
    _tables.check_options(plugin.score, name, options, given={"genes", "is_counts", "seed"})
    values = chosen.values
    values = sparse.csc_array(values) if sparse.issparse(values) else np.asarray(values)
    _finite(values, chosen.table.var_names, chosen.where)
    test = _testable(values, min_spots)
    if not test.any():
        raise InputError(
            f"no gene varies over at least {min_spots} of {values.shape[0]} spots",
            where=chosen.where,
            fix="check the table, or lower min_spots",
        )
    genes = chosen.table.var_names.to_numpy()
    table = plugin.score(
        values,
        chosen.coordinates,
        genes=genes,
        **_accepted(plugin, name, counts=is_counts(values), seed=seed, where=chosen.where),
        **options,
    )
    log_p = table["log10_pval"].to_numpy() * np.log(10) if "log10_pval" in table else np.log(table["pval"].to_numpy())
    log_p = np.where(test, log_p, np.nan)
    table["padj"] = benjamini_hochberg(log_p)
    order = np.argsort(log_p, kind="stable")
    tested = np.arange(len(order)) < test.sum()
    table = table.iloc[order].reset_index(drop=True)
    table["svg"] = (table["padj"].to_numpy() <= fdr) & (np.arange(len(table)) < n_svg)
    table["rank"] = np.where(tested, np.arange(1.0, len(table) + 1), np.nan)

    by_gene = table.set_index("gene").reindex(genes)
    for column in ("padj", "svg", "rank"):
        chosen.table.var[f"{key}.{column}"] = by_gene[column].to_numpy(dtype=bool if column == "svg" else np.float64)
    parameters = {"method": name, "n_svg": n_svg, "fdr": fdr, "min_spots": min_spots, "seed": seed, **options}
    parameters |= {k: v for k, v in {"layer": layer, "sample": sample, "key": key}.items() if v is not None}
    chosen.table.uns[key] = {"params": parameters, "tested": int(test.sum()), "table": table}
    if csv is not None:
        _tables.write_csv(table, csv)
    chosen.save(step="svg", parameters=parameters, out=out)
    return table


def _accepted(plugin: Any, name: str, *, counts: bool, seed: int, where: str) -> dict[str, Any]:
    """The general options that a method takes; refuses normalised values where it needs counts."""
    import inspect

    takes = inspect.signature(plugin.score).parameters
    if not counts and "is_counts" not in takes:
        raise InputError(
            f"{name} needs raw counts", where=where, fix="name their table or layer, or use --method moran"
        )
    return {k: v for k, v in {"is_counts": counts, "seed": seed}.items() if k in takes}


def _finite(values: Any, genes: Any, where: str) -> None:
    data = values.data if hasattr(values, "indptr") else values
    bad = ~np.isfinite(data)
    if not bad.any():
        return
    if hasattr(values, "indptr"):
        gene = int(np.searchsorted(values.indptr, np.flatnonzero(bad)[0], side="right")) - 1
    else:
        gene = int(np.argwhere(bad)[0][1])
    raise InputError(
        f"{int(bad.sum())} values are NaN or infinite",
        where=f"{where}, first in gene {genes[gene]!r}",
        fix="drop those rows or genes, or set the values to 0",
    )


def _testable(values: Any, min_spots: int) -> np.ndarray:
    """Genes that vary and are seen in enough spots."""
    if hasattr(values, "indptr"):
        seen = np.bincount(
            np.repeat(np.arange(values.shape[1]), np.diff(values.indptr))[values.data != 0], minlength=values.shape[1]
        )
        top, bottom = values.max(axis=0).toarray().ravel(), values.min(axis=0).toarray().ravel()
    else:
        seen, top, bottom = (values != 0).sum(0), values.max(0), values.min(0)
    return np.asarray((top > bottom) & (seen >= min_spots))
