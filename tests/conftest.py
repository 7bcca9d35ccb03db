"""Shared fixtures: where the real data lie, and a private cache for every test."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


def _data_dir() -> Path | None:
    named = os.environ.get("STAINSEQ_DATA")
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return path if path.is_dir() else None


# A runner in the background starts its children with SIGINT ignored; tests of Ctrl-C, and the processes that they
# start, need the default back.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data folder; tests that need it skip where it is absent."""
    path = _data_dir()
    if path is None:
        pytest.skip("real data not found: set STAINSEQ_DATA to the folder that holds her2st, st_mob, ...")
    return path


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stainseq._settings import settings

    monkeypatch.setattr(settings, "cache_dir", tmp_path / "cache")
    monkeypatch.setattr(settings, "progress", False)
