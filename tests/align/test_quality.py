"""Pen, folds and blur put on real tissue are found, and real tissue is left alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import stainseq as ss
from stainseq import regions
from stainseq.core import quality
from stainseq.errors import InputError

STEP = 12


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    found = cv2.imread(str(ss.datasets.her2st("C2") / "C2_HE.jpg"))
    return np.ascontiguousarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB)[3600:8400, 3600:8400])


def classes(picture: np.ndarray) -> np.ndarray:
    return quality.classify(quality.look(picture, STEP))


def share(found: np.ndarray, name: str, where: np.ndarray) -> float:
    return float((found[where] == quality.CLASSES.index(name)).mean())


def test_clean_tissue_is_good(tissue: np.ndarray) -> None:
    found = classes(tissue)
    kept = found != quality.CLASSES.index("background")
    assert 0.4 < kept.mean() < 0.9
    assert share(found, "good", kept) > 0.98


@pytest.mark.parametrize("ink", [(20, 60, 170), (30, 140, 60), (15, 15, 20)])
def test_pen_of_three_colours(tissue: np.ndarray, ink: tuple[int, int, int]) -> None:
    picture, stroke = tissue.copy(), np.zeros(tissue.shape[:2], np.uint8)
    cv2.line(picture, (300, 900), (4000, 3300), ink, 110)
    cv2.line(stroke, (300, 900), (4000, 3300), 1, 80)
    at = cv2.resize(stroke, (400, 400), interpolation=cv2.INTER_AREA) > 0
    found = classes(picture)
    assert share(found, "pen", at) > 0.97
    far = ~cv2.dilate(at.astype(np.uint8), np.ones((9, 9))).astype(bool)
    assert share(found, "pen", far) < 0.01


def test_blur_and_folds(tissue: np.ndarray) -> None:
    clean, picture = classes(tissue), tissue.copy()
    picture[2600:3500, 2400:3300] = cv2.GaussianBlur(picture[2600:3500, 2400:3300], (0, 0), 10)
    fold = picture[1500:2500, 2500:2800].astype(np.float64) / 255
    picture[1500:2500, 2500:2800] = (255 * fold**3).astype(np.uint8)
    found, at = classes(picture), np.zeros(clean.shape, dtype=bool)
    at[220:288, 204:272] = True
    assert share(found, "blurred", at & (clean == 0)) > 0.9
    at[:] = False
    at[128:206, 210:231] = True
    assert share(found, "fold", at & (clean == 0)) > 0.5
    untouched = np.ones(clean.shape, dtype=bool)
    untouched[120:296, 196:280] = False
    assert (found == clean)[untouched].mean() > 0.98


def test_empty_and_uniform_pictures() -> None:
    white = np.full((240, 240, 3), 245, np.uint8)
    assert (classes(white) == quality.CLASSES.index("background")).all()
    pink = np.full((240, 240, 3), (200, 120, 180), np.uint8)
    assert (classes(pink) != quality.CLASSES.index("background")).all()


def test_blocks_join_to_the_whole(tissue: np.ndarray) -> None:
    whole = quality.look(tissue, STEP)
    halves = [[quality.look(tissue[y : y + 2400, x : x + 2400], STEP) for x in (0, 2400)] for y in (0, 2400)]
    joined = quality.join(halves)
    np.testing.assert_array_equal(joined.colour, whole.colour)
    # The Laplacian sees a pixel beyond a block: the squares along the seam may differ a little.
    assert (quality.classify(joined) == quality.classify(whole)).mean() > 0.999


def test_the_table_of_a_slide(tmp_path: Path) -> None:
    ss.datasets.xenium(tmp_path / "b", n_genes=3, transcripts=False)
    sdata = ss.io.convert(tmp_path / "b", tmp_path / "s.zarr")
    with pytest.raises(InputError, match="is no grid"):
        ss.pp.quality(sdata, region="cells")
    ss.pp.superpixels(sdata, tissue_key="none")
    table = ss.pp.quality(sdata)
    assert list(table.obs_names) == list(regions.get(sdata, "superpixels").ids)
    assert (table.obs["quality"] == "good").mean() > 0.6
    assert not table.obs["quality"].isin(["pen"]).any()
