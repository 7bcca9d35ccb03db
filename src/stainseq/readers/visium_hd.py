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
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ._build import Notes
    from ._hd import Bins, Grid, Output

PRIORITY = 40


def sniff(path: Path) -> str | None:
    """What is recognised at `path`, or None.

    Parameters
    ----------
    path
        ``outs``, the folder above it, ``binned_outputs``, or one ``square_XXXum``.
    """
    from ._hd import find

    found = find(path)
    if found is None:
        return None
    return f"Visium HD ({', '.join(str(k) for k in sorted(found.bins))} um bins)"


def read(
    path: Path,
    *,
    mpp: float | None = None,
    facts: dict[str, Any] | None = None,
    bins_um: Sequence[int] | None = None,
    matrix: str = "filtered",
    image: str | Path | None = None,
    image_scale: float | None = None,
    segmented: bool = True,
) -> SpatialData:
    """Read a Visium HD slide.

    Bins are a grid: a table of rows and columns with one projective transformation (real grids are turned, mirrored and
    not quite affine), never millions of polygons. Coordinate systems: "um" (full-resolution pixels times their size),
    "fullres", and "global" (pixels of the picture).

    Parameters
    ----------
    path
        ``outs``, the folder above it, ``binned_outputs``, or one ``square_XXXum``.
    mpp
        Microns per full-resolution pixel; default ``microns_per_pixel`` of the scale factors.
    facts
        slide, patient, tissue, platform where known.
    bins_um
        Sizes to read, such as [8, 16]; default all that are there.
    matrix
        "filtered" (bins under tissue) or "raw".
    image
        The full-resolution H&E; default the one in microscope_image or extras, else the hires picture. "none" leaves
        it out.
    image_scale
        Pixels of `image` per full-resolution pixel; default 1, or the scale factor of the hires picture.
    segmented
        Cells and nuclei of Space Ranger 4, too.

    Raises
    ------
    FormatError
        No such slide, truncated files.
    InputError
        Barcodes without a position, positions on no grid, double bins.
    ScaleError
        Positions and scale factors contradict each other.
    """
    from spatialdata import SpatialData
    from spatialdata.transformations import Identity, Scale

    from ._build import NOTES, Notes, used_files
    from ._hd import find

    found = find(path)
    if found is None:
        raise MissingError("no Visium HD output", where=path, fix="give the folder that holds binned_outputs")
    facts = {**(facts or {}), "platform": "visium-hd"}
    facts["slide"] = facts.get("slide") or (
        found.folder.parent.name if found.folder.name == "outs" else found.folder.name
    )
    notes = Notes(facts["slide"])
    chosen = _chosen(found, bins_um)
    scales = found.bins[chosen[0]].scales()
    full = float(mpp or scales.get("microns_per_pixel") or 0)
    if not full > 0:
        raise MissingError("no microns_per_pixel in the scale factors", where=found.folder, fix="give it (--mpp)")
    facts |= {"mpp_fullres": full, "mpp_from": "--mpp" if mpp else "scale factors"}
    elements: dict[str, dict[str, Any]] = {"images": {}, "points": {}, "shapes": {}, "tables": {}}
    files: dict[str, Path | None] = {}
    k = 1.0
    if image is None or str(image).lower() != "none":
        element, k, files["image"] = _picture(found, found.bins[chosen[0]], image, image_scale, scales, full, notes)
        elements["images"] |= {keys.HE: element} if element is not None else {}
        facts["mpp"] = full / k
    to = {
        keys.UM: Identity(),
        "global": Scale([k / full, k / full], axes=("x", "y")),
        "fullres": Scale([1 / full, 1 / full], axes=("x", "y")),
    }
    for size in chosen:
        points, table, used = _bins(found.bins[size], full, matrix, notes)
        name = f"bins_{size:03d}um"
        elements["points"][name], elements["tables"][keys.counts(name)] = points, table
        files |= {f"{role}_{size:03d}um": file for role, file in used.items()}
    if segmented and found.segmented is not None:
        files |= _cells(found.segmented, full, to, elements, notes)
    facts["files"] = used_files(**files)
    sdata = SpatialData(**elements)
    sdata.attrs[keys.STAMP] = facts | {NOTES: list(notes.lines)}
    return sdata


def _chosen(found: Output, wanted: Sequence[int] | None) -> list[int]:
    if wanted is None:
        return sorted(found.bins)
    absent = [s for s in wanted if int(s) not in found.bins]
    if absent:
        raise MissingError(
            f"no bins of {', '.join(map(str, absent))} um",
            where=found.folder,
            fix=f"here: {', '.join(map(str, sorted(found.bins)))}",
        )
    return sorted({int(s) for s in wanted})


