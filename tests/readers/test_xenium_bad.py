"""Xenium folders that cannot be right: one clear error each; and what is filtered is stated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stainseq as ss
from stainseq.cli import run
from stainseq.errors import InputError, MissingError, ScaleError, StainseqError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "whole"
    ss.datasets.xenium(folder, n_genes=4)
    return folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"he_direction": "backwards"}, "one of: he_to_morphology, morphology_to_he"),
        ({"masks": 1}, "give true or false"),
        ({"min_qv": True}, "give a number"),
        ({"morphology_origin_um": [1.0]}, "give x and y"),
        ({"morphology_origin_um": "corner"}, "give x and y"),
    ],
)
def test_values_of_options(made: Path, option: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ss.io.read(made, **option)


def told(folder: Path, **changes: object) -> None:
    file = folder / "experiment.xenium"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit(folder: Path, name: str, change) -> None:
    frame = pd.read_parquet(folder / name)
    changed = change(frame)
    (frame if changed is None else changed).to_parquet(folder / name)


def scale(*columns: str, by: float):
    def change(frame: pd.DataFrame) -> None:
        frame[list(columns)] *= np.float32(by)

    return change


def notes(sdata) -> str:
    return "\n".join(sdata.attrs["stainseq"]["notes"])


def test_pixel_sizes_that_disagree(bundle: Path) -> None:
    with pytest.raises(ScaleError, match=r"--mpp 0.5 um per pixel, but experiment.xenium says 0.2125 and the morph"):
        ss.io.read(bundle, mpp=0.5)
    with pytest.raises(InputError, match="no pixel size of a slide"):
        ss.io.read(bundle, mpp=-1)
    told(bundle, pixel_size=0.425)
    with pytest.raises(ScaleError, match=r"experiment.xenium says 0.425 and the morphology image says 0.2125"):
        ss.io.read(bundle)
    assert ss.io.read(bundle, mpp=0.2125).attrs["stainseq"]["pixel_size"] == 0.2125
    told(bundle, pixel_size="wide")
    with pytest.raises(InputError, match="pixel_size 'wide' is no number"):
        ss.io.read(bundle)
    told(bundle, pixel_size=2125)
    with pytest.raises(InputError, match=r"mpp=2125 is no pixel size of a slide.*experiment.xenium"):
        ss.io.read(bundle)


def test_files_that_are_named_and_missing(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no such alignment file.*nowhere.csv"):
        ss.io.read(bundle, he_alignment=tmp_path / "nowhere.csv")
    with pytest.raises(StainseqError, match=r"nowhere.tif"):
        ss.io.read(bundle, he=tmp_path / "nowhere.tif")


@pytest.mark.parametrize("version", ["xenium-9.1.0.2", "xenium-dev"])
def test_unknown_versions_are_refused(bundle: Path, version: str, capsys: pytest.CaptureFixture[str]) -> None:
    told(bundle, analysis_sw_version=version)
    name = version.removeprefix("xenium-")
    command = ["convert", str(bundle), str(bundle.parent / "x.zarr")]
    assert run(command) == 1
    error = capsys.readouterr().err
    assert f"an unknown version of Xenium's analysis ({name})" in error
    assert error.count("\n") == 1
    assert run([*command, "--option", "version=5"]) == 1
    capsys.readouterr()
    assert run([*command, "--option", "version=4"]) == 0
    assert f"analysis version {name} was read as version 4" in capsys.readouterr().out


def test_known_versions_are_not(made: Path) -> None:
    assert "was read as version" not in notes(ss.io.read(made))


@pytest.mark.parametrize(
    "name",
    [
        *("cells.parquet", "cell_boundaries.parquet", "nucleus_boundaries.parquet", "transcripts.parquet"),
        *("cells.zarr.zip", "cell_feature_matrix.h5", "planted_he_image.ome.tif"),
        "morphology_focus/morphology_focus_0001.ome.tif",
    ],
)
@pytest.mark.parametrize("share", [0.03, 0.6])
def test_truncated(bundle: Path, name: str, share: float, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = bundle / name, bundle.parent / "x.zarr"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    assert run(["convert", str(bundle), str(out)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert Path(name).name in said
    assert not out.exists()


def test_transcripts_elsewhere(bundle: Path) -> None:
    edit(bundle, "transcripts.parquet", scale("x_location", "y_location", by=1 / 0.2125))
    with pytest.raises(InputError, match=r"of the transcripts lie in the morphology image.*transcripts=false"):
        ss.io.read(bundle)
    with pytest.raises(InputError, match="of the transcripts lie in the area of the cells"):
        ss.io.read(bundle, morphology=False)
    assert "transcripts" not in ss.io.read(bundle, transcripts=False).points


def test_outlines_in_pixels(bundle: Path) -> None:
    edit(bundle, "cell_boundaries.parquet", scale("vertex_x", "vertex_y", by=1 / 0.2125))
    with pytest.raises(InputError, match=r"outlines lie \d+ um from their cells"):
        ss.io.read(bundle)


def test_cells_in_pixels(bundle: Path) -> None:
    edit(bundle, "cells.parquet", scale("x_centroid", "y_centroid", by=1 / 0.2125))
    with pytest.raises(InputError, match="of the cells lie in the morphology image"):
        ss.io.read(bundle)


@pytest.mark.parametrize("name", ["cells.parquet", "cell_boundaries.parquet"])
def test_double_ids(bundle: Path, name: str) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        first = frame[frame["cell_id"] == frame["cell_id"].iloc[0]]
        again = first.assign(label_id=9999) if "label_id" in frame else first
        return pd.concat([frame, again])

    edit(bundle, name, change)
    with pytest.raises(InputError, match=r"duplicate ids|1 cells with several outlines"):
        ss.io.read(bundle)


def test_no_transcripts_at_all(bundle: Path, tmp_path: Path) -> None:
    edit(bundle, "transcripts.parquet", lambda frame: frame.iloc[:0])
    sdata = ss.io.convert(bundle, tmp_path / "x.zarr")
    assert not sdata.points
    assert "the file of transcripts is empty" in notes(ss.io.read(bundle))
    with pytest.raises(MissingError, match="no points named 'transcripts'"):
        ss.pp.aggregate(sdata, region="cells_labels")


def test_no_transcript_of_that_quality(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"none of \d+ transcripts is wanted \(quality 50 or more\).*--min-qv 0"):
        ss.io.read(bundle, min_qv=50)


def test_without_a_panel_genes_are_told_by_their_names(tmp_path: Path) -> None:
    truth = ss.datasets.xenium(tmp_path / "b", version="2.0", n_genes=4, he=False)
    whole = ss.io.read(tmp_path / "b")
    (tmp_path / "b" / "cell_feature_matrix.h5").unlink()
    bare = ss.io.read(tmp_path / "b")
    assert "no panel (cell_feature_matrix)" in notes(bare)
    assert "no panel (cell_feature_matrix)" not in notes(whole)
    assert not bare.tables
    counts = [s["transcripts"]["feature_name"].compute().value_counts().to_dict() for s in (whole, bare)]
    assert counts[0] == counts[1]
    assert set(counts[0]) == set(truth.names)


def test_the_filter_is_stated_and_controls_come_on_request(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = pd.read_parquet(bundle / "transcripts.parquet")
    genes, good = raw["is_gene"], raw["qv"] >= 20
    assert run(["convert", str(bundle), str(tmp_path / "a.zarr")]) == 0
    said = capsys.readouterr()
    line = f"{(genes & good).sum()} of {len(raw)} transcripts kept: those of genes with quality 20 or more"
    assert line in said.out + said.err
    options = ["--option", "min_qv=30", "--option", "controls=true"]
    assert run(["convert", str(bundle), str(tmp_path / "b.zarr"), *options]) == 0
    said = capsys.readouterr()
    line = f"{(raw['qv'] >= 30).sum()} of {len(raw)} transcripts kept: those with quality 30 or more"
    assert line in said.out + said.err
    every = ss.io.open(tmp_path / "b.zarr")
    assert len(every["transcripts"]) == (raw["qv"] >= 30).sum()
    assert set(every["counts_cells"].var["feature_type"]) > {"Gene Expression", "Negative Control Probe"}
    # The stored slide is of quality 20 and above; aggregate can be stricter, and equals a count of the raw table.
    sdata = ss.io.open(tmp_path / "a.zarr")
    strict = ss.pp.aggregate(sdata, region="cells_labels", min_qv=30)
    mine = raw[genes & (raw["qv"] >= 30) & (raw["cell_id"] != "UNASSIGNED")]
    want = mine.groupby(["cell_id", "feature_name"]).size().unstack(fill_value=0)
    want = want.reindex(index=strict.obs_names, columns=strict.var_names, fill_value=0)
    np.testing.assert_array_equal(strict.X.toarray(), want.to_numpy())
