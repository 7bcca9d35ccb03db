"""Xenium bundles of every version, made with a planted law: what is read is what was planted."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from spatialdata.transformations import get_transformation

import stainseq as ss
from stainseq import store
from stainseq.cli import run
from stainseq.datasets._xenium import VERSIONS
from stainseq.errors import FormatError, InputError, MissingError, StoreError
from stainseq.readers import _transcripts, xenium


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ss.datasets.Planted]]:
    root = tmp_path_factory.mktemp("xenium")
    return {v: (root / v, ss.datasets.xenium(root / v, version=v, n_genes=12)) for v in VERSIONS}


def um_of_he(sdata) -> np.ndarray:
    return get_transformation(sdata["he"], "um").to_affine_matrix(("x", "y"), ("x", "y"))


def level0(element) -> np.ndarray:
    return np.asarray(element["scale0"]["image"].data)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version(bundles, version: str) -> None:
    folder, truth = bundles[version]
    assert xenium.sniff(folder) == f"Xenium (onboard analysis {version}.0.15)"
    sdata = ss.io.read(folder)
    raw = pd.read_parquet(folder / "transcripts.parquet")
    names = raw["feature_name"].map(lambda v: v.decode() if isinstance(v, bytes) else v)
    kept = raw[(raw["qv"] >= 20) & names.isin(truth.names)]
    points = sdata["transcripts"].compute()
    assert len(points) == len(kept)
    assert points["feature_name"].astype(str).value_counts().to_dict() == names[kept.index].value_counts().to_dict()
    assert set(points["cell_id"].astype(str)) - set(sdata["cells"].index) == {"UNASSIGNED"}
    table = sdata["counts_cells"]
    assert list(table.var_names) == list(truth.names)
    assert (table.obs["transcript_counts"].to_numpy() == np.asarray(table.X.sum(axis=1)).ravel()).all()
    assert table.obs_names.equals(pd.Index(sdata["cells"].index, dtype=object))
    nuclei = sdata["nuclei"]
    assert nuclei.index.is_unique
    assert set(nuclei["cell_id"]) == set(table.obs_names)
    several = nuclei["cell_id"].duplicated(keep=False)
    assert several.any() == (version >= "2")
    if several.any():
        double = nuclei[several]
        assert list(double.index) == [f"{c}:{k}" for c, k in zip(double["cell_id"], double["label"], strict=True)]
    channels = ["DAPI"] if version < "2" else ["DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin"]
    assert sdata["morphology"]["scale0"]["image"].coords["c"].values.tolist() == channels
    assert sdata.attrs["stainseq"]["pixel_size"] == 0.2125


def test_the_picture_lies_on_the_nuclei(bundles) -> None:
    """Through the alignment, turned by -89.5 degrees: the H&E is dark where nuclei are, and was elsewhere before."""
    folder, truth = bundles["3.0"]
    sdata = ss.io.read(folder)
    picture = level0(sdata["he"]).mean(axis=0)
    inverse = np.linalg.inv(um_of_he(sdata))
    at = truth.nuclei_um @ inverse[:2, :2].T + inverse[:2, 2]
    column, row = np.floor(at).astype(int).T
    inside = (row >= 0) & (column >= 0) & (row < picture.shape[0]) & (column < picture.shape[1])
    assert inside.mean() > 0.99
    on = picture[row[inside], column[inside]].mean()
    moved = picture[(row[inside] + 25) % picture.shape[0], column[inside]].mean()
    assert on < moved - 15
    # The DAPI image, in the same frame, is bright there.
    dapi = level0(sdata["morphology"])[0]
    x, y = np.minimum((truth.nuclei_um / 0.2125).astype(int), dapi.shape[0] - 1).T
    assert dapi[y, x].mean() > 1.5 * dapi.mean()


def test_transcripts_carry_the_law(bundles) -> None:
    folder, truth = bundles["3.0"]
    points = ss.io.read(folder)["transcripts"].compute()
    for gene in (0, 1, 5):
        mine = points[points["feature_name"] == truth.names[gene]]
        seen = np.histogram2d(mine["y"], mine["x"], bins=len(truth.rate), range=[[0, truth.side_um]] * 2)[0]
        expected = (truth.rate[..., gene] * truth.depth).ravel()
        assert (
            np.corrcoef(seen.ravel(), expected)[0, 1]
            > 0.6 * np.corrcoef(np.random.default_rng(0).poisson(expected), expected)[0, 1]
        )


def test_projective_alignments_in_both_directions(tmp_path: Path) -> None:
    truth = ss.datasets.xenium(tmp_path / "p", n_genes=3, projective=True, transcripts=False)
    sdata = ss.io.read(tmp_path / "p")
    kept = np.array(sdata["he"].attrs["stainseq"]["projective"])
    matrix = np.loadtxt(tmp_path / "p" / "planted_he_imagealignment.csv", delimiter=",")
    expected = np.diag([0.2125, 0.2125, 1]) @ matrix
    np.testing.assert_allclose(kept, expected / expected[2, 2], rtol=1e-9)
    inverse = np.linalg.inv(matrix)
    np.savetxt(tmp_path / "back.csv", inverse / inverse[2, 2], delimiter=",", fmt="%.17g")
    other = ss.io.read(tmp_path / "p", he_alignment=tmp_path / "back.csv", he_direction="morphology_to_he")
    np.testing.assert_allclose(um_of_he(other), um_of_he(sdata), rtol=1e-6, atol=1e-6)
    assert truth.side_um == 400


def test_convert_keeps_everything(bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = bundles["3.0"]
    assert run(["convert", str(folder), str(tmp_path / "x.zarr"), "--patient", "P"]) == 0
    sdata = ss.io.open(tmp_path / "x.zarr")
    assert store.facts(sdata)["platform"] == "xenium"
    assert store.problems(tmp_path / "x.zarr") == []
    box = (100.0, 100.0, 180.0, 150.0)
    inside = store.read_points_window(sdata, "transcripts", box)
    every = sdata["transcripts"].compute()
    expected = every["x"].between(box[0], box[2]) & every["y"].between(box[1], box[3])
    assert inside.num_rows == int(expected.sum()) > 100


def bundle(tmp_path: Path, **options) -> Path:
    ss.datasets.xenium(tmp_path / "b", n_genes=4, **options)
    return tmp_path / "b"


def test_he_without_alignment_is_refused_or_kept_apart(tmp_path: Path) -> None:
    folder = bundle(tmp_path, transcripts=False)
    (folder / "planted_he_imagealignment.csv").unlink()
    with pytest.raises(MissingError, match="without its alignment"):
        ss.io.read(folder)
    sdata = ss.io.read(folder, he_alignment="none")
    assert any("stainseq align" in n for n in sdata.attrs["stainseq"]["notes"])
    slide = ss.io.convert(folder, tmp_path / "s.zarr", he_alignment="none")
    with pytest.raises(InputError, match=r"'he' is not registered.*stainseq align"):
        ss.pp.features(slide, region="cells", encoder="colour")
    xy = np.array([[10.0, 10], [600, 20], [30, 580], [590, 610]])
    ss.pp.align(slide, he=xy, target=0.27405 * xy, target_unit="um")
    ss.pp.features(ss.io.open(tmp_path / "s.zarr"), region="cells", encoder="colour")
    (folder / "planted_he_imagealignment.csv").write_text("1,0\n0,1\n")
    with pytest.raises(FormatError, match="a matrix of shape"):
        ss.io.read(folder)


def test_truncated_files(tmp_path: Path) -> None:
    folder = bundle(tmp_path)
    whole = (folder / "transcripts.parquet").read_bytes()
    (folder / "transcripts.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"transcripts cannot be read"):
        ss.io.convert(folder, tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr").exists()
    (folder / "transcripts.parquet").write_bytes(whole)
    whole = (folder / "cells.parquet").read_bytes()
    (folder / "cells.parquet").write_bytes(whole[:100])
    with pytest.raises(FormatError, match=r"cells.parquet"):
        ss.io.read(folder)
    (folder / "cells.parquet").write_bytes(whole)
    (folder / "experiment.xenium").write_text("{")
    with pytest.raises(FormatError, match="not JSON"):
        ss.io.read(folder)


def test_double_cells_and_wrong_pixel_size(tmp_path: Path) -> None:
    folder = bundle(tmp_path, transcripts=False)
    frame = pd.read_parquet(folder / "cells.parquet")
    pd.concat([frame, frame.iloc[:2]]).to_parquet(folder / "cells.parquet")
    with pytest.raises(InputError, match="2 duplicate ids"):
        ss.io.read(folder)
    frame[["x_centroid", "y_centroid"]] *= 1 / 0.2125  # pixels where microns belong
    frame.to_parquet(folder / "cells.parquet")
    with pytest.raises(InputError, match="of the cells lie in the morphology image"):
        ss.io.read(folder)


def test_outlines_whose_rows_are_scattered(tmp_path: Path) -> None:
    folder = bundle(tmp_path, transcripts=False)
    whole = ss.io.read(folder)["cells"].geometry
    frame = pd.read_parquet(folder / "cell_boundaries.parquet")
    within = frame.groupby("cell_id", sort=False).cumcount()
    frame.iloc[np.lexsort((frame.index, within))].to_parquet(folder / "cell_boundaries.parquet")
    assert ss.io.read(folder)["cells"].geometry.geom_equals(whole).all()


def test_csv_alone(tmp_path: Path) -> None:
    folder = bundle(tmp_path, version="1.0")
    a = ss.io.read(folder)["transcripts"].compute()
    for file in folder.glob("*.parquet"):
        file.unlink()
    b = ss.io.read(folder)["transcripts"].compute()
    assert len(a) == len(b)
    np.testing.assert_allclose(a[["x", "y"]].to_numpy(), b[["x", "y"]].to_numpy(), atol=1e-3)
    assert (a["cell_id"].astype(str).to_numpy() == b["cell_id"].astype(str).to_numpy()).all()
    text = gzip.decompress((folder / "transcripts.csv.gz").read_bytes())
    (folder / "transcripts.csv.gz").write_bytes(gzip.compress(text)[:-2000])
    with pytest.raises(FormatError, match="transcripts cannot be read"):
        ss.io.read(folder)


def test_one_row_group_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the oldest runs have it: read in pieces, in order and out of it, from several threads."""
    folder = bundle(tmp_path, he=False)
    whole = ss.io.read(folder)["transcripts"].compute().reset_index(drop=True)
    pd.read_parquet(folder / "transcripts.parquet").to_parquet(folder / "transcripts.parquet", row_group_size=10**9)
    monkeypatch.setattr(_transcripts, "_BLOCK", 5000)
    points = ss.io.read(folder)["transcripts"]
    assert points.npartitions > 8
    for scheduler in ("sync", "threads"):
        pd.testing.assert_frame_equal(points.compute(scheduler=scheduler).reset_index(drop=True), whole)
    sixth = points.get_partition(6).compute()
    assert points.get_partition(2).compute()["x"].iloc[0] != sixth["x"].iloc[0]
    pd.testing.assert_frame_equal(points.get_partition(6).compute(), sixth)


def test_the_generator_refuses() -> None:
    with pytest.raises(InputError, match="no version"):
        ss.datasets.xenium("nowhere", version="9")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no size"):
        ss.datasets.planted(size="huge")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="already"):
        ss.datasets.xenium(Path(__file__).parent)
