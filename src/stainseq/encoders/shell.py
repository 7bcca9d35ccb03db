"""The SHELL segmentation network (H&E: background, epithelium, stroma) as an encoder, in plain torch.

SegResNet (Myronenko 2018, arXiv:1810.11654) with 16 first channels, 1-2-2-4 down blocks, 1-1-1 up blocks,
group norm of 8 and Mish, trained on H&E at 1 um/px by the authors of the package lavlab-shell (MIT, see
``weights/NOTICE.md``). Only its weights are used.

Input rule: optical density, separated into eosin and haematoxylin, and mean optical density, each scaled so
that its 1st and 99th percentile become 0 and 1. Percentiles are those of the window unless `levels` gives
constants of the slide, as dense maps over many windows want (else neighbouring windows differ in scale).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError
from .description import EncoderSpec
from .grids import weights
from .layers import Percentiles, mean_std
from .stains import HE_MATRIX

CHANNELS = (16, 32, 64, 128)
DOWN_BLOCKS = (1, 2, 2, 4)
CLASSES = 3
Border = Literal["zeros", "replicate"]
LOW, HIGH = 0.01, 0.99


class Residual(nn.Module):
    """norm, act, conv, norm, act, conv, plus the input."""

    def __init__(self, channels: int, border: Border) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, padding_mode=border)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, padding_mode=border)

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, c, h, w] -> the same shape."""
        y = self.conv1(F.mish(self.norm1(x)))
        return self.conv2(F.mish(self.norm2(y))) + x


class Shell(nn.Module):
    """The network with its input rule.

    Parameters
    ----------
    input_px
        Side of the input, a multiple of 8.
    levels
        [3, 2] low and high of eosin, haematoxylin and mean optical density (base 10); None takes the
        percentiles of each window.
    border
        What convolutions see around the window: "zeros", as it was trained, or "replicate" for dense maps.
    """

    stains: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, *, input_px: int, levels: Sequence[Sequence[float]] | None = None,
                 border: Border = "zeros") -> None:  # fmt: skip
        super().__init__()
        if input_px % 8:
            raise InputError(f"input side {input_px} is not a multiple of 8", where="encoder shell")
        self.first = nn.Conv2d(3, CHANNELS[0], 3, padding=1, bias=False, padding_mode=border)
        self.down = nn.ModuleList()
        self.enter = nn.ModuleList()
        for i, (channels, count) in enumerate(zip(CHANNELS, DOWN_BLOCKS, strict=True)):
            step: nn.Module = nn.Identity()
            if i:
                step = nn.Conv2d(CHANNELS[i - 1], channels, 3, 2, 1, bias=False, padding_mode=border)
            self.enter.append(step)
            self.down.append(nn.Sequential(*[Residual(channels, border) for _ in range(count)]))
        lower = CHANNELS[-2::-1]
        self.narrow = nn.ModuleList([nn.Conv2d(2 * c, c, 1, bias=False) for c in lower])
        self.up = nn.ModuleList([Residual(c, border) for c in lower])
        self.last_norm = nn.GroupNorm(8, CHANNELS[0])
        self.last = nn.Conv2d(CHANNELS[0], CLASSES, 1)
        stains = np.stack([HE_MATRIX[1], HE_MATRIX[0], np.full(3, 1 / 3)])
        self.register_buffer("stains", torch.from_numpy(stains).float()[:, :, None, None], persistent=False)
        fixed = None if levels is None else torch.tensor(levels, dtype=torch.float32)
        if fixed is not None and (fixed.shape != (3, 2) or bool((fixed[:, 1] <= fixed[:, 0]).any())):
            raise InputError("levels must be three rows of low < high", where="encoder shell")
        self.fixed = fixed is not None
        if fixed is not None:
            self.register_buffer("low", fixed[None, :, :1, None], persistent=False)
            self.register_buffer("high", fixed[None, :, 1:, None], persistent=False)
        side = input_px // 8
        self.token_grid = (side, side)
        for i in range(len(CHANNELS)):
            self.register_buffer(f"grid{i}", torch.from_numpy(weights(input_px >> i, side)), persistent=False)
            if i:
                up = weights(input_px >> i, input_px >> (i - 1))
                self.register_buffer(f"double{i}", torch.from_numpy(up), persistent=False)
        self.percentile = Percentiles(input_px * input_px, LOW)

    def prepare(self, x: Tensor) -> Tensor:
        """RGB 0..1 [n, 3, h, w] -> eosin, haematoxylin and mean optical density, each 0..1."""
        density = torch.log10(x.clamp_min(1 / 255)) * -1.0
        parts = F.conv2d(density, self.stains)
        if self.fixed:
            low, high = self.low, self.high
        else:
            low, high = self.percentile(parts)
        return ((parts - low) / (high - low).clamp_min(1e-6)).clamp(0.0, 1.0)

    def stages(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The four encoder stages and the class scores of prepared input."""
        kept = []
        x = self.first(x)
        for enter, blocks in zip(self.enter, self.down, strict=True):
            x = blocks(enter(x))
            kept.append(x)
        for i, (narrow, up) in enumerate(zip(self.narrow, self.up, strict=True)):
            level = len(CHANNELS) - 1 - i
            double = getattr(self, f"double{level}")
            y = torch.matmul(torch.matmul(double, narrow(x)), double.t())
            x = up(y + kept[level - 1])
        return kept, self.last(F.mish(self.last_norm(x)))

    def vectors(self, x: Tensor) -> Tensor:
        """RGB 0..1 [n, 3, h, w] -> float [n, 486]: mean and deviation of four stages and of the scores."""
        kept, scores = self.stages(self.prepare(x))
        parts: list[Tensor] = []
        for one in [*kept, scores]:
            parts.extend(mean_std(one))
        return torch.cat(parts, 1)

    def tokens(self, x: Tensor) -> Tensor:
        """RGB 0..1 [n, 3, h, w] -> float [n, h/8, w/8, 243]: stages and scores averaged to 8 px cells."""
        kept, scores = self.stages(self.prepare(x))
        placed = []
        for i, one in enumerate(kept):
            grid = getattr(self, f"grid{i}")
            placed.append(torch.matmul(torch.matmul(grid, one), grid.t()))
        first = self.get_buffer("grid0")
        placed.append(torch.matmul(torch.matmul(first, scores), first.t()))
        return torch.cat(placed, 1).permute(0, 2, 3, 1)


def levels(images: NDArray[np.uint8]) -> list[list[float]]:
    """Constants of a slide for `Shell`, from a sample of its tissue.

    Parameters
    ----------
    images
        uint8 [n, h, w, 3], windows on tissue, any size.

    Returns
    -------
    Three rows of low and high (1st and 99th percentile) of eosin, haematoxylin, mean optical density.
    """
    density = -np.log10(np.maximum(images.reshape(-1, 3), 1) / 255.0)
    stains = np.stack([HE_MATRIX[1], HE_MATRIX[0], np.full(3, 1 / 3)])
    low, high = np.percentile(density @ stains.T, [100 * LOW, 100 * HIGH], axis=0)
    return [[float(a), float(max(b, a + 1e-6))] for a, b in zip(low, high, strict=True)]


def build(spec: EncoderSpec) -> Shell:
    """Network of an encoder description."""
    border: Border = "replicate" if spec.arch.get("edge") else "zeros"
    return Shell(input_px=spec.input_px, levels=spec.arch.get("levels"), border=border)


def rename(state: dict[str, Tensor], net: Shell) -> dict[str, Tensor]:
    """The shipped file has our names already."""
    return state
