"""Visium HD: a turned, mirrored, projective grid; sums of 2, 8 and 16 um agree; the picture lies on the bins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
import spatialdata
import tifffile

import stainseq as ss
from stainseq import regions, store
from stainseq.core import barcodes
from stainseq.core.grids import project
from stainseq.errors import FormatError, InputError, MissingError, ScaleError
from stainseq.readers import _hd_matrix, visium_hd


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ss.datasets.Planted]:
    folder = tmp_path_factory.mktemp("hd") / "run"
    return folder, ss.datasets.visium_hd(folder, version="4", n_genes=10)


@pytest.fixture(scope="module")
def slide(output, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "hd.zarr"
    ss.io.convert(output[0], out)
    return out


def test_what_is_recognised(output) -> None:
    folder, _ = output
    for path in (folder, folder / "binned_outputs"):
        assert visium_hd.sniff(path) == "Visium HD (2, 8, 16 um bins)"
    assert visium_hd.sniff(folder / "binned_outputs" / "square_008um") == "Visium HD (8 um bins)"


def test_bins_are_a_grid_with_the_sources_ids(output, slide: Path) -> None:
    _, truth = output
    sdata = ss.io.open(slide)
    assert {"bins_002um", "bins_008um", "bins_016um"} <= set(regions.names(sdata))
    assert not any(name.startswith("bins") for name in sdata.shapes)
    table = sdata["counts_bins_008um"]
    assert table.n_obs == int(truth.tissue.sum())
    assert table.obs_names[0].startswith("s_008um_")
    region = regions.get(sdata, "bins_008um")
    assert set(region.ids) == set(table.obs_names)
    assert spatialdata.read_zarr(slide)["counts_bins_008um"].shape == table.shape
    assert store.problems(slide) == []


def test_the_grid_fits_the_positions(output, slide: Path) -> None:
    folder, _ = output
    sdata = ss.io.open(slide)
    for side in (2, 8, 16):
        positions = pd.read_parquet(folder / f"binned_outputs/square_{side:03d}um/spatial/tissue_positions.parquet")
        matrix = np.array(store.stamp_of(sdata, f"bins_{side:03d}um")["grid"]["transform"])
        centres = positions[["array_col", "array_row"]].to_numpy() + 0.5
        expected = positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy() * 0.2738
        assert np.abs(project(matrix, centres) - expected).max() < 1e-3
        assert np.linalg.det(matrix[:2, :2]) < 0  # mirrored, as real ones are
        assert store.stamp_of(sdata, f"bins_{side:03d}um")["grid"]["pitch_um"] == pytest.approx(side, rel=1e-3)


def test_sums_of_all_bin_sizes_agree(slide: Path) -> None:
    sdata = ss.io.open(slide)
    fine = sdata["counts_bins_002um"]
    for side in (8, 16):
        coarse = sdata[f"counts_bins_{side:03d}um"]
        ratio = side // 2
        key = fine.obs["array_row"] // ratio * 100_000 + fine.obs["array_col"] // ratio
        summed = pd.DataFrame(fine.X.toarray()).groupby(key.to_numpy()).sum()
        own = coarse.obs["array_row"].to_numpy() * 100_000 + coarse.obs["array_col"].to_numpy()
        both = np.isin(own, summed.index)
        assert both.mean() > 0.95
        # Every 2 um bin of these coarse bins is under tissue, so nothing is left out of the sums.
        full = pd.Series(1, index=key.to_numpy()).groupby(level=0).sum().reindex(own[both]).to_numpy() == ratio**2
        np.testing.assert_array_equal(
            summed.loc[own[both][full]].to_numpy(), coarse.X.toarray()[both][full].astype(np.int64)
        )
        # The same by place: centres of 2 um bins assigned to coarse bins by geometry alone.
        region = regions.get(sdata, f"bins_{side:03d}um")
        at = regions.assign(region, fine.obsm["spatial"])
        inside = at >= 0
        ids = np.asarray(region.ids)[at[inside]]
        expected = [
            f"s_{side:03d}um_{r:05d}_{c:05d}-1"
            for r, c in zip(fine.obs["array_row"][inside] // ratio, fine.obs["array_col"][inside] // ratio, strict=True)
        ]
        assert list(ids) == expected


def test_the_picture_lies_on_the_bins(output, slide: Path) -> None:
    """Genes of the law correlate with how dark the picture is under the bin, and not with the mirrored picture."""
    sdata = ss.io.open(slide)
    table = sdata["counts_bins_008um"]
    picture = np.asarray(next(iter(sdata["he"]["scale0"].values())).data).mean(axis=0)
    x, y = np.clip((table.obsm["spatial"] / 0.2738).astype(int), 0, picture.shape[0] - 1).T
    _, truth = output
    genes = [i for i, k in enumerate(truth.kinds) if k == "morphology"]
    values = np.log1p(table.X.toarray()[:, genes])

    def best(dark: np.ndarray) -> float:
        return max(abs(np.corrcoef(values[:, g], dark)[0, 1]) for g in range(len(genes)))

    assert best(picture[y, x]) > 2 * best(picture[y, picture.shape[1] - 1 - x])


def test_segmented_cells(output, slide: Path) -> None:
    _, truth = output
    sdata = ss.io.open(slide)
    assert len(sdata["cells"]) == len(truth.nuclei_um) == sdata["counts_cells"].n_obs
    assert list(sdata["cells"].index[:2]) == ["1", "2"]
    bins, cells = regions.get(sdata, "bins_002um"), sdata["counts_cells"]
    # Counts of a cell come from bins about its centre.
    near = np.linalg.norm(bins.centres_um - cells.obsm["spatial"][5], axis=1) < 8.2
    fine = sdata["counts_bins_002um"]
    order = pd.Index(fine.obs_names).get_indexer(np.asarray(bins.ids)[near])
    assert fine.X[order].sum() >= cells.X[5].sum() > 0


def test_window_reads_make_polygons_of_their_part_only(slide: Path) -> None:
    sdata = ss.io.open(slide)
    frame = regions.read_window(sdata, "bins_002um", (200, 200, 210, 210))
    assert 25 <= len(frame) <= 64
    assert frame.geometry.area.mean() == pytest.approx(4.0, rel=1e-2)


def test_options(output) -> None:
    folder, _ = output
    sdata = ss.io.read(folder, bins_um=[16], image="none", segmented=False)
    assert set(sdata.tables) == {"counts_bins_016um"}
    assert not sdata.images
    for text in ("16", 16, "16,16"):
        assert set(ss.io.read(folder, bins_um=text, image="none", segmented=False).tables) == set(sdata.tables)
    with pytest.raises(InputError, match="bins_um='8 and 16'"):
        ss.io.read(folder, bins_um="8 and 16")
    with pytest.raises(InputError, match="bins of 3 um"):
        ss.io.read(folder, bins_um=[3])
    raw = ss.io.read(folder, bins_um=[16], matrix="raw", image="none", segmented=False)
    assert raw["counts_bins_016um"].n_obs == 25 * 25


def test_bins_of_2_um_say_which_cell_they_belong_to(output, slide: Path) -> None:
    """barcode_mappings.parquet: cells and nuclei are sums of their bins, and the vendor's matrix of cells agrees."""
    folder, _ = output
    sdata = ss.io.open(slide)
    fine = sdata["counts_bins_002um"]
    mappings = pd.read_parquet(folder / "barcode_mappings.parquet").set_index("square_002um").loc[fine.obs_names]
    plain = mappings["cell_id"].str.slice(7, 16).astype(float)
    np.testing.assert_array_equal(fine.obs["cell_id"].astype(object).astype(float), plain)
    np.testing.assert_array_equal(fine.obs["in_nucleus"], mappings["in_nucleus"])
    for name, inside in (("cells", mappings["in_cell"]), ("nuclei", mappings["in_nucleus"])):
        table = sdata[f"counts_{name}"]
        summed = pd.DataFrame(fine.X.toarray()[inside.to_numpy()]).groupby(plain[inside].astype(int).to_numpy()).sum()
        want = summed.reindex(table.obs_names.astype(int)).fillna(0).to_numpy()
        off = np.abs(want - table.X.toarray()).sum(axis=1)
        # The vendor's cells reach over the edge of the tissue, where bins are not among the filtered ones.
        assert (off == 0).mean() > (0.9 if name == "cells" else 0.999)
    assert list(sdata["counts_nuclei"].obs_names) == list(sdata["nuclei"].index)


