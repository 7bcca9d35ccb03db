"""stainseq: H&E histology joined with spatial transcriptomics.

``import stainseq as ss``, then ``ss.io`` (read, write), ``ss.pp`` (tissue, regions, features), ``ss.tl``
(train, predict, evaluate, spatial genes, domains), ``ss.pl`` (figures, reports), ``ss.datasets`` and
``ss.settings``. Submodules load when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_SUBMODULES = ("io", "pp", "tl", "pl", "datasets")
__all__ = ["__version__", "datasets", "io", "pl", "pp", "settings", "tl"]

if TYPE_CHECKING:
    from . import datasets, io, pl, pp, tl
    from ._settings import settings


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    if name == "settings":
        return importlib.import_module("._settings", __name__).settings
    raise AttributeError(f"module 'stainseq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
