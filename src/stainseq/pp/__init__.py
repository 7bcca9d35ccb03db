"""Preprocessing: tissue, grids, features of regions and dense feature maps."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {"tissue": "tissue", "grid": "tissue", "features": "features", "feature_map": "features", "pool": "features"}
__all__ = ["feature_map", "features", "grid", "pool", "tissue"]

if TYPE_CHECKING:
    from .features import feature_map, features, pool
    from .tissue import grid, tissue


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module = importlib.import_module(f".{_WHERE[name]}", __name__)
        # A function may share its module's name; binding it here keeps the function in front.
        globals()[name] = value = getattr(module, name)
        return value
    raise AttributeError(f"module 'stainseq.pp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
