"""Spatially variable genes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame
    from spatialdata import SpatialData

    from ._lazy import Survey
    from ._tables import Expression

PREDICTED = (
    "the values were predicted from images: genes that follow what the image shows vary over the tissue by "
    "construction, so these p-values speak of the prediction and not of measured expression"
)


def svg(
    data: SpatialData | AnnData | str | os.PathLike[str],
    *,
    method: str | None = None,
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    sample: str | Sequence[str] | None = None,
    n_svg: int = 500,
    fdr: float = 0.05,
    min_spots: int = 3,
    min_counts: int = 0,
    kernel_space: Mapping[str, Any] | None = None,
    sizefactors: Any = None,
    obs_dist: str | None = None,
    compat: bool | None = None,
    hvg: str | int | None = None,
    key: str | None = None,
    csv: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    max_gb: float = 4.0,
    n_jobs: int | None = None,
    client: Any = None,
    seed: int = 0,
    **options: Any,
) -> DataFrame:
    """Rank genes by how much their expression depends on place.

    Parameters
    ----------
    data
        A slide, an AnnData with ``obsm["spatial"]`` in um (its matrix in memory, backed, or a Dask array), or the
        path of a store or an h5ad file. Raw counts are normalised as the method wants; other values (predictions)
        are tested as they are.
    method
        Name of a test (`stainseq list svg`); default the documented default.
    region
        With a slide: its counts table is taken, or else its only prediction table.
    table_key
        Name of the table, instead of `region`.
    layer
        Layer instead of X.
    sample
        One or several values of ``obs["sample"]``; default all. Each sample is tested on its own, in its own
        coordinates, and p-values of several are combined by Fisher's method (see Notes).
    n_svg
        At most so many genes are marked as spatially variable.
    fdr
        And only those whose adjusted p-value is at most this. With `compat` the first `n_svg` are marked whether
        significant or not, as the original does.
    min_spots
        Genes seen in fewer spots are not tested: nothing can be told of them, and they would cost the others power.
    min_counts
        Rows (spots, cells) with fewer counts in all are left out; 0, the default, keeps all. Where some have less than
        a hundredth of their sample's median a note says so: a few nearly empty spots (two of 262 in the olfactory
        bulb) can make genes significant that are not, for totals are regressed out or divided by.
    kernel_space
        Kernel name to length scales in um, of spatialde2 and spatialde; default the method's own. With several
        samples and no kernel space each sample gets its own.
    sizefactors
        Of spatialde2 and spatialde: [n] positive (one a row of the table, or of the samples that are meant), or a
        column of obs; default total counts.
    obs_dist
        Null distribution of spatialde2: "negative_binomial" (default for counts) or "normal".
    compat
        Of spatialde2 and spatialde: results as the original's, faults included; default False.
    hvg
        Intersect with highly variable genes: a boolean column of var, or how many to take by the variance of Pearson
        residuals of the raw counts. The result is the column ``hvg``.
    key
        Prefix of the results; default the method.
    csv
        File for the table that is returned.
    out
        File (h5ad) for the table with its results. A file that was given is never changed.
    max_gb
        Working memory, GB. Matrices on disk that are larger than half of it are not loaded but read in panels of
        genes, several times: slower, the same numbers.
    n_jobs
        Threads; default all cores. Results are the same to the last bit for any number.
    client
        A ``distributed.Client``, whose workers compute the gene blocks; default the active one, if there is one.
        False: none.
    seed
        Of methods that draw at random.
    options
        Further options of the method.

    Returns
    -------
    DataFrame
        One row per gene, best first: ``gene``, the method's own columns, ``padj`` (Benjamini-Hochberg), ``svg``,
        ``rank`` (1 is best), with `hvg` also ``hvg`` (marked by both). Genes that were not tested (unvarying, or in
        too few spots) come last with NaN. With several samples also ``n_samples`` (in which a gene was tested) and
        ``sample`` (with the smallest p); the method's own columns are then of that sample, but for the combined
        ``log10_pval`` and ``pval``. ``.attrs["note"]`` warns of values that were predicted and of spots with hardly any
        counts.
        Written to the table: ``var["<key>.padj"]`` float64, ``var["<key>.svg"]`` bool, ``var["<key>.rank"]``
        float64, ``var["<key>.hvg"]`` bool; in ``uns["<key>"]`` ``params``, ``tested``, ``table`` (as returned),
        ``kernels`` (one row per tested gene and kernel, of methods that have kernels), ``samples`` (with several: one
        row per sample and gene) and ``note``.

    Raises
    ------
    MissingError
        No such method, table, layer, sample, column or coordinates.
    InputError
        Fewer than four spots, no gene to test, or values that are not finite.
    StoreError
        `csv` or `out` cannot be written; found before the work.

    Notes
    -----
    Under the null, p-values of different samples are independent and uniform, so that -2 sum log p of k samples is
    chi-square with 2 k degrees of freedom (R. A. Fisher, Statistical Methods for Research Workers, 1932). For SPARK-X
    with one kernel this is the sum of the statistics with its exact null. A gene is taken over the samples in which it
    could be tested.
    """
    from .. import registry
    from .._files import check_output
    from . import _tables

    check_output(csv, out)
    _tables.keep_source(data, out, csv)
    if not 0 < fdr <= 1 or n_svg < 0:
        raise InputError(f"fdr {fdr} or n_svg {n_svg} is out of range", fix="give 0 < fdr <= 1 and n_svg >= 0")
    name = method or registry.default("svg")
    plugin, key = registry.load("svg", name), key or name
    asked = {"kernel_space": kernel_space, "sizefactors": sizefactors, "obs_dist": obs_dist, "compat": compat}
    options |= {k: v for k, v in asked.items() if v is not None}
    _tables.check_options(plugin.score, name, options, given=_INNER)
    chosen = _tables.expression(
        data, region=region, table_key=table_key, layer=layer, sample=sample, several=True, max_gb=max_gb
    )
    general = {"max_gb": max_gb, "n_jobs": n_jobs, "client": _cluster(client), "seed": seed}
    settings = _tables.settings(plugin.score, options, given=_INNER)
    if options.get("sizefactors") is not None:
        options["sizefactors"] = _sizefactors(chosen, options["sizefactors"])
    if min_counts > 0:
        _leave_out(chosen, min_counts, max_gb)
    found, faint = _test_samples(chosen, plugin, name, options, general, min_spots)
    top = bool(options.get("compat"))
    for one in found.values():
        one.rank(n_svg, fdr, top=top)
    joint = next(iter(found.values())) if len(found) == 1 else _combined(found, plugin)
    joint.rank(n_svg, fdr, top=top)
    if hvg is not None:
        joint.table["hvg"] = joint.table["svg"].to_numpy() & _highly_variable(chosen, hvg)
    table = joint.ordered()

    parameters = {"method": name, "n_svg": n_svg, "fdr": fdr, "min_spots": min_spots, "seed": seed}
    parameters |= {k: _told(v) for k, v in settings.items()}
    told = {"layer": layer, "sample": sample, "key": key, "hvg": hvg, "min_counts": min_counts or None}
    parameters |= {k: v for k, v in told.items() if v is not None}
    for column in ("padj", "svg", "rank", *(["hvg"] if hvg is not None else [])):
        chosen.table.var[f"{key}.{column}"] = joint.table[column].to_numpy()
    chosen.table.uns[key] = _kept(found, joint, table, parameters)
    if notes := [note for note in (PREDICTED if chosen.predicted else "", faint) if note]:
        chosen.table.uns[key]["note"] = table.attrs["note"] = "; ".join(notes)
    if csv is not None:
        _tables.write_csv(table.astype({"rank": "Int64"}), csv)
    chosen.save(step="svg", parameters=parameters, out=out)
    return table


_GENERAL = ("max_gb", "n_jobs", "client", "seed")
"""Options of `svg` itself that methods take where they can."""
_INNER = {"genes", "is_counts", *_GENERAL}


@dataclass
class _Result:
    """The test of one sample, or of several together.

    Parameters
    ----------
    table
        One row per gene, in the order of the table.
    log_p
        float64 [g], natural logs; NaN for genes that were not tested.
    """

    table: DataFrame
    log_p: np.ndarray

    def rank(self, n_svg: int, fdr: float, *, top: bool) -> None:
        """Add padj, svg and rank; `top`: the first are marked, significant or not."""
        from ..core.autocorr import benjamini_hochberg

        tested = ~np.isnan(self.log_p)
        place = np.empty(len(tested))
        place[np.argsort(self.log_p, kind="stable")] = np.arange(1.0, len(tested) + 1)
        padj = benjamini_hochberg(self.log_p)
        marked = tested & (place <= n_svg)
        self.table["padj"] = padj
        self.table["svg"] = marked if top else marked & (padj <= fdr)
        self.table["rank"] = np.where(tested, place, np.nan)

    def ordered(self) -> DataFrame:
        """Best first; genes that were not tested last, as they come."""
        kernels = self.table.attrs.pop("kernels", None)
        table = self.table.iloc[np.argsort(self.log_p, kind="stable")].reset_index(drop=True)
        if kernels is not None:
            self.table.attrs["kernels"] = kernels
        return table


def _test_samples(
    chosen: Expression, plugin: Any, name: str, options: dict[str, Any], general: dict[str, Any], min_spots: int
) -> tuple[dict[str, _Result], str]:
    """The method on each sample by itself; and what to say of spots with hardly any counts."""
    several, max_gb = len(chosen.samples) > 1, general["max_gb"]
    where = {s: f"{chosen.where}, sample {s!r}" if several else chosen.where for s in chosen.samples}
    values = {s: _values(chosen, rows, max_gb) for s, rows in chosen.samples.items()}
    surveys = {s: _surveyed(v, chosen, where[s]) for s, v in values.items()}
    counts = all(known.whole for known in surveys.values())
    takes = _accepted(plugin, name, counts=counts, general=general, where=chosen.where)
    if counts and any(known.negative for known in surveys.values()):
        raise InputError(
            "counts are negative",
            where=chosen.where,
            fix="give raw counts, or values that are normalised but not rounded",
        )
    found = {}
    for sample, rows in chosen.samples.items():
        own = dict(options)
        if own.get("sizefactors") is not None:
            own["sizefactors"] = own["sizefactors"][rows]
        found[sample] = _test(
            plugin, values.pop(sample), chosen, rows, surveys[sample].testable(min_spots), min_spots, where[sample],
            {**takes, **own},
        )  # fmt: skip
    return found, _faint(surveys) if counts else ""


def _leave_out(chosen: Expression, min_counts: int, max_gb: float) -> None:
    """Keep only rows with enough counts."""
    for sample, rows in chosen.samples.items():
        totals = _surveyed(_values(chosen, rows, max_gb), chosen, chosen.where).totals
        if not (totals >= min_counts).any():
            raise InputError(
                f"no row has {min_counts} counts" + (f" in sample {sample!r}" if sample else ""),
                where=chosen.where,
                fix=f"lower min_counts; the median is {np.median(totals):g}",
            )
        chosen.samples[sample] = rows[totals >= min_counts]
    chosen.rows = np.sort(np.concatenate(list(chosen.samples.values())))


def _faint(surveys: dict[str, Survey]) -> str:
    """A note on rows with less than a hundredth of their sample's median, or nothing."""
    found, rows, most, medians = 0, 0, 0.0, []
    for known in surveys.values():
        median = float(np.median(known.totals))
        low = known.totals[known.totals < median / 100]
        found, rows, most = found + len(low), rows + len(known.totals), max(most, low.max(initial=0.0))
        medians.append(median)
    if not found:
        return ""
    return (
        f"{found} of {rows} spots have less than a hundredth of the median's counts (at most {most:g}; median "
        f"{np.median(medians):g}) and can make genes significant that are not: leave them out by min_counts"
    )


