"""Ctrl-C that does not get lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. Inside a finaliser, a weakref callback or a
callback from C it is printed and dropped, and a library's broad ``except`` may drop it too: then the command runs on
and reports success. Here it is noted, sent again where Python tells that it was dropped, and raised at the end at the
latest.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from types import FrameType
from typing import Any

AGAIN_S = 0.02
"""Until a dropped interrupt is sent again: long enough to leave the finaliser that dropped it."""


@contextmanager
def kept() -> Iterator[None]:
    """Whatever happens inside, an interrupt ends the block with KeyboardInterrupt.

    Does nothing outside the main thread, or where the program has its own handler of SIGINT or ignores it.

    Raises
    ------
    KeyboardInterrupt
        The user interrupted; where it was dropped on its way, the block may have come to its end before.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    seen = False
    # The one queue that a finaliser may put into, whatever locks the code that it cut into holds.
    dropped: SimpleQueue[bool] = SimpleQueue()
    hook = sys.unraisablehook

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen = True
        raise KeyboardInterrupt

    def note_quietly(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen = True

    def unraisable(what: Any) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            dropped.put(True)
        else:
            hook(what)

    def send_again() -> None:
        while dropped.get():
            time.sleep(AGAIN_S)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    sender = threading.Thread(target=send_again, name="stainseq-interrupts", daemon=True)
    sender.start()
    signal.signal(signal.SIGINT, note)
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        # What is still under way is noted and raised once, here: it must not land in the caller's next lines.
        while signal.getsignal(signal.SIGINT) is note:
            with suppress(KeyboardInterrupt):
                signal.signal(signal.SIGINT, note_quietly)
        dropped.put(False)
        sender.join()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = hook
    if seen:
        raise KeyboardInterrupt
