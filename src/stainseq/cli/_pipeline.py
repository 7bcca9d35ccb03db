"""Pipelines: steps over slides as a TOML file, what each step depends on, and what is already done.

A step is a command of this program with its options. It runs in a process of its own, so that a step that runs out of
memory or crashes is a line in a report and not the end of the night. A record is written when a step has ended well; a
step whose record names the same inputs, options and earlier steps is not run again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .._files import write_json
from ..errors import FormatError, InputError, MissingError
from ..spec import fingerprint, fingerprint_file

RESERVED = {"do", "name", "over", "args", "slides"}
"""Keys of a step that are not options of its command."""

OVER_COHORT = {"train", "split", "integrate", "export", "bench", "probe", "contrast"}
"""Commands that see all slides at once unless the step says otherwise."""

POSITIONAL = {
    "convert": ("{source}", "{store}"),
    "train": ("{cohort}",),
    "split": ("{cohort}",),
    "bench": ("{cohort}",),
    "probe": ("{cohort}",),
    "contrast": ("{cohort}",),
    "integrate": ("{stores}",),
}
"""What comes before the options; ("{store}",) for other commands."""

OVERWRITES = {"convert", "train", "export"}
"""Commands that refuse an output that is there; a step may replace what it began itself."""

WHOLE_FILE = 1 << 26
"""Files up to this size are known by their content, larger ones by size and time of change."""

State = Literal["run", "done", "failed", "blocked"]


@dataclass(frozen=True)
class Step:
    """One step as written in the file.

    Parameters
    ----------
    name
        Unique; the command's where none is given, with a number when it occurs again.
    do
        The command.
    over
        "slide" or "cohort".
    args
        Positional arguments, with placeholders.
    options
        As written, with placeholders.
    slides
        Names of the slides it is for; None: all.
    """

    name: str
    do: str
    over: Literal["slide", "cohort"]
    args: tuple[str, ...]
    options: dict[str, Any]
    slides: tuple[str, ...] | None


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file, checked.

    Parameters
    ----------
    path
        The file.
    out
        Folder of all results; stores are ``out/SLIDE.zarr``.
    slides
        Facts of each slide by name: ``source`` and what the cohort has.
    steps
        In order.
    """

    path: Path
    out: Path
    slides: dict[str, dict[str, str]]
    steps: tuple[Step, ...]


@dataclass
class Result:
    """What became of one step on one slide (or on the cohort: slide is "").

    Parameters
    ----------
    slide, step
        Which.
    state
        "run", "done" (already), "failed", or "blocked" by an earlier failure.
    seconds
        Wall time of the process.
    error
        Its last line, where it failed.
    key
        Fingerprint of all that it depends on.
    figures
        File of what the command told as JSON, "" where it told nothing.
    command
        Its arguments.
    """

    slide: str
    step: str
    state: State
    seconds: float = 0.0
    error: str = ""
    key: str = ""
    figures: str = ""
    command: list[str] = field(default_factory=list)


def read_pipeline(path: Path, *, out: Path | None = None) -> Pipeline:
    """Read and check a pipeline file.

    Parameters
    ----------
    path
        TOML: a table ``run`` with ``cohort`` (CSV of slide, path, patient) or ``slides`` (list of sources), and
        ``out``; then ``[[step]]`` tables with ``do`` and options. Paths are relative to the file.
    out
        Instead of the file's.

    Raises
    ------
    MissingError, FormatError, InputError
        What is lacking or cannot be.
    """
    if not path.is_file():
        raise MissingError("there is no such pipeline", where=path, fix="give a TOML file")
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise FormatError(f"no TOML ({e})", where=path, fix="correct that line") from e
    run, steps = held.get("run"), held.get("step")
    if not isinstance(run, dict) or not isinstance(steps, list) or not steps:
        raise InputError("no table run or no step", where=path, fix="write [run] and one or more [[step]]")
    strange = sorted(set(held) - {"run", "step"}) + sorted(set(run) - {"cohort", "slides", "out"})
    if strange:
        raise InputError(
            f"unknown {', '.join(strange)}", where=path, fix="tables are run (cohort, slides, out) and step"
        )
    for key in ("cohort", "out"):
        if not isinstance(run.get(key, ""), str):
            raise InputError(f"{key} = {run[key]!r}", where=path, fix="give a path in quotes")
    folder = path.absolute().parent
    place = out or (folder / run["out"] if "out" in run else None)
    if place is None:
        raise InputError("no out", where=path, fix='give a folder: out = "results"')
    slides = _slides(run, folder, path)
    return Pipeline(path, place.absolute(), slides, tuple(_steps(steps, set(slides), path)))


