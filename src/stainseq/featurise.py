"""From regions of a slide to feature tables: joins the store, the region model, an encoder and the engine.

Both `pp.features` and the training and prediction functions stand on this, so that features which are not there yet
are computed once and in one way.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import dense, engine, image, keys, regions, store
from ._progress import progress
from .core import registration
from .errors import InputError, MissingError
from .lineage import claim, ids_fingerprint
from .spec import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from .encoders import Encoder


MODES = ("auto", "windows", "dense")
"""How regions become features: a window of the encoder's field around each, or means of its dense maps."""


def encoder_name(encoder: str | None) -> str:
    """The encoder's name, the documented default where none is given."""
    from . import encoders

    return encoder or encoders.default_name()


def table_name(encoder: str, region: str) -> str:
    """Name of a feature table; element names admit no "+"."""
    return keys.features(encoder.replace("+", "."), region)


def encoder_fingerprint(encoder: Encoder, weights: str | Path | None, *, scales_um: Sequence[float] = ()) -> str:
    """What a model checks: network, weights, pooling, fields and scales; not the device or precision it ran on.

    Parameters
    ----------
    encoder
        The encoder.
    weights
        Local file it was loaded from.
    scales_um
        Squares over which dense maps were averaged; none for windows.
    """
    from .encoders.access import source_of

    source = source_of(Path(weights)) if weights else ""
    if not len(scales_um):
        return fingerprint(encoder.spec.fingerprint(), source)
    return dense.model_fingerprint(encoder, scales_um, source)


def write_features(
    sdata: SpatialData,
    *,
    region: str,
    encoder: str | None = None,
    weights: str | Path | None = None,
    image_key: str = keys.HE,
    key_added: str | None = None,
    batch_size: int = engine.BATCH,
    device: str = "auto",
    precision: str = "auto",
    mode: str = "auto",
    scales_um: Sequence[float] | None = None,
) -> AnnData:
    """Encode every region and add the table; see `pp.features`."""
    from . import encoders

    if mode not in MODES:
        raise InputError(f"mode {mode!r}", fix=f"one of: {', '.join(MODES)}")
    if mode == "windows" and scales_um is not None:
        raise InputError("windows have no scales, their fields are the encoder's", fix="mode='dense' (--mode dense)")
    name = encoder_name(encoder)
    key = key_added or table_name(name, region)
    claim(sdata, key, step="features")
    where = regions.get(sdata, region)
    opened = image.open_registered(sdata, image_key)
    network = encoders.load(name, weights=Path(weights) if weights else None, device=device, precision=precision)
    densely = mode == "dense" or (mode == "auto" and (scales_um is not None or dense.is_fine(where, network)))
    run: engine.Run | dense.Run
    scales = dense.scales_for(where, scales_um) if densely else ()
    with progress(f"features {name}", None if densely else len(where)) as advance:
        if densely:
            values, run = dense.encode(opened, where, network, scales_um=scales, progress=advance)
        else:
            values, run = engine.encode_points(
                opened, where.centres_um, network, batch_size=batch_size, progress=advance
            )
    table = region_table(values, where, region)
    coverage: dict[str, Any] = {}
    if isinstance(run, dense.Run):
        table.obsm["coverage"] = run.coverage
        coverage = {"coverage": [round(float(v), 4) for v in run.coverage.mean(axis=0)]}
    facts = {
        "name": name,
        "fingerprint": encoder_fingerprint(network, weights, scales_um=scales),
        "mode": "dense" if densely else "windows",
        "scales_um": list(scales),
        "fields_um": list(network.fields_um),
        "input_px": network.input_px,
        "device": str(network.device),
        "precision": getattr(network, "precision", precision),
    }
    store.write_element(
        sdata,
        key,
        table,
        step="features",
        parameters={"region": region, "encoder": name, "image_key": image_key, "batch_size": batch_size, "mode": mode},
        inputs={image_key: opened.fingerprint, region: ids_fingerprint(where.ids)},
        more={
            "encoder": facts,
            "cache_key": run.key,
            "seconds": round(run.seconds, 3),
            "encoded": run.encoded,
            **coverage,
        },
    )
    return sdata.tables[key]