def test_cells_without_a_matrix_are_summed_from_their_bins(output, tmp_path: Path) -> None:
    folder, _ = output
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run/segmented_outputs/filtered_feature_cell_matrix.h5").unlink()
    own = ss.io.read(folder, matrix="raw", bins_um=[2], image="none")["counts_cells"]
    summed = ss.io.read(tmp_path / "run", matrix="raw", bins_um=[2], image="none")["counts_cells"]
    assert list(own.obs_names) == list(summed.obs_names)
    assert (own.X != summed.X).nnz == 0
    coarse = ss.io.read(folder, bins_um=[8], image="none")
    assert "counts_nuclei" not in coarse.tables
    assert any("no counts of nuclei" in line for line in coarse.attrs["stainseq"]["notes"])


def test_the_other_matrix_is_taken_where_it_alone_is_there_and_noted(output, tmp_path: Path) -> None:
    folder, _ = output
    part = tmp_path / "run"
    shutil.copytree(folder, part, ignore=shutil.ignore_patterns("segmented_outputs", "square_002um", "square_016um"))
    (part / "binned_outputs/square_008um/filtered_feature_bc_matrix.h5").unlink()
    sdata = ss.io.read(part, image="none")
    want = ss.io.read(folder, bins_um=8, matrix="raw", image="none")
    assert sdata["counts_bins_008um"].n_obs == want["counts_bins_008um"].n_obs
    assert any("no filtered matrix is here" in line for line in sdata.attrs["stainseq"]["notes"])
    assert not any("matrix is here" in line for line in want.attrs["stainseq"]["notes"])


