"""The scanline rasteriser against exact rational arithmetic and skimage's rule."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stainseq.core import aggregate, raster


def polygons(shapes):
    """Outlines of shapes, each a list of open rings."""
    rings, starts, per = [], [0], [0]
    for shape in shapes:
        for ring in shape:
            closed = np.vstack([ring, ring[:1]]).astype(float)
            rings.append(closed)
            starts.append(starts[-1] + len(closed))
        per.append(per[-1] + len(shape))
    return aggregate.outlines_of_rings(np.vstack(rings), np.array(starts), np.array(per))


def inside(rings, x, y):
    """Even-odd rule or on the boundary, without rounding."""
    odd = False
    for ring in rings:
        for (xa, ya), (xb, yb) in zip(ring, [*ring[1:], ring[0]], strict=True):
            xa, ya, xb, yb = map(Fraction, (xa, ya, xb, yb))
            on_line = (xb - xa) * (y - ya) == (x - xa) * (yb - ya)
            if on_line and min(xa, xb) <= x <= max(xa, xb) and min(ya, yb) <= y <= max(ya, yb):
                return True
            if (ya > y) != (yb > y) and x < xa + (y - ya) * (xb - xa) / (yb - ya):
                odd = not odd
    return odd


halves = st.integers(-4, 26).map(lambda v: v / 2)
ring = st.lists(st.tuples(halves, halves), min_size=3, max_size=9)


@settings(max_examples=60, deadline=None)
@given(st.lists(ring, min_size=1, max_size=3))
def test_even_odd_rule_exactly(rings):
    """Self-crossing, touching, holed and multi-part polygons with corners and edges on pixel centres."""
    got = raster.raster(polygons([rings]), np.array([9], dtype=np.uint32), shape=(12, 11))
    want = np.array([[inside(rings, x, y) for x in range(11)] for y in range(12)])
    assert np.array_equal(got, np.where(want, 9, 0))


def test_skimage_on_nuclei():
    """Not one pixel differs from the rule that data sets of nuclei are made with."""
    draw = pytest.importorskip("skimage.draw")
    rng = np.random.default_rng(3)
    for _ in range(100):
        n = rng.integers(8, 30)
        angle, radius = np.sort(rng.uniform(0, 2 * np.pi, n)), rng.uniform(6, 14, n)
        points = rng.uniform(-4, 44, 2) + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        want = np.zeros((40, 40), dtype=np.uint32)
        want[draw.polygon(points[:, 1], points[:, 0], (40, 40))] = 5
        assert np.array_equal(raster.raster(polygons([[points]]), np.array([5], dtype=np.uint32), shape=(40, 40)), want)


def test_patches_show_what_the_slide_shows():
    """Each patch is a window of the whole image, whatever its corner; later shapes lie above earlier ones."""
    rng = np.random.default_rng(0)
    shapes = [[rng.uniform(-5, 105, 2) + rng.uniform(-8, 8, (6, 2))] for _ in range(200)]
    outlines = polygons(shapes)
    labels = np.arange(1, 201, dtype=np.uint32) + 4_000_000_000
    whole = raster.raster(outlines, labels, shape=(100, 100))
    corners = np.array([[0, 0], [30, 0], [17, 40], [68, 68], [200, 200]], dtype=float)
    starts, members = raster.touching(outlines, corners, (32, 32))
    held = np.full((7, 32, 32), 3, dtype=np.uint32)
    for out in (None, held):
        patches = raster.rasters(
            outlines, labels, corners=corners, starts=starts, members=members, shape=(32, 32), out=out
        )
        for (x, y), patch in zip(corners[:4].astype(int), patches, strict=False):
            assert np.array_equal(patch, whole[y : y + 32, x : x + 32])
        assert len(patches) == 5
        assert not patches[4].any()
    assert (held[5:] == 3).all()
    assert starts[5] == starts[4]
    assert all(np.all(np.diff(members[a:b]) > 0) for a, b in itertools.pairwise(starts))


def test_no_shapes():
    none = aggregate.outlines_of_rings(np.zeros((0, 2)), np.zeros(1, dtype=int), np.zeros(1, dtype=int))
    assert not raster.raster(none, np.zeros(0, dtype=np.uint32), shape=(4, 4)).any()
