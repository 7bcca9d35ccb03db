"""Encoders whose network is somebody else's package: transformers, open_clip, conch, musk.

Each is wrapped into a module with `vectors` of a normalised batch. They give no token maps: where their
patch tokens lie is not part of what these packages promise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AccessError, DependencyError, InputError
from .access import load_in_full, read_state
from .description import EncoderSpec
from .hub import download, translated

TRUST = "STAINSEQ_TRUST_REMOTE_CODE"
"""Environment variable by which a user lets transformers run code that lies beside the weights."""


class Wrapped(nn.Module):
    """Another package's model behind our names.

    Parameters
    ----------
    model
        The model; its parameters move with this module.
    call
        Normalised float [n, 3, h, w] -> [n, dim].
    """

    token_grid = (1, 1)

    def __init__(self, model: nn.Module, call: Callable[[Tensor], Tensor], *, name: str) -> None:
        super().__init__()
        self.model, self._call, self._name = model, call, name

    def vectors(self, x: Tensor) -> Tensor:
        """Normalised float [n, 3, h, w] -> float [n, dim]."""
        return self._call(x)

    def tokens(self, x: Tensor) -> Tensor:
        """Always refused.

        Raises
        ------
        InputError
            These encoders have no token maps.
        """
        raise InputError("this encoder gives vectors only, no token maps", where=f"encoder {self._name}",
                         fix="take one of the vit, resnet or lite families for dense features")  # fmt: skip


def build(spec: EncoderSpec, weights: Path | None) -> nn.Module:
    """Model of a description, with its weights, in eval mode.

    Parameters
    ----------
    spec
        With loader transformers, open_clip or package.
    weights
        Local file, where the package can take one.

    Raises
    ------
    DependencyError
        The package is not installed.
    AccessError
        Weights that cannot be had, or code of the repository that the user has not allowed.
    """
    makers = {"timm": _timm, "open_clip": _open_clip, "transformers": _transformers, "conch": _conch, "musk": _musk}
    key = spec.family if spec.loader == "package" else spec.loader
    if key not in makers:
        raise AccessError("stainseq has no network for it", where=f"encoder {spec.name}",
                          fix=f"encode with its authors' code ({spec.page}) and join the features")  # fmt: skip
    return Wrapped(*makers[key](spec, weights), name=spec.name).eval()


def _package(spec: EncoderSpec, name: str, fix: str) -> Any:
    try:
        return import_module(name)
    except ImportError as e:
        raise DependencyError(f"the package {name.split('.')[0]} cannot be imported ({e})",
                              where=f"encoder {spec.name}", fix=fix) from e  # fmt: skip


def _timm(spec: EncoderSpec, weights: Path | None) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    package = _package(spec, "timm", "pip install 'stainseq[timm]'")
    arch = dict(spec.arch)
    # Never timm's own download, which can leave weights random in silence: built bare, then loaded in full.
    model = package.create_model(arch.pop("model"), pretrained=False, num_classes=0, **arch)
    path = weights or download(spec)
    load_in_full(model, read_state(path), where=path)
    return model, model


def _open_clip(spec: EncoderSpec, weights: Path | None) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    package = _package(spec, "open_clip", "pip install 'stainseq[open-clip]'")
    name = spec.arch.get("model")
    if name is None:
        if weights is not None:
            raise InputError("its configuration lies beside the weights on the hub, so a file alone does not do",
                             where=f"encoder {spec.name}", fix=f"put {spec.hub_id} into the hub cache")  # fmt: skip
        with translated(spec):
            model = package.create_model(f"hf-hub:{spec.hub_id}")
    else:
        path = weights or download(spec)
        model = package.create_model(name, pretrained=str(path))
    return model, model.encode_image


def _transformers(spec: EncoderSpec, weights: Path | None) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    package = _package(spec, "transformers", "pip install 'stainseq[transformers]'")
    if weights is not None:
        raise InputError("its code lies beside the weights on the hub, so a file alone does not do",
                         where=f"encoder {spec.name}", fix=f"put {spec.hub_id} into the hub cache")  # fmt: skip
    if os.environ.get(TRUST, "").lower() not in ("1", "true", "yes", "on"):
        raise AccessError(f"{spec.hub_id} runs Python code of its own", where=f"encoder {spec.name}",
                          fix=f"read it at {spec.page}, then set {TRUST}=1 to allow it")  # fmt: skip
    repository = spec.arch.get("repository", spec.hub_id)
    options = {"trust_remote_code": True, "revision": spec.revision or None}
    with translated(spec):
        model = package.AutoModel.from_pretrained(repository, **options)
        if spec.arch.get("method") == "return_conch":
            model = model.return_conch()[0]
            return model, model
        if spec.arch.get("method") == "encode_image":
            return model, model.encode_image
        processor = package.AutoImageProcessor.from_pretrained(repository, **options)
    shape = (1, 3, 1, 1)
    mean, std = (torch.tensor(v).view(shape) for v in (spec.mean, spec.std))
    their_mean, their_std = (torch.tensor(v).view(shape) for v in (processor.image_mean, processor.image_std))

    def call(x: Tensor) -> Tensor:
        again = (x * std.to(x) + mean.to(x) - their_mean.to(x)) / their_std.to(x)
        out: Tensor = model(pixel_values=again).last_hidden_state[:, 0]
        return out

    return model, call


def _conch(spec: EncoderSpec, weights: Path | None) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    package = _package(spec, "conch.open_clip_custom", spec.min_versions["conch"])
    path = weights or download(spec)
    model = package.create_model_from_pretrained(spec.arch["model"], str(path))[0]
    return model, lambda x: model.encode_image(x, proj_contrast=False, normalize=False)


def _musk(spec: EncoderSpec, weights: Path | None) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    _package(spec, "musk.modeling", spec.min_versions["musk"])
    utils = _package(spec, "musk.utils", spec.min_versions["musk"])
    models = _package(spec, "timm.models", "pip install 'stainseq[timm]'")
    model = models.create_model(spec.arch["model"])
    utils.load_model_and_may_interpolate(str(weights or download(spec)), model, "model|module", "")
    return model, lambda x: model(image=x, with_head=False, out_norm=False, return_global=True)[0]
