"""What interrupted writes leave behind: of ours, and of plain spatialdata (its measured faults)."""

from __future__ import annotations

import json
import os
import shutil
import zipfile

import dask.array as da
import numpy as np
import pytest
import spatialdata
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity

from stainseq import store
from stainseq.errors import StoreError
from stainseq.store import archive, mend


def broken_image():
    def block():
        raise RuntimeError("the source broke")

    lazy = da.map_blocks(block, chunks=((3,), (64,), (64,)), dtype=np.uint8)
    return Image2DModel.parse(lazy, dims=("c", "y", "x"), transformations={"um": Identity()})


def wedge(sdata, name="broken"):
    """A plain write that fails half way: spatialdata then can neither read, write nor delete that name."""
    sdata[name] = broken_image()
    with pytest.raises(RuntimeError):
        sdata.write_element(name)
    assert (sdata.path / "images" / name).exists()


def test_a_name_that_plain_spatialdata_wedged_can_be_written(stored, make_element):
    wedge(stored)
    with pytest.raises(ValueError, match="already exists"):
        stored.write_element("broken", overwrite=False)
    assert any("images/broken cannot be opened" in p for p in store.problems(stored.path))
    opened = store.open(stored.path)
    assert "broken" not in opened
    store.write_element(opened, "broken", make_element("images"), step="x", parameters={})
    assert "broken" in spatialdata.read_zarr(stored.path)
    assert store.problems(stored.path) == []


def test_repair_sets_a_wedged_element_aside(stored):
    wedge(stored)
    done = store.repair(stored.path)
    assert len(done) == 1
    assert "images/broken cannot be opened" in done[0]
    aside = stored.path.with_name("s.zarr.broken") / "images" / "broken"
    assert aside.is_dir()
    assert store.problems(stored.path) == []
    assert store.repair(stored.path) == []
    plain = spatialdata.read_zarr(stored.path)
    assert "broken" not in plain
    plain["broken"] = stored["he"]
    plain.write_element("broken")
    wedge(store.open(stored.path), "again")
    shutil.copytree(stored.path / "images" / "again", stored.path / "images" / "broken2")
    assert len(store.repair(stored.path)) == 2


def test_a_whole_plain_write_that_was_killed(slide, tmp_path):
    """SIGKILL during `sdata.write`: no list of elements, the last one unreadable."""
    path = tmp_path / "p.zarr"
    slide.write(path)
    root = json.loads((path / "zarr.json").read_text())
    del root["consolidated_metadata"]
    (path / "zarr.json").write_text(json.dumps(root))
    he = json.loads((path / "images" / "he" / "zarr.json").read_text())
    he["attributes"] = {}
    (path / "images" / "he" / "zarr.json").write_text(json.dumps(he))
    with pytest.raises(KeyError, match="ome"):
        spatialdata.read_zarr(path)
    opened = store.open(path)
    assert "he" not in opened
    assert "spots" in opened
    assert (path / "images" / "he").is_dir()
    assert any("images/he" in line for line in store.repair(path))
    assert store.problems(path) == []
    assert "spots" in spatialdata.read_zarr(path)


