"""Predictions that are written block by block: the same as at once, complete or absent, lazily opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stainseq as ss
from stainseq import keys, model, registry, store
from stainseq.store import matrices
from stainseq.tl import _blocks


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "a.zarr"
    toy = ss.datasets.toy_slide(size="small", seed=3, slide="a", patient="p1")
    store.create(path, toy, step="convert", parameters={})
    return path


@pytest.fixture(scope="module")
def trained(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "m"
    ss.tl.train(slide, out=out, encoder="colour", head="ridge", n_genes=12, n_folds=2, block_um=300.0)
    return out


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 rows and 5 columns, and no matrix small enough for memory."""
    monkeypatch.setattr(matrices, "chunks_for", lambda n, g, itemsize=4: (min(7, n), min(5, g)))
    monkeypatch.setattr(matrices, "LAZY_ABOVE", 100)


@pytest.mark.parametrize("mode", ["infer", "enhance"])
def test_blocks_give_what_one_piece_gives(slide: Path, trained: Path, mode: Any, small_blocks: None) -> None:
    sdata = store.open(slide)
    ss.tl.predict(trained, sdata, mode=mode, key_added="blocks")
    table = sdata.tables["blocks"]
    assert hasattr(table.X, "dask")
    assert hasattr(store.open(slide).tables["blocks"].X, "dask")
    learned = model.load(trained)
    X = np.asarray(sdata.tables["features_colour_spots"].X)
    head, mean = registry.load("heads", "ridge"), np.zeros(table.shape, np.float32)
    assert len(np.unique(table.obs[keys.FOLD])) == 2
    for fold in (0, 1):
        rows = (table.obs[keys.FOLD] == fold).to_numpy()
        mean[rows] = head.predict(learned.folds[fold], X)[0][rows]
    shown = table.X if mode == "infer" else table.layers["predicted"]
    np.testing.assert_allclose(np.asarray(shown), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(table.obs["coverage"], 1.0)
    if mode == "enhance":
        weight = np.asarray(table.layers["weight"])
        assert 0 < weight.min() < weight.max() < 1
        stamp = store.stamp_of(sdata, "blocks") or {}
        assert stamp["enhanced"]["mean_weight"] == pytest.approx(float(weight.mean()), rel=1e-5)
        assert not np.allclose(np.asarray(table.X), mean)


def test_neighbours_across_blocks_count(slide: Path) -> None:
    sdata = store.open(slide)
    from stainseq import regions

    where = regions.get(sdata, "spots")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(len(where), 6)).astype(np.float32)
    Y = rng.normal(size=(len(where), 4)).astype(np.float32)
    slides = np.zeros(len(X), dtype=np.int64)
    head = registry.load("heads", "ridge")
    for options in ({"context_um": 150.0}, {"context_k": 4}, {"per_slide": True}):
        state = head.fit(X, Y, coordinates=where.centres_um, slides=slides, **options)
        expected, _ = head.predict(state, X, coordinates=where.centres_um, slides=slides)
        work = _blocks.Work("ridge", state, [state], X, np.arange(len(X)), options)
        out = {"X": np.zeros_like(Y)}
        of_fold = rng.integers(-1, 1, len(X))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matrices, "chunks_for", lambda n, g, itemsize=4: (9, g))
            _blocks.fill(out, [work], [("X", None)], of_fold=of_fold, coordinates=where.centres_um)
        np.testing.assert_allclose(out["X"], expected, rtol=1e-4, atol=1e-5)


def test_an_interrupted_prediction_leaves_the_slide_as_it_was(
    slide: Path, trained: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdata = store.open(slide)
    ss.tl.predict(trained, sdata, key_added="kept")
    before = store.fingerprint_of(sdata, "kept")
    files = sorted(p.name for p in slide.parent.iterdir())
    calls = []

    def stop(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    real = _blocks._block
    monkeypatch.setattr(_blocks, "_block", stop)
    for name in ("kept", "fresh"):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            ss.tl.predict(trained, sdata, key_added=name)
    again = store.open(slide)
    assert "fresh" not in again.tables
    assert store.fingerprint_of(again, "kept") == before
    assert sorted(p.name for p in slide.parent.iterdir()) == files
    assert store.problems(slide) == []


def test_coverage_is_the_share_inside_the_picture(tmp_path: Path) -> None:
    from stainseq import image, regions

    toy = ss.datasets.toy_slide(size="small", seed=1)
    store.create(tmp_path / "t.zarr", toy, step="convert", parameters={})
    sdata = store.open(tmp_path / "t.zarr")
    opened = image.open_image(sdata)
    height, width = (v * opened.mpp for v in opened.shape)
    # Bins of 80 um whose first column begins a quarter of a bin left of the picture, whose first row half above it.
    transform = np.array([[80.0, 0, -20.0], [0, 80.0, -40.0], [0, 0, 1.0]])
    rows, cols = (v.ravel() for v in np.mgrid[: int(height // 80), : int(width // 80)])
    regions.add_grid(
        sdata, "g", rows=rows, cols=cols, ids=None, shape=(rows.max() + 1, cols.max() + 1), transform=transform,
        step="grid", parameters={},
    )  # fmt: skip
    where = regions.get(sdata, "g")
    geometry: Any = where.geometry
    expected = np.where(geometry.cols == 0, 0.75, 1.0) * np.where(geometry.rows == 0, 0.5, 1.0)
    np.testing.assert_allclose(_blocks.coverage(sdata, where), expected)


def test_chunks_hold_whole_rows_in_bounded_memory() -> None:
    for n, g in ((660_000, 425), (660_000, 18_000), (50, 3), (1, 1), (10_000, 1)):
        rows, columns = matrices.chunks_for(n, g)
        assert 1 <= rows <= n
        assert 1 <= columns <= g
        assert rows * g * 4 <= 128 << 20
        assert sum(b.stop - b.start for b in matrices.row_blocks(n, g)) == n
        assert sum(b.stop - b.start for b in matrices.column_blocks(n, g)) == g
