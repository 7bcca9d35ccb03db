"""Formats of instance maps, and scores of them."""

from __future__ import annotations

import json
import math
import shutil
import zipfile

import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import tifffile

import stainseq as ss
from stainseq.errors import FormatError, InputError, MissingError, ScaleError, StainseqError
from stainseq.masks import open_masks


@pytest.fixture
def maps():
    """Two nuclei with an id beyond 16 bits, and their classes."""
    labels = np.zeros((20, 24), dtype=np.int32)
    labels[2:8, 3:9], labels[10:18, 12:20] = 1, 70_000
    return labels, np.where(labels == 1, 2, np.where(labels > 1, 1, 0)).astype(np.int32)


def parts(prefix, dense):
    m = sp.csr_matrix(dense)
    return {f"{prefix}{k}": np.asarray(getattr(m, k)) for k in ("data", "indices", "indptr", "shape")}


def write_npy(path, labels, classes):
    np.save(path / "a.npy", labels)


def write_npz(path, labels, classes):
    np.savez(path / "a.npz", inst_map=labels, type_map=classes)


def write_cellvit_npz(path, labels, classes):
    np.savez(path / "a.npz", **parts("inst_map_", labels), **parts("type_map_", classes))


def write_sparse(path, labels, classes):
    sp.save_npz(path / "a.npz", sp.csr_matrix(labels))


def write_zip(path, labels, classes):
    np.savez(path / "x.npz", **parts("inst_map_", labels), **parts("type_map_", classes))
    with zipfile.ZipFile(path / "labels.zip", "w") as z:
        z.write(path / "x.npz", "labels/a.npz")
    (path / "x.npz").unlink()


def write_tiff(path, labels, classes):
    tifffile.imwrite(path / "a.tif", labels.astype(np.uint32))


def write_rgb(path, labels, classes):
    colours = np.array([[0, 0, 0], [255, 3, 9], [7, 0, 0]], dtype=np.uint8)
    cv2.imwrite(str(path / "a.png"), colours[np.unique(labels, return_inverse=True)[1].reshape(labels.shape)])


def write_mat(path, labels, classes):
    scipy.io.savemat(path / "a.mat", {"inst_map": labels.astype(float), "type_map": classes})


def write_h5(path, labels, classes):
    with h5py.File(path / "instance_map_predictions_s.h5", "w") as f:
        for k, v in parts("a.png_", labels).items():
            f[k] = v


