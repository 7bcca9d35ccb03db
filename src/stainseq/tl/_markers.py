"""Marker genes of domains, and metagenes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame
    from spatialdata import SpatialData

COLUMNS = (
    "domain", "gene", "pct.in", "pct.out", "ratio", "fc", "p", "q", "log10.p", "log10.q", "mean.in", "mean.out",
    "scores", "neighbours",
)  # fmt: skip
_LN10 = float(np.log(10))


def markers(
    data: SpatialData | AnnData | str | os.PathLike[str],
    *,
    domain_key: str,
    domains: list[str] | None = None,
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    sample: str | None = None,
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
    region, table_key, layer, sample
        Which table, values and sample, as in `svg`.
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
        Of all distances between spots: the radius within which spots are met is sought between these.
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
        (standardised rank sum), ``neighbours`` (comma-separated). ``DataFrame.attrs["failed"]`` says why a domain has
        none that could be sought; the others are not touched by it. Written to the table: ``uns["<key>"]`` with
        ``table``, ``status`` (a table of ``domain`` and ``status``) and ``params``.

    Raises
    ------
    MissingError
        No such table, layer, sample, column or domain.
    InputError
        Fewer than two domains, or none of the domains asked for could be compared.

    Notes
    -----
    J. Hu et al., SpaGCN, Nature Methods 18, 1342 (2021), section on spatially variable genes. There p-values are read
    from the table of the other group; here every q is its own gene's.
    """
    import pandas as pd

    from ..core import de
    from . import _tables

    chosen = _tables.expression(data, region=region, table_key=table_key, layer=layer, sample=sample)
    labels, wanted = _labels(chosen, domain_key, domains)
    names, codes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"obs[{domain_key!r}] has one domain", where=chosen.where, fix="markers need two or more")
    values, genes = _lognorm(chosen.values), chosen.table.var_names.to_numpy()
    frames, status = [], {}
    search = {"ratio": ratio, "n_neighbors": num_neighbours, "num_min": num_min, "num_max": num_max, "max_run": max_run}
    between = de.distance_quantiles(chosen.coordinates, radius_quantiles) if against == "neighbours" else None
    for name in wanted:
        code = int(np.flatnonzero(names == name)[0])
        try:
            around = _around(chosen.coordinates, codes, code, between, search)
            rows = np.isin(codes, [code, *around])
            found = de.compare(values[rows], codes[rows] == code, tie_correct=tie_correct)
        except InputError as e:
            status[name] = str(e)
            continue
        keep = (
            (found.log_q < np.log(max_q))
            & (found.ratio > min_in_out_group_ratio)
            & (found.fraction_in > min_in_group_fraction)
            & (found.fold_change > min_fold_change)
        )
        frames.append(_frame(found, keep, genes).assign(domain=name, neighbours=",".join(names[around])))
        status[name] = f"{len(frames[-1])} markers"
    failed = {d: s for d, s in status.items() if not s.endswith("markers")}
    if not frames:
        raise InputError(f"no domain could be compared: {next(iter(failed.values()))}", where=chosen.where)
    table = pd.concat(frames, ignore_index=True)[list(COLUMNS)]
    parameters = {
        "domain_key": domain_key, "against": against, "min_in_group_fraction": min_in_group_fraction,
        "min_in_out_group_ratio": min_in_out_group_ratio, "min_fold_change": min_fold_change, "max_q": max_q,
        "num_neighbours": num_neighbours, "ratio": ratio, "radius_quantiles": list(radius_quantiles),
        "num_min": num_min, "num_max": num_max, "tie_correct": tie_correct, "key": key,
    }  # fmt: skip
    parameters |= {k: v for k, v in {"layer": layer, "sample": sample}.items() if v is not None}
    chosen.table.uns[key] = {"params": parameters, "table": table.copy(), "status": _status(status)}
    if csv is not None:
        _tables.write_csv(table, csv)
    chosen.save(step="markers", parameters=parameters, out=out)
    table.attrs["failed"] = failed
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


