"""Kill writes at every step: run as a program, it forks a child per trial and checks what the child left.

A child counts what it does to the file system under the folder (Python's audit events) and kills itself with SIGKILL
before the n-th, or it is killed from outside after a random time. Prints one JSON line per scenario.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

import spatialdata  # noqa: E402
from conftest import KINDS, NAMES  # noqa: E402
from conftest import element as make_element  # noqa: E402
from conftest import whole_slide as make_slide  # noqa: E402

from stainseq import store  # noqa: E402
from stainseq.errors import StoreError  # noqa: E402
from stainseq.store import elements, files, metadata  # noqa: E402

EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "open"}
MOST_TIMED = 50
"""Kills at random times in a scenario, however many are asked for: those at every step are what covers it."""


def watch(folder: Path, on_event: Callable[[str], None]) -> None:
    """Call back before everything that changes the folder."""
    inside = str(folder)

    def hook(event: str, arguments: tuple) -> None:
        if event not in EVENTS:
            return
        path = arguments[0]
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            return
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(inside):
            on_event(f"{event} {os.fspath(path)[len(inside) :]}")
        elif event in ("os.remove", "os.rmdir"):  # shutil.rmtree names entries relative to an open folder
            on_event(f"{event} {path!r}")

    sys.addaudithook(hook)
    swap_names = files.exchange

    def exchange(a: Path, b: Path) -> bool:
        on_event("exchange")
        done = swap_names(a, b)
        on_event("exchanged")
        return done

    files.exchange = exchange


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked child; its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as e:  # noqa: BLE001 - a child must not run on into its parent's code
            print("child:", repr(e), file=sys.stderr)
            os._exit(3)
    return os.waitpid(pid, 0)[1]


def ask(folder: Path, question: Callable[[], Any]) -> Any:
    """Answer of a forked child: this process stays without threads, which no fork would survive."""
    file = folder.parent / "answer"
    if in_child(lambda: file.write_text(json.dumps(question()))) != 0:  # type: ignore[func-returns-value]
        raise RuntimeError("a question failed")
    return json.loads(file.read_text())


def events_of(folder: Path, work: Callable[[], None]) -> list[str]:
    """What an undisturbed run does."""
    log = folder.parent / "events"

    def recorded() -> None:
        found: list[str] = []
        watch(folder, found.append)
        work()
        log.write_text(json.dumps(found))

    if in_child(recorded) != 0:
        raise RuntimeError("the undisturbed run failed")
    return json.loads(log.read_text())


def killed_at(folder: Path, work: Callable[[], None], step: int) -> None:
    def doomed() -> None:
        left = [step]

        def count(_: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        watch(folder, count)
        work()

    in_child(doomed)


def killed_after(work: Callable[[], None], seconds: float) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def steps_to_try(events: list[str], many: int) -> list[int]:
    """Around the step that counts, and some at random, half of them renames and journal writes."""
    renames = [i for i, e in enumerate(events) if e.startswith("os.rename") and ".partial" not in e]
    swaps = [i for i, e in enumerate(events) if e.startswith("exchange")] or renames[-3:]
    always = {i for i in (*swaps, swaps[-1] + 1) if i < len(events)}
    telling = sorted(set(renames) - always)
    some = random.sample(telling, min(many // 2, len(telling)))
    return sorted({*always, *some, *random.sample(range(len(events)), min(many // 2, len(events)))})


def state(path: Path, kind: str) -> str | None:
    """Fingerprint of the element computed from its bytes, opened as users do; None where it is not there."""
    slide = store.open(path)
    if NAMES[kind] not in slide:
        return None
    folder = path / kind / NAMES[kind]
    return elements.stored_fingerprint(folder, kind, element=None if kind == "tables" else slide[NAMES[kind]])


def complaints(path: Path, kind: str | None) -> list[str]:
    """What is wrong after stainseq has opened the store once."""
    found = store.problems(path)
    found += [f"left behind: {p.name}" for p in path.parent.iterdir() if p.name.startswith(f".{path.name}")]
    plain = spatialdata.read_zarr(path)
    names = {n for _, n, _ in plain.gen_elements()}
    if names != {n for _, n in metadata.elements_on_disk(path)}:
        found.append(f"plain spatialdata sees {names}")
    if kind is not None and NAMES[kind] in names and kind == "images":
        plain[NAMES[kind]]["scale1"]["image"].values  # noqa: B018
    return found


def scenario(
    name: str, base: Path, folder: Path, op: str, kind: str | None, *, exchange: bool, many: int
) -> dict[str, Any]:
    path = folder / "s.zarr"

    def work() -> None:
        if not exchange:
            files.exchange = lambda a, b: False
        if op == "create":
            store.create(path, make_slide(1), step="convert", parameters={}, overwrite=True)
            return
        slide = store.open(path)
        if op == "facts":
            store.set_facts(slide, patient="P2")
        elif op == "delete":
            store.delete_element(slide, NAMES[kind])
        else:
            store.write_element(slide, NAMES[kind], make_element(kind, 1), step="again", parameters={})

    start = folder.parent / "start.zarr"

    def prepare() -> None:
        shutil.rmtree(start, ignore_errors=True)
        shutil.copytree(base, start)
        if op == "add":
            store.delete_element(store.open(start), NAMES[kind])

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if not (op == "create" and kind == "none"):
            shutil.copytree(start, path)

    def found() -> Any:
        if op == "facts":
            return store.facts(store.open(path)).get("patient")
        if op == "create":
            try:
                return state(path, "tables")
            except StoreError:
                return "absent" if not path.exists() else "broken"
        return state(path, kind)

    looked_at = kind if kind in KINDS else None

    def judged() -> tuple[Any, list[str]]:
        try:
            now = found()
            return now, [] if now == "absent" else complaints(path, looked_at)
        except Exception as e:  # noqa: BLE001 - whatever it is, it is what the test is after
            return None, [f"{type(e).__name__}: {e}"]

    ask(folder, prepare)
    fresh()
    before = ask(folder, found)
    events = events_of(folder, work)
    after = ask(folder, found)
    wrong, seen = [], {"old": 0, "new": 0}
    steps = steps_to_try(events, many)
    timed = min(many // 2, MOST_TIMED)
    for trial in [*steps, *(random.uniform(0, 0.3) for _ in range(timed))]:
        fresh()
        if isinstance(trial, int):
            killed_at(folder, work, trial)
        else:
            killed_after(work, trial)
        where = f"{name} at {events[trial] if isinstance(trial, int) else trial}"
        now, complaint = ask(folder, judged)
        wrong += [f"{where}: {c}" for c in complaint]
        if now not in (before, after):
            wrong.append(f"{where}: neither old nor new")
        seen["new" if now == after else "old"] += 1
    if op in ("replace", "add"):  # the name is free for the next write
        again = make_element(kind, 2)
        ask(folder, lambda: store.write_element(store.open(path), NAMES[kind], again, step="third", parameters={}))
    return {
        "name": name,
        "events": len(events),
        "trials": len(steps) + timed,
        "wrong": wrong,
        "differs": before != after,
        **seen,
    }


def main() -> None:
    root, seed = Path(sys.argv[1]), int(sys.argv[2])
    many = int(sys.argv[3])
    random.seed(seed)
    base = root / "base.zarr"

    def warm_up() -> list[str]:
        slide = store.create(base, make_slide(), step="convert", parameters={})
        complaints(base, "images")
        store.write_element(slide, "spots", make_element("shapes"), step="convert", parameters={})
        return sorted(sys.modules)

    for module in ask(root / "work", warm_up):  # so that no child imports anything again
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    plan = [(f"replace {k}", "replace", k, True) for k in KINDS]
    plan += [("add images", "add", "images", True), ("add tables", "add", "tables", True)]
    plan += [("add labels", "add", "labels", True), ("delete labels", "delete", "labels", True)]
    plan += [("delete tables", "delete", "tables", True), ("facts", "facts", "tables", True)]
    plan += [("replace points without exchange", "replace", "points", False)]
    plan += [("create", "create", "none", True), ("create over one", "create", "over", True)]
    plan += [("create over one without exchange", "create", "over", False)]
    plan = [p for p in plan if p[0] in sys.argv[4:] or not sys.argv[4:]]
    for name, op, kind, exchange in plan:
        print(json.dumps(scenario(name, base, root / "work", op, kind, exchange=exchange, many=many)), flush=True)


if __name__ == "__main__":
    main()
