"""From regions of a slide to feature tables: joins the store, the region model, an encoder and the engine.

Both `pp.features` and the training and prediction functions stand on this, so that features which are not there yet
are computed once and in one way.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import engine, image, keys, regions, store
from ._progress import progress
from .core import registration
from .errors import MissingError
from .lineage import claim, ids_fingerprint
from .spec import fingerprint, fingerprint_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from spatialdata import SpatialData

    from .encoders import Encoder


def encoder_name(encoder: str | None) -> str:
    """The encoder's name, the documented default where none is given."""
    from . import encoders

    return encoder or encoders.default_name()


def table_name(encoder: str, region: str) -> str:
    """Name of a feature table; element names admit no "+"."""
    return keys.features(encoder.replace("+", "."), region)


def encoder_fingerprint(encoder: Encoder, weights: str | Path | None) -> str:
    """What a model checks: network, weights, pooling and fields; not the device or precision it ran on."""
    return fingerprint(encoder.spec.fingerprint(), fingerprint_file(weights) if weights else "")


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
) -> AnnData:
    """Encode every region and add the table; see `pp.features`."""
    from . import encoders

    name = encoder_name(encoder)
    claim(sdata, key_added or table_name(name, region), step="features")
    where = regions.get(sdata, region)
    opened = image.open_image(sdata, image_key)
    network = encoders.load(name, weights=Path(weights) if weights else None, device=device, precision=precision)
    with progress(f"features {name}", len(where.ids)) as advance:
        values, run = engine.encode_points(opened, where.centres_um, network, batch_size=batch_size, progress=advance)
    table = region_table(values, where, region)
    store.write_element(
        sdata,
        key_added or table_name(name, region),
        table,
        step="features",
        parameters={"region": region, "encoder": name, "image_key": image_key, "batch_size": batch_size},
        inputs={image_key: opened.fingerprint, region: ids_fingerprint(where.ids)},
        more={
            "encoder": {
                "name": name,
                "fingerprint": encoder_fingerprint(network, weights),
                "fields_um": list(network.fields_um),
                "input_px": network.input_px,
                "device": str(network.device),
                "precision": getattr(network, "precision", precision),
            },
            "cache_key": run.key,
            "seconds": round(run.seconds, 3),
            "encoded": run.encoded,
        },
    )
    return table


def ensure_features(
    sdata: SpatialData,
    *,
    region: str,
    encoder: str,
    weights: str | Path | None = None,
    image_key: str = keys.HE,
    device: str = "auto",
) -> tuple[AnnData, dict[str, Any]]:
    """The feature table of a region and its stamp, computed when it is absent or was made from other ids or pixels."""
    name = table_name(encoder, region)
    if name not in sdata.tables or not _fresh(sdata, name, region, image_key):
        write_features(sdata, region=region, encoder=encoder, weights=weights, image_key=image_key, device=device)
    return sdata.tables[name], store.stamp_of(sdata, name) or {}


def _fresh(sdata: SpatialData, name: str, region: str, image_key: str) -> bool:
    inputs = (store.stamp_of(sdata, name) or {}).get("inputs", {})
    ids, pixels = ids_fingerprint(regions.get(sdata, region).ids), store.fingerprint_of(sdata, image_key)
    return inputs.get(region) == ids and inputs.get(image_key) == pixels


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

    opened = image.open_image(sdata, image_key)
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
