"""Full and read-only disks, Ctrl-C, errors of the system at any step: one clear error, and the store as it was."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import spatialdata
from spatialdata.models import Image2DModel, PointsModel
from spatialdata.transformations import Identity

from stainseq import _interrupts, store
from stainseq.errors import InputError, StoreError
from stainseq.store import files, metadata

NAMES = {
    "images": "he",
    "labels": "nuclei_labels",
    "points": "transcripts",
    "shapes": "spots",
    "tables": "counts_spots",
}
KINDS = list(NAMES)


def image(values) -> object:
    return Image2DModel.parse(values, dims=("c", "y", "x"), transformations={"um": Identity()})


def unchanged(path: Path, before: dict[str, str]) -> None:
    opened = store.open(path, repair=False)
    assert {n: store.fingerprint_of(opened, n) for _, n, _ in opened.gen_elements()} == before
    assert store.problems(path) == []
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert {n for _, n, _ in spatialdata.read_zarr(path).gen_elements()} == set(before)


def fingerprints(sdata) -> dict[str, str]:
    return {n: store.fingerprint_of(sdata, n) for _, n, _ in sdata.gen_elements()}


@pytest.fixture
def mount(tmp_path):
    """A file system of 6 MB of its own, and a way to make it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "stainseq-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("file systems cannot be mounted here (needs root)")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(mount, slide):
    path = mount[0] / "s.zarr"
    stored = store.create(path, slide, step="x", parameters={})
    before = fingerprints(stored)
    noise = da.random.default_rng(0).integers(0, 255, (3, 2000, 2000), dtype=np.uint8, chunks=(3, 500, 500))
    with pytest.raises(StoreError, match="the disk is full; nothing in the store has changed"):
        store.write_element(stored, "he", image(noise), step="x", parameters={})
    unchanged(path, before)
    with pytest.raises(StoreError, match="the disk is full"):
        store.create(mount[0] / "b.zarr", spatialdata.SpatialData(images={"he": image(noise)}), step="x", parameters={})
    unchanged(path, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_disk(mount, slide, make_element, kind):
    path = mount[0] / "s.zarr"
    stored = store.create(path, slide, step="x", parameters={})
    before = fingerprints(stored)
    (mount[0] / f".s.zarr-{'0' * 32}").mkdir()  # what a killed write left, and cannot be removed now
    mount[1]()
    opened = store.open(path)
    assert fingerprints(opened) == before
    for attempt in (
        lambda: store.write_element(opened, NAMES[kind], make_element(kind, 1), step="x", parameters={}),
        lambda: store.delete_element(opened, NAMES[kind]),
        lambda: store.set_facts(opened, patient="P"),
        lambda: store.create(path, slide, step="x", parameters={}, overwrite=True),
        lambda: store.create(mount[0] / "new.zarr", slide, step="x", parameters={}),
        lambda: store.repair(path),
    ):
        with pytest.raises(StoreError, match="read-only"):
            attempt()
    assert fingerprints(store.open(path)) == before


class Failing:
    """Lets the n-th call of any of the moves fail."""

    def __init__(self, monkeypatch, folder: Path, error: BaseException) -> None:
        self.calls, self.fail_at, self.error, self.folder = 0, -1, error, str(folder)
        for module, name in ((os, "rename"), (os, "replace"), (files, "exchange"), (files, "sync_tree")):
            monkeypatch.setattr(module, name, self.wrapped(getattr(module, name)))

    def wrapped(self, work):
        def call(*arguments, **options):
            if str(arguments[0]).startswith(self.folder) and ".partial" not in str(arguments[0]):
                self.calls += 1
                if self.calls == self.fail_at:
                    raise self.error
            return work(*arguments, **options)

        return call


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@pytest.mark.parametrize("op", ["replace", "add", "delete", "create"])
def test_an_error_at_any_move_undoes_the_rest(tmp_path, monkeypatch, make_element, op, error, exchange):
    folder = tmp_path / "there"
    folder.mkdir()
    path = folder / "s.zarr"
    only = spatialdata.SpatialData(shapes={"spots": make_element("shapes")})
    store.create(path, only, step="x", parameters={})
    new = make_element("shapes", 1)
    if not exchange:
        monkeypatch.setattr(files, "exchange", lambda a, b: False)
    failing = Failing(monkeypatch, folder, error)
    before = fingerprints(store.open(path))
    for at in range(1, 40):
        opened = store.open(path)
        failing.calls, failing.fail_at = 0, at
        try:
            if op == "delete":
                store.delete_element(opened, "spots")
            elif op == "create":
                other = spatialdata.SpatialData(shapes={"spots": new})
                store.create(path, other, step="x", parameters={}, overwrite=True)
            else:
                store.write_element(opened, "spots" if op == "replace" else "cells", new, step="x", parameters={})
        except (StoreError, KeyboardInterrupt):
            failing.fail_at = -1
            unchanged(path, before)
        else:
            break
    else:
        pytest.fail("never got through")
    failing.fail_at = -1
    assert at > 4
    assert fingerprints(store.open(path)) != before


@pytest.mark.parametrize("interrupt", ["raised in a block", "sent to the process"])
def test_ctrl_c_while_an_image_streams(stored, interrupt):
    before = fingerprints(stored)

    def block(block_info=None):
        if block_info[None]["chunk-location"] == (0, 2, 0):
            if interrupt == "raised in a block":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)
        return np.zeros((3, 512, 512), dtype=np.uint8)

    lazy = da.map_blocks(block, chunks=((3,), (512,) * 6, (512,) * 6), dtype=np.uint8)
    with pytest.raises(KeyboardInterrupt), _interrupts.kept():
        store.write_element(stored, "he", image(lazy), step="x", parameters={})
    if interrupt == "sent to the process" and fingerprints(store.open(stored.path)) != before:
        # It landed in a finaliser, which drops it, and the write was done before it was raised again: then whole.
        before |= {"he": store.fingerprint_of(store.open(stored.path), "he")}
    unchanged(stored.path, before)


