"""Pixel size from an array's pitch, and whether spots and image are in one frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ..errors import ScaleError
from .tissue import tissue_mask

VISIUM_STEP_UM = (50.0, 87.0)
"""Column and row step of the Visium lattice. Neighbours in a row are 100 um apart; rows are 87 um apart, not
86.6 (a regular hexagon): with 87 the fit of every Space Ranger output that was looked at is isotropic to 1e-5 and the
fiducials come out at 105.0 um, with 86.6 it is stretched by 0.46 %."""

ST_1K_STEP_UM = (200.0, 200.0)
"""Column and row step of the 1k array (33 x 35 spots of 100 um; Stahl et al., Science 2016)."""

ST_2K_STEP_UM = (100.26, 111.57)
"""Column and row step of the 2k array (66 x 63 places, every other one a spot of 110 um): diagonal neighbours are
150 um apart, and rows 1.113 times as far apart as columns (measured on the two sections in STUtility)."""

MAX_RESIDUAL = 0.25
"""Largest root mean square residual of a lattice fit, as a share of the pitch; beyond it the spots are no lattice."""

MIN_INSIDE = 0.9
"""Least share of spots inside the image. Arrays may reach a little beyond a cropped picture."""

MIN_ON_TISSUE = 0.5
"""Least share of spots on tissue. Spots under fat, lumina and pale stroma are off a quick mask, up to a third of them
on real sections; in a wrong frame the share is near the share of tissue in the picture."""

BETTER = 0.9, 0.15, 1.5, 1.15
"""Spots of which less than the first share lies on tissue are also refused if coordinates scaled by more than the last
number (up or down) gain the second share, and cover of the tissue the third number as much. On real sections the best
scale was within 4 % of 1."""

CORNER = 0.08, 0.6, 1.8
"""Spots that all lie on tissue may still be in the frame of a smaller picture. Refused only if they cover less than
the first share of the tissue while coordinates magnified by at least the third number cover more than the second."""

EXCHANGED = 0.05
"""Where the array lies mirrored against the picture, x and y exchanged must not put this much more of the spots on
tissue. A mirrored array alone is no fault: pictures are flipped, and Space Ranger fits all eight orientations. On real
sections the exchange loses 0.11 to 0.69."""


@dataclass(frozen=True)
class PitchFit:
    """Microns per pixel by regression of pixel positions on an array's design.

    Parameters
    ----------
    mpp
        Microns per pixel: square root of the design's area over the fitted area, so that a slight stretch of one
        axis does not depend on where the spots lie.
    stretch
        Larger over smaller scale of the two principal axes of the fit; 1 when the picture is undistorted.
    rms_um
        Root mean square residual per axis, um.
    n
        Spots used, after those off by more than six robust deviations were left out.
    mirrored
        The array lies mirrored in the picture: the picture was flipped, or x and y are exchanged.
    """

    mpp: float
    stretch: float
    rms_um: float
    n: int
    mirrored: bool = False

    def told(self) -> dict[str, float]:
        """What the facts of a slide keep of it."""
        return {"mpp": self.mpp, "stretch": self.stretch, "rms_um": self.rms_um, "n": self.n}


def fit_design(design_um: np.ndarray, xy_px: np.ndarray, *, pitch_um: float) -> PitchFit:
    """Pixel size from spots whose place in the array is known.

    An affine regression (arrays are rotated, mirrored and slightly stretched against the picture) with gross outliers
    left out.

    Parameters
    ----------
    design_um
        float [n, 2], nominal positions in the array, um.
    xy_px
        float [n, 2], positions in the image, pixels.
    pitch_um
        Centre-to-centre distance of the array, for judging the residual.

    Raises
    ------
    ScaleError
        Fewer than three spots that span a plane, or spots that are not where the design has them.
    """
    design, xy = np.asarray(design_um, dtype=float), np.asarray(xy_px, dtype=float)
    keep = np.isfinite(design).all(1) & np.isfinite(xy).all(1)
    design, xy = design[keep], xy[keep]
    _require_plane(design)
    used = np.ones(len(design), dtype=bool)
    for _ in range(5):
        linear, residual = _affine(design[used], xy[used], design, xy)
        size = np.hypot(*residual.T)
        limit = 6 * 1.4826 * np.median(size[used]) + 1e-6
        trimmed = size <= limit
        if trimmed.sum() < 3 or np.array_equal(trimmed, used):
            break
        used = trimmed
    major, minor = np.linalg.svd(linear, compute_uv=False)
    if minor <= 1e-9 * major:
        raise ScaleError("all spots lie at one place or on one line of the image", fix="pass the pixel size (--mpp)")
    mpp = float(1 / np.sqrt(major * minor))
    rms_um = float(np.sqrt((residual[used] ** 2).mean()) * mpp)
    if rms_um > MAX_RESIDUAL * pitch_um:
        raise ScaleError(
            f"spots do not lie on an array of {pitch_um:g} um pitch (residual {rms_um:.0f} um)",
            fix="pass the pixel size (--mpp), or the array's pitch (--option pitch_um=)",
        )
    return PitchFit(mpp, float(major / minor), rms_um, int(used.sum()), bool(np.linalg.det(linear) < 0))


def st_array(xy: np.ndarray) -> str | None:
    """ "1k" or "2k" by the places that are occupied, None where they do not tell.

    The 2k array uses every other place, so that x + y is even (or odd) throughout; the 1k array ends at (33, 35).

    Parameters
    ----------
    xy
        float [n, 2], array coordinates (x, y), counted from 0 or 1; all known spots, not those under tissue only.
    """
    place = np.round(np.asarray(xy, dtype=float)).astype(int)
    whole = bool(np.abs(np.asarray(xy) - place).max(initial=0) < 1e-6)
    odd = (place.sum(1) % 2).mean() if len(place) else 0.5
    if whole and len(place) >= 8 and odd in (0.0, 1.0):
        return "2k"
    fits = len(place) > 0 and place[:, 0].max() <= 34 and place[:, 1].max() <= 36
    return "1k" if fits and (not whole or 0 < odd < 1) else None


def _require_plane(design: np.ndarray) -> None:
    spread = np.linalg.svd(design - design.mean(0), compute_uv=False) if len(design) >= 3 else np.zeros(2)
    if len(design) < 3 or spread[1] < 1e-6 * max(spread[0], 1e-12):
        where = "one spot" if len(design) == 1 else f"{len(design)} spots on a line"
        raise ScaleError(f"the pixel size cannot be fitted from {where}", fix="pass it (--mpp)")


def _affine(
    design: np.ndarray, xy: np.ndarray, all_design: np.ndarray, all_xy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    centre, target = design.mean(0), xy.mean(0)
    linear = np.linalg.lstsq(design - centre, xy - target, rcond=None)[0]
    return linear, all_xy - target - (all_design - centre) @ linear


@dataclass(frozen=True)
class Lattice:
    """A lattice found in points alone.

    Parameters
    ----------
    basis_px
        float [2, 2], two shortest lattice vectors (rows), pixels.
    rms_px
        Root mean square residual per axis.
    n
        Points used.
    """

    basis_px: np.ndarray
    rms_px: float
    n: int

    @property
    def lengths_px(self) -> tuple[float, float]:
        """Lengths of the two vectors."""
        a, b = np.hypot(*self.basis_px.T)
        return float(a), float(b)

    @property
    def angle_deg(self) -> float:
        """Angle between the two lines, 0 to 90."""
        a, b = self.basis_px
        return float(np.degrees(np.arccos(np.clip(abs(a @ b) / np.prod(self.lengths_px), 0, 1))))

    @property
    def cell_px2(self) -> float:
        """Area of the primitive cell."""
        return float(abs(np.linalg.det(self.basis_px)))


def fit_lattice(xy_px: np.ndarray) -> Lattice:
    """The lattice that points lie on, when nothing tells their place in it.

    The two commonest directions to neighbours start it; then lattice indices are rounded in a growing circle and the
    vectors regressed on them, which averages rounding to whole pixels away (nearest distances do not: they are biased
    towards short).

    Parameters
    ----------
    xy_px
        float [n, 2].

    Raises
    ------
    ScaleError
        Fewer than seven points, or points that are no lattice.
    """
    xy = np.asarray(xy_px, dtype=float)
    if len(xy) < 7:
        where = "one spot" if len(xy) == 1 else f"{len(xy)} spots"
        raise ScaleError(f"the pixel size cannot be fitted from {where}", fix="pass it (--mpp)")
    basis = _reduce(_neighbour_vectors(xy))
    origin = xy[np.argmin(((xy - np.median(xy, axis=0)) ** 2).sum(1))].copy()
    distance = np.hypot(*(xy - origin).T)
    radius, whole = 6 * np.hypot(*basis.T).max(), distance.max()
    while True:
        near = distance <= radius
        index = np.round((xy[near] - origin) @ np.linalg.inv(basis))
        good = np.abs((xy[near] - origin) @ np.linalg.inv(basis) - index).max(1) < 0.3
        if good.sum() >= 7 and np.linalg.matrix_rank(index[good] - index[good].mean(0)) == 2:
            design = np.column_stack([index[good], np.ones(good.sum())])
            solved = np.linalg.lstsq(design, xy[near][good], rcond=None)[0]
            basis, origin = solved[:2], solved[2]
        if radius >= whole:
            break
        radius *= 1.6
    share = good.mean()
    residual = xy[near][good] - design @ solved if good.sum() >= 7 else np.full((1, 2), np.inf)
    rms = float(np.sqrt((residual**2).mean()))
    if share < 0.8 or rms > MAX_RESIDUAL * np.sqrt(abs(np.linalg.det(basis))):
        raise ScaleError("the spots do not lie on a regular lattice", fix="pass the pixel size (--mpp)")
    return Lattice(_reduce(basis), rms, int(good.sum()))


def _neighbour_vectors(xy: np.ndarray) -> np.ndarray:
    """Two lattice vectors: the medians of the two commonest directions to near neighbours."""
    sample = xy if len(xy) <= 20_000 else xy[np.linspace(0, len(xy) - 1, 20_000).astype(int)]
    distance, index = cKDTree(xy).query(sample, k=min(7, len(xy)))
    near = (distance[:, 1:] < 1.28 * np.median(distance[:, 1])) & (distance[:, 1:] > 0)
    vectors = (xy[index[:, 1:]] - sample[:, None])[near]
    if len(vectors) < 6:
        raise ScaleError("the spots do not lie on a regular lattice", fix="pass the pixel size (--mpp)")
    vectors[(vectors[:, 1] < 0) | ((vectors[:, 1] == 0) & (vectors[:, 0] < 0))] *= -1
    angle = np.degrees(np.arctan2(vectors[:, 1], vectors[:, 0])) % 180
    found = []
    free = np.ones(len(vectors), dtype=bool)
    for _ in range(2):
        counts = np.bincount(angle[free].astype(int) % 180, minlength=180).astype(float)
        smooth = sum(np.roll(counts, k) for k in range(-8, 9))
        peak = float(np.argmax(smooth)) + 0.5
        off = (angle - peak + 90) % 180 - 90
        chosen = free & (np.abs(off) <= 18)
        if chosen.sum() < 3:
            raise ScaleError("all spots lie on one line", fix="pass the pixel size (--mpp)")
        direction = np.array([np.cos(np.radians(peak)), np.sin(np.radians(peak))])
        sign = np.where(vectors[chosen] @ direction < 0, -1.0, 1.0)
        found.append(np.median(vectors[chosen] * sign[:, None], axis=0))
        free &= np.abs(off) > 35
    return np.array(found)


def _reduce(basis: np.ndarray) -> np.ndarray:
    """Lagrange reduction: the two shortest vectors of the lattice."""
    a, b = basis
    for _ in range(20):
        if a @ a > b @ b:
            a, b = b, a
        k = np.round(a @ b / (a @ a))
        if k == 0:
            break
        b = b - k * a
    return np.array([a, b])


@dataclass(frozen=True)
class FrameCheck:
    """Where the spots fall.

    Parameters
    ----------
    inside
        Share of spots inside the image.
    on_tissue
        Share of spots on tissue; NaN where the picture has no two classes to tell apart.
    tissue
        Share of the picture that is tissue.
    exchanged
        Share of spots on tissue had x and y been exchanged; NaN where that cannot be told, or was not asked.
    """

    inside: float
    on_tissue: float
    tissue: float
    exchanged: float = float("nan")


def check_frame(
    xy_px: np.ndarray,
    rgb: np.ndarray,
    *,
    factor: float,
    mpp: float,
    cell_um2: float,
    named: Mapping[str, float] | None = None,
    mirrored: bool = False,
    where: object = None,
) -> FrameCheck:
    """Do spots and image belong to one frame?

    Refused are spots of which less than `MIN_INSIDE` lie in the image or less than `MIN_ON_TISSUE` on tissue, spots
    that another scale fits much better (`BETTER`), and spots crowded into a corner of the tissue while magnified
    coordinates would cover it (`CORNER`), and spots of a mirrored array that lie better with x and y exchanged
    (`EXCHANGED`). Give only spots that are said to be under tissue.

    Parameters
    ----------
    xy_px
        float [n, 2], level-0 pixels.
    rgb
        uint8 [h, w, 3], the whole picture, small.
    factor
        Level-0 pixels per pixel of `rgb`.
    mpp
        Microns per level-0 pixel.
    cell_um2
        Area of array that one spot stands for.
    named
        Scale factors worth trying, by name (those of the vendor's side file).
    mirrored
        Whether the array lies mirrored in these coordinates (`PitchFit`).
    where
        What the message names.

    Raises
    ------
    ScaleError
        With the share found and what would fit better: a scale factor, or x and y exchanged.
    """
    if len(xy_px) == 0:
        return FrameCheck(float("nan"), float("nan"), float("nan"))
    rgb = rgb.copy()
    rgb[(rgb < 16).all(2)] = 255  # painted or scanner-black surroundings are no tissue
    mask = tissue_mask(rgb, mpp=mpp * factor)
    points = np.asarray(xy_px, dtype=float) / factor
    cell = cell_um2 / (mpp * factor) ** 2
    inside = float(_inside(points, mask).mean())
    tissue = float(mask.mean())
    told = 0.01 < tissue < 0.97
    on, cover = _overlap(points, mask, cell)
    exchanged = _overlap(points[:, ::-1], mask, cell)[0] if mirrored and told else float("nan")
    if exchanged >= on + EXCHANGED:
        raise ScaleError(
            f"x and y are exchanged: the array lies mirrored in the picture with {on:.0%} of {len(points)} spots on "
            f"tissue, exchanged {exchanged:.0%} would be",
            where=where,
            fix="give the two coordinate columns the other way round (--option check_frame=false lets them be)",
        )
    check = FrameCheck(inside, on if told else float("nan"), tissue, exchanged)
    bad = inside < MIN_INSIDE or (told and on < MIN_ON_TISSUE)
    if not bad and not (told and (cover < CORNER[0] or on < BETTER[0])):
        return check
    best = _best_scale(points, mask, cell, dict(named or {}))
    if not bad and not _misplaced(on, cover, best):
        return check
    n = len(points)
    if inside < MIN_INSIDE:
        what = f"only {round(inside * n)} of {n} spots ({inside:.0%}) lie inside the image"
    elif on < BETTER[0]:
        what = f"only {round(on * n)} of {n} spots ({on:.0%}) lie on tissue"
    else:
        what = f"the spots cover only {cover:.0%} of the tissue, crowded into a corner"
    raise ScaleError(
        f"{what}: image and coordinates are in different frames", where=where, fix=_advice(points, mask, best)
    )


def _misplaced(on: float, cover: float, best: tuple[str, float, float, float]) -> bool:
    """Whether another scale fits so much better that this one cannot be right."""
    _, factor, best_cover, best_on = best
    corner = cover < CORNER[0] and best_cover > CORNER[1] and factor >= CORNER[2]
    gains = best_on >= on + BETTER[1] and best_cover >= BETTER[2] * cover
    return corner or (on < BETTER[0] and gains and abs(np.log(factor)) > np.log(BETTER[3]))


def _inside(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    return (points[:, 0] >= 0) & (points[:, 1] >= 0) & (points[:, 0] < width) & (points[:, 1] < height)


def _overlap(points: np.ndarray, mask: np.ndarray, cell: float) -> tuple[float, float]:
    """Share of spots on tissue; Jaccard index of the area that spots stand for and the tissue."""
    ok = _inside(points, mask)
    hit = int(mask[points[ok, 1].astype(int), points[ok, 0].astype(int)].sum())
    shared = hit * cell
    union = len(points) * cell + max(mask.sum() - shared, 0)
    return hit / len(points), float(shared / union)


def _best_scale(
    points: np.ndarray, mask: np.ndarray, cell: float, named: dict[str, float]
) -> tuple[str, float, float, float]:
    """Name, factor, Jaccard index and share on tissue of the isotropic scale that fits best."""
    if len(points) > 4000:
        step = len(points) / 4000
        cell, points = cell * step, points[(np.arange(4000) * step).astype(int)]

    def score(factor: float) -> tuple[float, float]:
        on, cover = _overlap(points * factor, mask, cell * factor**2)
        return cover, on

    grid = np.geomspace(1 / 64, 64, 385)
    scores = [score(f)[0] for f in grid]
    peak = float(grid[int(np.argmax(scores))])
    fine = peak * np.geomspace(0.97, 1.03, 61)
    free = float(fine[int(np.argmax([score(f)[0] for f in fine]))])
    best = ("", free, *score(free))
    powers = {f"1/{2**k}" if s < 0 else f"{2**k}": 2.0 ** (s * k) for k in range(1, 7) for s in (-1, 1)}
    tries = {**named, **{f"1/{k}": 1 / v for k, v in named.items() if v}, **powers}
    options = [(name, float(f), *score(f)) for name, f in tries.items() if f > 0]
    options = [o for o in options if o[2] >= 0.9 * best[2] and abs(np.log(o[1])) > 0.02]
    return max(options, key=lambda o: (o[0] in named or o[0][2:] in named, o[2])) if options else best


def _advice(points: np.ndarray, mask: np.ndarray, best: tuple[str, float, float, float]) -> str:
    name, factor, _, on = best
    swapped = _overlap(points[:, ::-1], mask, 1.0)[0]
    if swapped >= 0.8 and swapped >= on - 0.05:
        return f"x and y exchanged would put {swapped:.0%} of the spots on tissue: check the column order"
    if on >= 0.7 and abs(np.log(factor)) > 0.02:
        known = f" ({name})" if name else ""
        return (
            f"coordinates times {factor:.4g}{known} would put {on:.0%} on tissue: give the image that the coordinates "
            f"were made on, or that scale (--option scale={factor:.4g})"
        )
    return (
        "no single scale fits: check that image and coordinates are of the same slide (--option check_frame=false "
        "skips this)"
    )
