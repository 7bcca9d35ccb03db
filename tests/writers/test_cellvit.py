"""CellViT's folders against plain shapely, by readers that use nothing of ours."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import stainseq as ss
from stainseq import patches as windows
from stainseq.errors import FormatError, InputError, MissingError


@pytest.fixture(scope="module")
def slide(make):
    return make.dataset()


@pytest.fixture(scope="module")
def folder(slide, tmp_path_factory):
    path = tmp_path_factory.mktemp("cellvit") / "flat"
    ss.io.export(slide, path, to="cellvit", label_map="ct_1")
    return path


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_names_and_archives(folder, slide, truth):
    names = list(slide.shapes["patches"].index)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "annot_dicts_ct_1", "cell_count.csv", "cell_count_test.csv", "cell_count_train.csv",
        "cell_count_valid.csv", "cell_ids.csv", "dataset.json", "dataset_config.yaml", "examples.png", "export.json",
        "images.zip", "labels.zip", "masks_cell_ids_nuclei.zip", "patch_metrics.csv", "patches.csv", "types.csv",
        "weight_config.yaml",
    ]  # fmt: skip
    assert truth.members(folder / "images.zip") == [f"{n}.png" for n in names]
    assert truth.members(folder / "labels.zip") == [f"{n}.npz" for n in names]
    assert truth.members(folder / "masks_cell_ids_nuclei.zip") == [f"{n}.npz" for n in names]
    assert truth.stored(folder / "images.zip")
    assert all(re.fullmatch(r"([a-zA-Z0-9_]+)_\d+\.png", n) for n in truth.members(folder / "images.zip"))


def test_maps_pixels_and_ids(folder, slide, truth):
    """Every nucleus where shapely has it, bow ties, parts and holes too; 1 ... n; ids joined over files."""
    expected, kinds = truth.labels(slide), truth.classes(slide)
    table = rows(folder / "cell_ids.csv")
    assert table[0] == ["slide_id", "id", "cell_id", "cell_id_int", "label", "class"]
    integer = {r[1]: int(r[3]) for r in table[1:]}
    nuclei = slide.shapes["nuclei"]
    assert list(integer) == list(nuclei.index)
    assert [r[5] for r in table[1:]] == [truth.NINE[k - 1] for k in kinds]
    assert integer["aaaachba-1"] == 10_000
    counts = {r[0]: [int(v) for v in r[1:]] for r in rows(folder / "cell_count.csv")[1:]}
    opened = windows.load(slide)
    for i, (name, image) in enumerate(expected.items()):
        data = truth.read(folder / "labels.zip", f"{name}.npz")
        held = truth.arrays(data)
        assert sorted(held) == sorted(
            f"{m}_{k}" for m in ("inst_map", "type_map") for k in ("data", "indices", "indptr", "shape")
        )
        assert all(v.dtype == np.int32 for v in held.values())
        instances, types = truth.maps(data)
        assert instances.shape == (256, 256)
        assert np.array_equal(instances, truth.contiguous(image))
        assert np.array_equal(types, np.concatenate([[0], kinds])[image])
        cells = sp.load_npz(io.BytesIO(truth.read(folder / "masks_cell_ids_nuclei.zip", f"{name}.npz")))
        assert isinstance(cells, sp.csr_matrix)
        assert cells.dtype == np.int32
        numbers = np.array([0] + [integer[k] + 1 for k in nuclei.index])
        assert np.array_equal(cells.toarray(), numbers[image])
        assert numbers[1:].tolist() == [truth.decode(k) + 1 for k in nuclei.index]
        shown = np.unique(image[image > 0]) - 1
        assert counts[f"{name}.png"] == np.bincount(kinds[shown] - 1, minlength=9).tolist()
        assert np.array_equal(truth.picture(truth.read(folder / "images.zip", f"{name}.png")), opened.pixels(i))
    assert any(not image.any() for image in expected.values())
    assert {1, 2, 3, 4} <= set(np.unique(np.stack(list(expected.values()))))


def test_tables(folder, slide, truth):
    names = [f"{n}.png" for n in slide.shapes["patches"].index]
    head = ["Image", *truth.NINE]
    every = rows(folder / "cell_count.csv")
    assert every[0] == head
    assert [r[0] for r in every[1:]] == names
    assert rows(folder / "cell_count_train.csv") == every
    assert rows(folder / "cell_count_valid.csv") == rows(folder / "cell_count_test.csv") == [head]
    assert rows(folder / "types.csv") == [["img", "type"], *([n, "Heart"] for n in names)]
    assert rows(folder / "patch_metrics.csv") == [
        ["patch_id", "Dice", "Jaccard", "bPQ"], *([n, "-1", "-1", "-1"] for n in names)
    ]  # fmt: skip
    kinds = "".join(f"  {c}: {i + 1}\n" for i, c in enumerate(truth.NINE))
    text = f"tissue_types:\n  Heart: 0\nnuclei_types:\n  Background: 0\n{kinds}"
    assert (folder / "dataset_config.yaml").read_text() == text
    assert (folder / "weight_config.yaml").read_text() == f"tissue:\n  Heart: {len(names)}\n"
    dicts = {p.stem: json.loads(p.read_text()) for p in (folder / "annot_dicts_ct_1").iterdir()}
    assert sorted(dicts) == ["cat2color", "cat2idx", "label2cat"]
    assert dicts["cat2idx"] == {c: i for i, c in enumerate(truth.NINE)}
    assert dicts["cat2color"]["T_NK"] == [255, 15, 15]
    assert dicts["cat2color"]["Dead"] == [143, 143, 143]
    assert dicts["label2cat"]["Perivascular"] == "Blood_vessel"
    assert dicts["label2cat"]["Less10"] == dicts["label2cat"]["Stem_like"] == "Dead"
    assert "Glioblastoma" not in dicts["label2cat"]
    places = rows(folder / "patches.csv")
    assert places[0] == [
        "patch_id", "slide_id", "tissue", "split", "xmin", "ymin", "xmax", "ymax", "Dice", "Jaccard", "bPQ"
    ]  # fmt: skip
    for row, (name, patch) in zip(places[1:], slide.shapes["patches"].iterrows(), strict=True):
        at = [int(patch.x_px), int(patch.y_px), int(patch.x_px) + 256, int(patch.y_px) + 256]
        assert row[:8] == [name, "D1", "Heart", "train", *map(str, at)]


def test_card(folder, slide, truth):
    told = json.loads((folder / "dataset.json").read_text())
    counts = np.array([r[1:] for r in rows(folder / "cell_count.csv")[1:]], dtype=int)
    assert list(told["nuclei"].values()) == counts.sum(axis=0).tolist()
    assert list(told["tissues"]["Heart"]["nuclei"].values()) == counts.sum(axis=0).tolist()
    assert told["patches"] == len(counts) == told["sets"]["train"]["patches"]
    assert told["patches_without_nuclei"] == int((counts.sum(axis=1) == 0).sum()) > 0
    assert (told["licence"], told["stainseq"], told["mpp"]) == ("not stated", ss.__version__, 0.25)
    text = (folder / "README.md").read_text()
    assert f"| Heart | {len(counts)} | {counts[:, 0].sum()} |" in text
    from PIL import Image

    with Image.open(folder / "examples.png") as figure:
        assert min(figure.size) > 300


def test_folds(slide, truth, tmp_path):
    """The original's layout; a fold is a set."""
    names = list(slide.shapes["patches"].index)
    split = tmp_path / "s.json"
    split.write_text(json.dumps({"sets": {"test": names[:3], "train": names[4:]}}))
    ss.io.export(slide, tmp_path / "o", to="cellvit", layout="folds", label_map="ct_1", split_file=split, card=False)
    expected, kinds = truth.labels(slide), truth.classes(slide)
    where = {r[2]: r for r in rows(tmp_path / "o" / "fold_patches.csv")[1:]}
    assert list(where) == names[:3] + names[4:]
    assert {r[1] for n, r in where.items() if n in names[:3]} == {"1"}  # train is the first fold
    for name, (image, fold, _, part) in where.items():
        assert part == ("test" if name in names[:3] else "train")
        stem = image.removesuffix(".png")
        assert re.fullmatch(rf"{fold}_\d+", stem)
        maps = np.load(tmp_path / "o" / f"fold{fold}" / "labels" / f"{stem}.npy", allow_pickle=True)[()]
        assert list(maps) == ["inst_map", "type_map"]
        assert (maps["inst_map"].dtype, maps["type_map"].dtype) == (np.float64, np.int32)
        assert np.array_equal(maps["inst_map"], truth.contiguous(expected[name]))
        assert np.array_equal(maps["type_map"], np.concatenate([[0], kinds])[expected[name]])
        truth.picture((tmp_path / "o" / f"fold{fold}" / "images" / image).read_bytes())
    assert rows(tmp_path / "o" / "fold0" / "types.csv")[1:] == [[f"0_{i}.png", "Heart"] for i in range(len(names) - 4)]
    assert rows(tmp_path / "o" / "fold1" / "cell_count.csv")[0] == ["Image", *truth.NINE]
    assert (tmp_path / "o" / "weight_config.yaml").read_text() == f"tissue:\n  Heart: {len(names) - 4}\n"
    assert not (tmp_path / "o" / "README.md").exists()