def test_outlines_that_are_no_polygons_and_bins_of_no_cell(output, tmp_path: Path) -> None:
    folder, _ = output
    source = tmp_path / "run"
    shutil.copytree(folder, source)
    (source / "segmented_outputs/filtered_feature_cell_matrix.h5").unlink()
    mappings = pd.read_parquet(source / "barcode_mappings.parquet")
    mappings["cell_id"] = pd.array([None] * len(mappings), dtype="string")
    mappings.to_parquet(source / "barcode_mappings.parquet", index=False)
    assert ss.io.read(source, bins_um=[2], image="none")["counts_cells"].X.nnz == 0
    outlines = source / "segmented_outputs/nucleus_segmentations.geojson"
    told = json.loads(outlines.read_text())
    told["features"][1]["geometry"] = {"type": "Point", "coordinates": [3, 4]}
    outlines.write_text(json.dumps(told))
    with pytest.raises(FormatError, match=r"1 of \d+ cells are no polygons"):
        ss.io.read(source, bins_um=[8], image="none")


@pytest.mark.parametrize("missing", ["matrix", "positions", "all"])
@pytest.mark.parametrize("kind", ["filtered", "raw"])
def test_feature_slices_stand_in_for_what_is_missing(output, tmp_path: Path, missing: str, kind: str) -> None:
    folder, _ = output
    want = ss.io.read(folder, matrix=kind, image="none", segmented=False)
    part = tmp_path / "run"
    shutil.copytree(folder, part, ignore=shutil.ignore_patterns("segmented_outputs", "*.tif"))
    for square in (part / "binned_outputs").iterdir():
        for path in [*square.glob("*.h5")] if missing != "positions" else []:
            path.unlink()
        if missing == "positions":
            (square / "spatial/tissue_positions.parquet").unlink()
        if missing == "all":
            shutil.rmtree(square)
    assert visium_hd.sniff(part).startswith("Visium HD")
    got = ss.io.read(part, matrix=kind, image="none")
    for size in (2, 8, 16):
        name = f"bins_{size:03d}um"
        a, b = want[f"counts_{name}"], got[f"counts_{name}"]
        # The raw matrix has every bin; feature slices alone tell those with counts.
        a = a[np.asarray(a.X.sum(axis=1)).ravel() > 0] if missing == "all" and kind == "raw" else a
        assert list(a.obs_names) == list(b.obs_names)
        assert (a.X != b.X).nnz == 0
        assert b.X.dtype == np.int32
        assert list(a.var_names) == list(b.var_names)
        np.testing.assert_array_equal(a.obs["in_tissue"], b.obs["in_tissue"])
        # Without scale factors the pixel size comes from the distance of bins, which a homography stretches a little.
        np.testing.assert_allclose(a.obsm["spatial"], b.obsm["spatial"], rtol=1e-4, atol=1e-3)
    told = " ".join(got.attrs["stainseq"]["notes"])
    assert {"matrix": "counts from", "positions": "places from", "all": "counts and places from"}[missing] in told