def _slides(run: dict[str, Any], folder: Path, path: Path) -> dict[str, dict[str, str]]:
    if ("cohort" in run) == ("slides" in run):
        raise InputError("give either cohort or slides", where=path)
    if "cohort" in run:
        from ..cohort import read_cohort

        rows = read_cohort(folder / run["cohort"]).table.fillna("").to_dict("records")
        return {str(r["slide"]): {"source": str(r["path"]), **{k: str(v) for k, v in r.items()}} for r in rows}
    found: dict[str, dict[str, str]] = {}
    for source in _texts(run, "slides", path):
        name = re.sub(r"(\.ome)?\.(zarr(\.zip)?|tiff?|svs|h5ad)$", "", Path(source).name) or "slide"
        if name in found:
            raise InputError(f"two slides are called {name!r}", where=path, fix="use a cohort, which names them")
        if not (folder / source).exists():
            raise MissingError("there is no such slide", where=folder / source, fix="correct the path")
        found[name] = {"source": str(folder / source), "slide": name, "path": str(folder / source), "patient": name}
    if not found:
        raise InputError("no slides", where=path)
    return found


def _texts(table: dict[str, Any], key: str, where: object) -> list[str]:
    """A list of texts: one text alone would be taken for a list of letters."""
    value = table[key]
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise InputError(f"{key} = {value!r}", where=where, fix=f'give a list: {key} = ["...", "..."]')
    return value


def _steps(steps: list[Any], slides: set[str], path: Path) -> Iterator[Step]:
    names: set[str] = set()
    for i, given in enumerate(steps):
        where = f"{path}, step {i + 1}"
        if not isinstance(given, dict) or not isinstance(given.get("do"), str):
            raise InputError("a step without do", where=where, fix='name a command: do = "tissue"')
        do = given["do"]
        if do in ("run", "demo"):
            raise InputError(f"{do!r} is no step", where=where, fix="name a command that works on slides")
        name = str(given.get("name", do))
        if "name" not in given:
            name = next(n for n in (do, *(f"{do}-{k}" for k in range(2, 1000))) if n not in names)
        if name in names or not re.fullmatch(r"[\w.-]+", name):
            raise InputError(
                f"step name {name!r}", where=where, fix="give every step a name of its own, without spaces"
            )
        names.add(name)
        over = given.get("over", "cohort" if do in OVER_COHORT else "slide")
        if over not in ("slide", "cohort"):
            raise InputError(f"over = {over!r}", where=where, fix='"slide" or "cohort"')
        only = _texts(given, "slides", where) if "slides" in given else None
        if only is not None and not set(only) <= slides:
            raise InputError(f"no slide {sorted(set(only) - slides)[0]!r}", where=where)
        args = tuple(_texts(given, "args", where) if "args" in given else POSITIONAL.get(do, ("{store}",)))
        options = {k: v for k, v in given.items() if k not in RESERVED}
        yield Step(name, do, over, args, options, None if only is None else tuple(only))


def groups(pipeline: Pipeline) -> list[list[Step]]:
    """Steps in runs of the same kind: slides are independent of each other within a run of slide steps."""
    out: list[list[Step]] = []
    for step in pipeline.steps:
        if out and step.over == "slide" and out[-1][0].over == "slide":
            out[-1].append(step)
        else:
            out.append([step])
    return out


