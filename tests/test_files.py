"""Result files: complete or not at all."""

from __future__ import annotations

import errno
import json
import math

import numpy as np
import pytest

from stainseq import _files
from stainseq.errors import StoreError


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "no permission"),
    ],
)
def test_what_was_there_stays_when_writing_fails(tmp_path, code, words):
    path = tmp_path / "result.csv"
    path.write_text("old")

    def fail(staged):
        staged.write_text("half of the new")
        raise OSError(code, "refused", str(staged))

    with pytest.raises(StoreError, match=words) as caught:
        _files.write_file(path, fail)
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.csv"]


def test_nothing_is_left_when_writing_is_interrupted(tmp_path):
    def interrupted(staged):
        staged.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _files.write_file(tmp_path / "a.json", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_and_names_that_cannot_be_are_refused(tmp_path):
    _files.write_file(tmp_path / "x" / "y" / "a.txt", lambda p: p.write_text("a"))
    assert (tmp_path / "x" / "y" / "a.txt").read_text() == "a"
    with pytest.raises(StoreError, match="this is a folder"):
        _files.write_file(tmp_path / "x", lambda p: p.write_text("a"))
    with pytest.raises(StoreError, match="a part of the path is a file"):
        _files.write_file(tmp_path / "x" / "y" / "a.txt" / "b", lambda p: p.write_text("a"))


def test_json_holds_plain_values_only(tmp_path):
    value = {"a": np.float32(0.5), "b": [math.nan, math.inf, np.int64(3)], 1: np.arange(3), "p": tmp_path, "s": {2, 1}}
    _files.write_json(tmp_path / "a.json", value)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found == {"a": 0.5, "b": [None, None, 3], "1": [0, 1, 2], "p": str(tmp_path), "s": [1, 2]}


def test_outputs_are_checked_before_the_work(tmp_path):
    _files.check_output(None, tmp_path / "new.csv", "/dev/stdout")
    with pytest.raises(StoreError, match="no such folder"):
        _files.check_output(tmp_path / "nowhere" / "x.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(StoreError, match="this is a folder"):
        _files.check_output(tmp_path / "folder.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.csv"]
