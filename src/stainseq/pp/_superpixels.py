"""A fine regular grid on the H&E's own pixels, and counts of what lies in regions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def superpixels(
    sdata: SpatialData,
    *,
    pitch_um: float = 8.0,
    image_key: str = keys.HE,
    tissue_key: str | None = None,
    key_added: str = keys.SUPERPIXELS,
    min_cover: float = 0.5,
) -> SpatialData:
    """Lay superpixels over the tissue, along the axes of the H&E image.

    The grid is the image's own: one superpixel is the same square of pixels for features and for counts, however the
    image was laid onto the run, so both share one phase.

    Parameters
    ----------
    sdata
        The slide; written to when it is on disk.
    pitch_um
        Side of a superpixel. 8 um is 16 px at 0.5 um/px, a token of most pathology encoders and about a cell.
    image_key
        Image whose axes the grid follows.
    tissue_key
        Shapes of the tissue; default ``tissue`` where it is there, else a mask of the image. "none": the whole image.
    key_added
        Name of the grid.
    min_cover
        Least share of a superpixel that must be tissue.

    Returns
    -------
    SpatialData
        The same object; adds the grid ``key_added``, ids ``<row>_<column>``.

    Raises
    ------
    MissingError
        No such image or shapes.
    InputError
        A side that is not positive or below a pixel, or no tissue.
    """
    from .. import image, lineage, regions

    lineage.claim(sdata, key_added, step="superpixels")
    opened = image.open_image(sdata, image_key)
    step = pitch_um / opened.mpp
    if not step >= 1:
        raise InputError(
            f"pitch_um={pitch_um} is below a pixel of {opened.mpp:.3g} um", fix="8 um is usual; at least a pixel"
        )
    height, width = opened.shape
    shape = (int(np.ceil(height / step)), int(np.ceil(width / step)))
    transform = opened.to_um @ np.diag([step, step, 1.0])
    transform /= transform[2, 2]
    cover = _cover(sdata, opened, shape, step, transform, tissue_key)
    row, column = np.nonzero(cover >= min_cover)
    if not len(row):
        raise InputError("no superpixel lies on tissue", where=sdata.path, fix="lower min_cover, or tissue_key='none'")
    regions.add_grid(
        sdata,
        key_added,
        rows=row,
        cols=column,
        ids=None,
        shape=shape,
        transform=transform,
        step="superpixels",
        parameters={"pitch_um": pitch_um, "tissue_key": tissue_key, "min_cover": min_cover},
        inputs={image_key: opened.fingerprint},
    )
    return sdata


def aggregate(
    sdata: SpatialData,
    *,
    region: str,
    points: str = keys.TRANSCRIPTS,
    min_qv: float | None = None,
    key_added: str | None = None,
) -> AnnData:
    """Count transcripts in regions.

    Parameters
    ----------
    sdata
        The slide; written to when it is on disk.
    region
        Cells, nuclei, superpixels, bins, or any other region.
    points
        The transcripts.
    min_qv
        Least quality; default all that the slide holds (the reader keeps 20 and above).
    key_added
        Name of the table; default ``counts_<region>``.

    Returns
    -------
    AnnData
        The table that was added, [regions, genes] int32; ``uns["aggregate"]`` says how many were counted, lie outside
        of all regions, or were left out.

    Raises
    ------
    MissingError
        No such region or points.
    StoreError
        The name is taken by something else, such as the counts that the run itself came with.
    """
    import pyarrow.compute as pc

    from .. import lineage, regions, store

    lineage.claim(sdata, key_added or keys.counts(region), step="aggregate")
    keep = None if min_qv is None else pc.field("qv") >= float(min_qv)
    counted = regions.aggregate(sdata, region, points, keep=keep)
    store.write_element(
        sdata,
        key_added or keys.counts(region),
        counted,
        step="aggregate",
        parameters={"region": region, "points": points, "min_qv": min_qv},
        inputs={region: store.fingerprint_of(sdata, region), points: store.fingerprint_of(sdata, points)},
    )
    return counted


def _cover(
    sdata: SpatialData, opened: Any, shape: tuple[int, int], step: float, transform: np.ndarray, tissue_key: str | None
) -> np.ndarray:
    """Share of each superpixel that is tissue, float32 [rows, columns]."""
    import cv2

    from .. import image
    from ..core import tissue

    if tissue_key == "none":
        return np.ones(shape, dtype=np.float32)
    if tissue_key is None and keys.TISSUE not in sdata.shapes:
        thumb, mpp = image.level_thumbnail(opened, max_px=max(shape) * 2)
        mask = tissue.tissue_mask(thumb, mpp=mpp).astype(np.float32)
        # The last superpixels reach beyond the image: the mask is put on a canvas of whole ones.
        scale = step * opened.mpp / mpp
        size = (int(np.ceil(shape[1] * scale)), int(np.ceil(shape[0] * scale)))
        canvas = np.zeros(size[::-1], dtype=np.float32)
        canvas[: mask.shape[0], : mask.shape[1]] = mask[: size[1], : size[0]]
        return cv2.resize(canvas, shape[::-1], interpolation=cv2.INTER_AREA)
    name = tissue_key or keys.TISSUE
    if name not in sdata.shapes:
        raise MissingError(f"no shapes {name!r}", where=sdata.path, fix="run `stainseq tissue` first")
    return _rasterised(sdata.shapes[name].geometry.to_numpy(), shape, transform)


def _rasterised(polygons: np.ndarray, shape: tuple[int, int], transform: np.ndarray) -> np.ndarray:
    """Share of each superpixel inside polygons (um), by 4 x 4 points in it."""
    import shapely

    from ..core import registration

    outline = shapely.union_all(polygons)
    shapely.prepare(outline)
    fine = (np.arange(4) + 0.5) / 4
    out = np.zeros(shape, dtype=np.float32)
    for start in range(0, shape[0], 64):
        rows = np.arange(start, min(start + 64, shape[0]))
        y = (rows[:, None] + fine).ravel()
        x = (np.arange(shape[1])[:, None] + fine).ravel()
        at = registration.apply(transform, np.column_stack([v.ravel() for v in np.meshgrid(x, y)]))
        inside = shapely.contains_xy(outline, at[:, 0], at[:, 1]).reshape(len(rows), 4, shape[1], 4)
        out[rows] = inside.mean(axis=(1, 3))
    return out


_SQUARE_PX, _BLOCK_SQUARES = 12, 128
"""Squares are looked at with so many pixels along a side, so many at once: 8 MB a block."""


def quality(
    sdata: SpatialData, *, region: str = keys.SUPERPIXELS, image_key: str = keys.HE, key_added: str | None = None
) -> AnnData:
    """Tell good superpixels from background, pen, folds, blur and pale tissue.

    Parameters
    ----------
    sdata
        The slide, with superpixels along the axes of its image (see `superpixels`); written to when it is on disk.
    region
        The superpixels.
    image_key
        The image they follow.
    key_added
        Name of the table; default ``quality_<region>``.

    Returns
    -------
    AnnData
        The table that was added: ``obs["quality"]`` (good, background, pen, fold, blurred, pale) for every superpixel;
        X float32 [n, 5]: optical density, red, green, blue, grain.

    Raises
    ------
    MissingError
        No such superpixels.
    InputError
        A region that is no grid along the image.
    """
    import pandas as pd

    from .. import image, lineage, regions, store
    from ..core import quality as core

    lineage.claim(sdata, key_added or f"quality_{region}", step="quality")
    where = regions.get(sdata, region)
    opened = image.open_image(sdata, image_key)
    if where.kind != "grid":
        raise InputError(f"{region!r} is no grid", where=sdata.path, fix="run `stainseq superpixels` first")
    geometry: Any = where.geometry
    to_px = opened.from_um @ geometry.transform
    to_px /= to_px[2, 2]
    if np.abs(to_px - np.diag(np.diag(to_px))).max() > 1e-6 * to_px[0, 0]:
        raise InputError(
            f"{region!r} does not follow the image", where=sdata.path, fix="lay superpixels anew, then ask for quality"
        )
    looks = _looks(opened, geometry.shape, float(to_px[0, 0]))
    kinds = core.classify(looks)[geometry.rows, geometry.cols]
    at = geometry.rows, geometry.cols
    values = np.column_stack([looks.density[at], looks.colour[at], looks.grain[at]]).astype(np.float32)
    obs = {"quality": pd.Categorical.from_codes(kinds, categories=list(core.CLASSES))}
    table = regions.table(where, values, var_names=["density", "red", "green", "blue", "grain"], obs=obs)
    shares = {name: round(float((kinds == i).mean()), 4) for i, name in enumerate(core.CLASSES)}
    store.write_element(
        sdata,
        key_added or f"quality_{region}",
        table,
        step="quality",
        parameters={"region": region, "image_key": image_key},
        inputs={image_key: opened.fingerprint, region: store.fingerprint_of(sdata, region)},
        more={"shares": shares},
    )
    return table


def _looks(opened: Any, shape: tuple[int, int], step: float) -> Any:
    """Looks of every square of a grid, block by block."""
    import cv2

    from ..core import quality as core
    from ..core import windows

    level = windows.choose_level(opened.downsamples, step / _SQUARE_PX)
    down = opened.downsamples[level]
    parts = []
    for r in range(0, shape[0], _BLOCK_SQUARES):
        row = []
        for c in range(0, shape[1], _BLOCK_SQUARES):
            h, w = min(_BLOCK_SQUARES, shape[0] - r), min(_BLOCK_SQUARES, shape[1] - c)
            y0, x0 = (int(np.floor(k * step / down)) for k in (r, c))
            y1, x1 = (int(np.ceil((k + n) * step / down)) + 1 for k, n in ((r, h), (c, w)))
            block = opened.read(level, y0, y1, x0, x1)
            scale = step / down / _SQUARE_PX
            # From a pixel of the result to one of the block; both count from pixel centres in OpenCV.
            warp = np.array(
                [
                    [scale, 0, c * step / down - x0 + 0.5 * scale - 0.5],
                    [0, scale, r * step / down - y0 + 0.5 * scale - 0.5],
                ]
            )
            size = (w * _SQUARE_PX, h * _SQUARE_PX)
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            row.append(
                core.look(cv2.warpAffine(block, warp, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), _SQUARE_PX)
            )
        parts.append(row)
    return core.join(parts)