def command(pipeline: Pipeline, step: Step, slide: str | None, stores: Sequence[str]) -> list[str]:
    """Arguments of this program that a step stands for.

    Parameters
    ----------
    pipeline, step
        What to do.
    slide
        Of a slide step.
    stores
        Names of the slides that a cohort step sees.

    Raises
    ------
    InputError
        An unknown placeholder, or an option that is no text, number, truth value or list of these.
    """
    known = {"out": str(pipeline.out), "step": step.name, "cohort": str(_records(pipeline) / "cohort.csv")}
    if slide is not None:
        known |= {**pipeline.slides[slide], "slide": slide, "store": str(pipeline.out / f"{slide}.zarr")}

    def filled(text: str) -> str:
        try:
            return text.format_map(known)
        except (KeyError, ValueError, IndexError) as e:
            raise InputError(
                f"placeholder in {text!r}",
                where=f"{pipeline.path}, step {step.name}",
                fix=f"known: {', '.join('{' + k + '}' for k in [*known, 'stores'])}",
            ) from e

    out = [step.do]
    for a in step.args:
        out += [str(pipeline.out / f"{s}.zarr") for s in stores] if a == "{stores}" else [filled(a)]
    for key, value in step.options.items():
        name = f"--{key.replace('_', '-')}"
        for v in value if isinstance(value, list) else [value]:
            if v is True:
                out.append(name)
            elif v is False:
                continue
            elif isinstance(v, (str, int, float)):
                out += [name, filled(v) if isinstance(v, str) else str(v)]
            else:
                raise InputError(f"option {key} = {v!r}", where=f"{pipeline.path}, step {step.name}", fix="give text")
    return out


def _records(pipeline: Pipeline) -> Path:
    return pipeline.out / "run"


def _file_facts(argv: Sequence[str], pipeline: Pipeline) -> dict[str, Any]:
    """What tells files that a command reads from what they were; results of the run itself are known by their steps."""
    out: dict[str, Any] = {}
    for a in argv:
        path = Path(a)
        if len(a) < 2 or a.startswith("--") or not path.exists() or pipeline.out in (path, *path.absolute().parents):
            continue
        if path.is_dir():
            out[a] = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in path.iterdir())
        elif path.stat().st_size <= WHOLE_FILE:
            out[a] = fingerprint_file(path)
        else:
            out[a] = [path.stat().st_size, path.stat().st_mtime_ns]
    return out


class Runner:
    """Runs the steps of one pipeline.

    Parameters
    ----------
    pipeline
        From `read_pipeline`.
    dry
        Say what would be done, and do nothing.
    told
        Called with every `Result`.
    """

    def __init__(self, pipeline: Pipeline, *, dry: bool = False, told: Callable[[Result], None] | None = None) -> None:
        self.pipeline, self.dry = pipeline, dry
        self.told = told or (lambda result: None)

    def slide_steps(self, steps: Sequence[Step], slide: str, before: str) -> list[Result]:
        """Steps of one slide in order; the first that fails blocks the others.

        Parameters
        ----------
        steps
            Slide steps.
        slide
            Its name.
        before
            Key of what came earlier.
        """
        results: list[Result] = []
        blocked = False
        for step in steps:
            if step.slides is not None and slide not in step.slides:
                continue
            if blocked:
                result = Result(slide, step.name, "blocked", error="an earlier step failed", key=before)
            else:
                result = self._one(step, slide, [], before)
            before, blocked = result.key, result.state in ("failed", "blocked")
            results.append(result)
            self.told(result)
        return results

    def cohort_step(self, step: Step, slides: Sequence[str], before: Sequence[str]) -> Result:
        """A step over the slides that it is for and that are still good.

        Parameters
        ----------
        step
            The step.
        slides
            Their names.
        before
            Keys of what came earlier, of each slide.
        """
        if not slides:
            result = Result("", step.name, "blocked", error="no slide is left")
        else:
            if not self.dry:
                self._write_cohort(slides)
            result = self._one(step, None, slides, fingerprint(list(before)))
        self.told(result)
        return result

    def _write_cohort(self, slides: Sequence[str]) -> None:
        import pandas as pd

        from .._files import write_file

        rows = [{**self.pipeline.slides[s], "slide": s, "path": str(self.pipeline.out / f"{s}.zarr")} for s in slides]
        table = pd.DataFrame(rows).drop(columns="source")
        write_file(_records(self.pipeline) / "cohort.csv", lambda staged: table.to_csv(staged, index=False))

    def _one(self, step: Step, slide: str | None, slides: Sequence[str], before: str) -> Result:
        argv = command(self.pipeline, step, slide, slides)
        key = fingerprint(before, argv, _file_facts(argv, self.pipeline))
        folder = _records(self.pipeline) / (slide or "cohort")
        record, begun = folder / f"{step.name}.json", folder / f"{step.name}.begun"
        earlier = _read_record(record)
        if earlier and earlier["key"] == key and all(Path(p).exists() for p in earlier["outputs"]):
            return Result(slide or "", step.name, "done", earlier["seconds"], "", key, earlier["figures"], argv)
        if self.dry:
            return Result(slide or "", step.name, "run", 0.0, "", key, "", argv)
        folder.mkdir(parents=True, exist_ok=True)
        mine = begun.exists()
        record.unlink(missing_ok=True)
        begun.write_text(key, encoding="utf-8")
        figures = str(folder / f"{step.name}.figures.json")
        Path(figures).unlink(missing_ok=True)
        full = [*argv, *(["--json", figures] if "--json" not in argv else [])]
        full += ["--overwrite"] if mine and step.do in OVERWRITES and "--overwrite" not in argv else []
        store = None if slide is None else self.pipeline.out / f"{slide}.zarr"
        there = _elements(store) | _places(argv)
        start = time.perf_counter()
        code, error = _call(full, folder / f"{step.name}.log")
        seconds = round(time.perf_counter() - start, 3)
        if code != 0:
            return Result(slide or "", step.name, "failed", seconds, error, key, "", argv)
        figures = figures if Path(figures).exists() else ""
        result = Result(slide or "", step.name, "run", seconds, "", key, figures, argv)
        now = _elements(store) | _places(argv)
        outputs = sorted(p for p, made in now.items() if there.get(p) != made)
        outputs += [str(store)] if store is not None and store.exists() else []
        from .. import __version__

        write_json(record, {**asdict(result), "outputs": outputs, "package_version": __version__})
        return result


