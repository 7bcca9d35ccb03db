"""Tools: training, prediction, evaluation, spatial genes, domains."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Modules start with an underscore, so that none can stand before the function of the same name.
_WHERE = {
    "annotate": "_annotate",
    "domains": "_domains",
    "evaluate": "_evaluate",
    "get_markers": "_markers",
    "integrate": "_integrate",
    "markers": "_markers",
    "maskqc": "_maskqc",
    "metagene": "_metagene",
    "per_cell": "_per_cell",
    "predict": "_predict",
    "split": "_split",
    "svg": "_svg",
    "train": "_train",
}
__all__ = [
    "annotate",
    "domains",
    "evaluate",
    "get_markers",
    "integrate",
    "markers",
    "maskqc",
    "metagene",
    "per_cell",
    "predict",
    "split",
    "svg",
    "train",
]

if TYPE_CHECKING:
    from ._annotate import annotate
    from ._domains import domains
    from ._evaluate import evaluate
    from ._integrate import integrate
    from ._markers import get_markers, markers
    from ._maskqc import maskqc
    from ._metagene import metagene
    from ._per_cell import per_cell
    from ._predict import predict
    from ._split import split
    from ._svg import svg
    from ._train import train


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module 'stainseq.tl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
