"""Pipelines: done steps are skipped, killed runs go on, failing slides are listed and not fatal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import stainseq as ss
from stainseq import store
from stainseq.cli import _pipeline, run

PIPELINE = """
[run]
cohort = "cohort.csv"
out = "results"

[[step]]
do = "convert"

[[step]]
do = "tissue"

[[step]]
do = "patches"
mpp = 0.5
overlap_px = 0

[[step]]
name = "last"
do = "info"
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        ss.datasets.xenium(folder / f"s{seed}", size="small", transcripts=False, masks=False, seed=seed)
    return folder


@pytest.fixture
def calls(monkeypatch, capfd):
    """Every command that a run starts, done in this process; a list of them."""
    made = []

    def call(argv, log):
        made.append(argv)
        log.write_text("")
        capfd.readouterr()
        code = run(argv)
        error = capfd.readouterr().err.strip().splitlines()
        return code, error[-1].removeprefix("error: ") if error else ""

    monkeypatch.setattr(_pipeline, "_call", call)
    return made


@pytest.fixture
def folder(sources, tmp_path):
    rows = [f"s{i},{sources / f's{i}'},P{i}" for i in (0, 1)]
    (tmp_path / "cohort.csv").write_text("slide,path,patient\n" + "\n".join(rows) + "\n")
    (tmp_path / "p.toml").write_text(PIPELINE)
    return tmp_path


def told(folder, *more):
    """Run and return exit code and what was told as JSON."""
    file = folder / "told.json"
    code = run(["run", str(folder / "p.toml"), "--json", str(file), *more])
    return code, json.loads(file.read_text()) if file.exists() else None


def states(result, slide):
    return [s["state"] for s in result["steps"] if s["slide"] == slide]


def test_runs_skips_and_reruns(folder, calls):
    code, first = told(folder, "--dry-run")
    assert (code, first["counts"]["run"], calls) == (0, 8, [])
    assert not (folder / "results").exists()
    code, first = told(folder)
    assert (code, first["counts"]["run"], first["failed"]) == (0, 8, [])
    assert [a[0] for a in calls] == ["convert", "tissue", "patches", "info"] * 2
    for i in (0, 1):
        slide = ss.io.open(folder / "results" / f"s{i}.zarr")
        assert {"tissue", "patches"} <= set(slide.shapes)
        record = json.loads((folder / "results" / "run" / f"s{i}" / "patches.json").read_text())
        assert record["package_version"] == ss.__version__
        assert json.loads(Path(record["figures"]).read_text())["mpp"] == 0.5
    calls.clear()
    code, again = told(folder)
    assert (code, again["counts"]["run"], again["counts"]["done"], calls) == (0, 0, 8, [])
    # An option of a middle step: it and what follows, nothing before.
    (folder / "p.toml").write_text(PIPELINE.replace("mpp = 0.5", "mpp = 0.4"))
    assert told(folder)[1]["counts"]["run"] == 4
    assert [a[0] for a in calls] == ["patches", "info"] * 2
    calls.clear()
    # A result that is gone is made again; the others stay.
    slide = ss.io.open(folder / "results" / "s1.zarr")
    store.delete_element(slide, "patches")
    result = told(folder)[1]
    assert states(result, "s0") == ["done"] * 4
    assert states(result, "s1") == ["done", "done", "run", "done"]


def test_killed_between_any_two_writes(folder, calls, monkeypatch):
    """Whatever step was under way when the run died, the next run ends in the same state."""
    rows = (folder / "cohort.csv").read_text().splitlines()
    (folder / "cohort.csv").write_text("\n".join(rows[:2]) + "\n")
    inner = _pipeline._call
    for stop in range(1, 4):
        started = []

        def dying(argv, log, stop=stop, started=started):
            started.append(argv)
            code = inner(argv, log)
            if len(started) == stop:  # the step has ended, its record is not yet written
                raise KeyboardInterrupt
            return code

        monkeypatch.setattr(_pipeline, "_call", dying)
        out = folder / f"out{stop}"
        assert run(["run", str(folder / "p.toml"), "--out", str(out)]) == 1
        monkeypatch.setattr(_pipeline, "_call", inner)
        code, result = told(folder, "--out", str(out))
        assert code == 0
        assert states(result, "s0") == ["done"] * (stop - 1) + ["run"] * (5 - stop)
        assert set(ss.io.open(out / "s0.zarr").shapes) >= {"tissue", "patches", "cells"}


def test_failing_slide(folder, sources, calls):
    """It is listed with its error, what follows on it is blocked, the other slide and the cohort's steps go on."""
    rows = f"slide,path,patient\nbad,{folder / 'p.toml'},P1\ns0,{sources / 's0'},P0\n"
    (folder / "cohort.csv").write_text(rows)
    (folder / "p.toml").write_text(PIPELINE + '\n[[step]]\ndo = "export"\nto = "geojson"\nregion = "cells"\n'
                                   'args = ["{stores}", "{out}/cells.geojson"]\n')  # fmt: skip
    code, result = told(folder)
    assert code == 1
    assert result["failed"] == ["bad"]
    assert states(result, "bad") == ["failed", "blocked", "blocked", "blocked"]
    assert states(result, "s0") == ["run"] * 4
    error = next(s["error"] for s in result["steps"] if s["state"] == "failed")
    assert "p.toml" in error
    (export,) = (s for s in result["steps"] if s["slide"] == "")
    assert (export["state"], export["step"]) == ("run", "export")
    assert str(folder / "results" / "bad.zarr") not in export["command"]
    # What a step over the cohort wrote is made again where it is gone, and only then.
    calls.clear()
    assert told(folder)[1]["counts"]["done"] == 5
    (folder / "results" / "cells.geojson").unlink()
    (folder / "results" / "cells.geojson.export.json").unlink()
    calls.clear()
    told(folder)
    assert [a[0] for a in calls] == ["convert", "export"]
    assert (folder / "results" / "cells.geojson").is_file()
    cohort = (folder / "results" / "run" / "cohort.csv").read_text()
    assert "bad" not in cohort
    assert str(folder / "results" / "s0.zarr") in cohort


