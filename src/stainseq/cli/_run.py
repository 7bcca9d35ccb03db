"""Runs one command line: exit codes, and every failure as one clear line.

0 success; 2 bad usage; 1 anything else. A traceback is shown with ``--debug`` alone.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _interrupts
from ..errors import StainseqError

if TYPE_CHECKING:
    from cyclopts import App, CycloptsError

GROUPS = {
    "The main job": ("demo", "convert", "features", "train", "predict", "evaluate", "report", "run"),
    "Slides": ("info", "align", "tissue", "grid", "superpixels", "aggregate", "export"),
    "Genes, domains, figures": ("svg", "domains", "integrate", "markers", "metagene", "plot"),
    "Nuclei and data sets": ("annotate", "patches", "split", "maskqc"),
    "This installation": ("list", "doctor"),
}


def app() -> App:
    """The application; every module here without an underscore holds commands, and imports nothing heavy."""
    from cyclopts import App, Group, Parameter

    from .. import __version__

    built = App(
        name="stainseq",
        help="H&E histology joined with spatial transcriptomics: read, predict, benchmark, map and show.",
        help_epilogue="Every command takes --debug, which shows where in the code an error arose.",
        help_format="plaintext",
        version=__version__,
        default_parameter=Parameter(negative=()),
        suppress_keyboard_interrupt=False,
        print_error=False,
        exit_on_error=False,
        result_action="return_value",
    )
    modules = [
        importlib.import_module(f"{__package__}.{m.name}")
        for m in pkgutil.iter_modules([str(Path(__file__).parent)])
        if not m.name.startswith("_")
    ]
    for position, (title, names) in enumerate(GROUPS.items()):
        group = Group(title, sort_key=position)
        for order, name in enumerate(names):
            command = next(getattr(m, f"{name}_", None) or getattr(m, name, None) for m in modules if _has(m, name))
            built.command(command, name=name, group=group, sort_key=order)
    return built


def _has(module: Any, name: str) -> bool:
    return callable(getattr(module, name, None)) or callable(getattr(module, f"{name}_", None))


def run(argv: list[str]) -> int:
    """Run one command line.

    Parameters
    ----------
    argv
        Arguments after the program's name.

    Returns
    -------
    int
        Exit code.
    """
    debug, argv = _take_debug(argv)
    quiet = logging.root.manager.disable
    with warnings.catch_warnings():
        if not debug:
            # What libraries log would bury the one line that matters; --debug shows it.
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
        try:
            return _guarded(argv, debug)
        finally:
            logging.disable(quiet)


def _guarded(argv: list[str], debug: bool) -> int:
    try:
        with _interrupts.kept():
            code = _call(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the output went away, as `| head` does. Nothing is left to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit:
        # So does rich leave when the reader of its output is gone.
        return 0
    except KeyboardInterrupt:
        return _failed("interrupted; nothing half-written is left, run the same command again to go on", debug)
    except MemoryError:
        return _failed("not enough memory; close other programs, or work on fewer regions or genes at a time", debug)
    except StainseqError as e:
        return _failed(str(e), debug)
    except OSError as e:
        return _failed(_system(e), debug)
    except Exception as e:  # noqa: BLE001  the last line of defence: a user never sees a traceback unasked
        return _failed(f"unexpected {type(e).__name__}: {e}; run again with --debug to see where", debug)


def _call(argv: list[str]) -> int:
    from cyclopts import CycloptsError

    built = app()
    try:
        result = built(argv)
    except CycloptsError as e:
        command = next((a for a in argv if not a.startswith("-")), "")
        known = f" {command}" if any(command in names for names in GROUPS.values()) else ""
        _say(f"{usage(e, built)}; see stainseq{known} --help")
        return 2
    return result if isinstance(result, int) else 0


def usage(e: CycloptsError, built: App) -> str:
    """Cyclopts' message without its decoration; what was typed wrongly rather than what is lacking for it."""
    from cyclopts import MissingArgumentError, UnknownCommandError

    left = list(e.unused_tokens or ())
    if isinstance(e, MissingArgumentError) and e.command_chain:
        known = [n for argument in built[e.command_chain[0]].assemble_argument_collection() for n in argument.names]
        for typed in (t.partition("=")[0] for t in left if t.startswith("--")):
            if typed not in known:
                lacking = f" {e.argument.name} is required" if e.argument else ""
                return f"Unknown option: {typed}.{_near(typed, known) or lacking}"
    if isinstance(e, UnknownCommandError) and left:
        commands = [name for names in GROUPS.values() for name in names]
        return f"Unknown command '{left[0]}'.{_near(left[0], commands)} Commands: {', '.join(commands)}"
    text = str(e).strip() or type(e).__name__
    return text.rstrip(" .,").replace('"', "'")


def _near(typed: str, known: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(typed, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _take_debug(argv: list[str]) -> tuple[bool, list[str]]:
    """Take --debug out of the arguments, wherever it stands before a "--"."""
    end = argv.index("--") if "--" in argv else len(argv)
    kept = [a for a in argv[:end] if a != "--debug"]
    return len(kept) < end, kept + argv[end:]


def _system(e: OSError) -> str:
    from .._files import REASONS

    what, fix = REASONS.get(e.errno or 0, (None, None))
    if isinstance(e, FileNotFoundError):
        what, fix = "no such file or folder", "check the path"
    where = f", {e.filename}" if e.filename is not None else ""
    return f"{what or e.strerror or e}{where}" + (f"; {fix}" if fix else "")


def _failed(text: str, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    _say(text)
    return 1


def _say(text: str) -> None:
    """One line on stderr."""
    line = " ".join(text.split())
    sys.stderr.write(f"error: {line}\n")
    sys.stderr.flush()