def _test(
    plugin: Any,
    values: Any,
    chosen: Expression,
    rows: np.ndarray,
    test: np.ndarray,
    min_spots: int,
    where: str,
    options: dict[str, Any],
) -> _Result:
    if not test.any():
        raise InputError(
            f"no gene varies over at least {min_spots} of {values.shape[0]} spots",
            where=where,
            fix="check the table, or lower min_spots",
        )
    coordinates = np.asarray(chosen.table.obsm[keys.SPATIAL], dtype=np.float64)[rows, :2]
    try:
        table = plugin.score(values, coordinates, genes=chosen.table.var_names.to_numpy(), **options)
    except InputError as e:
        if len(chosen.samples) == 1:
            raise
        raise InputError(e.what, where=where if e.where is None else f"{e.where}; {where}", fix=e.fix) from e
    with np.errstate(divide="ignore"):
        log_p = (
            table["log10_pval"].to_numpy() * np.log(10) if "log10_pval" in table else np.log(table["pval"].to_numpy())
        )
    for column in ("pval", "log10_pval", "qval"):
        if column in table:
            table[column] = np.where(test, table[column], np.nan)
    return _Result(table, np.where(test, log_p, np.nan))


def _values(chosen: Expression, rows: np.ndarray, max_gb: float) -> Any:
    """[rows, genes] in a form that gives out columns: CSC, an array, or panels of what is not in memory."""
    from scipy import sparse

    from ._lazy import Panels, as_dask

    everything = len(rows) == chosen.table.n_obs
    lazy = as_dask(chosen.matrix)
    if lazy is not None:
        return Panels(lazy, None if everything else rows, max_gb * 2**29)
    values = chosen.matrix if everything else chosen.matrix[rows]
    return sparse.csc_array(values) if sparse.issparse(values) else np.asarray(values)