def test_several_slides_and_sets(make, truth, tmp_path):
    """Slides of different tissues in one folder, by a split of slides; ids that are no 10x ids are numbered."""
    slides = [
        make.dataset(name="A-1", n=40, tissue="Skin melanoma"),
        make.dataset(name="B", n=30, seed=1, xenium=False, first=70_000),
        make.dataset(name="C", n=30, seed=2),
    ]
    split = tmp_path / "s.json"
    split.write_text(json.dumps({"sets": {"train": ["A-1"], "val": ["B"], "test": ["C"]}, "leaks": []}))
    out = tmp_path / "o"
    ss.io.export(slides, out, to="cellvit", split_file=split)
    images = truth.members(out / "images.zip")
    assert [n.rsplit("_", 1)[0] for n in images] == ["A_1"] * 12 + ["B"] * 12 + ["C"] * 12
    for part, stem in (("train", "A_1"), ("valid", "B"), ("test", "C")):
        assert {r[0].rsplit("_", 1)[0] for r in rows(out / f"cell_count_{part}.csv")[1:]} == {stem}
    assert (out / "weight_config.yaml").read_text() == 'tissue:\n  "Skin melanoma": 12\n  Heart: 0\n'
    table = [r for r in rows(out / "cell_ids.csv")[1:] if r[0] == "B"]
    assert [(r[1], int(r[3])) for r in table] == [(f"n{70_000 + i}", i) for i in range(30)]
    assert rows(out / "cell_count.csv")[0] == ["Image", "Endothelial", "Keratinocyte", "Macrophage", "T", "Unlabelled"]
    facts = json.loads((out / "export.json").read_text())
    assert [s["slide"] for s in facts["slides"]] == ["A-1", "B", "C"]
    assert set(facts["inputs"]) == {"A-1", "B", "C"}
    slides[2].attrs["stainseq"]["slide"] = "other"
    with pytest.raises(MissingError, match="neither other nor its patches"):
        ss.io.export(slides, tmp_path / "p", to="cellvit", split_file=split)
    split.write_text(json.dumps({"sets": {"train": ["A-1", "B"], "test": ["B"]}}))
    with pytest.raises(InputError, match="B is in train and in test"):
        ss.io.export(slides, tmp_path / "p", to="cellvit", split_file=split)
    split.write_text("{}")
    with pytest.raises(FormatError, match="no sets"):
        ss.io.export(slides, tmp_path / "p", to="cellvit", split_file=split)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o", "s.json"]


