"""Train, predict and evaluate on toy slides whose law is known."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stainseq as ss
from stainseq import keys, model, store
from stainseq.errors import FormatError, InputError, MissingError, StoreError

ENCODER = "colour"
"""Fast, and the toy law is mostly colour."""


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("slides")
    paths = {}
    for i, (name, patient) in enumerate([("a", "p1"), ("b", "p1"), ("c", "p2"), ("d", "p3")]):
        toy = ss.datasets.toy_slide(size="small", seed=i, slide=name, patient=patient)
        store.create(folder / f"{name}.zarr", toy, step="convert", parameters={})
        paths[name] = folder / f"{name}.zarr"
    return paths


@pytest.fixture(scope="module")
def trained(slides: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("model") / "m"
    metrics = ss.tl.train([slides[s] for s in "abc"], out=out, encoder=ENCODER, head="ridge", n_genes=30)
    return out, metrics


def learnable(sdata: Any) -> list[str]:
    var = sdata.tables["counts_spots"].var
    return list(var.index[var["kind"] == "morphology"])


def test_cross_validation_holds_out_patients(trained: tuple[Path, dict[str, Any]]) -> None:
    path, metrics = trained
    assert metrics["split"] == "patient"
    assert metrics["n_folds"] == 2
    assert metrics == json.loads((path / "metrics.json").read_text())
    training = model.load(path).training
    by_slide = training.groupby("slide")["fold"].unique()
    assert [len(f) for f in by_slide] == [1, 1, 1]
    assert by_slide[0][0] == by_slide[1][0] != by_slide[2][0]
    assert set(metrics["baseline"]) == {"gene_mean", "colour"}
    assert 0 < metrics["ceiling"]["pearson"] <= 1


def test_predicts_an_unseen_patient_where_there_is_something_to_learn(
    trained: tuple[Path, dict[str, Any]], slides: dict[str, Path]
) -> None:
    sdata = store.open(slides["d"])
    ss.tl.predict(trained[0], sdata)
    table = sdata.tables["pred_ridge_spots"]
    counts = sdata.tables["counts_spots"]
    assert list(table.obs_names) == list(counts.obs_names)
    np.testing.assert_allclose(table.obsm["spatial"], counts.obsm["spatial"])
    assert (table.obs[keys.FOLD] == -1).all()
    assert (table.layers["spread"] > 0).all()
    made = store.stamp_of(sdata, "pred_ridge_spots")["model"]
    assert (made["name"], made["head"], made["encoder"]) == ("m", "ridge", ENCODER)
    assert (made["slides"], made["patients"], made["tissues"]) == (["a", "b", "c"], ["p1", "p2"], ["toy"])
    scores = made["cross_validation"]
    assert {k: scores[k] for k in ("summary", "baseline", "ceiling")} == {
        k: trained[1][k] for k in ("summary", "baseline", "ceiling")
    }
    result = ss.tl.evaluate(sdata, prediction="pred_ridge_spots")
    score = {g["gene"]: g["pearson"] for g in result["genes"]}
    good = [score[g] for g in learnable(sdata) if g in score]
    assert len(good) >= 3
    assert np.mean(good) > 0.5
    assert result["summary"]["pearson"] > result["baseline"]["gene_mean"]["pearson"]
    assert result["out_of_fold"] == 0
    reopened = store.open(slides["d"])
    np.testing.assert_array_equal(reopened.tables["pred_ridge_spots"].X, table.X)


def test_regions_seen_in_training_get_out_of_fold_predictions(
    trained: tuple[Path, dict[str, Any]], slides: dict[str, Path]
) -> None:
    from stainseq import registry

    sdata = store.open(slides["a"])
    ss.tl.predict(trained[0], sdata, key_added="pred_check")
    table = sdata.tables["pred_check"]
    learned = model.load(trained[0])
    fold = int(learned.training.loc[learned.training["slide"] == 0, "fold"].iloc[0])
    assert (table.obs[keys.FOLD] == fold).all()
    X = np.asarray(sdata.tables["features_colour_spots"].X)
    mean, _ = registry.load("heads", "ridge").predict(
        learned.folds[fold], X, coordinates=table.obsm["spatial"], slides=np.zeros(len(X), int)
    )
    np.testing.assert_allclose(table.X, mean, rtol=1e-5, atol=1e-6)
    assert ss.tl.evaluate(sdata, prediction="pred_check")["out_of_fold"] == len(X)


def test_grid_on_a_training_slide_is_out_of_fold_too(
    trained: tuple[Path, dict[str, Any]], slides: dict[str, Path]
) -> None:
    sdata = store.open(slides["c"])
    ss.pp.tissue(sdata)
    ss.pp.grid(sdata, spacing_um=80.0)
    ss.tl.predict(trained[0], sdata, region="grid")
    table = sdata.tables["pred_ridge_grid"]
    assert (table.obs[keys.FOLD] >= 0).all()
    assert np.isfinite(table.X).all()


@pytest.mark.parametrize("head", ["ridge", "knn", "mlp"])
def test_poisoned_held_out_counts_change_no_prediction(head: str, slides: dict[str, Path], tmp_path: Path) -> None:
    """The counts of patient p2 are replaced by noise: what the fold that holds p2 out predicts may not move."""

    def fold_prediction(poison: bool) -> tuple[list[str], np.ndarray, np.ndarray]:
        opened = [store.open(slides[s]) for s in "abc"]
        if poison:
            table = opened[2].tables["counts_spots"].copy()
            rng = np.random.default_rng(0)
            table.X = type(table.X)(rng.poisson(50, table.shape).astype(np.int32))
            opened[2].tables["counts_spots"] = table
        seen: dict[str, Any] = {}
        module: Any = importlib.import_module("stainseq.tl._train")

        class Spy(module.HeldOut):
            def add(self, number: int, rows: Any, genes: Any, truth: Any, mean: Any, *baselines: Any) -> None:
                if (self.data.slide[rows] == 2).any():
                    seen["genes"], seen["mean"] = [self.data.genes[g] for g in genes], mean
                    seen["baselines"], seen["truth"] = baselines, truth
                super().add(number, rows, genes, truth, mean, *baselines)

        original, module.HeldOut = module.HeldOut, Spy
        try:
            ss.tl.train(
                opened, out=tmp_path / f"{head}-{poison}", encoder=ENCODER, head=head, n_genes=12,
                options={"members": 1, "max_epochs": 5, "context_um": 150.0} if head == "mlp" else None,
            )  # fmt: skip
        finally:
            module.HeldOut = original
        return seen["genes"], np.column_stack([seen["mean"], seen["baselines"][1]]), seen["truth"]

    clean, poisoned = fold_prediction(False), fold_prediction(True)
    assert not np.allclose(clean[2], poisoned[2])
    assert clean[0] == poisoned[0]
    np.testing.assert_array_equal(clean[1], poisoned[1])


def test_one_slide_is_split_by_blocks_with_a_buffer(tmp_path: Path) -> None:
    toy = ss.datasets.toy_slide(size="medium", seed=3, slide="m", patient="p")
    metrics = ss.tl.train(toy, out=tmp_path / "m", encoder=ENCODER, n_genes=20, block_um=400.0, n_folds=3)
    assert metrics["split"] == "block"
    assert metrics["n_folds"] == 3
    notes = model.load(tmp_path / "m").config["notes"]
    assert any("nothing about new patients" in n for n in notes)


def test_slides_without_patient_are_never_split_as_patients(tmp_path: Path) -> None:
    toys = [ss.datasets.toy_slide(size="small", seed=i, slide=f"s{i}", patient="x") for i in range(2)]
    for toy in toys:
        toy.attrs["stainseq"] = {k: v for k, v in store.facts(toy).items() if k != "patient"}
    metrics = ss.tl.train(toys, out=tmp_path / "m", encoder=ENCODER, n_genes=10)
    assert metrics["split"] == "slide"


def test_model_refuses_features_of_another_encoder(
    trained: tuple[Path, dict[str, Any]], slides: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(slides["d"], tmp_path / "d.zarr")
    sdata = store.open(tmp_path / "d.zarr")
    ss.pp.features(sdata, encoder=ENCODER)
    stamp = store.stamp_of(sdata, "features_colour_spots")
    assert stamp is not None
    more = {"encoder": {**stamp["encoder"], "fingerprint": "0" * 32}}
    store.write_element(
        sdata, "features_colour_spots", sdata.tables["features_colour_spots"], step="features",
        parameters=stamp["parameters"], inputs=stamp["inputs"], more=more,
    )  # fmt: skip
    with pytest.raises(InputError, match="learned from encoder 'colour'"):
        ss.tl.predict(trained[0], sdata)


def test_gene_file_and_its_faults(slides: dict[str, Path], tmp_path: Path) -> None:
    names = list(store.open(slides["a"]).tables["counts_spots"].var_names[:5])
    (tmp_path / "genes.txt").write_text("\n".join(names) + "\n")
    train = [slides["a"], slides["c"]]
    metrics = ss.tl.train(train, out=tmp_path / "m", encoder=ENCODER, genes=tmp_path / "genes.txt")
    assert {g["gene"] for g in metrics["genes"]} == set(names)
    assert model.load(tmp_path / "m").genes == names
    with pytest.raises(MissingError, match="NOSUCH"):
        ss.tl.train(train, out=tmp_path / "n", encoder=ENCODER, genes=["NOSUCH"])
    (tmp_path / "twice.txt").write_text(f"{names[0]}\n{names[0]}\n")
    with pytest.raises(InputError, match=rf"1 gene names occur more than once \({names[0]}\)"):
        ss.tl.train(train, out=tmp_path / "n", encoder=ENCODER, genes=tmp_path / "twice.txt")
    with pytest.raises(InputError, match="occur more than once"):
        ss.tl.train(train, out=tmp_path / "n", encoder=ENCODER, genes=[names[0], names[0]])
    with pytest.raises(InputError, match="without a gene"):
        ss.tl.train(train, out=tmp_path / "n", encoder=ENCODER, genes=[])
    with pytest.raises(InputError, match="split='random'"):
        ss.tl.train(train, out=tmp_path / "n", encoder=ENCODER, split="random")
    assert not (tmp_path / "n").exists()


def test_existing_output_is_kept(trained: tuple[Path, dict[str, Any]], slides: dict[str, Path]) -> None:
    before = {p.name: p.read_bytes() for p in trained[0].iterdir()}
    with pytest.raises(StoreError, match="something already"):
        ss.tl.train([slides["a"], slides["c"]], out=trained[0], encoder=ENCODER)
    assert {p.name: p.read_bytes() for p in trained[0].iterdir()} == before


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_model_is_replaced_without_a_gap_and_kept_when_that_fails(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """At every move there is the old model or the new one under the name; an error leaves the old one."""
    out = tmp_path / "m"
    shutil.copytree(trained[0], out)
    old = model.load(out)
    new = dataclasses.replace(old, config={**old.config, "seed": 7})
    if not exchange:
        monkeypatch.setattr(store.files, "exchange", lambda a, b: False)
    gone: list[bool] = []
    rename = os.rename

    def watched(a: Path, b: Path) -> None:
        rename(a, b)
        gone.append(not (out / "model.json").is_file())

    monkeypatch.setattr(os, "rename", watched)
    model.save(new, out, overwrite=True)
    assert gone == ([] if exchange else [True, False])
    assert model.load(out).config["seed"] == 7
    assert [p.name for p in tmp_path.iterdir()] == ["m"]

    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.files, "sync", fail)
    with pytest.raises(StoreError, match="No space left"):
        model.save(old, out, overwrite=True)
    assert model.load(out).config["seed"] == 7
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_cannot_work_is_refused_before_anything_is_encoded(
    slides: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stainseq import trainset

    def never(*a: object, **k: object) -> None:
        raise AssertionError("encoded")

    monkeypatch.setattr(trainset, "assemble", never)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for out in ("file", "folder"):
        with pytest.raises(StoreError, match="no model"):
            ss.tl.train([slides["a"]], out=tmp_path / out, encoder=ENCODER, overwrite=True)
    with pytest.raises(StoreError, match="a part of the path is a file"):
        ss.tl.train([slides["a"]], out=tmp_path / "file" / "m", encoder=ENCODER)
    with pytest.raises(InputError, match="ridge has no option foo; its options: alphas"):
        ss.tl.train([slides["a"]], out=tmp_path / "m", encoder=ENCODER, options={"foo": 3})


@pytest.mark.parametrize("name", ["state.safetensors", "model.json", "training.parquet"])
def test_damaged_model_is_refused(name: str, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(trained[0], copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:-200])
    with pytest.raises(FormatError):
        model.load(copy)
    with pytest.raises(MissingError, match="no model here"):
        model.load(tmp_path)


def test_newer_model_format_is_refused(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(trained[0], copy)
    config = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(FormatError, match="newer than this stainseq"):
        model.load(copy)


def test_missing_things_are_named(
    trained: tuple[Path, dict[str, Any]], slides: dict[str, Path], tmp_path: Path
) -> None:
    sdata = store.open(slides["a"])
    with pytest.raises(MissingError, match="no table 'pred_nothing'"):
        ss.tl.evaluate(sdata, prediction="pred_nothing")
    ss.tl.predict(trained[0], sdata)
    with pytest.raises(InputError, match=r"'counts_spots' is no prediction.*predictions here: .*pred_ridge_spots"):
        ss.tl.evaluate(sdata, prediction="counts_spots")
    with pytest.raises(InputError, match=r"'pred_ridge_spots' is a prediction, and can be no truth"):
        ss.tl.evaluate(sdata, truth="pred_ridge_spots", prediction="pred_ridge_spots")
    with pytest.raises(InputError, match=r"'features_colour_spots' holds no raw counts"):
        ss.tl.evaluate(sdata, truth="features_colour_spots", prediction="pred_ridge_spots")
    with pytest.raises(MissingError, match="counts_cells"):
        ss.tl.train([slides["a"]], out=tmp_path / "m", region="cells", encoder=ENCODER)
    with pytest.raises(InputError, match="same name"):
        ss.tl.train([slides["a"], slides["a"]], out=tmp_path / "m", encoder=ENCODER)
    with pytest.raises(InputError, match="cannot be split by patient"):
        ss.tl.train([slides["a"], slides["b"]], out=tmp_path / "m", encoder=ENCODER, split="patient")


def test_all_zero_genes_and_empty_regions_have_a_stated_result(tmp_path: Path) -> None:
    toys = [ss.datasets.toy_slide(size="small", seed=i, slide=f"s{i}", patient=f"p{i}") for i in range(2)]
    for toy in toys:
        table = toy.tables["counts_spots"].copy()
        dense = table.X.toarray()
        dense[:, 0] = 0
        dense[3] = 0
        table.X = type(table.X)(dense)
        toy.tables["counts_spots"] = table
    genes = list(toys[0].tables["counts_spots"].var_names[:4])
    metrics = ss.tl.train(toys, out=tmp_path / "m", encoder=ENCODER, genes=genes)
    row = next(g for g in metrics["genes"] if g["gene"] == genes[0])
    assert row["pearson"] is None
    assert metrics["summary"]["n_constant"] >= 1
    assert "2 regions without any count were left out" in model.load(tmp_path / "m").config["notes"]


def test_context_of_a_slide_does_not_depend_on_what_is_predicted_together(
    slides: dict[str, Path], tmp_path: Path
) -> None:
    """Pieces and folds may not cut neighbourhoods: the same as one call on the whole slide."""
    from stainseq import registry

    train = [slides["a"], slides["b"]]
    ss.tl.train(train, out=tmp_path / "m", encoder=ENCODER, head="ridge", n_genes=10, options={"context_um": 160.0})
    sdata = store.open(slides["d"])
    ss.tl.predict(tmp_path / "m", sdata, key_added="pred_context")
    learned = model.load(tmp_path / "m")
    X = np.asarray(sdata.tables["features_colour_spots"].X)
    table = sdata.tables["pred_context"]
    plugin = registry.load("heads", "ridge")
    whole, _ = plugin.predict(learned.state, X, coordinates=table.obsm["spatial"], slides=np.zeros(len(X), int))
    np.testing.assert_allclose(table.X, whole, rtol=1e-5, atol=1e-6)


def test_count_losses_get_the_whole_library(slides: dict[str, Path], tmp_path: Path) -> None:
    metrics = ss.tl.train(
        [slides["a"], slides["c"]], out=tmp_path / "m", encoder=ENCODER, head="mlp", n_genes=10,
        options={"loss": "poisson", "members": 1, "max_epochs": 20},
    )  # fmt: skip
    assert metrics["summary"]["pearson"] > 0.1