def test_any_multiple_of_2_um_can_be_made_from_feature_slices(output) -> None:
    folder, _ = output
    sdata = ss.io.read(folder, bins_um=[2, 24], matrix="raw", image="none", segmented=False)
    fine, coarse = sdata["counts_bins_002um"], sdata["counts_bins_024um"]
    key = fine.obs["array_row"] // 12 * 1000 + fine.obs["array_col"] // 12
    summed = pd.DataFrame(fine.X.toarray()).groupby(key.to_numpy()).sum()
    own = coarse.obs["array_row"].to_numpy() * 1000 + coarse.obs["array_col"].to_numpy()
    np.testing.assert_array_equal(summed.loc[own].to_numpy(), coarse.X.toarray())
    assert coarse.obs["array_row"].max() == -(-200 // 12) - 1  # the last row of bins is cut off by the array's end
    assert coarse.obs_names[0] == "s_024um_00000_00000-1"


def test_large_matrices_are_read_piece_by_piece(output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = output
    want = ss.io.read(folder, image="none")
    monkeypatch.setattr(_hd_matrix, "LAZY_NONZEROS", 500)
    monkeypatch.setattr(_hd_matrix, "_BLOCK_NONZEROS", 400)
    lazy = ss.io.read(folder, image="none")
    assert lazy["counts_bins_002um"].X.numblocks[0] > 3
    got = ss.io.convert(folder, tmp_path / "s.zarr", image="none")
    for name in want.tables:
        assert (got[name].X != want[name].X).nnz == 0
        assert got[name].X.dtype == np.int32


@pytest.mark.parametrize("name", ["he-raw.btf", "he-raw.tif", "he-raw.ome.tif", "he-raw.jpg"])
def test_pictures_in_extras(output, tmp_path: Path, name: str) -> None:
    """The names of the Pixel2Gene folder, opened lazily."""
    folder, _ = output
    part = tmp_path / "run"
    shutil.copytree(folder, part, ignore=shutil.ignore_patterns("segmented_outputs", "*.tif"))
    picture = tifffile.imread(folder / "microscope_image" / "he.tif")
    (part / "extras").mkdir()
    (part / "microscope_image" / "about.json").write_text("{}")
    if name.endswith(".jpg"):
        cv2.imwrite(str(part / "extras" / name), picture[:, :, ::-1])
    else:
        tifffile.imwrite(
            part / "extras" / name, picture, bigtiff=name.endswith(".btf"), ome=".ome." in name, tile=(512, 512)
        )
    sdata = ss.io.read(part, bins_um=[8])
    level = next(iter(sdata["he"]["scale0"].values())) if hasattr(sdata["he"], "children") else sdata["he"]
    assert hasattr(level.data, "dask")
    got = np.asarray(level.data).transpose(1, 2, 0)
    assert got.shape == picture.shape
    assert np.abs(got.astype(int) - picture).mean() < 3
    assert sdata.attrs["stainseq"]["files"]["image"].endswith(name)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    ss.datasets.visium_hd(tmp_path / "run", n_genes=3)
    return tmp_path / "run"


def test_bad_folders(broken: Path) -> None:
    square = broken / "binned_outputs" / "square_008um"
    options = {"bins_um": [8]}
    scales = square / "spatial" / "scalefactors_json.json"
    told = json.loads(scales.read_text())
    scales.write_text(json.dumps({**told, "microns_per_pixel": 0.5}))
    with pytest.raises(ScaleError, match="contradict"):
        ss.io.read(broken, **options)
    scales.write_text(json.dumps(told))
    positions = square / "spatial" / "tissue_positions.parquet"
    frame = pd.read_parquet(positions)
    pd.concat([frame, frame.iloc[:1]]).to_parquet(positions)
    with pytest.raises(InputError, match="occur twice"):
        ss.io.read(broken, **options)
    frame[frame["array_row"] != 5].to_parquet(positions)
    with pytest.raises(InputError, match="have no position"):
        ss.io.read(broken, **options)
    shuffled = frame.copy()
    shuffled["pxl_col_in_fullres"] = shuffled["pxl_col_in_fullres"].to_numpy()[::-1]
    shuffled["pxl_row_in_fullres"] = np.random.default_rng(0).permutation(shuffled["pxl_row_in_fullres"])
    shuffled.to_parquet(positions)
    with pytest.raises(InputError, match="off a regular grid"):
        ss.io.read(broken, **options)
    for column, value in (("array_row", 2.5), ("array_col", "x"), ("pxl_row_in_fullres", "x")):
        frame.assign(**{column: value}).to_parquet(positions)
        with pytest.raises(FormatError, match="positions that are no numbers"):
            ss.io.read(broken, **options)
    positions.write_bytes(b"PAR1" + b"0" * 100)
    with pytest.raises(FormatError, match="positions cannot be read"):
        ss.io.read(broken, **options)
    frame.to_parquet(positions)
    positions.write_bytes(positions.read_bytes()[:-200])
    with pytest.raises(FormatError, match="positions cannot be read"):
        ss.io.read(broken, **options)


def test_bad_matrices(broken: Path) -> None:
    path = broken / "binned_outputs" / "square_008um" / "filtered_feature_bc_matrix.h5"
    options = {"bins_um": [8], "image": "none"}
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="truncated"):
        ss.io.read(broken, **options)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as h5:
        names = h5["matrix/barcodes"][:]
        names[1] = names[0]
        h5["matrix/barcodes"][:] = names
    with pytest.raises(InputError, match=f"occur twice in the matrix .{names[0].decode()}"):
        ss.io.read(broken, **options)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as h5:
        h5["matrix/data"][0] = -1
    with pytest.raises(InputError, match="negative"):
        ss.io.read(broken, **options)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as h5:
        h5["matrix/indices"][0] = 99
    with pytest.raises(FormatError, match="do not fit together"):
        ss.io.read(broken, **options)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as h5:
        h5.attrs["software_version"] = "spaceranger-9.1.0"
    with pytest.raises(FormatError, match=r"unknown version of Space Ranger .spaceranger-9.*version=4"):
        ss.io.read(broken, **options)
    assert ss.io.read(broken, **options, version=4)["counts_bins_008um"].n_obs
    with pytest.raises(FormatError, match="unknown version"):
        ss.io.read(broken, **options, version=2)


def test_bad_feature_slices(broken: Path) -> None:
    shutil.rmtree(broken / "binned_outputs")
    path = broken / "feature_slice.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="truncated"):
        ss.io.read(broken)
    for change, said in (
        ({"transform_matrices": None}, "does not tell where bins lie"),
        ({"nrows": 7}, "bins outside an array of 7"),
        ({"hd_layout_json": json.dumps({"file_format": "7.0"})}, "unknown format"),
    ):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as h5:
            told = json.loads(h5.attrs["metadata_json"])
            h5.attrs["metadata_json"] = json.dumps({**told, **change})
        with pytest.raises(InputError, match=said):
            ss.io.read(broken)
    path.write_bytes(whole)
    assert set(ss.io.read(broken, image="none").tables) == {f"counts_bins_{s:03d}um" for s in (2, 8, 16)}


def test_what_lies_elsewhere(broken: Path, tmp_path: Path) -> None:
    """Wrong pixel size, a picture of another size, a truncated one, nothing at all, a missing file."""
    with pytest.raises(ScaleError, match=r"pixel size of 0\.5 um contradict each other.*0\.2738"):
        ss.io.read(broken, mpp=0.5)
    picture = broken / "microscope_image" / "he.tif"
    small = tmp_path / "small.tif"
    tifffile.imwrite(small, tifffile.imread(picture)[::4, ::4])
    with pytest.raises(ScaleError, match=r"% of the bins under tissue lie outside the picture"):
        ss.io.read(broken, image=small)
    assert ss.io.read(broken, image=small, image_scale=0.25)["he"] is not None
    picture.write_bytes(picture.read_bytes()[:-5000])
    with pytest.raises(FormatError, match=r"he\.tif"):
        ss.io.convert(broken, tmp_path / "s.zarr")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FormatError, match="an empty folder"):
        ss.io.read(empty)
    with pytest.raises(MissingError, match="no Visium HD output"):
        ss.io.read(empty, platform="visium-hd")
    for option, said in (
        ({"bins_um": []}, "no size of bins"),
        ({"mpp": 0}, "no pixel size"),
        ({"version": "4"}, "give a whole number"),
    ):
        with pytest.raises(InputError, match=said):
            ss.io.read(broken, **{"bins_um": 8, "image": "none", **option})
    (broken / "feature_slice.h5").unlink()
    with pytest.raises(MissingError, match="no bins of 4 um"):
        ss.io.read(broken, bins_um=[4])
    for path in (broken / "binned_outputs" / "square_008um").glob("*.h5"):
        path.unlink()
    with pytest.raises(MissingError, match="no matrix of counts of the bins of 8 um"):
        ss.io.read(broken, bins_um=[8])