def test_cells_without_a_label(make, truth, tmp_path):
    """Three rules: a class of their own, not drawn (and hiding nothing), an error."""
    slide = make.dataset(n=60)
    obs = slide.tables["counts_nuclei"].obs
    poor = (obs["tangram.label"] == "few counts").to_numpy()
    poor[5] = True  # lies over 4
    obs["tangram.label"] = obs["tangram.label"].where(~poor)
    ss.io.export(slide, tmp_path / "skip", to="cellvit", unlabelled="skip", card=False)
    shown = truth.labels(slide, shown=~poor)
    for name, image in shown.items():
        found, _ = truth.maps(truth.read(tmp_path / "skip" / "labels.zip", f"{name}.npz"))
        assert np.array_equal(found, truth.contiguous(image))
    assert rows(tmp_path / "skip" / "cell_count.csv")[0] == ["Image", "Endothelial", "Keratinocyte", "Macrophage", "T"]
    ss.io.export(slide, tmp_path / "class", to="cellvit", unlabelled="class", label_map="ct_3", card=False)
    assert rows(tmp_path / "class" / "cell_count.csv")[0][-1] == "Other"
    table = rows(tmp_path / "class" / "cell_ids.csv")
    assert {r[5] for r, p in zip(table[1:], poor, strict=True) if p} == {"Other"}
    with pytest.raises(InputError, match=f"{poor.sum()} cells without a label"):
        ss.io.export(slide, tmp_path / "error", to="cellvit", unlabelled="error")
    with pytest.raises(InputError, match="one of: class, skip, error"):
        ss.io.export(slide, tmp_path / "error", to="cellvit", unlabelled="drop")


