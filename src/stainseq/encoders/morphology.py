"""Classical tissue morphology as one network of fixed filters: no weights, no training, no network.

Colour, stain histograms, oriented texture, local binary patterns, nuclei (their number, size, staining and
spacing), sizes of dark and light structures, and how all this varies over the window. Written as
convolutions, poolings and comparisons, it runs where the trained networks run and as fast.

Stains: Ruifrok and Johnston 2001 (Anal Quant Cytol Histol 23:291). Gabor energy: Jain and Farrokhnia 1991
(Pattern Recognition 24:1167). Local binary patterns: Ojala et al. 2002 (IEEE TPAMI 24:971), rotation-invariant
and uniform, with the eight pixel neighbours. Blobs: Lindeberg 1998 (IJCV 30:79). Granulometry: openings and
closings of growing size, Serra 1982.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import FormatError
from .description import EncoderSpec
from .grids import weights
from .layers import mean_std
from .morphology_cpu import (
    BINS,
    BLOB_SIGMAS,
    ENVELOPE_PX,
    LEVELS,
    OPENINGS,
    ORIENTATIONS,
    PEAK,
    PEAK_LEVELS,
    WAVELENGTH_PX,
)
from .stains import HE_MATRIX

CELL_PX = 16
"""Side of a token: 8 um at 0.5 um/px, a superpixel."""
RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def gabor_bank() -> NDArray[np.float32]:
    """Cosine and sine filters of each orientation, without response to a constant: [2 * 4, k, k]."""
    r = int(np.ceil(2.5 * ENVELOPE_PX))
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    out = []
    for i in range(ORIENTATIONS):
        angle = np.pi * i / ORIENTATIONS
        along = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / WAVELENGTH_PX
        envelope = np.exp(-(x**2 + y**2) / (2 * ENVELOPE_PX**2))
        envelope /= envelope.sum()
        even = envelope * np.cos(along)
        out += [even - envelope * even.sum(), envelope * np.sin(along)]
    return np.array(out, np.float32)


def blob_bank() -> NDArray[np.float32]:
    """Negative Laplacians of Gaussians, positive on dark-stained blobs, with equal peak for each size: [5, k, k]."""
    r = int(np.ceil(3 * max(BLOB_SIGMAS)))
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    out = []
    for sigma in BLOB_SIGMAS:
        q = (x**2 + y**2) / (2 * sigma**2)
        kernel = (1 - q) * np.exp(-q) / (np.pi * sigma**2)
        out.append(kernel - kernel.mean())
    return np.array(out, np.float32)


def ring_bank() -> NDArray[np.float32]:
    """Each of the eight neighbours, clockwise, minus the centre: [8, 3, 3]."""
    out = np.zeros((8, 3, 3), np.float32)
    for i, (dy, dx) in enumerate(RING):
        out[i, 1 + dy, 1 + dx] += 1
        out[i, 1, 1] -= 1
    return out


def _filters(bank: NDArray[np.float32], *, channels: int) -> nn.Sequential:
    """The same filters on each channel, the border repeated: [n, channels, h, w] -> [n, channels * k, h, w]."""
    count, size, _ = bank.shape
    conv = nn.Conv2d(channels, channels * count, size, groups=channels, bias=False)
    conv.weight = nn.Parameter(torch.from_numpy(np.tile(bank[:, None], (channels, 1, 1, 1))), requires_grad=False)
    return nn.Sequential(nn.ReplicationPad2d(size // 2), conv)


def _mix(matrix: NDArray[np.float64]) -> nn.Conv2d:
    """The same linear map at each pixel."""
    conv = nn.Conv2d(matrix.shape[1], matrix.shape[0], 1, bias=False)
    conv.weight = nn.Parameter(torch.from_numpy(matrix).float()[:, :, None, None], requires_grad=False)
    return conv


class GaborEnergy(nn.Module):
    """Mean and spread over orientations of the Gabor energy of two stains: rotation changes neither."""

    def __init__(self) -> None:
        super().__init__()
        pairs, means = np.eye(2 * ORIENTATIONS).repeat(2, axis=1), np.eye(2).repeat(ORIENTATIONS, 1) / ORIENTATIONS
        self.filters = _filters(gabor_bank(), channels=2)
        self.pairs, self.means = _mix(pairs), _mix(means)
        self.rest = _mix(np.eye(2 * ORIENTATIONS) - ORIENTATIONS * means.T @ means)

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, 2, h, w] -> float [n, 4, h, w]."""
        answer = self.filters(x)
        energy = (self.pairs(answer * answer) + 1e-8).sqrt()
        rest = self.rest(energy)
        return torch.cat([self.means(energy), (self.means(rest * rest) + 1e-12).sqrt()], 1)


