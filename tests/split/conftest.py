"""The slides of the writers' tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """Module `_slide` of tests/writers."""
    if "writer_fixtures" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "writer_fixtures", Path(__file__).parent.parent / "writers" / "_slide.py"
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["writer_fixtures"]
