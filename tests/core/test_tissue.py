"""Tissue masks on drawn slides with a known answer."""

from __future__ import annotations

import numpy as np

from stainseq.core import tissue


def slide(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:400, :500]
    truth = ((y - 200) / 130.0) ** 2 + ((x - 240) / 160.0) ** 2 < 1
    rgb = np.full((400, 500, 3), (236, 234, 228), dtype=float)
    rgb[truth] = (190, 120, 170)
    rgb += rng.normal(0, 6, rgb.shape)
    return np.clip(rgb, 0, 255).astype(np.uint8), truth


def test_finds_an_ellipse() -> None:
    rgb, truth = slide()
    mask = tissue.tissue_mask(rgb, mpp=4.0)
    overlap = (mask & truth).sum() / (mask | truth).sum()
    assert overlap > 0.95


def test_empty_glass_and_full_tissue() -> None:
    rng = np.random.default_rng(0)
    glass = np.clip(rng.normal(235, 3, (200, 200, 3)), 0, 255).astype(np.uint8)
    assert not tissue.tissue_mask(glass, mpp=4.0).any()
    full = np.clip(np.array([170, 90, 150]) + rng.normal(0, 3, (200, 200, 3)), 0, 255).astype(np.uint8)
    assert tissue.tissue_mask(full, mpp=4.0).all()


def test_specks_go_and_holes_are_filled() -> None:
    rgb, _ = slide()
    rgb[10:14, 10:14] = (150, 60, 140)  # 16 um x 16 um of dust
    rgb[195:205, 235:245] = (236, 234, 228)  # a lumen of 40 um
    mask = tissue.tissue_mask(rgb, mpp=4.0)
    assert not mask[8:16, 8:16].any()
    assert mask[195:205, 235:245].all()


def test_outlines_have_the_area_of_the_mask() -> None:
    _, truth = slide()
    truth[180:220, 220:260] = False
    polygons = tissue.outlines(truth, mpp=4.0)
    assert len(polygons) == 1
    assert len(polygons[0].interiors) == 1
    assert abs(polygons[0].area / (truth.sum() * 16) - 1) < 0.03
    assert tissue.outlines(np.zeros((20, 20), bool), mpp=4.0) == []


def test_grid_lies_on_tissue() -> None:
    _, truth = slide()
    centres, lattice = tissue.grid_centres(truth, mpp=4.0, spacing_um=100.0)
    px = np.floor(centres / 4).astype(int)
    assert truth[px[:, 1], px[:, 0]].mean() > 0.95
    assert abs(len(centres) * 100**2 / (truth.sum() * 16) - 1) < 0.06
    assert len(np.unique(lattice, axis=0)) == len(lattice)
    np.testing.assert_allclose(centres, (lattice[:, ::-1] + 0.5) * 100)


def test_otsu_agrees_with_skimage() -> None:
    import pytest

    filters = pytest.importorskip("skimage.filters")
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.1, 0.03, 4000), rng.normal(0.6, 0.1, 2000)])
    assert abs(tissue.otsu(values) - filters.threshold_otsu(values)) < 0.01
