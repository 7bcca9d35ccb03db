"""EfficientNet-Lite in plain torch, with features of every stage.

Tan and Le 2019 (arXiv:1905.11946) in the Lite form: no squeeze-and-excitation, ReLU6, stem, head and first
and last stage not scaled. Padding is TensorFlow's SAME and the epsilon of the batch norms 1e-3, as in the
published weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import FormatError
from .description import EncoderSpec
from .grids import weights
from .layers import ConvUnit, mean_std, repeat_borders

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
          (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
"""repeats, kernel, stride, expansion, channels of the seven stages of variant 0."""

SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2), 3: (1.2, 1.4), 4: (1.4, 1.8)}
"""width and depth of the variants."""


def _round(channels: float) -> int:
    new = max(8, int(channels + 4) // 8 * 8)
    return new + 8 if new < 0.9 * channels else new


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = n_in * expansion
        self.expand = ConvUnit(n_in, wide, act="relu6") if expansion > 1 else nn.Identity()
        self.depthwise = ConvUnit(wide, wide, kernel=kernel, stride=stride, groups=wide, act="relu6")
        self.project = ConvUnit(wide, n_out)
        self.residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, c, h, w] -> float [n, c', h', w']."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class Lite(nn.Module):
    """EfficientNet-Lite without its classifier.

    Parameters
    ----------
    variant
        0 to 4.
    pooling
        "mean": mean of the head's 1280 channels. "stages-mean-std": mean and standard deviation of the seven
        stages, then the head's mean (2848 numbers for variant 0). Several stages carry more about expression
        than the last one alone (her2st: 0.425 against 0.381 mean Pearson).
    input_px
        Side of the input; fixes the token grid.
    """

    def __init__(self, *, variant: int, pooling: str, input_px: int) -> None:
        super().__init__()
        if pooling not in ("mean", "stages-mean-std"):
            raise FormatError(f"unknown pooling {pooling!r} for EfficientNet-Lite")
        width, depth = SCALES[variant]
        self.pooling = pooling
        self.stem = ConvUnit(3, 32, kernel=3, stride=2, act="relu6")
        n_in, size, stages, sizes = 32, math.ceil(input_px / 2), [], []
        for i, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
            n_out = _round(channels * width)
            count = repeats if i in (0, len(STAGES) - 1) else math.ceil(repeats * depth)
            blocks = [Block(n_in if j == 0 else n_out, n_out, kernel, stride if j == 0 else 1, expansion)
                      for j in range(count)]  # fmt: skip
            stages.append(nn.Sequential(*blocks))
            n_in, size = n_out, math.ceil(size / stride)
            sizes.append(size)
        self.stages = nn.ModuleList(stages)
        self.head = ConvUnit(n_in, 1280, act="relu6")
        # Stride 16: about 8 um a token at 0.5 um/px, a nucleus.
        side = sizes[4] if pooling == "stages-mean-std" else sizes[-1]
        self.token_grid = (side, side)
        self.placed = tuple(s == side for s in sizes)
        for i, s in enumerate(sizes):
            self.register_buffer(f"grid{i}", torch.from_numpy(weights(s, side)), persistent=False)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Output of each of the seven stages."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def vectors(self, x: Tensor) -> Tensor:
        """Normalised float [n, 3, h, w] -> float [n, dim]."""
        maps = self.stage_maps(x)
        head = self.head(maps[-1]).mean((2, 3))
        if self.pooling == "mean":
            return head
        parts: list[Tensor] = []
        for one in maps:
            parts.extend(mean_std(one))
        return torch.cat([*parts, head], 1)

    def tokens(self, x: Tensor) -> Tensor:
        """Normalised float [n, 3, h, w] -> float [n, ty, tx, d]: all stages on one grid, or the head alone."""
        maps = self.stage_maps(x)
        if self.pooling == "mean":
            return self.head(maps[-1]).permute(0, 2, 3, 1)
        placed = []
        for i, one in enumerate(maps):
            if self.placed[i]:
                placed.append(one)
            else:
                grid = getattr(self, f"grid{i}")
                placed.append(torch.matmul(torch.matmul(grid, one), grid.t()))
        return torch.cat(placed, 1).permute(0, 2, 3, 1)


def rename(state: dict[str, Tensor], net: Lite) -> dict[str, Tensor]:
    """Give the weights of the efficientnet_lite packages our names.

    Their blocks are numbered through; the classifier is left out.
    """
    where = [f"stages.{i}.{j}" for i, stage in enumerate(net.stages) for j in range(len(stage))]  # type: ignore[arg-type]
    top = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}
    inner = {"_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv",
             "_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm"}  # fmt: skip
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_fc":
            continue
        if parts[0] == "_blocks" and len(parts) == 4 and parts[2] in inner and int(parts[1]) < len(where):
            out[f"{where[int(parts[1])]}.{inner[parts[2]]}.{parts[3]}"] = value
        elif parts[0] in top and len(parts) == 2:
            out[f"{top[parts[0]]}.{parts[1]}"] = value
        else:
            out[key] = value
    return out


def layer_widths(spec: EncoderSpec) -> list[int]:
    """Channels of the layers in a token."""
    width = SCALES[int(spec.arch["variant"])][0]
    return [1280] if spec.pooling == "mean" else [_round(channels * width) for *_, channels in STAGES]


def build(spec: EncoderSpec) -> Lite:
    """Network of an encoder description."""
    net = Lite(variant=int(spec.arch["variant"]), pooling=spec.pooling, input_px=spec.input_px)
    if spec.arch.get("edge"):
        repeat_borders(net)
    return net
