"""Steps over a slide or a cohort, from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import InputError, StainseqError
from ._common import Json, NoSeed, emit, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ._pipeline import Pipeline, Result, Step

File = Annotated[Path, Parameter(name="PIPELINE", help="A TOML file; see docs/pipelines.md.")]


def run_(
    pipeline: File,
    /,
    *,
    out: Path | None = None,
    dry_run: bool = False,
    jobs: int = 1,
    cluster: str | None = None,
    stop_on_error: bool = False,
    json: Json = None,
    seed: NoSeed = 0,
) -> int:
    """Run the steps of a pipeline file; finished ones are skipped, a failing slide does not stop the others.

    Parameters
    ----------
    out
        Folder of the results, instead of the file's.
    dry_run
        Check the file and every option, say what would be run, and do nothing.
    jobs
        Slides at work at a time on this machine.
    cluster
        Address of a Dask scheduler, such as tcp://host:8786, whose workers take the slides; they must see the same
        files.
    stop_on_error
        Stop at the first failing step.
    """
    from . import _pipeline

    if jobs < 1:
        raise InputError(f"jobs={jobs}", fix="give 1 or more")
    made = _pipeline.read_pipeline(pipeline, out=out)
    check(made)
    told = _printer(json)
    runner = _pipeline.Runner(made, dry=dry_run, told=told)
    held = None if dry_run else _pipeline.lock(made)
    try:
        results = _run_all(made, runner, jobs, cluster, stop_on_error)
    finally:
        if held is not None:
            held.close()
    result = {**_pipeline.summary(made, results), "dry_run": dry_run}
    if not dry_run:
        from .._files import write_json

        write_json(made.out / "run" / "summary.json", result)
    emit(result, json, lambda console: _show(console, result))
    return 1 if result["failed"] else 0


def check(made: Pipeline) -> None:
    """Refuse before the first step runs what the last one would stumble over: unknown commands and options.

    Parameters
    ----------
    made
        The pipeline.

    Raises
    ------
    InputError
        Every step that cannot be, with the reason.
    """
    from cyclopts import CycloptsError

    from . import _pipeline
    from ._run import app, usage

    built, problems = app(), []
    for step in made.steps:
        slide = None if step.over == "cohort" else next(iter(step.slides or made.slides))
        argv = _pipeline.command(made, step, slide, step.slides or list(made.slides))
        try:
            built.parse_args([*argv, "--json", "x.json"], print_error=False, exit_on_error=False)
        except CycloptsError as e:
            problems.append(f"{step.name}: {usage(e, built)}")
        except StainseqError as e:
            problems.append(f"{step.name}: {e}")
    if problems:
        raise InputError("; ".join(problems), where=made.path, fix="see stainseq COMMAND --help")


def _run_all(made: Pipeline, runner: Any, jobs: int, cluster: str | None, stop_on_error: bool) -> list[Result]:
    from . import _pipeline

    results: list[Result] = []
    keys = dict.fromkeys(made.slides, "")
    good = list(made.slides)
    for group in _pipeline.groups(made):
        if group[0].over == "cohort":
            mine = [s for s in good if group[0].slides is None or s in group[0].slides]
            found = [runner.cohort_step(group[0], mine, [keys[s] for s in mine])]
            if found[0].state in ("failed", "blocked"):
                # What follows a failed step over the cohort would stand on what is not there.
                good = []
            keys = {s: _pipeline.fingerprint(k, found[0].key) for s, k in keys.items()}
        else:
            found = _slides(runner, group, {s: keys[s] for s in good}, jobs, cluster)
            keys |= {r.slide: r.key for r in found}
            bad = {r.slide for r in found if r.state in ("failed", "blocked")}
            good = [s for s in good if s not in bad]
        results += found
        if stop_on_error and any(r.state == "failed" for r in found):
            break
    return results


def _slides(runner: Any, steps: Sequence[Step], keys: dict[str, str], jobs: int, cluster: str | None) -> list[Result]:
    """Slides side by side: in threads that wait for processes, or on the workers of a cluster."""
    if cluster is not None and not runner.dry:
        return _on_cluster(runner, steps, keys, cluster)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(jobs) as pool:
        parts = list(pool.map(lambda item: runner.slide_steps(steps, *item), keys.items()))
    return [r for part in parts for r in part]


def _on_cluster(runner: Any, steps: Sequence[Step], keys: dict[str, str], cluster: str) -> list[Result]:
    from ..errors import DependencyError
    from ._pipeline import Runner

    try:
        from distributed import Client, as_completed
    except ImportError as e:
        raise DependencyError("distributed is not installed", fix="pip install 'stainseq[distributed]'") from e
    results: list[Result] = []
    try:
        client = Client(cluster, timeout="10s")
    except (OSError, ValueError) as e:
        raise InputError(
            f"no Dask scheduler answers ({e})", where=cluster, fix="start one, or leave --cluster out"
        ) from e
    with client:
        there = Runner(runner.pipeline)
        futures = [client.submit(there.slide_steps, list(steps), s, k, pure=False) for s, k in keys.items()]
        for future in as_completed(futures):
            part = future.result()
            for result in part:
                runner.told(result)
            results += part
    order = {s: i for i, s in enumerate(keys)}
    return sorted(results, key=lambda r: order[r.slide])


def _printer(json: Path | None) -> Any:
    """One line a step as it ends, on stderr."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)

    def told(result: Result) -> None:
        about = {"run": f"{result.seconds:.1f} s", "done": "done already"}.get(result.state, result.error)
        console.print(f"{result.slide or 'cohort'}  {result.step}  {result.state if result.error else ''}  {about}")

    return told


def _show(console: Console, result: dict[str, Any]) -> None:
    verb = "to run" if result["dry_run"] else "run"
    counts = result["counts"]
    console.print(
        f"{len(result['slides'])} slides: {counts['run']} steps {verb}, {counts['done']} done already, "
        f"{counts['failed']} failed" + (f", {counts['blocked']} not begun" if counts["blocked"] else "")
    )
    bad = [s for s in result["steps"] if s["state"] == "failed"]
    if bad:
        shown = table("slide", "step", "error")
        for s in bad:
            shown.add_row(s["slide"] or "cohort", s["step"], s["error"])
        console.print(shown)
