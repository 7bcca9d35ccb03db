"""Landmark files, and a slide whose image is laid anew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import spatialdata
import tifffile
from spatialdata.transformations import get_transformation

import stainseq as ss
from stainseq import image, store
from stainseq.cli import run
from stainseq.core import registration
from stainseq.errors import FormatError, InputError, MissingError, ScaleError

TURNED = np.array([[0.03, 0.72, 30.0], [-0.72, 0.03, 900.0], [0, 0, 1]])


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
    result = ss.pp.align(sdata, he=xy, target=0.7 * xy, target_unit="um")
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
    result = ss.pp.align(sdata, he=xy, target=0.9 * xy, target_unit="px")
    assert result["mpp"] == pytest.approx(0.9 * mpp)


def test_a_projective_place_keeps_its_nearest_affine(slide: Path) -> None:
    sdata = ss.io.open(slide)
    xy = landmarks(sdata, 12)
    matrix = np.array([[0.8, 0.01, 5], [-0.01, 0.8, 9], [4e-6, -3e-6, 1]])
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


def test_files_that_list_both_sides(tmp_path: Path) -> None:
    """Xenium Explorer's keypoints and STalign's landmarks: the side in pixels is laid onto the one in um."""
    path = tmp_path / "k.csv"
    header = "merfish_x_um,merfish_y_um,visium_hires_x_px,visium_hires_y_px\n"
    path.write_text(header + "1,2,3,4\n5,6,7,8\n")
    he, goal = (ss.io.read_keypoints(path, side=side) for side in ("alignment", "fixed"))
    assert (he.unit, goal.unit) == ("px", "um")
    np.testing.assert_array_equal(he.xy, [[3, 4], [7, 8]])
    np.testing.assert_array_equal(goal.xy, [[1, 2], [5, 6]])
    assert he.two_sided
    path.write_text("rep1_x_um,rep1_y_um,rep2_x_um,rep2_y_um\n1,2,3,4\n")
    np.testing.assert_array_equal(ss.io.read_keypoints(path, side="alignment").xy, [[1, 2]])
    np.testing.assert_array_equal(ss.io.read_keypoints(path, side="fixed").xy, [[3, 4]])
    with pytest.raises(InputError, match="no side named"):
        ss.io.read_keypoints(path, side="left")
    path.write_text("a_x,a_y,b_x,b_y,c_x,c_y\n1,2,3,4,5,6\n")
    with pytest.raises(FormatError, match="where x and y are needed"):
        ss.io.read_keypoints(path)


def test_one_file_for_both_sides(slide: Path, tmp_path: Path) -> None:
    sdata = ss.io.open(slide)
    xy = landmarks(sdata)
    rows = np.column_stack([registration.apply(TURNED, xy), xy])
    path = tmp_path / "both.csv"
    np.savetxt(path, rows, delimiter=",", header="array_x_um,array_y_um,he_x_px,he_y_px", comments="")
    assert ss.pp.align(sdata, he=path)["left_out_um"]["max"] < 1e-6
    with pytest.raises(MissingError, match="no landmarks of the target"):
        ss.pp.align(sdata, he=write(tmp_path / "he.txt", xy))


@pytest.fixture
def picture(slide: Path, tmp_path: Path) -> Path:
    """The slide's picture as a file of its own, its pixel size in the metadata."""
    pixels = np.asarray(next(iter(ss.io.open(slide)["he"]["scale0"].values())).data).transpose(1, 2, 0)
    path = tmp_path / "later.ome.tif"
    about = {"axes": "YXS", "PhysicalSizeX": 0.8, "PhysicalSizeY": 0.8}
    about |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), metadata=about)
    return path


