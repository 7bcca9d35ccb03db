"""Kernels of windows, lattices, counting and labels, against formulas."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from stainseq.core import aggregate, grids
from stainseq.regions import labels


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 25), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_tiles_cover_once_and_own_once(height, width, size, halo):
    times = np.zeros((height, width), dtype=int)
    tiles = list(grids.tiles((height, width), size=size, halo=halo))
    for tile in tiles:
        y0, y1, x0, x1 = tile.base
        times[y0:y1, x0:x1] += 1
        a, b, c, d = tile.crop
        assert (a, b, c, d) == (max(y0 - halo, 0), min(y1 + halo, height), max(x0 - halo, 0), min(x1 + halo, width))
    assert (times == 1).all()
    shape = (tiles[-1].row + 1, tiles[-1].col + 1)
    y, x = (v.ravel() + 0.5 for v in np.mgrid[:height, :width])
    mine = grids.owner(np.column_stack([x, y]), size=size, shape=shape)
    for tile in tiles:
        y0, y1, x0, x1 = tile.base
        inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
        assert (mine[inside] == tile.row * shape[1] + tile.col).all()
    beyond = np.array([[-5.0, -5.0], [1e9, 1e9]])
    assert list(grids.owner(beyond, size=size, shape=shape)) == [0, shape[0] * shape[1] - 1]


def test_lattices():
    centres, places = grids.square_lattice((10, 20, 34, 36.1), pitch=8)
    assert len(centres) == 3 * 2
    assert np.array_equal(centres[0], [14, 24])
    assert np.array_equal(places[-1], [1, 2])
    assert np.array_equal(centres, np.column_stack([14 + 8 * places[:, 1], 24 + 8 * places[:, 0]]))
    centres, places = grids.hexagon_lattice((0, 0, 1000, 900), pitch=100)
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    inner = ((centres > 150) & (centres < 750)).all(1)
    assert (np.isclose(distance, 100).sum(1)[inner] == 6).all()
    assert distance[distance > 0].min() == pytest.approx(100)
    assert (places.sum(1) % 2 == 0).all()
    assert len(grids.square_lattice((0, 0, 3, 3), pitch=8)[0]) == 0


def test_projection_and_its_inverse():
    rng = np.random.default_rng(0)
    matrix = np.array([[2, 0.1, 5], [-0.2, 1.9, 3], [1e-4, 2e-4, 1]])
    xy = rng.uniform(0, 500, (100, 2))
    placed = np.column_stack([xy, np.ones(100)]) @ matrix.T
    assert np.allclose(grids.project(matrix, xy), placed[:, :2] / placed[:, 2:])
    assert np.allclose(grids.project(np.linalg.inv(matrix), grids.project(matrix, xy)), xy)
    assert grids.project(matrix, np.zeros((3, 4, 2))).shape == (3, 4, 2)


@pytest.mark.parametrize("largest", [300, 2**40], ids=["table", "sorted"])
def test_label_table_is_brute_force(largest):
    rng = np.random.default_rng(0)
    names = np.unique(rng.integers(1, largest, 40))
    raster = np.where(rng.random((130, 170)) < 0.6, rng.choice(names, (130, 170)), 0)
    table = aggregate.LabelTable()
    for tile in grids.tiles(raster.shape, size=50):
        y0, y1, x0, x1 = tile.base
        table.add(raster[y0:y1, x0:x1], y0, x0)
    labels, area, centres, boxes = table.result()
    assert np.array_equal(labels, np.unique(raster[raster > 0]))
    for label, n, centre, box in zip(labels, area, centres, boxes, strict=True):
        y, x = np.nonzero(raster == label)
        assert n == len(y)
        assert np.allclose(centre, [x.mean() + 0.5, y.mean() + 0.5])
        assert list(box) == [y.min(), x.min(), y.max() + 1, x.max() + 1]
    empty = aggregate.LabelTable()
    empty.add(np.zeros((5, 5), dtype=np.int32), 0, 0)
    assert [len(part) for part in empty.result()] == [0, 0, 0, 0]


@pytest.mark.parametrize("values", [[5, 0, 9], [2**40, 3, 2**41], [], [7]])
def test_lookup(values):
    lookup = aggregate.Lookup(np.array(values, dtype=np.int64))
    wanted = np.array([5, 0, 9, 2**40, 3, 2**41, 7, 1, -1, 10**15])
    place = {v: i for i, v in enumerate(values)}
    assert lookup(wanted).tolist() == [place.get(v, -1) for v in wanted.tolist()]


@pytest.mark.parametrize("weighted", [False, True])
def test_counter_is_a_sparse_sum(weighted, monkeypatch):
    rng = np.random.default_rng(0)
    want = np.zeros((30, 12))
    counter = aggregate.Counter(30, 12)
    counter._limit = 500  # merges on the way
    for _ in range(9):
        regions, features = rng.integers(-1, 30, 400), rng.integers(-1, 12, 400)
        weights = rng.uniform(0, 3, 400) if weighted else None
        keep = (regions >= 0) & (features >= 0)
        np.add.at(want, (regions[keep], features[keep]), weights[keep] if weighted else 1)
        counter.add(regions, features, weights)
    got = counter.matrix(float if weighted else np.int32)
    assert np.allclose(got.toarray(), want)
    assert got.has_canonical_format
    assert aggregate.Counter(3, 0).matrix().shape == (3, 0)
    assert aggregate.Counter(3, 4).matrix().nnz == 0


def test_mean_by_group():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 4)).astype(np.float32)
    rows, groups = rng.integers(0, 50, 200), rng.integers(0, 9, 200)
    got = aggregate.mean_by_group(values, rows, groups, n_groups=10)
    for g in range(9):
        assert np.allclose(got[g], values[rows[groups == g]].mean(0), atol=1e-6)
    assert np.isnan(got[9]).all()


def test_label_runs_rebuild_the_raster():
    raster = np.random.default_rng(0).choice([0, 0, 3, 9], (40, 31))
    labels, runs = aggregate.label_runs(raster)
    back = np.zeros_like(raster)
    for label, (y, x0, x1) in zip(labels, runs, strict=True):
        assert (back[y, x0:x1] == 0).all()
        back[y, x0:x1] = label
    assert np.array_equal(back, raster)


def test_shared_edges_belong_to_one_polygon():
    """Points exactly on the borders of a tessellation are counted once, so that sums are kept."""
    squares = [shapely.box(c, r, c + 1, r + 1) for r in range(6) for c in range(7)]
    points, ring = shapely.get_coordinates(shapely.get_exterior_ring(squares), return_index=True)
    rings = np.searchsorted(ring, np.arange(len(squares) + 1))
    outlines = aggregate.outlines_of_rings(points, rings, np.arange(len(squares) + 1))
    y, x = (v.ravel() / 2 for v in np.mgrid[1:12, 1:14])  # middles, edges and corners inside
    pairs, _ = aggregate.all_shapes(np.column_stack([x, y]), outlines)
    assert np.array_equal(np.sort(pairs), np.arange(len(x)))


def test_counting_transcripts_is_a_matrix_product():
    rng = np.random.default_rng(0)
    cells, genes = rng.integers(0, 50, 5000), rng.integers(0, 20, 5000)
    one = lambda at, n: sp.csr_matrix((np.ones(5000, int), (np.arange(5000), at)), shape=(5000, n))  # noqa: E731
    counter = aggregate.Counter(50, 20)
    counter.add(cells, genes)
    assert (counter.matrix() != (one(cells, 50).T @ one(genes, 20))).nnz == 0


@pytest.mark.parametrize("matrix", [np.diag([0.3, 0.2, 1.0]), [[0.3, 0.1, -2], [-0.1, 0.2, 3], [1e-3, 2e-3, 1]]])
def test_bins_are_the_floor_of_the_projection(matrix):
    rng = np.random.default_rng(0)
    xy = rng.uniform(-30, 90, (4000, 2))
    xy[:3] = [[np.nan, 1], [np.inf, 2], [0, 0]]
    with np.errstate(invalid="ignore"):
        place = np.floor(grids.project(np.asarray(matrix), xy))
        inside = ((place >= 0) & (place < (11, 8))).all(axis=1)
    want = np.full(len(xy), -1)
    want[inside] = place[inside, 1] * 11 + place[inside, 0]
    got = aggregate.bins(xy, np.asarray(matrix), (8, 11))
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, want)
    assert inside.mean() > 0.05


def test_many_points_in_labels_read_block_by_block(monkeypatch):
    """More points than make a block worth keeping, more blocks than are kept."""
    monkeypatch.setattr(labels, "_BLOCK_PX", 64)
    monkeypatch.setattr(labels, "_MANY", 20)
    rng = np.random.default_rng(0)
    raster = rng.choice([0, 3, 7, 9], (300, 210)).astype(np.uint32)
    region = labels.Labels(np.array([7, 3]), da.from_array(raster, chunks=50), np.diag([2.0, 2.0, 1.0]))
    xy = rng.uniform(-20, 620, (5000, 2))
    want = []
    for x, y in np.floor(xy / 2).astype(int).tolist():
        value = raster[y, x] if 0 <= x < 210 and 0 <= y < 300 else 0
        want.append({7: 0, 3: 1}.get(int(value), -1))
    assert region.assign(xy).tolist() == want
    assert region.block.cache_info().misses > 8  # type: ignore[attr-defined]
