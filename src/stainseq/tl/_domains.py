"""Spatial domains."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import MissingError

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame
    from spatialdata import SpatialData


def domains(
    data: SpatialData | AnnData | str | os.PathLike[str],
    *,
    n_domains: int,
    method: str | None = None,
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    sample: str | None = None,
    image_features: str | None = None,
    layout: str | None = None,
    key: str | None = None,
    csv: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> DataFrame:
    """Divide the tissue into domains by expression and place.

    Parameters
    ----------
    data
        A slide, an AnnData with ``obsm["spatial"]``, or the path of a store or an h5ad file. Raw counts are turned
        into log(1 + counts per 10,000) unless the method normalises itself; other values (predictions) are taken as
        they are.
    n_domains
        K. Exactly that many come out, before and after refinement.
    method
        Name of a method (`stainseq list domains`); default the documented default.
    region
        With a slide: its counts table is taken, or else its only prediction table.
    table_key
        Name of the table, instead of `region`.
    layer
        Layer instead of X.
    sample
        Value of ``obs["sample"]``, needed where there are several.
    image_features
        Name of a features table of the slide whose rows are joined to the expression by id.
    layout
        "hexagon", "square" or "free": how many neighbours the refinement looks at (6, 4, 10). Default: found from
        the distances of the spots.
    key
        Prefix of the results; default the method.
    csv
        File for the table that is returned.
    out
        File (h5ad) for the table with its results. A file that was given is never changed.
    seed
        Of everything random. Rows are put in a canonical order first, so that shuffled input gives the same domains.
    options
        Further options of the method.

    Returns
    -------
    DataFrame
        One row per spot: ``id``, ``domain``, ``refined`` (after a vote of the neighbours), ``probability`` (of the
        domain before refinement). Domains are "0", "1", ... by falling size. Written to the table:
        ``obs["<key>.domain"]`` and ``obs["<key>.refined"]`` categorical, ``obsm["<key>.probabilities"]`` float32
        [n, K], ``obsm["<key>.embedding"]`` float32 where the method has one, facts in ``uns["<key>"]``.

    Raises
    ------
    MissingError
        No such method, table, layer, sample or coordinates.
    InputError
        Fewer spots than domains, NaN or negative values, no gene that varies.
    """
    import pandas as pd

    from .. import registry
    from ..core import normalize
    from ..core.refine import refine
    from ..core.values import is_counts
    from . import _tables

    _tables.keep_source(data, out, csv)
    chosen = _tables.expression(data, region=region, table_key=table_key, layer=layer, sample=sample)
    name = method or registry.default("domains")
    plugin, key = registry.load("domains", name), key or name
    given = {"coordinates", "n_domains", "image_features", "samples", "seed"}
    _tables.check_options(plugin.assign, name, options, given=given)
    values, wants = chosen.values, getattr(plugin, "WANTS", "lognorm")
    found_layout = layout or _layout(chosen.coordinates)
    labels, probabilities, embedding, info = plugin.assign(
        normalize.log1p_cp10k(values) if is_counts(values) and wants != "counts" else values,
        coordinates=chosen.coordinates,
        n_domains=n_domains,
        image_features=None if image_features is None else _image_features(chosen, image_features),
        seed=seed,
        **options,
    )
    refined = refine(labels, chosen.coordinates, layout=found_layout)
    ids = chosen.table.obs_names.to_numpy()[chosen.rows]
    table = pd.DataFrame(
        {
            "id": ids,
            "domain": labels.astype(str),
            "refined": refined.astype(str),
            "probability": probabilities[np.arange(len(labels)), labels],
        }
    )
    names = [str(k) for k in range(n_domains)]
    for column, codes in (("domain", labels), ("refined", refined)):
        chosen.table.obs[f"{key}.{column}"] = pd.Categorical.from_codes(chosen.column(codes, fill=-1), names)
    chosen.table.obsm[f"{key}.probabilities"] = _all_rows(chosen, probabilities)
    if embedding is not None:
        chosen.table.obsm[f"{key}.embedding"] = _all_rows(chosen, embedding)
    parameters = {"method": name, "n_domains": n_domains, "layout": found_layout, "seed": seed, **options}
    more = {"layer": layer, "sample": sample, "key": key, "image_features": image_features}
    parameters |= {k: v for k, v in more.items() if v is not None}
    chosen.table.uns[key] = {"params": parameters, "info": {k: v for k, v in info.items() if np.isscalar(v)}}
    if csv is not None:
        _tables.write_csv(table, csv)
    chosen.save(step="domains", parameters=parameters, out=out)
    return table


def _all_rows(chosen: Any, values: np.ndarray) -> np.ndarray:
    if len(chosen.rows) == chosen.table.n_obs:
        return values
    full = np.full((chosen.table.n_obs, values.shape[1]), np.nan, dtype=np.float32)
    full[chosen.rows] = values
    return full


def _image_features(chosen: Any, name: str) -> np.ndarray:
    """Rows of a features table, matched by id."""
    if chosen.sdata is None or name not in chosen.sdata.tables:
        there = ", ".join(chosen.sdata.tables) if chosen.sdata is not None else "none"
        raise MissingError(f"no features table {name!r}", where=chosen.where, fix=f"tables there: {there}")
    features = chosen.sdata.tables[name]
    at = features.obs_names.get_indexer(chosen.table.obs_names[chosen.rows])
    if (at < 0).any():
        raise MissingError(
            f"{int((at < 0).sum())} spots have no features",
            where=f"table {name!r}",
            fix="run `stainseq features` again",
        )
    return np.asarray(features.X[at], dtype=np.float32)


def _layout(xy: np.ndarray) -> str:
    """Tell a hexagonal, a square and a free layout by the number of nearest neighbours at one distance."""
    from scipy.spatial import cKDTree

    if len(xy) < 8:
        return "free"
    distance = cKDTree(xy).query(xy, k=min(len(xy), 9))[0][:, 1:]
    pitch = np.median(distance[:, 0])
    if not pitch > 0:
        return "free"
    near = (distance < 1.2 * pitch).sum(1)
    touching = float(np.median(near))
    regular = np.mean(np.abs(distance[:, 0] / pitch - 1) < 0.15)
    if regular < 0.7:
        return "free"
    return "hexagon" if touching > 5 else "square" if touching >= 3 else "free"
