"""`stainseq info` on everything it promises to know."""

from __future__ import annotations

import json

import numpy as np
import pytest

import stainseq as ss
from stainseq import store
from stainseq.cli import run
from stainseq.errors import FormatError, MissingError


def test_store(tmp_path, capsys):
    path = tmp_path / "toy.zarr"
    store.create(path, ss.datasets.toy_slide(seed=0), step="convert", parameters={})
    ss.tl.svg(store.open(path))
    found = ss.io.info(path)
    assert found["kind"] == "store"
    assert found["facts"]["patient"] == "P1"
    holds = {e["name"]: e for e in found["elements"]}
    assert holds["he"]["holds"] == "900 x 900 px, 3 channels, uint8, 0.8 um per pixel, 3 levels"
    assert holds["spots"]["holds"] == "98 circles, diameter 55"
    assert holds["counts_spots"]["holds"] == "98 x 60 of spots, int32 csr; results moran"
    assert holds["counts_spots"]["step"] == "svg"
    assert found["problems"] == []
    assert run(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "900 x 900 px" in out
    assert "counts_spots" in out


def test_a_store_left_untidy_is_mended_and_opens_with_plain_spatialdata(tmp_path):
    import spatialdata

    path = tmp_path / "toy.zarr"
    store.create(path, ss.datasets.toy_slide(seed=0), step="convert", parameters={})
    (path / "tables" / "half").mkdir()
    (path / "tables" / "half" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    untouched = ss.io.info(path, repair=False)
    assert untouched["problems"]
    assert untouched["repaired"] == []
    found = ss.io.info(path)
    assert found["repaired"]
    assert found["problems"] == []
    assert list(spatialdata.read_zarr(path).tables) == ["counts_spots"]


def test_anndata_and_mudata(tmp_path, capsys):
    import h5py

    table = ss.datasets.toy_table(seed=0)
    table.write_h5ad(tmp_path / "a.h5ad")
    found = ss.io.info(tmp_path / "a.h5ad")
    assert found["what"] == "AnnData, 98 x 60"
    assert found["sizes"]["layers"] == ["rate"]
    assert "truth" in found["sizes"]["obs"]
    assert found["problems"] == []
    del table.obsm["spatial"]
    table.write_h5ad(tmp_path / "b.h5ad")
    assert "no obsm" in ss.io.info(tmp_path / "b.h5ad")["problems"][0]
    with h5py.File(tmp_path / "a.h5ad") as source, h5py.File(tmp_path / "c.h5mu", "w") as out:
        source.copy(source["/"], out.create_group("mod"), name="rna")
    assert ss.io.info(tmp_path / "c.h5mu")["sizes"] == {"rna": "98 x 60"}
    assert run(["info", str(tmp_path / "a.h5ad"), "--json", "/dev/stdout"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "table"


def test_damaged_and_unknown(tmp_path):
    (tmp_path / "x.h5ad").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="damaged"):
        ss.io.info(tmp_path / "x.h5ad")
    with pytest.raises(MissingError, match="no store"):
        ss.io.info(tmp_path / "x.zarr")
    with pytest.raises(FormatError, match="nothing there"):
        ss.io.info(tmp_path / "elsewhere")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="no cohort: no column slide, path"):
        ss.io.info(tmp_path / "t.csv")


def test_cohort(tmp_path):
    (tmp_path / "c.csv").write_text("slide,path,patient\na,a.zarr,p1\nb,b.zarr,p2\n")
    (tmp_path / "a.zarr").mkdir()
    found = ss.io.info(tmp_path / "c.csv")
    assert found["what"] == "cohort, 2 slides of 2 patients"
    assert found["facts"] == {"slides": 2, "patient": {"p1": 1, "p2": 1}}
    assert found["problems"] == ["not there: b.zarr"]
    (tmp_path / "d.csv").write_text("slide,path,tissue\na,a.zarr,breast\nb,c.csv,breast\n")
    found = ss.io.info(tmp_path / "d.csv")
    assert found["facts"] == {
        "slides": 2,
        "tissue": {"breast": 2},
        "not converted": "1; convert them with `stainseq convert d.csv FOLDER`",
    }
    assert "no column patient" in found["problems"][0]


STIMAGE = (
    "slide,species,tissue,pmid,title,abstract,keywords,involve_cancer,tech,spot_num,gene_num\n"
    "Human_Breast_Someone_01022020_ST_A1,human,breast,1,t,a,NA,True,ST,300,6\n"
    "Mouse_Brain_Other_01022020_Visium_B1,mouse,brain,NA,t,a,NA,False,Visium,900,6\n"
)


@pytest.fixture
def stimage(tmp_path):
    """STimage-1K4M's table with one of its two slides beside it."""
    import importlib.util
    import sys
    from pathlib import Path

    file = Path(__file__).parents[1] / "readers" / "_make.py"
    spec = importlib.util.spec_from_file_location("reader_fixtures", file)
    made = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(made)
    made.stimage(tmp_path / "data", mpp=3.0)
    (tmp_path / "data" / "meta").mkdir()
    table = tmp_path / "data" / "meta" / "meta_all_gene.csv"
    table.write_text(STIMAGE)
    return table


def test_table_of_stimage(stimage, tmp_path, capsys):
    found = ss.io.info(stimage)
    assert found["kind"] == "cohort"
    assert found["what"] == "STimage-1K4M's table of slides: 2 slides, 1 of them here"
    assert found["facts"]["tech"] == {"ST": 1, "Visium": 1}
    assert found["facts"]["spots"] == 1200
    assert found["facts"]["with cancer"] == 1
    assert [e["name"] for e in found["elements"]] == ["Human_Breast_Someone_01022020_ST_A1"]
    assert run(["info", str(stimage)]) == 0
    assert "stainseq convert meta_all_gene.csv FOLDER" in capsys.readouterr().out
    alone = tmp_path / "elsewhere" / "meta" / "meta_all_gene.csv"
    alone.parent.mkdir(parents=True)
    alone.write_text(STIMAGE)
    assert "no slide lies beside it" in ss.io.info(alone)["problems"][0]


def test_a_cohort_of_sources_is_converted_and_learned_from(stimage, tmp_path, capsys):
    """The whole way from the data set's table to a model; a slide that fails does not stop the others."""
    out = tmp_path / "stores"
    assert run(["train", str(stimage), "--out", str(tmp_path / "m")]) == 1
    assert "run `stainseq convert meta_all_gene.csv FOLDER`, then use FOLDER/cohort.csv" in capsys.readouterr().err
    assert run(["convert", str(stimage), str(out), "--json", "/dev/stdout"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["converted"], found["kept"], found["failed"]) == (1, 0, {})
    facts = store.facts(store.open(out / "Human_Breast_Someone_01022020_ST_A1.zarr"))
    assert (facts["tissue"], facts["patient"]) == ("breast", "Human_Breast_Someone_01022020")
    assert run(["convert", str(stimage), str(out)]) == 0
    assert "0 slides converted, 1 kept that were there, 0 failed" in capsys.readouterr().out
    train = ["train", str(out / "cohort.csv"), "--out", str(tmp_path / "m"), "--encoder", "colour", "--n-genes", "3"]
    assert run([*train, "--json", "/dev/stdout"]) == 0
    assert json.loads(capsys.readouterr().out)["split"] == "block"
    (tmp_path / "c.csv").write_text(
        f"slide,path,patient\nbad,m,P\ngood,{stimage.parents[1]}/ST/coord/Human_Breast_Someone_01022020_ST_A1,Q\n"
    )
    assert run(["convert", str(tmp_path / "c.csv"), str(tmp_path / "more")]) == 1
    captured = capsys.readouterr()
    assert "1 slide converted, 0 kept that were there, 1 failed" in captured.out
    assert "1 slide could not be converted, the first of them bad" in captured.err
    assert (tmp_path / "more" / "cohort.csv").read_text().splitlines()[1].startswith("good,good.zarr,Q")


def test_what_a_reader_noticed_is_told(tmp_path, capsys, stimage):
    source = stimage.parents[1] / "ST" / "coord" / "Human_Breast_Someone_01022020_ST_A1_coord.csv"
    counts = stimage.parents[1] / "ST" / "gene_exp" / "Human_Breast_Someone_01022020_ST_A1_count.csv"
    lines = counts.read_text().splitlines()
    counts.write_text("\n".join([lines[0], *[",".join([line.split(",")[0], *["0"] * 6]) for line in lines[3:]]]))
    assert run(["convert", str(source), str(tmp_path / "a.zarr")]) == 0
    out = capsys.readouterr().out
    n = len(lines) - 1
    for words in (f"{n - 2} of {n} spots have counts", "all counts are zero", "1 duplicated gene names made unique"):
        assert words in out
    assert run(["info", str(tmp_path / "a.zarr"), "--json", "/dev/stdout"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "all counts are zero" in notes
    assert ss.io.info(source)["notes"] == notes


def test_source_of_a_picture_without_pixel_size_names_the_problem(tmp_path, capsys):
    from PIL import Image

    Image.fromarray(np.full((400, 500, 3), 200, np.uint8)).save(tmp_path / "slide.png")
    assert run(["info", str(tmp_path / "slide.png"), "--json", "/dev/stdout"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "source"
    assert found["facts"]["platform"] == "wsi"
    assert any("mpp" in p for p in found["problems"])


@pytest.mark.real
def test_source_of_real_tissue(data_dir):
    found = ss.io.info(data_dir / "her2st" / "C2")
    assert found["facts"]["platform"] == "st"
    assert {e["name"] for e in found["elements"]} >= {"he", "spots", "counts_spots"}
    assert found["problems"] == []
