"""Landmark files, and a slide whose image is laid anew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import spatialdata
from spatialdata.transformations import get_transformation

import stainseq as ss
from stainseq import image, store
from stainseq.cli import run
from stainseq.core import registration
from stainseq.errors import FormatError, InputError, MissingError, ScaleError

TURNED = np.array([[0.02, 0.48, 30.0], [-0.48, 0.02, 900.0], [0, 0, 1]])


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    sdata = ss.datasets.toy_slide(seed=1)
    ss.io.write(sdata, tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def landmarks(sdata: spatialdata.SpatialData, n: int = 8) -> np.ndarray:
    height, width = image.open_image(sdata).shape
    return np.random.default_rng(0).uniform(0, 1, (n, 2)) * [width, height]


def write(path: Path, xy: np.ndarray, header: str = "") -> Path:
    path.write_text(header + "".join(f"{x}\t{y}\n" for x, y in xy))
    return path


def test_landmark_files(tmp_path: Path) -> None:
    xy = np.array([[1.5, 2], [30, 4e2]])
    plain = ss.io.read_keypoints(write(tmp_path / "a.txt", xy))
    np.testing.assert_array_equal(plain.xy, xy)
    assert (plain.unit, plain.level, plain.names) == (None, 0, None)
    pyramid = ss.io.read_keypoints(write(tmp_path / "he#2_keypoints.tsv", xy))
    np.testing.assert_array_equal(pyramid.xy, 4 * xy)
    assert (pyramid.unit, pyramid.level) == ("px", 2)
    np.testing.assert_array_equal(ss.io.read_keypoints(tmp_path / "he#2_keypoints.tsv", level=0).xy, xy)
    um = tmp_path / "um.csv"
    um.write_text("id,x_um,y_um\nvessel,1.5,2\ncorner,30,400\n")
    named = ss.io.read_keypoints(um)
    assert (named.unit, named.names) == ("um", ("vessel", "corner"))
    np.testing.assert_array_equal(named.xy, xy)
    explorer = tmp_path / "keypoints.csv"
    explorer.write_text("fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n5,6,7,8\n")
    np.testing.assert_array_equal(ss.io.read_keypoints(explorer, side="fixed").xy, [[1, 2], [5, 6]])
    np.testing.assert_array_equal(ss.io.read_keypoints(explorer, side="alignment").xy, [[3, 4], [7, 8]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "without landmarks"),
        ("x,y\n", "without landmarks"),
        ("1 2\n3\n", "not two numbers"),
        ("1 2\n3 nan\n", "not two numbers"),
        ("row,col\n1,2\n", "columns row, col"),
    ],
)
def test_files_without_landmarks(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "k.csv"
    path.write_text(text)
    with pytest.raises(FormatError, match=said):
        ss.io.read_keypoints(path)


def test_landmark_files_that_contradict_themselves(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        ss.io.read_keypoints(tmp_path / "none.csv")
    um = tmp_path / "um.csv"
    um.write_text("x_um,y_um\n1,2\n")
    with pytest.raises(InputError, match="says um"):
        ss.io.read_keypoints(um, unit="px")
    with pytest.raises(InputError, match="level 2"):
        ss.io.read_keypoints(um, level=2)


def test_the_image_takes_its_new_place_and_keeps_every_pixel(slide: Path) -> None:
    sdata = ss.io.open(slide)
    pixels = image.open_image(sdata).read(0, 0, 50, 0, 50)
    old = store.fingerprint_of(sdata, "he")
    chunks = {p: p.stat().st_ino for p in (slide / "images" / "he").rglob("c/*/*/*")}
    xy = landmarks(sdata)
    result = ss.pp.align(sdata, he=xy, target=registration.apply(TURNED, xy), target_unit="um")
    assert result["kind"] == "similarity"
    assert result["left_out_um"]["max"] < 1e-6
    assert result["mpp"] == pytest.approx(np.sqrt(np.linalg.det(TURNED[:2, :2])))
    assert result["rotation_deg"] == pytest.approx(-87.614, abs=1e-3)
    again = spatialdata.read_zarr(slide)
    for opened in (sdata, again, ss.io.open(slide)):
        placed = get_transformation(opened["he"], "um").to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(placed, TURNED, atol=1e-9)
    assert {p: p.stat().st_ino for p in (slide / "images" / "he").rglob("c/*/*/*")} == chunks
    np.testing.assert_array_equal(image.open_image(ss.io.open(slide)).read(0, 0, 50, 0, 50), pixels)
    stamp = store.stamp_of(sdata, "he")
    assert stamp is not None
    assert (stamp["step"], stamp["history"][0]["step"]) == ("align", "write")
    assert stamp["content"] != old == stamp["values"]
    assert store.problems(slide) == []
    assert store.facts(sdata)["mpp"] == pytest.approx(result["mpp"], abs=1e-6)


def test_the_same_place_is_the_same_content(slide: Path) -> None:
    sdata = ss.io.open(slide)
    xy = landmarks(sdata)
    prints = []
    for matrix in (TURNED, np.diag([0.3, 0.3, 1]), TURNED):
        ss.pp.align(sdata, he=xy, target=registration.apply(matrix, xy), target_unit="um", kind="similarity")
        prints.append(store.fingerprint_of(sdata, "he"))
    assert prints[0] == prints[2] != prints[1]


def test_what_was_computed_from_the_old_place_is_told(slide: Path) -> None:
    sdata = ss.io.open(slide)
    ss.pp.features(sdata, encoder="colour")
    xy = landmarks(sdata)
    result = ss.pp.align(sdata, he=xy, target=0.4 * xy, target_unit="um")
    assert result["stale"] == ["features_colour_spots"]
    assert result["overlap"]["after"] is not None


def test_target_pixels_belong_to_an_image(slide: Path) -> None:
    sdata = ss.io.open(slide)
    xy = landmarks(sdata)
    with pytest.raises(ScaleError, match="unit"):
        ss.pp.align(sdata, he=xy, target=xy)
    with pytest.raises(MissingError, match="no image that the target"):
        ss.pp.align(sdata, he=xy, target=xy, target_unit="px")
    store.write_element(sdata, "dapi", sdata["he"], step="test", parameters={})
    mpp = image.open_image(sdata).mpp
    result = ss.pp.align(sdata, he=2 * xy, target=xy, target_unit="px")
    assert result["mpp"] == pytest.approx(mpp / 2)


def test_a_projective_place_keeps_its_nearest_affine(slide: Path) -> None:
    sdata = ss.io.open(slide)
    xy = landmarks(sdata, 12)
    matrix = np.array([[0.4, 0.01, 5], [-0.01, 0.4, 9], [4e-6, -3e-6, 1]])
    result = ss.pp.align(sdata, he=xy, target=registration.apply(matrix, xy), target_unit="um")
    assert result["kind"] == "projective"
    assert result["affine_off_um"] > 0
    stamp = store.stamp_of(sdata, "he")
    assert stamp is not None
    np.testing.assert_allclose(stamp["projective"], matrix, atol=1e-4)


def test_the_command(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xy = landmarks(ss.io.open(slide))
    he = write(tmp_path / "he#1_keypoints.txt", xy / 2)
    target = write(tmp_path / "target.tsv", registration.apply(TURNED, xy), "x_um\ty_um\n")
    figure, figures = tmp_path / "a.png", tmp_path / "a.json"
    command = ["align", str(slide), "--he", str(he), "--target", str(target)]
    assert run([*command, "--figure", str(figure), "--json", str(figures)]) == 0
    assert "similarity" in capsys.readouterr().out
    assert json.loads(figures.read_text())["n_used"] == 8
    assert figure.stat().st_size > 10_000
    write(tmp_path / "target.tsv", registration.apply(TURNED, xy)[:5], "x_um\ty_um\n")
    before = store.fingerprint_of(ss.io.open(slide), "he")
    assert run(command) == 1
    assert "8 landmarks on one side and 5" in capsys.readouterr().err
    assert store.fingerprint_of(ss.io.open(slide), "he") == before
