"""10x Xenium: onboard analysis 1.0 to 4.0 and Xenium Ranger outputs, complete or in parts, with or without H&E.

https://www.10xgenomics.com/support/software/xenium-onboard-analysis/latest/analysis/xoa-output-understanding-outputs
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ._build import Notes
    from ._masks import Mask
    from ._tables import Counts
    from ._xenium import Bundle

PRIORITY = 50


def sniff(path: Path) -> str | None:
    """What is recognised at `path`, or None.

    Parameters
    ----------
    path
        The bundle's folder, the folder above ``outs``, or a file in it (experiment.xenium, transcripts.parquet).
    """
    from ._xenium import find

    bundle = find(path)
    if bundle is None:
        return None
    return f"Xenium (onboard analysis {bundle.version})" if bundle.version else "Xenium"


def read(
    path: Path,
    *,
    mpp: float | None = None,
    facts: dict[str, Any] | None = None,
    min_qv: float = 20.0,
    controls: bool = False,
    transcripts: bool = True,
    morphology: bool = True,
    masks: bool = True,
    morphology_origin_um: list[float] | None = None,
    he: str | Path | None = None,
    he_alignment: str | Path | None = None,
    he_direction: Literal["he_to_morphology", "morphology_to_he"] = "he_to_morphology",
    version: int | None = None,
) -> SpatialData:
    """Read a Xenium run.

    Coordinate systems: "um" (the run's own microns, origin at the top left of the morphology image, y down) and
    "global" (pixels of the morphology image). The run's matrix counts transcripts of quality 20 and above.

    Parameters
    ----------
    path
        The bundle's folder, the folder above ``outs``, or a file in it.
    mpp
        Microns per pixel of the morphology image; default experiment.xenium's, else the image's metadata.
    facts
        slide, patient, tissue, platform where known.
    min_qv
        Least quality of a transcript. 20 (one error in a hundred) is what 10x's own counts use; 12 % of a
        5,000-gene run are below.
    controls
        Keep control probes and codewords: as transcripts, and as features in the counts.
    transcripts, morphology, masks
        False leaves them out. Masks are the rasters of cells.zarr.zip that the run counted by, and become the labels
        ``cells_labels`` and ``nuclei_labels``; the column ``label`` of ``cells`` and ``nuclei`` ties them to ids.
    morphology_origin_um
        (x, y) um of the morphology image's first pixel, of a bundle that was cut out.
    he
        H&E image; default ``*_he_image.ome.tif`` in the bundle or beside it.
    he_alignment
        Its alignment as Xenium Explorer exports it (three rows of three numbers, affine or projective, pixels);
        default ``*_he_imagealignment.csv``. "none" keeps the image in a frame of its own, for `stainseq align`.
    he_direction
        Which way the alignment maps: Explorer's files map H&E pixels to morphology pixels.
    version
        Read the files of an unknown analysis version as those of this one, 1 to 4.

    Raises
    ------
    FormatError
        Truncated or damaged files, an unknown analysis version.
    InputError
        Duplicate ids, cells outside the image.
    MissingError
        H&E without alignment.
    """
    from spatialdata import SpatialData
    from spatialdata.transformations import Identity, Scale

    from . import _xenium
    from ._build import NOTES, Notes, used_files
    from ._cells import shapes
    from ._masks import open_masks

    bundle = _xenium.find(path)
    if bundle is None:
        raise MissingError("no Xenium bundle", where=path, fix="give the folder that holds experiment.xenium")
    facts = _facts(bundle, facts)
    notes = Notes(facts["slide"])
    _xenium.check_version(bundle, version, notes)
    pixel = _xenium.pixel_size(bundle, mpp)
    elements: dict[str, dict[str, Any]] = {kind: {} for kind in ("images", "labels", "points", "shapes", "tables")}
    cells = _xenium.cells(bundle) if "cells" in bundle.tables else None
    counts = _counts(bundle, controls=controls, notes=notes)
    if morphology and bundle.morphology:
        image, pixel = _morphology(bundle, (pixel, mpp), cells, morphology_origin_um, notes)
        elements["images"]["morphology"] = image
    if not pixel:
        pixel = _xenium.PIXEL_UM
        notes(f"neither experiment.xenium nor an image tells the pixel size: {pixel} um, as of every instrument so far")
    to_px = {keys.UM: Identity(), "global": Scale([1 / pixel, 1 / pixel], axes=("x", "y"))}
    if cells is not None:
        opened = open_masks(bundle.masks, pixel_um=pixel) if masks and bundle.masks is not None else {}
        elements["shapes"] |= shapes(bundle, cells, opened, to_px, notes)
        elements["labels"] |= _labels(opened, elements["shapes"], pixel, notes)
        if counts is not None:
            table = _table(bundle, cells, counts, notes)
            drawn = elements["shapes"][keys.CELLS]
            if "label" in drawn:
                table.obs["label"] = drawn["label"].reindex(table.obs_names, fill_value=0).to_numpy()
            elements["tables"][keys.counts(keys.CELLS)] = table
    if transcripts and "transcripts" in bundle.tables:
        points = _points(bundle, counts, min_qv, controls, to_px, notes, extent=_extent(elements["images"], cells))
        elements["points"] |= {} if points is None else {keys.TRANSCRIPTS: points}
    he_path = Path(he) if he is not None else bundle.he
    if he_path is not None:
        from ._he import registered

        elements["images"][keys.HE], facts["mpp"], facts["mpp_from"] = registered(
            he_path,
            bundle.alignment if he_alignment is None else Path(he_alignment),
            pixel_um=pixel,
            inverted=he_direction == "morphology_to_he",
            alone=he_alignment == "none",
            notes=notes,
        )
    facts |= {"pixel_size": pixel, "min_qv": min_qv, "files": used_files(**_files(bundle, he_path))}
    sdata = SpatialData(**elements)
    sdata.attrs[keys.STAMP] = {k: v for k, v in facts.items() if v is not None} | {NOTES: list(notes.lines)}
    return sdata


def _facts(bundle: Bundle, facts: dict[str, Any] | None) -> dict[str, Any]:
    told = bundle.experiment
    out = {**(facts or {}), "platform": "xenium"}
    names = [
        told.get("region_name"),
        told.get("run_name"),
        bundle.folder.name if bundle.folder.name != "outs" else None,
    ]
    out["slide"] = out.get("slide") or next((str(n) for n in names if n and n != "N/A"), bundle.folder.parent.name)
    out |= {
        k: told[v] for k, v in {"panel": "panel_name", "preservation": "preservation_method"}.items() if told.get(v)
    }
    out["version"] = bundle.version or None
    return out


def _files(bundle: Bundle, he: Path | None) -> dict[str, Path | None]:
    matrix = bundle.matrix if bundle.matrix is not None and bundle.matrix.is_file() else None
    return {
        **bundle.tables,
        "matrix": matrix,
        "morphology": bundle.morphology[0] if bundle.morphology else None,
        "he": he,
        "alignment": bundle.alignment,
        "masks": bundle.masks if bundle.masks is not None and bundle.masks.is_file() else None,
    }


def _counts(bundle: Bundle, *, controls: bool, notes: Notes) -> Counts | None:
    from ._tables import genes_only, read_10x_h5, read_10x_mtx

    if bundle.matrix is None:
        notes("no cell_feature_matrix: no counts")
        return None
    counts = read_10x_h5(bundle.matrix) if bundle.matrix.is_file() else read_10x_mtx(bundle.matrix)
    if not controls:
        counts, left = genes_only(counts)
        if left:
            notes(left)
    return counts


def _morphology(
    bundle: Bundle, sizes: tuple[float, float | None], cells: Any, origin: list[float] | None, notes: Notes
) -> tuple[Any, float]:
    from spatialdata.transformations import Affine, Identity

    from . import _xenium
    from ._channels import open_channels
    from ._picture import raster

    levels, names, told = open_channels(bundle.morphology, stack=bundle.is_stack)
    pixel = _xenium.agreed_pixel(bundle, *sizes, told)
    # A re-saved image has pixels of its own; the instrument's hold for images as it wrote them.
    own = told[0] if told is not None else pixel or _xenium.PIXEL_UM
    if told is None and not pixel:
        notes(f"nothing tells the pixel size of the morphology image: {own} um, as of every instrument so far")
    pixel = pixel or own
    if bundle.is_stack:
        notes("no focused morphology image: the middle plane of the stack is taken")
    shift = _origin(origin)
    if cells is not None:
        at = cells[["x_centroid", "y_centroid"]].to_numpy() - shift
        _xenium.check_inside(at, levels[0].shape[1:], own, where=bundle.morphology[0])
    matrix = np.array([[own, 0, shift[0]], [0, own, shift[1]], [0, 0, 1]])
    um = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
    pixels = Affine(np.diag([1 / pixel, 1 / pixel, 1]) @ matrix, input_axes=("x", "y"), output_axes=("x", "y"))
    same = np.allclose(pixels.to_affine_matrix(("x", "y"), ("x", "y")), np.eye(3))
    notes(f"morphology: {', '.join(names)}; {levels[0].shape[2]} x {levels[0].shape[1]} px, {own:g} um/px")
    return raster(levels, names, {"global": Identity() if same else pixels, keys.UM: um}), pixel


def _origin(given: list[float] | None) -> np.ndarray:
    try:
        shift = np.asarray((0, 0) if given is None else given, dtype=np.float64)
    except (TypeError, ValueError):
        shift = np.zeros(0)
    if shift.shape != (2,) or not np.isfinite(shift).all():
        raise InputError(f"morphology_origin_um={given!r}", fix="give x and y in um, such as [1200, 800.5]")
    return shift


def _labels(masks: dict[str, Mask], shapes: dict[str, Any], pixel: float, notes: Notes) -> dict[str, Any]:
    """Masks as label elements; their ids are those of the shapes with the same ``label``."""
    import shapely
    from spatialdata.models import Labels2DModel
    from spatialdata.transformations import Affine

    out = {}
    for name, mask in masks.items():
        if name not in shapes or "label" not in shapes[name]:
            notes(f"a mask of {name} without their ids was left out")
            continue
        known = shapes[name]["label"].to_numpy() > 0
        centres = shapely.get_coordinates(shapes[name].geometry.centroid.to_numpy())
        mask.check(shapes[name]["label"].to_numpy()[known], centres[known])
        axes: dict[str, Any] = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
        to = {
            keys.UM: Affine(mask.matrix, **axes),
            "global": Affine(np.diag([1 / pixel, 1 / pixel, 1]) @ mask.matrix, **axes),
        }
        out[f"{name}_labels"] = Labels2DModel.parse(mask.raster, dims=("y", "x"), transformations=to)
        notes(f"mask of {name}: {mask.raster.shape[1]} x {mask.raster.shape[0]} px, {len(mask.labels)} labels")
    return out


def _table(bundle: Bundle, cells: Any, counts: Counts, notes: Notes) -> Any:
    import pandas as pd
    from anndata import AnnData
    from spatialdata.models import TableModel

    from ._build import READ, join, tidy
    from ._tables import check_ids, var_table

    check_ids(counts.ids, what="the matrix", where=bundle.matrix)
    positions = pd.Index([str(i) for i in cells.index], dtype=object)
    rows = join(positions, counts.ids, notes=notes, where=bundle.matrix, what="cells")
    kept = rows >= 0
    var, changed = var_table(counts)
    if changed:
        notes(f"{changed} gene names occur twice and got a number")
    if counts.feature_types is not None:
        var["feature_type"] = pd.Categorical(counts.feature_types)
    obs = tidy(cells[kept])
    obs.index = positions[kept]
    obs[keys.REGION_KEY] = pd.Categorical([keys.CELLS] * len(obs))
    obs[keys.INSTANCE_KEY] = list(obs.index)
    table = AnnData(counts.X[rows[kept]], obs=obs, var=var)
    table.obsm[keys.SPATIAL] = cells[kept][["x_centroid", "y_centroid"]].to_numpy(dtype=np.float64)
    void = int((np.asarray(table.X.sum(axis=1)) == 0).sum())
    if void:
        notes(f"the rows of {void} of {table.n_obs} cells hold nothing but zeros")
    table.uns[READ] = {"notes": list(notes.lines)}
    return TableModel.parse(table, region=keys.CELLS, region_key=keys.REGION_KEY, instance_key=keys.INSTANCE_KEY)


def _extent(images: dict[str, Any], cells: Any) -> tuple[str, np.ndarray] | None:
    """What transcripts must lie in: its name and (min_x, min_y, max_x, max_y) um of the image, else of the cells."""
    from spatialdata import get_extent

    if "morphology" in images:
        found = get_extent(images["morphology"], coordinate_system=keys.UM)
        return "the morphology image", np.array([*found["x"], *found["y"]])[[0, 2, 1, 3]]
    if cells is None or not len(cells):
        return None
    xy = cells[["x_centroid", "y_centroid"]].to_numpy(dtype=float)
    margin = 100 + 0.1 * np.ptp(xy, axis=0).max()
    return "the area of the cells", np.r_[xy.min(axis=0) - margin, xy.max(axis=0) + margin]


def _points(
    bundle: Bundle,
    counts: Counts | None,
    min_qv: float,
    controls: bool,
    to: dict[str, Any],
    notes: Notes,
    *,
    extent: tuple[str, np.ndarray] | None,
) -> Any:
    from spatialdata.models import PointsModel

    from ._tables import genes_only
    from ._transcripts import Wanted, open_transcripts

    path = bundle.tables["transcripts"]
    genes = None if controls or counts is None else tuple(genes_only(counts)[0].symbols)
    frame, survey = open_transcripts(path, Wanted(min_qv, controls, genes), extent=extent)
    if not survey.total:
        notes("the file of transcripts is empty: no transcripts")
        return None
    if not (controls or genes or survey.tells_genes):
        notes("no panel (cell_feature_matrix): which features are genes is told by their names")
    kind = "" if controls else " of genes"
    notes(f"{survey.kept} of {survey.total} transcripts kept: those{kind} with quality {min_qv:g} or more")
    coordinates = {a: a for a in ("x", "y", "z") if a in frame.columns}
    instance = {"instance_key": "cell_id"} if "cell_id" in frame.columns else {}
    with warnings.catch_warnings():
        # Parts have indices of their own; the store puts points in an order of its own anyway.
        warnings.filterwarnings("ignore", message="The index of the dataframe is not monotonic")
        return PointsModel.parse(
            frame, coordinates=coordinates, feature_key="feature_name", transformations=to, sort=False, **instance
        )
