"""Visium HD: a turned, mirrored, projective grid; sums of 2, 8 and 16 um agree; the picture lies on the bins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata

import stainseq as ss
from stainseq import regions, store
from stainseq.core.grids import project
from stainseq.errors import FormatError, InputError, MissingError, ScaleError
from stainseq.readers import visium_hd


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
    with pytest.raises(MissingError, match="no bins of 4 um"):
        ss.io.read(folder, bins_um=[4])
    raw = ss.io.read(folder, bins_um=[16], matrix="raw", image="none", segmented=False)
    assert raw["counts_bins_016um"].n_obs == 25 * 25


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
    positions.write_bytes(b"PAR1" + b"0" * 100)
    with pytest.raises(FormatError, match="positions cannot be read"):
        ss.io.read(broken, **options)


def test_the_real_positions_and_scales(data_dir: Path) -> None:
    """Real geometry of a 16 um grid (its folder says 8): mirrored, residual below half a bin."""
    from stainseq.readers import _hd

    square = data_dir / "visium_hd_schema" / "seurat" / "binned_outputs" / "square_016um"
    bins = _hd.Bins(16, square)
    grid = _hd.read_grid(bins, bins.scales())
    assert grid.shape == (419, 419)
    assert grid.residual_px < 1.0
    assert np.linalg.det(grid.transform[:2, :2]) < 0
    pitch = np.sqrt(abs(np.linalg.det(grid.transform[:2, :2])))
    assert pitch * 0.27376126715315274 == pytest.approx(16.0, rel=2e-3)