@pytest.mark.parametrize("wide", [50, 20_000])
def test_what_occurs_twice(wide: int) -> None:
    rng = np.random.default_rng(1)
    at = rng.choice(wide * wide, 300, replace=False)
    rows, cols = np.divmod(np.append(at, wide * wide - 1), wide)
    assert _hd_matrix.twice(rows[:300], cols[:300]) is None
    assert _hd_matrix.twice(np.append(rows, rows[7]), np.append(cols, cols[7])) == (rows[7], cols[7])


def test_mappings_of_other_types(tmp_path: Path) -> None:
    """Numbers for names and flags are the same cells; what is neither is refused."""
    from stainseq.readers._hd_cells import members

    file, place = tmp_path / "barcode_mappings.parquet", np.array([0])
    row = {"square_002um": ["s_002um_00000_00001-1"], "cell_id": [7], "in_cell": [1], "in_nucleus": [0]}
    pd.DataFrame(row).to_parquet(file)
    found = members(file, place, np.array([1]))
    assert (found.names, found.cell.tolist(), found.in_cell.tolist()) == (["7"], [0], [True])
    assert not found.in_nucleus.any()
    pd.DataFrame({**row, "in_cell": ["perhaps"]}).to_parquet(file)
    with pytest.raises(FormatError, match="mappings cannot be read"):
        members(file, place, np.array([1]))