class BinaryPatterns(nn.Module):
    """Indicator maps of the ten rotation-invariant uniform patterns of one stain."""

    ones: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.ring = _filters(ring_bank(), channels=1)
        self.register_buffer("ones", torch.arange(9.0).view(1, 9, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, 1, h, w] -> 0 or 1, float [n, 10, h, w]; the last is "not uniform"."""
        bits = torch.ge(self.ring(x), 0.0).float()
        turned = torch.cat([bits[:, 1:], bits[:, :1]], 1)
        changes = torch.abs(bits - turned).mean(1, keepdim=True) * 8.0
        mixed = torch.gt(changes, 2.5).float()
        count = bits.mean(1, keepdim=True) * 8.0
        which = torch.relu(1.0 - torch.abs(count - self.ones))
        return torch.cat([which * (1.0 - mixed), mixed], 1)


class Morphology(nn.Module):
    """The fixed network.

    Parameters
    ----------
    input_px
        Side of the input, a multiple of 32.
    """

    hat: Tensor

    def __init__(self, *, input_px: int) -> None:
        super().__init__()
        if input_px % 32:
            raise FormatError(f"input side {input_px} is not a multiple of 32", where="encoder morphology")
        self.stains = _mix(np.vstack([HE_MATRIX, np.full(3, 1 / 3)]))
        self.gabor, self.patterns = GaborEnergy(), BinaryPatterns()
        self.blobs = _filters(blob_bank(), channels=1)
        # Hat functions on H, E and mean density: their means are histograms that no bin edge makes jump.
        step = np.array([1.0, 0.8, 1.0]) / (BINS - 1)
        self.spread = _mix(np.eye(3).repeat(BINS, 0) / step.repeat(BINS)[:, None])
        self.register_buffer("hat", torch.arange(float(BINS)).repeat(3).view(1, -1, 1, 1), persistent=False)
        side = input_px // CELL_PX
        self.token_grid = (side, side)
        for i in range(LEVELS):
            self.register_buffer(f"grid{i}", torch.from_numpy(weights(input_px >> i, side)), persistent=False)

    def maps(self, x: Tensor) -> dict[str, list[Tensor]]:
        """All maps of RGB 0..1 [n, 3, h, w], by kind."""
        density = torch.log10(x.clamp_min(1 / 255)) * -1.0
        stains = self.stains(density)
        levels = [stains]
        for _ in range(1, LEVELS):
            levels.append(F.avg_pool2d(levels[-1], 2, 2))
        pairs = [one[:, :2] for one in levels]
        first, second = levels[1], levels[2]
        dark = torch.cat([first[:, :2], first[:, 3:4]], 1)
        answers = [self.blobs(first[:, :1]), self.blobs(first[:, 1:2])]
        return {
            "colour": [torch.cat([stains, x], 1)],
            "histogram": [torch.relu(1.0 - torch.abs(self.spread(dark) - self.hat))],
            "gabor": [self.gabor(one) for one in pairs],
            "blobs": answers,
            "nuclei": [self.peaks(answers[0])],
            "patterns": [self.patterns(one[:, i : i + 1]) for i in (0, 1) for one in (first, second)],
            "sizes": [op for size in OPENINGS for op in self.opened(dark, size)],
            "stains": [stains, first],
        }

    @staticmethod
    def peaks(answer: Tensor) -> Tensor:
        """1 where the strongest blob response is a maximum of its 7 x 7 surroundings, else 0: [n, 1, h, w]."""
        best = torch.amax(answer, 1, keepdim=True)
        top = F.max_pool2d(best, 7, 1, 3)
        return torch.ge(best, top).float() * torch.gt(best, PEAK).float()

    @staticmethod
    def opened(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Grey opening and closing with a square of a side of `size`."""
        pad = size // 2

        def widest(y: Tensor) -> Tensor:
            return F.max_pool2d(F.max_pool2d(y, (size, 1), 1, (pad, 0)), (1, size), 1, (0, pad))

        eroded, dilated = widest(x * -1.0), widest(x)
        return widest(eroded * -1.0), widest(dilated * -1.0) * -1.0

    def vectors(self, x: Tensor) -> Tensor:
        """RGB 0..1 [n, 3, h, w] -> float [n, dim]."""
        maps = self.maps(x)
        parts: list[Tensor] = []
        for kind in ("colour", "gabor", "blobs", "sizes"):
            for one in maps[kind]:
                parts.extend(mean_std(one))
        for kind in ("histogram", "patterns"):
            parts.extend(one.mean((2, 3)) for one in maps[kind])
        parts.extend(torch.relu(one).mean((2, 3)) for one in maps["blobs"])
        parts.extend(self.counts(maps))
        stains = maps["stains"][0]
        for cell in (16, 32):
            coarse = F.avg_pool2d(stains, cell, cell)
            parts += [mean_std(coarse)[1], torch.amax(coarse, (2, 3)), torch.amax(coarse * -1.0, (2, 3)) * -1.0]
        return torch.cat(parts, 1)

    def counts(self, maps: dict[str, list[Tensor]]) -> list[Tensor]:
        """Nuclei: how many (per 100 px of level 1), of each size, how strongly stained, how evenly spread."""
        answer, peaks, stains = maps["blobs"][0], maps["nuclei"][0], maps["stains"][1]
        local = torch.ge(answer, F.max_pool2d(answer, 7, 1, 3)).float()
        parts = [(local * torch.gt(answer, level).float()).mean((2, 3)) * 100.0 for level in PEAK_LEVELS]
        best = torch.amax(answer, 1, keepdim=True)
        sized = torch.ge(answer, best).float() * local * torch.gt(answer, PEAK).float()
        density = peaks.mean((2, 3))
        share = density + 1e-5
        at = torch.cat([stains[:, :2], best], 1)
        even = F.avg_pool2d(peaks, 16, 16)
        return [*parts, sized.mean((2, 3)) * 100.0, density * 100.0, (at * peaks).mean((2, 3)) / share,
                mean_std(even)[1] * 100.0]  # fmt: skip

    def tokens(self, x: Tensor) -> Tensor:
        """RGB 0..1 [n, 3, h, w] -> float [n, h/16, w/16, d]: all maps averaged to cells."""
        maps = self.maps(x)
        placed = []
        for kind, first in (("colour", 0), ("gabor", 0), ("histogram", 1), ("blobs", 1), ("nuclei", 1), ("sizes", 1)):
            for i, one in enumerate(maps[kind]):
                placed.append(self.place(one, i if kind == "gabor" else first))
        for i, one in enumerate(maps["patterns"]):
            placed.append(self.place(one, 1 + i % 2))
        return torch.cat(placed, 1).permute(0, 2, 3, 1)

    def place(self, one: Tensor, level: int) -> Tensor:
        """Average a map of a level to the token grid."""
        grid = self.get_buffer(f"grid{level}")
        return torch.matmul(torch.matmul(grid, one), grid.t())


def build(spec: EncoderSpec) -> Morphology:
    """Network of an encoder description."""
    return Morphology(input_px=spec.input_px)


def rename(state: dict[str, Tensor], net: Morphology) -> dict[str, Tensor]:
    """There is nothing to load."""
    return state