def _surveyed(values: Any, chosen: Expression, where: str) -> Survey:
    from ._lazy import survey

    known = survey(values)
    known.check(chosen.table.var_names, where)
    return known


def _accepted(plugin: Any, name: str, *, counts: bool, general: dict[str, Any], where: str) -> dict[str, Any]:
    """The general options that a method takes; refuses normalised values where it needs counts."""
    import inspect

    takes = inspect.signature(plugin.score).parameters
    if not counts and "is_counts" not in takes:
        raise InputError(
            f"{name} needs raw counts", where=where, fix="name their table or layer, or use --method moran"
        )
    return {k: v for k, v in {"is_counts": counts, **general}.items() if k in takes}


def _sizefactors(chosen: Expression, given: Any) -> np.ndarray:
    """Size factors of all rows, from a column of obs or from values for all (or for all that are meant; else NaN)."""
    if isinstance(given, str):
        if given not in chosen.table.obs:
            there = ", ".join(map(str, chosen.table.obs)) or "none"
            raise MissingError(f"no column {given!r} in obs", where=chosen.where, fix=f"columns there: {there}")
        return np.asarray(chosen.table.obs[given].to_numpy(dtype=np.float64))
    values = np.asarray(given, dtype=np.float64).ravel()
    if len(values) == chosen.table.n_obs:
        return values
    if len(values) == len(chosen.rows):
        return chosen.column(values)
    raise InputError(f"{len(values)} size factors for {len(chosen.rows)} rows", where="sizefactors",
                     fix="give one a row of the table, or the name of a column of obs")  # fmt: skip


