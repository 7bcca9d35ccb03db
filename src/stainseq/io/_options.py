"""Options of readers and writers, held against what their functions say they take."""

from __future__ import annotations

import inspect
import numbers
import re
from collections.abc import Callable
from typing import Any

from ..errors import InputError

_KINDS: dict[str, tuple[Any, str]] = {
    "bool": (bool, "give true or false"),
    "int": (numbers.Integral, "give a whole number"),
    "float": (numbers.Real, "give a number"),
}


def check_values(function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse values that the annotation of an option excludes; None passes.

    Parameters
    ----------
    function
        Of the plug-in; its annotations are text.
    options
        By name; names that it does not have pass.

    Raises
    ------
    InputError
        Not one of the words that are named, no truth value, no number.
    """
    known = inspect.signature(function).parameters
    for key, value in options.items():
        if value is None or key not in known:
            continue
        told = str(known[key].annotation)
        if told.startswith("Literal"):
            named = [a or b for a, b in re.findall(r"'([^']*)'|\"([^\"]*)\"", told)]
            if value not in named:
                raise InputError(f"{key}={value!r}", fix=f"one of: {', '.join(named)}")
        kind, fix = _KINDS.get(told.partition(" ")[0], (object, ""))
        # True is a number to Python, and to nobody else.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
            raise InputError(f"{key}={value!r}", fix=fix)