def write_geojson(path, labels, classes):
    features = []
    for k, kind in ((1, "b"), (70_000, "a")):
        y, x = np.nonzero(labels == k)
        a, b, c, d = x.min(), x.max(), y.min(), y.max()
        ring = [[int(p), int(q)] for p, q in ((a, c), (b, c), (b, d), (a, d), (a, c))]
        geometry = (
            {"type": "MultiPolygon", "coordinates": [[ring]]} if k == 1 else {"type": "Polygon", "coordinates": [ring]}
        )
        features.append({"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": kind}}})
    (path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def write_cells(path, labels, classes):
    cells = []
    for k in (1, 70_000):
        y, x = np.nonzero(labels == k)
        a, b, c, d = (int(v) for v in (x.min(), x.max(), y.min(), y.max()))
        cells.append({"contour": [[a, c], [b, c], [b, d], [a, d]], "type": 3 - len(cells)})
    (path / "a.json").write_text(json.dumps({"cells": cells}))


WRITERS = [v for k, v in sorted(globals().items()) if k.startswith("write_")]


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
def test_formats(write, maps, tmp_path):
    """Every format gives the same map up to the ids, alone and as the only file of a folder."""
    labels, classes = maps
    write(tmp_path, labels, classes)
    (file,) = tmp_path.iterdir()
    for path in (tmp_path, file):
        held = open_masks(path)
        assert held.names == ["a"]
        mask = held.read("a", labels.shape)
        pairs = np.unique(np.stack([labels.ravel(), mask.instances.ravel()]), axis=1)
        assert pairs.shape[1] == 3
        assert pairs[:, 0].tolist() == [0, 0]
        if mask.classes is not None:
            assert np.array_equal(mask.classes, classes)
    np.save(tmp_path / "truth.npy", labels)
    assert ss.tl.maskqc(file, tmp_path / "truth.npy")["summary"]["pq"] == pytest.approx(1, abs=2e-6)


def test_pannuke_masks(maps, tmp_path):
    """Channels become classes; an id that returns in another channel is another nucleus; the folder is recognised."""
    labels, _ = maps
    masks = np.zeros((3, 20, 24, 6))
    masks[1, ..., 2][labels == 1], masks[1, ..., 4][labels > 1] = 5, 5
    masks[..., 5] = masks[..., :5].sum(-1) == 0
    np.save(tmp_path / "masks.npy", masks)
    np.save(tmp_path / "images.npy", np.zeros((3, 2, 2, 3)))
    held = open_masks(tmp_path)
    assert held.names == ["0", "1", "2"]
    mask = held.read("1", None)
    assert len(np.unique(mask.instances)) == 3
    assert np.array_equal(mask.classes, np.where(labels == 1, 3, np.where(labels > 1, 5, 0)))
    got = ss.tl.maskqc(tmp_path, tmp_path)
    assert math.isnan(got["image"][0]["pq"])
    assert got["image"][1]["mpq"] == pytest.approx(1, abs=4e-6)
    assert got["classes"]["3"]["f1"] == 1


def test_published_file(data_dir):
    """The HoVer-Net authors' values through the files and the function."""
    folder = data_dir / "seg_metrics_reference"
    for row in pd.read_csv(folder / "published_values.csv").itertuples():
        got = ss.tl.maskqc(folder / f"{row.prediction}.png", folder / "true.png")["image"][0]
        want = [row.DICE2, row.AJI, row.AJI_plus, row.PQ]
        assert [round(got[k], 4) for k in ("dice2", "aji", "aji_plus", "pq")] == want


@pytest.fixture
def several(maps, tmp_path):
    """Four images in two folders, the prediction of each worse than the one before."""
    labels, classes = maps
    for side in ("truth", "pred"):
        (tmp_path / side).mkdir()
    for k in range(4):
        np.savez(tmp_path / "truth" / f"s_{k}.npz", inst_map=labels, type_map=classes)
        np.savez(tmp_path / "pred" / f"s_{k}.npz", inst_map=np.roll(labels, k, 0), type_map=np.roll(classes, k, 0))
    return tmp_path


def test_averages(several):
    """Means over images, over tissues and over folds are what they are called."""
    groups = pd.DataFrame({"img": [f"s_{k}.png" for k in range(4)], "type": list("aaab"), "fold": [0, 1, 1, 1]})
    got = ss.tl.maskqc(several / "pred", several / "truth", groups=groups, average="fold")
    pq = [row["pq"] for row in got["image"]]
    assert pq[0] > pq[1] > pq[2] > pq[3]
    assert got["averages"]["image"]["pq"] == pytest.approx(np.mean(pq))
    assert got["averages"]["tissue"]["pq"] == pytest.approx((np.mean(pq[:3]) + pq[3]) / 2)
    assert got["summary"]["pq"] == pytest.approx((pq[0] + (np.mean(pq[1:3]) + pq[3]) / 2) / 2)
    assert got["protocol"]["average"] == "fold"
    assert got["tissues"]["b"]["pq"] == pytest.approx(pq[3])
    assert got["classes"]["1"]["pq"] == pytest.approx(
        np.mean(
            [
                ss.tl.maskqc(several / "pred" / f"s_{k}.npz", several / "truth" / f"s_{k}.npz")["classes"]["1"]["pq"]
                for k in range(4)
            ]
        )
    )


def test_missing_images(several):
    (several / "pred" / "s_2.npz").unlink()
    with pytest.raises(MissingError, match="1 images have no prediction"):
        ss.tl.maskqc(several / "pred", several / "truth")
    assert len(ss.tl.maskqc(several / "pred", several / "truth", missing="skip")["image"]) == 3
    empty = ss.tl.maskqc(several / "pred", several / "truth", missing="empty")["image"]
    assert [r["name"] for r in empty] == ["s_0", "s_1", "s_2", "s_3"]
    assert empty[2]["pq"] == empty[2]["dice"] == empty[2]["mpq"] == 0
    (several / "truth" / "s_0.npz").unlink()
    with pytest.raises(MissingError, match="have no truth"):
        ss.tl.maskqc(several / "pred", several / "truth")


def test_several_runs(several):
    """A slide predicted in two runs; a patch that both hold is an error."""
    first, second = several / "1", several / "2"
    for folder, numbers in ((first, (0, 1)), (second, (2, 3))):
        folder.mkdir()
        for k in numbers:
            shutil.copy(several / "pred" / f"s_{k}.npz", folder)
    joined = ss.tl.maskqc([first, second], several / "truth")
    assert joined["image"] == ss.tl.maskqc(several / "pred", several / "truth")["image"]
    with pytest.raises(InputError, match="is there twice"):
        ss.tl.maskqc([first, several / "pred"], several / "truth")


def test_classes_by_name_and_number(maps, tmp_path):
    labels, classes = maps
    write_geojson(tmp_path, labels, classes)
    np.savez(tmp_path / "t.npz", inst_map=labels, type_map=classes)
    with pytest.raises(InputError, match="one side names its classes"):
        ss.tl.maskqc(tmp_path / "a.geojson", tmp_path / "t.npz")
    got = ss.tl.maskqc(tmp_path / "a.geojson", tmp_path / "t.npz", kinds=["a", "b"])
    assert got["summary"]["mpq"] == pytest.approx(1, abs=4e-6)
    assert set(got["classes"]) == {"a", "b"}
    swapped = ss.tl.maskqc(tmp_path / "a.geojson", tmp_path / "t.npz", kinds=["b", "a"])
    assert swapped["summary"]["mpq"] == 0
    assert swapped["summary"]["bpq"] == pytest.approx(1, abs=4e-6)
    with pytest.raises(InputError, match="not among the kinds"):
        ss.tl.maskqc(tmp_path / "a.geojson", tmp_path / "t.npz", kinds=["a", "c"])


def spoil(path, labels, case):
    if case == "size":
        np.save(path / "p.npy", labels[:-1])
    elif case == "fraction":
        np.save(path / "p.npy", labels + 0.5)
    elif case == "negative":
        np.save(path / "p.npy", labels - 1)
    elif case == "truncated":
        np.savez(path / "p.npz", inst_map=labels)
        (path / "p.npz").write_bytes((path / "p.npz").read_bytes()[:200])
    elif case == "outside":
        parts = {"data": [1], "indices": [5_000_000], "indptr": [0, 1, 1], "shape": [2, 2]}
        np.savez(path / "p.npz", **{f"inst_map_{k}": np.array(v) for k, v in parts.items()})
    elif case == "mat":
        scipy.io.savemat(
            path / "p.mat", {"inst_map": np.random.default_rng(0).integers(0, 9, (99, 99))}, do_compression=True
        )
        held = bytearray((path / "p.mat").read_bytes())
        held[1000:1100] = bytes(100)
        (path / "p.mat").write_bytes(held)
    elif case == "png":
        (path / "p.png").write_text("no picture")
    elif case == "pickle":
        np.save(path / "p.npy", np.array([{"inst_map": labels}], dtype=object), allow_pickle=True)
    elif case == "h5":
        (path / "p.h5").write_bytes(b"x" * 100)
    elif case == "half":
        with h5py.File(path / "p.h5", "w") as f:
            f["a_shape"] = [2, 2]
    elif case == "point":
        (path / "p.geojson").write_text('{"features": [{"geometry": {"type": "Point", "coordinates": [1, 2]}}]}')
    elif case == "ring":
        (path / "p.json").write_text('{"cells": [{"contour": [[0, 0], [3, 0], [0, 3]]}, {"contour": []}]}')
    elif case == "names":
        np.savez(path / "p.npz", a=labels, b=labels)
    elif case == "ending":
        (path / "p.docx").write_text("")


CASES = ["size", "fraction", "negative", "truncated", "outside", "mat", "png", "pickle", "h5", "half", "point", "names"]
CASES += ["ending", "ring"]


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, maps, tmp_path):
    labels, _ = maps
    np.save(tmp_path / "truth.npy", labels)
    spoil(tmp_path, labels, case)
    (bad,) = (p for p in tmp_path.iterdir() if p.stem == "p")
    with pytest.raises(FormatError) as e:
        ss.tl.maskqc(bad, tmp_path / "truth.npy")
    assert "p." in str(e.value) or "truth" in str(e.value)


