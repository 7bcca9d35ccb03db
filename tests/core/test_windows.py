"""Windows of a pyramid against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stainseq.core import windows


@pytest.mark.parametrize(
    ("factor", "level"), [(0.3, 0), (1.0, 0), (1.9, 0), (1.97, 1), (2.0, 1), (3.9, 1), (4.0, 2), (50.0, 2)]
)
def test_coarsest_level_that_is_fine_enough(factor: float, level: int) -> None:
    assert windows.choose_level([1.0, 2.0, 4.0], factor) == level


def plane(height: int, width: int) -> np.ndarray:
    """Grey that rises linearly: any correct interpolation reproduces it exactly."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.repeat((20 + 0.5 * x + 0.25 * y)[..., None], 3, axis=2).round(4)


@given(cx=st.floats(60, 120), cy=st.floats(60, 120), step=st.sampled_from([0.4, 0.5, 1.0, 1.3, 1.45, 2.0, 3.3]))
@settings(max_examples=40, deadline=None)
def test_resampling_keeps_a_plane_at_sub_pixel_accuracy(cx: float, cy: float, step: float) -> None:
    image = plane(180, 180)
    block_u8 = np.clip(image, 0, 255).astype(np.uint8)
    size = 16
    centre = np.array([cx, cy])
    y0, y1, x0, x1 = windows.bounds(centre, size, step)
    out = windows.resample(block_u8[y0:y1, x0:x1], (y0, x0), centre, size, step)
    grid = (np.arange(size) + 0.5 - size / 2) * step
    expected = 20 + 0.5 * (cx + grid[None, :]) + 0.25 * (cy + grid[:, None])
    # uint8 input is floored: on average half a grey value below the plane.
    assert np.abs(out[..., 0].astype(float) + 0.5 - expected).max() < 1.6
    assert abs((out[..., 0] + 0.5 - expected).mean()) < 0.6


def test_a_window_on_the_pixel_grid_is_a_plain_crop() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    centre = np.array([30.0, 28.0])
    y0, y1, x0, x1 = windows.bounds(centre, 20, 1.0)
    out = windows.resample(image[y0:y1, x0:x1], (y0, x0), centre, 20, 1.0)
    np.testing.assert_array_equal(out, image[18:38, 20:40])


def test_coarser_windows_average_instead_of_skipping_pixels() -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, ::2] = 200
    centre = np.array([32.0, 32.0])
    y0, y1, x0, x1 = windows.bounds(centre, 16, 2.0)
    out = windows.resample(image[y0:y1, x0:x1], (y0, x0), centre, 16, 2.0)
    assert np.abs(out.astype(int) - 100).max() <= 1


def test_tile_order_is_a_permutation_that_stays_in_tiles() -> None:
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 4000, (500, 2))
    order = windows.tile_order(xy, 1000)
    assert sorted(order) == list(range(500))
    tiles = np.floor(xy[order] / 1000).astype(int)
    changes = (np.diff(tiles, axis=0) != 0).any(axis=1).sum()
    assert changes == 15  # sixteen tiles, each entered once
    shuffled = rng.permutation(500)
    np.testing.assert_array_equal(xy[order], xy[shuffled][windows.tile_order(xy[shuffled], 1000)])
