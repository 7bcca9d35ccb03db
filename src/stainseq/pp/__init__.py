"""Preprocessing: alignment, tissue, grids, superpixels, counts, features of regions and dense feature maps."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Modules start with an underscore, so that none can stand before the function of the same name.
_WHERE = {
    "aggregate": "_superpixels",
    "align": "_align",
    "feature_map": "_features",
    "features": "_features",
    "features_from_map": "_features",
    "grid": "_tissue",
    "patches": "_patches",
    "pool": "_features",
    "quality": "_superpixels",
    "superpixels": "_superpixels",
    "tissue": "_tissue",
}
__all__ = [
    "aggregate", "align", "feature_map", "features", "features_from_map", "grid", "patches", "pool", "quality",
    "superpixels", "tissue",
]  # fmt: skip

if TYPE_CHECKING:
    from ._align import align
    from ._features import feature_map, features, features_from_map, pool
    from ._patches import patches
    from ._superpixels import aggregate, quality, superpixels
    from ._tissue import grid, tissue


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module 'stainseq.pp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
