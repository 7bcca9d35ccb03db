"""Metagenes: sums and differences of genes that mark a domain."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from .._files import check_output
from ..errors import InputError, MissingError
from ._markers import labels_of, lognorm

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame
    from spatialdata import SpatialData

    from ..core.metagene import Metagene
    from ._tables import Expression


def metagene(
    data: SpatialData | AnnData | str | os.PathLike[str],
    *,
    target: str | Sequence[str],
    domain_key: str,
    markers_key: str = "markers",
    start_gene: str | None = None,
    max_iter: int = 3,
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    sample: str | Sequence[str] | None = None,
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
        Domain to mark, or several; "all" is every domain (unless one has that name).
    domain_key
        Column of obs with the domains.
    markers_key
        Entry of uns with markers; the target's first is the start gene unless one is named.
    start_gene
        Gene to start from. Without it and without markers: the gene with the highest rank sum.
    max_iter
        Rounds at most; each adds one gene and subtracts one.
    region, table_key, layer
        Which table and values, as in `svg`.
    sample
        Values of ``obs["sample"]``; default all, taken together.
    key
        Column of obs and entry of uns for the result; default "metagene.<target>", with "_" for "/", which AnnData does
        not allow in names. For several targets it stands for "metagene".
    csv
        File for the table that is returned.
    out
        File (h5ad) for the table with its results. A file that was given is never changed.

    Returns
    -------
    DataFrame
        ``domain``, ``gene``, ``sign`` (+1, -1), ``round`` (0 is the start gene), ``difference`` (of means inside and
        outside the domain, after the round) and ``outside`` (spots outside the domain that looked like it before the
        round). Written to the table: ``obs["<key>"]`` float64, ``uns["<key>"]`` with ``genes``, ``signs``, ``formula``
        and ``params``.

    Raises
    ------
    MissingError
        No such table, column, domain or gene.
    InputError
        One domain only; NaN or negative counts; two targets whose results would have one name.

    Notes
    -----
    J. Hu et al., SpaGCN, Nature Methods 18, 1342 (2021).
    """
    import pandas as pd

    from ..core.metagene import find_metagene
    from . import _tables

    _tables.keep_source(data, out, csv)
    check_output(out, csv)
    chosen = _tables.expression(data, region=region, table_key=table_key, layer=layer, sample=sample, several=True)
    asked: list[str] | None = [target] if isinstance(target, str) else list(target)
    several = not isinstance(target, str)
    if target == "all" and "all" not in set(chosen.table.obs.get(domain_key, ())):
        asked, several = None, True
    codes, names, wanted = labels_of(chosen, domain_key, asked)
    places = [_place(names[code], key, several) for code in wanted]
    if len(set(places)) < len(places):
        twice = next(p for p in places if places.count(p) > 1)
        raise InputError(f"two metagenes would be named {twice!r}", where=chosen.where, fix="ask for one at a time")
    if len(names) < 2:
        raise InputError(f"obs[{domain_key!r}] has one domain", where=chosen.where, fix="a metagene needs two or more")
    values, genes = lognorm(chosen), chosen.table.var_names
    shared = {"domain_key": domain_key, "max_iter": max_iter}
    shared |= {k: v for k, v in {"layer": layer, "sample": sample}.items() if v is not None}
    frames = []
    starts = _starts(chosen, values, codes, {code: names[code] for code in wanted}, markers_key, start_gene)
    for code, place in zip(wanted, places, strict=True):
        start = starts[code]
        found = find_metagene(values, codes == code, start, max_iter=max_iter)
        frames.append(_rounds(found, genes).assign(domain=names[code]))
        chain = [f"{'+' if s > 0 else '-'} {genes[g]}" for g, s in zip(found.genes, found.signs, strict=True)]
        chosen.table.obs[place] = chosen.column(found.values)
        chosen.table.uns[place] = {
            "genes": genes[found.genes].to_numpy(dtype=object),
            "signs": found.signs,
            "formula": " ".join(chain).removeprefix("+ "),
            "params": {"target": names[code], "start_gene": str(genes[start]), "key": place, **shared},
        }
    table = pd.concat(frames, ignore_index=True)[["domain", "gene", "sign", "round", "difference", "outside"]]
    table.attrs["keys"] = {names[code]: place for code, place in zip(wanted, places, strict=True)}
    if csv is not None:
        _tables.write_csv(table, csv)
    chosen.save(step="metagene", parameters={"targets": [names[code] for code in wanted], **shared}, out=out)
    return table


def _place(domain: str, key: str | None, several: bool) -> str:
    if key is not None and not several:
        return key
    return f"{key or 'metagene'}.{domain.replace('/', '_')}"


def _rounds(found: Metagene, genes: Any) -> DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "gene": genes[found.genes],
            "sign": found.signs,
            "round": np.concatenate([[0], np.repeat(np.arange(1, len(found.steps) + 1), 2)]),
            "difference": [np.nan, *np.repeat([s.difference for s in found.steps], 2)],
            "outside": [np.nan, *np.repeat([float(s.outside) for s in found.steps], 2)],
        }
    )


def _starts(
    chosen: Expression,
    values: Any,
    codes: np.ndarray,
    targets: dict[int, str],
    markers_key: str,
    gene: str | None,
) -> dict[int, int]:
    """Number of the gene that each target's search starts from."""
    from ..core.de import compare_all

    genes, stored = chosen.table.var_names, chosen.table.uns.get(markers_key)
    rows = stored["table"] if isinstance(stored, dict) and "table" in stored else None
    found: dict[int, int] = {}
    for code, name in targets.items():
        first = gene
        if gene is None and rows is not None and (mine := rows["domain"].astype(str) == name).any():
            first = str(rows.loc[mine, "gene"].iloc[0])
        if first is not None:
            if first not in genes:
                raise MissingError(f"no gene {first!r}", where=chosen.where, fix="name one of the table's var_names")
            found[code] = int(genes.get_loc(first))
    open_ = {
        code: [other for other in range(codes.max() + 1) if other != code] for code in targets if code not in found
    }
    for code, one in zip(open_, compare_all(values, codes, open_), strict=True):
        if np.isnan(one.z).all():
            raise InputError(
                "no gene varies", where=chosen.where, fix="check that the table holds counts of these spots"
            )
        found[code] = int(np.nanargmax(one.z))
    return found
