"""Registering the H&E image by landmarks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..core import registration
from ..errors import InputError, MissingError, ScaleError

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ..io import Keypoints

_SIMPLER = 1.1
"""A simpler kind is kept unless a richer one lowers the left-out error by more than this factor: it extrapolates
better, and a tenth is well below the noise of that error from a dozen landmarks."""
_COVER_UM, _COVER_STEPS = 50.0, 1.1
"""Side of the squares in which tissue and measured regions are compared, so that regions leave no holes: a few cells,
or so many times the distance of neighbouring regions where that is more."""
_SLACK = 0.01
"""Of the longer side, by which a landmark may lie outside its picture: clicked at the rim of one that was cut."""
_SCALE = 1.5
"""Ratio of pixel sizes beyond which a level is wrong (2) and below which metadata may be off (objectives, 1.25)."""


def align(
    sdata: SpatialData,
    *,
    he: str | os.PathLike[str] | np.ndarray,
    target: str | os.PathLike[str] | np.ndarray | None = None,
    image: str | os.PathLike[str] | None = None,
    kind: str | None = None,
    he_level: int | None = None,
    target_level: int | None = None,
    target_unit: str | None = None,
    target_key: str | None = None,
    consensus_um: float | None = None,
    image_key: str = keys.HE,
    any_scale: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Register the H&E image by landmarks.

    Parameters
    ----------
    sdata
        The slide; the place of its image is changed, in memory and on disk, and none of its pixels.
    he, target
        Landmarks of the H&E image and of the frame to lay it onto, in the same order: files (see `io.read_keypoints`)
        or arrays [n, 2] of x, y. Those of the H&E are pixels. `target` may be left out where the file of `he` lists
        both sides.
    image
        A picture file to add to the slide under `image_key`, for slides without H&E, or for a further one. Default: the
        image is there.
    kind
        "similarity", "affine" or "projective". Default: the simplest whose error at left-out landmarks is within a
        tenth of the lowest.
    he_level, target_level
        Pyramid levels of the landmarks; default what the file names tell, else 0.
    target_unit
        "um", or "px" of the image `target_key`; needed where the file does not tell.
    target_key
        Image that target pixels belong to; default the only other image of the slide.
    consensus_um
        Landmarks that are further off than this are found by random sample consensus and left out. Default: all count.
    image_key
        The H&E image.
    any_scale
        Also accept landmarks that make a pixel more than 1.5 times as large or small as the image's metadata do, which
        otherwise is taken for a wrong level or unit.
    seed
        Of the consensus.

    Returns
    -------
    dict
        JSON-able: kind, kinds (errors of each kind), matrix (level-0 pixels to um), mpp, rotation_deg, mirrored, n,
        n_used, residual_um and left_out_um (mean, rms, max), landmarks (per landmark), overlap (Dice of tissue and
        measured regions, before and after), stale (elements that were made from the image as it lay before, and what
        was made from those).

    Raises
    ------
    InputError
        Landmarks that fit no transform, that contradict each other (see `core.registration.register`), or that lie
        outside the image; a name that is taken.
    ScaleError
        Target landmarks of unknown unit, or in pixels of an image that has no place; a pixel size that contradicts the
        metadata.
    MissingError
        No such image or file.
    """
    from spatialdata.transformations import Affine

    from .. import lineage, store

    picture = _picture(sdata, image, image_key)
    source, given_target = _sides(he, target, he_level, target_level, target_unit)
    _check_inside(source.xy, picture.shape, "H&E", "--he-level")
    goal = _target_um(sdata, given_target, target_key, image_key)
    tried = _kinds(source.xy, goal, kind, consensus_um, seed)
    chosen = kind or _simplest(tried)
    found = tried[chosen]
    height, width = picture.shape
    affine, bend_um = registration.nearest_affine(found.matrix, (width, height))
    if not any_scale and picture.mpp is not None:
        _check_scale(affine, picture.mpp, source.level)
    before = _overlap(sdata, image_key) if image is None else None
    inputs = {"landmarks": _fingerprint(source.xy, goal), **picture.inputs}
    stamped: dict[str, Any] = {
        "step": "align",
        "parameters": {"kind": chosen, "consensus_um": consensus_um, "seed": seed, "matrix": found.matrix.tolist()},
        "inputs": inputs,
        "more": {"projective": found.matrix.tolist()} if chosen == "projective" else {},
    }
    place = Affine(affine, input_axes=("x", "y"), output_axes=("x", "y"))
    if picture.element is None:
        store.set_transformation(sdata, image_key, place, **stamped)
    else:
        store.write_element(sdata, image_key, picture.element(place), **stamped)
    linear = affine[:2, :2]
    mpp = float(np.sqrt(abs(np.linalg.det(linear))))
    if image_key == keys.HE:
        store.set_facts(sdata, mpp=round(mpp, 6), mpp_from="landmarks")
    return {
        "kind": chosen,
        "kinds": {k: {"residual_um": _told(r.residuals), "left_out_um": _told(r.left_out)} for k, r in tried.items()},
        "matrix": found.matrix.tolist(),
        "mpp": mpp,
        "rotation_deg": float(np.degrees(np.arctan2(linear[1, 0], linear[0, 0]))),
        "mirrored": bool(np.linalg.det(linear) < 0),
        "affine_off_um": bend_um,
        "n": len(goal),
        "n_used": int(found.inliers.sum()),
        "residual_um": _told(found.residuals[found.inliers]),
        "left_out_um": _told(found.left_out[found.inliers]),
        "landmarks": _rows(source, goal, found),
        "overlap": {"before": before, "after": _overlap(sdata, image_key)},
        "stale": [name for name in lineage.stale(sdata) if name != image_key],
    }


