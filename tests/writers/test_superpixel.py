"""Superpixel folders, out and in again: the same counts on the same grid, to the last bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import stainseq as ss
from stainseq import image, regions
from stainseq.core import superpixels as original
from stainseq.errors import InputError, MissingError, ScaleError
from stainseq.writers._place import centres_px, grid_px


def bins(sdata) -> dict[str, tuple[int, int]]:
    region = regions.get(sdata, "superpixels")
    return dict(zip(region.ids, zip(region.geometry.rows, region.geometry.cols, strict=True), strict=True))


@settings(max_examples=12, deadline=None)
@given(
    mpp=st.floats(0.21, 1.3),
    height=st.integers(90, 150),
    width=st.integers(90, 160),
    pitch=st.sampled_from([8.0, 16.0, 55.5]),
    counts=st.sampled_from(["parquet", "tsv"]),
    places=st.sampled_from(["tsv", "parquet"]),
    unit=st.sampled_from(["diameter_um", "radius_px"]),
    seed=st.integers(0, 1000),
)
def test_round_trip(make: ModuleType, mpp, height, width, pitch, counts, places, unit, seed) -> None:
    sdata = make.slide(height=height, width=width, mpp=mpp, pitch_um=min(pitch, 40 * mpp), seed=seed, cells=False)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "P2-x" / "P2-", Path(folder) / "again" / "P2-"
        options = {"counts": counts, "places": places, "radius_unit": unit}
        ss.io.export(sdata, first, to="superpixel", **options)
        back = ss.io.read(first, radius_unit=unit)
        a, b = sdata["counts_superpixels"], back["counts_superpixels"]
        assert list(a.obs_names) == list(b.obs_names)
        assert list(a.var_names) == list(b.var_names)
        assert b.X.dtype == np.int32
        assert (a.X != b.X).nnz == 0
        assert bins(sdata) == bins(back)
        one, two = (regions.get(s, "superpixels").geometry for s in (sdata, back))
        assert one.shape == two.shape
        assert np.array_equal(one.transform, two.transform)
        assert np.array_equal(np.asarray(sdata["he"]), np.asarray(back["he"]))
        assert any("was taken for the" in n for n in back.attrs["stainseq"]["notes"])
        ss.io.export(back, second, to="superpixel", **options)
        for file in first.parent.iterdir():
            if file.name != "export.json":
                assert file.read_bytes() == (second.parent / file.name).read_bytes(), file.name


def test_what_the_files_hold(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide()
    ss.io.export(sdata, tmp_path / "P2", to="superpixel", radius_unit="radius_px", counts="tsv")
    out = tmp_path / "P2"
    assert {p.name for p in out.iterdir()} == {
        "cnts.tsv",
        "locs-raw.tsv",
        "he-raw.tif",
        "radius-raw.txt",
        "pixel-size-raw.txt",
        "pixel-size.txt",
        "export.json",
    }
    assert float((out / "pixel-size-raw.txt").read_text()) == 0.4
    assert float((out / "pixel-size.txt").read_text()) == 0.5
    assert float((out / "radius-raw.txt").read_text()) == 10.0  # half of 8 um at 0.4 um/px
    places = pd.read_csv(out / "locs-raw.tsv", sep="\t", index_col=0)
    at = np.array([[int(v) for v in i.split("_")] for i in places.index])
    np.testing.assert_array_equal(places[["y", "x"]].to_numpy(), (at + 0.5) * 20)
    counts = pd.read_csv(out / "cnts.tsv", sep="\t", index_col=0)
    np.testing.assert_array_equal(counts.to_numpy(), sdata["counts_superpixels"].X.toarray())
    want = np.moveaxis(np.asarray(sdata["he"]), 0, -1)
    np.testing.assert_array_equal(tifffile.imread(out / "he-raw.tif"), want)
    np.testing.assert_array_equal(cv2.imread(str(out / "he-raw.tif"))[..., ::-1], want)
    ss.io.export(sdata, tmp_path / "J", to="superpixel", image="jpg", part="test")
    assert {p.name for p in (tmp_path / "J").iterdir()} == {
        "he-raw.jpg",
        "radius-raw.txt",
        "pixel-size-raw.txt",
        "pixel-size.txt",
        "export.json",
    }
    assert not ss.io.read(tmp_path / "J").tables


def test_regions_off_a_grid_are_circles_of_their_size(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide()
    ss.io.export(sdata, tmp_path / "c", to="superpixel", region="cells")
    back = ss.io.read(tmp_path / "c")
    assert back["spots"]["radius"].iloc[0] == pytest.approx(3.5, rel=0.15)
    np.testing.assert_allclose(back["counts_spots"].obsm["spatial"], sdata["counts_cells"].obsm["spatial"], atol=1e-9)
    assert (back["counts_spots"].X != sdata["counts_cells"].X).nnz == 0


def test_rows_in_pieces_are_the_same_file(make: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dask.array as da

    from stainseq.writers import _table

    sdata = make.slide(cells=False)
    ss.io.export(sdata, tmp_path / "a", to="superpixel", counts="tsv")
    monkeypatch.setattr(_table, "ROW_BYTES", 8 * 5 * 7)  # seven rows at a time
    table = sdata.tables["counts_superpixels"]
    ss.io.export(sdata, tmp_path / "b", to="superpixel", counts="tsv")
    table.X = da.from_array(table.X.toarray(), chunks=(11, 2))
    ss.io.export(sdata, tmp_path / "c", to="superpixel", counts="tsv")
    ss.io.export(sdata, tmp_path / "d", to="superpixel", counts="parquet")
    want = (tmp_path / "a" / "cnts.tsv").read_bytes()
    assert (tmp_path / "b" / "cnts.tsv").read_bytes() == (tmp_path / "c" / "cnts.tsv").read_bytes() == want
    frame = pd.read_csv(tmp_path / "a" / "cnts.tsv", sep="\t", index_col=0)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "d" / "cnts.parquet"), frame, check_dtype=False)


@pytest.mark.parametrize("bad", [np.nan, -1.0, 0.5, np.inf])
def test_values_that_are_no_counts(make: ModuleType, tmp_path: Path, bad: float) -> None:
    sdata = make.slide(cells=False)
    values = sdata["counts_superpixels"].X.toarray().astype(np.float32)
    values[3, 2] = bad
    sdata.tables["counts_superpixels"].X = values
    name = sdata["counts_superpixels"].obs_names[3]
    with pytest.raises(InputError, match=f"of MS4A1 in '{name}' is no count"):
        ss.io.export(sdata, tmp_path / "a", to="superpixel")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_what_cannot_be_exported(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide(cells=False)
    with pytest.raises(ScaleError, match="pixel_size=0"):
        ss.io.export(sdata, tmp_path / "a", to="superpixel", pixel_size=0)
    with pytest.raises(InputError, match="one of: tif, jpg"):
        ss.io.export(sdata, tmp_path / "a", to="superpixel", image="png")
    with pytest.raises(MissingError, match="no image 'ihc'"):
        ss.io.export(sdata, tmp_path / "a", to="superpixel", image_key="ihc")
    sdata.tables["counts_superpixels"].obs_names = ["twice"] * sdata["counts_superpixels"].n_obs
    with pytest.raises(InputError, match="ids that occur twice: twice"):
        ss.io.export(sdata, tmp_path / "a", to="superpixel")
    far = make.slide(cells=False)
    far.images["he"] = make.picture(30, 30, 0.4)
    with pytest.raises(InputError, match="of the regions lie in the picture"):
        ss.io.export(far, tmp_path / "a", to="superpixel")
    none = make.slide(cells=False)
    for name in list(none.tables):
        del none.tables[name]
    with pytest.raises(InputError, match="training folder without counts"):
        ss.io.export(none, tmp_path / "a", to="superpixel", part="train")
    assert not list(tmp_path.iterdir())


def test_a_turned_picture_keeps_its_own_superpixels(make: ModuleType) -> None:
    """As Xenium's H&E: turned by -89.5 degrees; in pixels the grid is exact, in um it is not upright."""
    from spatialdata.transformations import Affine, set_transformation

    sdata = make.slide(cells=False)
    angle = np.deg2rad(-89.5)
    turn = 0.4 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    to_um = np.vstack([np.column_stack([turn, [3.0, 90.0]]), [0, 0, 1]])
    set_transformation(sdata["he"], Affine(to_um, input_axes=("x", "y"), output_axes=("x", "y")), "um")
    ss.pp.superpixels(sdata, tissue_key="none", key_added="own")
    opened = image.open_image(sdata)
    region = regions.get(sdata, "own")
    assert grid_px(opened, region, mpp=0.5) == (original.SIDE_PX * 0.5 / opened.mpp, 0.0, 0.0)
    xy = centres_px(opened, region, mpp=0.5)
    np.testing.assert_allclose(xy, opened.to_px(region.centres_um), atol=1e-6)
    assert grid_px(opened, regions.get(sdata, "superpixels"), mpp=0.5) is None  # upright in um, not in the picture


