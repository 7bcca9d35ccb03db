"""PanNuke's and STHELAR's arrays, the Hugging Face parquet and HEST's folders, by readers that use nothing of ours."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import stainseq as ss
from stainseq import patches as windows
from stainseq.errors import InputError, MissingError


@pytest.fixture(scope="module")
def slide(make):
    return make.dataset()


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_pannuke(slide, truth, tmp_path):
    out = tmp_path / "o"
    ss.io.export(slide, out, to="pannuke", label_map="ct_1")
    images, masks, types = (np.load(out / f"{k}.npy") for k in ("images", "masks", "types"))
    names = np.load(out / "patch_ids.npy")
    expected, kinds = truth.labels(slide), np.concatenate([[0], truth.classes(slide)])
    assert names.tolist() == list(expected)
    assert types.tolist() == ["Heart"] * len(names)
    assert (images.dtype, masks.dtype) == (np.uint8, np.int32)
    assert images.shape == (len(names), 256, 256, 3)
    assert masks.shape == (len(names), 256, 256, 10)
    opened = windows.load(slide)
    integer = {(r[0], int(r[1])): (int(r[2]), int(r[3])) for r in rows(out / "instances.csv")[1:]}
    ids = list(slide.shapes["nuclei"].index)
    for i, (name, image) in enumerate(expected.items()):
        assert np.array_equal(images[i], opened.pixels(i))
        whole = truth.contiguous(image)
        for c in range(9):
            assert np.array_equal(masks[i, ..., c], np.where(kinds[image] == c + 1, whole, 0))
        assert np.array_equal(masks[i, ..., 9], image == 0)
        for number, value in enumerate(np.unique(image[image > 0]), 1):
            assert integer.pop((name, number)) == (truth.decode(ids[value - 1]), kinds[value])
    assert not integer


@pytest.mark.parametrize("dtype", ["float64", "uint16"])
def test_pannuke_sets_and_types(slide, tmp_path, dtype):
    names = list(slide.shapes["patches"].index)
    split = tmp_path / "s.json"
    split.write_text(json.dumps({"sets": {"fold1": names[:2], "fold2": names[2:5]}}))
    ss.io.export(slide, tmp_path / "o", to="pannuke", split_file=split, dtype=dtype)
    for fold, members in (("fold1", names[:2]), ("fold2", names[2:5])):
        assert np.load(tmp_path / "o" / fold / "patch_ids.npy").tolist() == members
        assert np.load(tmp_path / "o" / fold / "masks.npy").dtype == dtype
        assert len(np.load(tmp_path / "o" / fold / "images.npy")) == len(members)


def test_sthelar(make, slide, truth, tmp_path):
    out = tmp_path / "o"
    ss.io.export(slide, out, to="sthelar", label_map="ct_1")
    expected, kinds = truth.labels(slide), np.concatenate([[0], truth.classes(slide)])
    masks = sp.load_npz(out / "masks_D1.npz")
    n = len(expected)
    assert isinstance(masks, sp.csr_matrix)
    assert (masks.dtype, masks.shape) == (np.int32, (n * 65536, 10))
    assert masks.has_canonical_format
    cells = sp.load_npz(out / "masks_cells.npz")
    assert (cells.dtype, cells.shape) == (np.int32, (n, 65536))
    numbers = np.load(out / "patch_ids.npy")
    assert [f"D1_{i}" for i in numbers] == list(expected)
    assert np.load(out / "types.npy").tolist() == ["Heart"] * n
    images = np.load(out / "images.npy")
    ids = np.array([0] + [truth.decode(k) + 1 for k in slide.shapes["nuclei"].index])
    opened = windows.load(slide)
    for i, image in enumerate(expected.values()):
        mask = masks[i * 65536 : (i + 1) * 65536].toarray().reshape(256, 256, 10)
        assert np.array_equal(mask[..., 9], kinds[image])
        assert np.array_equal(mask[..., :9].sum(-1), truth.contiguous(image))
        assert np.array_equal(mask[..., :9].argmax(-1)[image > 0] + 1, kinds[image][image > 0])
        assert np.array_equal(cells[[i]].toarray().reshape(256, 256), ids[image])
        assert np.array_equal(images[i], opened.pixels(i))
    assert sorted(p.name for p in out.iterdir()) == [
        "annot_dicts_ct_1", "cell_ids.csv", "export.json", "images.npy", "masks_D1.npz", "masks_cells.npz",
        "patch_ids.npy", "patches.csv", "types.npy",
    ]  # fmt: skip
    ss.io.export([slide, make.dataset(name="D2", n=20, seed=5)], tmp_path / "two", to="sthelar", label_map="ct_1")
    assert sp.load_npz(tmp_path / "two" / "D2" / "masks_D2.npz").shape == (n * 65536, 10)
    assert (tmp_path / "two" / "D1" / "masks_D1.npz").is_file()


def test_huggingface(make, slide, truth, tmp_path):
    """Parquet as the Hub's readers take it apart; cells joined by id to their table."""
    from pyarrow import parquet

    other = make.dataset(name="D2", n=20, seed=5, tissue="Skin")
    split = tmp_path / "s.json"
    split.write_text(json.dumps({"sets": {"train": ["D1"], "valid": ["D2"]}}))
    out = tmp_path / "o"
    ss.io.export([slide, other], out, to="huggingface", split_file=split, label_map="ct_1", licence="CC-BY-4.0")
    table = parquet.read_table(out / "data" / "train-00000-of-00001.parquet")
    assert table.column_names == [
        "file_name", "image", "slide_id", "tissue", "cell_id_map", "Dice", "Jaccard", "bPQ"
    ]  # fmt: skip
    assert str(table.schema.field("Jaccard").type) == "halffloat"
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["tissue"] == {"names": ["Heart", "Skin"], "_type": "ClassLabel"}
    assert features["image"] == {"_type": "Image"}
    expected = truth.labels(slide)
    cells = parquet.read_table(out / "cell_metadata" / "D1_cell_metadata.parquet").to_pandas()
    assert cells["cell_id"].tolist() == list(slide.shapes["nuclei"].index)
    assert cells["cell_id_int"].tolist() == [truth.decode(k) for k in cells["cell_id"]]
    assert cells["class_number"].tolist() == truth.classes(slide).tolist()
    opened = windows.load(slide)
    for i, (row, (name, image)) in enumerate(zip(table.to_pylist(), expected.items(), strict=True)):
        assert (row["file_name"], row["slide_id"], row["tissue"]) == (f"{name}.png", "D1", 0)
        assert np.array_equal(truth.picture(row["image"]["bytes"]), opened.pixels(i))
        found = sp.load_npz(io.BytesIO(row["cell_id_map"])).toarray()
        assert np.array_equal(found, np.concatenate([[0], cells["cell_id_int"] + 1])[image])
        assert row["Dice"] == -1
    assert parquet.read_table(out / "data" / "validation-00000-of-00001.parquet")["tissue"].to_pylist() == [1] * 12
    overview = parquet.read_table(out / "patches_overview.parquet")
    assert overview.column_names == [
        "file_name", "slide_id", "xmin", "ymin", "xmax", "ymax", "Dice", "Jaccard", "bPQ"
    ]  # fmt: skip
    assert overview.num_rows == 24
    head = (out / "README.md").read_text().split("---")[1]
    assert "license: cc-by-4.0" in head
    assert "split: validation" in head