@dataclass(frozen=True)
class _Picture:
    """The image that is laid: one of the slide, or one that is to be added.

    Parameters
    ----------
    shape
        Height and width, px.
    mpp
        Microns per pixel as its metadata tell, None where they do not, or where landmarks told before.
    inputs
        Fingerprints for its stamp.
    element
        Makes the element from its place; None where it is there.
    """

    shape: tuple[int, int]
    mpp: float | None
    inputs: dict[str, str]
    element: Callable[[Any], Any] | None = None


def _picture(sdata: SpatialData, file: str | os.PathLike[str] | None, key: str) -> _Picture:
    from .. import spec, store

    if file is not None:
        from ..readers._images import open_image
        from ..readers._picture import raster

        if key in sdata.images:
            raise InputError(
                f"there is an image {key!r} already",
                where=sdata.path,
                fix="give the new one another name (--image-key)",
            )
        opened = open_image(Path(file))
        levels = [level.transpose(2, 0, 1) for level in opened.levels]
        return _Picture(
            opened.shape,
            float(np.sqrt(opened.mpp[0] * opened.mpp[1])) if opened.mpp is not None else None,
            {f"image: {Path(file).name}": spec.fingerprint_file(Path(file))},
            lambda place: raster(levels, ["r", "g", "b"], {keys.UM: place}),
        )
    if key not in sdata.images:
        raise MissingError(
            f"no image {key!r}",
            where=sdata.path,
            fix=f"add one (--image FILE); images here: {', '.join(sdata.images) or 'none'}",
        )
    stamp = store.stamp_of(sdata, key) or {}
    matrix = _to_um(sdata, key) if stamp.get("step") != "align" else None
    mpp = None if matrix is None else float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    return _Picture(_shape(sdata, key), mpp, {key: store.fingerprint_of(sdata, key)})


