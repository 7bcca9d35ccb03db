"""A file in a plug-in folder is a plug-in; listing never imports it.

Folders: ``readers heads domains svg writers annotators`` (one ``NAME.py`` each) and ``encoders/specs`` (one
``NAME.toml`` each). Underscores in file names read as hyphens. Third parties add entry points in the
groups ``stainseq.readers``, ``stainseq.heads``, ... whose value is a module with the same contract.

What a listing shows is read from the file without running it: the first line of its docstring and the
constants ``NEEDS`` (tuple of import names), ``DEFAULT`` (bool), ``PRIORITY`` (int).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import MissingError

KINDS = ("encoders", "heads", "readers", "domains", "svg", "writers", "annotators")
_SPELT = {
    "encoders": "encoder",
    "heads": "head",
    "readers": "reader",
    "domains": "domain method",
    "svg": "test for spatial genes",
    "writers": "writer",
    "annotators": "annotator",
}
_ROOT = Path(__file__).parent


def names(kind: str) -> list[str]:
    """Names of all plug-ins of a kind, sorted."""
    return sorted(_table(kind))


def load(kind: str, name: str) -> ModuleType:
    """Import one plug-in module (readers, heads, domains, svg, writers, annotators).

    Raises
    ------
    MissingError
        The name is unknown; the message lists those there are.
    """
    table = _table(kind)
    if name not in table:
        near = [n for n in table if n.lower().replace("_", "-") == name.lower().replace("_", "-")]
        near = near or get_close_matches(name.lower(), table, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise MissingError(f"no {_SPELT[kind]} named {name!r}", fix=f"{meant}one of: {', '.join(sorted(table))}")
    try:
        return importlib.import_module(table[name]["module"])
    except ModuleNotFoundError as e:
        if not table[name]["module"].startswith(str(e.name)):
            raise
        raise MissingError(
            f"{name!r} is announced by a package that does not hold it ({table[name]['module']})",
            fix="install that package again, or remove it",
        ) from e


def default(kind: str) -> str:
    """The documented default of a kind."""
    for name, info in _table(kind).items():
        if info["default"]:
            return name
    raise MissingError(f"no default among the {kind}")


def describe(kind: str) -> list[dict[str, Any]]:
    """One row per plug-in: name, available, needs, default, summary."""
    if kind == "encoders":
        from .encoders import describe_all

        return describe_all()
    rows = []
    for name, info in sorted(_table(kind).items()):
        missing = [m for m in info["needs"] if not _is_there(m)]
        rows.append(
            {
                "name": name,
                "available": not missing,
                "needs": missing,
                "default": info["default"],
                "summary": info["summary"],
            }
        )
    return rows


@cache
def _table(kind: str) -> dict[str, dict[str, Any]]:
    if kind not in KINDS:
        raise MissingError(f"no plug-ins of kind {kind!r}", fix=f"one of: {', '.join(KINDS)}")
    if kind == "encoders":
        from .encoders import default_name, spec_names

        return {n: {"module": "", "default": n == default_name()} for n in (*spec_names(), default_name())}
    table = {}
    for path in sorted((_ROOT / kind).glob("*.py")):
        if not path.stem.startswith("_"):
            name = path.stem.replace("_", "-")
            table[name] = {"module": f"stainseq.{kind}.{path.stem}", **_constants(path)}
    for point in entry_points(group=f"stainseq.{kind}"):
        table[point.name] = {
            "module": point.value,
            "needs": (point.value,),
            "default": False,
            "priority": 0,
            "summary": f"from {point.value}",
        }
    return table


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _constants(path: Path) -> dict[str, Any]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"needs": (), "default": False, "priority": 0}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            key = node.targets[0].id.lower()
            if key in found:
                found[key] = ast.literal_eval(node.value)
    found["summary"] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found
