"""An encoder taken apart into what runs over a slide window by window: one network on one field of view at a time.

Each part has tokens of its own size (8 um of a 112 um field, 16 um of a 224 um one), so each gets a map of its own and
nothing is read finer than its network looks. Encoders joined by "+" share the maps of the members they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..spec import fingerprint
from .composite import CompositeEncoder
from .network import Bytes, Encoder, Floats, NetworkEncoder

WIDER = {"lite": (2, 5), "resnet": (2, 6), "shell": (2, 6), "morphology": (2, 4), "colour": (2, 0)}
"""Family of networks without a fixed input: how many times its input side a window is, and tokens of halo.

A wider window wastes less on its halo. Beyond it a token differs from that of an endless image by less than float16
tells (morphology), or by hundredths of its spread (the others, whose filters reach hundreds of pixels).
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
        return int(np.clip(BATCH_BYTES // (4 * self.dim * self.tokens**2), 1, 16))

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
    times, halo = WIDER.get(family, (1, encoder.token_grid[0] // 4))
    wide: Any = encoder
    if encoder.wider is not None and family in WIDER:
        arch = {"levels": levels()} if family == "shell" and levels is not None else None
        wide = encoder.wider(times, arch)
    side = wide.token_grid[0]
    source = wide.fingerprint()

    def run(images: Bytes) -> Floats:
        return wide.one_field(images[:, 0])

    return [
        Part(f"{encoder.name}@{um:g}", run, (um * times,), wide.input_px, side, halo, wide.backend.token_dim, source)
        for um in encoder.fields_um
    ]


def has_tokens(encoder: Any) -> bool:
    """Whether an encoder says where in its window its numbers come from."""
    if isinstance(encoder, CompositeEncoder):
        return all(has_tokens(m) for m in encoder.members)
    spec = getattr(encoder, "spec", None)
    return spec is None or spec.loader not in ("transformers", "open_clip", "package")
