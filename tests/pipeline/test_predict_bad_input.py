"""What a prediction cannot be made from is refused in one line; what a kill interrupts leaves nothing half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import stainseq as ss
from stainseq import keys, regions, store
from stainseq.cli import run
from stainseq.errors import InputError, MissingError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of superpixels, and the slide that it learned from."""
    folder = tmp_path_factory.mktemp("made")
    sdata = store.create(folder / "s.zarr", ss.datasets.toy_slide(size="small", seed=5), step="convert", parameters={})
    ss.pp.superpixels(sdata, tissue_key="none", pitch_um=24.0)
    where = regions.get(sdata, "superpixels")
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.0, (len(where), 6)).astype(np.int32))
    table = regions.table(where, counts, var_names=[f"g{i}" for i in range(6)])
    store.write_element(sdata, "counts_superpixels", table, step="aggregate", parameters={})
    ss.tl.train(
        sdata, out=folder / "m", region="superpixels", encoder="colour", normalize="raw", n_folds=2, block_um=240.0
    )
    return folder / "m", folder / "s.zarr"


def picture_alone(path: Path, source: Path, *, image: str = "he", mpp_times: float = 1.0) -> Any:
    """A slide with the H&E of another and nothing else, under any name and in any pixel size."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    from stainseq import image as images

    opened = images.open_image(store.open(source))
    block = opened.read(0, 0, opened.shape[0], 0, opened.shape[1])
    scale = Scale([opened.mpp * mpp_times] * 2, axes=("x", "y"))
    element = Image2DModel.parse(
        np.moveaxis(block, -1, 0), dims=("c", "y", "x"), transformations={"um": scale, "global": scale}
    )
    return store.create(path, SpatialData(images={image: element}), step="convert", parameters={})


def refused(command: list[str], capsys: Any, *words: str) -> None:
    assert run(command) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    said = " ".join(lines)
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in said


def test_a_slide_with_a_picture_alone_gets_superpixels(made: tuple[Path, Path], tmp_path: Path) -> None:
    model, source = made
    sdata = picture_alone(tmp_path / "x.zarr", source)
    with pytest.raises(MissingError, match="superpixels"):
        ss.tl.predict(model, sdata)
    assert run(["predict", str(model), str(tmp_path / "x.zarr")]) == 0
    table = store.open(tmp_path / "x.zarr").tables["pred_ridge_superpixels"]
    assert np.isfinite(table.X).all()
    np.testing.assert_allclose(np.min(np.diff(np.unique(np.round(table.obsm["spatial"][:, 0], 3)))), 8.0, atol=0.01)
    assert (table.obs[keys.FOLD] == -1).all()


def test_another_pixel_size_is_another_grid_of_the_same_side(made: tuple[Path, Path], tmp_path: Path) -> None:
    model, source = made
    sdata = picture_alone(tmp_path / "x.zarr", source, mpp_times=1.7)
    ss.pp.superpixels(sdata, tissue_key="none", pitch_um=24.0)
    ss.tl.predict(model, sdata)
    table = sdata.tables["pred_ridge_superpixels"]
    x = np.unique(np.round(table.obsm["spatial"][:, 0], 3))
    np.testing.assert_allclose(np.diff(x), 24.0, atol=0.01)
    assert (table.obs[keys.FOLD] == -1).all()


def test_no_picture_no_regions_no_genes(made: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    model, source = made
    sdata = picture_alone(tmp_path / "x.zarr", source, image="dapi")
    with pytest.raises(MissingError, match=r"no H&E.*images there: dapi"):
        ss.tl.predict(model, sdata, region="superpixels")
    path = str(tmp_path / "x.zarr")
    refused(["predict", str(model), path], capsys, "no H&E", "--image-key", "dapi")
    refused(["predict", str(model), str(source), "--region", "tiles"], capsys, "tiles", "superpixels")
    refused(["predict", str(model), str(source), "--quality", "q"], capsys, "no table 'q' of quality")
    other = store.open(source)
    counts = other.tables["counts_superpixels"].copy()
    counts.var_names = [f"ENSG{i:011d}" for i in range(counts.n_vars)]
    store.write_element(other, "counts_ensembl", counts, step="aggregate", parameters={})
    command = ["predict", str(model), str(source), "--mode", "enhance", "--truth"]
    refused([*command, "counts_ensembl"], capsys, "none of the model's", "name genes alike")
    refused([*command, "counts_none"], capsys, "no table 'counts_none' to enhance")


def test_features_of_another_encoder_are_refused(made: tuple[Path, Path]) -> None:
    model, source = made
    sdata = store.open(source)
    name = keys.features("colour", "superpixels")
    ss.tl.predict(model, sdata, key_added="first")
    stamp = store.stamp_of(sdata, name) or {}
    table = sdata.tables[name].copy()
    encoder = {**stamp["encoder"], "fingerprint": "f" * 32}
    more = {**{k: v for k, v in stamp.items() if k in ("cache_key",)}, "encoder": encoder}
    store.write_element(
        sdata, name, table, step="features", parameters=stamp["parameters"], inputs=stamp["inputs"], more=more
    )
    with pytest.raises(InputError, match="the model learned from encoder"):
        ss.tl.predict(model, sdata, key_added="second")
    assert "second" not in sdata.tables


KILLED = """
import os, signal, sys
import stainseq as ss
from stainseq.store import matrices
from stainseq.tl import _blocks
matrices.chunks_for = lambda n, g, itemsize=4: (min(50, n), g)
calls, real = [], _blocks._put
def put(*args):
    calls.append(1)
    real(*args)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
_blocks._put = put
ss.tl.predict(sys.argv[1], ss.io.open(sys.argv[2]), key_added="killed", quality="none")
"""


def test_a_killed_prediction_leaves_nothing_and_runs_again(made: tuple[Path, Path], tmp_path: Path) -> None:
    model, source = made
    sdata = picture_alone(tmp_path / "x.zarr", source)
    ss.pp.superpixels(sdata, tissue_key="none", pitch_um=24.0)
    env = {**os.environ, "STAINSEQ_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", KILLED, str(model), str(tmp_path / "x.zarr")], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    again = store.open(tmp_path / "x.zarr")
    assert "killed" not in again.tables
    assert not list(tmp_path.glob(".x.zarr-*"))
    assert store.problems(tmp_path / "x.zarr") == []
    features = store.stamp_of(again, "features_colour_superpixels") or {}
    ss.tl.predict(model, again, key_added="killed")
    assert np.isfinite(again.tables["killed"].X).all()
    # What was finished before the kill is taken, not made again.
    assert (store.stamp_of(again, "features_colour_superpixels") or {})["created"] == features["created"]
