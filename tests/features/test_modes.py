"""How features are made is decided once: by the grid, by what is there, or by what a model learned from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stainseq as ss
from stainseq import featurise, regions, store
from stainseq._settings import settings
from stainseq.errors import FormatError, InputError, MissingError, ScaleError
from stainseq.heads import _ranks

OWN = 42  # numbers of the colour encoder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "cache_dir", tmp_path / "cache")


@pytest.fixture
def slide() -> Any:
    """A picture of 150 x 200 um with superpixels of 8 um and counts."""
    return make()


def make(seed: int = 0) -> Any:
    import cv2
    from scipy import sparse
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    rng = np.random.default_rng(seed)
    rgb = cv2.resize(rng.integers(40, 220, (15, 20, 3), dtype=np.uint8), (400, 300), interpolation=cv2.INTER_CUBIC)
    image = Image2DModel.parse(np.moveaxis(rgb, -1, 0), dims=("c", "y", "x"),
                               transformations={"um": Scale([0.5, 0.5], axes=("x", "y"))})  # fmt: skip
    sdata = SpatialData(images={"he": image})
    sdata.attrs["stainseq"] = {"slide": f"s{seed}", "patient": f"p{seed}"}
    ss.pp.superpixels(sdata, tissue_key="none")
    where = regions.get(sdata, "superpixels")
    genes = ["a", "b", "c", "d"]
    dark = 255.0 - rgb[4::16, 4::16].astype(float).mean(-1)
    rate = np.outer(dark[: where.geometry.shape[0], : where.geometry.shape[1]].ravel() / 20, [1, 2, 0.5, 1])
    counts = sparse.csr_matrix(rng.poisson(rate).astype(np.int32))
    store.write_element(sdata, "counts_superpixels", regions.table(where, counts, var_names=genes), step="aggregate",
                        parameters={})  # fmt: skip
    return sdata


def facts(sdata: Any, name: str = "features_colour_superpixels") -> dict[str, Any]:
    return (store.stamp_of(sdata, name) or {})["encoder"]


def train(slides: list[Any], out: Path, encoder: str) -> None:
    ss.tl.train(slides, out=out, region="superpixels", encoder=encoder, genes=["a"], head="ridge")


def test_fine_grids_are_dense_and_the_stamp_says_how(slide: Any) -> None:
    ss.pp.features(slide, encoder="colour", region="superpixels")
    made, said = slide.tables["features_colour_superpixels"], facts(slide)
    assert (said["mode"], said["scales_um"]) == ("dense", [8.0, 32.0, 112.0])
    assert made.shape == (19 * 25, 3 * OWN)
    assert made.obsm["coverage"].shape == (19 * 25, 3)
    ss.pp.features(slide, encoder="colour", region="superpixels", mode="windows")
    windows = facts(slide)
    assert (windows["mode"], windows["scales_um"]) == ("windows", [])
    assert slide.tables["features_colour_superpixels"].shape[1] == OWN
    ss.pp.features(slide, encoder="colour", region="superpixels", scales_um=(8, 24))
    assert facts(slide)["scales_um"] == [8.0, 24.0]
    assert len({said["fingerprint"], windows["fingerprint"], facts(slide)["fingerprint"]}) == 3


def test_features_that_are_there_are_taken_as_they_are_unless_like_says_otherwise(slide: Any) -> None:
    ss.pp.features(slide, encoder="colour", region="superpixels", mode="windows")
    table, stamp = featurise.ensure_features(slide, region="superpixels", encoder="colour")
    assert (table.n_vars, stamp["encoder"]["mode"]) == (OWN, "windows")
    like = {"mode": "dense", "scales_um": [8.0, 24.0]}
    table, stamp = featurise.ensure_features(slide, region="superpixels", encoder="colour", like=like)
    assert (table.n_vars, stamp["encoder"]["scales_um"]) == (2 * OWN, [8.0, 24.0])
    # Facts of models from before there was a mode are those of windows.
    table, _ = featurise.ensure_features(slide, region="superpixels", encoder="colour", like={"name": "colour"})
    assert table.n_vars == OWN


@pytest.mark.parametrize("mode", ["windows", "dense"])
def test_a_model_is_served_what_it_learned_from(slide: Any, tmp_path: Path, mode: str) -> None:
    ss.pp.features(slide, encoder="colour", region="superpixels", mode=mode)
    train([slide, make(1)], tmp_path / "m", "colour")
    other = make(2)
    ss.tl.predict(tmp_path / "m", other, region="superpixels")
    assert facts(other)["mode"] == mode
    assert other.tables["pred_ridge_superpixels"].shape == (19 * 25, 1)


def test_all_slides_are_encoded_in_the_way_of_the_first(slide: Any, tmp_path: Path) -> None:
    other = make(1)
    ss.pp.features(slide, encoder="colour", region="superpixels", mode="windows")
    train([slide, other], tmp_path / "m", "colour")
    assert facts(other)["mode"] == "windows"


def test_other_processes_take_what_the_first_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several that torchrun has started one encodes; the others opened the slides before it did."""
    paths = [tmp_path / f"s{i}.zarr" for i in (0, 1)]
    for i, path in enumerate(paths):
        store.create(path, make(i), step="convert", parameters={})

    @contextmanager
    def after_the_first(device: str | None = None) -> Iterator[None]:
        for path in paths:
            featurise.ensure_features(store.open(path), region="superpixels", encoder="colour")
        with monkeypatch.context() as patch:
            patch.setattr(featurise, "write_features", lambda *_, **__: pytest.fail("encoded twice"))
            yield

    monkeypatch.setattr(_ranks, "first_alone", after_the_first)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    train(paths, tmp_path / "M", "colour")
    assert not (tmp_path / "M").exists()