def test_own_maps(slide, tmp_path):
    """JSON, TOML, CSV; the order of classes is theirs; what they lack is named."""
    pairs = {"T": "Immune", "Macrophage": "Immune", "Endothelial": "Vessel", "Keratinocyte": "Skin"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(pairs))
    with pytest.raises(InputError, match="map mine lacks few counts"):
        ss.io.export(slide, tmp_path / "o", to="cellvit", label_map=str(path))
    path.write_text(json.dumps({**pairs, "*": "Rest"}))
    ss.io.export(slide, tmp_path / "json", to="cellvit", label_map=str(path), card=False)
    assert rows(tmp_path / "json" / "cell_count.csv")[0] == ["Image", "Immune", "Vessel", "Skin", "Rest"]
    toml = tmp_path / "mine.toml"
    toml.write_text(
        'unlabelled = "Rest"\n[classes]\nRest = [1, 2, 3]\nVessel = [4, 5, 6]\nImmune = [7, 8, 9]\nSkin = [9, 9, 9]\n'
        '[labels]\nImmune = ["T", "Macrophage"]\nEndothelial = "Vessel"\nKeratinocyte = "Skin"\n"few counts" = "Rest"\n'
    )
    ss.io.export(slide, tmp_path / "toml", to="cellvit", label_map=str(toml), card=False)
    assert rows(tmp_path / "toml" / "cell_count.csv")[0] == ["Image", "Rest", "Vessel", "Immune", "Skin"]
    colours = json.loads((tmp_path / "toml" / "annot_dicts_mine" / "cat2color.json").read_text())
    assert colours["Vessel"] == [4, 5, 6]
    table = tmp_path / "mine.csv"
    table.write_text("label,category\n" + "".join(f"{k},{v}\n" for k, v in pairs.items()) + "few counts,Rest\n")
    ss.io.export(slide, tmp_path / "csv", to="cellvit", label_map=str(table), card=False)
    assert rows(tmp_path / "csv" / "cell_count.csv") == rows(tmp_path / "json" / "cell_count.csv")
    table.write_text("label,category\nT,a\nT,b\n")
    with pytest.raises(FormatError, match="'T' is there twice"):
        ss.io.export(slide, tmp_path / "o", to="cellvit", label_map=str(table))
    with pytest.raises(MissingError, match="one of curated, ct_1, ct_2, ct_3"):
        ss.io.export(slide, tmp_path / "o", to="cellvit", label_map="ct_9")


def test_labels_from_elsewhere(make, tmp_path):
    """A CSV of ids; one class where nothing is labelled; columns that are not there, or too many, are named."""
    slide = make.dataset(n=30)
    ids = list(slide.shapes["nuclei"].index)
    listed = tmp_path / "l.csv"
    listed.write_text("id,label\n" + "".join(f"{k},{'a' if i % 2 else 'b'}\n" for i, k in enumerate(ids)))
    ss.io.export(slide, tmp_path / "csv", to="cellvit", labels=str(listed), card=False)
    assert [r[4] for r in rows(tmp_path / "csv" / "cell_ids.csv")[1:]] == ["b", "a"] * 15
    with pytest.raises(MissingError, match=r"no labels 'nope'.*tangram\.label"):
        ss.io.export(slide, tmp_path / "o", to="cellvit", labels="nope")
    obs = slide.tables["counts_nuclei"].obs
    obs["likelihood.label"] = obs["tangram.label"]
    with pytest.raises(MissingError, match=r"several labels.*tangram\.label, likelihood\.label"):
        ss.io.export(slide, tmp_path / "o", to="cellvit")
    del obs["likelihood.label"], obs["tangram.label"]
    ss.io.export(slide, tmp_path / "one", to="cellvit", card=False)
    assert rows(tmp_path / "one" / "cell_count.csv")[0] == ["Image", "Nucleus"]


