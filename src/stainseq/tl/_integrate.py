"""One set of domains over several samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from .._files import check_output, write_file
from ..errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

    from ._tables import Expression


def integrate(
    data: Any,
    *,
    n_domains: int,
    method: str | None = None,
    correction: Literal["none", "centre", "harmony"] | None = None,
    key: str = "integrated",
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    histology: bool = False,
    image_features: str | None = None,
    window_um: float = 50.0,
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
        "kriging", centred components in "spagcn" and "kmeans", a classifier of samples behind a gradient reversal in
        "deepst").
    correction
        Instead, in "kmeans" and "kriging": "none", "centre" (the mean of each sample) or "harmony" (needs harmonypy).
        Harmony mixes more and hits known layers less in "kriging", more in "kmeans".
    key
        Name of the result.
    region, table_key, layer
        Which table and values, as in `domains`. For images alone, `table_key` names a features table.
    histology, image_features, window_um
        Colour of the H&E, or an encoder's features, joined to the expression, as in `domains`.
    layout
        "hexagon", "square" or "free", for the refinement; default found for each sample.
    csv
        File for the table that is returned.
    out
        File (h5ad) for all samples in one table, with the common genes; or a folder, for that (joint.h5ad) and each
        sample's own table (samples/NAME.h5ad). Without it, results are written into the slides; a file that was given
        is never changed.
    seed
        Of everything random. The order of samples and of rows does not matter to it.
    options
        Further options of the method.

    Returns
    -------
    DataFrame
        One row per spot: ``sample``, ``id``, ``domain``, ``refined``, ``probability``. ``DataFrame.attrs["mixing"]`` is
        the mixing score of the embedding (`core.clusters.mixing`, integration LISI): 0 each sample for itself, 1 like
        one sample. Written to each table: ``obs["<key>"]`` (the refined domains), ``obs["<key>.domain"]``,
        ``obs["<key>.refined"]`` categorical, ``obsm["<key>.probabilities"]``, ``obsm["<key>.embedding"]`` and facts in
        ``uns["<key>"]``.

    Raises
    ------
    InputError
        One sample, two of one name, no gene in common, counts in some samples only, NaN or negative counts.
    MissingError
        No such method, table, layer or coordinates.
    """
    import pandas as pd

    from .. import registry
    from ..core import clusters
    from . import _tables

    _check_outputs(data, csv, out)
    parts = _samples(data, region=region, table_key=table_key, layer=layer)
    _check_outputs(data, csv, out, [*parts])
    genes = _common_genes(parts)
    name = method or registry.default("domains")
    plugin = registry.load("domains", name)
    options |= {} if correction is None else {"correction": correction}
    given = {"coordinates", "n_domains", "image_features", "samples", "seed"}
    _tables.check_options(plugin.assign, name, options, given=given)
    xy = np.vstack([part.coordinates for part in parts.values()])
    sample = np.repeat(list(parts), [len(part.rows) for part in parts.values()])
    labels, probabilities, embedding, info = plugin.assign(
        _values(parts, genes, counts=getattr(plugin, "WANTS", "lognorm") == "counts"),
        coordinates=xy,
        n_domains=n_domains,
        image_features=_images(parts, histology, image_features, region=region, window_um=window_um),
        samples=sample,
        seed=seed,
        **options,
    )
    refined = _refined(labels, xy, sample, layout)
    order = np.lexsort((xy[:, 0], xy[:, 1], sample))  # so that which rows are looked at does not depend on theirs
    score = clusters.mixing((probabilities if embedding is None else embedding)[order], sample[order], seed=seed)
    parameters = {"method": name, "n_domains": n_domains, "key": key, "samples": list(parts), "seed": seed}
    parameters |= _tables.settings(plugin.assign, options, given=given)
    given_too = {"layer": layer, "image_features": image_features, "layout": layout}
    parameters |= {k: v for k, v in given_too.items() if v is not None}
    parameters |= {"histology": True, "window_um": window_um} if histology and image_features is None else {}
    facts = {"params": parameters, "info": {k: v for k, v in info.items() if np.isscalar(v)}, "mixing": score}
    columns = {"": refined, ".domain": labels, ".refined": refined}
    arrays = {".probabilities": probabilities} | ({} if embedding is None else {".embedding": embedding})
    _write(parts, sample, n_domains, key, columns, arrays, facts)
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
    if csv is not None:
        _tables.write_csv(table, csv)
    if out is None:
        for part in _one_per_table(parts):
            part.save(step="integrate", parameters=parameters, out=None)
    else:
        _write_files(parts, genes, key, facts, Path(out))
    return table


def _images(
    parts: dict[str, Expression], histology: bool, name: str | None, *, region: str, window_um: float
) -> np.ndarray | None:
    from . import _histology

    if name is not None:
        return np.vstack([_histology.features(part, name, region=region) for part in parts.values()])
    if histology:
        return np.vstack([_histology.colours(part, window_um=window_um) for part in parts.values()])
    return None


def _write_files(parts: dict[str, Expression], genes: Any, key: str, facts: dict[str, Any], out: Path) -> None:
    if out.suffix == ".h5ad":
        _write_joint(parts, genes, key, facts, out)
        return
    joint, *each = _files(out, [*parts])
    _write_joint(parts, genes, key, facts, joint)
    for part, path in zip(parts.values(), each, strict=True):
        _write_own(part, path)


