"""The main job from the command line, on toy slides."""

from __future__ import annotations

import json

import pytest

import stainseq as ss
from stainseq import store
from stainseq.cli import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    for seed, name in enumerate("abc"):
        toy = ss.datasets.toy_slide(seed=seed, slide=name, patient=f"P{seed}")
        store.create(folder / f"{name}.zarr", toy, step="convert", parameters={})
    (folder / "cohort.csv").write_text("slide,path,patient\na,a.zarr,P0\nb,b.zarr,P1\n")
    return folder


def _json(capsys):
    return json.loads(capsys.readouterr().out)


def test_the_main_job(folder, capsys):
    c, model = str(folder / "c.zarr"), str(folder / "model")
    stdout = ["--json", "/dev/stdout"]
    assert run(["tissue", c, *stdout]) == 0
    assert _json(capsys)["area_mm2"] == pytest.approx(0.72**2 * 0.85, rel=0.2)
    assert run(["features", c, "--encoder", "colour", *stdout]) == 0
    found = _json(capsys)
    assert found["table"] == "features_colour_spots"
    assert found["n"] == len(store.open(c)["counts_spots"])
    train = ["train", str(folder / "cohort.csv"), "--out", model, "--encoder", "colour", "--n-genes", "20"]
    assert run([*train, *stdout]) == 0
    metrics = _json(capsys)
    assert metrics["split"] == "patient"
    assert len(metrics["genes"]) >= 20
    assert run(train) == 1
    assert "there is something already" in capsys.readouterr().err
    assert run(["info", model, *stdout]) == 0
    assert _json(capsys)["facts"]["encoder"] == "colour"
    assert run(["predict", model, c, *stdout]) == 0
    assert _json(capsys)["table"] == "pred_ridge_spots"
    assert run(["predict", model, c, "--region", "grid", "--key", "everywhere"]) == 0
    assert "everywhere: " in capsys.readouterr().out
    assert run(["evaluate", c, "--prediction", "pred_ridge_spots", *stdout]) == 0
    scores = _json(capsys)
    assert {"n", "genes", "summary", "baseline", "ceiling"} <= set(scores)
    assert scores["summary"]["pearson"] > 0.2
    assert run(["svg", c]) == 0
    assert run(["domains", c, "--n-domains", "3"]) == 0
    assert run(["report", c, "--out", str(folder / "c.html")]) == 0
    text = (folder / "c.html").read_text()
    for title in ("Measured and predicted", "How good the prediction is", "Spatially variable genes", "Domains"):
        assert f"<h2>{title}</h2>" in text
    assert run(["plot", c, "MOR0000", "--compare", "--out", str(folder / "c.png"), "--dpi", "50"]) == 0
    steps = {s["step"] for s in store.steps(store.open(c))}
    assert {"convert", "tissue", "grid", "features", "predict", "domains"} <= steps


def test_training_on_nothing(tmp_path, capsys):
    assert run(["train", "--out", str(tmp_path / "m")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_scores_given_as_a_file(folder, tmp_path, capsys):
    report = ["report", str(folder / "a.zarr"), "--out", str(tmp_path / "a.html"), "--metrics"]
    (tmp_path / "bad.json").write_text("[1")
    assert run([*report, str(tmp_path / "bad.json")]) == 1
    assert "not JSON" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert run([*report, str(tmp_path / "other.json")]) == 1
    assert "no scores in it" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


def test_a_slide_with_a_picture_alone(folder, tmp_path, capsys):
    """No region need be named: what the model learned from where it is there, else a grid."""
    model = str(tmp_path / "model")
    train = ["train", str(folder / "a.zarr"), str(folder / "b.zarr"), "--out", model, "--encoder", "colour"]
    assert run([*train, "--n-genes", "10"]) == 0
    text = capsys.readouterr().out
    assert "the model predicts 10 genes; each fold chose its own 10" in text
    alone = ss.datasets.toy_slide(seed=5, slide="e", patient="P5")
    del alone.tables["counts_spots"], alone.shapes["spots"]
    path = str(tmp_path / "e.zarr")
    store.create(path, alone, step="convert", parameters={})
    assert run(["predict", model, path]) == 0
    assert "pred_ridge_grid: " in capsys.readouterr().out
    assert run(["predict", model, str(folder / "b.zarr")]) == 0
    assert "pred_ridge_spots: " in (said := capsys.readouterr().out)
    assert "each predicted by the fold that had not seen it" in said
    assert run(["report", path, "--out", str(tmp_path / "e.html")]) == 0
    assert "Nothing was measured on this slide" in (tmp_path / "e.html").read_text()