def test_scores_filter_patches(slide, tmp_path):
    names = list(slide.shapes["patches"].index)
    scores = tmp_path / "q.csv"
    values = [f"{n},{0.9 - 0.05 * i:.2f},{0.8 - 0.05 * i:.2f},{0.7 - 0.05 * i:.2f}" for i, n in enumerate(names[:-1])]
    scores.write_text("name,dice,jaccard,bpq\n" + "\n".join(values) + "\n")
    ss.io.export(slide, tmp_path / "o", to="cellvit", scores=str(scores), min_jaccard=0.65, card=False)
    assert rows(tmp_path / "o" / "patch_metrics.csv") == [
        ["patch_id", "Dice", "Jaccard", "bPQ"],
        *([f"{n}.png", f"{0.9 - 0.05 * i:.3g}", f"{0.8 - 0.05 * i:.3g}", f"{0.7 - 0.05 * i:.3g}"]
          for i, n in enumerate(names[:4])),
    ]  # fmt: skip
    with pytest.raises(InputError, match="no patch is left"):
        ss.io.export(slide, tmp_path / "p", to="cellvit", min_jaccard=0.1)


def test_ids_of_32_bits(make, truth, tmp_path):
    """10x's own ids use all bits: masks are unsigned then."""
    slide = make.dataset(n=20, first=2**32 - 500_000)
    ss.io.export(slide, tmp_path / "o", to="cellvit", card=False)
    name = next(n for n, image in truth.labels(slide).items() if image.any())
    cells = sp.load_npz(io.BytesIO(truth.read(tmp_path / "o" / "masks_cell_ids_nuclei.zip", f"{name}.npz")))
    assert cells.dtype == np.uint32
    numbers = np.array([0] + [truth.decode(k) + 1 for k in slide.shapes["nuclei"].index])
    assert np.array_equal(cells.toarray(), numbers[truth.labels(slide)[name]])


def test_more_nuclei_than_16_bits(make, truth, tmp_path):
    """70,000 nuclei, most beside the picture: instance numbers and ids do not wrap."""
    slide = make.dataset(n=70_000, height=300, width=300, xenium=False)
    ss.io.export(slide, tmp_path / "o", to="cellvit", card=False)
    assert rows(tmp_path / "o" / "cell_ids.csv")[-1][3] == "69999"
    (name,) = slide.shapes["patches"].index
    instances, _ = truth.maps(truth.read(tmp_path / "o" / "labels.zip", f"{name}.npz"))
    cells = sp.load_npz(io.BytesIO(truth.read(tmp_path / "o" / "masks_cell_ids_nuclei.zip", f"{name}.npz"))).toarray()
    assert cells.max() > 65_535
    values, first = np.unique(cells, return_index=True)
    assert np.array_equal(instances.ravel()[first], np.arange(len(values)) + (values[0] != 0))


def test_refusals(make, slide, tmp_path):
    with pytest.raises(MissingError, match="no patches 'coarse'"):
        ss.io.export(slide, tmp_path / "o", to="cellvit", patches="coarse")
    other = make.dataset(name="E", n=20)
    del other.shapes["patches"]
    ss.pp.patches(other, mpp=0.5)
    with pytest.raises(InputError, match=r"256 px at 0.5 um/px, others of 256 at 0.25"):
        ss.io.export([slide, other], tmp_path / "o", to="cellvit")
    renamed = make.dataset(name="D1", n=20, seed=3)
    renamed.attrs["stainseq"]["slide"] = "F"  # after its patches were cut
    with pytest.raises(InputError, match="two slides would be called 'D1'"):
        ss.io.export([slide, renamed], tmp_path / "o", to="cellvit")
    with pytest.raises(MissingError, match="no regions are named"):
        ss.io.export(make.slide(cells=False), tmp_path / "o", to="cellvit", table=[])


