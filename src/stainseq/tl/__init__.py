"""Tools: training, prediction, evaluation, spatial genes, domains."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {"domains": "domains", "evaluate": "evaluate", "predict": "predict", "svg": "svg", "train": "train"}
__all__ = ["domains", "evaluate", "predict", "svg", "train"]

if TYPE_CHECKING:
    from .domains import domains
    from .evaluate import evaluate
    from .predict import predict
    from .svg import svg
    from .train import train


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module = importlib.import_module(f".{_WHERE[name]}", __name__)
        # A function may share its module's name; binding it here keeps the function in front.
        globals()[name] = value = getattr(module, name)
        return value
    raise AttributeError(f"module 'stainseq.tl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
