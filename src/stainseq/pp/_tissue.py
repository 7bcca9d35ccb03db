"""Tissue outlines and a regular prediction grid over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from spatialdata import SpatialData


def tissue(
    sdata: SpatialData,
    *,
    image_key: str = keys.HE,
    key_added: str = keys.TISSUE,
    mpp: float = 4.0,
    min_area_um2: float = 10_000.0,
    max_hole_um2: float = 40_000.0,
) -> SpatialData:
    """Find the tissue of an H&E slide.

    Parameters
    ----------
    sdata
        The slide; written to when it is on disk.
    image_key
        Image element.
    key_added
        Name of the shapes element.
    mpp
        Resolution at which to look, um per px. 4 resolves single glands and keeps a slide in memory.
    min_area_um2
        Smaller pieces are dropped (default: one 100 um spot).
    max_hole_um2
        Smaller holes are filled (default: one cell of the ST lattice).

    Returns
    -------
    SpatialData
        The same object; adds ``shapes[key_added]``: polygons in um, column ``area_um2``, largest first.

    Raises
    ------
    InputError
        There is no tissue on the slide, or a length that is not positive.
    StoreError
        The name is taken by something that another step made.
    """
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Affine, Identity, Scale

    from .. import image, lineage, store
    from ..core import registration
    from ..core import tissue as core

    if not mpp > 0 or min_area_um2 < 0 or max_hole_um2 < 0:
        raise InputError(
            f"mpp {mpp:g}, min_area_um2 {min_area_um2:g}, max_hole_um2 {max_hole_um2:g}",
            fix="lengths and areas are positive; 4 um per pixel is usual",
        )
    lineage.claim(sdata, key_added, step="tissue")
    opened = image.open_image(sdata, image_key)
    thumb, mask_mpp = image.level_thumbnail(opened, max_px=max(64, round(max(opened.shape) * opened.mpp / mpp)))
    mask = core.tissue_mask(thumb, mpp=mask_mpp, min_area_um2=min_area_um2, max_hole_um2=max_hole_um2)
    polygons = core.outlines(mask, mpp=mask_mpp, min_area_um2=min_area_um2)
    to_global: Any = Scale([1 / opened.mpp, 1 / opened.mpp], axes=("x", "y"))
    if np.abs(opened.to_um - np.diag([opened.mpp, opened.mpp, 1.0])).max() > 0:
        # The outlines follow the picture's own axes; on the slide it lies turned or shifted.
        to_um = opened.to_um @ np.diag([1 / opened.mpp, 1 / opened.mpp, 1.0])
        polygons = [shapely.transform(p, lambda xy: registration.apply(to_um, xy)) for p in polygons]
        near, _ = registration.nearest_affine(opened.to_um, opened.shape[::-1])
        to_global = Affine(np.linalg.inv(near), input_axes=("x", "y"), output_axes=("x", "y"))
    if not polygons:
        raise InputError(
            "no tissue found",
            where=f"image {image_key!r} of {sdata.path}",
            fix="check the image, or lower min_area_um2",
        )
    frame = gpd.GeoDataFrame({"area_um2": [p.area for p in polygons]}, geometry=polygons)
    frame.index = [f"tissue_{i}" for i in range(len(frame))]
    element = ShapesModel.parse(frame, transformations={keys.UM: Identity(), "global": to_global})
    store.write_element(
        sdata,
        key_added,
        element,
        step="tissue",
        parameters={"image_key": image_key, "mpp": mpp, "min_area_um2": min_area_um2, "max_hole_um2": max_hole_um2},
        inputs={image_key: opened.fingerprint},
        more={"mask_mpp": mask_mpp, "area_mm2": round(sum(p.area for p in polygons) / 1e6, 4)},
    )
    return sdata


def grid(
    sdata: SpatialData,
    *,
    spacing_um: float = 100.0,
    tissue_key: str = keys.TISSUE,
    key_added: str = keys.GRID,
    min_cover: float = 0.5,
) -> SpatialData:
    """Lay a regular grid over the tissue, to predict on slides with H&E alone.

    Parameters
    ----------
    sdata
        The slide, with tissue outlines (see `tissue`).
    spacing_um
        Distance of neighbouring centres; each region is a circle of this diameter. The default is the ST spot.
    tissue_key
        Shapes element of the tissue.
    key_added
        Name of the shapes element.
    min_cover
        Least share of a grid cell that must be tissue.

    Returns
    -------
    SpatialData
        The same object; adds ``shapes[key_added]``: circles in um, index ``r0001c0002``, columns ``row``, ``col``.

    Raises
    ------
    MissingError
        There are no tissue outlines.
    InputError
        The spacing is not positive, or no cell of the grid lies on tissue.
    """
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity, Scale

    from .. import lineage, store
    from ..core import tissue as core

    lineage.claim(sdata, key_added, step="grid")
    if spacing_um <= 0:
        raise InputError(f"spacing_um must be positive, got {spacing_um}")
    if tissue_key not in sdata.shapes:
        raise MissingError(f"no shapes {tissue_key!r}", where=sdata.path, fix="run `stainseq tissue` first")
    outline = shapely.union_all(sdata.shapes[tissue_key].geometry.to_numpy())
    # A slide that was turned or shifted by an alignment may reach below 0: then the lattice begins further off.
    origin = spacing_um * np.minimum(np.floor(np.array(outline.bounds[:2]) / spacing_um), 0.0)
    mask, mask_mpp = _rasterise(shapely.transform(outline, lambda xy: xy - origin), spacing_um / 16)
    centres, lattice = core.grid_centres(mask, mpp=mask_mpp, spacing_um=spacing_um, min_cover=min_cover)
    if not len(centres):
        raise InputError("no grid cell lies on tissue", where=sdata.path, fix="lower spacing_um or min_cover")
    points = gpd.points_from_xy(*(centres + origin).T)
    frame = gpd.GeoDataFrame({"radius": spacing_um / 2, "row": lattice[:, 0], "col": lattice[:, 1]}, geometry=points)
    frame.index = [f"r{r:04d}c{c:04d}" for r, c in lattice]
    mpp = float(store.facts(sdata).get("mpp") or 1.0)
    element = ShapesModel.parse(
        frame, transformations={keys.UM: Identity(), "global": Scale([1 / mpp, 1 / mpp], axes=("x", "y"))}
    )
    store.write_element(
        sdata,
        key_added,
        element,
        step="grid",
        parameters={"spacing_um": spacing_um, "min_cover": min_cover},
        inputs={tissue_key: store.fingerprint_of(sdata, tissue_key)},
    )
    return sdata


def _rasterise(outline: object, mpp: float) -> tuple[np.ndarray, float]:
    """Even-odd raster of polygons from the origin on; the pixel size grows on huge slides to bound the memory."""
    import cv2
    import shapely

    _, _, max_x, max_y = shapely.bounds(outline)
    mpp = max(mpp, float(np.sqrt(max(max_x, 1) * max(max_y, 1) / 2e8)))
    mask = np.zeros((int(np.ceil(max_y / mpp)) + 1, int(np.ceil(max_x / mpp)) + 1), dtype=np.uint8)
    for polygon in getattr(outline, "geoms", [outline]):
        rings = [polygon.exterior, *polygon.interiors]
        cv2.fillPoly(mask, [np.round(np.asarray(r.coords) / mpp - 0.5).astype(np.int32) for r in rings], 1)
    return mask.astype(bool), mpp
