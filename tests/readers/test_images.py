"""Pictures of every kind, by content, lazily, and truncated ones refused."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from stainseq.errors import DependencyError, FormatError, ScaleError
from stainseq.readers import _scale
from stainseq.readers._images import open_image, sampled


@pytest.fixture
def rgb(make: ModuleType) -> np.ndarray:
    return make.picture(300, 260)


def _pixels(path: Path) -> np.ndarray:
    picture = open_image(path)
    assert picture.levels[0].dtype == np.uint8
    return picture.levels[0].compute()


def _pil(path: Path, rgb: np.ndarray, mode: str, form: str) -> Path:
    buffer = io.BytesIO()
    Image.fromarray(rgb).convert(mode).save(buffer, form)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "dat"])
def test_told_by_content_not_suffix(tmp_path: Path, make: ModuleType, rgb: np.ndarray, kind: str, suffix: str) -> None:
    path = make.write_image(tmp_path / f"a.{suffix}", rgb, kind)
    got = _pixels(path)
    assert got.shape == rgb.shape
    if kind == "jpeg":
        np.testing.assert_array_equal(got, imagecodecs.jpeg8_decode(path.read_bytes()))
    else:
        np.testing.assert_array_equal(got, rgb)


def test_rgba_is_laid_over_white(tmp_path: Path, make: ModuleType, rgb: np.ndarray) -> None:
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    alpha[:50] = 0
    alpha[50:60] = 128
    four = np.concatenate([rgb, alpha], axis=2)
    for kind in ("png", "tiff"):
        path = tmp_path / f"{kind}.png"
        if kind == "tiff":
            tifffile.imwrite(path, four, photometric="rgb", extrasamples=["unassalpha"])
        else:
            make.write_image(path, four)
        got = _pixels(path)
        assert (got[:50] == 255).all()
        np.testing.assert_array_equal(got[60:], rgb[60:])
        share = 128 / 255
        want = rgb[50:60] * share + 255 * (1 - share)
        assert np.abs(got[50:60] - want).max() <= 1
        assert "alpha" in open_image(path).notes[0]


@pytest.mark.parametrize("form", ["minisblack", "rgb-planar", "pages", "imagej"])
def test_channels_first(tmp_path: Path, rgb: np.ndarray, form: str) -> None:
    path, chw = tmp_path / "a.png", rgb.transpose(2, 0, 1)
    if form == "minisblack":
        tifffile.imwrite(path, chw, photometric="minisblack")
    elif form == "rgb-planar":
        tifffile.imwrite(path, chw, photometric="rgb", planarconfig="separate", tile=(64, 64))
    elif form == "imagej":
        tifffile.imwrite(path, chw, imagej=True, metadata={"axes": "CYX"})
    else:
        with tifffile.TiffWriter(path) as tif:
            for plane in chw:
                tif.write(plane, photometric="minisblack", rowsperstrip=32, compression="zlib", metadata=None)
    np.testing.assert_array_equal(_pixels(path), rgb)


def test_rgba_channels_first(tmp_path: Path, rgb: np.ndarray) -> None:
    chw = np.concatenate([rgb.transpose(2, 0, 1), np.full((1, *rgb.shape[:2]), 255, np.uint8)])
    tifffile.imwrite(tmp_path / "a.tif", chw, photometric="rgb", planarconfig="separate", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(_pixels(tmp_path / "a.tif"), rgb)


@pytest.mark.parametrize(("top", "full"), [(65535, 65535), (4095, 4095), (255, 255)])
def test_sixteen_bits_by_the_range_present(
    tmp_path: Path, make: ModuleType, rgb: np.ndarray, top: int, full: int
) -> None:
    rgb = rgb.copy()
    rgb[::8] = 255
    wide = np.rint(rgb.astype(float) * top / 255).astype(np.uint16)
    for kind in ("png", "tiff"):
        path = make.write_image(tmp_path / f"{kind}", wide, kind)
        assert np.abs(_pixels(path).astype(int) - rgb).max() <= 1
        assert f"0..{full}" in open_image(path).notes[-1]


def test_grey_palette_bilevel_and_inverted(tmp_path: Path, make: ModuleType, rgb: np.ndarray) -> None:
    grey = rgb[..., 0]
    for name, path in {
        "png": make.write_image(tmp_path / "a", grey),
        "jpeg": make.write_image(tmp_path / "b", grey, "jpeg"),
        "tiff": make.write_image(tmp_path / "c", grey, "tiff"),
    }.items():
        got = _pixels(path)
        assert got.shape == rgb.shape
        assert (got[..., 0] == got[..., 2]).all()
        assert np.abs(got[..., 0].astype(int) - grey).max() <= (30 if name == "jpeg" else 0)
    tifffile.imwrite(tmp_path / "d", 255 - grey, photometric="miniswhite")
    np.testing.assert_array_equal(_pixels(tmp_path / "d")[..., 1], grey)
    want = np.asarray(Image.fromarray(rgb).convert("P").convert("RGB"))
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(_pixels(_pil(tmp_path / form, rgb, "P", form)), want)
    assert set(np.unique(_pixels(_pil(tmp_path / "e", rgb, "1", "TIFF")))) == {0, 255}
    assert _pixels(_pil(tmp_path / "f", rgb, "LA", "PNG")).shape == rgb.shape


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(tmp_path: Path, rgb: np.ndarray, form: str) -> None:
    path = _pil(tmp_path / "a", rgb, "CMYK", form)
    want = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(_pixels(path) - want).max() <= 2
    assert open_image(path).notes == ("CMYK turned to RGB",)


def test_aperio_jpeg2000_in_ycbcr(tmp_path: Path, rgb: np.ndarray) -> None:
    """Compression 33003 holds YCbCr whatever the photometric tag says; openslide is the judge."""
    openslide = pytest.importorskip("openslide")
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    path = tmp_path / "a.svs"
    options = {"compression": 33003, "compressionargs": {"level": 0, "mct": False}, "metadata": None}
    description = "Aperio Image Library v1\r\n260x300 [0,0 260x300] (64x64) J2K|AppMag = 20|MPP = 0.5"
    tifffile.imwrite(path, ycbcr, tile=(64, 64), photometric="rgb", description=description, **options)
    got = _pixels(path)
    assert np.abs(got.astype(int) - rgb).max() <= 2
    with openslide.OpenSlide(path) as slide:
        theirs = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    assert np.abs(got.astype(int) - theirs).max() <= 2
    assert open_image(path).mpp == (0.5, 0.5)


def test_four_channels_of_fluorescence_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((4, 64, 64), np.uint8), metadata={"axes": "CYX"})
    with pytest.raises(FormatError, match="not an RGB picture"):
        open_image(tmp_path / "a.ome.tif")
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((9, 64, 64), np.uint8), photometric="minisblack")
    with pytest.raises(FormatError, match="not a flat RGB picture"):
        open_image(tmp_path / "z.tif")


def test_exif_orientation_is_ignored_and_said(tmp_path: Path, rgb: np.ndarray) -> None:
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    picture = open_image(tmp_path / "a.jpg")
    assert picture.shape == rgb.shape[:2]
    assert "orientation 6" in picture.notes[0]


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
def test_truncated(tmp_path: Path, make: ModuleType, rgb: np.ndarray, kind: str, share: float) -> None:
    path = make.write_image(tmp_path / "slide.img", rgb, kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(FormatError, match=r"slide\.img"):
        open_image(path)


def test_truncated_tiles_are_seen_before_anything_is_read(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgb, tile=(64, 64), compression="jpeg", photometric="rgb")
    with tifffile.TiffFile(path) as tif:
        offsets = tif.pages[0].dataoffsets
    path.write_bytes(path.read_bytes()[: offsets[-1] + 10])
    with pytest.raises(FormatError, match="truncated"):
        open_image(path)


def test_a_damaged_tile_names_the_file(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgb, tile=(64, 64), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path) as tif:
        at, n = tif.pages[0].dataoffsets[3], tif.pages[0].databytecounts[3]
    data = bytearray(path.read_bytes())
    data[at : at + n] = bytes(n)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"tile 3.*a\.tif"):
        open_image(path).levels[0].compute()


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("spot,x,y\n")
    # Without openslide nobody can tell that it is no slide of some vendor either: the error says so.
    with pytest.raises((FormatError, DependencyError), match=r"a\.txt"):
        open_image(tmp_path / "a.txt")
    with pytest.raises(FormatError, match="no such image"):
        open_image(tmp_path / "nothing.svs")


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (64, 64), "compression": "jpeg", "photometric": "rgb"},
        {"tile": (128, 64), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 7, "compression": "lzw"},
        {"rowsperstrip": 300},
        {"tile": (64, 64), "bigtiff": True, "compression": "deflate"},
        {"tile": (64, 64), "compression": "jpeg2000", "photometric": "rgb"},
    ],
)
def test_tiff_windows_equal_tifffile(
    tmp_path: Path, rgb: np.ndarray, options: dict[str, Any], monkeypatch: Any
) -> None:
    """Our tile reader against tifffile's, whole, in odd windows, strided and at single rows."""
    monkeypatch.setattr("stainseq.readers._tiff.CHUNK", 100)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgb, **{"photometric": "rgb", **options})
    want, level = tifffile.imread(path), open_image(path).levels[0]
    assert len(level.chunks[0]) > 1 or options.get("rowsperstrip") == 300
    np.testing.assert_array_equal(level.compute(), want)
    for key in (np.s_[17:101, 33:255], np.s_[::7, 3::11], np.s_[5], np.s_[10:20, 40, 1], np.s_[64:64, 3:9]):
        np.testing.assert_array_equal(level[key].compute(), want[key])


