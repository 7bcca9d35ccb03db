"""Encoders: image windows in, vectors or token maps out; one TOML file each in ``specs/``.

Listing reads the TOML files only. `load` imports what the encoder needs and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .description import EncoderSpec, default_name, describe_all, spec, spec_names
from .network import Encoder

__all__ = ["Encoder", "EncoderSpec", "default_name", "describe_all", "load", "spec", "spec_names"]


def load(
    name: str | None = None,
    *,
    weights: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    runtime: str = "auto",
    n_threads: int | None = None,
    random_weights_seed: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Encoder:
    """Make an encoder ready to run.

    Parameters
    ----------
    name
        A name of `spec_names`, or several joined by "+": their vectors are joined, their fields united.
        Default: `default_name()`.
    weights
        Local file (.safetensors, or a torch file of tensors only); default the encoder's own source.
    device
        "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:1", "mps".
    precision
        "auto": float32 on a CPU, the encoder's own (mostly half) precision under autocast on a GPU.
    runtime
        "auto": ONNX Runtime on a CPU where our own convolutional networks allow it, else torch. "openvino"
        is faster still where installed, and differs in the last digits.
    n_threads
        Images at a time in ONNX Runtime and OpenVINO; default `settings.n_jobs`. torch keeps its own setting.
    random_weights_seed
        Random instead of trained weights, for tests and for baselines.
    options
        Entries of the description's `arch` to replace, such as ``{"levels": shell.levels(windows)}`` for slide-wide
        input levels of the shell network. They are part of the fingerprint.

    Returns
    -------
    Encoder
        `encoder(batch)` with uint8 [n, fields, h, w, 3] gives float32 [n, dim]; `encoder.tokens(batch)` gives
        float32 [n, ty, tx, token_dim].

    Raises
    ------
    MissingError
        Unknown name, or a weights file that is not there.
    DependencyError
        An optional package is not installed; the message names the extra.
    AccessError
        Gated or unreachable weights; the message says how to get them.
    FormatError
        Weights that do not fit the network in full.
    """
    from .build import assemble

    return assemble(
        name or default_name(),
        weights=weights,
        device=device,
        precision=precision,
        runtime=runtime,
        n_threads=n_threads,
        seed=random_weights_seed,
        options=options,
    )