def _bins(bins: Bins, full: float, matrix: str, notes: Notes) -> tuple[Any, Any, dict[str, Path]]:
    """One bin size: its grid as an element, its counts."""
    import pandas as pd
    from anndata import AnnData
    from spatialdata.models import TableModel

    from ..regions.grid import as_element
    from . import _hd
    from ._build import READ
    from ._tables import genes_only, var_table

    if matrix not in ("filtered", "raw"):
        raise InputError(f"matrix={matrix!r}", fix="filtered or raw")
    path = bins.matrix(matrix)
    if path is None:
        raise MissingError("no matrix of counts", where=bins.folder, fix="copy filtered_feature_bc_matrix.h5, too")
    grid = _hd.read_grid(bins, bins.scales())
    counts, left = genes_only(_hd.read_matrix(path))
    at = _hd.order_of(grid, counts.ids, where=path)
    name = f"bins_{bins.size_um:03d}um"
    told = _told(grid, full)
    notes(f"{name}: {len(at)} of {len(grid.rows)} bins have counts; {told}" + (f"; {left}" if left else ""))
    to_um = np.diag([full, full, 1.0]) @ grid.transform
    to_um /= to_um[2, 2]
    import pyarrow as pa

    ids = pa.array(counts.ids, type=pa.string())
    points = as_element(grid.rows[at], grid.cols[at], ids, shape=grid.shape, transform=to_um)
    var, changed = var_table(counts)
    if changed:
        notes(f"{name}: {changed} duplicated gene names made unique")
    index = pd.Index(np.asarray(counts.ids, dtype=object))
    obs = pd.DataFrame(
        {"in_tissue": grid.in_tissue[at], "array_row": grid.rows[at], "array_col": grid.cols[at]}, index=index
    )
    obs[keys.REGION_KEY] = pd.Categorical.from_codes(np.zeros(len(at), dtype=np.int8), categories=[name])
    obs[keys.INSTANCE_KEY] = index
    table = AnnData(counts.X, obs=obs, var=var)
    centres = np.column_stack([grid.cols[at], grid.rows[at]]) + 0.5
    table.obsm[keys.SPATIAL] = registration.apply(to_um, centres)
    table.uns[READ] = {"notes": [notes.lines[-1]]}
    table = TableModel.parse(table, region=name, region_key=keys.REGION_KEY, instance_key=keys.INSTANCE_KEY)
    return points, table, {"positions": bins.positions, **({"counts": path} if path.is_file() else {})}


def _told(grid: Grid, full: float) -> str:
    linear = grid.transform[:2, :2]
    angle = np.degrees(np.arctan2(linear[1, 0], linear[0, 0]))
    mirrored = "mirrored, " if np.linalg.det(linear) < 0 else ""
    off = grid.residual_px * full
    size = f"grid of {grid.shape[0]} x {grid.shape[1]}"
    return f"{size}, {mirrored}turned by {angle:.2f} degrees, residual {off:.3f} um"


def _picture(
    found: Output,
    bins: Bins,
    image: str | Path | None,
    scale: float | None,
    scales: dict[str, float],
    full: float,
    notes: Notes,
) -> tuple[Any, float, Path | None]:
    from ._build import image_element
    from ._images import open_image

    file = Path(image) if image is not None else found.image
    k = float(scale or 1.0)
    if file is None:
        hires = bins.folder / "spatial" / "tissue_hires_image.png"
        low = bins.folder / "spatial" / "tissue_lowres_image.png"
        for candidate, name in ((hires, "tissue_hires_scalef"), (low, "tissue_lowres_scalef")):
            if candidate.is_file() and float(scales.get(name, 0)) > 0:
                file, k = candidate, float(scale or scales[name])
                break
    if file is None:
        notes("no picture here: bins and counts only (--option image=FILE gives one)")
        return None, 1.0, None
    picture = open_image(file)
    notes(f"picture: {file.name}, {picture.shape[1]} x {picture.shape[0]} px, {k:.6g} of full resolution")
    return image_element(picture, mpp=full / k, others={"fullres": 1 / k}), k, file


def _cells(
    folder: Path, full: float, to: dict[str, Any], elements: dict[str, dict[str, Any]], notes: Notes
) -> dict[str, Path | None]:
    """Cells and nuclei as Space Ranger 4 segments them, and the cells' counts."""
    import geopandas as gpd
    import pandas as pd
    import shapely
    from anndata import AnnData
    from spatialdata.models import ShapesModel, TableModel

    from ._build import join
    from ._hd import outlines, read_matrix
    from ._tables import check_ids, genes_only, var_table

    used: dict[str, Path | None] = {}
    for name, file in ((keys.CELLS, "cell_segmentations.geojson"), (keys.NUCLEI, "nucleus_segmentations.geojson")):
        path = folder / file
        if not path.is_file():
            continue
        ids, shapes = outlines(path)
        check_ids(ids, what=file, where=path)
        shapes = shapely.transform(shapes, lambda xy: xy * full)
        frame = gpd.GeoDataFrame({"cell_id": ids}, geometry=shapes, index=pd.Index(ids, dtype=object))
        elements["shapes"][name] = ShapesModel.parse(frame, transformations=to)
        used[name] = path
    matrix = folder / "filtered_feature_cell_matrix.h5"
    if keys.CELLS not in elements["shapes"] or not matrix.is_file():
        return used
    counts, _ = genes_only(read_matrix(matrix))
    frame = elements["shapes"][keys.CELLS]
    names = [_plain_id(i) for i in counts.ids]
    if not set(names) & set(frame.index):
        names = counts.ids
    rows = join(frame.index, names, notes=notes, where=matrix, what="segmented cells")
    kept = rows >= 0
    var, _ = var_table(counts)
    obs = pd.DataFrame(index=pd.Index(frame.index[kept], dtype=object))
    obs[keys.REGION_KEY] = pd.Categorical([keys.CELLS] * len(obs))
    obs[keys.INSTANCE_KEY] = list(obs.index)
    table = AnnData(counts.X[rows[kept]], obs=obs, var=var)
    centres = frame.geometry[kept].centroid
    table.obsm[keys.SPATIAL] = np.column_stack([centres.x, centres.y])
    elements["tables"][keys.counts(keys.CELLS)] = TableModel.parse(
        table, region=keys.CELLS, region_key=keys.REGION_KEY, instance_key=keys.INSTANCE_KEY
    )
    return used | {"cell_counts": matrix}


def _plain_id(barcode: str) -> str:
    """ "cellid_000000017-1" of the matrix is cell 17 of the outlines."""
    text = barcode.removeprefix("cellid_").split("-")[0]
    return str(int(text)) if text.isdigit() else barcode
