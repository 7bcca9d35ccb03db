"""Spatial domains."""

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


def domains(
    data: SpatialData | AnnData | str | os.PathLike[str],
    *,
    n_domains: int,
    method: str | None = None,
    region: str = keys.SPOTS,
    table_key: str | None = None,
    layer: str | None = None,
    sample: str | None = None,
    histology: bool = False,
    image_features: str | None = None,
    window_um: float = 50.0,
    layout: str | None = None,
    stability: int = 0,
    key: str | None = None,
    csv: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> DataFrame:
    """Divide the tissue into domains by expression and place, with or without its histology.

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
    histology
        Let the H&E have a say: the mean colour around each row (as SpaGCN takes it) joins the expression. An AnnData
        needs its image in ``uns["spatial"]`` as scanpy keeps it.
    image_features
        Vectors that take the place of colour: an encoder whose features of the region are there, any features table of
        the slide (rows are matched by id), or an array in ``obsm``. It implies `histology`.
    window_um
        Side of the square whose colour is taken, um; default 50, about a Visium spot. The scale at which the image is
        stored does not matter.
    layout
        "hexagon", "square" or "free": how many neighbours the refinement looks at (6, 4, 10). Default: found from
        the distances of the spots.
    stability
        Run the method with so many seeds (`seed` and those after it), at least 2, and report the mean adjusted Rand
        index between their domains: 1 where the seed does not matter. 0, the default: one run.
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
        domain before refinement). ``DataFrame.attrs["stability"]`` is the stability, where it was asked for. Domains
        are "0", "1", ... by falling size. Written to the table: ``obs["<key>.domain"]`` and ``obs["<key>.refined"]``
        categorical, ``obsm["<key>.probabilities"]`` float32 [n, K], ``obsm["<key>.embedding"]`` float32 where the
        method has one, facts in ``uns["<key>"]`` (``params``, ``info``, ``stability``).

    Raises
    ------
    MissingError
        No such method, table, layer, sample, coordinates, image or features.
    InputError
        Fewer spots than domains, NaN or negative values, no gene that varies, stability over one seed.
    """
    import pandas as pd

    from .. import registry
    from ..core import normalize
    from ..core.refine import refine
    from ..core.values import is_counts
    from . import _histology, _tables

    if stability < 0 or stability == 1:
        raise InputError(f"stability over {stability} seed(s)", where="stability", fix="ask for 2 or more, or 0")
    _tables.keep_source(data, out, csv)
    chosen = _tables.expression(data, region=region, table_key=table_key, layer=layer, sample=sample)
    name = method or registry.default("domains")
    plugin, key = registry.load("domains", name), key or name
    given = {"coordinates", "n_domains", "image_features", "samples", "seed"}
    _tables.check_options(plugin.assign, name, options, given=given)
    values, wants = chosen.values, getattr(plugin, "WANTS", "lognorm")
    image = None
    if image_features is not None:
        image = _histology.features(chosen, image_features, region=region)
    elif histology:
        image = _histology.colours(chosen, window_um=window_um)
    inputs = {
        "X": normalize.log1p_cp10k(values) if is_counts(values) and wants != "counts" else values,
        "coordinates": chosen.coordinates,
        "n_domains": n_domains,
        "image_features": image,
        **options,
    }
    labels, probabilities, embedding, info = plugin.assign(**inputs, seed=seed)
    score = _stability(plugin, inputs, labels, seed, stability) if stability else None
    found_layout = layout or _layout(chosen.coordinates)
    refined = refine(labels, chosen.coordinates, layout=found_layout)
    table = pd.DataFrame(
        {
            "id": chosen.table.obs_names.to_numpy()[chosen.rows],
            "domain": labels.astype(str),
            "refined": refined.astype(str),
            "probability": probabilities[np.arange(len(labels)), labels],
        }
    )
    parameters = {"method": name, "n_domains": n_domains, "layout": found_layout, "seed": seed}
    parameters |= _tables.settings(plugin.assign, options, given=given)
    more = {"layer": layer, "sample": sample, "key": key, "image_features": image_features}
    parameters |= {k: v for k, v in more.items() if v is not None}
    if histology and image_features is None:
        parameters |= {"histology": True, "window_um": window_um}
    facts = {"params": parameters, "info": {k: v for k, v in info.items() if np.isscalar(v)}}
    if score is not None:
        facts["stability"] = {"ari": score, "n_seeds": stability}
        table.attrs["stability"] = score
    _put(chosen, key, n_domains, {"domain": labels, "refined": refined}, probabilities, embedding)
    chosen.table.uns[key] = facts
    if csv is not None:
        _tables.write_csv(table, csv)
    chosen.save(step="domains", parameters=parameters, out=out)
    return table


def _stability(plugin: Any, inputs: dict[str, Any], first: np.ndarray, seed: int, n_seeds: int) -> float:
    """Mean adjusted Rand index between the domains of seeds seed, seed + 1, ..."""
    from .._progress import progress
    from ..core import clusters

    labelings = [first]
    with progress("other seeds", n_seeds - 1) as advance:
        for other in range(seed + 1, seed + n_seeds):
            labelings.append(plugin.assign(**inputs, seed=other)[0])
            advance(1)
    return clusters.stability(labelings)


def _put(
    chosen: Any,
    key: str,
    k: int,
    columns: dict[str, np.ndarray],
    probabilities: np.ndarray,
    embedding: np.ndarray | None,
) -> None:
    """Results into the table; rows of other samples stay empty."""
    import pandas as pd

    names = [str(i) for i in range(k)]
    for column, codes in columns.items():
        chosen.table.obs[f"{key}.{column}"] = pd.Categorical.from_codes(chosen.column(codes, fill=-1), names)
    chosen.table.obsm[f"{key}.probabilities"] = _all_rows(chosen, probabilities)
    if embedding is not None:
        chosen.table.obsm[f"{key}.embedding"] = _all_rows(chosen, embedding)


def _all_rows(chosen: Any, values: np.ndarray) -> np.ndarray:
    if len(chosen.rows) == chosen.table.n_obs:
        return values
    full = np.full((chosen.table.n_obs, values.shape[1]), np.nan, dtype=np.float32)
    full[chosen.rows] = values
    return full


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
