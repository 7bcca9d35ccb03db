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
    assert found["problems"] == ["not there: b.zarr"]


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
