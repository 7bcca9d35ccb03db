"""Marker genes of domains."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from .._files import check_output
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame
    from spatialdata import SpatialData

    from ._tables import Expression

COLUMNS = (
    "domain", "gene", "pct.in", "pct.out", "ratio", "fc", "p", "q", "log10.p", "log10.q", "mean.in", "mean.out",
    "scores", "neighbours",
)  # fmt: skip
_LN10 = float(np.log(10))
_LEAST = 3  # one spot with a rare gene is far out on the normal approximation's scale, and yet no evidence


def markers(
    data: SpatialData | AnnData | str | os.PathLike[str],
    *,
    domain_key: str,
    domains: Sequence[str] | None = None,
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    sample: str | Sequence[str] | None = None,
    against: Literal["neighbours", "rest"] = "neighbours",
    min_in_group_fraction: float = 0.8,
    min_in_out_group_ratio: float = 1.0,
    min_fold_change: float = 1.5,
    max_q: float = 0.05,
    num_neighbours: int = 3,
    ratio: float = 0.5,
    radius_quantiles: tuple[float, float] = (0.001, 0.1),
    num_min: float = 10,
    num_max: float = 14,
    max_run: int = 100,
    tie_correct: bool = True,
    key: str = "markers",
    csv: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> DataFrame:
    """Find the genes that mark each domain against those around it.

    Parameters
    ----------
    data
        A slide, an AnnData with ``obsm["spatial"]``, or the path of a store or an h5ad file. Raw counts are turned
        into log(1 + counts per 10,000); other values are taken as log-normalised.
    domain_key
        Column of obs with the domains, such as "spagcn.refined".
    domains
        Domains to look at; default all.
    region, table_key, layer
        Which table and values, as in `svg`.
    sample
        Values of ``obs["sample"]``; default all. Several are taken together, as is meant for domains of `integrate`;
        spots are neighbours within their sample only.
    against
        "neighbours": the domains around it, as SpaGCN does; "rest": all other spots.
    min_in_group_fraction
        Least share of the domain's spots that have the gene.
    min_in_out_group_ratio
        That share relative to the one outside must exceed this.
    min_fold_change
        exp of the difference of mean log expression must exceed this.
    max_q
        Benjamini-Hochberg value, over all genes that vary, must be below this.
    num_neighbours
        Neighbouring domains compared with, at most.
    ratio
        A domain is a neighbour if its spots are met more often than this times its size.
    radius_quantiles
        Of all distances between spots: the search for the radius within which spots are met starts between these, and
        widens where they do not enclose it (the .001 quantile holds too many of 14,000 spots and more).
    num_min, num_max
        Mean number of spots that the radius is to hold, the spot itself counted.
    max_run
        Steps of the search for the radius.
    tie_correct
        Variance of the rank sum with ties. False gives the p-values of scanpy and SpaGCN.
    key
        Entry of uns that the result goes to.
    csv
        File for the table that is returned.
    out
        File (h5ad) for the table with its results. A file that was given is never changed.

    Returns
    -------
    DataFrame
        One row per marker, by domain and falling fold change: ``domain``, ``gene``, ``pct.in``, ``pct.out``, ``ratio``,
        ``fc``, ``p``, ``q``, ``log10.p``, ``log10.q`` (both negated), ``mean.in``, ``mean.out``, ``scores``
        (standardised rank sum), ``neighbours`` (comma-separated). ``DataFrame.attrs["status"]`` says of each domain how
        many markers it has, or why none could be sought; the latter are in ``attrs["failed"]``, too, and leave the
        other domains as they are. Written to the table: ``uns["<key>"]`` with ``table``, ``status`` (a table of
        ``domain`` and ``status``) and ``params``.

    Raises
    ------
    MissingError
        No such table, layer, sample, column or domain.
    InputError
        Fewer than two domains, or none of the domains asked for could be compared; NaN or negative counts.

    Notes
    -----
    J. Hu et al., SpaGCN, Nature Methods 18, 1342 (2021), section on spatially variable genes. There p-values are read
    from the table of the other group; here every q is its own gene's.
    """
    import pandas as pd

    from ..core import de
    from . import _tables

    _tables.keep_source(data, out, csv)
    check_output(out, csv)
    chosen = _tables.expression(data, region=region, table_key=table_key, layer=layer, sample=sample, several=True)
    codes, names, wanted = labels_of(chosen, domain_key, domains)
    if len(names) < 2:
        raise InputError(f"obs[{domain_key!r}] has one domain", where=chosen.where, fix="markers need two or more")
    values = lognorm(chosen)
    search = {"ratio": ratio, "n_neighbors": num_neighbours, "num_min": num_min, "num_max": num_max, "max_run": max_run}
    around, failed = _around(chosen, codes, wanted, against, radius_quantiles, search)
    if not around:
        raise InputError(f"no domain could be compared: {next(iter(failed.values()))}", where=chosen.where)
    frames, status = [], {names[code]: reason for code, reason in failed.items()}
    found = de.compare_all(values, codes, around, tie_correct=tie_correct)
    for (code, others), one in zip(around.items(), found, strict=True):
        keep = (
            (one.log_q < np.log(max_q))
            & (one.ratio > min_in_out_group_ratio)
            & (one.fraction_in > min_in_group_fraction)
            & (one.fold_change > min_fold_change)
        )
        frame = _frame(one, keep, chosen.table.var_names.to_numpy())
        frames.append(frame.assign(domain=names[code], neighbours=",".join(names[other] for other in others)))
        status[names[code]] = f"{len(frame)} markers"
    table = pd.concat(frames, ignore_index=True)[list(COLUMNS)]
    status = {names[code]: status[names[code]] for code in wanted}
    parameters = {
        "domain_key": domain_key, "against": against, "min_in_group_fraction": min_in_group_fraction,
        "min_in_out_group_ratio": min_in_out_group_ratio, "min_fold_change": min_fold_change, "max_q": max_q,
        "num_neighbours": num_neighbours, "ratio": ratio, "radius_quantiles": list(radius_quantiles),
        "num_min": num_min, "num_max": num_max, "tie_correct": tie_correct, "key": key,
    }  # fmt: skip
    parameters |= {k: v for k, v in {"layer": layer, "sample": sample}.items() if v is not None}
    states = pd.DataFrame({"domain": list(status), "status": list(status.values())})
    chosen.table.uns[key] = {"params": parameters, "table": table.copy(), "status": states}
    if csv is not None:
        _tables.write_csv(table, csv)
    chosen.save(step="markers", parameters=parameters, out=out)
    table.attrs["status"] = status
    table.attrs["failed"] = {names[code]: reason for code, reason in failed.items()}
    return table


def get_markers(
    data: SpatialData | AnnData | str | os.PathLike[str],
    *,
    domain: str | None = None,
    key: str = "markers",
    region: str = keys.SPOTS,
    table_key: str | None = None,
    max_q: float | None = None,
    max_p: float | None = None,
    min_pct: float | None = None,
    max_pct_reference: float | None = None,
    min_fold_change: float | None = None,
    remove_zero_pval: bool = False,
) -> DataFrame:
    """Read markers that `markers` stored, with further filters.

    Parameters
    ----------
    data
        A slide, an AnnData, or the path of a store or an h5ad file.
    domain
        One domain; default all.
    key
        Entry of uns.
    region, table_key
        Which table of a slide.
    max_q, max_p
        Largest adjusted and plain p-value.
    min_pct
        Least share of the domain's spots that have the gene.
    max_pct_reference
        Largest share of the others that have it.
    min_fold_change
        Least fold change.
    remove_zero_pval
        Leave out genes whose p-value is 0 as a float (their ``log10.p`` is still right).

    Returns
    -------
    DataFrame
        The columns of `markers`, by domain and falling fold change.

    Raises
    ------
    MissingError
        No such entry or domain.
    """
    uns = _uns(data, region, table_key)
    if not isinstance(uns.get(key), dict) or "status" not in uns[key]:
        there = ", ".join(k for k, v in uns.items() if isinstance(v, dict) and "status" in v) or "none"
        raise MissingError(f"no markers under {key!r}", where="uns of the table", fix=f"run `markers`; there: {there}")
    table, known = uns[key]["table"], uns[key]["status"]["domain"].astype(str).tolist()
    if domain is not None:
        if domain not in known:
            raise MissingError(f"no domain {domain!r}", where=f"markers {key!r}", fix=f"one of: {', '.join(known)}")
        table = table[table["domain"].astype(str) == domain]
    limits = (("q", max_q, -1), ("p", max_p, -1), ("pct.in", min_pct, 1), ("pct.out", max_pct_reference, -1),
              ("fc", min_fold_change, 1))  # fmt: skip
    for column, limit, sign in limits:
        if limit is not None:
            table = table[sign * table[column] >= sign * limit]
    if remove_zero_pval:
        table = table[table["p"] > 0]
    return table.reset_index(drop=True)


def _around(
    chosen: Expression,
    codes: np.ndarray,
    wanted: list[int],
    against: str,
    quantiles: tuple[float, float],
    search: dict[str, Any],
) -> tuple[dict[int, list[int]], dict[int, str]]:
    """What each domain is compared with, and why some cannot be."""
    from scipy.spatial import cKDTree

    from ..core import de

    if against not in ("neighbours", "rest"):
        raise InputError(f"against is {against!r}", where="markers", fix="give neighbours or rest")
    size = np.bincount(codes)
    failed = {
        code: f"{size[code]} spots are too few for a rank test, which needs {_LEAST}"
        for code in wanted
        if size[code] < _LEAST
    }
    enough = [code for code in wanted if code not in failed]
    if against == "rest":
        return {code: [other for other in range(len(size)) if other != code] for code in enough}, failed
    xy, (low, high) = _apart(chosen, quantiles)
    tree, around = cKDTree(xy), {}
    for code in enough:
        try:
            around[code] = de.surroundings(xy, codes, code, between=(low, high), tree=tree, **search).domains.tolist()
        except InputError as e:
            failed[code] = str(e)
    return around, failed


def _apart(chosen: Expression, quantiles: tuple[float, float]) -> tuple[np.ndarray, tuple[float, float]]:
    """Coordinates with samples far from one another, and where the search for radii starts."""
    from ..core import de

    xy = chosen.coordinates
    if not np.isfinite(xy).all():
        raise InputError("coordinates are NaN or infinite", where=chosen.where, fix="drop those rows")
    width = float(np.ptp(xy, axis=0).max())
    ends = []
    for number, (_, rows) in enumerate(sorted(chosen.samples.items())):
        at = np.searchsorted(chosen.rows, rows)
        ends.append(de.distance_quantiles(xy[at], quantiles))
        xy[at, 0] += 100 * width * number
    return xy, (min(low for low, _ in ends), max(high for _, high in ends))


def _uns(data: Any, region: str, table_key: str | None) -> Any:
    from anndata import AnnData

    from . import _tables

    if isinstance(data, (str, os.PathLike)):
        data = _tables.open_path(data)
    if isinstance(data, AnnData):
        return data.uns
    name = table_key or keys.counts(region)
    if name not in data.tables:
        there = ", ".join(data.tables) or "none"
        raise MissingError(f"no table {name!r}", where=data.path, fix=f"one of: {there}")
    return data.tables[name].uns


def labels_of(
    chosen: Expression, domain_key: str, wanted: Sequence[str] | None
) -> tuple[np.ndarray, list[str], list[int]]:
    """Domain of each row as a number, the names of the domains, and those that are meant.

    Parameters
    ----------
    chosen
        The table.
    domain_key
        Column of obs.
    wanted
        Names of domains, or None for all.

    Raises
    ------
    MissingError
        No such column or domain.
    InputError
        Rows without a domain.
    """
    import pandas as pd

    if domain_key not in chosen.table.obs:
        there = ", ".join(chosen.table.obs.columns) or "none"
        raise MissingError(
            f"no column {domain_key!r}", where=chosen.where, fix=f"run `domains`; columns there: {there}"
        )
    column = chosen.table.obs[domain_key].iloc[chosen.rows]
    if column.isna().any():
        raise InputError(
            f"{int(column.isna().sum())} rows have no domain",
            where=f"obs[{domain_key!r}] of {chosen.where}",
            fix="name the sample that has, or drop those rows",
        )
    labels = column.astype(str)
    names = sorted(labels.unique(), key=lambda d: (not d.isdigit(), int(d) if d.isdigit() else 0, d))
    unknown = [str(d) for d in wanted or [] if str(d) not in names]
    if unknown:
        raise MissingError(
            f"no domain {unknown[0]!r} in obs[{domain_key!r}]", where=chosen.where, fix=f"one of: {', '.join(names)}"
        )
    codes = pd.Categorical(labels, categories=names).codes.astype(np.int64)
    meant = range(len(names)) if wanted is None else dict.fromkeys(names.index(str(d)) for d in wanted)
    return codes, names, list(meant)


def lognorm(chosen: Expression) -> Any:
    """log(1 + counts per 10,000) where the table holds counts, else its values; CSC, in which genes are read in turn.

    Parameters
    ----------
    chosen
        The table.
    """
    from scipy import sparse

    from ..core import normalize
    from ..core.values import is_counts

    values = chosen.values
    values = normalize.log1p_cp10k(values) if is_counts(values) else values
    return sparse.csc_array(values)


def _frame(found: Any, keep: np.ndarray, genes: np.ndarray) -> DataFrame:
    import pandas as pd

    at = np.flatnonzero(keep)
    at = at[np.lexsort((found.log_p[at], -found.fold_change[at]))]
    return pd.DataFrame(
        {
            "gene": genes[at],
            "pct.in": found.fraction_in[at],
            "pct.out": found.fraction_out[at],
            "ratio": found.ratio[at],
            "fc": found.fold_change[at],
            "p": np.exp(found.log_p[at]),
            "q": np.exp(found.log_q[at]),
            "log10.p": -found.log_p[at] / _LN10,
            "log10.q": -found.log_q[at] / _LN10,
            "mean.in": found.mean_in[at],
            "mean.out": found.mean_out[at],
            "scores": found.z[at],
        }
    )