def _elements(store: Path | None) -> dict[str, tuple[int, int]]:
    """Folders of a store's elements, each with what changes when it is replaced."""
    if store is None or not store.is_dir():
        return {}
    found = [p for p in store.glob("*/*") if p.is_dir() and not p.name.startswith(".")]
    return {str(p): (p.stat().st_ino, p.stat().st_ctime_ns) for p in found}


def _places(argv: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Files and folders that a command names, with what changes when they are replaced."""
    found = [Path(a).absolute() for a in argv if len(a) > 1 and not a.startswith("--") and os.path.exists(a)]
    return {str(p): (p.stat().st_ino, p.stat().st_ctime_ns) for p in found}


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return held if {"key", "outputs", "seconds", "figures"} <= set(held) else None
    except (OSError, ValueError):
        return None


def _call(argv: list[str], log: Path) -> tuple[int, str]:
    """One command in a process of its own; its exit code and last line of error."""
    with open(log, "wb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "stainseq", *argv], stdout=file, stderr=subprocess.PIPE, check=False
        )
        file.write(done.stderr)
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ") if lines else ""
    if done.returncode < 0:
        last = f"killed by signal {-done.returncode}" + (" (out of memory?)" if done.returncode == -9 else "")
    if done.returncode == -2 or (done.returncode == 1 and last.startswith("interrupted")):
        raise KeyboardInterrupt
    return done.returncode, last


def lock(pipeline: Pipeline) -> Any:
    """Keep two runs out of one folder; released when the process ends.

    Raises
    ------
    InputError
        Another run is at work there.
    """
    import fcntl

    folder = _records(pipeline)
    folder.mkdir(parents=True, exist_ok=True)
    handle = open(folder / "lock", "a")  # noqa: SIM115  (held until the process ends)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        handle.close()
        raise InputError("another run is at work here", where=pipeline.out, fix="wait for it, or stop it first") from e
    return handle


def summary(pipeline: Pipeline, results: Sequence[Result]) -> dict[str, Any]:
    """What a run came to.

    Parameters
    ----------
    pipeline
        The pipeline.
    results
        All results.
    """
    failed = sorted({r.slide or "cohort" for r in results if r.state in ("failed", "blocked")})
    counts = {s: sum(r.state == s for r in results) for s in ("run", "done", "failed", "blocked")}
    return {
        "pipeline": str(pipeline.path),
        "out": str(pipeline.out),
        "slides": list(pipeline.slides),
        "failed": failed,
        "counts": counts,
        "steps": [asdict(r) for r in results],
    }