def test_an_image_is_added_later(slide: Path, picture: Path, tmp_path: Path, capsys) -> None:
    sdata = ss.io.open(slide)
    xy = landmarks(sdata)
    he, target = (
        write(tmp_path / "he.txt", xy),
        write(tmp_path / "t.txt", registration.apply(TURNED, xy), "x_um y_um\n"),
    )
    with pytest.raises(InputError, match="there is an image 'he' already"):
        ss.pp.align(sdata, he=he, target=target, image=picture)
    store.delete_element(sdata, "he")
    with pytest.raises(MissingError, match=r"no image 'he'.*--image FILE"):
        ss.pp.align(sdata, he=he, target=target)
    assert run(["align", str(slide), "--he", str(he), "--target", str(target), "--image", str(picture)]) == 0
    assert "Dice" in capsys.readouterr().out
    again = ss.io.open(slide)
    opened = image.open_image(again)
    np.testing.assert_allclose(opened.to_um, TURNED, atol=1e-9)
    np.testing.assert_array_equal(opened.read(0, 0, 60, 0, 60), tifffile.imread(picture)[:60, :60])
    stamp = store.stamp_of(again, "he")
    assert stamp["step"] == "align"
    assert {"landmarks", "image: later.ome.tif"} == set(stamp["inputs"])
    assert store.facts(again)["mpp"] == pytest.approx(opened.mpp, abs=1e-6)
    ss.pp.align(again, he=he, target=target, image=picture, image_key="he_second")
    assert image.open_image(ss.io.open(slide), "he_second").shape == opened.shape
    with pytest.raises(FormatError, match="no such image"):
        ss.pp.align(again, he=he, target=target, image=tmp_path / "none.tif", image_key="third")
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(FormatError, match="later"):
        ss.pp.align(again, he=he, target=target, image=picture, image_key="third")
    assert "third" not in ss.io.open(slide).images
    assert store.problems(slide) == []


def test_landmarks_that_are_exchanged_or_of_another_level(slide: Path, tmp_path: Path) -> None:
    sdata = ss.io.open(slide)
    xy = landmarks(sdata)
    goal = registration.apply(np.diag([0.8, 0.8, 1.0]) @ np.array([[1, 0, 3000], [0, 1, 2000], [0, 0, 1.0]]), xy)
    before = store.fingerprint_of(sdata, "he")
    with pytest.raises(InputError, match=r"lie outside its .* px.*--he-level.*exchanged"):
        ss.pp.align(sdata, he=goal, target=xy, target_unit="um")
    um = write(tmp_path / "um.csv", goal, "x_um,y_um\n".replace(",", "\t"))
    with pytest.raises(InputError, match=r"are in um.*exchanged"):
        ss.pp.align(sdata, he=um, target=xy, target_unit="um")
    with pytest.raises(InputError, match="lie outside"):
        ss.pp.align(sdata, he=xy, target=goal, target_unit="um", he_level=2)
    with pytest.raises(ScaleError, match=r"8 times what the image.*--he-level 3 would fit"):
        ss.pp.align(sdata, he=xy / 8, target=goal, target_unit="um")
    with pytest.raises(ScaleError, match=r"0\.3 times what.*check units and levels"):
        ss.pp.align(sdata, he=xy, target=0.3 * goal, target_unit="um")
    assert store.fingerprint_of(sdata, "he") == before
    assert ss.pp.align(sdata, he=xy, target=0.3 * goal, target_unit="um", any_scale=True)["mpp"] == pytest.approx(0.24)
    # What landmarks made of it is no metadata: a second registration is not measured against the first.
    assert ss.pp.align(sdata, he=xy, target=goal, target_unit="um")["mpp"] == pytest.approx(0.8)
    store.write_element(sdata, "dapi", sdata["he"], step="test", parameters={})
    with pytest.raises(InputError, match=r"target 'dapi' lie outside.*--target-level"):
        ss.pp.align(sdata, he=xy, target=xy, target_unit="px", target_level=2)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_landmarks_than_needed(slide: Path, n: int) -> None:
    sdata = ss.io.open(slide)
    xy = landmarks(sdata)[:n]
    with pytest.raises(InputError, match=r"needs"):
        ss.pp.align(sdata, he=xy, target=0.5 * xy, target_unit="um", kind="affine")


def test_bins_of_a_grid_count_as_measured(tmp_path: Path) -> None:
    """Dice of a Visium HD slide whose picture is laid wrongly, and then rightly."""
    ss.datasets.visium_hd(tmp_path / "run", n_genes=2)
    slide = ss.io.convert(tmp_path / "run", tmp_path / "s.zarr", bins_um=[8])
    to_um = image.open_image(slide).to_um
    xy = landmarks(slide)
    wrong = registration.apply(to_um, xy) + np.array([150.0, 0.0])
    first = ss.pp.align(slide, he=xy, target=wrong, target_unit="um")["overlap"]
    second = ss.pp.align(slide, he=xy, target=registration.apply(to_um, xy), target_unit="um")["overlap"]
    assert first["before"] == pytest.approx(second["after"])
    assert first["after"] < second["after"] - 0.1
    assert second["before"] == pytest.approx(first["after"])