def test_names_in_a_folder(tmp_path):
    """In natural order, without what an export says of itself."""
    for name in ("10", "2", "1\u00b23"):  # a raised two is a digit to Python, and no number
        np.save(tmp_path / f"{name}.npy", np.ones((2, 2), dtype=int))
    (tmp_path / "export.json").write_text("{}")
    assert open_masks(tmp_path).names == ["1\u00b23", "2", "10"]


def test_refusals(maps, tmp_path):
    labels, classes = maps
    np.save(tmp_path / "truth.npy", labels)
    write_geojson(tmp_path, labels, classes)
    for call, error in (
        (lambda: open_masks(tmp_path / "no.png"), MissingError),
        (lambda: open_masks(), InputError),
        (lambda: ss.tl.maskqc(tmp_path / "a.geojson", tmp_path / "a.geojson"), ScaleError),
        (lambda: ss.tl.maskqc(tmp_path / "truth.npy", tmp_path / "truth.npy", mpp=0), InputError),
        (lambda: ss.tl.maskqc(tmp_path / "truth.npy", tmp_path / "truth.npy", mpp=np.nan), InputError),
        (lambda: ss.tl.maskqc(tmp_path / "truth.npy", tmp_path / "truth.npy", groups=tmp_path / "no.csv"), FormatError),
        (
            lambda: ss.tl.maskqc(tmp_path / "truth.npy", tmp_path / "truth.npy", groups=tmp_path / "truth.npy"),
            FormatError,
        ),
        (lambda: ss.tl.maskqc(tmp_path / "truth.npy", tmp_path / "truth.npy", average="fold"), InputError),
    ):
        with pytest.raises(error):
            call()
    same = ss.tl.maskqc(tmp_path / "a.geojson", tmp_path / "a.geojson", size=(20, 24))
    assert same["summary"]["pq"] == pytest.approx(1, abs=2e-6)


def test_command(several, capsys):
    from stainseq.cli import run

    kinds = several / "cat2idx.json"
    kinds.write_text('{"Immune": 0, "Stromal": 1}')
    arguments = ["maskqc", "--pred", str(several / "pred"), "--truth", str(several / "truth")]
    assert run([*arguments, "--kinds", str(kinds), "--csv", str(several / "rows.csv")]) == 0
    shown = capsys.readouterr().out
    assert "4 images" in shown
    assert len(pd.read_csv(several / "rows.csv")) == 4
    assert run([*arguments, "--json", "/dev/stdout"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert {"dice", "jaccard", "aji", "aji_plus", "dq", "sq", "pq", "bpq", "mpq"} <= set(summary)
    assert run([*arguments[:3], "--truth", str(several / "nowhere")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert issubclass(FormatError, StainseqError)
