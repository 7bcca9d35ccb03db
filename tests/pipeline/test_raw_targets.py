"""Models of raw counts: for superpixels and cells, where how many molecules there are is part of the question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import stainseq as ss
from stainseq import store
from stainseq.core import normalize
from stainseq.errors import InputError


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("raw")
    paths = []
    for seed in range(3):
        sdata = ss.io.write(ss.datasets.toy_slide(seed=seed), root / f"s{seed}.zarr", facts={"slide": f"s{seed}"})
        table = sdata["counts_spots"].copy()
        kept = (np.arange(table.n_obs) >= 5).astype(table.X.dtype)  # a region without any count is a measurement, too
        table.X = sparse.csr_matrix(table.X.multiply(kept[:, None]))
        store.write_element(sdata, "counts_spots", table, step="test", parameters={})
        paths.append(root / f"s{seed}.zarr")
    return paths


def test_the_unit_goes_from_training_to_scores(slides: list[Path], tmp_path: Path) -> None:
    options = {"encoder": "colour", "n_genes": 20, "split": "slide"}
    trained = ss.tl.train([str(p) for p in slides[:2]], out=tmp_path / "raw", normalize="raw", **options)
    scaled = ss.tl.train([str(p) for p in slides[:2]], out=tmp_path / "cp10k", **options)
    assert trained["n"] == scaled["n"] + 10  # the ten empty regions
    slide = ss.io.open(slides[2])
    ss.tl.predict(tmp_path / "raw", slide, key_added="of_raw")
    assert store.stamp_of(slide, "of_raw")["units"] == normalize.UNITS["raw"]
    scores = ss.tl.evaluate(slide, prediction="of_raw")
    counts = slide["counts_spots"]
    assert scores["n"] == counts.n_obs
    table = slide["of_raw"]
    truth = np.log1p(counts[table.obs_names, table.var_names].X.toarray())
    mean = np.mean([np.corrcoef(truth[:, i], table.X[:, i])[0, 1] for i in range(table.n_vars)])
    assert scores["summary"]["pearson"] == pytest.approx(mean, abs=1e-5)
    assert 0 < scores["ceiling"]["pearson"] <= 1


def test_enhancing_raw_predictions(slides: list[Path], tmp_path: Path) -> None:
    ss.tl.train([str(p) for p in slides[:2]], out=tmp_path / "raw", normalize="raw", encoder="colour", n_genes=20)
    slide = ss.io.open(slides[2])
    ss.tl.predict(tmp_path / "raw", slide, mode="enhance")
    table = slide["pred_ridge_spots"]
    rate = np.log1p(slide["counts_spots"][table.obs_names, table.var_names].layers["rate"])
    errors = [np.sqrt(np.mean((v - rate) ** 2)) for v in (table.X, table.layers["predicted"])]
    assert errors[0] < errors[1]


def test_count_losses_and_unknown_units(slides: list[Path], tmp_path: Path) -> None:
    made = ss.tl.train(
        [str(p) for p in slides[:2]], out=tmp_path / "nb", normalize="raw", encoder="colour", n_genes=10, head="mlp",
        options={"loss": "nb", "members": 2, "max_epochs": 20},
    )  # fmt: skip
    assert made["summary"]["pearson"] > 0
    with pytest.raises(InputError, match="no normalisation"):
        ss.tl.train([str(p) for p in slides], out=tmp_path / "x", normalize="tpm", encoder="colour", n_genes=5)  # type: ignore[arg-type]
