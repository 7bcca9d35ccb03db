"""The only global state: facts about the machine, each also an environment variable STAINSEQ_<NAME>."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError


def _env(name: str, default: Any, kind: type = str) -> Any:
    raw = os.environ.get(f"STAINSEQ_{name.upper()}")
    if raw is None:
        return default
    if kind is bool:
        return raw.lower() not in ("0", "false", "no", "off", "")
    try:
        return kind(raw)
    except ValueError as e:
        raise InputError(
            f"STAINSEQ_{name.upper()}={raw!r} is not a valid {kind.__name__}", fix="unset or correct it"
        ) from e


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(_env("cache_dir", Path(base) / "stainseq", Path))


@dataclass
class Settings:
    """Machine facts that no result may depend on.

    Parameters
    ----------
    cache_dir
        Where features and converted encoders are kept between runs.
    n_jobs
        Threads for encoding and linear algebra; default all cores this process may use.
    device
        "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:1", "mps".
    progress
        Show progress bars on stderr.
    verbosity
        0 errors, 1 warnings, 2 one line a step, 3 all.
    """

    cache_dir: Path = field(default_factory=_cache_dir)
    n_jobs: int = field(
        default_factory=lambda: (
            _env("n_jobs", len(os.sched_getaffinity(0)), int)
            if hasattr(os, "sched_getaffinity")
            else _env("n_jobs", os.cpu_count() or 1, int)
        )
    )
    device: str = field(default_factory=lambda: _env("device", "auto"))
    progress: bool = field(default_factory=lambda: _env("progress", True, bool))
    verbosity: int = field(default_factory=lambda: _env("verbosity", 2, int))


settings = Settings()
