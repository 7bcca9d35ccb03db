"""Features of regions from an image encoder, and dense feature maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import keys

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from spatialdata import SpatialData


def features(
    sdata: SpatialData,
    *,
    region: str = keys.SPOTS,
    encoder: str | None = None,
    weights: str | Path | None = None,
    image_key: str = keys.HE,
    key_added: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "auto",
) -> SpatialData:
    """Encode the image around every region.

    The window of each region is read at the encoder's field of view in microns (112 um at 0.5 um/px for most; some
    look at several fields) whatever the slide's own resolution, white beyond the slide's edge. Finished batches are
    kept in the feature cache: a killed run resumes inside the slide, and a second run costs nothing.

    Parameters
    ----------
    sdata
        The slide; written to when it is on disk.
    region
        Regions to encode: shapes, labels or a grid.
    encoder
        Name of an encoder (`stainseq list encoders`), or several joined by "+". Default: the documented default.
    weights
        A local file for encoders whose weights do not come with the package.
    image_key
        Image element.
    key_added
        Name of the table; default ``features_<encoder>_<region>`` ("+" is written as ".").
    batch_size
        Windows per call of the encoder: speed and memory. Changes no value on a CPU, and on a GPU none beyond the last
        digits of its precision; a run that was killed may be resumed with another.
    device
        "auto" (a GPU when there is one), "cpu", "cuda", ...
    precision
        "auto": float32 on CPU, the encoder's own mixed precision on GPU.

    Returns
    -------
    SpatialData
        The same object; adds ``tables[key_added]``: X float32 [n, dim], obs_names the region's ids,
        obsm["spatial"] centres in um, uns["stainseq"] the encoder, its fingerprint and the inputs.

    Raises
    ------
    MissingError
        There is no such region, image or encoder.
    AccessError
        The encoder's weights cannot be had; the message says how.
    """
    from .. import featurise

    featurise.write_features(
        sdata,
        region=region,
        encoder=encoder,
        weights=weights,
        image_key=image_key,
        key_added=key_added,
        batch_size=batch_size,
        device=device,
        precision=precision,
    )
    return sdata


def feature_map(
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
    """Dense map of an encoder's tokens over the tissue.

    Parameters
    ----------
    sdata
        The slide.
    encoder, weights, image_key, device, precision
        As in `features`; of an encoder with several fields the first is used.
    tissue_key
        Shapes that say where to look; None for the whole image.
    halo_tokens
        Tokens dropped at each side of a window (they see too little around them); default a quarter of the window.

    Returns
    -------
    tuple
        float16 [rows, cols, dim], a memory map in the feature cache (NaN off the tissue), and float [3, 3] from
        (column, row) to microns; token i covers [i, i + 1). Feed both to `pool`.
    """
    from .. import featurise

    return featurise.dense_map(
        sdata,
        encoder=encoder,
        weights=weights,
        image_key=image_key,
        tissue_key=tissue_key,
        halo_tokens=halo_tokens,
        device=device,
        precision=precision,
    )


def pool(
    sdata: SpatialData, tokens: np.ndarray, to_um: np.ndarray, *, region: str, key_added: str, **about: Any
) -> AnnData:
    """Mean of a dense map under every region.

    Parameters
    ----------
    sdata
        The slide; written to when it is on disk.
    tokens, to_um
        From `feature_map`.
    region
        Regions to pool under.
    key_added
        Name of the table.
    about
        Facts to keep in the table's stamp (the encoder's name, for instance).

    Returns
    -------
    AnnData
        The table that was added; rows of regions without any token are NaN.
    """
    from .. import featurise

    return featurise.write_pooled(sdata, tokens, to_um, region=region, key_added=key_added, about=about)
