"""Superpixels on the H&E's own axes, and transcripts counted in them, against a naive count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import stainseq as ss
from stainseq import image, regions, store
from stainseq.cli import run
from stainseq.core import registration
from stainseq.errors import InputError, MissingError, StoreError


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    root = tmp_path_factory.mktemp("superpixels")
    for projective in (False, True):
        ss.datasets.xenium(root / f"b{projective}", n_genes=6, projective=projective)
        ss.io.convert(root / f"b{projective}", root / f"s{projective}.zarr")
    return {projective: root / f"s{projective}.zarr" for projective in (False, True)}


@pytest.mark.parametrize("projective", [False, True])
def test_counts_are_those_of_a_naive_loop(slides: dict[bool, Path], projective: bool) -> None:
    sdata = ss.io.open(slides[projective])
    ss.pp.superpixels(sdata, tissue_key="none")
    counted = ss.pp.aggregate(sdata, region="superpixels")
    opened = image.open_image(sdata)
    points = sdata["transcripts"].compute()
    inverse = np.linalg.inv(opened.to_um)
    pixels = registration.apply(inverse / inverse[2, 2], points[["x", "y"]].to_numpy(dtype=np.float64))
    place = np.floor(pixels * opened.mpp / 8.0).astype(int)
    expected: dict[tuple[str, str], int] = {}
    for (x, y), gene in zip(place, points["feature_name"].astype(str), strict=True):
        expected[f"{y}_{x}", gene] = expected.get((f"{y}_{x}", gene), 0) + 1
    matrix = counted.X.tocoo()
    found = {
        (counted.obs_names[i], counted.var_names[j]): int(v)
        for i, j, v in zip(matrix.row, matrix.col, matrix.data, strict=True)
    }
    inside = set(counted.obs_names)
    assert found == {k: v for k, v in expected.items() if k[0] in inside}
    assert counted.uns["aggregate"]["counted"] == matrix.data.sum() > 0.97 * len(points)
    assert (np.array(store.stamp_of(sdata, "superpixels")["grid"]["transform"])[2, :2] != 0).any() == projective


def test_one_superpixel_is_16_pixels_of_half_a_micron(slides: dict[bool, Path]) -> None:
    sdata = ss.io.open(slides[False])
    ss.pp.superpixels(sdata, tissue_key="none")
    frame = regions.read_window(sdata, "superpixels", (100, 100, 150, 150))
    np.testing.assert_allclose(frame.geometry.area, 64.0, rtol=1e-6)


def test_tissue_by_mask_and_by_outlines_agree(slides: dict[bool, Path]) -> None:
    sdata = ss.io.open(slides[False])
    ss.pp.superpixels(sdata, key_added="by_mask")
    ss.pp.superpixels(sdata, key_added="everywhere", tissue_key="none")
    by_mask, everywhere = (set(regions.get(sdata, k).ids) for k in ("by_mask", "everywhere"))
    assert by_mask < everywhere or by_mask == everywhere
    assert len(by_mask) > 0.8 * len(everywhere)


def test_counts_in_cells_agree_with_the_run(slides: dict[bool, Path]) -> None:
    """Outlines of the bundle are 12-gons of the circles that transcripts were assigned by."""
    sdata = ss.io.open(slides[False])
    run_counts = sdata["counts_cells"]
    own = ss.pp.aggregate(sdata, region="cells", key_added="recounted")
    a = np.asarray(run_counts[:, own.var_names].X.sum(axis=1)).ravel()
    b = np.asarray(own[run_counts.obs_names].X.sum(axis=1)).ravel()
    assert b.sum() == pytest.approx(a.sum(), rel=0.06)
    assert np.corrcoef(a, b)[0, 1] > 0.98
    strict = ss.pp.aggregate(sdata, region="cells", min_qv=30, key_added="strict")
    assert 0 < strict.X.sum() < own.X.sum()


def test_refusals(slides: dict[bool, Path]) -> None:
    sdata = ss.io.open(slides[False])
    with pytest.raises(InputError, match="below a pixel"):
        ss.pp.superpixels(sdata, pitch_um=0.1)
    with pytest.raises(MissingError, match="no shapes"):
        ss.pp.superpixels(sdata, tissue_key="absent")
    with pytest.raises(MissingError, match="no region"):
        ss.pp.aggregate(sdata, region="absent")
    with pytest.raises(MissingError, match="no points"):
        ss.pp.aggregate(sdata, region="cells", points="absent", key_added="mine")
    with pytest.raises(StoreError, match="made by convert"):
        ss.pp.aggregate(sdata, region="cells")


def test_the_commands(slides: dict[bool, Path], capsys: pytest.CaptureFixture[str]) -> None:
    slide = str(slides[True])
    assert run(["superpixels", slide, "--pitch-um", "16", "--key-added", "coarse"]) == 0
    assert run(["aggregate", slide, "--region", "coarse"]) == 0
    assert "transcripts counted" in capsys.readouterr().out