def test_shards(slide, tmp_path, monkeypatch):
    from pyarrow import parquet

    from stainseq.writers import huggingface

    monkeypatch.setattr(huggingface, "_SHARD_BYTES", 500_000)
    monkeypatch.setattr(huggingface, "_GROUP", 2)
    ss.io.export(slide, tmp_path / "o", to="huggingface", card=False)
    files = sorted((tmp_path / "o" / "data").iterdir())
    assert len(files) > 2
    assert [f.name for f in files] == [f"train-{i:05d}-of-{len(files):05d}.parquet" for i in range(len(files))]
    names = [n for f in files for n in parquet.read_table(f)["file_name"].to_pylist()]
    assert names == [f"{n}.png" for n in slide.shapes["patches"].index]


def test_hest(make, slide, tmp_path):
    import anndata as ad
    import h5py

    other = make.dataset(name="D2", n=20, seed=5)
    split = tmp_path / "s.json"
    split.write_text(json.dumps({"sets": {"train": ["D1"], "test": ["D2"]}}))
    out = tmp_path / "o"
    ss.io.export([slide, other], out, to="hest", split_file=split, size_px=64)
    table = slide.tables["counts_nuclei"]
    centres = {k: xy / 0.25 for k, xy in zip(table.obs_names, table.obsm["spatial"], strict=True)}
    pixels = np.moveaxis(np.asarray(slide.images["he"].data), 0, -1).astype(float)
    with h5py.File(out / "patches" / "D1.h5") as file:
        names = [b.decode() for b in file["barcode"][:, 0]]
        assert file["barcode"].shape == (len(names), 1)
        assert file["img"].shape == (len(names), 64, 64, 3)
        assert file["img"].dtype == np.uint8
        assert dict(file["img"].attrs) == {
            "patch_size_src": 128, "patch_size_target": 64, "downsample": 2.0, "pixel_size": 0.25, "name": "D1"
        }  # fmt: skip
        for i in range(0, len(names), 7):
            x, y = file["coords"][i]
            assert (x, y) == tuple(np.floor(centres[names[i]]).astype(int) - 64)
            block = pixels[y : y + 128, x : x + 128].reshape(64, 2, 64, 2, 3).mean((1, 3))
            assert np.abs(file["img"][i].astype(float) - block).mean() < 12  # noise, resampled another way
            shifted = np.abs(np.roll(file["img"][i].astype(float), 3, axis=0) - block).mean()
            assert np.abs(file["img"][i].astype(float) - block).mean() < shifted / 2
    low, high = np.array([64, 64]), np.array([900 - 64, 700 - 64])
    whole = {k for k, c in centres.items() if (np.floor(c) >= low).all() and (np.floor(c) <= high).all()}
    assert set(names) == whole
    made = ad.read_h5ad(out / "adata" / "D1.h5ad")
    assert list(made.obs_names) == list(table.obs_names)
    assert np.array_equal(made.X.toarray(), table.X.toarray())
    assert np.allclose(made.obsm["spatial"], np.stack(list(centres.values())))
    assert np.allclose(made.obs["pxl_col_in_fullres"], made.obsm["spatial"][:, 0])
    assert made.uns["spatial"]["ST"]["images"]["downscaled_fullres"].shape[2] == 3
    assert rows(out / "splits" / "train_0.csv") == [
        ["sample_id", "patches_path", "expr_path"], ["D1", "patches/D1.h5", "adata/D1.h5ad"]
    ]  # fmt: skip
    assert rows(out / "splits" / "test_0.csv")[1][0] == "D2"
    split.write_text(json.dumps({"sets": {"train": list(slide.shapes["patches"].index), "test": ["D2"]}}))
    with pytest.raises(MissingError, match="HEST splits slides"):
        ss.io.export([slide, other], tmp_path / "p", to="hest", split_file=split)
    with pytest.raises(InputError, match="no crop of 2000 px"):
        ss.io.export(slide, tmp_path / "p", to="hest", size_px=1000)