def ensure_features(
    sdata: SpatialData,
    *,
    region: str,
    encoder: str,
    weights: str | Path | None = None,
    image_key: str = keys.HE,
    device: str = "auto",
    like: Mapping[str, Any] | None = None,
) -> tuple[AnnData, dict[str, Any]]:
    """The feature table of a region and its stamp, computed when it is absent or was made from other ids or pixels.

    Parameters
    ----------
    sdata
        The slide.
    region, encoder, weights, image_key, device
        As in `pp.features`; `encoder` may also be the name of a map or table that was put in with ``--map``.
    like
        The ``encoder`` facts of other features (of another slide, or of what a model learned from): a table that was
        made in another way (windows or dense, other scales) is made again in theirs. Facts without a mode are those
        of windows. Default: a table that is there counts, however it was made, and else `pp.features` decides.

    Raises
    ------
    MissingError
        Features of a map that this slide lacks: nothing here can compute them.
    """
    name = table_name(encoder, region)
    if name not in sdata.tables and encoder in sdata.tables:
        given = (store.stamp_of(sdata, encoder) or {}).get("encoder") or {}
        name = encoder if given.get("mode") == "map" else name
    stamp = store.stamp_of(sdata, name) or {} if name in sdata.tables else {}
    mapped = (like or stamp.get("encoder") or {}).get("mode") == "map"
    fresh = bool(stamp) and _fresh(sdata, name, region, image_key)
    if mapped:
        if not fresh or stamp["encoder"]["mode"] != "map":
            raise MissingError(
                f"no features {encoder!r} of {region} as they now are, and they come from a map",
                where=sdata.path,
                fix=f"run `stainseq features SLIDE --region {region} --map FILE --key {encoder}`",
            )
        return sdata.tables[name], stamp
    if not fresh or not _alike(stamp.get("encoder", {}), like):
        as_before: dict[str, Any] = like if isinstance(like, dict) else (stamp.get("encoder") if stamp else None) or {}
        mode = as_before.get("mode", "windows") if as_before else "auto"
        scales = (as_before.get("scales_um") or None) if mode == "dense" else None
        write_features(
            sdata,
            region=region,
            encoder=encoder,
            weights=weights,
            image_key=image_key,
            device=device,
            mode=mode,
            scales_um=scales,
        )
    return sdata.tables[name], store.stamp_of(sdata, name) or {}


