"""A CPU environment stays one: no CUDA package may slip in."""

from __future__ import annotations

import os
from importlib.metadata import distributions

import pytest


def cuda_packages(names: list[str]) -> list[str]:
    return sorted(n for n in names if n.startswith(("nvidia-", "cuda-")) or n in ("triton", "pytorch-triton"))


def test_guard_knows_cuda_packages() -> None:
    assert cuda_packages(["torch", "nvidia-cublas-cu12", "triton", "cuda-bindings"]) == [
        "cuda-bindings", "nvidia-cublas-cu12", "triton",
    ]  # fmt: skip


@pytest.mark.skipif(
    os.environ.get("STAINSEQ_CPU_ONLY") != "1", reason="only where the environment is meant to be CPU only"
)
def test_no_cuda_package_in_a_cpu_environment() -> None:
    import torch

    names = [(d.metadata["Name"] or "").lower() for d in distributions()]
    assert cuda_packages(names) == []
    assert torch.version.cuda is None
