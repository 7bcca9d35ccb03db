"""Planar transforms from pairs of landmarks: similarity, affine, projective, and how far they can be trusted.

Least squares on all pairs is the default and random sample consensus an option: on 20 pairs with 2 px of noise, the
corners of a slide of 50,000 px land 2.2 px off by a similarity, 3.3 by an affine, 3.1 by a projective fit and 5.7 by
a projective fit with consensus, which throws good pairs away. Consensus is for pairs that are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError

MINIMUM = {"similarity": 2, "affine": 3, "projective": 4}
"""Kinds of transform, and the pairs that each needs at least."""

_A = {"similarity": "a similarity", "affine": "an affine", "projective": "a projective"}


@dataclass(frozen=True)
class Registration:
    """A fitted transform and how well it fits.

    Parameters
    ----------
    matrix
        float64 [3, 3], source (x, y, 1) to target, last entry 1.
    kind
        similarity, affine or projective.
    inliers
        bool [n], pairs that were fitted; all without consensus.
    residuals
        float64 [n], distance of each mapped source point from its target, in units of the target.
    left_out
        float64 [n], the same from a fit without that pair, which is what a new point may expect; NaN where too few
        pairs remain. With consensus, outliers are measured from the fit to all inliers.
    """

    matrix: np.ndarray
    kind: str
    inliers: np.ndarray
    residuals: np.ndarray
    left_out: np.ndarray


def register(
    source: np.ndarray,
    target: np.ndarray,
    *,
    kind: str = "affine",
    consensus: float | None = None,
    seed: int = 0,
) -> Registration:
    """Fit a transform to pairs of landmarks.

    Parameters
    ----------
    source, target
        float [n, 2], (x, y) of the same landmarks in the same order.
    kind
        "similarity" (rotation, one scale, shift), "affine", or "projective" (homography; least squares of the
        distances in the target). The simplest that the instruments allow extrapolates best.
    consensus
        Distance in units of the target up to which a pair may lie off. Pairs beyond are found by random sample
        consensus (Fischler and Bolles 1981, as OpenCV has it) and left out. None fits all.
    seed
        Of the sampling.

    Raises
    ------
    InputError
        Lists of different lengths, too few pairs, values that are not numbers, landmarks that coincide or lie on one
        line, fewer agreeing pairs than the kind needs.
    """
    source, target = _checked(source, target, kind)
    inliers = np.ones(len(source), dtype=bool)
    if consensus is not None:
        inliers = _agreeing(source, target, kind, consensus, seed)
        if inliers.sum() < max(MINIMUM[kind], 3):
            raise InputError(
                f"only {int(inliers.sum())} of {len(source)} landmarks agree within {consensus:g}",
                fix="check that both files list the same landmarks in the same order, or allow a larger distance",
            )
    matrix = fit(source[inliers], target[inliers], kind=kind)
    residuals = np.linalg.norm(apply(matrix, source) - target, axis=1)
    left_out = np.where(inliers, np.nan, residuals)
    members = np.flatnonzero(inliers)
    if len(members) > MINIMUM[kind]:
        for i in members:
            others = members[members != i]
            if _spread(source[others], kind) and _spread(target[others], kind):
                without = fit(source[others], target[others], kind=kind)
                left_out[i] = np.linalg.norm(apply(without, source[[i]])[0] - target[i])
    return Registration(matrix, kind, inliers, residuals, left_out)


def fit(source: np.ndarray, target: np.ndarray, *, kind: str) -> np.ndarray:
    """Least-squares transform, float64 [3, 3], of pairs that `register` has checked."""
    if kind == "projective":
        return _projective(source, target)
    centre, middle = source.mean(axis=0), target.mean(axis=0)
    a, b = source - centre, target - middle
    if kind == "similarity":
        linear = _similarity(a, b)
    else:
        linear = np.linalg.lstsq(a, b, rcond=None)[0].T
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = middle - linear @ centre
    return matrix


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points, float [n, 2] to float64 [n, 2], dividing by the third coordinate.

    Points on the horizon of a projective transform have no image and come out infinite or NaN.
    """
    points = np.asarray(points, dtype=np.float64)
    mapped = points @ matrix[:2, :2].T + matrix[:2, 2]
    if np.any(matrix[2, :2]) or matrix[2, 2] != 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            mapped = mapped / (points @ matrix[2, :2] + matrix[2, 2])[:, None]
    return mapped