def test_barcodes_tell_their_place() -> None:
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, 100_000, (2, 50))
    text = barcodes.write(16, rows, cols)
    want = [f"s_016um_{r:05d}_{c:05d}-1" for r, c in zip(rows, cols, strict=True)]
    assert [bytes(t).decode() for t in text] == want
    size, row, column = barcodes.read(text)
    assert size == 16
    np.testing.assert_array_equal(row, rows)
    np.testing.assert_array_equal(column, cols)
    for at, letter in ((0, b"t"), (20, b"2"), (8, b"x"), (2, b"1")):
        wrong = text.copy()
        wrong[7, at] = letter[0]
        assert barcodes.read(wrong) is None


def test_the_real_positions_and_scales(data_dir: Path) -> None:
    """Real geometry of a 16 um grid (its folder says 8): mirrored, residual below half a bin."""
    from stainseq.readers import _hd

    square = data_dir / "visium_hd_schema" / "seurat" / "binned_outputs" / "square_016um"
    bins = _hd.Bins(16, square)
    grid = _hd.read_grid(bins)
    assert grid.shape == (419, 419)
    assert grid.residual_px < 1.0
    assert np.linalg.det(grid.transform[:2, :2]) < 0
    pitch = np.sqrt(abs(np.linalg.det(grid.transform[:2, :2])))
    assert pitch * 0.27376126715315274 == pytest.approx(16.0, rel=2e-3)
