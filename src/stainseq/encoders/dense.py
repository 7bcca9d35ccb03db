"""An encoder taken apart into what runs over a slide window by window: one network on one field of view at a time.

Each part has tokens of its own size (8 um of a 112 um field, 16 um of a 224 um one), so each gets a map of its own and
nothing is read finer than its network looks. Encoders joined by "+" share the maps of the members they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import InputError
from ..spec import fingerprint
from .composite import CompositeEncoder
from .network import Bytes, Encoder, Floats, NetworkEncoder

WIDER = {"lite": (4, 8), "resnet": (4, 8), "shell": (4, 6), "morphology": (4, 4), "colour": (4, 0)}
"""Family of networks without a fixed input: how many times its input side a window is, and tokens of halo.

A wider window wastes less on its halo. Beyond these halos a token of morphology and of the first five stages of
EfficientNet-Lite is that of an endless image to 0.1 % of its spread; the two deepest stages, which see 400 px to every
side, differ by 0.2 of theirs (measured). Transformers lose a quarter of the window at each side.
"""

KEPT = 256
"""Numbers a token that networks of one or two layers of tokens keep, in all."""

KEPT_EACH = 18
"""Numbers that each layer keeps where there are more: seven of EfficientNet-Lite then are 124 a token, not 784.

Wider layers go through the first rows of a discrete cosine transform across their channels, which is orthonormal, mixes
every channel and is the same on every machine and slide. On planted slides 18 a layer told as much as 36 or as all
channels of the informative layers, with a third of the disk (docs/design.md).
"""

BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Part:
    """What runs over a slide.

    Parameters
    ----------
    name
        Encoder and field, such as "lite0-multi2@112".
    run
        uint8 [n, fields, px, px, 3] -> float32 [n, tokens, tokens, dim].
    fields_um
        Sides of what is read around the same centre; tokens tile the first.
    px
        Side of each in pixels.
    tokens, halo
        Tokens along a side, and how many at each border see too little around them.
    dim
        Numbers a token.
    source
        Fingerprint of all that decides the numbers.
    """

    name: str
    run: Callable[[Bytes], Floats]
    fields_um: tuple[float, ...]
    px: int
    tokens: int
    halo: int
    dim: int
    source: str

    @property
    def token_um(self) -> float:
        """Side of a token."""
        return self.fields_um[0] / self.tokens

    @property
    def core(self) -> int:
        """Tokens along a side that a window owns."""
        return self.tokens - 2 * self.halo

    @property
    def batch(self) -> int:
        """Windows at a time, for what their tokens take in memory."""
        return int(np.clip(BATCH_BYTES // (4 * self.dim * self.tokens**2), 1, 8))

    def fingerprint(self) -> str:
        """Names all that decides the numbers."""
        return fingerprint("part", self.source, self.fields_um, self.px, self.tokens, self.halo)


def parts(encoder: Encoder, *, levels: Callable[[], Any] | None = None) -> list[Part]:
    """Take an encoder apart.

    Parameters
    ----------
    encoder
        From `encoders.load`.
    levels
        Gives the slide's constants for networks that scale each window by its own percentiles (`shell.levels`):
        windows of one map have to share them. Called only where needed; without it they stay each window's own.

    Returns
    -------
    list of Part
        Members in the order of the name, their fields ascending.

    Raises
    ------
    InputError
        The encoder has no tokens: dense maps need to know where each of its numbers comes from.
    """
    if isinstance(encoder, CompositeEncoder):
        return [p for member in encoder.members for p in parts(member, levels=levels)]
    if not isinstance(encoder, NetworkEncoder):
        side = encoder.token_grid[0]
        return [Part(encoder.name, encoder.tokens, tuple(encoder.fields_um), encoder.input_px, side, side // 4,
                     encoder.token_dim, encoder.fingerprint())]  # fmt: skip
    if not has_tokens(encoder):
        raise InputError(
            f"encoder {encoder.name!r} tells nothing of the places inside its window",
            fix="use mode='windows' (--mode windows), or an encoder with tokens",
        )
    family = encoder.spec.family
    # Of a region of HIPT an eighth: all of it was seen by both networks, unlike the border of a small window.
    share = 8 if family == "hipt" else 4
    times, halo = WIDER.get(family, (1, encoder.token_grid[0] // share))
    wide: Any = encoder
    if encoder.wider is not None and family in WIDER:
        arch: dict[str, Any] = {} if family in ("morphology", "colour") else {"edge": True}
        if family == "shell" and levels is not None:
            arch["levels"] = levels()
        wide = encoder.wider(times, arch)
    side = wide.token_grid[0]
    mixes = mixing(layer_widths(encoder))
    dim = sum(m.shape[1] for m in mixes) or wide.backend.token_dim
    source = fingerprint(wide.fingerprint(), KEPT, KEPT_EACH)

    def run(images: Bytes) -> Floats:
        return reduce(wide.one_field(images[:, 0]), mixes)

    return [
        Part(f"{encoder.name}@{um:g}", run, (um * times,), wide.input_px, side, halo, dim, source)
        for um in encoder.fields_um
    ]


def layer_widths(encoder: NetworkEncoder) -> list[int]:
    """Channels of each layer whose maps are side by side in a token; none where all are kept."""
    spec, width = encoder.spec, encoder.backend.token_dim
    if spec.family in ("morphology", "colour", "hipt"):
        return []
    if spec.family in ("lite", "resnet"):
        widths = import_module(f"{__package__}.{spec.family}").layer_widths(spec)
    elif spec.family == "shell":
        from .shell import CHANNELS, CLASSES

        widths = [*CHANNELS, CLASSES]
    else:
        widths = [width]
    if sum(widths) != width:
        raise InputError(f"{width} numbers a token, its layers have {sum(widths)}", where=f"encoder {spec.name}")
    return list(widths)


def mixing(widths: list[int]) -> list[Floats]:
    """Matrices [channels, kept] of each layer that take its channels to the numbers that are kept.

    Parameters
    ----------
    widths
        Channels of each layer.

    Returns
    -------
    list of float32 [channels, kept], with orthonormal columns; the identity where a layer is narrow enough.
    """
    most = KEPT_EACH if len(widths) > 2 else KEPT // max(1, len(widths))
    out = []
    for d in widths:
        row, channel = np.arange(min(d, most))[:, None], np.arange(d)
        basis = np.cos(np.pi * (channel + 0.5) * row / d) * np.sqrt(2 / d)
        basis[0] /= np.sqrt(2)
        out.append((np.eye(d) if d <= most else basis.T).astype(np.float32))
    return out


def reduce(tokens: Floats, mixes: list[Floats]) -> Floats:
    """float32 [..., channels] -> float32 [..., kept], layer by layer; as it is without any."""
    if not mixes:
        return tokens
    out, start = [], 0
    for mix in mixes:
        layer = tokens[..., start : start + len(mix)]
        out.append(layer if mix.shape[0] == mix.shape[1] else layer @ mix)
        start += len(mix)
    return np.concatenate(out, axis=-1)


def has_tokens(encoder: Any) -> bool:
    """Whether an encoder says where in its window its numbers come from."""
    if isinstance(encoder, CompositeEncoder):
        return all(has_tokens(m) for m in encoder.members)
    spec = getattr(encoder, "spec", None)
    return spec is None or spec.loader not in ("timm", "transformers", "open_clip", "package", "elsewhere")