def test_a_step_over_some_slides(folder, calls):
    text = "[run]\ncohort = 'cohort.csv'\nout = 'results'\n[[step]]\ndo = 'convert'\n"
    step = "[[step]]\ndo = 'export'\nto = 'h5ad'\ntable = 'counts_cells'\nslides = ['s1']\n"
    (folder / "p.toml").write_text(text + step + "args = ['{stores}', '{out}/one.h5ad']\n")
    assert told(folder)[0] == 0
    assert calls[-1][:2] == ["export", str(folder / "results" / "s1.zarr")]
    assert str(folder / "results" / "s0.zarr") not in calls[-1]
    assert "s0" not in (folder / "results" / "run" / "cohort.csv").read_text().replace(str(folder), "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run", "no TOML"),
        ("[run]\nout='x'\n[[step]]\ndo='tissue'", "either cohort or slides"),
        ("[run]\nslides=['s']\n[[step]]\ndo='tissue'", "no out"),
        ("[run]\nslides=['nowhere']\nout='x'\n[[step]]\ndo='tissue'", "no such slide"),
        ("[run]\ncohort='cohort.csv'\nout='x'", "no step"),
        ("[run]\ncohort='cohort.csv'\nout='x'\n[[step]]\nmpp=1", "without do"),
        ("[run]\ncohort='cohort.csv'\nout='x'\nfast=1\n[[step]]\ndo='tissue'", "unknown fast"),
        ("[run]\ncohort='cohort.csv'\nout='x'\n[[step]]\ndo='tisue'", "Did you mean tissue"),
        ("[run]\ncohort='cohort.csv'\nout='x'\n[[step]]\ndo='patches'\nmp=1", "--mp"),
        ("[run]\ncohort='cohort.csv'\nout='x'\n[[step]]\ndo='patches'\nmpp='fine'", "mpp"),
        ("[run]\ncohort='cohort.csv'\nout='x'\n[[step]]\ndo='patches'\nkey='{slid}'", "placeholder"),
        ("[run]\ncohort='cohort.csv'\nout='x'\n[[step]]\ndo='tissue'\nslides=['s7']", "no slide 's7'"),
        ("[run]\ncohort='cohort.csv'\nout='x'\n[[step]]\ndo='tissue'\nname='a'\n[[step]]\ndo='info'\nname='a'", "'a'"),
        ("[run]\ncohort='cohort.csv'\nout='x'\n[[step]]\ndo='run'", "no step"),
        ("[[run]]\ncohort='cohort.csv'\nout='x'\n[[step]]\ndo='tissue'", "no table run"),
        ("[run]\ncohort='cohort.csv'\nout=5\n[[step]]\ndo='tissue'", "out = 5"),
        ("[run]\ncohort=5\nout='x'\n[[step]]\ndo='tissue'", "cohort = 5"),
        ("[run]\nslides='s0'\nout='x'\n[[step]]\ndo='tissue'", "give a list: slides"),
        ("[run]\nslides=[1]\nout='x'\n[[step]]\ndo='tissue'", "give a list: slides"),
        ("[run]\ncohort='cohort.csv'\nout='x'\n[[step]]\ndo='tissue'\nslides='s0'", "step 1; give a list: slides"),
        ("[run]\ncohort='cohort.csv'\nout='x'\n[[step]]\ndo='tissue'\nargs=3", "give a list: args"),
    ],
)
def test_bad_files(text, message, folder, calls, capfd):
    """Found before anything runs, in one line."""
    (folder / "p.toml").write_text(text)
    assert run(["run", str(folder / "p.toml")]) == 1
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not calls


def test_one_run_at_a_time(folder, capfd):
    held = _pipeline.lock(_pipeline.read_pipeline(folder / "p.toml"))
    try:
        assert run(["run", str(folder / "p.toml")]) == 1
        assert "another run" in capfd.readouterr().err
    finally:
        held.close()


def test_processes(folder):
    """As users start it: a step in a process of its own, its log and its error kept."""
    (folder / "p.toml").write_text(
        '[run]\ncohort = "cohort.csv"\nout = "r"\n[[step]]\ndo = "info"\nargs = ["{source}"]\n'
        '[[step]]\ndo = "info"\nargs = ["{source}/none"]\n'
    )
    command = [sys.executable, "-m", "stainseq", "run", str(folder / "p.toml"), "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "2 slides" in done.stdout
    log = (folder / "r" / "run" / "s0" / "info.log").read_text()
    assert "Xenium" in log or "xenium" in log
    assert "none" in json.loads((folder / "r" / "run" / "summary.json").read_text())["steps"][1]["error"]
