"""ResNet (He et al. 2015, arXiv:1512.03385, with the stride in the 3x3 convolution) in plain torch.

Takes state dicts with torchvision's and timm's names, which are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FormatError
from .description import EncoderSpec
from .grids import weights
from .layers import ConvUnit, repeat_borders

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)


def _unit(n_in: int, n_out: int, kernel: int, stride: int = 1, act: str | None = "relu") -> ConvUnit:
    return ConvUnit(n_in, n_out, kernel=kernel, stride=stride, padding=kernel // 2, act=act, eps=1e-5)


class Block(nn.Module):
    """Basic (two 3x3) or bottleneck (1x1, 3x3, 1x1) residual block."""

    def __init__(self, n_in: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        n_out = width * 4 if bottleneck else width
        if bottleneck:
            parts = [_unit(n_in, width, 1), _unit(width, width, 3, stride), _unit(width, n_out, 1, act=None)]
        else:
            parts = [_unit(n_in, width, 3, stride), _unit(width, n_out, 3, act=None)]
        self.body = nn.Sequential(*parts)
        self.skip = _unit(n_in, n_out, 1, stride, act=None) if stride > 1 or n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, c, h, w] -> float [n, c', h', w']."""
        return F.relu(self.body(x) + self.skip(x))


class ResNet(nn.Module):
    """ResNet without its classifier.

    Parameters
    ----------
    depth
        18, 34, 50 or 101.
    stages
        4, or 3 for the features of stage 3 (1024 of a ResNet50), as the HEST benchmark takes them.
    input_px
        Side of the input; fixes the token grid.
    """

    def __init__(self, *, depth: int, stages: int = 4, input_px: int = 224) -> None:
        super().__init__()
        if depth not in BLOCKS or stages not in (3, 4):
            raise FormatError(f"no ResNet of depth {depth} with {stages} stages")
        self.bottleneck = bottleneck = depth >= 50
        self.stem = _unit(3, 64, 7, 2)
        n_in, parts = 64, []
        for i, (width, count) in enumerate(zip(WIDTHS[:stages], BLOCKS[depth], strict=False)):
            blocks = []
            for j in range(count):
                blocks.append(Block(n_in, width, 2 if i and j == 0 else 1, bottleneck=bottleneck))
                n_in = width * 4 if bottleneck else width
            parts.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(parts)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Keeps the spread of activations through an untrained network.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        side = -(-input_px // 16)
        self.token_grid = (side, side)
        self.register_buffer("grid", torch.from_numpy(weights(-(-input_px // 32), side)), persistent=False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Output of each stage."""
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        kept = []
        for stage in self.stages:
            x = stage(x)
            kept.append(x)
        return kept

    def vectors(self, x: Tensor) -> Tensor:
        """Normalised float [n, 3, h, w] -> float [n, dim]: mean of the last stage."""
        return self.maps(x)[-1].mean((2, 3))

    def tokens(self, x: Tensor) -> Tensor:
        """Normalised float [n, 3, h, w] -> float [n, h/16, w/16, d]: stage 3, joined by stage 4 where it is."""
        kept = self.maps(x)[2:]
        if len(kept) == 2:
            grid: Tensor = self.grid  # type: ignore[assignment]
            kept[1] = torch.matmul(torch.matmul(grid, kept[1]), grid.t())
        return torch.cat(kept, 1).permute(0, 2, 3, 1)


def layer_widths(spec: EncoderSpec) -> list[int]:
    """Channels of the layers in a token."""
    times = 4 if int(spec.arch["depth"]) >= 50 else 1
    return [times * width for width in WIDTHS[2 : int(spec.arch.get("stages", 4))]]


def build(spec: EncoderSpec) -> ResNet:
    """Network of an encoder description."""
    net = ResNet(depth=int(spec.arch["depth"]), stages=int(spec.arch.get("stages", 4)), input_px=spec.input_px)
    if spec.arch.get("edge"):
        repeat_borders(net)
    return net


def rename(state: dict[str, Tensor], net: ResNet) -> dict[str, Tensor]:
    """Give torchvision's and timm's weights our names; the classifier, and stages that are not used, are left out."""
    bottleneck = net.bottleneck
    unused = {"fc"} | ({"layer4"} if len(net.stages) == 3 else set())
    inner = {"downsample.0": "skip.conv", "downsample.1": "skip.norm"}
    for i in range(3 if bottleneck else 2):
        inner[f"conv{i + 1}"], inner[f"bn{i + 1}"] = f"body.{i}.conv", f"body.{i}.norm"
    top = {"conv1": "stem.conv", "bn1": "stem.norm"}
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if head in unused:
            continue
        if head in top:
            out[f"{top[head]}.{rest}"] = value
        elif head in ("layer1", "layer2", "layer3", "layer4"):
            block, _, rest = rest.partition(".")
            part, _, leaf = rest.rpartition(".")
            out[f"stages.{int(head[-1]) - 1}.{block}.{inner.get(part, part)}.{leaf}"] = value
        else:
            out[key] = value
    return out
