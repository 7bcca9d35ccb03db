"""Where regions lie in the pixels of the picture, and the picture itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import superpixels as original
from ..core.grids import bin_corners, project
from ..errors import InputError

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ..image import LevelStack
    from ..regions import Region

_EXACT = 1e-9
"""A grid follows the picture, or has their pitch, where it is off by no more than this share: rounding alone."""
_TILE = 512
_JPEG_SIDE = 65_500
_BLOCK = 100_000


def grid_px(image: LevelStack, region: Region, *, mpp: float) -> tuple[float, float, float] | None:
    """(pitch, x0, y0) in pixels of the picture of a grid of squares along its axes; None where it is not such.

    A grid laid by stainseq begins at the corner of the picture and has a pitch of whole superpixels: it is given to the
    last bit, so that it is found again as the same.

    Parameters
    ----------
    image
        The picture.
    region
        The grid.
    mpp
        Microns per pixel of the rescaled picture, 16 of whose pixels make a superpixel.
    """
    geometry: Any = region.geometry
    to_px = image.from_um @ geometry.transform
    to_px = to_px / to_px[2, 2]
    pitch = float(to_px[0, 0])
    off = to_px.copy()
    off[[0, 1], [0, 1]] -= pitch
    off[:, 2] = 0
    off[2, :2] *= max(geometry.shape)  # what it bends over the whole grid
    if pitch <= 0 or np.abs(off).max() > 1e-6 * pitch:
        return None
    whole = original.SIDE_PX * mpp / image.mpp
    pitch = whole if abs(pitch / whole - 1) < _EXACT else pitch
    x0, y0 = (0.0 if abs(v) < 1e-6 else float(v) for v in to_px[:2, 2])
    return pitch, x0, y0


def centres_px(image: LevelStack, region: Region, *, mpp: float) -> np.ndarray:
    """float64 [n, 2], centres in pixels of the picture."""
    if region.kind == "grid":
        laid = grid_px(image, region, mpp=mpp)
        geometry: Any = region.geometry
        if laid is not None:
            pitch, x0, y0 = laid
            return np.column_stack([(geometry.cols + 0.5) * pitch + x0, (geometry.rows + 0.5) * pitch + y0])
    return image.to_px(region.centres_um)


def polygons_um(sdata: SpatialData, region: Region) -> Iterator[tuple[slice, np.ndarray]]:
    """Polygons of regions in um, some at a time, in the order of the region; circles get 32 corners."""
    import shapely

    from .. import regions

    if region.kind == "grid":
        geometry: Any = region.geometry
        for start in range(0, len(region), _BLOCK):
            part = slice(start, min(start + _BLOCK, len(region)))
            yield (
                part,
                shapely.polygons(
                    bin_corners(geometry.rows[part], geometry.cols[part], transform=np.asarray(geometry.transform))
                ),
            )
        return
    reach = 1e9
    frame = regions.read_window(sdata, region, (-reach, -reach, reach, reach)).loc[list(region.ids)]
    shapes = frame.geometry.to_numpy()
    if "radius" in frame:
        shapes = shapely.buffer(shapes, frame["radius"].to_numpy(), quad_segs=8)
    yield slice(0, len(region)), shapes


def as_px(image: LevelStack, polygons: np.ndarray) -> np.ndarray:
    """Polygons in um as polygons in pixels of the picture."""
    import shapely

    return np.asarray(shapely.transform(polygons, lambda xy: project(image.from_um, xy)))


def write_tiff(image: LevelStack, path: Path) -> None:
    """The picture at full resolution as a tiled, losslessly compressed TIFF; a row of tiles is in memory at a time."""
    import tifffile

    height, width = image.shape

    def tiles() -> Iterator[np.ndarray]:
        for y in range(0, height, _TILE):
            strip = np.full((_TILE, -(-width // _TILE) * _TILE, 3), 255, dtype=np.uint8)
            rows = min(_TILE, height - y)
            strip[:rows, :width] = image.read(0, y, y + rows, 0, width)
            for x in range(0, width, _TILE):
                yield np.ascontiguousarray(strip[:, x : x + _TILE])

    per_cm = (1e4 / image.mpp, 1e4 / image.mpp)
    with tifffile.TiffWriter(path, bigtiff=height * width * 3 > 2**31) as file:
        file.write(
            data=tiles(),
            shape=(height, width, 3),
            dtype=np.uint8,
            tile=(_TILE, _TILE),
            photometric="rgb",
            compression="adobe_deflate",
            compressionargs={"level": 1},
            predictor=True,
            resolution=per_cm,
            resolutionunit="CENTIMETER",
            metadata=None,
            software=False,
        )


def write_jpeg(image: LevelStack, path: Path, *, quality: int = 95) -> None:
    """The picture as JPEG; it is in memory once.

    Raises
    ------
    InputError
        Larger than a JPEG may be.
    """
    import cv2

    height, width = image.shape
    if max(height, width) > _JPEG_SIDE:
        raise InputError(
            f"a picture of {width} x {height} px is too large for a JPEG", fix="write a TIFF (--option image=tif)"
        )
    pixels = image.read(0, 0, height, 0, width)
    done, coded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise InputError("the picture cannot be written as JPEG", fix="write a TIFF (--option image=tif)")
    path.write_bytes(coded.tobytes())
