"""Fingerprints name contents; stamps carry what results were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stainseq import registry, spec
from stainseq.errors import InputError, MissingError, StainseqError


def test_fingerprints_depend_on_content_type_and_shape() -> None:
    a = np.arange(6, dtype=np.float32)
    assert spec.fingerprint(a) == spec.fingerprint(a.copy())
    others = [a.astype(np.float64), a.reshape(2, 3), a + 1, "a", [0, 1, 2, 3, 4, 5], b"\x00"]
    prints = [spec.fingerprint(x) for x in (a, *others)]
    assert len(set(prints)) == len(prints)
    assert spec.fingerprint({"b": 1, "a": (2, 3)}) == spec.fingerprint({"a": [2, 3], "b": 1})
    assert spec.fingerprint("ab", "c") != spec.fingerprint("a", "bc")


def test_file_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5_000_000)
    (tmp_path / "b").write_bytes(b"x" * 5_000_000)
    assert spec.fingerprint_file(tmp_path / "a") == spec.fingerprint_file(tmp_path / "b")
    (tmp_path / "b").write_bytes(b"x" * 4_999_999 + b"y")
    assert spec.fingerprint_file(tmp_path / "a") != spec.fingerprint_file(tmp_path / "b")


def test_stamp_is_plain_json() -> None:
    made = spec.stamp("features", parameters={"n": np.int64(3), "path": Path("x")}, inputs={"he": "0"}, grid=np.eye(2))
    assert made["parameters"] == {"n": 3, "path": "x"}
    assert made["grid"] == [[1.0, 0.0], [0.0, 1.0]]
    assert made["format_version"] == spec.FORMAT_VERSION
    with pytest.raises(TypeError, match="no canonical form"):
        spec.stamp("x", parameters={"bad": object()})


def test_messages_say_what_where_and_fix() -> None:
    error = InputError("no spots", where="a.zarr", fix="convert it again")
    assert str(error) == "no spots, a.zarr; convert it again"
    assert isinstance(error, ValueError)
    assert isinstance(error, StainseqError)
    assert str(MissingError("no gene")) == "no gene"


def test_registry_lists_without_importing_and_names_what_there_is() -> None:
    assert {"mean", "ridge", "hest"} <= set(registry.names("heads"))
    assert registry.default("heads") == "ridge"
    rows = {r["name"]: r for r in registry.describe("heads")}
    assert rows["ridge"]["available"]
    assert rows["ridge"]["default"]
    assert rows["mean"]["summary"]
    with pytest.raises(MissingError, match=r"one of: .*ridge"):
        registry.load("heads", "nonsense")
    with pytest.raises(MissingError, match="one of: encoders"):
        registry.names("nonsense")