def test_squares_of_both_sides_of_a_fold_share_no_pixel() -> None:
    from scipy.spatial import cKDTree

    from stainseq.tl._train import make_folds
    from stainseq.trainset import Foreseen

    xy = np.stack(np.meshgrid(np.arange(0, 4000, 50.0), np.arange(0, 4000, 50.0)), -1).reshape(-1, 2)
    same = np.zeros(len(xy), int)
    for about, reach in (
        ({"fields_um": [112.0]}, 112),
        ({"fields_um": [112.0], "scales_um": [8.0, 400.0]}, 400),
        ({"mode": "map", "scales_um": [250.0]}, 250),
    ):
        data = Foreseen(xy, same, same, [{"patient_known": True}], about)
        _, folds = make_folds(data, "block", n_folds=2, block_um=2000.0, seed=0)
        for fold in folds:
            assert cKDTree(xy[fold.test]).query(xy[fold.train])[0].min() >= reach


def test_wrong_modes_are_refused(slide: Any) -> None:
    for options in ({"mode": "sparse"}, {"mode": "windows", "scales_um": (8, 32)}, {"scales_um": (32, 8)}):
        with pytest.raises(InputError):
            ss.pp.features(slide, encoder="colour", region="superpixels", **options)


def write_map(path: Path, values: np.ndarray) -> Path:
    import pickle

    import zarr

    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".zarr":
        zarr.save_array(path, values)
    else:
        planes = list(np.moveaxis(values, -1, 0))
        path.write_bytes(pickle.dumps({"cls": planes[:2], "sub": planes[2:4], "rgb": planes[4:]}))
    return path


@pytest.mark.parametrize("ending", ["npy", "zarr", "pickle"])
def test_a_map_with_a_token_a_bin_is_its_own_features(slide: Any, tmp_path: Path, ending: str) -> None:
    values = np.random.default_rng(0).normal(size=(19, 25, 6)).astype(np.float32)
    values[3, 4, 2] = np.nan
    file = write_map(tmp_path / f"map.{ending}", values)
    ss.pp.features_from_map(slide, file, region="superpixels", key_added="mine")
    made = slide.tables["mine"]
    whole = np.arange(19 * 25) != 3 * 25 + 4
    assert np.allclose(np.asarray(made.X)[whole], values.reshape(-1, 6)[whole], atol=1e-6)
    assert np.isfinite(made.X).all()
    # The last row and column of superpixels reach over the picture's edge.
    coverage = made.obsm["coverage"].reshape(19, 25)
    assert coverage[3, 4] == 0
    assert coverage[:18][coverage[:18] > 0] == pytest.approx(1)
    table, stamp = featurise.ensure_features(slide, region="superpixels", encoder="mine")
    assert (table.n_vars, stamp["encoder"]["mode"], stamp["encoder"]["name"]) == (6, "map", "mine")