def test_an_error_of_the_source_stays_what_it_is(stored, tmp_path):
    before = fingerprints(stored)

    def block():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/nowhere/slide.tif")

    lazy = da.map_blocks(block, chunks=((3,), (512,), (512,)), dtype=np.uint8)
    with pytest.raises(FileNotFoundError, match="slide"):
        store.write_element(stored, "he", image(lazy), step="x", parameters={})
    unchanged(stored.path, before)


def test_points_without_coordinates(stored, make_element):
    before = fingerprints(stored)
    frame = make_element("points").compute().copy()
    frame.loc[[3, 7], "x"] = [np.nan, np.inf]
    bad = PointsModel.parse(frame, transformations={"um": Identity()})
    with pytest.raises(InputError, match="2 points have no x coordinate"):
        store.write_element(stored, "transcripts", bad, step="x", parameters={})
    unchanged(stored.path, before)


def test_a_store_that_was_moved_away(stored, make_element):
    stored.path.rename(stored.path.with_name("moved.zarr"))
    with pytest.raises(StoreError, match="not a slide store"):
        store.write_element(stored, "spots", make_element("shapes"), step="x", parameters={})
    assert sorted(p.name for p in stored.path.parent.iterdir()) == ["moved.zarr"]


def test_a_store_of_zarr_2_is_not_written_to(tmp_path, make_element):
    from spatialdata._io.format import SpatialDataContainerFormatV01

    plain = spatialdata.SpatialData(shapes={"spots": make_element("shapes")})
    plain.write(tmp_path / "old.zarr", sdata_formats=[SpatialDataContainerFormatV01()])
    opened = store.open(tmp_path / "old.zarr")
    with pytest.raises(StoreError, match="Zarr 2"):
        store.write_element(opened, "spots", make_element("shapes", 1), step="x", parameters={})
    assert not metadata.is_store(tmp_path / "old.zarr")
