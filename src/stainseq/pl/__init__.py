"""Figures and reports: maps, measured beside predicted, scores, a one-page report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "alignment": "_alignment",
    "measured_predicted": "_compare",
    "report": "_report",
    "scores": "_scores",
    "spatial": "_spatial",
    "superpixel_quality": "_superpixels",
    "superpixels": "_superpixels",
}
__all__ = ["alignment", "measured_predicted", "report", "scores", "spatial", "superpixel_quality", "superpixels"]

if TYPE_CHECKING:
    from ._alignment import alignment
    from ._compare import measured_predicted
    from ._report import report
    from ._scores import scores
    from ._spatial import spatial
    from ._superpixels import superpixel_quality, superpixels


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module 'stainseq.pl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
