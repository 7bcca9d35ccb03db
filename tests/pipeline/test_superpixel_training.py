"""Superpixels through train and predict: out of fold by default, whatever is done to a superpixel's own counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import stainseq as ss
from stainseq import model, store


def _slide(path: Path) -> Any:
    """A generated slide whose bins of 8 um are superpixels."""
    ss.datasets.visium_hd(path.with_suffix(""), size="small", n_genes=6, seed=1)
    ss.io.convert(path.with_suffix(""), path)
    return ss.io.open(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    root = tmp_path_factory.mktemp("superpixels")
    return _slide(root / "hd.zarr"), root


def _train(slide: Any, out: Path, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"region": "bins_008um", "encoder": "colour", "head": "pixel2gene", "normalize": "raw"}
    settings |= {"split": "block", "block_um": 200.0, "n_folds": 2, "options": {"epochs": 4, "width": 16}}
    found: dict[str, Any] = ss.tl.train(slide, out=out, **(settings | options))
    return found


def test_a_superpixels_own_counts_do_not_change_its_prediction(made: tuple[Any, Path]) -> None:
    slide, root = made
    names = [str(g) for g in slide["counts_bins_008um"].var_names]
    _train(slide, root / "clean", genes=names)
    clean = model.load(root / "clean")
    training = clean.training
    fold = training["fold"].to_numpy()
    hit = training["id"].to_numpy()[np.flatnonzero(fold == 1)[:50]]
    poisoned = slide["counts_bins_008um"].copy()
    counts = poisoned.X.toarray()
    rows = poisoned.obs_names.get_indexer(hit)
    counts[rows] = 7 * counts[rows] + 100
    poisoned.X = sparse.csr_matrix(counts)
    store.write_element(slide, "poisoned", poisoned, step="test", parameters={})
    _train(slide, root / "dirty", genes=names, table_key="poisoned")
    maps = {}
    for name in ("clean", "dirty"):
        ss.tl.predict(root / name, slide, region="bins_008um", key_added=f"of_{name}", quality="none")
        maps[name] = slide[f"of_{name}"]
    # Out of fold without being asked.
    assert (maps["clean"].obs["fold"] >= 0).all()
    at = maps["clean"].obs_names.get_indexer(hit)
    np.testing.assert_array_equal(maps["clean"].X[at], maps["dirty"].X[at])
    others = np.setdiff1d(np.arange(maps["clean"].n_obs), at)
    assert (maps["clean"].X[others] != maps["dirty"].X[others]).mean() > 0.3


def test_folds_of_a_model_are_those_fitted_together(made: tuple[Any, Path]) -> None:
    """Folds share batches; each state still tells what its own fold held out, and the recipe of the paper has none."""
    slide, root = made
    scores = _train(slide, root / "chosen", n_genes=4)
    assert scores["n_genes"] == 4
    learned = model.load(root / "chosen")
    assert len(learned.folds) == 2
    assert len({f["bias_3"].tobytes() for f in (*learned.folds, learned.state)}) == 3
    _train(slide, root / "paper", n_genes=4, options={"recipe": "reference", "epochs": 1})
    assert "low" in model.load(root / "paper").state


def test_half_precision_features_stay_so(made: tuple[Any, Path]) -> None:
    from stainseq import trainset

    slide, _ = made
    features = ss.pp.features(slide, region="bins_008um", encoder="colour")
    table = next(t for t in features.tables if t.startswith("features_colour"))
    data = trainset.assemble([slide], region="bins_008um", encoder="colour", keep_empty=True)
    assert data.X.dtype == slide[table].X.dtype == np.float16
