"""Windows of stored slides: the same pixels from memory, from disk and from the formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import stainseq as ss
from stainseq import image, store
from stainseq.errors import InputError, MissingError, ScaleError


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "a.zarr"
    store.create(path, ss.datasets.toy_slide(size="small", seed=0), step="convert", parameters={})
    return path


def test_disk_and_memory_give_the_same_windows(slide: Path) -> None:
    disk = image.open_image(store.open(slide))
    memory = image.open_image(ss.datasets.toy_slide(size="small", seed=0))
    assert disk.shape == memory.shape
    assert disk.mpp == pytest.approx(memory.mpp)
    rng = np.random.default_rng(0)
    for xy in rng.uniform(0, 700, (12, 2)):
        for mpp in (0.5, 0.8, 1.0):
            a = image.read_window(disk, xy, size_px=64, mpp=mpp)
            b = image.read_window(memory, xy, size_px=64, mpp=mpp)
            np.testing.assert_array_equal(a, b)


def test_fingerprint_follows_the_pixels(slide: Path) -> None:
    same = image.open_image(store.open(slide)).fingerprint
    assert same == image.open_image(store.open(slide)).fingerprint
    other = image.open_image(ss.datasets.toy_slide(size="small", seed=1)).fingerprint
    assert other != same


def test_windows_at_native_resolution_are_crops(slide: Path) -> None:
    opened = image.open_image(store.open(slide))
    level = np.moveaxis(np.asarray(opened.levels[0][...]), 0, -1)
    window = image.read_window(opened, np.array([200.0, 160.0]), size_px=100, mpp=opened.mpp)
    np.testing.assert_array_equal(window, level[150:250, 200:300])


def test_boxes_and_thumbnails_have_the_asked_scale(slide: Path) -> None:
    sdata = store.open(slide)
    opened = image.open_image(sdata)
    box = image.read_box(opened, (80.0, 40.0, 400.0, 200.0), mpp=1.6)
    assert box.shape == (100, 200, 3)
    small, mpp = image.thumbnail(sdata, max_px=300)
    assert max(small.shape[:2]) == 300
    assert mpp == pytest.approx(opened.mpp * 900 / 300)
    whole = np.moveaxis(np.asarray(opened.levels[0][...]), 0, -1)
    assert abs(small.mean() - whole.mean()) < 1.0
    with pytest.raises(InputError, match="empty box"):
        image.read_box(opened, (80.0, 40.0, 80.0, 200.0), mpp=1.6)


def test_a_slide_without_pyramid_is_reduced_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = image.open_image(ss.datasets.toy_slide(size="small", seed=0))
    flat = image.LevelStack(toy.levels[:1], (1.0,), toy.to_um, toy.mpp, "flat")
    expected, _ = image.level_thumbnail(flat, max_px=300)

    class Huge:
        """Claims the size of a slide that must not be loaded whole."""

        def __init__(self, data: np.ndarray) -> None:
            self.data, self.shape, self.rows = data, data.shape, 0

        def __getitem__(self, item: object) -> np.ndarray:
            part = self.data[item]  # type: ignore[index]
            self.rows = max(self.rows, part.shape[1])
            return part

    tall = np.tile(np.asarray(toy.levels[0][...]), (1, 10, 9))
    huge = Huge(tall)
    out, _ = image.level_thumbnail(image.LevelStack((huge,), (1.0,), toy.to_um, toy.mpp, "huge"), max_px=900)
    assert huge.rows <= 2500
    assert abs(out.mean() - expected.mean()) < 1.0


def test_what_cannot_be_read_is_named(slide: Path) -> None:
    from spatialdata.models import Image2DModel

    sdata = store.open(slide)
    with pytest.raises(MissingError, match="images here: he"):
        image.open_image(sdata, "dapi")
    sdata.images["bare"] = Image2DModel.parse(np.zeros((3, 64, 64), np.uint8), dims=("c", "y", "x"))
    with pytest.raises(ScaleError, match="--mpp"):
        image.open_image(sdata, "bare")
