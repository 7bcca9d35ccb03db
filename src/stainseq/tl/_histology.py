"""What the H&E shows around each row of a table: mean colours, or an encoder's features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import MissingError, ScaleError

if TYPE_CHECKING:
    from ._tables import Expression

WINDOW_UM = 50.0
"""Side of the square whose mean colour is taken: about a Visium spot (55 um), and SpaGCN's 49 pixels of a slide scanned
at 1 um per pixel. A length, not pixels, so that it does not matter at which scale the image is stored."""

_LEAST_PX = 24  # a coarser level of the pyramid is read only while the window has so many pixels there
_BAND_PX = 2048
_SPOT_UM = 65.0  # what Space Ranger's "spot_diameter_fullres" measures in pixels


def colours(chosen: Expression, *, window_um: float = WINDOW_UM, image_key: str = keys.HE) -> np.ndarray:
    """Mean red, green and blue of the H&E in a square around each row.

    Parameters
    ----------
    chosen
        The table. One of a slide is looked up in the slide's image; an AnnData of its own in
        ``uns["spatial"][library]["images"]`` as scanpy keeps it ("hires" before "lowres"), with ``obsm["spatial"]`` in
        pixels of the full image.
    window_um
        Side of the square.
    image_key
        Name of the slide's image.

    Returns
    -------
    array
        float64 [n, 3].

    Raises
    ------
    MissingError
        There is no image.
    ScaleError
        A square lies wholly outside the image: image and coordinates are of different frames.
    """
    if chosen.sdata is None:
        return _of_anndata(chosen, window_um)
    from .. import image as images

    stack = images.open_image(chosen.sdata, image_key)
    window_px = window_um / stack.mpp
    fine = [i for i, d in enumerate(stack.downsamples) if window_px / d >= _LEAST_PX]
    level = fine[-1] if fine else 0
    down = stack.downsamples[level]
    height, width = (int(s) for s in stack.levels[level].shape[1:])
    centres = stack.to_px(chosen.coordinates) / down - 0.5  # pixel i covers [i, i + 1)
    return _by_bands(
        lambda top, bottom: stack.read(level, top, bottom, 0, width), height, centres, max(1.0, window_px / down)
    )


def features(chosen: Expression, name: str, *, region: str | None = None) -> np.ndarray:
    """Vectors of the image around each row, from where they are kept.

    Parameters
    ----------
    chosen
        The table.
    name
        A features table of the slide (rows are matched by id), an encoder of which there is one for `region`, or an
        array in the table's ``obsm``.
    region
        Region of the table.

    Returns
    -------
    array
        float32 [n, d].

    Raises
    ------
    MissingError
        Nothing of that name, or rows without features.
    """
    tables = {} if chosen.sdata is None else chosen.sdata.tables
    found = next((t for t in (name, keys.features(name, region or "")) if t in tables), None)
    if found is None and name in chosen.table.obsm:
        return np.asarray(chosen.table.obsm[name], dtype=np.float32)[chosen.rows]
    if found is None:
        there = ", ".join([*tables, *(f"obsm {k!r}" for k in chosen.table.obsm)]) or "none"
        raise MissingError(f"no features table {name!r}", where=chosen.where, fix=f"there are: {there}")
    table = tables[found]
    at = table.obs_names.get_indexer(chosen.table.obs_names[chosen.rows])
    if (at < 0).any():
        raise MissingError(
            f"{int((at < 0).sum())} spots have no features",
            where=f"table {found!r}",
            fix="run `stainseq features` again",
        )
    return np.asarray(table.X[at], dtype=np.float32)


def _by_bands(read: Any, height: int, centres: np.ndarray, size_px: float) -> np.ndarray:
    """Colours from strips of the image, so that it is never whole in memory."""
    from ..core.colour import patch_colour

    half = round(size_px / 2)
    out = np.empty((len(centres), 3))
    centres = np.rint(centres)  # before strips are cut: halves round to even, which would depend on the strip
    y = centres[:, 1].astype(np.int64)
    lost = (y + half < 0) | (y - half >= height)
    if lost.any():
        raise ScaleError(
            f"{int(lost.sum())} of {len(y)} rows lie outside the image",
            where="histology",
            fix="check that image and coordinates are of one frame (stainseq info), or align them (stainseq align)",
        )
    band = np.clip(y, 0, height - 1) // _BAND_PX
    for number in np.unique(band):
        rows = np.flatnonzero(band == number)
        top, bottom = max(0, int(y[rows].min()) - half), min(height, int(y[rows].max()) + half + 1)
        out[rows] = patch_colour(read(top, bottom), centres[rows] - [0, top], size_px=size_px)
    return out


def _of_anndata(chosen: Expression, window_um: float) -> np.ndarray:
    pixels, scale, mpp = _scanpy_image(chosen)
    centres = chosen.coordinates * scale - 0.5
    return _by_bands(lambda top, bottom: pixels[top:bottom], len(pixels), centres, max(1.0, window_um / mpp))


def _scanpy_image(chosen: Expression) -> tuple[np.ndarray, float, float]:
    """Image [h, w, 3], its pixels per full-resolution pixel, and its microns per pixel."""
    where = chosen.where
    libraries = chosen.table.uns.get("spatial")
    if not isinstance(libraries, dict) or not libraries:
        raise MissingError(
            "no image", where=where, fix='give a slide store, uns["spatial"] with an image, or image_features'
        )
    if keys.SAMPLE in chosen.table.obs:
        samples = set(chosen.table.obs[keys.SAMPLE].astype(str).iloc[chosen.rows])
        libraries = {k: v for k, v in libraries.items() if k in samples} or libraries
    if len(libraries) > 1:
        raise MissingError(
            f"images of {len(libraries)} libraries", where=where, fix='name them as in obs["sample"], or keep one'
        )
    library = next(iter(libraries.values()))
    images, factors = library.get("images", {}), library.get("scalefactors", {})
    name = next((n for n in ("hires", "lowres") if n in images and f"tissue_{n}_scalef" in factors), None)
    if name is None or "spot_diameter_fullres" not in factors:
        raise MissingError(
            "no image with its scale factors",
            where=f'{where}, uns["spatial"]',
            fix='it needs images["hires"], scalefactors["tissue_hires_scalef"] and ["spot_diameter_fullres"]',
        )
    scale = float(factors[f"tissue_{name}_scalef"])
    return np.asarray(images[name])[..., :3], scale, _SPOT_UM / float(factors["spot_diameter_fullres"]) / scale
