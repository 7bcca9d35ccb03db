"""Slides with H&E alone, sniffing, and conversion to a store."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import spatialdata
import tifffile
from spatialdata.transformations import get_transformation

import stainseq as ss
from stainseq import spec, store
from stainseq.errors import FormatError, InputError, MissingError, ScaleError, StoreError


def test_a_pyramid_comes_through(tmp_path: Path, make: ModuleType) -> None:
    """Levels, pixels and the placement of each level in microns; then the same from the store."""
    rgb = make.picture(600, 520)
    levels = [np.ascontiguousarray(rgb[::k, ::k]) for k in (1, 4)]
    with tifffile.TiffWriter(tmp_path / "slide.tif") as tif:
        for level in levels:
            tif.write(level, tile=(64, 64), photometric="rgb", metadata=None)
    sdata = ss.io.read(tmp_path / "slide.tif", mpp=0.5, patient="P", tissue="skin")
    assert sdata.attrs["stainseq"]["mpp_from"] == "--mpp"
    written = ss.io.convert(tmp_path / "slide.tif", tmp_path / "o.zarr", mpp=0.5, patient="P", tissue="skin")
    for tree in (sdata["he"], written["he"]):
        assert len(tree.children) == 2
        for i, level in enumerate(levels):
            array = tree[f"scale{i}"]["image"]
            np.testing.assert_array_equal(array.values, level.transpose(2, 0, 1))
            to_um = get_transformation(array, to_coordinate_system="um").to_affine_matrix(("x", "y"), ("x", "y"))
            np.testing.assert_allclose(np.diag(to_um)[:2], 0.5 * 4**i)
    facts = written.attrs["stainseq"]
    assert facts["patient"] == "P"
    assert facts["tissue"] == "skin"
    assert facts["slide"] == "slide"
    assert facts["files"] == {"image": "slide.tif"}
    stamp = store.stamp_of(written, "he")
    assert stamp is not None
    assert stamp["step"] == "convert"
    assert stamp["inputs"] == {"image: slide.tif": spec.fingerprint_file(tmp_path / "slide.tif")}
    spatialdata.read_zarr(tmp_path / "o.zarr")


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_flat_pictures_need_mpp(tmp_path: Path, make: ModuleType, kind: str) -> None:
    path = make.write_image(tmp_path / "a.img", make.picture(200, 150), kind)
    assert ss.io.sniff(path) == ("wsi", f"{kind.upper()} image")
    with pytest.raises(ScaleError, match=r"no pixel size.*a\.img.*--mpp"):
        ss.io.read(path)
    assert ss.io.read(path, mpp=0.25)["he"].shape == (3, 200, 150)


def test_convert_spots_and_read_back(tmp_path: Path, make: ModuleType) -> None:
    truth = make.st(tmp_path / "S1")
    sdata = ss.io.convert(tmp_path / "S1", tmp_path / "S1.zarr", patient="P1")
    again = store.open(tmp_path / "S1.zarr")
    for slide in (sdata, again, spatialdata.read_zarr(tmp_path / "S1.zarr")):
        table = slide["counts_spots"]
        assert table.n_obs == len(truth.ids)
        assert list(slide["spots"].index) == list(table.obs["instance_id"])
        assert table.X.dtype == np.int32
    assert again.attrs["stainseq"]["patient"] == "P1"
    np.testing.assert_array_equal(again["he"]["scale0"]["image"].values, ss.io.read(tmp_path / "S1")["he"].values)
    with pytest.raises(StoreError, match="already"):
        ss.io.convert(tmp_path / "S1", tmp_path / "S1.zarr")
    with pytest.raises(FormatError, match="a store already"):
        ss.io.sniff(tmp_path / "S1.zarr")


def test_a_failed_conversion_leaves_the_old_store(tmp_path: Path, make: ModuleType) -> None:
    make.st(tmp_path / "S1")
    ss.io.convert(tmp_path / "S1", tmp_path / "S1.zarr")
    before = sorted(p.relative_to(tmp_path) for p in (tmp_path / "S1.zarr").rglob("*"))
    image = tmp_path / "S1" / "S1_HE.jpg"
    image.write_bytes(image.read_bytes()[:3000])
    with pytest.raises(FormatError, match="truncated"):
        ss.io.convert(tmp_path / "S1", tmp_path / "S1.zarr", overwrite=True)
    assert sorted(p.relative_to(tmp_path) for p in (tmp_path / "S1.zarr").rglob("*")) == before


def test_unknown_layouts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.txt").write_text("hello")
    with pytest.raises(FormatError, match="an empty folder"):
        ss.io.read(tmp_path / "empty")
    with pytest.raises(FormatError, match=r"no supported platform.*looked for .*st, stimage, .*visium, .*wsi"):
        ss.io.read(tmp_path / "odd")
    with pytest.raises(FormatError, match="no supported platform"):
        ss.io.read(tmp_path / "odd" / "notes.txt")
    with pytest.raises(FormatError, match="nothing there"):
        ss.io.read(tmp_path / "nowhere" / "C2")
    with pytest.raises(MissingError, match=r"no reader named 'merfish'.*visium"):
        ss.io.read(tmp_path / "odd", platform="merfish")
    (tmp_path / "void.svs").write_bytes(b"")
    with pytest.raises(FormatError, match="an empty file"):
        ss.io.read(tmp_path / "void.svs", platform="wsi")


def test_options_of_another_reader(tmp_path: Path, make: ModuleType) -> None:
    path = make.write_image(tmp_path / "a.png", make.picture(64, 64))
    with pytest.raises(InputError, match=r"the reader wsi has no option pitch_um.*backend"):
        ss.io.read(path, mpp=0.5, pitch_um=100)


def test_the_frame_check_can_see_a_pyramid(tmp_path: Path, make: ModuleType) -> None:
    """Spots over a pyramidal TIFF in place of the JPEG."""
    truth = make.st(tmp_path / "S1")
    rgb = make.picture(int(38 * 200 / 6.25), int(36 * 200 / 6.25))
    with tifffile.TiffWriter(tmp_path / "S1" / "S1_HE.jpg") as tif:
        for k in (1, 2):
            tif.write(np.ascontiguousarray(rgb[::k, ::k]), tile=(256, 256), photometric="rgb", metadata=None)
    sdata = ss.io.read(tmp_path / "S1")
    assert sdata["counts_spots"].n_obs == len(truth.ids)
    assert len(sdata["he"].children) == 2