def test_arithmetic_of_the_original() -> None:
    """Rounding, floors, sizes and order against the plain words of their description."""
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.uniform(0, 5e4, (500, 2)), np.arange(40).reshape(-1, 2) + 0.5])
    for raw, target in ((0.2737850787132101, 0.5), (0.5, 0.5), (1.0, 0.5), (0.25, 0.5)):
        want = [[round(float(v) * (raw / target)) for v in row] for row in xy]  # Python rounds halves to even
        got = original.rescaled(xy, raw_mpp=raw, mpp=target)
        assert got.tolist() == want
        assert original.of_rescaled(got).tolist() == [[v // 16 for v in row] for row in want]
    assert original.bin_size(8 / 29.22) == 29.22
    assert original.bin_size(0.2, 0.3) == round(8 / (0.2 * 0.3) ** 0.5, 2)
    assert original.map_shape(2304, 2560, raw_mpp=0.5) == (144, 160)
    assert original.map_shape(1000, 1026, raw_mpp=0.25) == (32, 48)  # 500 x 513, padded to 512 x 768
    names = ["A", "BLANK_1", "B", "NegControlProbe_2", "C", "antisense_D", "Intergenic_Region_9", "E"]
    totals = np.array([50, 900, 20, 900, 21, 50, 700, 51])
    assert [names[i] for i in original.gene_order(names, totals)] == [
        "Intergenic_Region_9",
        "E",
        "A",
        "antisense_D",
        "C",
    ]


def test_training_mask_folds_and_mean_of_the_original() -> None:
    """Against plain loops; the published numbers of blocks collide on a wide map, ours never."""
    rng = np.random.default_rng(1)
    rows, columns = 30, 70
    row, column = (v.ravel() for v in np.indices((rows, columns)))
    umi, clusters = rng.poisson(2, rows * columns), rng.integers(-1, 4, rows * columns)
    clusters[umi > 0] = np.where(clusters[umi > 0] == 3, 2, clusters[umi > 0])  # cluster 3 has no counts
    want = []
    for u, k in zip(umi, clusters, strict=True):
        seen = [a for a, b in zip(umi, clusters, strict=True) if b == k and a > 0]
        want.append(k >= 0 and len(seen) > 0 and u > np.percentile(seen, 30))
    kept = original.good(umi, clusters)
    assert kept.tolist() == want

    mine = original.folds(row, column, shape=(rows, columns))
    theirs = original.folds(row, column, shape=(rows, columns), collide=True)
    for fold, per_line in ((mine, 9), (theirs, rows // 8)):
        block = (row // 8) * per_line + column // 8
        sizes = {b: int((block == b).sum()) for b in np.unique(block)}
        assert all(len(set(fold[block == b])) == 1 for b in sizes)  # a block is never cut
        assert np.bincount(fold).max() - np.bincount(fold).min() <= max(sizes.values())
    places = {(r // 8, c // 8): f for r, c, f in zip(row, column, theirs, strict=True)}
    assert places[0, 3] == places[1, 0]  # 0 * 3 + 3 == 1 * 3 + 0
    assert len(set(mine)) == len(set(theirs)) == 10

    maps = rng.normal(0, 3, (10, 5, 6)).astype(np.float16)
    maps[rng.random(maps.shape) < 0.3] = np.nan
    maps[:, 0, 0] = np.nan
    got = original.combined(maps)
    assert got.dtype == np.float16
    total, there = np.zeros((5, 6), np.float16), np.zeros((5, 6))
    for one in maps:  # in half precision, model by model
        total = np.where(np.isnan(one), total, total + one).astype(np.float16)
        there += ~np.isnan(one)
    plain = np.divide(total.astype(float), there, out=np.full((5, 6), np.nan), where=there > 0).astype(np.float16)
    assert np.array_equal(got, plain, equal_nan=True)
