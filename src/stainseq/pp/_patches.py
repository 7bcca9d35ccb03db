"""Square patches of a slide, for data sets and for scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import keys
from ..errors import InputError, ScaleError

if TYPE_CHECKING:
    from spatialdata import SpatialData


def patches(
    sdata: SpatialData,
    *,
    size_px: int = 256,
    overlap_px: int = 64,
    mpp: float = 0.25,
    image_key: str = keys.HE,
    tissue_key: str | None = None,
    min_tissue: float = 0.5,
    region: str | None = None,
    min_cells: int = 0,
    max_upsampling: float = 1.5,
    key_added: str = keys.PATCHES,
) -> SpatialData:
    """Cut a slide into overlapping square patches at a stated resolution.

    Parameters
    ----------
    sdata
        The slide; written to when it is on disk.
    size_px, overlap_px
        Side of a patch and what neighbours share, in pixels of `mpp`. Default 256 and 64, as PanNuke and STHELAR.
    mpp
        Microns per pixel of the patches; the slide is resampled where its own differ. Default 0.25, "40x"; 0.5 is
        "20x".
    image_key
        Picture whose axes the lattice follows, from its first pixel on.
    tissue_key
        Shapes of the tissue. Default "tissue" where the slide has it; all patches else.
    min_tissue
        Least share of a patch that is tissue, 0 to 1.
    region
        Nuclei or cells to count in each patch: default "nuclei" where the slide has them, else "cells".
    min_cells
        Least number of them with their centre in the patch.
    max_upsampling
        The slide may be at most so much coarser than `mpp`: what is not there cannot be resampled.
    key_added
        Name of the shapes element.

    Returns
    -------
    SpatialData
        The same object; adds ``shapes[key_added]``: squares in um, index ``<slide>_<number>`` with number = row x
        columns of the whole lattice + column, as STHELAR counts them, so that ids stay when filters change; columns
        ``row``, ``col``, ``x_px``, ``y_px`` (upper left pixel at `mpp`), ``tissue`` (share), ``n_cells`` (centres in
        it). Patches that reach beyond the picture are left out.

    Raises
    ------
    InputError
        No patch is left; sizes that make no lattice.
    ScaleError
        The slide is too coarse.
    """
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    from .. import image, lineage, regions, store
    from ..core import registration

    if size_px < 1 or not 0 <= overlap_px < size_px or size_px % 1 or overlap_px % 1:
        raise InputError(
            f"patches of {size_px} px with {overlap_px} px overlap", fix="give whole numbers, 0 <= overlap < size"
        )
    if not mpp > 0:
        raise InputError(f"mpp={mpp} is no pixel size", fix="give microns per pixel, such as 0.25 or 0.5")
    lineage.claim(sdata, key_added, step="patches")
    opened = image.open_registered(sdata, image_key)
    if opened.mpp > mpp * max_upsampling:
        raise ScaleError(
            f"the slide has {opened.mpp:.3f} um/px, patches of {mpp:g} um/px were asked for",
            where=sdata.path,
            fix=f"give --mpp {opened.mpp:.2g} or more, or allow it (--max-upsampling)",
        )
    factor, stride = mpp / opened.mpp, size_px - overlap_px
    # A pixel less than a hundredth beyond the edge is rounding of mpp, not a patch that reaches out.
    height, width = (int(np.floor(v / factor + 0.01)) for v in opened.shape)
    columns, rows = (max(int(np.ceil((v - overlap_px) / stride)), 1) for v in (width, height))
    row, col = (v.ravel() for v in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    corners = np.stack([col, row], axis=1) * stride
    whole = (corners + size_px <= [width, height]).all(axis=1)
    row, col, corners = row[whole], col[whole], corners[whole]

    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * size_px
    rings = registration.apply(opened.to_um, ((corners[:, None] + unit) * factor).reshape(-1, 2)).reshape(-1, 4, 2)
    squares = shapely.polygons(rings)
    covered = _covered(sdata, squares, tissue_key)
    counted = region or next((r for r in (keys.NUCLEI, keys.CELLS) if r in regions.names(sdata)), None)
    centres = np.zeros((0, 2)) if counted is None else opened.to_px(regions.get(sdata, counted).centres_um) / factor
    n_cells = _inside(centres, corners, size_px)
    kept = (covered >= min_tissue) & (n_cells >= min_cells)
    if not kept.any():
        raise InputError(
            f"none of {len(squares)} patches is left",
            where=sdata.path,
            fix="lower min_tissue or min_cells, or the size of a patch",
        )
    frame = gpd.GeoDataFrame(
        {"row": row, "col": col, "x_px": corners[:, 0], "y_px": corners[:, 1], "tissue": covered, "n_cells": n_cells},
        geometry=squares,
    )[kept]
    slide = str(store.facts(sdata).get("slide") or "slide")
    frame.index = [f"{slide}_{i}" for i in (row * columns + col)[kept]]
    inputs = {image_key: opened.fingerprint}
    if counted is not None:
        inputs[counted] = lineage.ids_fingerprint(regions.get(sdata, counted).ids)
    store.write_element(
        sdata,
        key_added,
        ShapesModel.parse(frame, transformations={keys.UM: Identity()}),
        step="patches",
        parameters={
            "size_px": size_px,
            "overlap_px": overlap_px,
            "mpp": mpp,
            "image_key": image_key,
            "tissue_key": tissue_key,
            "min_tissue": min_tissue,
            "region": counted,
            "min_cells": min_cells,
        },
        inputs=inputs,
        more={"lattice": [rows, columns], "left_out": int((~kept).sum()), "image_mpp": opened.mpp},
    )
    return sdata


def _covered(sdata: SpatialData, squares: np.ndarray, tissue_key: str | None) -> np.ndarray:
    """Share of each square that is tissue."""
    import shapely

    from ..errors import MissingError
    from ..regions.shapes import in_um

    name = tissue_key or keys.TISSUE
    if name not in sdata.shapes:
        if tissue_key is not None:
            raise MissingError(f"no shapes {tissue_key!r}", where=sdata.path, fix="run `stainseq tissue` first")
        return np.ones(len(squares))
    outline = shapely.union_all(in_um(sdata.shapes[name], name)[0])
    shapely.prepare(outline)
    share = np.zeros(len(squares))
    touched = shapely.intersects(outline, squares)
    within = shapely.contains_properly(outline, squares)
    share[within] = 1
    edge = touched & ~within
    share[edge] = shapely.area(shapely.intersection(outline, squares[edge])) / shapely.area(squares[edge])
    return share


def _inside(centres: np.ndarray, corners: np.ndarray, size_px: int) -> np.ndarray:
    """How many points lie in each square; squares of one size, half open."""
    if not len(centres) or not len(corners):
        return np.zeros(len(corners), dtype=np.int64)
    order = np.argsort(centres[:, 0], kind="stable")
    x, y = centres[order].T
    # Squares of one column share their range of x; within it, counts of y come from one sorted search.
    found = np.zeros(len(corners), dtype=np.int64)
    for left in np.unique(corners[:, 0]):
        a, b = np.searchsorted(x, [left, left + size_px])
        heights = np.sort(y[a:b])
        here = corners[:, 0] == left
        low, high = np.searchsorted(heights, np.stack([corners[here, 1], corners[here, 1] + size_px]))
        found[here] = high - low
    return found