def _combined(found: dict[str, _Result], plugin: Any) -> _Result:
    """Several samples: Fisher's p, and the method's own columns of the sample with the smallest p."""
    import pandas as pd

    from ..core.chi2mix import log_fisher_combination

    names = np.array(list(found), dtype=object)
    log_p = np.column_stack([one.log_p for one in found.values()])
    tested = (~np.isnan(log_p)).sum(axis=1)
    combined = log_fisher_combination(log_p)
    strongest = np.argmin(np.where(np.isnan(log_p), np.inf, log_p), axis=1)
    own = pd.concat([one.table.drop(columns=["padj", "svg", "rank"]) for one in found.values()], ignore_index=True)
    table = own.iloc[strongest * len(log_p) + np.arange(len(log_p))].reset_index(drop=True)
    table.attrs.clear()
    table.insert(1, "n_samples", tested)
    table.insert(2, "sample", np.where(tested > 0, names[strongest], None))
    adjusted = getattr(plugin, "adjusted", None)
    if adjusted is not None:
        for column, values in adjusted(combined).items():
            table[column] = values
    if "log10_pval" in table:
        table["log10_pval"] = combined / np.log(10)
    table["pval"] = np.exp(combined)
    return _Result(table, combined)


def _highly_variable(chosen: Expression, wanted: str | int) -> np.ndarray:
    """bool [g]: a column of var, or the genes of largest residual variance."""
    table = chosen.table
    if isinstance(wanted, str):
        if wanted not in table.var or table.var[wanted].dtype != bool:
            there = ", ".join(c for c in table.var if table.var[c].dtype == bool) or "none"
            raise MissingError(f"no boolean column {wanted!r} in var", where=chosen.where, fix=f"there: {there}")
        return table.var[wanted].to_numpy()
    from ..core.genes import highly_variable
    from ._lazy import as_dask

    if as_dask(chosen.matrix) is not None:
        raise InputError("highly variable genes of a matrix that is not in memory", where=chosen.where,
                         fix="name a boolean column of var: hvg=COLUMN, or raise max_gb")  # fmt: skip
    names = np.full(table.n_obs, "", dtype=object)
    for sample, rows in chosen.samples.items():
        names[rows] = sample
    batches = names[chosen.rows] if len(chosen.samples) > 1 else None
    out = np.zeros(table.n_vars, dtype=bool)
    out[highly_variable(chosen.values, n_top=int(wanted), batches=batches, min_fraction=0.0)] = True
    return out


