"""Cohort CSVs: everything wrong in one message."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

import stainseq as ss
from stainseq.cohort import read_cohort
from stainseq.errors import FormatError, InputError, MissingError


def test_a_good_one(tmp_path: Path, make: ModuleType) -> None:
    make.st(tmp_path / "data", name="C1")
    ss.io.convert(tmp_path / "data" / "C1", tmp_path / "C1.zarr")
    (tmp_path / "l.csv").write_text("id,label\n")
    text = "slide, path ,patient,labels,split,stage\nC1,C1.zarr,P,cluster,train,II\nC2,data/C1,Q,l.csv,test,\n"
    (tmp_path / "cohort.csv").write_text(text)
    cohort = read_cohort(tmp_path / "cohort.csv")
    rows = list(cohort)
    assert len(cohort) == 2
    assert rows[0]["path"] == str(tmp_path / "C1.zarr")
    assert rows[0]["stage"] == "II"
    assert (rows[0]["labels"], rows[1]["labels"]) == ("cluster", str(tmp_path / "l.csv"))
    stored, lazy = cohort.open("C1"), cohort.open("C2")
    assert stored.path == tmp_path / "C1.zarr"
    assert lazy.attrs["stainseq"]["patient"] == "Q"
    assert lazy.attrs["stainseq"]["slide"] == "C2"
    with pytest.raises(MissingError, match=r"no slide 'C9'.*C1"):
        cohort.open("C9")


def test_all_that_is_wrong_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "c.csv").write_text("slide,path,patient\nA,a.zarr,P\nA,b.zarr,\nB,c.zarr,Q\n")
    with pytest.raises(InputError) as caught:
        read_cohort(tmp_path / "c.csv")
    for part in ("no patient in line 3", "slides named twice: A", "do not exist: b.zarr, c.zarr", "c.csv"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [("slide,path\nA,a\n", "without the column patient"), ("", "empty"), ("slide,path,patient\n", "no slides")],
)
def test_bad_tables(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(InputError, match=match):
        read_cohort(tmp_path / "c.csv")
    with pytest.raises(FormatError, match="no such cohort"):
        read_cohort(tmp_path / "none.csv")
