"""One contract for circles, polygons, labels and a grid, each against shapely by brute force."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest
import shapely

from stainseq import regions
from stainseq.errors import InputError, MissingError

BOXES = [(20, 10, 45, 30), (0, 0, 200, 200), (-50, -50, -40, -40), (33.3, 21.1, 33.4, 21.2)]
KINDS = ["circles", "squares", "ragged", "raster", "bins"]


def holders(slide, kind, xy):
    """[m] sets of ids that hold each point, and whether the point is too near a border to say."""
    shapes = slide.geometry[kind]
    ids, outlines = list(shapes), np.array(list(shapes.values()), dtype=object)
    points = shapely.points(xy)
    inside = shapely.contains(outlines[None, :], points[:, None])
    near = (shapely.distance(shapely.boundary(outlines)[None, :], points[:, None]) < 1e-3).any(1)
    return [{ids[j] for j in np.flatnonzero(row)} for row in inside], near


@pytest.mark.parametrize("kind", KINDS)
class TestContract:
    def test_ids_and_centres(self, slide, kind):
        region = regions.get(slide.sdata, kind)
        assert region.kind == {"raster": "labels", "bins": "grid"}.get(kind, "shapes")
        assert set(region.ids) == set(slide.geometry[kind])
        assert len(region) == len(region.ids) == len(set(region.ids))
        assert all(type(i) is str for i in region.ids)
        assert region.centres_um.shape == (len(region), 2)
        assert region.centres_um.dtype == np.float64
        centroids = shapely.get_coordinates(shapely.centroid([slide.geometry[kind][i] for i in region.ids]))
        # The image of a bin's centre is not the centroid of its image under a projection, but near it.
        assert np.allclose(region.centres_um, centroids, atol=0.01 if kind == "bins" else 1e-6)

    def test_assign_is_brute_force(self, slide, kind):
        region = regions.get(slide.sdata, kind)
        xy = slide.points[["x", "y"]].to_numpy()
        got = regions.assign(region, xy)
        assert got.dtype == np.int64
        sets, near = holders(slide, kind, xy)
        rank = {i: k for k, i in enumerate(region.ids)}
        want = np.array([min((rank[i] for i in s), default=-1) for s in sets])
        assert np.array_equal(got[~near], want[~near])
        assert near.mean() < 0.05
        assert (want >= 0).sum() > 1000

    def test_members_are_all_pairs(self, slide, kind):
        region = regions.get(slide.sdata, kind)
        xy = slide.points[["x", "y"]].to_numpy()
        points, found = regions.members(region, xy)
        sets, near = holders(slide, kind, xy)
        got = {(p, region.ids[r]) for p, r in zip(points, found, strict=True) if not near[p]}
        assert got == {(p, i) for p, s in enumerate(sets) for i in s if not near[p]}

    def test_no_point_and_odd_points(self, slide, kind):
        region = regions.get(slide.sdata, kind)
        assert regions.assign(region, np.zeros((0, 2))).shape == (0,)
        odd = np.array([[np.nan, 3], [np.inf, 3], [-1e30, 1e30], [1e9, 0]])
        assert (regions.assign(region, odd) == -1).all()
        assert len(regions.members(region, odd)[0]) == 0
        with pytest.raises(InputError, match="x and y in microns"):
            regions.assign(region, np.zeros(4))

    @pytest.mark.parametrize("box", BOXES)
    def test_window(self, slide, kind, box):
        region = regions.get(slide.sdata, kind)
        area = shapely.box(*box)
        want = {i for i, g in slide.geometry[kind].items() if shapely.intersects(g, area)}
        for given in (kind, region):
            frame = regions.read_window(slide.sdata, given, box)
            assert set(frame.index) == want
            outlines = frame.geometry.buffer(frame["radius"], 64) if "radius" in frame else frame.geometry
            for i, g in zip(frame.index, outlines, strict=True):
                assert g.symmetric_difference(slide.geometry[kind][i]).area < 1e-3

    def test_within_owns_each_once(self, slide, kind):
        region = regions.get(slide.sdata, kind)
        found = [
            region.within((x, y, x + 17, y + 17)) for x in np.arange(-20, 160, 17.0) for y in np.arange(-20, 120, 17.0)
        ]
        assert np.array_equal(np.sort(np.concatenate(found)), np.arange(len(region)))

    def test_take(self, slide, kind):
        region = regions.get(slide.sdata, kind)
        few = region.take([5, 2, 9])
        assert list(few.ids) == list(region.ids[[5, 2, 9]])
        assert (regions.assign(few, region.centres_um) >= 0).sum() <= len(region)
        xy = few.centres_um
        assert set(regions.assign(few, xy)) <= {0, 1, 2, -1}
        assert list(region.take(np.arange(len(region)) == 3).ids) == [region.ids[3]]

    @pytest.mark.parametrize("overlap", ["first", "all"])
    def test_aggregate_is_a_naive_count(self, slide, kind, overlap):
        region = regions.get(slide.sdata, kind)
        table = regions.aggregate(slide.sdata, kind, "transcripts", overlap=overlap)
        assert list(table.var_names) == ["CD3E", "ERBB2", "KRT5", "NEG"]
        assert list(table.obs_names) == list(region.ids)
        want = np.zeros(table.shape, dtype=int)
        column = {g: i for i, g in enumerate(table.var_names)}
        xy = slide.points[["x", "y"]].to_numpy()
        genes = slide.points["feature_name"].to_numpy()
        if overlap == "first":
            for at, gene in zip(regions.assign(region, xy), genes, strict=True):
                if at >= 0:
                    want[at, column[gene]] += 1
        else:
            for p, r in zip(*regions.members(region, xy), strict=True):
                want[r, column[genes[p]]] += 1
        got = table.X
        assert got.format == "csr"
        assert got.dtype == np.int32
        # Points stored in px come back to microns with rounding: a point on a border may change sides.
        assert np.abs(got.toarray() - want).sum() <= 2
        assert table.obs["region"].dtype == "category"
        assert np.allclose(table.obsm["spatial"], region.centres_um)
        assert table.uns["spatialdata_attrs"]["region"] == kind

    def test_aggregate_options(self, slide, kind):
        good = regions.aggregate(slide.sdata, kind, "transcripts", keep=pc.field("qv") >= 20)
        xy = slide.points[["x", "y"]].to_numpy()
        at = regions.assign(regions.get(slide.sdata, kind), xy)
        assert abs(int(good.X.sum()) - int(((at >= 0) & (slide.points.qv >= 20)).sum())) <= 2
        facts = good.uns["aggregate"]
        assert facts["counted"] + facts["outside"] + facts["left_out"] == len(xy)
        assert facts["left_out"] == (slide.points.qv < 20).sum()
        summed = regions.aggregate(slide.sdata, kind, "transcripts", weight_column="qv")
        assert summed.X.sum() == pytest.approx(slide.points.qv[at >= 0].sum(), rel=1e-2)
        one = regions.aggregate(slide.sdata, kind, "transcripts", n_jobs=1)
        four = regions.aggregate(slide.sdata, kind, "transcripts", n_jobs=4)
        assert (one.X != four.X).nnz == 0

    def test_aggregate_refuses(self, slide, kind):
        with pytest.raises(MissingError, match="no points named 'dots'"):
            regions.aggregate(slide.sdata, kind, "dots")
        with pytest.raises(MissingError, match="no column 'gene'"):
            regions.aggregate(slide.sdata, kind, "transcripts", value_column="gene")
        with pytest.raises(InputError, match="overlap"):
            regions.aggregate(slide.sdata, kind, "transcripts", overlap="half")

    def test_pool_is_the_mean_under_each_region(self, slide, kind):
        region = regions.get(slide.sdata, kind)
        rng = np.random.default_rng(0)
        values = rng.normal(size=(14, 18, 3)).astype(np.float32)
        to_um = np.array([[7.0, 0, 3.0], [0, 7.0, -2.0], [0, 0, 1]])
        got = regions.pool(values, to_um, region)
        assert got.shape == (len(region), 3)
        assert got.dtype == np.float32
        pixels = [[shapely.box(3 + 7 * c, -2 + 7 * r, 10 + 7 * c, 5 + 7 * r) for c in range(18)] for r in range(14)]
        whole = shapely.box(3, -2, 3 + 18 * 7, -2 + 14 * 7)
        for i, name in enumerate(region.ids):
            shape = slide.geometry[kind][name]
            if shape.within(whole):
                part = shapely.area(shapely.intersection(np.array(pixels, dtype=object), shape))
                assert got[i] == pytest.approx((part[..., None] * values).sum((0, 1)) / part.sum(), abs=0.15)

    def test_pool_of_small_regions_and_outside(self, slide, kind):
        region = regions.get(slide.sdata, kind)
        values = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
        coarse = regions.pool(values, np.diag([100.0, 100.0, 1.0]), region)
        inside = (region.centres_um > 8).all(1) & (region.centres_um < 88).all(1)
        assert np.allclose(coarse[inside, 0][0], 0)
        assert not np.isnan(coarse[inside]).any()
        away = regions.pool(values, np.array([[1.0, 0, 5000], [0, 1, 5000], [0, 0, 1]]), region)
        assert np.isnan(away).all()


def test_names_and_missing(slide):
    assert regions.names(slide.sdata) == sorted(KINDS)
    with pytest.raises(MissingError, match=r"no region named 'cells'.*; one of: bins, circles"):
        regions.get(slide.sdata, "cells")
    with pytest.raises(MissingError, match="no region named 'transcripts'"):
        regions.read_window(slide.sdata, "transcripts", (0, 0, 1, 1))