def metagene(
    data: SpatialData | AnnData | str | os.PathLike[str],
    *,
    target: str,
    domain_key: str,
    markers_key: str = "markers",
    start_gene: str | None = None,
    max_iter: int = 3,
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    sample: str | None = None,
    key: str | None = None,
    csv: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> DataFrame:
    """Find a sum and difference of genes that marks one domain more sharply than any gene alone.

    Parameters
    ----------
    data
        A slide, an AnnData with ``obsm["spatial"]``, or the path of a store or an h5ad file. Raw counts are turned
        into log(1 + counts per 10,000).
    target
        Domain to mark.
    domain_key
        Column of obs with the domains.
    markers_key
        Entry of uns with markers; the target's first is the start gene unless one is named.
    start_gene
        Gene to start from. Without it and without markers: the gene with the highest rank sum.
    max_iter
        Rounds at most; each adds one gene and subtracts one.
    region, table_key, layer, sample
        Which table, values and sample, as in `svg`.
    key
        Column of obs and entry of uns for the result; default "metagene.<target>", with "_" for "/", which AnnData does
        not allow in names.
    csv
        File for the table that is returned.
    out
        File (h5ad) for the table with its results.

    Returns
    -------
    DataFrame
        ``gene``, ``sign`` (+1, -1), ``round`` (0 is the start gene), ``difference`` (of means, after the round) and
        ``outside`` (spots outside the domain that looked like it before the round). Written to the table:
        ``obs["<key>"]`` float64, ``uns["<key>"]`` with ``genes``, ``signs``, ``formula`` and ``params``.

    Raises
    ------
    MissingError
        No such table, column, domain or gene.

    Notes
    -----
    J. Hu et al., SpaGCN, Nature Methods 18, 1342 (2021).
    """
    import pandas as pd

    from ..core.metagene import find_metagene
    from . import _tables

    chosen = _tables.expression(data, region=region, table_key=table_key, layer=layer, sample=sample)
    labels, (name,) = _labels(chosen, domain_key, [target])
    values, genes = _lognorm(chosen.values), chosen.table.var_names
    inside = labels == name
    start = _start(chosen, values, inside, name, markers_key, start_gene)
    found = find_metagene(values, inside, start, max_iter=max_iter)
    key = key or f"metagene.{target.replace('/', '_')}"
    chosen.table.obs[key] = chosen.column(found.values)
    chain = [f"{'+' if s > 0 else '-'} {genes[g]}" for g, s in zip(found.genes, found.signs, strict=True)]
    parameters = {
        "target": target, "domain_key": domain_key, "start_gene": str(genes[start]), "max_iter": max_iter, "key": key,
    }  # fmt: skip
    parameters |= {k: v for k, v in {"layer": layer, "sample": sample}.items() if v is not None}
    chosen.table.uns[key] = {
        "genes": genes[found.genes].to_numpy(dtype=object),
        "signs": found.signs,
        "formula": " ".join(chain).removeprefix("+ "),
        "params": parameters,
    }
    rounds = np.concatenate([[0], np.repeat(np.arange(1, len(found.steps) + 1), 2)])
    table = pd.DataFrame(
        {
            "gene": genes[found.genes],
            "sign": found.signs,
            "round": rounds,
            "difference": [np.nan, *np.repeat([s.difference for s in found.steps], 2)],
            "outside": [np.nan, *np.repeat([float(s.outside) for s in found.steps], 2)],
        }
    )
    if csv is not None:
        _tables.write_csv(table, csv)
    chosen.save(step="metagene", parameters=parameters, out=out)
    return table


def _around(
    xy: np.ndarray, codes: np.ndarray, code: int, between: list[float] | None, search: dict[str, Any]
) -> np.ndarray:
    from ..core.de import surroundings

    if between is None:
        return np.setdiff1d(np.arange(codes.max() + 1), code)
    return surroundings(xy, codes, code, between=(between[0], between[1]), **search).domains


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


def _status(status: dict[str, str]) -> DataFrame:
    import pandas as pd

    return pd.DataFrame({"domain": list(status), "status": list(status.values())})


def _labels(chosen: Any, domain_key: str, wanted: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """Domain of each row as text, and the domains that are meant; rows without one are refused."""
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
    labels = column.astype(str).to_numpy()
    known: list[str] = sorted(set(labels), key=lambda d: (not d.isdigit(), int(d) if d.isdigit() else 0, d))
    unknown = [d for d in wanted or [] if d not in known]
    if unknown:
        raise MissingError(
            f"no domain {unknown[0]!r} in obs[{domain_key!r}]", where=chosen.where, fix=f"one of: {', '.join(known)}"
        )
    return labels, known if wanted is None else list(wanted)


def _lognorm(values: Any) -> Any:
    from scipy import sparse

    from ..core import normalize
    from ..core.values import is_counts

    values = normalize.log1p_cp10k(values) if is_counts(values) else values
    return sparse.csr_array(values)


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


def _start(chosen: Any, values: Any, inside: np.ndarray, name: str, markers_key: str, gene: str | None) -> int:
    genes = chosen.table.var_names
    stored = chosen.table.uns.get(markers_key)
    if gene is None and isinstance(stored, dict) and "table" in stored:
        rows = stored["table"]
        rows = rows[rows["domain"].astype(str) == name]
        gene = None if len(rows) == 0 else str(rows["gene"].iloc[0])
    if gene is not None:
        if gene not in genes:
            raise MissingError(f"no gene {gene!r}", where=chosen.where, fix="name one of the table's var_names")
        return int(genes.get_loc(gene))
    from ..core.de import compare

    return int(np.nanargmax(compare(values, inside).z))
