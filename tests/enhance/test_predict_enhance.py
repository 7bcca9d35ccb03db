"""predict --mode enhance on a toy slide whose expected counts are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import stainseq as ss
from stainseq import store
from stainseq.cli import run
from stainseq.errors import MissingError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("enhance")
    for seed in range(3):
        ss.io.write(ss.datasets.toy_slide(seed=seed), root / f"s{seed}.zarr", facts={"slide": f"s{seed}"})
    ss.tl.train(
        [str(root / f"s{s}.zarr") for s in (0, 1)], out=root / "model", encoder="colour", n_genes=30, split="slide"
    )
    return root / "model", root / "s2.zarr"


def test_enhanced_is_nearer_to_the_expected_counts_than_either(trained: tuple[Path, Path]) -> None:
    model, path = trained
    slide = ss.io.open(path)
    ss.tl.predict(model, slide, mode="enhance")
    table, counts = slide["pred_ridge_spots"], slide["counts_spots"]
    genes = list(table.var_names)
    expected = np.asarray(counts[table.obs_names, genes].layers["rate"])
    whole = np.asarray(counts[table.obs_names].layers["rate"]).sum(axis=1, keepdims=True)
    truth = np.log1p(1e4 * expected / whole)
    library = np.asarray(counts[table.obs_names].X.sum(axis=1)).reshape(-1, 1)
    measured = np.log1p(1e4 * counts[table.obs_names, genes].X.toarray() / library)

    def error(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean((values - truth) ** 2)))

    assert error(table.X) < error(table.layers["predicted"])
    assert error(table.X) < error(measured)
    weight = table.layers["weight"]
    assert 0 < weight.min() <= weight.max() < 1


def test_scores_are_those_of_the_prediction_alone(trained: tuple[Path, Path]) -> None:
    model, path = trained
    slide = ss.io.open(path)
    ss.tl.predict(model, slide, key_added="plain")
    ss.tl.predict(model, slide, mode="enhance", key_added="enhanced")
    a, b = (ss.tl.evaluate(slide, prediction=k)["summary"]["pearson"] for k in ("plain", "enhanced"))
    assert a == pytest.approx(b, rel=1e-12)


def test_regions_that_were_not_measured_keep_the_prediction(trained: tuple[Path, Path]) -> None:
    model, path = trained
    slide = ss.io.open(path)
    some = slide["counts_spots"][::2].copy()
    store.write_element(slide, "half", some, step="test", parameters={})
    ss.tl.predict(model, slide, mode="enhance", truth="half", key_added="of_half")
    table = slide["of_half"]
    absent = ~table.obs_names.isin(some.obs_names)
    np.testing.assert_array_equal(table.X[absent], table.layers["predicted"][absent])
    np.testing.assert_array_equal(table.layers["weight"][absent], 0)
    assert (table.X[~absent] != table.layers["predicted"][~absent]).mean() > 0.9
    assert store.stamp_of(slide, "of_half")["enhanced"]["measured"] == some.n_obs


def test_the_command_and_its_refusal(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, path = trained
    assert run(["predict", str(model), str(path), "--mode", "enhance"]) == 0
    assert "measured, which count for" in capsys.readouterr().out
    with pytest.raises(MissingError, match="no table 'absent' to enhance"):
        ss.tl.predict(model, ss.io.open(path), mode="enhance", truth="absent")
