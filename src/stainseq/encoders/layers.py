"""Small parts that several networks share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, by TensorFlow's SAME rule."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class ConvUnit(nn.Module):
    """Convolution, batch norm and activation, as one unit so that an exporter can fold them.

    Parameters
    ----------
    kernel, stride, groups
        As in a convolution.
    padding
        "same" is TensorFlow's rule (asymmetric when strided); a number is symmetric.
    act
        "relu6", "relu" or None.

    `edge` (set by `repeat_borders`) repeats the border where zeros would be put.
    """

    edge = False

    def __init__(self, n_in: int, n_out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1,
                 padding: str | int = "same", act: str | None = None, eps: float = 1e-3) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, 0, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(n_out, eps=eps)
        self.kernel, self.stride, self.groups, self.padding, self.act = kernel, stride, groups, padding, act

    def pads(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Zeros at top, left, bottom, right."""
        if isinstance(self.padding, int):
            return (self.padding,) * 4
        top, bottom = same_padding(height, self.kernel, self.stride)
        left, right = same_padding(width, self.kernel, self.stride)
        return top, left, bottom, right

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of one convolution that does the work of convolution and norm."""
        gain = self.norm.weight.double() / torch.sqrt(self.norm.running_var.double() + self.norm.eps)  # type: ignore[union-attr]
        shift = self.norm.bias.double() - self.norm.running_mean.double() * gain  # type: ignore[union-attr]
        return (self.conv.weight.double() * gain[:, None, None, None]).float(), shift.float()

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, c, h, w] -> float [n, c', h', w']."""
        top, left, bottom, right = self.pads(x.shape[-2], x.shape[-1])
        if self.edge and max(top, left, bottom, right):
            x = F.pad(x, (left, right, top, bottom), mode="replicate")
            top = left = bottom = right = 0
        if (top, left) == (bottom, right):
            x = F.conv2d(x, self.conv.weight, None, self.stride, (top, left), 1, self.groups)
        else:
            x = F.conv2d(F.pad(x, (left, right, top, bottom)), self.conv.weight, None, self.stride, 0, 1, self.groups)
        x = self.norm(x)
        if self.act == "relu6":
            return F.relu6(x)
        return F.relu(x) if self.act == "relu" else x


def repeat_borders(net: nn.Module) -> None:
    """Let convolutions see a window's border repeated and not a frame of zeros around it.

    Zeros are seen by every deeper layer, hundreds of pixels into the window; tokens of dense maps must not tell where
    in its window a place lies. Networks keep zeros for vectors of windows, as they were trained.
    """
    for module in net.modules():
        if isinstance(module, ConvUnit):
            module.edge = True


def mean_std(x: Tensor) -> list[Tensor]:
    """Mean and population standard deviation over height and width: two of [n, c].

    From the differences to the mean: the mean of squares minus the square of the mean loses what is small
    beside the mean, for a twentieth of the time.
    """
    mean = x.mean((2, 3), keepdim=True)
    rest = x - mean
    return [mean.flatten(1), (rest * rest).mean((2, 3)).sqrt()]


class Percentiles(nn.Module):
    """A low percentile and its mirror of each channel, by the usual linear rule.

    Sorting only the ends is cheap, and weights on them keep this exportable.

    Parameters
    ----------
    count
        Values a channel.
    low
        Share below the low percentile; the high one is 1 - low.
    """

    ends: Tensor

    def __init__(self, count: int, low: float) -> None:
        super().__init__()
        place = low * (count - 1)
        self.count = int(place) + 2
        ends = torch.zeros(self.count, 1)
        ends[-2, 0], ends[-1, 0] = 1 - (place - int(place)), place - int(place)
        self.register_buffer("ends", ends, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Float [n, c, h, w] -> low and high, each [n, c, 1, 1]."""
        flat = x.flatten(2)
        low = torch.topk(flat, self.count, dim=2, largest=False).values
        high = torch.topk(flat, self.count, dim=2, largest=True).values
        return torch.matmul(low, self.ends).unsqueeze(3), torch.matmul(high, self.ends).unsqueeze(3)


class Whole(nn.Module):
    """A network with its input side: uint8 NHWC in, numbers out.

    Parameters
    ----------
    net
        Module with `vectors` and `tokens` of a normalised float NCHW batch.
    mean, std
        Per channel, of RGB in 0..1.
    mode
        "vectors" or "tokens".
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], mode: str) -> None:
        super().__init__()
        self.net, self.mode = net, mode
        gain = torch.tensor([1.0 / (255.0 * s) for s in std], dtype=torch.float64)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float64)
        self.register_buffer("gain", gain.float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Uint8 [n, h, w, 3] -> float [n, dim] or [n, ty, tx, d]."""
        x = images.permute(0, 3, 1, 2).float() * self.gain + self.shift
        out: Tensor = getattr(self.net, self.mode)(x)
        return out