def _sides(
    he: Any, target: Any, he_level: int | None, target_level: int | None, target_unit: str | None
) -> tuple[Keypoints, Keypoints]:
    """Landmarks of both frames."""
    source = _given(he, level=he_level, unit=None, side="alignment")
    if source.unit == "um":
        raise InputError(
            "the landmarks of the H&E are in um",
            where=he if isinstance(he, (str, os.PathLike)) else None,
            fix="give its pixels; --he and --target may be exchanged",
        )
    if target is None and not source.two_sided:
        raise MissingError(
            "no landmarks of the target", fix="give them (--target), or one file with two pairs of columns (--he)"
        )
    target = he if target is None else target
    return source, _given(target, level=target_level, unit=target_unit, side="fixed")


def _check_inside(xy: np.ndarray, shape: tuple[int, int], what: str, option: str) -> None:
    """Landmarks lie on their picture; one that was clicked does."""
    height, width = shape
    slack = _SLACK * max(shape)
    outside = ((xy < -slack) | (xy > np.array([width, height]) + slack)).any(axis=1)
    if outside.any():
        raise InputError(
            f"{int(outside.sum())} of {len(xy)} landmarks of the {what} lie outside its {width} x {height} px",
            fix=f"check the pyramid level ({option}), and that --he and --target are not exchanged",
        )


def _check_scale(affine: np.ndarray, told: float, level: int) -> None:
    """The landmarks agree with the pixel size that metadata tell, up to what a wrong level or unit would make of it."""
    mpp = float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
    ratio = mpp / told
    if 1 / _SCALE <= ratio <= _SCALE:
        return
    steps = round(np.log2(ratio))
    near = abs(np.log2(ratio) - steps) < 0.2 and level + steps >= 0
    raise ScaleError(
        f"the landmarks make a pixel {mpp:.4g} um, {ratio:.3g} times what the image's metadata tell ({told:.4g} um)",
        fix=(f"check the pyramid level (--he-level {level + steps} would fit)" if near else "check units and levels")
        + ", or take it as it is (--any-scale)",
    )


