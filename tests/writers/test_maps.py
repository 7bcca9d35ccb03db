"""Maps per gene, and what the original's scripts leave on the way: written, and read again."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pandas as pd
import pytest

import stainseq as ss
from stainseq import regions
from stainseq.core import pickles
from stainseq.errors import FormatError, InputError, MissingError
from stainseq.readers._pixel2gene import read_map
from stainseq.writers.per_gene import file_names

PREDICTED = "pred_ridge_superpixels"


def expected(sdata, name: str, shape: tuple[int, int], layer: str | None = None) -> np.ndarray:
    table = sdata[name]
    out = np.full((table.n_vars, *shape), np.nan, dtype=np.float32)
    values = table.X if layer is None else table.layers[layer]
    values = values.toarray() if hasattr(values, "toarray") else values
    for i, spot in enumerate(table.obs_names):
        row, col = (int(v) for v in spot.split("_"))
        out[:, row, col] = values[i]
    return out


@pytest.mark.parametrize("file", ["npy", "tsv", "tiff", "pickle"])
def test_maps_are_the_table(make: ModuleType, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stainseq.writers import _table

    sdata = make.slide(cells=False)
    monkeypatch.setattr(_table, "COLUMN_BYTES", 8 * 2 * sdata[PREDICTED].n_obs)  # two genes at a time
    ss.io.export(sdata, tmp_path / "p", to="per-gene", file=file)
    assert (tmp_path / "p" / "predict-gene-names.txt").read_text().split() == make.GENES
    shape = (10, 12)
    if file == "pickle":
        shape = (16, 16)  # 160 x 192 px at 0.5 um, padded to 256 x 256
        with open(tmp_path / "p" / "cnts-super" / "KRT8.pickle", "rb") as raw:
            assert pickle.load(raw).dtype == np.float16
    want = expected(sdata, PREDICTED, shape)
    for gene, values in zip(make.GENES, want, strict=True):
        got = read_map(tmp_path / "p" / "cnts-super" / f"{gene}.{file}")
        np.testing.assert_array_equal(got, values.astype(np.float16) if file == "pickle" else values)


def test_layers_and_counts(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide()
    ss.io.export(sdata, tmp_path / "s", to="per-gene", layer="spread", genes="KRT8")
    want = expected(sdata, PREDICTED, (10, 12), "spread")[4]
    np.testing.assert_array_equal(np.load(tmp_path / "s" / "cnts-super" / "KRT8.npy"), want)
    ss.io.export(sdata, tmp_path / "c", to="per-gene", table="counts_superpixels")
    want = expected(sdata, "counts_superpixels", (10, 12))[0]
    np.testing.assert_array_equal(np.load(tmp_path / "c" / "cnts-super" / "EPCAM.npy"), want)
    with pytest.raises(InputError, match="'cells' is no grid"):
        ss.io.export(sdata, tmp_path / "x", to="per-gene", table="counts_cells")
    sdata.tables[PREDICTED].X[0, 0] = 70_000
    with pytest.raises(InputError, match=r"EPCAM: values above 65,504"):
        ss.io.export(sdata, tmp_path / "x", to="per-gene", file="pickle")
    assert not (tmp_path / "x").exists()


def test_names_of_genes_become_names_of_files(make: ModuleType, tmp_path: Path) -> None:
    genes = ["HLA-A/B", "HLA-A:B", "h2", "H2", "../x"]
    assert file_names(genes) == ["HLA-A_B", "HLA-A_B~2", "h2", "H2~2", "_x"]
    sdata = make.slide(cells=False, genes=genes)
    ss.io.export(sdata, tmp_path / "f" / "P2-", to="superpixel")
    ss.io.export(sdata, tmp_path / "p", to="per-gene", file="pickle")
    assert {p.parent.name for p in (tmp_path / "p").rglob("*.pickle")} == {"cnts-super"}
    back = ss.io.read(tmp_path / "f", predictions=tmp_path / "p")
    table = back["pred_pixel2gene_superpixels"]
    assert list(table.var_names) == genes
    np.testing.assert_array_equal(table.X, sdata[PREDICTED].X.astype(np.float16).astype(np.float32))
    with pytest.raises(MissingError, match="no maps of genes"):
        ss.io.read(tmp_path / "f", predictions=tmp_path / "nowhere")


class _Evil:
    def __reduce__(self):
        return os.system, ("touch /nowhere/owned",)


@pytest.mark.parametrize("what", ["evil", "object", "damaged", "short"])
def test_pickles_are_read_without_running_them(make: ModuleType, tmp_path: Path, what: str) -> None:
    ran: list[str] = []
    bad = tmp_path / "bad.pickle"
    if what == "evil":
        bad.write_bytes(pickle.dumps({"map": _Evil()}))
    elif what == "object":
        bad.write_bytes(pickle.dumps(np.array([[ran, None]], dtype=object)))
    else:
        whole = pickle.dumps(np.zeros((9, 9), dtype=np.float16))
        bad.write_bytes(b"\x80\x04nonsense" if what == "damaged" else whole[:-20])
    with pytest.raises(FormatError, match="a pickle that is damaged or holds more than arrays"):
        pickles.load(bad)
    sdata = make.slide(cells=False)
    ss.io.export(sdata, tmp_path / "p", to="per-gene", file="pickle", genes="KRT8")
    ss.io.export(sdata, tmp_path / "f", to="superpixel")
    bad.replace(tmp_path / "p" / "cnts-super" / "KRT8.pickle")
    with pytest.raises(FormatError, match=r"KRT8\.pickle"):
        ss.io.read(tmp_path / "f", predictions=tmp_path / "p")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_are_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pickle"
    value = {"cls": [np.arange(6, dtype=np.float32).reshape(2, 3)], "n": np.float64(3), "names": ["a", ("b", 1)]}
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    got = pickles.load(path)
    np.testing.assert_array_equal(got["cls"][0], value["cls"][0])
    assert (got["n"], got["names"]) == (3.0, value["names"])


def test_pickles_of_older_numpy_are_read(tmp_path: Path) -> None:
    value = np.arange(6, dtype=np.float16).reshape(2, 3)
    old = pickle.dumps(value, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in old
    (tmp_path / "a.pickle").write_bytes(old)
    np.testing.assert_array_equal(read_map(tmp_path / "a.pickle"), value)


def test_the_way_from_transcripts_to_counts(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide(mpp=0.37, height=180, width=220)
    sdata.images["morphology"] = make.picture(80, 90, 0.9)
    ss.io.export(sdata, tmp_path / "i", to="superpixel", intermediate=True)
    out = tmp_path / "i"
    size = round(8 / 0.37, 2)
    moved = pd.read_parquet(out / "transcript_he_pixel.parquet")
    points = sdata["transcripts"].compute()
    um = points[["x", "y"]].to_numpy().astype(np.float64)
    np.testing.assert_allclose(moved[["he_x", "he_y"]], um / 0.37, rtol=1e-12)
    np.testing.assert_array_equal(moved[["x_location", "y_location"]], um)
    # Bins by the plainest of means, from the very pixels that were written.
    naive: dict[str, dict[str, int]] = {}
    for x, y, gene in zip(moved["he_x"], moved["he_y"], moved["feature_name"], strict=True):
        if 0 <= x < 220 and 0 <= y < 180 and not gene.startswith("NegControl"):
            counts = naive.setdefault(f"{int(x // size)}_{int(y // size)}", {})
            counts[gene] = counts.get(gene, 0) + 1
    made = pd.read_parquet(out / f"transcript_cnts{size:g}_inimage.parquet")
    assert set(made.index) == set(naive)
    assert sorted(made.columns) == sorted(make.GENES)
    assert {i: {g: int(n) for g, n in row.items() if n} for i, row in made.to_dict("index").items()} == naive
    places = pd.read_csv(out / f"transcript_locs{size:g}_inimage.tsv", sep="\t", index_col=0)
    assert list(places.index) == list(made.index)
    at = np.array([[int(v) for v in i.split("_")] for i in made.index])
    np.testing.assert_allclose(places.to_numpy(), at * size + size / 2)
    # Xenium's microns begin at the corner of the morphology image: no origin of a well is added.
    stage = np.loadtxt(out / "extras" / "stage_to_morph.txt", delimiter=",")
    np.testing.assert_allclose(stage, np.diag([1 / 0.9, 1 / 0.9, 1]))
    to_he = np.loadtxt(out / "extras" / "morphology_to_he.txt", delimiter=",")
    np.testing.assert_allclose(to_he, np.diag([0.9 / 0.37, 0.9 / 0.37, 1]), atol=1e-12)
    totals = sdata["counts_superpixels"].X.sum(axis=0).A1
    order = sorted((-t, i) for i, t in enumerate(totals) if t > 20)
    assert (out / "gene-names.txt").read_text().split() == [make.GENES[i] for _, i in order]


def test_what_lies_on_the_way_is_read(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide(height=200, width=240)
    sdata.images["morphology"] = make.picture(80, 90, 0.9)
    ss.io.export(sdata, tmp_path / "i" / "P2-", to="superpixel", intermediate=True)
    out = tmp_path / "i"
    mask = cv2.imread(str(out / "P2-mask-small-hs.png"), cv2.IMREAD_GRAYSCALE)
    assert mask.shape == (16, 16)
    assert int((mask > 0).sum()) == sdata["counts_superpixels"].n_obs
    back = ss.io.read(out)
    assert list(back["counts_superpixels"].obs["filter_he_qc"]) == list(sdata["counts_superpixels"].obs["filter_he_qc"])
    area = back["tissue"].geometry.area.sum()
    assert area == pytest.approx(64 * sdata["counts_superpixels"].n_obs)
    # Superpixels laid over that tissue are those of the mask.
    again = ss.pp.superpixels(back, key_added="again")
    assert set(regions.get(again, "again").ids) == set(sdata["counts_superpixels"].obs_names)
    for name in ("cnts.parquet", "locs-raw.tsv"):
        (out / f"P2-{name}").unlink()
    for cut in ("P2-pixel-size-raw.txt", None):
        from_bins = ss.io.read(out)
        table = from_bins["counts_superpixels"]
        raw = pd.read_parquet(out / "P2-transcript_cnts20_inimage.parquet")
        np.testing.assert_array_equal(table.to_df()[raw.columns].to_numpy(), raw.to_numpy())
        got = from_bins["transcripts"].compute()
        want = sdata["transcripts"].compute()
        np.testing.assert_allclose(got[["x", "y"]], want[["x", "y"]], atol=1e-9)
        assert list(got["feature_name"].astype(str)) == list(want["feature_name"].astype(str))
        assert from_bins.attrs["stainseq"]["mpp"] == 0.4
        if cut:
            (out / cut).unlink()  # the side of a bin stands in the name of the counts


def test_faults_on_the_way_are_told(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide()
    sdata.images["morphology"] = make.picture(80, 90, 0.9)
    ss.io.export(sdata, tmp_path / "i", to="superpixel", intermediate=True)
    out = tmp_path / "i"
    mask = (out / "mask-small-hs.png").read_bytes()
    (out / "mask-small-hs.png").write_bytes(mask[:40])
    with pytest.raises(FormatError, match="the mask cannot be read"):
        ss.io.read(out)
    cv2.imwrite(str(out / "mask-small-hs.png"), np.ones((5, 5), np.uint8))
    with pytest.raises(InputError, match="a mask of 5 x 5 where the picture has 16 x 16 or 10 x 12"):
        ss.io.read(out)
    (out / "mask-small-hs.png").write_bytes(mask)
    for name in ("cnts.parquet", "locs-raw.tsv"):
        (out / name).unlink()
    ss.io.read(out)
    stage = out / "extras" / "stage_to_morph.txt"
    stage.write_text("4.7 0 1033.5\n0 4.7 2210\n0 0 1\n")
    with pytest.raises(InputError, match=r"well's origin \(1033.5, 2210 px\) was added.*morphology_to_he"):
        ss.io.read(out)
    stage.unlink()
    moved = out / "transcript_he_pixel.parquet"
    frame = pd.read_parquet(moved)
    (frame.assign(he_x=frame["he_x"] + 900)).to_parquet(moved)
    with pytest.raises(InputError, match="of the transcripts lie in the picture"):
        ss.io.read(out)
    frame.drop(columns=["he_x"]).to_parquet(moved)
    with pytest.raises(FormatError, match="no columns of names and H&E pixels"):
        ss.io.read(out)
    frame.to_parquet(moved)
    moved.write_bytes(moved.read_bytes()[:3000])
    with pytest.raises(FormatError, match="truncated or damaged"):
        ss.io.read(out)


def test_keypoints_with_their_level_in_the_name(tmp_path: Path) -> None:
    xy = np.random.default_rng(0).uniform(0, 40_000, (12, 2))
    for name, level in (("he#2_tiff_keypoints.txt", 2), ("morphology#3_keypoints.txt", 3), ("he_keypoints.txt", 0)):
        ss.io.write_keypoints(xy, tmp_path / name, level=level)
        got = ss.io.read_keypoints(tmp_path / name)
        np.testing.assert_array_equal(got.xy, xy)
        assert got.level == level
        np.testing.assert_array_equal(np.loadtxt(tmp_path / name) * 2.0**level, xy)
    with pytest.raises(InputError, match="level 2 is not what the name tells"):
        ss.io.write_keypoints(xy, tmp_path / "he#1_keypoints.txt", level=2)
    with pytest.raises(InputError, match="landmarks of shape"):
        ss.io.write_keypoints(xy[:, :1], tmp_path / "he.txt")
