"""Pixel2Gene's and iStar's arithmetic of pixels, superpixels and genes, to the last bit.

From the description of their files and steps; a superpixel is 16 x 16 px of the picture at its target resolution.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

SIDE_PX = 16
"""Side of a superpixel in pixels of the rescaled picture."""

PAD_PX = 256
"""The rescaled picture is padded at the bottom and right to multiples of this."""

TARGET_MPP = 0.5
"""Microns per pixel of the rescaled picture unless told otherwise: a superpixel is then 8 um."""

CONTROLS = ("BLANK", "NegControlCodeword", "NegControlProbe", "UnassignedCodeword", "DeprecatedCodeword")
"""Names that begin so are no genes there. Intergenic regions and antisense probes are kept."""

MIN_TOTAL = 20
"""Genes with no more counts than this are left out there."""


def rescaled(xy_px: np.ndarray, *, raw_mpp: float, mpp: float = TARGET_MPP) -> np.ndarray:
    """Places in the rescaled picture.

    Parameters
    ----------
    xy_px
        [n, 2] or any shape, pixels of the original picture.
    raw_mpp, mpp
        Microns per pixel of the original and of the rescaled picture.

    Returns
    -------
    numpy.ndarray
        int64, same shape; halves go to the even neighbour.
    """
    return np.round(np.asarray(xy_px, dtype=np.float64) * (raw_mpp / mpp)).astype(np.int64)


def of_rescaled(xy_px: np.ndarray) -> np.ndarray:
    """Superpixel of places in the rescaled picture: whole pixels by 16, rounded down; int64, same shape."""
    return np.floor_divide(np.asarray(xy_px, dtype=np.int64), SIDE_PX)


def map_shape(height: int, width: int, *, raw_mpp: float, mpp: float = TARGET_MPP) -> tuple[int, int]:
    """Rows and columns of their maps: of the picture rescaled, then padded.

    Parameters
    ----------
    height, width
        Of the original picture, px.
    raw_mpp, mpp
        Microns per pixel of the original and of the rescaled picture.
    """
    sides = [int(np.round(side * (raw_mpp / mpp))) for side in (height, width)]
    rows, cols = (-(-side // PAD_PX) * (PAD_PX // SIDE_PX) for side in sides)
    return rows, cols


def bin_size(mpp_x: float, mpp_y: float | None = None) -> float:
    """Side of a superpixel in pixels of the original picture, to two decimals: what transcripts are binned by there.

    Parameters
    ----------
    mpp_x, mpp_y
        Microns per pixel of the original picture along both axes; default the same.
    """
    return round(SIDE_PX * TARGET_MPP / float(np.sqrt(mpp_x * (mpp_x if mpp_y is None else mpp_y))), 2)


def gene_order(names: Sequence[str], totals: np.ndarray) -> np.ndarray:
    """Genes that are kept, by total count, highest first; equal totals stay in the order given.

    Parameters
    ----------
    names
        Of all features.
    totals
        [g] counts of each.

    Returns
    -------
    numpy.ndarray
        int64 positions.
    """
    totals = np.asarray(totals)
    kept = np.array([not str(n).startswith(CONTROLS) for n in names], dtype=bool) & (totals > MIN_TOTAL)
    at = np.flatnonzero(kept)
    return at[np.argsort(-totals[at].astype(np.float64), kind="stable")]


def good(umi: np.ndarray, clusters: np.ndarray, *, percentile: float = 30.0) -> np.ndarray:
    """Superpixels that the publication trains on: above a percentile of the non-zero totals of their own cluster.

    Parameters
    ----------
    umi
        [n] total counts.
    clusters
        int [n] morphology cluster; -1 is background.
    percentile
        30 there, for every slide.

    Returns
    -------
    numpy.ndarray
        bool [n]; False in the background and where a cluster has no counts.
    """
    umi, out = np.asarray(umi, dtype=np.float64), np.zeros(len(umi), dtype=bool)
    for k in np.unique(clusters[clusters >= 0]):
        here = clusters == k
        seen = umi[here & (umi > 0)]
        if len(seen):
            out[here] = umi[here] > np.percentile(seen, percentile)
    return out


def folds(
    row: np.ndarray, column: np.ndarray, *, shape: tuple[int, int], n_folds: int = 10, collide: bool = False
) -> np.ndarray:
    """Fold of each superpixel, blocks of 8 x 8 kept together: scikit-learn's GroupKFold, which is deterministic.

    Parameters
    ----------
    row, column
        int [n].
    shape
        Rows and columns of the slide's map.
    n_folds
        10 there.
    collide
        The publication's numbers of blocks, which take the map's rows for its columns: on maps that are wider than high
        far blocks get one number. Without, every block has its own.

    Returns
    -------
    numpy.ndarray
        int64 [n].
    """
    from sklearn.model_selection import GroupKFold

    per_line = shape[0] // 8 if collide else -(-shape[1] // 8)
    block = (np.asarray(row) // 8) * per_line + np.asarray(column) // 8
    out = np.empty(len(block), dtype=np.int64)
    for k, (_, test) in enumerate(GroupKFold(n_folds).split(block, groups=block)):
        out[test] = k
    return out


def combined(predictions: np.ndarray) -> np.ndarray:
    """Mean over the models of all folds, as the publication stores it: float16 [folds, ...] to float16 [...], NaN
    where no fold has a value.

    Parameters
    ----------
    predictions
        One map a fold.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice", category=RuntimeWarning)
        return np.asarray(np.nanmean(np.asarray(predictions, dtype=np.float16), axis=0), dtype=np.float16)
