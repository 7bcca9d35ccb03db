"""A small slide with everything that writers take: picture, superpixels, cells, counts, predictions, transcripts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str, file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """Module `_slide` beside this file."""
    return sys.modules.get("writer_fixtures") or _load("writer_fixtures", "_slide.py")


@pytest.fixture(scope="session")
def truth() -> ModuleType:
    """Module `_truth` beside this file."""
    return sys.modules.get("writer_truth") or _load("writer_truth", "_truth.py")
