"""Commands markers, metagene and integrate: on stores and files, what they write, print and refuse."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import stainseq as ss
from stainseq import store
from stainseq.cli import run

anndata = pytest.importorskip("anndata")
CSV = ["domain", "gene", "pct.in", "pct.out", "ratio", "fc", "p", "q"]


def layers(seed=0, n=400, empty=()):
    """Cells in three layers; twelve genes of forty are high in one layer."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 400, (n, 2))
    layer = np.minimum(xy[:, 1] // 134, 2).astype(int)
    rate = np.full((3, 40), 2.0)
    for j in range(12):
        rate[j % 3, j] = 12
    counts = rng.poisson(rate[layer]).astype(np.float32)
    counts[:, list(empty)] = 0
    table = anndata.AnnData(counts, obsm={"spatial": xy})
    table.obs_names = [f"c{i}" for i in range(n)]
    table.var_names = [f"g{j}" for j in range(40)]
    table.obs["layer"] = pd.Categorical([f"L{k}" for k in layer])
    return table


@pytest.fixture
def h5ad(tmp_path):
    path = tmp_path / "one.h5ad"
    layers(empty=[39]).write_h5ad(path)
    return path


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "slide.zarr"
    toy = ss.datasets.toy_slide(seed=0)
    table = toy.tables["counts_spots"]
    table.obs["half"] = np.where(table.obsm["spatial"][:, 0] > np.median(table.obsm["spatial"][:, 0]), "right", "left")
    store.create(path, toy, step="convert", parameters={"platform": "toy"})
    return path


def error(capsys) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err.removeprefix("error: ").rstrip("\n")


def argv(command, *given, **options):
    return [command, *map(str, given), *(str(x) for k, v in options.items() for x in (f"--{k.replace('_', '-')}", v))]


def test_markers_of_a_file(h5ad, tmp_path, capsys):
    before = h5ad.read_bytes()
    files = {"csv": tmp_path / "m.csv", "out": tmp_path / "m.h5ad", "json": tmp_path / "m.json"}
    assert run(argv("markers", h5ad, domain_key="layer", min_fold_change=1.2, ratio=0.1, **files)) == 0
    assert h5ad.read_bytes() == before
    printed = capsys.readouterr().out
    table = pd.read_csv(files["csv"])
    assert list(table.columns[:8]) == CSV
    for k in range(3):
        own = set(table.loc[table["domain"] == f"L{k}", "gene"])
        assert own == {f"g{j}" for j in range(k, 12, 3)}
    assert f"{len(table)} markers of 3 domains" in printed
    found = json.loads(files["json"].read_text())
    assert found["domains"]["L1"] == "4 markers"
    assert [row["gene"] for row in found["markers"]] == table["gene"].tolist()
    pd.testing.assert_frame_equal(
        ss.tl.get_markers(files["out"])[["gene", "q"]], table[["gene", "q"]], check_exact=False
    )


def test_markers_and_metagene_of_a_store_go_into_its_table(slide, capsys):
    assert run(argv("markers", slide, domain_key="half", against="rest", min_fold_change=1.05, max_q=0.5)) == 0
    assert run(argv("metagene", slide, domain_key="half", target="left")) == 0
    printed = capsys.readouterr().out
    table = store.open(slide).tables["counts_spots"]
    assert {"params", "status", "table"} <= set(table.uns["markers"])
    stored = table.uns["metagene.left"]
    assert f"metagene of left (metagene.left): {stored['formula']}" in printed
    assert len(stored["genes"]) == len(stored["signs"])
    assert np.isfinite(table.obs["metagene.left"]).all()
    history = store.stamp_of(store.open(slide), "counts_spots")
    assert history["step"] == "metagene"


def test_metagene_of_every_domain(h5ad, tmp_path, capsys):
    out = tmp_path / "m.h5ad"
    csv = tmp_path / "m.csv"
    options = {"domain_key": "layer", "target": "all", "out": out, "csv": csv, "json": "/dev/stdout"}
    assert run(argv("metagene", h5ad, **options)) == 0
    found = json.loads(capsys.readouterr().out)["metagenes"]
    table = anndata.read_h5ad(out)
    assert list(found) == ["L0", "L1", "L2"]
    for name, one in found.items():
        assert one["key"] == f"metagene.{name}"
        assert one["formula"] == table.uns[one["key"]]["formula"]
        assert [g["gene"] for g in one["genes"]] == list(table.uns[one["key"]]["genes"])
        inside = (table.obs["layer"] == name).to_numpy()
        meta = table.obs[one["key"]].to_numpy()
        assert meta[inside].mean() > meta[~inside].mean() + 1
    assert list(pd.read_csv(csv).columns) == ["domain", "gene", "sign", "round", "difference", "outside"]


@pytest.mark.parametrize("where", ["file", "folder"])
def test_integrate_files(tmp_path, where, capsys):
    paths = [tmp_path / f"{name}.h5ad" for name in "ab"]
    for seed, path in enumerate(paths):
        layers(seed, n=150 + 50 * seed).write_h5ad(path)
    before = [path.read_bytes() for path in paths]
    out = tmp_path / ("joint.h5ad" if where == "file" else "results")
    csv = tmp_path / "all.csv"
    assert run(argv("integrate", *paths, n_domains=3, key="both", out=out, csv=csv, json="/dev/stdout")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [path.read_bytes() for path in paths] == before
    assert sum(found["samples"]["a"].values()) == 150
    assert sum(found["samples"]["b"].values()) == 200
    assert 0 < found["mixing"] <= 1.1
    table = pd.read_csv(csv)
    assert list(table.columns) == ["sample", "id", "domain", "refined", "probability"]
    joint = anndata.read_h5ad(out if where == "file" else out / "joint.h5ad")
    assert joint.obs_names[0] == "a:c0"  # ids that occur in both are told apart
    assert joint.obs["both"].astype(int).tolist() == table["refined"].tolist()
    assert joint.obs["layer"].astype(str).tolist()[:150] == layers(0, n=150).obs["layer"].astype(str).tolist()
    assert joint.uns["both"]["mixing"] == found["mixing"]
    if where == "folder":
        own = anndata.read_h5ad(out / "samples" / "b.h5ad")
        assert own.obs_names[0] == "c0"
        assert own.obs["both"].astype(int).tolist() == table["refined"].tolist()[150:]
    # all samples in one file
    assert run(argv("integrate", tmp_path / "j2.h5ad", n_domains=3)) == 1
    assert "no such file" in error(capsys)
    again = out if where == "file" else out / "joint.h5ad"
    assert run(argv("integrate", again, n_domains=3, key="again", out=tmp_path / "again.h5ad")) == 0
    assert "mixing of samples" in capsys.readouterr().out
    assert anndata.read_h5ad(tmp_path / "again.h5ad").obs["again"].astype(int).tolist() == table["refined"].tolist()


@pytest.mark.slow
def test_integrate_stores_on_images_alone(tmp_path, capsys):
    paths = [tmp_path / f"s{i}.zarr" for i in range(2)]
    for seed, path in enumerate(paths):
        store.create(path, ss.datasets.toy_slide(seed=seed), step="convert", parameters={"platform": "toy"})
        ss.pp.features(store.open(path), region="spots", encoder="colour")
    name = "features_colour_spots"
    options = {"n_domains": 2, "key": "tissue", "table": name, "json": "/dev/stdout"}
    assert run(argv("integrate", *paths, **options)) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["samples"]) == 2
    for path in paths:
        slide = store.open(path)
        assert list(slide.tables[name].obs["tissue"].cat.categories) == ["0", "1"]
        assert "tissue" not in slide.tables["counts_spots"].obs
    # expression and image together, results into a file alone: the stores stay as they are
    out = tmp_path / "j.h5ad"
    options = {"n_domains": 2, "key": "joined", "image_features": name, "out": out}
    assert run(argv("integrate", *paths, **options)) == 0
    assert "joined" in anndata.read_h5ad(out).obs
    assert "joined" not in store.open(paths[0]).tables["counts_spots"].obs
    # or its colour
    assert run([*argv("integrate", *paths, n_domains=2, key="seen", out=tmp_path / "h.h5ad"), "--histology"]) == 0
    facts = anndata.read_h5ad(tmp_path / "h.h5ad").uns["seen"]["params"]
    assert facts["histology"]
    assert facts["window_um"] == 50


def test_one_seed_one_result(tmp_path, h5ad):
    layers(1).write_h5ad(tmp_path / "two.h5ad")
    csv = [tmp_path / f"{i}.csv" for i in range(2)]
    for path in csv:
        assert run(argv("integrate", h5ad, tmp_path / "two.h5ad", n_domains=3, seed=4, csv=path)) == 0
    assert csv[0].read_bytes() == csv[1].read_bytes()


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("markers {one}", 2, "--domain-key"),
        ("markers {one} --domain-key nothing", 1, "no column 'nothing'"),
        ("markers {one} --domain-key layer --domain L9", 1, "no domain 'L9'"),
        ("markers {one} --domain-key layer --against nobody", 2, "--against"),
        ("markers {one} --domain-key layer --out {one}", 1, "results would replace the file they come from"),
        ("markers {one} --domain-key layer --csv {none}/x.csv", 1, "there is no such folder"),
        ("markers {one} --domain-key layer --json {none}/x.json", 1, "there is no such folder"),
        ("markers {none}.h5ad --domain-key layer", 1, "no such file"),
        ("metagene {one} --domain-key layer", 2, "--target"),
        ("metagene {one} --domain-key layer --target L9", 1, "no domain 'L9'"),
        ("metagene {one} --domain-key layer --target L1 --start-gene no", 1, "no gene 'no'"),
        ("metagene {one} --domain-key layer --target L1 --out {one}", 1, "results would replace"),
        ("integrate {one}", 2, "--n-domains"),
        ("integrate {one} --n-domains 3", 1, "1 sample to integrate"),
        ("integrate {one} {one} --n-domains 3", 1, "two samples are named 'one'"),
        ("integrate {one} {two} --n-domains 3 --out {two}", 1, "results would replace"),
        ("integrate {one} {two} --n-domains 3 --csv {one}", 1, "results would replace"),
        ("integrate {one} {two} --n-domains 3 --out {none}/x.h5ad", 1, "there is no such folder"),
        ("integrate {one} {two} --n-domains 3 --out {text}", 1, "this is a file, and not .h5ad"),
        ("integrate {one} {two} --n-domains 900", 1, "900 domains of 800 rows"),
        ("integrate {one} {two} --n-domains 3 --method no", 1, "one of: "),
        ("integrate {one} {two} --n-domains 3 --option wrong=1", 1, "kriging has no option wrong"),
        ("integrate {one} {two} --n-domains 3 --method spagcn --correction centre", 1, "no option correction"),
    ],
)
def test_refusals_are_one_line(command, code, words, h5ad, tmp_path, capsys):
    layers(1).write_h5ad(tmp_path / "two.h5ad")
    (tmp_path / "text").write_text("text")
    places = {"one": h5ad, "two": tmp_path / "two.h5ad", "none": tmp_path / "none", "text": tmp_path / "text"}
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert run([word.format(**places) for word in command.split()]) == code
    assert words in error(capsys)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
