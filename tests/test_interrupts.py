"""Ctrl-C where Python drops it."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from stainseq import _interrupts, cli


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)
    # The handler runs before the next call at the latest, so inside what called this.
    time.sleep(0)


class Finalised:
    def __del__(self) -> None:
        interrupt()


def in_a_finaliser() -> None:
    Finalised()


def in_a_weakref_callback() -> None:
    class Thing:
        pass

    thing = Thing()
    kept = weakref.ref(thing, lambda _: interrupt())
    del thing
    assert kept() is None


def under_a_broad_except() -> None:
    with contextlib.suppress(BaseException):
        interrupt()


def then_wait(drop: Callable[[], None], reached: list[str]) -> None:
    with _interrupts.kept():
        drop()
        reached.append("the wait")
        # For what nobody sets: only an interrupt ends it.
        threading.Event().wait(60)
        reached.append("the end")


@pytest.mark.parametrize("drop", [in_a_finaliser, in_a_weakref_callback])
def test_a_dropped_interrupt_is_sent_again_at_once(drop) -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        then_wait(drop, reached)
    assert "the end" not in reached


def test_an_interrupt_that_a_library_ate_is_raised_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), _interrupts.kept():
        under_a_broad_except()


def test_everything_is_put_back() -> None:
    hook, threads = sys.unraisablehook, threading.active_count()
    with _interrupts.kept():
        pass
    with pytest.raises(KeyboardInterrupt), _interrupts.kept():
        interrupt()
    assert sys.unraisablehook is hook
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert threading.active_count() == threads


def test_a_program_with_a_handler_of_its_own_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    before = signal.signal(signal.SIGINT, lambda *a: calls.append(a))
    try:
        with _interrupts.kept():
            interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(calls) == 1


def test_other_errors_of_finalisers_are_shown_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: shown.append(what.exc_type))

    class Broken:
        def __del__(self) -> None:
            raise ValueError

    with _interrupts.kept():
        Broken()
    assert shown == [ValueError]


def test_a_command_whose_interrupt_was_eaten_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from stainseq.cli import _run

    monkeypatch.setattr(_run, "_call", lambda argv: under_a_broad_except() or 0)
    assert cli.run(["info", "x"]) == 1
    assert capsys.readouterr().err.startswith("error: interrupted; nothing half-written is left")


def test_one_interrupt_is_raised_once() -> None:
    """Dropped just before the block ends, it is both sent again and raised there: the caller must see one of them."""

    def drop(wait: float) -> None:
        with _interrupts.kept():
            in_a_finaliser()
            time.sleep(wait * _interrupts.AGAIN_S)

    for wait in (0.0, 0.5, 0.9, 1.0, 1.1) * 4:
        with pytest.raises(KeyboardInterrupt):
            drop(wait)
        until = time.monotonic() + 2 * _interrupts.AGAIN_S
        while time.monotonic() < until:
            pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
