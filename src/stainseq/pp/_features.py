"""Features of regions from an image encoder, and dense feature maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import keys

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    mode: Literal["auto", "windows", "dense"] = "auto",
    scales_um: Sequence[float] | None = None,
) -> SpatialData:
    """Encode the image around every region.

    "windows": the window of each region is read at the encoder's field of view in microns (112 um at 0.5 um/px for
    most; some look at several fields) whatever the slide's own resolution, white beyond the slide's edge.

    "dense": the slide goes through the encoder once, window by window; each region gets the mean of the tokens under
    it, and of those in wider squares around it, each token by the area that lies in the square. Of the wider squares
    only tissue on the slide counts. 200 times less work on superpixels, and the cell itself is told from what is
    around it.

    Finished batches are kept in the feature cache: a killed run resumes inside the slide, and a second run costs
    nothing.

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
    mode
        How regions are encoded; "auto" is dense for grids with a pitch of at most a quarter of the encoder's field
        (superpixels, bins), and windows for all else. A model remembers the mode and scales it learned from, and
        prediction takes the same.
    scales_um
        Of dense features: sides in um of the squares around each centre, ascending. Default: the grid's pitch (8 for
        regions that are no grid), 32 (the neighbouring cells) and 112 (what a window sees).

    Returns
    -------
    SpatialData
        The same object; adds ``tables[key_added]``: X float32 [n, dim], obs_names the region's ids,
        obsm["spatial"] centres in um, uns["stainseq"] the encoder, its fingerprint, mode, scales and the inputs.
        Dense: X float16 [n, scales * token numbers], ordered by part (member and field), scale, channel;
        obsm["coverage"] float32 [n, scales], the share of each square that counted. Regions off the slide have
        coverage 0 and the values of the nearest token on it.

    Raises
    ------
    InputError
        An unknown mode, scales that do not ascend, or dense features of an encoder without tokens.
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
        mode=mode,
        scales_um=scales_um,
    )
    return sdata


def features_from_map(
    sdata: SpatialData,
    file: str | Path,
    *,
    region: str = keys.SUPERPIXELS,
    key_added: str,
    mpp: float | None = None,
    to_um: np.ndarray | None = None,
    scales_um: Sequence[float] | None = None,
    image_key: str = keys.HE,
) -> SpatialData:
    """Take features from a dense map that another program made.

    Train and predict with ``encoder=key_added``, on slides that all have features of that name.

    Parameters
    ----------
    sdata
        The slide; written to when it is on disk.
    file
        .npy or .zarr of [rows, columns, features], or the pickle of iStar's and Pixel2Gene's HIPT embeddings (a dict of
        cls, sub and rgb; read without running anything in it).
    region
        Regions to pool under.
    key_added
        Name of the table.
    mpp
        Microns per token of a map that starts at the image's first pixel (8 for HIPT embeddings, which are padded at
        the far ends). Default: a token a bin where the map has the grid's shape, else the map covers the image.
    to_um
        float [3, 3] from (column, row) of the map to microns, where it lies otherwise; token i covers [i, i + 1).
    scales_um
        Sides in um of the squares whose means become features; default the grid's pitch (8 for other regions) alone.
    image_key
        The image that the map was made from.

    Returns
    -------
    SpatialData
        The same object; adds ``tables[key_added]``: X float32 (float16 of a float16 map) [n, scales * features],
        obsm["coverage"] the share of each square with values (tokens with any NaN do not count).

    Raises
    ------
    MissingError
        No such file, region or image.
    FormatError
        A file that is no map, or a pickle with anything but arrays of numbers.
    ScaleError
        A map that fits neither the grid nor the image, without `mpp`.
    """
    from .. import featurise

    featurise.write_map(
        sdata,
        file,
        region=region,
        key_added=key_added,
        mpp=mpp,
        to_um=to_um,
        scales_um=scales_um,
        image_key=image_key,
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