def test_killed_in_the_middle(make, tmp_path):
    """Nothing appears; the next export clears what the dead one left, and writes what it would have written."""
    import os
    import signal
    import subprocess
    import sys

    slide = make.dataset(n=30)
    del slide.shapes["patches"]
    store = tmp_path / "s.zarr"
    ss.io.write(slide, store)
    ss.pp.patches(ss.io.open(store))
    code = (
        "import os, signal, sys, stainseq as ss\n"
        "from stainseq.writers import _samples\n"
        "counts, done = _samples.Patch.counts, []\n"
        "def dying(self, n):\n"
        "    done.append(1)\n"
        "    len(done) < 7 or os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return counts(self, n)\n"
        "_samples.Patch.counts = dying\n"
        "ss.io.export(sys.argv[1], sys.argv[2], to='cellvit')\n"
    )
    target = tmp_path / "made"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(store), str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    (left,) = [p for p in tmp_path.iterdir() if p.name.startswith(".made.export-")]
    assert any(p.name == "images.zip" for p in left.rglob("*"))
    ss.io.export(store, target, to="cellvit")
    assert len(rows(target / "types.csv")) == 13
    assert sorted(os.listdir(tmp_path)) == ["made", "s.zarr"]


def test_several_nuclei_of_a_cell(make, truth, tmp_path):
    """Instances apart, one id: that of their cell; labels of the cells' table reach both."""
    slide = make.dataset(n=30)
    nuclei = slide.shapes["nuclei"]
    owners = nuclei["cell_id"].to_numpy(dtype=object).copy()
    owners[7] = owners[6]
    nuclei["cell_id"] = owners
    slide.tables["counts_cells"] = _cells(slide, owners)
    del slide.tables["counts_nuclei"]
    ss.io.export(slide, tmp_path / "o", to="cellvit", labels="tangram.label", labels_table="counts_cells", card=False)
    table = {r[1]: r for r in rows(tmp_path / "o" / "cell_ids.csv")[1:]}
    names = list(nuclei.index)
    assert table[names[6]][2:] == table[names[7]][2:]
    assert len({r[3] for r in table.values()}) == 29
    for name, image in truth.labels(slide).items():
        instances, _ = truth.maps(truth.read(tmp_path / "o" / "labels.zip", f"{name}.npz"))
        assert np.array_equal(instances, truth.contiguous(image))


def _cells(slide, owners):
    """The table of the nuclei as one of their cells."""
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    held = slide.tables["counts_nuclei"]
    first = ~np.array([owners[i] in owners[:i] for i in range(len(owners))])
    ids = owners[first].tolist()
    at = held.obsm["spatial"][first]
    frame = gpd.GeoDataFrame({"radius": np.full(len(ids), 5.0)}, geometry=shapely.points(at), index=ids)
    slide.shapes["cells"] = ShapesModel.parse(frame, transformations={"um": Identity()})
    made = held[first].copy()
    del made.uns["spatialdata_attrs"]
    made.obs_names = ids
    made.obs["region"], made.obs["instance_id"] = "cells", ids
    made.obs["region"] = made.obs["region"].astype("category")
    return TableModel.parse(made, region="cells", region_key="region", instance_key="instance_id")


def test_one_slide_is_held_at_a_time(make, tmp_path, monkeypatch):
    """Outlines and decoded pixels of the slides before are let go."""
    from stainseq import image
    from stainseq.writers import _samples

    read, kept = image.LevelStack.read, []
    monkeypatch.setattr(image.LevelStack, "read", lambda self, *a: kept.append(self) or read(self, *a))
    held, opened = _samples.DataSet.nuclei, []

    def counted(self, source):
        opened.append(source.slide)
        made = held(self, source)
        assert len(self._held) == 1
        return made

    monkeypatch.setattr(_samples.DataSet, "nuclei", counted)
    slides = [make.dataset(name=n, n=20, seed=i) for i, n in enumerate("AB")]
    ss.io.export(slides, tmp_path / "o", to="cellvit", card=False)
    assert opened == ["A", "B"]
    assert kept
    assert all(stack._chunks._held == 0 for stack in kept)
