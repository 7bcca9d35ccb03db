"""A crop of the slide: the right place, the right size, any resolution."""

from __future__ import annotations

import numpy as np
import pytest

import stainseq as ss
from stainseq import store
from stainseq.errors import InputError, MissingError, ScaleError


@pytest.fixture(scope="module")
def slide():
    return ss.datasets.toy_slide(seed=0)


def _pixels(sdata):
    return np.asarray(sdata["he"]["scale0"]["image"].data).transpose(1, 2, 0)


def test_whole_image_at_its_own_resolution_is_the_image(slide, tmp_path):
    got = ss.io.get_image(slide)
    np.testing.assert_array_equal(got, _pixels(slide))
    store.create(tmp_path / "a.zarr", slide, step="convert", parameters={})
    np.testing.assert_array_equal(ss.io.get_image(tmp_path / "a.zarr"), got)


def test_a_window_is_cut_in_microns(slide):
    got = ss.io.get_image(slide, window_um=(80, 160, 240, 240), mpp=0.8)  # x 100 to 300 px, y 200 to 300 px
    np.testing.assert_array_equal(got, _pixels(slide)[200:300, 100:300])


def test_coarser_is_the_mean_of_what_lies_under_a_pixel(slide):
    got = ss.io.get_image(slide, window_um=(0, 0, 320, 160), mpp=3.2)
    assert got.shape == (50, 100, 3)
    want = _pixels(slide)[:200, :400].reshape(50, 4, 100, 4, 3).mean((1, 3))
    assert np.abs(got - want).mean() < 1.0


@pytest.mark.parametrize(
    ("window", "mpp"), [((3.1, 5.7, 203.4, 100.2), 1.37), ((10, 10, 333, 222), 0.5), ((0, 0, 1, 1), 4)]
)
def test_size_is_the_window_over_mpp(slide, window, mpp):
    got = ss.io.get_image(slide, window_um=window, mpp=mpp)
    assert got.dtype == np.uint8
    for side, low in zip(got.shape, (1, 0), strict=False):
        assert abs(side - (window[low + 2] - window[low]) / mpp) <= 1 + 0.8 / mpp  # whole pixels of the image


def test_beyond_the_edge_is_white(slide):
    got = ss.io.get_image(slide, window_um=(-40, -40, 40, 40), mpp=0.8)
    assert (got[:50] == 255).all()
    assert (got[:, :50] == 255).all()
    np.testing.assert_array_equal(got[50:, 50:], _pixels(slide)[:50, :50])


def test_errors(slide):
    with pytest.raises(MissingError, match="images here: he"):
        ss.io.get_image(slide, element="dapi")
    with pytest.raises(InputError, match="empty window"):
        ss.io.get_image(slide, window_um=(5, 5, 5, 9))
    with pytest.raises(InputError, match=r"does not touch the image.* spans 0, 0, 720, 720 um"):
        ss.io.get_image(slide, window_um=(800, 0, 900, 100))
    with pytest.raises(InputError, match="not a resolution"):
        ss.io.get_image(slide, mpp=0)
    with pytest.raises(InputError, match=r"million pixels.*or an mpp of"):
        ss.io.get_image(slide, mpp=0.001)


def test_an_image_without_pixel_size_is_refused():
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    bare = SpatialData(images={"he": Image2DModel.parse(np.zeros((3, 8, 8), np.uint8), dims=("c", "y", "x"))})
    with pytest.raises(ScaleError, match="no pixel size"):
        ss.io.get_image(bare)


@pytest.mark.real
def test_real_tissue_crop_equals_the_jpeg(data_dir, tmp_path):
    from PIL import Image

    slide = ss.io.read(data_dir / "st_mob" / "MOB1")
    facts = slide.attrs["stainseq"]
    with Image.open(data_dir / "st_mob" / "MOB1" / "MOB1.jpg") as jpeg:
        want = np.asarray(jpeg)[300:500, 700:1000]
    mpp = float(facts["mpp"])
    got = ss.io.get_image(slide, window_um=(700 * mpp, 300 * mpp, 1000 * mpp, 500 * mpp), mpp=mpp)
    assert got.shape[:2] == (200, 300)
    assert np.abs(got.astype(int) - want).mean() < 3  # decoders round differently
