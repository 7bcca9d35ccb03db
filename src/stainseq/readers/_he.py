"""An H&E image laid onto another picture by an alignment matrix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..core import registration
from ..errors import MissingError, ScaleError

if TYPE_CHECKING:
    from ._build import Notes


def registered(
    path: Path, alignment: Path | None, *, pixel_um: float, inverted: bool, alone: bool, notes: Notes
) -> tuple[Any, float, str]:
    """The H&E as an element that lies in the run's microns.

    Parameters
    ----------
    path
        The image.
    alignment
        Its matrix, H&E pixels to pixels of the other picture.
    pixel_um
        Microns per pixel of that.
    inverted
        The matrix maps the other way.
    alone
        Take it without alignment, in a frame of its own.
    notes
        Told how it lies.

    Returns
    -------
    tuple
        The element; microns per pixel; where they come from.

    Raises
    ------
    MissingError
        No alignment.
    ScaleError
        Alone, and the image does not tell its pixel size.
    """
    from spatialdata.transformations import Affine

    from ._images import open_image
    from ._picture import raster
    from ._xenium import read_alignment

    picture = open_image(path)
    height, width = picture.shape
    off = 0.0
    projective: np.ndarray | None = None
    if alone:
        if picture.mpp is None:
            raise ScaleError("no pixel size in the H&E image", where=path, fix="give its alignment (he_alignment)")
        um = np.diag([picture.mpp[0], picture.mpp[1], 1.0])
        notes("the H&E image lies in a frame of its own: register it with `stainseq align`")
    elif alignment is None:
        raise MissingError(
            "an H&E image without its alignment",
            where=path,
            fix="give it by --he-alignment FILE.csv; or --he-alignment none, then `stainseq align`",
        )
    else:
        matrix = read_alignment(alignment)
        matrix = np.linalg.inv(matrix) if inverted else matrix
        exact = np.diag([pixel_um, pixel_um, 1.0]) @ matrix
        exact /= exact[2, 2]
        um, off = registration.nearest_affine(exact, (width, height))
        projective = exact if np.abs(exact[2, :2]).max() > 0 else None
    mpp = float(np.sqrt(abs(np.linalg.det(um[:2, :2]))))
    angle = float(np.degrees(np.arctan2(um[1, 0], um[0, 0])))
    if not alone:
        mirrored = ", mirrored" if np.linalg.det(um[:2, :2]) < 0 else ""
        notes(f"H&E of {width} x {height} px, {mpp:.5f} um/px, turned by {angle:.2f} degrees{mirrored}")
        if picture.mpp is not None and abs(mpp / picture.mpp[0] - 1) > 0.1:
            notes(f"the alignment makes its pixels {mpp:.4f} um, its metadata says {picture.mpp[0]:.4f}")
    axes: dict[str, Any] = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
    to = {"global": Affine(np.diag([1 / pixel_um, 1 / pixel_um, 1.0]) @ um, **axes), keys.UM: Affine(um, **axes)}
    element = raster([level.transpose(2, 0, 1) for level in picture.levels], ["r", "g", "b"], to)
    if projective is not None:
        notes(f"a projective alignment; its nearest affine, for other tools, is off by up to {off:.2f} um")
        element.attrs[keys.STAMP] = {"projective": projective.tolist()}
    if alone:
        element.attrs[keys.STAMP] = {"unregistered": True}
    for note in picture.notes:
        notes(f"image: {note}")
    return element, mpp, "metadata" if alone else "alignment"
