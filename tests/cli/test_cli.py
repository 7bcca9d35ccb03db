"""Exit codes, one clear line per error, JSON copies, and the promise that commands mirror functions."""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import stainseq as ss
from stainseq import store
from stainseq.cli import _run, run
from stainseq.errors import MissingError

COMMANDS = [name for names in _run.GROUPS.values() for name in names]


def _command(name):
    import stainseq.cli as cli

    found = [m.name for m in pkgutil.iter_modules(cli.__path__) if not m.name.startswith("_")]
    for module in (importlib.import_module(f"stainseq.cli.{m}") for m in found):
        for spelt in (name, f"{name}_"):
            if callable(getattr(module, spelt, None)) and getattr(module, spelt).__module__ == module.__name__:
                return getattr(module, spelt)
    raise AssertionError(name)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.zarr"
    store.create(path, ss.datasets.toy_slide(seed=0), step="convert", parameters={"platform": "toy"})
    return path


@pytest.fixture
def h5ad(tmp_path):
    path = tmp_path / "toy.h5ad"
    ss.datasets.toy_table(seed=0).write_h5ad(path)
    return path


def _error(capsys) -> str:
    """The one line on stderr."""
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("error: ")
    return captured.err.removeprefix("error: ").rstrip("\n")


# ---- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_there(argv, capsys):
    assert run(argv) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nonsense"], "Unknown command 'nonsense'"),
        (["svg"], "stainseq svg --help"),
        (["svg", "x.h5ad", "--n-svg", "many"], "--n-svg"),
        (["svg", "x.h5ad", "--nope", "1"], "--nope"),
        (["domains", "x.h5ad"], "--n-domains"),
        (["list", "cats"], "cats"),
        (["convert", "only-one"], "OUT"),
        (["train", "a.zarr", "--out", "m", "--split", "moon"], "moon"),
        (["train", "--out", "m"], "name one or more stores, or a cohort CSV"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(argv, words, capsys):
    assert run(argv) == 2
    message = _error(capsys)
    assert words in message
    assert "--help" in message


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_seed_and_json(name):
    command = _command(name)
    parameters = inspect.signature(command).parameters
    assert {"json", "seed"} <= set(parameters)
    assert inspect.getdoc(command)
    assert not inspect.getdoc(command).splitlines()[0].endswith("..")
    documented = inspect.getdoc(command)
    hints = typing.get_type_hints(command, include_extras=True)
    for parameter in parameters:
        extra = typing.get_args(hints[parameter])[1:] if typing.get_origin(hints[parameter]) is typing.Annotated else ()
        helped = any(getattr(p, "help", None) for p in extra)
        assert helped or f"\n{parameter}\n" in documented, parameter


FUNCTIONS = {
    "demo": "demo.run",
    "convert": "io.convert",
    "info": "io.info",
    "tissue": "pp.tissue",
    "grid": "pp.grid",
    "features": "pp.features",
    "train": "tl.train",
    "predict": "tl.predict",
    "evaluate": "tl.evaluate",
    "svg": "tl.svg",
    "domains": "tl.domains",
    "integrate": "tl.integrate",
    "markers": "tl.markers",
    "metagene": "tl.metagene",
    "report": "pl.report",
    "annotate": "tl.annotate",
    "maskqc": "tl.maskqc",
    "patches": "pp.patches",
    "superpixels": "pp.superpixels",
}
ALSO = {"features": "pp.features_from_map", "tissue": "pp.quality"}
"""A second function behind a command."""

SPELT = {"key": "key_added", "color": "color", "pred": "prediction", "map_file": "file", "map_mpp": "mpp"}
ONLY_HERE = {"json", "seed", "option", "slide", "slides", "data", "path", "source", "model", "out", "metrics"}
ONLY_HERE |= {"csv", "plot", "quality"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_commands_mirror_functions(name):
    import importlib

    def parameters(function):
        module, function = function.rsplit(".", 1)
        return dict(inspect.signature(getattr(importlib.import_module(f"stainseq.{module}"), function)).parameters)

    there = (parameters(ALSO[name]) if name in ALSO else {}) | parameters(FUNCTIONS[name])
    for parameter, value in inspect.signature(_command(name)).parameters.items():
        if parameter in ONLY_HERE:
            continue
        spelt = parameter if parameter in there else SPELT.get(parameter)
        passed_on = any(p.kind is p.VAR_KEYWORD for p in there.values()) and value.default is None
        if spelt not in there and passed_on:  # an option of some reader or method
            continue
        assert spelt in there, parameter
        if there[spelt].default is not inspect.Parameter.empty:
            assert value.default == there[spelt].default, parameter
    if "seed" in there:
        assert inspect.signature(_command(name)).parameters["seed"].default == there["seed"].default


# ---- failures ------------------------------------------------------------------------------------------------------


def test_our_errors_are_one_line_and_exit_code_1(h5ad, tmp_path, capsys):
    assert run(["svg", str(tmp_path / "none.h5ad")]) == 1
    assert _error(capsys) == f"no such file, {tmp_path / 'none.h5ad'}; check the path"
    assert run(["svg", str(h5ad), "--method", "nothing"]) == 1
    assert "one of: geary, moran" in _error(capsys)
    assert run(["svg", str(tmp_path / "none.zarr")]) == 1
    assert "stainseq convert SOURCE OUT.zarr" in _error(capsys)


@pytest.mark.parametrize("argv", [["--debug", "svg", "none.h5ad"], ["svg", "none.h5ad", "--debug"]])
def test_debug_shows_where(argv, capsys):
    assert run(argv) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "error: no such file, none.h5ad; check the path"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "interrupted; nothing half-written is left"),
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "the disk is full, /x/y; free some space"),
        (
            OSError(errno.EROFS, "Read-only file system", "/x"),
            "the file system is read-only, /x; write to another folder",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "no permission, /x; choose another place"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), "no such file or folder, /x; check the path"),
        (OSError("odd"), "odd"),
        (ValueError("two\nlines"), "unexpected ValueError: two lines; run again with --debug"),
        (MissingError("gone", where="here", fix="look\nthere"), "gone, here; look there"),
    ],
)
def test_every_failure_is_one_line(error, words, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(ss.tl, "svg", fail)
    assert run(["svg", "x.h5ad"]) == 1
    assert words in _error(capsys)


def test_a_reader_that_went_away_is_no_error():
    """As `stainseq list encoders | head -1`."""
    code = "import sys; from stainseq.cli import run; sys.exit(run(['list', 'encoders']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    assert err == ""


def test_interrupting_for_real(toy, tmp_path):
    import signal
    import time

    out = tmp_path / "m"
    code = (
        "import sys, time, stainseq.tl._train as t\n"
        "def slow(*a, **k):\n    print('started', flush=True); time.sleep(60)\n"
        "t.train = slow\n"
        "from stainseq.cli import main; main(['train', sys.argv[1], '--out', sys.argv[2]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(toy), str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "error: interrupted; nothing half-written is left, run the same command again to go on\n"
    assert not out.exists()


def test_library_warnings_stay_away_without_debug(monkeypatch, capsys):
    import logging
    import warnings

    def warn(*args, **kwargs):
        warnings.warn("from a library", UserWarning, stacklevel=2)
        logging.getLogger("library").warning("also from a library")
        raise MissingError("gone")

    monkeypatch.setattr(ss.tl, "svg", warn)
    assert run(["svg", "x.h5ad"]) == 1
    assert _error(capsys) == "gone"
    assert logging.root.manager.disable == 0


# ---- output --------------------------------------------------------------------------------------------------------


def test_json_on_stdout_is_alone(h5ad, capsys):
    assert run(["svg", str(h5ad), "--json", "/dev/stdout"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tested"] == 60
    assert found["genes"][0]["rank"] == 1


def test_json_goes_to_a_file_beside_the_printed_table(h5ad, tmp_path, capsys):
    assert run(["svg", str(h5ad), "--json", str(tmp_path / "a.json")]) == 0
    out = capsys.readouterr().out
    assert "tested 60 genes" in out
    assert json.loads((tmp_path / "a.json").read_text())["tested"] == 60


@pytest.mark.parametrize(
    "argv",
    [
        ["report", "none.zarr", "--out"],
        ["plot", "none.zarr", "--out"],
        ["svg", "none.zarr", "--json"],
        ["evaluate", "none.zarr", "--prediction", "p", "--json"],
        ["train", "none.zarr", "--out", "m", "--json"],
        ["convert", "none", "x.zarr", "--json"],
        ["doctor", "--json"],
    ],
)
def test_outputs_are_refused_before_anything_is_read(argv, tmp_path, capsys):
    """The input is not there either, and is not what the error is about: the output was looked at first."""
    name = "a.png" if argv[0] == "plot" else "a.html"
    (tmp_path / "folder" / name).mkdir(parents=True)
    assert run([*argv, str(tmp_path / "folder" / name)]) == 1
    assert _error(capsys) == f"this is a folder, {tmp_path / 'folder' / name}; name a file"
    assert run([*argv, str(tmp_path / "nowhere" / name)]) == 1
    assert _error(capsys).startswith(f"there is no such folder, {tmp_path / 'nowhere'}")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("argv", [["convert", "none"], ["train", "none.zarr", "--out"]])
def test_folders_are_refused_before_anything_is_read(argv, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run([*argv, str(tmp_path / "file" / "x.zarr")]) == 1
    assert _error(capsys).startswith("a part of the path is a file")


@pytest.mark.skipif("os.geteuid() == 0", reason="permissions do not bind root")
@pytest.mark.parametrize("argv", [["tissue"], ["grid"], ["features", "--encoder", "colour"]])
def test_a_store_that_is_read_only_is_refused_before_the_work(argv, toy, tmp_path, capsys):
    import shutil

    locked = tmp_path / "locked"
    locked.mkdir()
    shutil.copytree(toy, locked / "toy.zarr")
    locked.chmod(0o500)
    assert run([argv[0], str(locked / "toy.zarr"), *argv[1:]]) == 1
    assert _error(capsys) == f"no permission, {locked}; choose another place, or change the permissions"


@pytest.mark.parametrize("name", ["", ".zip"])
def test_a_cache_that_cannot_be_used_names_its_setting(name, toy, tmp_path, capsys, monkeypatch):
    from stainseq._settings import settings
    from stainseq.store import archive

    source = archive.pack(toy, tmp_path / "toy.zarr.zip") if name else toy
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(settings, "cache_dir", tmp_path / "file" / "cache")
    argv = (
        ["plot", str(source), "--out", str(tmp_path / "a.png")]
        if name
        else ["features", str(toy), "--encoder", "colour"]
    )
    assert run(argv) == 1
    message = _error(capsys)
    assert "STAINSEQ_CACHE_DIR" in message
    assert str(tmp_path / "file") in message


def test_redirected_stdout_is_not_replaced(h5ad, tmp_path):
    """With stdout in a file, /dev/stdout names that file: it must be written to, never moved over."""
    with open(tmp_path / "out.json", "w") as f:
        f.write("before\n")
        f.flush()
        code = "from stainseq.cli import main; import sys; main(sys.argv[1:])"
        argv = [sys.executable, "-c", code, "svg", str(h5ad), "--json", "/dev/stdout"]
        subprocess.run(argv, stdout=f, check=True)
    text = (tmp_path / "out.json").read_text()
    assert text.startswith("before\n")
    assert json.loads(text.removeprefix("before\n"))["tested"] == 60
    assert Path("/dev/stdout").exists()


def test_csv_on_stdout(h5ad, tmp_path):
    code = "from stainseq.cli import main; import sys; main(sys.argv[1:])"
    argv = [sys.executable, "-c", code, "svg", str(h5ad), "--csv", "/dev/stdout", "--json", str(tmp_path / "a.json")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("gene,I,expected")
    assert Path("/dev/stdout").exists()


def test_lists_are_lists_of_objects(capsys):
    for kind in ("encoders", "heads", "readers", "domains", "svg", "writers"):
        assert run(["list", kind, "--json", "/dev/stdout"]) == 0
        rows = json.loads(capsys.readouterr().out)
        for row in rows:
            assert {"name", "available", "needs", "default"} <= set(row)
        assert kind == "writers" or sum(row["default"] for row in rows) == (kind != "readers")


def test_square_brackets_are_text(capsys):
    """Else a fix would read pip install 'stainseq', without the extra that mends it."""
    from stainseq.cli import _common

    def show(console):
        shown = _common.table("fix")
        shown.add_row("pip install 'stainseq[timm]'")
        console.print(shown)
        console.print("pip install 'stainseq[scan]'")

    _common.emit({}, None, show)
    out = capsys.readouterr().out
    assert "'stainseq[timm]'" in out
    assert "'stainseq[scan]'" in out


def test_doctor_checks_and_gives_fixes(capsys, monkeypatch, tmp_path):
    assert run(["doctor", "--json", "/dev/stdout"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    names = {row["name"] for row in found["checks"]}
    assert {"Python", "torch", "spatialdata", "device", "cache folder", "default encoder"} <= names
    assert all(row["fix"] for row in found["checks"] if row["found"].startswith("not installed"))


def test_doctor_fails_with_a_fix_where_the_cache_cannot_be_written(capsys, monkeypatch, tmp_path):
    from stainseq._settings import settings

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(settings, "cache_dir", tmp_path / "file" / "cache")
    assert run(["doctor"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: 1 checks failed, cache folder; set STAINSEQ_CACHE_DIR")
    assert "FAIL" in captured.out


def test_options_of_a_method(h5ad, capsys):
    assert run(["svg", str(h5ad), "--option", "n_neighbors=12", "--json", "/dev/stdout"]) == 0
    more = json.loads(capsys.readouterr().out)["genes"][0]
    assert run(["svg", str(h5ad), "--json", "/dev/stdout"]) == 0
    assert json.loads(capsys.readouterr().out)["genes"][0] != more
    assert run(["svg", str(h5ad), "--option", "n_neighbors"]) == 1
    assert "NAME=VALUE" in _error(capsys)
    assert run(["svg", str(h5ad), "--option", "wrong=1"]) == 1
    assert "moran has no option wrong; its options: n_neighbors" in _error(capsys)
    assert run(["domains", str(h5ad), "--n-domains", "3", "--option", "wrong=1"]) == 1
    assert "kriging has no option wrong" in _error(capsys)


def test_a_given_table_is_never_changed(h5ad, tmp_path):
    before = h5ad.read_bytes()
    out = tmp_path / "out.h5ad"
    assert run(["domains", str(h5ad), "--n-domains", "3", "--out", str(out), "--csv", str(tmp_path / "d.csv")]) == 0
    assert h5ad.read_bytes() == before
    import anndata

    assert anndata.read_h5ad(out).obs["kriging.domain"].nunique() == 3
    assert (tmp_path / "d.csv").read_text().startswith("id,domain,refined,probability")


def test_a_folder_that_cannot_be_written(h5ad, tmp_path, capsys):
    if os.geteuid() == 0:
        folder = tmp_path / "file"
        folder.write_text("")
        words = "a part of the path is a file"
    else:
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        words = "no permission"
    assert run(["svg", str(h5ad), "--csv", str(folder / "a.csv")]) == 1
    assert words in _error(capsys)


def test_plot_writes_the_format_asked_for(toy, tmp_path, capsys):
    for name, magic in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")):
        assert run(["plot", str(toy), "MOR0000", "truth", "--out", str(tmp_path / name), "--dpi", "60"]) == 0
        assert (tmp_path / name).read_bytes().startswith(magic)
    capsys.readouterr()
    assert run(["plot", str(toy), "--out", str(tmp_path / "a.bmp")]) == 1
    assert "no figure format '.bmp'" in _error(capsys)
    assert run(["plot", str(toy), "NOPE", "--out", str(tmp_path / "b.png")]) == 1
    assert "neither a gene nor a column" in _error(capsys)
    assert run(["plot", str(toy), "--compare", "--out", str(tmp_path / "b.png")]) == 1
    assert "no gene to compare" in _error(capsys)
    assert not (tmp_path / "b.png").exists()
