"""HIPT, the features of iStar and Pixel2Gene, from their description: two transformers, one on the other's tokens.

Chen et al. 2022 (CVPR, arXiv:2206.02647). ViT-256 (ViT-S/16 by DINO, Caron et al. 2021, arXiv:2104.14294) looks at
patches of 256 px: 256 tokens of 384 numbers ("sub"), and a class token. ViT-4K takes the grid of class tokens of a
region of 4096 px, 16 x 16 of them, to 192 numbers each ("cls"). Mean colour of each token's 16 px ("rgb") comes on top:
579 numbers.

Several passes, shifted against each other, take the grain of the patches away; every token is divided by the number of
passes that saw it. Attention over a whole slide is quadratic in its area and beyond what ViT-4K learned from, so
regions of 4096 px are done one by one, with an overlap that is thrown away.

No weights come with the package: theirs are under Apache 2.0 with Commons Clause.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FormatError, MissingError
from .description import EncoderSpec
from .vit import VisionTransformer
from .vit import rename as rename_vit

if TYPE_CHECKING:
    from collections.abc import Iterator

PATCH_PX, TOKEN_PX = 256, 16
SIDE = PATCH_PX // TOKEN_PX
CENTRE_TOKENS = 14
"""112 um at 0.5 um/px: what a vector stands for."""

FILES = {"vit256": "vit256_small_dino.pth", "vit4k": "vit4k_xs_dino.pth"}
"""The networks and the published names of their files."""

_ENDINGS = (".pth", ".pt", ".bin", ".safetensors")
_BATCH = {"cpu": 32, "cuda": 256}


class Dino(VisionTransformer):
    """A transformer whose position embeddings are stretched as DINO does.

    The factor is a tenth of a token larger than the grid asks for (against rounding), and resampling keeps to it.
    """

    def stretched(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings of the class token and of a grid: float [1, 1 + rows * columns, dim]."""
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = round(rest.shape[1] ** 0.5)
        if (side, side) != grid:
            square = rest.float().view(1, side, side, -1).permute(0, 3, 1, 2)
            factor = tuple((k + 0.1) / side for k in grid)
            square = F.interpolate(square, scale_factor=factor, mode="bicubic")
            rest = square.permute(0, 2, 3, 1).reshape(1, -1, self.dim).to(rest.dtype)
        return torch.cat([first, rest], 1)

    def encode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Embedded patches, float [n, rows * columns, dim] -> class token and tokens, [n, 1 + rows * columns, dim]."""
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.stretched(grid)
        return self.norm(self.blocks(x))


class OnTokens(Dino):
    """A transformer on another's class tokens: a linear layer and GELU where others cut patches.

    Parameters
    ----------
    n_in, dim, depth, heads
        Width of the tokens it is given, and its own sizes.
    """

    def __init__(self, *, n_in: int, dim: int, depth: int, heads: int) -> None:
        super().__init__(input_px=14 * TOKEN_PX, patch=TOKEN_PX, dim=dim, depth=depth, heads=heads)
        del self.patch_embed
        self.phi = nn.Sequential(nn.Linear(n_in, dim), nn.GELU())

    def forward(self, grid: Tensor) -> Tensor:
        """Float [rows, columns, n_in] -> float [rows, columns, dim]."""
        rows, columns, _ = grid.shape
        out = self.encode(self.phi(grid.reshape(1, rows * columns, -1)), (rows, columns))
        return out[0, 1:].view(rows, columns, -1)


class Hipt(nn.Module):
    """Both transformers over regions.

    Parameters
    ----------
    input_px
        Side of a region, a multiple of 256.
    shifts
        Passes along each axis, 256 / shifts px apart; 4 (16 passes) as the authors of iStar do, 1 for a 16th of the
        time.
    dim, depth, heads, top_dim, top_depth, top_heads
        Sizes of ViT-256 and ViT-4K; the published ones by default, smaller for tests.
    """

    def __init__(self, *, input_px: int, shifts: int = 4, dim: int = 384, depth: int = 12, heads: int = 6,
                 top_dim: int = 192, top_depth: int = 6, top_heads: int = 6) -> None:  # fmt: skip
        super().__init__()
        if input_px % PATCH_PX or shifts < 1 or SIDE % shifts:
            raise FormatError(f"HIPT with regions of {input_px} px and {shifts} shifts", where="encoder hipt")
        self.vit256 = Dino(input_px=224, patch=TOKEN_PX, dim=dim, depth=depth, heads=heads)
        self.vit4k = OnTokens(n_in=dim, dim=top_dim, depth=top_depth, heads=top_heads)
        self.shifts = shifts
        self.token_grid = (input_px // TOKEN_PX, input_px // TOKEN_PX)
        self.output_dims = (top_dim + dim + 3,) * 2

    def patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Float [3, h, w] in whole patches -> sub [h / 16, w / 16, dim], class tokens [h / 256, w / 256, dim]."""
        rows, columns = x.shape[1] // PATCH_PX, x.shape[2] // PATCH_PX
        cut = x.view(3, rows, PATCH_PX, columns, PATCH_PX).permute(1, 3, 0, 2, 4).reshape(-1, 3, PATCH_PX, PATCH_PX)
        done = [self.vit256.encode(self.vit256.patch_embed(part), (SIDE, SIDE))
                for part in cut.split(_BATCH.get(x.device.type, 32))]  # fmt: skip
        out = torch.cat(done)
        first = out[:, 0].view(rows, columns, -1)
        sub = out[:, 1:].view(rows, columns, SIDE, SIDE, -1).permute(0, 2, 1, 3, 4)
        return sub.reshape(rows * SIDE, columns * SIDE, -1), first

    def offsets(self) -> Iterator[tuple[int, int]]:
        """Shifts of the passes, in tokens."""
        step = SIDE // self.shifts
        return ((i * step, j * step) for i in range(self.shifts) for j in range(self.shifts))

    def one(self, x: Tensor) -> Tensor:
        """Normalised float [3, h, w] -> float [h / 16, w / 16, 579]: cls, sub, rgb."""
        rows, columns = x.shape[1] // TOKEN_PX, x.shape[2] // TOKEN_PX
        total = x.new_zeros(rows, columns, self.output_dims[1] - 3, dtype=torch.float32)
        passes = x.new_zeros(rows, columns, 1, dtype=torch.float32)
        for i, j in self.offsets():
            h, w = (rows - i) // SIDE * SIDE, (columns - j) // SIDE * SIDE
            if h == 0 or w == 0:
                continue
            part = x[:, i * TOKEN_PX : (i + h) * TOKEN_PX, j * TOKEN_PX : (j + w) * TOKEN_PX]
            sub, first = self.patches(part.contiguous())
            top = self.vit4k(first).repeat_interleave(SIDE, 0).repeat_interleave(SIDE, 1)
            total[i : i + h, j : j + w] += torch.cat([top, sub], -1).float()
            passes[i : i + h, j : j + w] += 1
        colour = F.avg_pool2d(x[None].float(), TOKEN_PX)[0].permute(1, 2, 0) * 0.5 + 0.5
        return torch.cat([total / passes, colour], -1)

    def tokens(self, x: Tensor) -> Tensor:
        """Normalised float [n, 3, h, w] -> float [n, h / 16, w / 16, 579]."""
        return torch.stack([self.one(region) for region in x])

    def vectors(self, x: Tensor) -> Tensor:
        """Normalised float [n, 3, h, w] -> float [n, 579]: mean of the tokens in the middle."""
        tokens = self.tokens(x)
        y, x0 = ((k - min(CENTRE_TOKENS, k)) // 2 for k in tokens.shape[1:3])
        return tokens[:, y : y + CENTRE_TOKENS, x0 : x0 + CENTRE_TOKENS].mean((1, 2))


def files(folder: Path) -> dict[str, Path]:
    """Weights of both networks in a folder, by "256" and "4k" in their names.

    Raises
    ------
    MissingError
        Not a folder, or not one file of each.
    """
    found: dict[str, Path] = {}
    for name in FILES:
        hits = [p for p in sorted(folder.glob("*")) if name[3:] in p.stem.lower() and p.suffix in _ENDINGS]
        if len(hits) != 1:
            raise MissingError(
                f"{len(hits)} weights files of {name}",
                where=folder,
                fix=f"--weights FOLDER holding {' and '.join(FILES.values())}",
            )
        found[name] = hits[0]
    return found


def read(folder: Path) -> dict[str, Tensor]:
    """State dict of both networks, from the checkpoints of their training or from plain ones."""
    from .access import read_state

    out: dict[str, Tensor] = {}
    for name, path in files(folder).items():
        state = {k.removeprefix("module."): v for k, v in read_state(path).items()}
        if any(k.startswith("backbone.") for k in state):
            # What DINO trains against is another network on top, and not part of the encoder.
            state = {k: v for k, v in state.items() if not k.startswith("head.")}
        out |= {f"{name}.{k.removeprefix('backbone.')}": v for k, v in state.items()}
    return out


def build(spec: EncoderSpec) -> Hipt:
    """Network of an encoder description."""
    return Hipt(input_px=spec.input_px, **spec.arch)


def rename(state: dict[str, Tensor], net: Hipt) -> dict[str, Tensor]:
    """Make room for their position embeddings; the names are ours but for what a transformer's file may hold."""
    out: dict[str, Tensor] = {}
    for name in FILES:
        part = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        out |= {f"{name}.{k}": v for k, v in rename_vit(part, getattr(net, name)).items()}
    return out
