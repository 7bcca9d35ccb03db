"""10x Visium HD: bins of 2, 8 and 16 um of Space Ranger 3 and 4, with segmented cells where there are any.

https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/output-overview
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..core import registration
from ..errors import InputError, MissingError, ScaleError

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ._build import Notes
    from ._hd import Grid, Loaded, Output
    from ._hd_slices import Slices

PRIORITY = 40

_SIZES = (2, 8, 16)
_OUTSIDE = 0.5
"""Share of bins under tissue outside the picture that no run has whose picture it is: arrays hang over by a rim."""


def sniff(path: Path) -> str | None:
    """What is recognised at `path`, or None.

    Parameters
    ----------
    path
        ``outs``, the folder above it, ``binned_outputs``, one ``square_XXXum``, or feature_slice.h5.
    """
    from ._hd import find

    found = find(path)
    if found is None:
        return None
    if not found.bins:
        return "Visium HD (feature slices)"
    return f"Visium HD ({', '.join(str(k) for k in sorted(found.bins))} um bins)"


def read(
    path: Path,
    *,
    mpp: float | None = None,
    facts: dict[str, Any] | None = None,
    bins_um: Sequence[int] | int | str | None = None,
    matrix: str = "filtered",
    image: str | Path | None = None,
    image_scale: float | None = None,
    segmented: bool = True,
    version: int | None = None,
) -> SpatialData:
    """Read a Visium HD slide.

    Bins are a grid: a table of rows and columns with one projective transformation (real grids are turned, mirrored and
    not quite affine), never millions of polygons. Counts and places that are missing among ``binned_outputs`` are made
    from ``feature_slice.h5``. Matrices of more than 20 million counts stay in their file and are read piece by piece
    as they are written. Coordinate systems: "um" (full-resolution pixels times their size), "fullres", and "global"
    (pixels of the picture).

    Parameters
    ----------
    path
        ``outs``, the folder above it, ``binned_outputs``, one ``square_XXXum``, or feature_slice.h5.
    mpp
        Microns per full-resolution pixel; default ``microns_per_pixel`` of the scale factors, else what the distance
        of bins in feature_slice.h5 tells.
    facts
        slide, patient, tissue, platform where known.
    bins_um
        Sizes to read, such as [8, 16], 8, or "8,16"; default all that are in ``binned_outputs``, and 2, 8 and 16 where
        there are feature slices alone. With these, any multiple of 2 can be asked for.
    matrix
        "filtered" (bins under tissue) or "raw".
    image
        The full-resolution H&E; default the one in microscope_image or extras, else the hires picture. "none" leaves
        it out.
    image_scale
        Pixels of `image` per full-resolution pixel; default 1, or the scale factor of the hires picture.
    segmented
        Cells and nuclei of Space Ranger 4, too, with their counts; bins of 2 um then say which cell they belong to.
    version
        Of Space Ranger, 3 or 4, to be taken for the files' own.

    Raises
    ------
    FormatError
        No such slide, truncated files, an unknown version of Space Ranger.
    InputError
        Barcodes without a position, positions on no grid, double bins.
    ScaleError
        Positions and pixel size contradict each other, or bins do not lie on the picture.
    """
    from spatialdata import SpatialData
    from spatialdata.transformations import Identity, Scale

    from . import _hd, _hd_cells
    from ._build import NOTES, Notes, used_files
    from ._hd_slices import open_slices

    found = _hd.find(path)
    if found is None:
        raise MissingError("no Visium HD output", where=path, fix="give the folder that holds binned_outputs")
    facts = {**(facts or {}), "platform": "visium-hd"}
    facts["slide"] = facts.get("slide") or (
        found.folder.parent.name if found.folder.name == "outs" else found.folder.name
    )
    notes = Notes(facts["slide"])
    if matrix not in ("filtered", "raw"):
        raise InputError(f"matrix={matrix!r}", fix="filtered or raw")
    slices = open_slices(found.slices, version=version) if found.slices is not None else None
    chosen = _chosen(found, bins_um, slices)
    loaded = {size: _hd.load(found, size, matrix, slices=slices, version=version) for size in chosen}
    for size in chosen:
        used = found.bins[size].matrix(matrix) if size in found.bins else None
        if used is not None and not used.name.startswith(matrix):
            notes(f"bins_{size:03d}um: no {matrix} matrix is here, {used.name} is taken")
    own = {size: found.bins[size].scales() if size in found.bins else {} for size in chosen}
    scales = next((s for s in own.values() if s), {}) or next((s for b in found.bins.values() if (s := b.scales())), {})
    full, told = _pixel_um(mpp, scales, loaded, found.folder)
    for size, bins in loaded.items():
        where = bins.files.get("positions", found.slices or found.folder)
        stated = full if mpp is not None else float(own[size].get("microns_per_pixel", full))
        _hd.check_spacing(bins.grid, size, stated, given=mpp is not None, where=where)
    facts |= {"mpp_fullres": full, "mpp_from": told}
    elements: dict[str, dict[str, Any]] = {"images": {}, "points": {}, "shapes": {}, "tables": {}}
    files: dict[str, Path | None] = {}
    k = 1.0
    if image is None or str(image).lower() != "none":
        element, k, files["image"], shape = _picture(found, image, image_scale, scales, full, notes)
        if element is not None and files["image"] is not None:
            elements["images"][keys.HE] = element
            _check_inside(loaded[chosen[-1]], k, shape, files["image"], notes)
        facts["mpp"] = full / k
    to = {
        keys.UM: Identity(),
        "global": Scale([k / full, k / full], axes=("x", "y")),
        "fullres": Scale([1 / full, 1 / full], axes=("x", "y")),
    }
    while loaded:
        size = min(loaded)
        name = f"bins_{size:03d}um"
        # Each leaves the list as it is turned into elements, so that barcodes are not held twice.
        bins = loaded.pop(size)
        elements["points"][name], elements["tables"][keys.counts(name)] = _bins(bins, size, full, notes)
        files |= {f"{role}_{size:03d}um": file for role, file in bins.files.items()}
    if segmented:
        files |= _hd_cells.read(found, full, to, elements, notes)
    facts["files"] = used_files(**files)
    sdata = SpatialData(**elements)
    sdata.attrs[keys.STAMP] = facts | {NOTES: list(notes.lines)}
    return sdata


def _chosen(found: Output, wanted: Sequence[int] | int | str | None, slices: Slices | None) -> list[int]:
    if wanted is None:
        return sorted(found.bins) or list(_SIZES)
    try:
        given = wanted.split(",") if isinstance(wanted, str) else [wanted] if isinstance(wanted, int) else wanted
        sizes = sorted({int(s) for s in given})
    except (TypeError, ValueError) as e:
        raise InputError(f"bins_um={wanted!r}", fix="give sizes in um, such as 8 or 8,16") from e
    if not sizes:
        raise InputError("no size of bins", fix="give sizes in um, such as 8 or 8,16")
    absent = [s for s in sizes if s not in found.bins]
    if absent and slices is None:
        raise MissingError(
            f"no bins of {', '.join(map(str, absent))} um",
            where=found.folder,
            fix=f"here: {', '.join(map(str, sorted(found.bins)))}; feature_slice.h5 beside them would give others",
        )
    return sizes


def _pixel_um(
    given: float | None, scales: dict[str, float], loaded: dict[int, Loaded], where: Path
) -> tuple[float, str]:
    """Microns per full-resolution pixel, and what tells them."""
    from ._hd import pitch_px
    from ._scale import check_mpp

    size, bins = next(iter(loaded.items()))
    if given is not None:
        return check_mpp(given, where=where), "--mpp"
    if scales.get("microns_per_pixel"):
        return float(scales["microns_per_pixel"]), "scale factors"
    if "places" in bins.sliced:
        return size / pitch_px(bins.grid.transform, bins.grid.shape), "distance of bins"
    raise MissingError("no microns_per_pixel in the scale factors", where=where, fix="give it (--mpp)")


def _check_inside(bins: Loaded, k: float, shape: tuple[int, int], file: Path, notes: Notes) -> None:
    """Bins under tissue lie on the picture: all of the wrong run's or size's do not, a few at the rim may not."""
    grid = bins.grid
    tissue = np.flatnonzero(grid.in_tissue)
    if not len(tissue):
        return
    xy = k * registration.apply(grid.transform, np.column_stack([grid.cols[tissue], grid.rows[tissue]]) + 0.5)
    outside = ((xy < 0) | (xy >= shape[::-1])).any(axis=1)
    if outside.mean() > _OUTSIDE:
        raise ScaleError(
            f"{outside.mean():.0%} of the bins under tissue lie outside the picture of {shape[1]} x {shape[0]} px",
            where=file,
            fix="give the picture that the run was made with, or its size in full-resolution pixels "
            "(--option image_scale=)",
        )
    if outside.any():
        notes(f"{int(outside.sum())} bins under tissue lie outside the picture")


def _bins(bins: Loaded, size: int, full: float, notes: Notes) -> tuple[Any, Any]:
    """One bin size: its grid as an element, its counts."""
    import pandas as pd
    from anndata import AnnData
    from spatialdata.models import TableModel

    from ..regions.grid import as_element
    from ._build import READ
    from ._tables import var_table

    grid, matrix, at = bins.grid, bins.matrix, bins.at
    name = f"bins_{size:03d}um"
    told = f"{len(at)} of {len(grid.rows)} bins have counts; {_told(grid, full)}"
    made = f"; {' and '.join(bins.sliced)} from the feature slices" if bins.sliced else ""
    notes(f"{name}: {told}{made}" + (f"; {matrix.left_out}" if matrix.left_out else ""))
    to_um = np.diag([full, full, 1.0]) @ grid.transform
    to_um /= to_um[2, 2]
    rows, cols = grid.rows[at], grid.cols[at]
    points = as_element(rows, cols, matrix.ids, shape=grid.shape, transform=to_um)
    var, changed = var_table(matrix.counts)
    if changed:
        notes(f"{name}: {changed} duplicated gene names made unique")
    index = pd.Index(matrix.ids.to_numpy(zero_copy_only=False), dtype=object)
    obs = pd.DataFrame({"in_tissue": grid.in_tissue[at], "array_row": rows, "array_col": cols}, index=index)
    obs[keys.REGION_KEY] = pd.Categorical.from_codes(np.zeros(len(at), dtype=np.int8), categories=[name])
    obs[keys.INSTANCE_KEY] = index
    table = AnnData(matrix.counts.X, obs=obs, var=var)
    table.obsm[keys.SPATIAL] = registration.apply(to_um, np.column_stack([cols, rows]) + 0.5)
    table.uns[READ] = {"notes": [notes.lines[-1]]}
    table = TableModel.parse(table, region=name, region_key=keys.REGION_KEY, instance_key=keys.INSTANCE_KEY)
    return points, table


def _told(grid: Grid, full: float) -> str:
    linear = grid.transform[:2, :2]
    angle = np.degrees(np.arctan2(linear[1, 0], linear[0, 0]))
    mirrored = "mirrored, " if np.linalg.det(linear) < 0 else ""
    off = grid.residual_px * full
    size = f"grid of {grid.shape[0]} x {grid.shape[1]}"
    return f"{size}, {mirrored}turned by {angle:.2f} degrees, residual {off:.3f} um"


def _picture(
    found: Output,
    image: str | Path | None,
    scale: float | None,
    scales: dict[str, float],
    full: float,
    notes: Notes,
) -> tuple[Any, float, Path | None, tuple[int, int]]:
    """The picture as an element; its pixels per full-resolution pixel; its file, height and width."""
    from ._build import image_element
    from ._images import open_image

    file = Path(image) if image is not None else found.image
    k = float(scale or 1.0)
    if file is None:
        places = [*(b.folder / "spatial" for b in found.bins.values()), found.folder / "spatial"]
        for name in ("tissue_hires", "tissue_lowres"):
            there = [p / f"{name}_image.png" for p in places if (p / f"{name}_image.png").is_file()]
            if there and float(scales.get(f"{name}_scalef", 0)) > 0:
                file, k = there[0], float(scale or scales[f"{name}_scalef"])
                break
    if file is None:
        notes("no picture here: bins and counts only (--option image=FILE gives one)")
        return None, 1.0, None, (0, 0)
    picture = open_image(file)
    for note in picture.notes:
        notes(f"image: {note}")
    notes(f"picture: {file.name}, {picture.shape[1]} x {picture.shape[0]} px, {k:.6g} of full resolution")
    return image_element(picture, mpp=full / k, others={"fullres": 1 / k}), k, file, picture.shape