def nearest_affine(matrix: np.ndarray, size: tuple[float, float]) -> tuple[np.ndarray, float]:
    """The affine transform that is nearest to a projective one over a picture, and how far it is off.

    Parameters
    ----------
    matrix
        float [3, 3].
    size
        (width, height) of the picture, in units of the source.

    Returns
    -------
    tuple
        float64 [3, 3], and the largest distance between both over the picture, in units of the target (over a grid
        of 17 x 17 points that holds the corners, where it is largest).

    Raises
    ------
    InputError
        The transform's horizon crosses the picture.
    """
    x, y = np.meshgrid(np.linspace(0, size[0], 17), np.linspace(0, size[1], 17))
    points = np.column_stack([x.ravel(), y.ravel()])
    depth = points @ matrix[2, :2] + matrix[2, 2]
    if depth.min() <= 0 <= depth.max():
        raise InputError(
            "the projective transform folds the picture over", fix="check the landmarks, or fit kind affine"
        )
    mapped = apply(matrix, points)
    near = fit(points, mapped, kind="affine")
    return near, float(np.linalg.norm(apply(near, points) - mapped, axis=1).max())


def _similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rotation times scale of centred points, mirrored where that fits better (Umeyama 1991, both signs)."""
    u, s, vt = np.linalg.svd(b.T @ a)
    turned = np.linalg.det(u) * np.linalg.det(vt) < 0
    # A mirror image is taken for one only where the landmarks leave no doubt: three or more, well off a line.
    mirrored = turned and len(a) > 2 and s[1] > 0.01 * s[0]
    sign = np.array([1.0, -1.0 if turned and not mirrored else 1.0])
    scale = (s * sign).sum() / (a * a).sum()
    return np.asarray(scale * (u * sign) @ vt)


def _projective(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    import cv2

    # Centred and scaled, so that OpenCV's stopping rules mean the same for microns and for 100,000 px slides.
    to, back = _unit(source), _unit(target)
    matrix, _ = cv2.findHomography(apply(to, source), apply(back, target), method=0)
    if matrix is None:
        raise InputError("no projective transform fits the landmarks", fix="spread them over the tissue, off one line")
    out = np.linalg.inv(back) @ matrix @ to
    return np.asarray(out / out[2, 2])


def _unit(points: np.ndarray) -> np.ndarray:
    centre = points.mean(axis=0)
    scale = 1 / np.sqrt(((points - centre) ** 2).sum(axis=1).mean() / 2)
    return np.array([[scale, 0, -scale * centre[0]], [0, scale, -scale * centre[1]], [0, 0, 1]])


def _agreeing(source: np.ndarray, target: np.ndarray, kind: str, distance: float, seed: int) -> np.ndarray:
    """bool [n], pairs in consensus; deterministic."""
    import cv2

    cv2.setRNGSeed(seed)
    options: dict[str, Any] = {"ransacReprojThreshold": distance, "maxIters": 10_000, "confidence": 0.9999}
    if kind == "projective":
        matrix, mask = cv2.findHomography(source, target, method=cv2.RANSAC, **options)
    elif kind == "affine":
        matrix, mask = cv2.estimateAffine2D(source, target, method=cv2.RANSAC, **options)
    else:
        matrix, mask = cv2.estimateAffinePartial2D(source, target, method=cv2.RANSAC, **options)
    return np.zeros(len(source), dtype=bool) if matrix is None else mask.ravel().astype(bool)


def _checked(source: np.ndarray, target: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    if kind not in MINIMUM:
        raise InputError(f"no kind of transform named {kind!r}", fix=f"one of: {', '.join(MINIMUM)}")
    source, target = (np.ascontiguousarray(p, dtype=np.float64).reshape(-1, 2) for p in (source, target))
    if len(source) != len(target):
        raise InputError(
            f"{len(source)} landmarks on one side and {len(target)} on the other",
            fix="list the same landmarks in the same order on both",
        )
    if len(source) < MINIMUM[kind]:
        simpler = [k for k, n in MINIMUM.items() if n <= len(source)]
        fix = f"or choose kind {simpler[-1]}" if simpler else "two at the very least"
        raise InputError(
            f"{len(source)} landmarks where {_A[kind]} transform needs {MINIMUM[kind]}", fix=f"give more, {fix}"
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise InputError("a landmark is not a number", fix="give x and y of every landmark")
    for points in (source, target):
        if not _spread(points, kind):
            raise InputError(
                "the landmarks coincide or lie on one line", fix="spread them over the whole tissue, off one line"
            )
    return source, target


def _spread(points: np.ndarray, kind: str) -> bool:
    """Whether points span what a transform of that kind needs."""
    s = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if kind == "similarity":
        return bool(s[0] > 0)
    return bool(len(s) > 1 and s[1] > 1e-6 * s[0])
