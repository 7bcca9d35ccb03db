"""What every writer must keep to: one contract, complete or not at all, facts beside it."""

from __future__ import annotations

import errno
import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import stainseq as ss
from stainseq import registry
from stainseq.errors import InputError, MissingError, StoreError
from stainseq.io import _export
from stainseq.writers._format import Format

WRITERS = registry.names("writers")
DATASETS = ("cellvit", "pannuke", "sthelar", "huggingface", "hest")
"""Those of patches with labelled nuclei."""

TABLE = {"csv": "counts_cells", "parquet": "counts_cells", "h5ad": "counts_cells"}


def out(name: str, folder: Path) -> Path:
    suffixes = registry.load("writers", name).FORMAT.suffixes
    return folder / f"made{suffixes[0] if suffixes else ''}"


def source(name: str, make: ModuleType):
    return make.dataset(name="P2") if name in DATASETS else make.slide()


def content(path: Path) -> dict[str, bytes]:
    """Bytes of every file, facts (which tell the time) left out."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {p.name: p.read_bytes() for p in files if not p.name.endswith("export.json")}


@pytest.mark.parametrize("name", WRITERS)
def test_shape_of_the_module(name: str) -> None:
    module = registry.load("writers", name)
    assert isinstance(module.FORMAT, Format)
    assert all(s.startswith(".") for s in module.FORMAT.suffixes)
    parameters = inspect.signature(module.write).parameters
    assert list(parameters)[:2] in (["sdata", "path"], ["slides", "path"])
    assert {"region", "tables", "facts"} <= set(parameters)
    own = [p for k, p in parameters.items() if k not in ("sdata", "slides", "path", "region", "tables", "facts")]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in own)
    assert (module.__doc__ or "").split("\n")[0].endswith(".") or (module.__doc__ or "").split("\n")[0]


@pytest.mark.parametrize("name", WRITERS)
def test_complete_with_facts_and_twice_the_same(name: str, make: ModuleType, tmp_path: Path) -> None:
    sdata = source(name, make)
    target = out(name, tmp_path)
    options = {"table": TABLE[name]} if name in TABLE else {"region": "cells"} if name == "geojson" else {}
    made = ss.io.export(sdata, target, to=name, **options)
    assert made
    assert all(p.is_file() and p.stat().st_size and p.is_relative_to(target) for p in made)
    facts = json.loads(_export._facts_file(target).read_text())
    assert facts["step"] == "export"
    assert facts["package_version"] == ss.__version__
    assert facts["parameters"]["to"] == name
    assert facts["inputs"]
    assert all(len(v) == 32 for v in facts["inputs"].values())
    assert facts["slide"]["slide"] == "P2"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(StoreError, match="something already"):
        ss.io.export(sdata, target, to=name, **options)
    if name not in ("h5ad", "h5mu", "parquet"):  # which hold the time of writing
        before = content(target)
        ss.io.export(sdata, target, to=name, overwrite=True, **options)
        assert content(target) == before


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_asked_for_must_be_there(name: str, make: ModuleType, tmp_path: Path) -> None:
    sdata = source(name, make)
    target = out(name, tmp_path)
    with pytest.raises(InputError, match="has no option nonsense"):
        ss.io.export(sdata, target, to=name, nonsense=1)
    with pytest.raises(MissingError, match=r"no table 'nope'.*counts_(cells|nuclei)"):
        ss.io.export(sdata, target, to=name, table="nope")
    with pytest.raises(MissingError, match="'nope'"):
        ss.io.export(sdata, target, to=name, region="nope")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_failure_leaves_the_old_and_nothing_else(
    name: str, make: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdata = source(name, make)
    target = out(name, tmp_path)
    options = {"table": TABLE[name]} if name in TABLE else {"region": "cells"} if name == "geojson" else {}
    ss.io.export(sdata, target, to=name, **options)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    module = registry.load("writers", name)
    write = module.write

    def full(data, path, **rest):
        write(data, path, **rest)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    full.__signature__ = inspect.signature(write)
    monkeypatch.setattr(module, "write", full)
    with pytest.raises(StoreError, match="disk is full"):
        ss.io.export(sdata, target, to=name, overwrite=True, **options)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_unknown_format_lists_those_there_are(make: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no writer named 'nope'; one of: .*csv, .*superpixel"):
        ss.io.export(make.slide(), tmp_path / "a", to="nope")


def test_only_an_export_is_ever_replaced(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide(cells=False)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious.txt").write_text("x")
    (tmp_path / "a.csv").write_text("x")
    for target, to in ((mine, "superpixel"), (mine / "P2-", "superpixel"), (tmp_path / "a.csv", "csv")):
        with pytest.raises(StoreError, match="is no export"):
            ss.io.export(sdata, target, to=to, overwrite=True)
    with pytest.raises(StoreError, match="part of the path is a file"):
        ss.io.export(sdata, tmp_path / "a.csv" / "b.csv", to="csv")
    assert (mine / "precious.txt").read_text() == "x"
    with pytest.raises(InputError, match=r"ends in \.csv.*name it table\.csv"):
        ss.io.export(sdata, tmp_path / "table.xlsx", to="csv")


def test_no_permission_is_told_before_the_work(
    make: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(StoreError, match="no permission"):
        ss.io.export(make.slide(cells=False), tmp_path / "a.csv", to="csv")


def test_killed_before_the_last_step(make: ModuleType, tmp_path: Path) -> None:
    """Nothing appears; the next export sweeps up what the dead one left."""
    store = tmp_path / "s.zarr"
    ss.io.write(make.slide(cells=False), store)
    code = (
        "import os, signal, sys, stainseq as ss\n"
        "from stainseq.io import _export\n"
        "_export._take = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "ss.io.export(sys.argv[1], sys.argv[2], to='superpixel')\n"
    )
    target = tmp_path / "made"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(store), str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".made.export-")]
    ss.io.export(store, target, to="superpixel")
    assert (target / "cnts.parquet").is_file()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".made")]


def test_several_slides_and_their_parts(make: ModuleType, tmp_path: Path) -> None:
    slides = [make.slide(name="A", cells=False), make.slide(name="B", seed=1, cells=False)]
    split = tmp_path / "split.csv"
    split.write_text("slide,part\nA,train\nB,test\n")
    ss.io.export(slides, tmp_path / "all", to="superpixel", split_file=split)
    assert (tmp_path / "all" / "A" / "cnts.parquet").is_file()
    assert (tmp_path / "all" / "B" / "he-raw.tif").is_file()
    assert not (tmp_path / "all" / "B" / "cnts.parquet").exists()
    facts = json.loads((tmp_path / "all" / "export.json").read_text())
    assert [f["slide"]["slide"] for f in facts] == ["A", "B"]
    made = ss.io.export(slides, tmp_path / "tables", to="csv", table="counts_superpixels")
    assert sorted(p.name for p in made) == ["A.csv", "B.csv"]
    with pytest.raises(InputError, match="knows no parts"):
        ss.io.export(slides, tmp_path / "t2", to="csv", split_file=split)
    with pytest.raises(InputError, match="two slides are called 'A'"):
        ss.io.export([slides[0], slides[0]], tmp_path / "t3", to="csv")
    for text, why in (("slide,part\nA,train\n", "no part for B"), ("a,b\n1,2\n", "no columns"), ("", "cannot be read")):
        split.write_text(text)
        with pytest.raises(InputError, match=why):
            ss.io.export(slides, tmp_path / "t4", to="superpixel", split_file=split)
    split.write_text("slide,part\nA,train\nA,test\nB,test\n")
    with pytest.raises(InputError, match="several parts: A"):
        ss.io.export(slides, tmp_path / "t4", to="superpixel", split_file=split)
    assert not (tmp_path / "t4").exists()


def test_tables_are_chosen_by_region_and_refused_when_they_contradict(make: ModuleType, tmp_path: Path) -> None:
    sdata = make.slide()
    with pytest.raises(InputError, match="belongs to 'cells', not to 'superpixels'"):
        ss.io.export(sdata, tmp_path / "a.csv", to="csv", table="counts_cells", region="superpixels")
    with pytest.raises(MissingError, match="2 tables could be meant"):
        ss.io.export(sdata, tmp_path / "a.csv", to="csv")
    with pytest.raises(InputError, match="csv takes one table, 2 are named"):
        ss.io.export(sdata, tmp_path / "a.csv", to="csv", table=["counts_cells", "counts_superpixels"])
    with pytest.raises(InputError, match="is no count"):
        ss.io.export(sdata, tmp_path / "a", to="superpixel", table="pred_ridge_superpixels")
    with pytest.raises(MissingError, match="no gene 5,"):
        ss.io.export(sdata, tmp_path / "a.csv", to="csv", table="counts_cells", genes=5)
    with pytest.raises(MissingError, match="column 5,"):
        ss.io.export(sdata, tmp_path / "a.geojson", to="geojson", table="counts_cells", measurements=5)
    with pytest.raises(InputError, match="one of: wide, long"):
        ss.io.export(sdata, tmp_path / "a.csv", to="csv", table="counts_cells", layout="tall")
    assert not list(tmp_path.iterdir())


def test_command(make: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from stainseq.cli import run

    store = tmp_path / "s.zarr"
    ss.io.write(make.slide(cells=False), store)
    assert run(["export", str(store), str(tmp_path / "P2" / "P2-"), "--to", "superpixel", "--json", "/dev/stdout"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(Path(f).name for f in told["files"])[0] == "P2-cnts.parquet"
    assert run(["export", str(store), "--to", "csv", str(tmp_path / "t.csv"), "--option", "layout=long"]) == 0
    capsys.readouterr()
    assert run(["export", str(store), "--to", "csv"]) == 1
    assert "the slides, then what to make" in capsys.readouterr().err
    assert run(["export", str(store), "--to", "csv", str(tmp_path / "u.csv"), "--option", "layout=tall"]) == 1
    assert "one of: wide, long" in capsys.readouterr().err