def _kept(found: dict[str, _Result], joint: _Result, table: DataFrame, parameters: dict[str, Any]) -> dict[str, Any]:
    """What goes into uns."""
    import pandas as pd

    kept = {"params": parameters, "tested": int((~np.isnan(joint.log_p)).sum()), "table": _storable(table)}
    several = len(found) > 1
    parts = {}
    for sample, one in found.items():
        kernels = one.table.attrs.get("kernels")
        if kernels is not None:
            parts[sample] = kernels.frame(np.flatnonzero(~np.isnan(one.log_p)), compact=True)
    if parts:
        kept["kernels"] = _stacked(parts, several)
    if several:
        kept["samples"] = _storable(_stacked({s: pd.DataFrame(one.ordered()) for s, one in found.items()}, several))
    for frame in kept.values():
        if isinstance(frame, pd.DataFrame):
            frame.attrs.clear()
    return kept


def _stacked(parts: dict[str, DataFrame], several: bool) -> DataFrame:
    """Tables of samples below each other; names stay categories."""
    import pandas as pd
    from pandas.api.types import union_categoricals

    if not several:
        return next(iter(parts.values()))
    frames = list(parts.values())
    out = pd.DataFrame({"sample": pd.Categorical(np.repeat(list(parts), [len(f) for f in frames]))})
    for column in frames[0]:
        pieces = [f[column] for f in frames]
        if isinstance(frames[0][column].dtype, pd.CategoricalDtype):
            out[column] = union_categoricals(pieces)
        else:
            out[column] = np.concatenate([p.to_numpy() for p in pieces])
    return out


def _storable(table: DataFrame) -> DataFrame:
    """Columns of text that may be missing as categories, which AnnData files can hold."""
    import pandas as pd

    text = [c for c in table if table[c].dtype == object and c != "gene"]
    return table.assign(**{c: pd.Categorical(table[c]) for c in text})


def _told(value: Any) -> Any:
    """An option as it is recorded: long arrays only by their length."""
    if isinstance(value, Mapping):
        return {str(k): _told(v) for k, v in value.items()}
    size = np.size(value) if not isinstance(value, str) else 1
    if size > 64:
        return f"{size} values"
    return np.asarray(value).tolist() if hasattr(value, "tolist") else value


def _cluster(client: Any) -> Any:
    """The Dask client that is meant: the one given, or the active one; None for threads here."""
    if client is False:
        return None
    if client is not None:
        if not hasattr(client, "scatter"):
            raise InputError(f"client is a {type(client).__name__}", fix="give a distributed.Client")
        return client
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        active = distributed.default_client()
    except ValueError:
        return None
    return active if active.status == "running" else None
