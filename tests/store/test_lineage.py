"""What may be replaced, and what is out of date."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import stainseq as ss
from stainseq import lineage, store
from stainseq.cli import run
from stainseq.errors import StoreError


@pytest.fixture
def slide(tmp_path: Path):
    return ss.io.write(ss.datasets.toy_slide(seed=3), tmp_path / "s.zarr")


def test_measured_counts_are_never_replaced(slide, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = store.fingerprint_of(slide, "counts_spots")
    ss.tl.train([str(slide.path)], out=tmp_path / "model", encoder="colour", n_genes=10, split="block", block_um=200)
    for attempt in (
        lambda: ss.pp.features(slide, encoder="colour", key_added="counts_spots"),
        lambda: ss.tl.predict(tmp_path / "model", slide, key_added="counts_spots"),
        lambda: ss.pp.tissue(slide, key_added="spots"),
        lambda: ss.pp.superpixels(slide, key_added="spots"),
    ):
        with pytest.raises(StoreError, match="is there already, made by write"):
            attempt()
    assert run(["predict", str(tmp_path / "model"), str(slide.path), "--key", "counts_spots"]) == 1
    assert "another name" in capsys.readouterr().err
    assert store.fingerprint_of(ss.io.open(slide.path), "counts_spots") == before


def test_a_step_replaces_its_own_result_also_after_analyses_of_it(slide, tmp_path: Path) -> None:
    ss.tl.train([str(slide.path)], out=tmp_path / "model", encoder="colour", n_genes=10, split="block", block_um=200)
    for _ in range(2):
        ss.pp.features(slide, encoder="colour")
        ss.tl.predict(tmp_path / "model", slide)
        ss.tl.svg(slide, method="moran", table_key="pred_ridge_spots")


def test_what_was_made_from_other_regions_or_another_picture_is_told(slide) -> None:
    assert lineage.stale(slide) == {}
    ss.pp.tissue(slide)
    ss.pp.grid(slide, spacing_um=100)
    ss.pp.features(slide, region="grid", encoder="colour")
    ss.pp.features(slide, encoder="colour")
    ss.tl.svg(slide, method="moran")
    assert lineage.stale(slide) == {}
    ss.pp.grid(slide, spacing_um=50)
    assert lineage.stale(slide) == {"features_colour_grid": ["grid"]}
    told = ss.io.info(slide.path)["problems"]
    assert told == ["features_colour_grid was made from another grid: make it again"]
    xy = np.array([[0, 0], [500, 0], [0, 500], [500, 500]], dtype=float)
    result = ss.pp.align(slide, he=xy, target=0.5 * xy, target_unit="um", any_scale=True)
    # The grid was laid over tissue that was found in the picture as it lay before.
    assert set(result["stale"]) == {"tissue", "grid", "features_colour_grid", "features_colour_spots"}
