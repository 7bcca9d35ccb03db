"""The command line: one thin command per public function.

Exit code 0 on success, 2 on bad usage, 1 on any other failure, always with one line on stderr that says what is
wrong, where, and how to fix it; a traceback only with --debug.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

__all__ = ["main", "run"]


def main() -> None:
    """Entry point of the `stainseq` command."""
    sys.exit(run())


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; default those of the process.

    Returns
    -------
    int
        The exit code.
    """
    from cyclopts import CycloptsError

    from ..errors import StainseqError
    from ._app import app

    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in tokens
    tokens = [t for t in tokens if t != "--debug"]
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        return _say(" ".join(str(e).split()), 2, hint="stainseq --help")
    except StainseqError as e:
        if debug:
            raise
        return _say(str(e), 1)
    except KeyboardInterrupt:
        if debug:
            raise
        return _say("interrupted; finished work is kept, the same command goes on from there", 1)
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`): nothing to say, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        if debug:
            raise
        return _say(_explain(e), 1)
    except Exception as e:
        # The last resort: one clear line instead of a traceback.
        if debug:
            raise
        return _say(
            f"unexpected {type(e).__name__}: {' '.join(str(e).split())}; run again with --debug and report it", 1
        )
    return 0


def _say(message: str, code: int, *, hint: str | None = None) -> int:
    sys.stderr.write(f"error: {message}{f'; see `{hint}`' if hint else ''}\n")
    return code


_FIXES = {
    errno.ENOSPC: "free space or write elsewhere",
    errno.EDQUOT: "free space or write elsewhere",
    errno.EROFS: "write to a place that is not read-only",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.ENOENT: "check the path",
}


def _explain(e: OSError) -> str:
    where = f", {e.filename}" if e.filename else ""
    fix = _FIXES.get(e.errno or 0)
    return f"{e.strerror or e}{where}{f'; {fix}' if fix else ''}"
