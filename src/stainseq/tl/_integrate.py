"""One set of domains over several samples."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

    from ._tables import Expression


def integrate(
    data: Any,
    *,
    n_domains: int,
    method: str | None = None,
    key: str = "integrated",
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    image_features: str | None = None,
    layout: str | None = None,
    csv: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> DataFrame:
    """Divide several samples into domains that mean the same in each.

    Parameters
    ----------
    data
        A list of slides, AnnData, or paths of stores or h5ad files; or one AnnData or file whose ``obs["sample"]``
        names several samples. Genes that all have are used.
    n_domains
        K over all samples together. Exactly that many come out; a sample need not have all of them.
    method
        A domain method (`stainseq list domains`); default the documented default. Edges and neighbours stay inside
        samples; shifts between samples are taken away by the method (standardised genes within each sample in
        "kriging", centred components in "spagcn", a classifier of samples behind a gradient reversal in "deepst").
    key
        Name of the result.
    region, table_key, layer
        Which table and values, as in `domains`.
    image_features
        Name of a features table that every slide has.
    layout
        "hexagon", "square" or "free", for the refinement; default found for each sample.
    csv
        File for the table that is returned.
    out
        File (h5ad) for all samples in one table, with the common genes. A file that was given is never changed.
    seed
        Of everything random. The order of samples and of rows does not matter to it.
    options
        Further options of the method.

    Returns
    -------
    DataFrame
        One row per spot: ``sample``, ``id``, ``domain``, ``refined``, ``probability``. ``DataFrame.attrs["mixing"]`` is
        the mixing score of the embedding: 0 each sample for itself, 1 like one sample. Written to each table:
        ``obs["<key>"]`` (the refined domains), ``obs["<key>.domain"]``, ``obs["<key>.refined"]`` categorical,
        ``obsm["<key>.probabilities"]``, ``obsm["<key>.embedding"]`` and facts in ``uns["<key>"]``.

    Raises
    ------
    InputError
        One sample, two of one name, or no gene in common.
    MissingError
        No such method, table, layer or coordinates.
    """
    import pandas as pd
    from scipy import sparse

    from .. import registry
    from ..core import clusters, normalize
    from ..core.values import is_counts
    from . import _tables
    from ._domains import _image_features

    parts = _samples(data, region=region, table_key=table_key, layer=layer)
    genes = _common_genes(parts)
    name = method or registry.default("domains")
    plugin = registry.load("domains", name)
    given = {"coordinates", "n_domains", "image_features", "samples", "seed"}
    _tables.check_options(plugin.assign, name, options, given=given)
    blocks = [sparse.csr_array(part.values)[:, part.table.var_names.get_indexer(genes)] for part in parts.values()]
    values = sparse.vstack(blocks).tocsr()
    if is_counts(values) and getattr(plugin, "WANTS", "lognorm") != "counts":
        values = normalize.log1p_cp10k(values)
    xy = np.vstack([part.coordinates for part in parts.values()])
    sample = np.repeat(list(parts), [len(part.rows) for part in parts.values()])
    images = None if image_features is None else [_image_features(part, image_features) for part in parts.values()]
    labels, probabilities, embedding, info = plugin.assign(
        values,
        coordinates=xy,
        n_domains=n_domains,
        image_features=None if images is None else np.vstack(images),
        samples=sample,
        seed=seed,
        **options,
    )
    refined = _refined(labels, xy, sample, layout)
    score = clusters.mixing(probabilities if embedding is None else embedding, sample, seed=seed)
    parameters = {
        "method": name, "n_domains": n_domains, "key": key, "samples": list(parts), "seed": seed, **options,
    }  # fmt: skip
    given_too = {"layer": layer, "image_features": image_features, "layout": layout}
    parameters |= {k: v for k, v in given_too.items() if v is not None}
    facts = {"params": parameters, "info": {k: v for k, v in info.items() if np.isscalar(v)}, "mixing": score}
    columns = {"": refined, ".domain": labels, ".refined": refined}
    arrays = {".probabilities": probabilities} | ({} if embedding is None else {".embedding": embedding})
    _write(parts, sample, n_domains, key, columns, arrays, facts)
    for part in _one_per_table(parts):
        part.save(step="integrate", parameters=parameters, out=None)
    table = pd.DataFrame(
        {
            "sample": sample,
            "id": np.concatenate([part.table.obs_names.to_numpy()[part.rows] for part in parts.values()]),
            "domain": labels.astype(str),
            "refined": refined.astype(str),
            "probability": probabilities[np.arange(len(labels)), labels],
        }
    )
    table.attrs["mixing"] = score
    if out is not None:
        _write_joint(parts, genes, key, facts, out)
    if csv is not None:
        _tables.write_csv(table, csv)
    return table


def _samples(data: Any, **which: Any) -> dict[str, Expression]:
    """The samples by name, sorted, so that their order in the call does not matter."""
    from anndata import AnnData

    from . import _tables

    items = data if isinstance(data, (list, tuple)) else [data]
    found: dict[str, Expression] = {}
    for item in items:
        opened = _tables.open_path(item) if isinstance(item, (str, os.PathLike)) else item
        names: list[str | None] = [None]
        if isinstance(opened, AnnData) and keys.SAMPLE in opened.obs:
            names = sorted(set(opened.obs[keys.SAMPLE].astype(str)))
        for name in names:
            part = _tables.expression(opened, sample=name, **which)
            label = name or _name(item, opened, len(found))
            if label in found:
                raise InputError(
                    f"two samples are named {label!r}", where="integrate", fix='name them in obs["sample"]'
                )
            found[label] = part
    if len(found) < 2:
        raise InputError(
            f"{len(found)} sample to integrate", where="integrate",
            fix='give two or more tables, or one with several values of obs["sample"]; for one, use `domains`',
        )  # fmt: skip
    return dict(sorted(found.items()))


def _name(item: Any, opened: Any, number: int) -> str:
    facts = getattr(opened, "attrs", {}).get(keys.STAMP, {}) if not hasattr(opened, "obs") else {}
    if facts.get("slide"):
        return str(facts["slide"])
    if isinstance(item, (str, os.PathLike)):
        return Path(item).name.split(".")[0]
    return f"sample{number + 1}"


def _common_genes(parts: dict[str, Expression]) -> Any:
    tables = [part.table for part in parts.values()]
    genes = tables[0].var_names
    for table in tables[1:]:
        genes = genes[genes.isin(table.var_names)]
    if len(genes) == 0:
        raise InputError("the samples have no gene in common", where="integrate", fix="use the same gene names in all")
    return genes.sort_values()


def _refined(labels: np.ndarray, xy: np.ndarray, sample: np.ndarray, layout: str | None) -> np.ndarray:
    from ..core.refine import refine
    from ._domains import _layout

    kinds = np.empty(len(labels), dtype=object)
    for name in np.unique(sample):
        rows = sample == name
        kinds[rows] = layout or _layout(xy[rows])
    out = labels.copy()
    for kind in sorted(set(kinds)):
        rows = kinds == kind
        out[rows] = refine(labels, xy, layout=kind, samples=sample)[rows]
    while len(lost := np.setdiff1d(labels, out)):  # can only be where samples differ in layout
        back = np.isin(labels, lost)
        out[back] = labels[back]
    return out


def _one_per_table(parts: dict[str, Expression]) -> list[Expression]:
    return list({id(part.table): part for part in parts.values()}.values())


def _write(
    parts: dict[str, Expression],
    sample: np.ndarray,
    k: int,
    key: str,
    columns: dict[str, np.ndarray],
    arrays: dict[str, np.ndarray],
    facts: dict[str, Any],
) -> None:
    """Results into every table; rows of a table that belong to no sample stay empty."""
    import pandas as pd

    names = [str(d) for d in range(k)]
    for first in _one_per_table(parts):
        table = first.table
        mine = [(name, part.rows) for name, part in parts.items() if part.table is table]
        for suffix, values in columns.items():
            codes = np.full(table.n_obs, -1, dtype=np.int64)
            for name, rows in mine:
                codes[rows] = values[sample == name]
            table.obs[f"{key}{suffix}"] = pd.Categorical.from_codes(codes, names)
        for suffix, values in arrays.items():
            full = np.full((table.n_obs, values.shape[1]), np.nan, dtype=np.float32)
            for name, rows in mine:
                full[rows] = values[sample == name]
            table.obsm[f"{key}{suffix}"] = full
        table.uns[key] = facts


def _write_joint(
    parts: dict[str, Expression], genes: Any, key: str, facts: dict[str, Any], out: str | os.PathLike[str]
) -> None:
    """All samples in one table: common genes, values as they were, results, names made unique by the sample's."""
    import anndata
    import pandas as pd
    from scipy import sparse

    from .._files import write_file

    blocks, obs = [], []
    arrays: dict[str, list[np.ndarray]] = {}
    ids = pd.Index(np.concatenate([part.table.obs_names.to_numpy()[part.rows] for part in parts.values()]))
    for name, part in parts.items():
        table = part.table
        blocks.append(sparse.csr_array(part.values)[:, table.var_names.get_indexer(genes)])
        columns = [c for c in (key, f"{key}.domain", f"{key}.refined") if c in table.obs]
        obs.append(table.obs.iloc[part.rows][columns].assign(**{keys.SAMPLE: name}))
        for array in (keys.SPATIAL, f"{key}.probabilities", f"{key}.embedding"):
            if array in table.obsm:
                arrays.setdefault(array, []).append(np.asarray(table.obsm[array])[part.rows])
    frame = pd.concat(obs)
    frame[keys.SAMPLE] = pd.Categorical(frame[keys.SAMPLE])
    frame.index = ids if ids.is_unique else frame[keys.SAMPLE].astype(str) + ":" + ids.astype(str)
    joint = anndata.AnnData(
        sparse.csr_matrix(sparse.vstack(blocks)),
        obs=frame,
        var=pd.DataFrame(index=genes),
        obsm={k: np.concatenate(v) for k, v in arrays.items()},
        uns={key: facts},
    )
    write_file(out, lambda path: joint.write_h5ad(path))