def test_a_map_trains_and_predicts_by_its_name(slide: Any, tmp_path: Path) -> None:
    file = write_map(tmp_path / "map.npy", np.random.default_rng(0).normal(size=(19, 25, 4)).astype(np.float16))
    slides = [slide, make(1)]
    for one in slides:
        ss.pp.features_from_map(one, file, region="superpixels", key_added="mine")
    train(slides, tmp_path / "m", "mine")
    ss.tl.predict(tmp_path / "m", slide, region="superpixels")
    assert slide.tables["pred_ridge_superpixels"].n_vars == 1
    with pytest.raises(MissingError, match="come from a map"):
        ss.tl.predict(tmp_path / "m", make(2), region="superpixels")


def test_maps_are_placed_by_what_is_said_or_by_the_picture(slide: Any, tmp_path: Path) -> None:
    fine = np.arange(38 * 50, dtype=np.float32).reshape(38, 50, 1)
    file = write_map(tmp_path / "map.npy", fine)
    ss.pp.features_from_map(slide, file, region="superpixels", key_added="mine", mpp=4.0)
    mean = fine.reshape(19, 2, 25, 2).mean((1, 3)).ravel()
    inner = slide.tables["mine"].obsm["coverage"][:, 0] > 0.99
    assert inner.sum() == 18 * 25
    assert np.allclose(np.asarray(slide.tables["mine"].X).ravel()[inner], mean[inner], rtol=1e-5)
    over = write_map(tmp_path / "over.npy", np.broadcast_to(np.arange(4, dtype=np.float32)[None, :, None], (3, 4, 1)))
    ss.pp.features_from_map(slide, over, region="superpixels", key_added="over")
    assert np.asarray(slide.tables["over"].X).ravel()[[0, 24]].tolist() == [0.0, 3.0]
    with pytest.raises(ScaleError, match="--map-mpp"):
        ss.pp.features_from_map(slide, write_map(tmp_path / "odd.npy", np.zeros((9, 4, 1))), region="superpixels",
                                key_added="odd")  # fmt: skip


def test_bad_maps_are_told(slide: Any, tmp_path: Path) -> None:
    import io
    import pickle

    def put(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    class Evil:
        def __reduce__(self) -> Any:
            return print, ("it ran",)

    archive = io.BytesIO()
    np.savez(archive, a=np.zeros((5, 5, 2)))
    options: dict[str, Any] = {"region": "superpixels", "key_added": "bad"}
    for file, error in (
        (tmp_path / "none.npy", MissingError),
        (put("torn.npy", b"\x93NUMPY\x01"), FormatError),
        (put("map.csv", b"1,2"), FormatError),
        (put("evil.pickle", pickle.dumps({"cls": Evil()})), FormatError),
        (put("other.pickle", pickle.dumps({"other": [np.zeros((2, 2))]})), FormatError),
        (put("ragged.pickle", pickle.dumps({"cls": [np.zeros((2, 2)), np.zeros((3, 2))]})), FormatError),
        (put("number.pickle", pickle.dumps({"cls": 3})), FormatError),
        (put("archive.npy", archive.getvalue()), FormatError),
        (write_map(tmp_path / "flat.npy", np.zeros((5, 5))), InputError),
    ):
        with pytest.raises(error):
            ss.pp.features_from_map(slide, file, **options)
    assert "bad" not in slide.tables


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from stainseq.cli._run import run

    made = make()
    path = tmp_path / "s.zarr"
    store.create(path, made, step="convert", parameters={})
    assert run(["features", str(path), "--region", "superpixels", "--encoder", "colour", "--scales-um", "8", "24"]) == 0
    assert "dense at 8, 24 um" in capsys.readouterr().out
    file = write_map(tmp_path / "map.npy", np.zeros((38, 50, 3), np.float32))
    common = ["features", str(path), "--region", "superpixels", "--map", str(file), "--map-mpp", "4"]
    assert run([*common, "--key", "mine"]) == 0
    assert "475 regions x 3 dimensions" in capsys.readouterr().out
    assert run(common) == 1
    assert "--key NAME" in capsys.readouterr().err
    opened = store.open(path)
    assert opened.tables["features_colour_superpixels"].shape == (475, 2 * OWN)
    assert opened.tables["features_colour_superpixels"].X.dtype == np.float16