def _files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The joint table's, then each sample's."""
    return [folder / "joint.h5ad", *(folder / "samples" / f"{name.replace('/', '_')}.h5ad" for name in names)]


def _check_outputs(
    data: Any, csv: str | os.PathLike[str] | None, out: str | os.PathLike[str] | None, names: Sequence[str] = ()
) -> None:
    """Before any work: that outputs can be written and replace no source."""
    from . import _tables

    outputs: list[Any] = [csv]
    if out is not None and Path(out).suffix == ".h5ad":
        outputs.append(out)
    elif out is not None:
        folder = Path(out)
        if folder.exists() and not folder.is_dir():
            raise InputError("this is a file, and not .h5ad", where=out, fix="name a folder, or a file NAME.h5ad")
        if not folder.exists():
            check_output(folder)
        files = _files(folder, names)
        twice = [file for file in files if files.count(file) > 1]
        if twice:
            raise InputError("two samples would be written to one file", where=twice[0], fix="rename one")
        outputs += [file for file in files if file.parent.is_dir()]
    check_output(*outputs)
    for item in data if isinstance(data, (list, tuple)) else [data]:
        _tables.keep_source(item, *outputs)


def _values(parts: dict[str, Expression], genes: Any, *, counts: bool) -> Any:
    """Expression of all samples, one below the other: raw where it is counts and the method wants these."""
    from scipy import sparse

    from ..core import normalize
    from ..core.values import is_counts

    blocks = []
    for name, part in parts.items():
        at = part.table.var_names.get_indexer(genes)
        block = part.values
        block = sparse.csr_array(block) if sparse.issparse(block) else np.asarray(block)
        if not np.isfinite(block.data if sparse.issparse(block) else block).all():
            raise InputError(
                "expression holds NaN or infinite values", where=f"sample {name!r}", fix="remove those rows or genes"
            )
        blocks.append(block if np.array_equal(at, np.arange(part.table.n_vars)) else block[:, at])
    kinds = {name: is_counts(block) for name, block in zip(parts, blocks, strict=True)}
    if len(set(kinds.values())) > 1:
        raw, other = (next(n for n, kind in kinds.items() if kind is wanted) for wanted in (True, False))
        raise InputError(
            f"sample {raw!r} holds raw counts, sample {other!r} does not", where="integrate",
            fix="name a table or layer that is the same in all",
        )  # fmt: skip
    mixed = any(sparse.issparse(block) for block in blocks)
    values = sparse.vstack(blocks).tocsr() if mixed else np.vstack(blocks)
    return normalize.log1p_cp10k(values) if all(kinds.values()) and not counts else values


def _samples(data: Any, **which: Any) -> dict[str, Expression]:
    """The samples by name, sorted, so that their order in the call does not matter."""
    from . import _tables

    found: dict[str, Expression] = {}
    for item in data if isinstance(data, (list, tuple)) else [data]:
        opened = (
            _tables.open_path(item, modality=which.get("table_key")) if isinstance(item, (str, os.PathLike)) else item
        )
        part = _tables.expression(opened, several=True, **which)
        for name, rows in part.samples.items():
            label = name or _name(item, opened, len(found))
            if label in found:
                raise InputError(
                    f"two samples are named {label!r}", where="integrate", fix='name them in obs["sample"]'
                )
            found[label] = replace(part, rows=rows, samples={label: rows})
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

    arrays: dict[str, list[np.ndarray]] = {}
    obs = []
    ids = pd.Index(np.concatenate([part.table.obs_names.to_numpy()[part.rows] for part in parts.values()]))
    for name, part in parts.items():
        obs.append(part.table.obs.iloc[part.rows].assign(**{keys.SAMPLE: name}))
        for array in (keys.SPATIAL, f"{key}.probabilities", f"{key}.embedding"):
            if array in part.table.obsm:
                arrays.setdefault(array, []).append(np.asarray(part.table.obsm[array])[part.rows])
    frame = _common_columns(obs)
    frame.index = ids if ids.is_unique else frame[keys.SAMPLE].astype(str) + ":" + ids.astype(str)
    values = _values(parts, genes, counts=True)
    joint = anndata.AnnData(
        sparse.csr_matrix(values) if sparse.issparse(values) else values,
        obs=frame,
        var=pd.DataFrame(index=genes),
        obsm={k: np.concatenate(v) for k, v in arrays.items()},
        uns={key: facts},
    )
    write_file(out, lambda path: joint.write_h5ad(path))


def _common_columns(frames: list[DataFrame]) -> DataFrame:
    """Rows below one another, with the columns that all have in one type."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for name in frames[0].columns:
        if not all(name in frame for frame in frames):
            continue
        pieces = [frame[name] for frame in frames]
        if all(isinstance(piece.dtype, pd.CategoricalDtype) for piece in pieces):
            same = len({piece.cat.categories.dtype for piece in pieces}) == 1
            if same:
                columns[name] = pd.api.types.union_categoricals([p.cat.as_unordered() for p in pieces])
        elif len({piece.dtype for piece in pieces}) == 1:
            columns[name] = np.concatenate([piece.to_numpy() for piece in pieces])
    frame = pd.DataFrame(columns)
    frame[keys.SAMPLE] = pd.Categorical(frame[keys.SAMPLE])
    return frame


def _write_own(part: Expression, path: Path) -> None:
    whole = len(part.rows) == part.table.n_obs
    own = part.table if whole else part.table[part.rows]
    write_file(path, lambda staged: own.write_h5ad(staged))