def colour_like(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The way of the colour baseline beside features: theirs, and dense at its own scales beside a map."""
    mode = facts.get("mode", "windows")
    scales = list(facts.get("scales_um") or [])
    if mode == "map":
        return {"mode": "dense", "scales_um": sorted({*scales, *dense.CONTEXT_UM})}
    return {"mode": mode, "scales_um": scales}


def _alike(facts: Mapping[str, Any], like: Mapping[str, Any] | None) -> bool:
    """Whether features were made in the same way, whatever the encoder."""
    if like is None:
        return True
    ours, theirs = ((f.get("mode", "windows"), list(f.get("scales_um") or [])) for f in (facts, like))
    return ours == theirs


def _fresh(sdata: SpatialData, name: str, region: str, image_key: str) -> bool:
    inputs = (store.stamp_of(sdata, name) or {}).get("inputs", {})
    ids, pixels = ids_fingerprint(regions.get(sdata, region).ids), store.fingerprint_of(sdata, image_key)
    return inputs.get(region) == ids and inputs.get(image_key) == pixels


def write_map(
    sdata: SpatialData,
    file: str | Path,
    *,
    region: str,
    key_added: str,
    mpp: float | None = None,
    to_um: np.ndarray | None = None,
    scales_um: Sequence[float] | None = None,
    image_key: str = keys.HE,
) -> AnnData:
    """Features from a dense map that somebody else made; see `pp.features_from_map`."""
    from . import _maps

    claim(sdata, key_added, step="features")
    where = regions.get(sdata, region)
    opened = image.open_registered(sdata, image_key)
    with _maps.opened(Path(file)) as (values, content):
        scales = dense.scales_for(where, scales_um) if scales_um is not None else (dense.own_um(where),)
        frame = dense.lay_map(opened, where, values.shape[:2], mpp=mpp, to_um=to_um)
        made, run = dense.pool_map(opened, where, values, frame, scales, content=content)
    table = region_table(made, where, region)
    table.obsm["coverage"] = run.coverage
    name = _map_name(key_added, region)
    store.write_element(
        sdata,
        key_added,
        table,
        step="features",
        parameters={"region": region, "image_key": image_key, "map": Path(file).name, "map_mpp": mpp},
        inputs={image_key: opened.fingerprint, region: ids_fingerprint(where.ids), "map": content},
        more={
            "encoder": {
                "name": name,
                "fingerprint": fingerprint("map", name, int(made.shape[1]), [float(s) for s in scales]),
                "mode": "map",
                "scales_um": list(scales),
                "to_um": frame.to_um.tolist(),
            },
            "cache_key": run.key,
            "seconds": round(run.seconds, 3),
            "encoded": 0,
            "coverage": [round(float(v), 4) for v in run.coverage.mean(axis=0)],
        },
    )
    return sdata.tables[key_added]


def _map_name(key: str, region: str) -> str:
    """What `encoder=` has to be for features of that key."""
    start, end = table_name("", region)[: -len(region) - 1], f"_{region}"
    return key[len(start) : -len(end)] if key.startswith(start) and key.endswith(end) else key


def dense_map(
    sdata: SpatialData,
    *,
    encoder: str | None = None,
    weights: str | Path | None = None,
    image_key: str = keys.HE,
    tissue_key: str | None = keys.TISSUE,
    halo_tokens: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """Token map over the tissue; see `pp.feature_map`."""
    import shapely

    from . import encoders

    opened = image.open_registered(sdata, image_key)
    network = encoders.load(
        encoder_name(encoder), weights=Path(weights) if weights else None, device=device, precision=precision
    )
    keep: Callable[[tuple[float, float, float, float]], bool] | None = None
    if tissue_key is None:
        height, width = opened.shape
        corners = registration.apply(opened.to_um, np.array([[0, 0], [width, 0], [0, height], [width, height]]))
        box = (*corners.min(0), *corners.max(0))
    else:
        if tissue_key not in sdata.shapes:
            raise MissingError(f"no shapes {tissue_key!r}", where=sdata.path, fix="run `stainseq tissue` first")
        outline = shapely.union_all(sdata.shapes[tissue_key].geometry.to_numpy())
        shapely.prepare(outline)
        box = shapely.bounds(outline)

        def keep(core: tuple[float, float, float, float]) -> bool:
            return bool(shapely.intersects(outline, shapely.box(*core)))

    x0, y0, x1, y1 = (float(v) for v in box)
    with progress(f"feature map {network.name}", None) as advance:
        values, to_um, _ = engine.encode_map(
            opened, (x0, y0, x1, y1), network, halo_tokens=halo_tokens, keep=keep, progress=advance
        )
    return values, to_um


def write_pooled(
    sdata: SpatialData, tokens: np.ndarray, to_um: np.ndarray, *, region: str, key_added: str, about: dict[str, Any]
) -> AnnData:
    """Mean of a dense map under every region; see `pp.pool`."""
    claim(sdata, key_added, step="pool")
    where = regions.get(sdata, region)
    values = regions.pool(tokens, to_um, where)
    table = region_table(values, where, region)
    store.write_element(
        sdata,
        key_added,
        table,
        step="pool",
        parameters={"region": region, "to_um": np.asarray(to_um).tolist(), **about},
        inputs={region: ids_fingerprint(where.ids)},
    )
    return table


def region_table(values: np.ndarray, where: Any, region: str) -> AnnData:
    """A table over a region's ids, linked as spatialdata requires."""
    import pandas as pd
    from anndata import AnnData
    from spatialdata.models import TableModel

    obs = pd.DataFrame(index=pd.Index(where.ids.astype(str)))
    obs[keys.REGION_KEY] = pd.Categorical([region] * len(obs))
    obs[keys.INSTANCE_KEY] = where.labels if getattr(where, "labels", None) is not None else where.ids.astype(str)
    table = AnnData(X=np.asarray(values), obs=obs)
    table.obsm[keys.SPATIAL] = np.asarray(where.centres_um, dtype=float)
    return TableModel.parse(table, region=region, region_key=keys.REGION_KEY, instance_key=keys.INSTANCE_KEY)
