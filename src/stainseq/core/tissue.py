"""Where the tissue is: a mask of an H&E thumbnail and its outlines."""

from __future__ import annotations

from typing import Any

import numpy as np

MIN_CONTRAST = 0.04
"""Least distance of Otsu's threshold from the background, in optical density: below it a slide counts as empty."""


def optical_density(rgb: np.ndarray) -> np.ndarray:
    """Mean optical density and its spread over channels, against the slide's own background.

    The background's colour is the 99th percentile of each channel (at least 200 of 255), so that a yellowish lamp
    does not read as eosin.

    Parameters
    ----------
    rgb
        uint8 [h, w, 3].

    Returns
    -------
    numpy.ndarray
        float32 [h, w]: mean over channels plus the range over channels. Stained tissue is both darker and more
        coloured than glass; dust is only dark, so the sum favours tissue.
    """
    white = np.maximum(np.percentile(rgb.reshape(-1, 3), 99, axis=0), 200).astype(np.float32)
    density = -np.log10(np.clip((rgb.astype(np.float32) + 1) / (white + 1), 1 / 256, 1))
    return density.mean(axis=2) + density.max(axis=2) - density.min(axis=2)


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """Threshold that maximises the variance between two classes (Otsu, IEEE Trans. SMC 1979).

    Parameters
    ----------
    values
        float, any shape.
    bins
        Bins of the histogram between the smallest and the largest value.
    """
    if values.size == 0 or np.ptp(values) <= 1e-6 * max(1.0, float(np.abs(values).max())):
        return float(values.flat[0]) if values.size else 0.0  # one colour: there is no range to cut into bins
    histogram, edges = np.histogram(values, bins=bins)
    if histogram[0] == values.size or edges[-1] == edges[0]:
        return float(edges[0])
    centres = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(histogram)[:-1].astype(float)
    total, mean = histogram.sum(), np.cumsum(histogram * centres)
    low, high = mean[:-1] / np.maximum(weight, 1), (mean[-1] - mean[:-1]) / np.maximum(total - weight, 1)
    return float(edges[1:-1][np.argmax(weight * (total - weight) * (low - high) ** 2)])


def tissue_mask(
    rgb: np.ndarray,
    *,
    mpp: float,
    min_area_um2: float = 10_000.0,
    max_hole_um2: float = 40_000.0,
    close_um: float = 20.0,
) -> np.ndarray:
    """Tissue of an H&E thumbnail.

    Otsu's threshold on the optical density of a slightly blurred image, gaps closed, specks dropped and holes filled.

    Parameters
    ----------
    rgb
        uint8 [h, w, 3] at about 2 to 10 um/px.
    mpp
        Microns per pixel.
    min_area_um2
        Smaller pieces are dropped; the default is one ST spot.
    max_hole_um2
        Smaller holes (lumina, fat) are filled; the default is one cell of the ST lattice.
    close_um
        Gaps narrower than this are closed; default two cell diameters.

    Returns
    -------
    numpy.ndarray
        bool [h, w]. All False on an empty slide.
    """
    import cv2

    density = cv2.GaussianBlur(optical_density(rgb), (0, 0), max(0.8, 6.0 / mpp))
    background = float(np.percentile(density, 2))
    threshold = otsu(density)
    if threshold - background < MIN_CONTRAST:
        # One class only: either all glass or all tissue (a crop); the level itself decides.
        return np.full(density.shape, bool(np.median(density) > 0.12))
    mask = (density > threshold * 0.6 + background * 0.4).astype(np.uint8)
    radius = max(1, round(close_um / 2 / mpp))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel)
    kept = _drop_small(closed.astype(np.uint8), min_area_um2 / mpp**2)
    return _drop_small(1 - kept, max_hole_um2 / mpp**2) == 0


def _drop_small(mask: np.ndarray, min_px: float) -> np.ndarray:
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    keep[0] = False
    return keep[labels].astype(np.uint8)


def outlines(mask: np.ndarray, *, mpp: float, simplify_um: float = 2.0, min_area_um2: float = 0.0) -> list[Any]:
    """Polygons of a mask, with holes.

    Parameters
    ----------
    mask
        bool [h, w].
    mpp
        Microns per pixel.
    simplify_um
        Tolerance of the simplified outline.
    min_area_um2
        Polygons not larger than this are left out.

    Returns
    -------
    list of shapely.Polygon
        In microns, largest first.
    """
    import cv2
    import shapely

    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if hierarchy is None:
        return []
    rings = [(c[:, 0, :].astype(float) + 0.5) * mpp for c in contours]
    polygons: list[Any] = []
    for i, (_, _, child, parent) in enumerate(hierarchy[0]):
        if parent >= 0 or len(rings[i]) < 3:
            continue
        holes = []
        while child >= 0:
            if len(rings[child]) >= 3:
                holes.append(rings[child])
            child = hierarchy[0][child][0]
        # Outlines of pixels touch themselves at corners: make_valid may split them and leave lines behind.
        parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(shapely.Polygon(rings[i], holes))))
        parts = shapely.get_parts(shapely.make_valid(shapely.simplify(parts, simplify_um)))
        polygons.extend(p for p in parts if p.geom_type == "Polygon" and p.area > min_area_um2)
    return sorted(polygons, key=lambda p: -p.area)


def grid_centres(
    mask: np.ndarray, *, mpp: float, spacing_um: float, min_cover: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Centres of a square lattice whose cells lie on tissue.

    Parameters
    ----------
    mask
        bool [h, w].
    mpp
        Microns per mask pixel.
    spacing_um
        Lattice constant.
    min_cover
        Least share of a lattice cell that must be tissue.

    Returns
    -------
    tuple
        float [n, 2] centres (x, y) in um, int [n, 2] lattice (row, column); row-major.
    """
    rows, cols = (max(1, int(s * mpp / spacing_um)) for s in mask.shape)
    integral = np.pad(np.cumsum(np.cumsum(mask, axis=0, dtype=np.int64), axis=1), ((1, 0), (1, 0)))
    y = np.clip(np.round(np.arange(rows + 1) * spacing_um / mpp).astype(int), 0, mask.shape[0])
    x = np.clip(np.round(np.arange(cols + 1) * spacing_um / mpp).astype(int), 0, mask.shape[1])
    corner = integral[np.ix_(y, x)]
    inside = corner[1:, 1:] - corner[:-1, 1:] - corner[1:, :-1] + corner[:-1, :-1]
    area = np.maximum(np.outer(np.diff(y), np.diff(x)), 1)
    row, col = np.nonzero(inside >= min_cover * area)
    return np.column_stack([(col + 0.5) * spacing_um, (row + 0.5) * spacing_um]), np.column_stack([row, col])