def _given(landmarks: Any, *, level: int | None, unit: str | None, side: str) -> Keypoints:
    from ..io import Keypoints, read_keypoints

    if isinstance(landmarks, (str, os.PathLike)):
        return read_keypoints(landmarks, level=level, unit=unit, side=side)
    xy = np.asarray(landmarks, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise InputError(f"landmarks of shape {xy.shape}", fix="give [n, 2]: x and y")
    return Keypoints(xy * 2.0 ** (level or 0), unit, level or 0)


def _target_um(sdata: SpatialData, target: Keypoints, key: str | None, image_key: str) -> np.ndarray:
    if target.unit == "um":
        return target.xy
    if target.unit is None:
        raise ScaleError(
            "the target landmarks do not tell their unit",
            fix="target_unit (--target-unit) um, or px of an image of the slide",
        )
    others = [name for name in sdata.images if name != image_key]
    key = key or (others[0] if len(others) == 1 else None)
    if key is None or key not in sdata.images:
        raise MissingError(
            "no image that the target's pixels belong to" if key is None else f"no image {key!r}",
            where=sdata.path,
            fix=f"target_key (--target-key); other images here: {', '.join(others) or 'none'}",
        )
    _check_inside(target.xy, _shape(sdata, key), f"target {key!r}", "--target-level")
    return registration.apply(_to_um(sdata, key), target.xy)


def _to_um(sdata: SpatialData, key: str) -> np.ndarray:
    from spatialdata.transformations import get_transformation

    placed = get_transformation(sdata.images[key], get_all=True)
    if keys.UM not in placed:
        raise ScaleError(f"image {key!r} has no place in um", where=sdata.path, fix="convert the slide with --mpp")
    return np.asarray(placed[keys.UM].to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y")))


def _kinds(
    source: np.ndarray, goal: np.ndarray, kind: str | None, consensus: float | None, seed: int
) -> dict[str, registration.Registration]:
    """Every kind that the landmarks allow, or the one that is asked for alone if no other does."""
    tried: dict[str, registration.Registration] = {}
    for name in registration.MINIMUM:
        try:
            tried[name] = registration.register(source, goal, kind=name, consensus=consensus, seed=seed)
        except InputError:
            if name == (kind or "similarity"):
                raise
    if kind is not None and kind not in registration.MINIMUM:
        raise InputError(f"no kind of transform named {kind!r}", fix=f"one of: {', '.join(registration.MINIMUM)}")
    return tried


def _simplest(tried: dict[str, registration.Registration]) -> str:
    errors = {k: _told(r.left_out[r.inliers])["rms"] for k, r in tried.items()}
    known = {k: e for k, e in errors.items() if e is not None}
    if not known:
        return "similarity"
    return next(k for k, e in known.items() if e <= _SIMPLER * min(known.values()) + 1e-9)


def _told(distances: np.ndarray) -> dict[str, float | None]:
    known = distances[np.isfinite(distances)]
    if not len(known):
        return {"mean": None, "rms": None, "max": None}
    return {"mean": float(known.mean()), "rms": float(np.sqrt((known**2).mean())), "max": float(known.max())}


def _rows(source: Keypoints, goal: np.ndarray, found: registration.Registration) -> list[dict[str, Any]]:
    names = source.names or tuple(str(i + 1) for i in range(len(goal)))
    return [
        {
            "name": names[i],
            "x_px": source.xy[i, 0],
            "y_px": source.xy[i, 1],
            "x_um": goal[i, 0],
            "y_um": goal[i, 1],
            "residual_um": float(found.residuals[i]),
            "left_out_um": float(found.left_out[i]) if np.isfinite(found.left_out[i]) else None,
            "used": bool(found.inliers[i]),
        }
        for i in range(len(goal))
    ]


def _shape(sdata: SpatialData, key: str) -> tuple[int, int]:
    from spatialdata import get_pyramid_levels

    element = sdata.images[key]
    level = next(iter(get_pyramid_levels(element))) if hasattr(element, "children") else element
    return int(level.sizes["y"]), int(level.sizes["x"])


def _overlap(sdata: SpatialData, image_key: str) -> float | None:
    """Dice of the H&E's tissue and of where regions were measured, in squares; None without either."""
    from .. import image, regions
    from ..core import tissue

    points = regions.measured_um(sdata)
    if points is None:
        return None
    try:
        matrix = _to_um(sdata, image_key)
    except ScaleError:
        return None
    opened = image.open_image(sdata, image_key)
    thumb, mpp = image.level_thumbnail(opened, max_px=1024)
    mask = tissue.tissue_mask(thumb, mpp=mpp)
    side = _COVER_UM if len(points) < 2 else max(_COVER_UM, _COVER_STEPS * _pitch(points))
    low = points.min(axis=0) - 4.5 * side
    size = np.ceil((points.max(axis=0) + 4 * side - low) / side).astype(int)
    measured = np.zeros((size[1], size[0]), dtype=bool)
    at = ((points - low) / side).astype(int)
    measured[at[:, 1], at[:, 0]] = True
    x, y = np.meshgrid(*(low[a] + (np.arange(size[a]) + 0.5) * side for a in (0, 1)))
    pixels = registration.apply(np.linalg.inv(matrix), np.column_stack([x.ravel(), y.ravel()])) * (opened.mpp / mpp)
    column, row = np.floor(pixels).astype(int).T
    inside = (row >= 0) & (column >= 0) & (row < mask.shape[0]) & (column < mask.shape[1])
    on_tissue = np.zeros(len(pixels), dtype=bool)
    on_tissue[inside] = mask[row[inside], column[inside]]
    both = int((on_tissue & measured.ravel()).sum())
    total = int(on_tissue.sum() + measured.sum())
    return 2 * both / total if total else None


def _pitch(points: np.ndarray) -> float:
    """Distance of neighbouring regions, um."""
    from scipy.spatial import cKDTree

    return float(np.median(cKDTree(points).query(points, k=2)[0][:, 1]))


def _fingerprint(*arrays: np.ndarray) -> str:
    from .. import spec

    return spec.fingerprint("landmarks", *(a.tobytes() for a in arrays))