def test_damage_that_cannot_be_mended_says_so(stored):
    (stored.path / "shapes" / "spots" / "shapes.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StoreError, match="cannot be opened"):
        store.open(stored.path)
    (stored.path / "zarr.json").write_text("{")
    with pytest.raises(StoreError):
        store.open(stored.path)


def test_a_missing_list_entry_and_a_listed_ghost(stored):
    root = json.loads((stored.path / "zarr.json").read_text())
    listed = root["consolidated_metadata"]["metadata"]
    root["consolidated_metadata"]["metadata"] = {k: v for k, v in listed.items() if not k.startswith("shapes/spots")}
    (stored.path / "zarr.json").write_text(json.dumps(root))
    shutil.rmtree(stored.path / "labels" / "nuclei_labels")
    assert store.problems(stored.path) == ["its list of elements is out of step with the disk"]
    opened = store.open(stored.path)
    assert "spots" in opened
    assert "nuclei_labels" not in opened
    assert store.problems(stored.path) == []
    assert "spots" in spatialdata.read_zarr(stored.path)


@pytest.mark.parametrize("phase", ["write", "swap", "none"])
def test_leftovers_are_named_and_removed(stored, phase):
    stage = stored.path.with_name(f".s.zarr-{'a' * 32}")
    stage.mkdir()
    if phase != "none":
        journal = {"op": "write", "kind": "images", "name": "he", "phase": phase}
        (stage / "journal.json").write_text(json.dumps(journal))
    stored.path.with_name(f".s.zarr-{'a' * 31}").mkdir()  # not one of ours
    assert store.problems(stored.path) == ["an interrupted write left files behind: `stainseq info` repairs this"]
    (said,) = store.repair(stored.path)
    assert "had been interrupted" in said
    assert ("'he'" in said) == (phase != "none")
    assert not stage.exists()
    assert stored.path.with_name(f".s.zarr-{'a' * 31}").exists()


def test_opening_without_repair_leaves_all_as_it_is(stored):
    stage = stored.path.with_name(f".s.zarr-{'b' * 32}")
    stage.mkdir()
    store.open(stored.path, repair=False)
    assert stage.exists()
    assert mend.leftovers(stored.path) == [stage]
    store.open(stored.path)
    assert not stage.exists()


def test_a_zip_of_a_store(stored, tmp_path, make_element):
    file = archive.pack(stored.path, tmp_path / "s.zarr.zip")
    assert all(i.compress_type == zipfile.ZIP_STORED for i in zipfile.ZipFile(file).infolist())
    opened = store.open(file)
    assert {n for _, n, _ in opened.gen_elements()} == {n for _, n, _ in stored.gen_elements()}
    assert store.facts(opened) == {"slide": "S1"}
    assert store.read_points_window(opened, "transcripts", (0, 0, 100, 100)).num_rows > 0
    assert np.array_equal(opened["he"]["scale1"]["image"].values, stored["he"]["scale1"]["image"].values)
    with pytest.raises(StoreError, match=r"opened from a \.zarr\.zip.*unzip"):
        store.write_element(opened, "spots", make_element("shapes"), step="x", parameters={})
    # A zip that holds the folder, as zipping by hand gives, and one that has changed since.
    shutil.make_archive(str(tmp_path / "hand.zarr"), "zip", stored.path.parent, stored.path.name)
    assert "he" in store.open(tmp_path / "hand.zarr.zip")
    store.delete_element(stored, "he")
    archive.pack(stored.path, tmp_path / "s.zarr.zip")
    assert "he" not in store.open(file)


def test_a_bad_zip(tmp_path):
    (tmp_path / "a.zarr.zip").write_bytes(b"PK not really")
    with pytest.raises(StoreError, match="damaged zip"):
        store.open(tmp_path / "a.zarr.zip")
    with zipfile.ZipFile(tmp_path / "b.zarr.zip", "w") as z:
        z.writestr("hello.txt", "hello")
    with pytest.raises(StoreError, match="no slide store in this zip"):
        store.open(tmp_path / "b.zarr.zip")
    with pytest.raises(StoreError, match="there is no store"):
        store.open(tmp_path / "c.zarr.zip")


def test_kept_when_read_only_by_permission(stored):
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind root")
    stored.path.parent.chmod(0o555)
    try:
        store.open(stored.path)
        with pytest.raises(StoreError, match="no permission"):
            store.set_facts(stored, patient="P")
    finally:
        stored.path.parent.chmod(0o755)


def test_what_is_no_store_at_all_is_told_apart_from_a_damaged_one(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "counts.tsv").write_text("a")
    with pytest.raises(StoreError, match=r"^this is no slide store, .*stainseq convert SOURCE OUT.zarr"):
        store.open(tmp_path / "source")
    with pytest.raises(StoreError, match="this is a file, and no slide store"):
        store.open(tmp_path / "source" / "counts.tsv")