def test_a_huge_strip_is_decoded_once(tmp_path: Path, rgb: np.ndarray, monkeypatch: Any) -> None:
    monkeypatch.setattr("stainseq.readers._tiff.WHOLE_BYTES", 1000)
    monkeypatch.setattr("stainseq.readers._tiff.CHUNK", 64)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgb, rowsperstrip=300, compression="zlib", photometric="rgb")
    np.testing.assert_array_equal(_pixels(path), rgb)


def test_reading_is_lazy(tmp_path: Path, make: ModuleType, rgb: np.ndarray, monkeypatch: Any) -> None:
    """Opening decodes no pixel of a JPEG; computing twice decodes once."""
    path = make.write_image(tmp_path / "a.jpg", rgb, "jpeg")
    calls = []
    real = imagecodecs.jpeg8_decode
    monkeypatch.setattr(imagecodecs, "jpeg8_decode", lambda data: calls.append(1) or real(data))
    picture = open_image(path)
    assert not calls
    picture.levels[0][:10, :10].compute()
    picture.levels[0].compute()
    assert len(calls) == 1


def test_larger_than_pil_allows(tmp_path: Path, monkeypatch: Any) -> None:
    """A bomb guard of PIL or a pixel limit of OpenCV has no say."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "100")
    for form in ("jpeg", "png"):
        encode = imagecodecs.jpeg8_encode if form == "jpeg" else imagecodecs.png_encode
        (tmp_path / form).write_bytes(encode(np.full((64, 64, 3), 200, np.uint8)))
        assert _pixels(tmp_path / form).shape == (64, 64, 3)


def _pyramid(rgb: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(rgb[::k, ::k]) for k in (1, 2, 4)]


def test_pyramids_are_kept(tmp_path: Path, rgb: np.ndarray) -> None:
    """SubIFDs of OME-TIFF, pages of a generic pyramidal TIFF."""
    ome, plain = tmp_path / "a.ome.tif", tmp_path / "b.tif"
    levels = _pyramid(rgb)
    with tifffile.TiffWriter(ome) as tif:
        size = {"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
        tif.write(levels[0], subifds=2, tile=(64, 64), photometric="rgb", metadata={"axes": "YXS", **size})
        for level in levels[1:]:
            tif.write(level, subfiletype=1, tile=(64, 64), photometric="rgb")
    with tifffile.TiffWriter(plain) as tif:
        for level in levels:
            tif.write(level, tile=(64, 64), photometric="rgb", metadata=None)
    for path in (ome, plain):
        picture = open_image(path)
        assert len(picture.levels) == 3
        for got, want in zip(picture.levels, levels, strict=True):
            np.testing.assert_array_equal(got.compute(), want)
    assert open_image(ome).mpp == pytest.approx((0.5, 0.5))
    assert open_image(ome).mpp_from == "OME PhysicalSize"


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((20000, 20000), "CENTIMETER", 0.5),
        ((50800, 50800), "INCH", 0.5),
        ((300, 300), "INCH", None),
        ((1, 1), "NONE", None),
    ],
)
def test_resolution_tags_only_when_plausible(
    tmp_path: Path, rgb: np.ndarray, resolution: tuple[int, int], unit: str, mpp: float | None
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb", resolution=resolution, resolutionunit=unit)
    picture = open_image(tmp_path / "a.tif")
    assert picture.mpp == (None if mpp is None else pytest.approx((mpp, mpp)))


def test_mpp_is_never_guessed(tmp_path: Path, rgb: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb", resolution=(20000, 10000), resolutionunit="CENTIMETER")
    with pytest.raises(ScaleError, match="not square"):
        _scale.resolve_mpp(open_image(tmp_path / "a.tif"), None)
    tifffile.imwrite(tmp_path / "b.tif", rgb, photometric="rgb")
    with pytest.raises(ScaleError, match=r"b\.tif.*--mpp"):
        _scale.resolve_mpp(open_image(tmp_path / "b.tif"), None)
    assert _scale.resolve_mpp(open_image(tmp_path / "b.tif"), 0.4) == (0.4, "--mpp")
    for bad in (0, -1, float("nan"), float("inf"), 500, 0.01):
        with pytest.raises(ValueError, match=r"no pixel size.*0\.05 to 100"):
            _scale.check_mpp(bad)
    assert _scale.check_mpp(0.7, fitted=0.69) == 0.7
    with pytest.raises(ScaleError, match=r"contradicts the array, whose pitch says 0\.69.*leave --mpp out"):
        _scale.check_mpp(0.25, fitted=0.69)


def test_sampling_takes_the_coarsest_level_that_will_do(tmp_path: Path, rgb: np.ndarray) -> None:
    levels = _pyramid(rgb)
    with tifffile.TiffWriter(tmp_path / "b.tif") as tif:
        for level in levels:
            tif.write(level, tile=(64, 64), photometric="rgb", metadata=None)
    small, factor = sampled(open_image(tmp_path / "b.tif").levels, max_px=70)
    np.testing.assert_array_equal(small, levels[2])
    assert factor == 4
    small, factor = sampled(open_image(tmp_path / "b.tif").levels, max_px=50)
    assert factor == 4
    small, factor = sampled(open_image(tmp_path / "b.tif").levels, max_px=20)
    assert factor == 12
    assert small.shape == (25, 22, 3)


def test_openslide_reads_the_same(data_dir: Path) -> None:
    pytest.importorskip("openslide")
    path = data_dir / "wsi" / "CMU-1-Small-Region.svs"
    ours, theirs = open_image(path), open_image(path, backend="openslide")
    assert ours.mpp == theirs.mpp == (0.499, 0.499)
    assert ours.mpp_from == "Aperio MPP"
    np.testing.assert_array_equal(ours.levels[0].compute(), theirs.levels[0].compute())
    np.testing.assert_array_equal(theirs.levels[0][100:90:1, ::50].compute(), ours.levels[0][100:90:1, ::50].compute())
