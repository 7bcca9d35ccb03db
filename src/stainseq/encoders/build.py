"""From a description to a running encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._settings import settings
from ..errors import InputError
from ..spec import fingerprint
from .access import load_in_full, locate, read_state, source_of
from .composite import CompositeEncoder
from .description import EncoderSpec, commit, members_of, spec
from .network import Encoder, NetworkEncoder
from .runtimes import SessionBackend, TorchBackend, cached_graph, pick_device, pick_runtime

if TYPE_CHECKING:
    from torch import nn

FAMILIES = {"lite": "lite", "shell": "shell", "resnet": "resnet", "vit": "vit",
            "morphology": "morphology", "hipt": "hipt"}  # fmt: skip
"""Module that builds the network of a family; it has `build(spec)` and `rename(state, net)`."""

EXPORTABLE = ("lite", "shell", "resnet", "morphology")
"""Families whose networks are convolutional, where ONNX Runtime is 3 to 5 times eager torch; a ViT gains
little."""


def assemble(name: str, *, weights: Path | None, device: str, precision: str, runtime: str,
             n_threads: int | None, seed: int | None, options: Mapping[str, Any] | None = None) -> Encoder:  # fmt: skip
    """The work behind `stainseq.encoders.load`."""
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise InputError(f"unknown precision {precision!r}", fix="auto, fp32, bf16 or fp16")
    where = pick_device(settings.device if device == "auto" else device)
    names = members_of(name)
    if (weights is not None or options) and len(names) > 1:
        raise InputError("one weights file or set of options does not serve several encoders",
                         where=f"encoder {name}", fix="load them one by one, or leave it out")  # fmt: skip
    loaded = [
        single(with_options(spec(n), options), weights=weights, device=where, precision=precision, runtime=runtime,
               n_threads=n_threads or settings.n_jobs, seed=seed)
        for n in names
    ]  # fmt: skip
    return loaded[0] if len(loaded) == 1 else CompositeEncoder(loaded)


def with_options(s: EncoderSpec, options: Mapping[str, Any] | None) -> EncoderSpec:
    """The description with entries of its `arch` replaced."""
    return replace(s, arch={**s.arch, **options}) if options else s


def single(s: EncoderSpec, *, weights: Path | None, device: str, precision: str, runtime: str, n_threads: int,
           seed: int | None, tokens_only: bool = False) -> Encoder:  # fmt: skip
    """One encoder, by its description."""
    given = runtime
    if precision == "auto":
        precision = s.dtype if device.startswith("cuda") else "fp32"
    if runtime == "auto" and (s.family not in EXPORTABLE or precision != "fp32"):
        runtime = "torch"
    fast = runtime == "auto" and s.family == "morphology"
    runtime = pick_runtime(runtime, device)
    if runtime in ("onnxruntime", "openvino") and s.family not in (*EXPORTABLE, "colour"):
        raise InputError(f"networks of the family {s.family} run in torch only", where=f"encoder {s.name}",
                         fix="runtime='auto'")  # fmt: skip

    def wider(times: int, arch: Mapping[str, Any] | None = None) -> Encoder:
        bigger = replace(s, input_px=s.input_px * times, fields_um=tuple(um * times for um in s.fields_um))
        return single(with_options(bigger, arch), weights=weights, device=device, precision=precision, runtime=given,
                      n_threads=n_threads, seed=seed, tokens_only=True)  # fmt: skip

    if s.family == "colour":
        from .colour import ColourBackend

        return NetworkEncoder(s, ColourBackend(s), source="", wider=wider)
    if s.loader == "builtin" and seed is None:
        seed = int(s.arch.get("seed", 0))
    if s.loader in ("timm", "transformers", "open_clip", "package", "elsewhere"):
        return borrowed(s, weights=weights, device=device, precision=precision, seed=seed)
    path = None if seed is not None else locate(s, weights)

    @cache
    def net() -> nn.Module:
        return network(s, path, seed)

    if path is not None:
        source = source_of(path)
    else:
        # Fixed filters are named by the description's revision; random weights by what was drawn, which a change of
        # torch's generator or of our initialisation alters in silence.
        source = "" if s.family == "morphology" else drawn(net())

    def graph(mode: str) -> bytes:
        return cached_graph(s, mode, source=source, cache_dir=settings.cache_dir, make=net)

    backend: TorchBackend | SessionBackend
    if runtime == "torch":
        backend = TorchBackend(net(), s, device=device, precision=precision)
    elif fast:
        from .morphology_cpu import MorphologyBackend

        backend = MorphologyBackend(graph, n_threads=n_threads)
    else:
        backend = SessionBackend(graph, runtime=runtime, n_threads=n_threads)
    wide = wider if s.family in EXPORTABLE else None
    return NetworkEncoder(s, backend, source=source, wider=wide, tokens_only=tokens_only)


def drawn(net: nn.Module) -> str:
    """Fingerprint of random weights."""
    state = net.state_dict()
    return fingerprint("random", list(state), *[value.numpy() for value in state.values()])


def borrowed(s: EncoderSpec, *, weights: Path | None, device: str, precision: str, seed: int | None) -> Encoder:
    """An encoder that runs in somebody else's package."""
    from .upstream import build

    if seed is not None:
        raise InputError("random weights are for stainseq's own networks", where=f"encoder {s.name}")
    net = build(s, weights)
    # The weights of a hub repository are named by its commit where it is known, a local file by its content.
    source = source_of(weights) if weights is not None else commit(s)
    return NetworkEncoder(s, TorchBackend(net, s, device=device, precision=precision), source=source)


def network(s: EncoderSpec, path: Path | None, seed: int | None) -> nn.Module:
    """Torch network of a description with its weights, in eval mode."""
    import torch

    family = import_module(f"{__package__}.{FAMILIES[s.family]}")
    if path is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            net = family.build(s)
    elif s.family == "vit":
        # No memory and no random numbers for a billion parameters that the file is about to give.
        with torch.device("meta"):
            net = family.build(s)
        load_in_full(net, family.rename(read_state(path), net), where=path)
    else:
        net = family.build(s)
        read = getattr(family, "read", read_state)
        load_in_full(net, family.rename(read(path), net), where=path)
    out: nn.Module = net.eval()
    return out
