"""Vision transformers of the ViT, DINOv2 and CLIP family in plain torch.

Dosovitskiy et al. 2020 (arXiv:2010.11929); DINOv2: Oquab et al. 2023 (arXiv:2304.07193); registers: Darcet et
al. 2023 (arXiv:2309.16588);
CLIP: Radford et al. 2021 (arXiv:2103.00020). Parameter names are timm's; `keys.py` turns other names into them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FormatError
from .description import EncoderSpec
from .keys import to_timm


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU, with which CLIP was trained."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu, "quick-gelu": quick_gelu}

SIZES: dict[str, dict[str, int]] = {
    "small": {"dim": 384, "depth": 12, "heads": 6},
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
    "huge": {"dim": 1280, "depth": 32, "heads": 16},
    "giant": {"dim": 1536, "depth": 40, "heads": 24},
}
"""Usual widths; each number may be given on its own as well."""


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, t, dim] -> the same shape."""
        n, t, dim = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, dim))


class Mlp(nn.Module):
    """Two linear layers; gated (SwiGLU with both halves in one matrix) or plain."""

    def __init__(self, dim: int, hidden: int, *, act: str, gated: bool) -> None:
        super().__init__()
        self.act, self.gated = ACTIVATIONS[act], gated
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden // 2 if gated else hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, t, dim] -> the same shape."""
        x = self.fc1(x)
        if self.gated:
            gate, value = x.chunk(2, dim=-1)
            x = self.act(gate) * value
        else:
            x = self.act(x)
        return self.fc2(x)


class LayerScale(nn.Module):
    """A learned gain for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, t, dim] -> the same shape."""
        return x * self.gamma


class Block(nn.Module):
    """Attention and MLP, each after a norm and added to its input."""

    def __init__(self, dim: int, heads: int, hidden: int, *, act: str, gated: bool, scaled: bool, qkv_bias: bool,
                 eps: float) -> None:  # fmt: skip
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias)
        self.mlp = Mlp(dim, hidden, act=act, gated=gated)
        self.ls1 = LayerScale(dim) if scaled else nn.Identity()
        self.ls2 = LayerScale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, t, dim] -> the same shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Cuts the image into patches and projects each."""

    def __init__(self, patch: int, dim: int, *, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, 3, h, w] -> float [n, h / patch * w / patch, dim]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """The ViT and DINOv2 family.

    Parameters
    ----------
    input_px
        Side of the images it will see.
    patch
        Side of a patch in pixels.
    size
        A key of `SIZES`; `dim`, `depth`, `heads` override it.
    trained_px
        Side for which position embeddings were trained; default `input_px`. Others are resampled.
    registers
        Extra tokens after the class token.
    mlp_ratio
        Hidden width over width; with `gated` it counts both halves, as in timm's SwiGLUPacked.
    embed_prefix
        Whether class and register tokens have position embeddings (timm: not no_embed_class).
    layer_scale
        Whether branches have learned gains.
    antialias
        How position embeddings are resampled: timm and DINOv2 with registers do, Hugging Face's DINOv2 does not.
    pooling
        "cls", "mean", "cls+mean": class token, mean of patch tokens, or both side by side.
    pre_norm
        Whether tokens pass a norm before the first block, as CLIP's do; patches then have no bias.
    projection
        Width of a linear layer without bias on the pooled vector, 0 for none.
    """

    def __init__(self, *, input_px: int, patch: int, size: str | None = None, dim: int = 0, depth: int = 0,
                 heads: int = 0, trained_px: int = 0, registers: int = 0, mlp_ratio: float = 4.0,
                 gated: bool = False, act: str = "gelu", embed_prefix: bool = True, layer_scale: bool = False,
                 qkv_bias: bool = True, eps: float = 1e-6, antialias: bool = True, pooling: str = "cls",
                 pre_norm: bool = False, projection: int = 0) -> None:  # fmt: skip
        super().__init__()
        base = SIZES[size] if size else {}
        dim, depth, heads = dim or base["dim"], depth or base["depth"], heads or base["heads"]
        if input_px % patch or pooling not in ("cls", "mean", "cls+mean") or act not in ACTIVATIONS:
            raise FormatError(f"a ViT with patches of {patch}, input {input_px}, pooling {pooling!r}, act {act!r}")
        side = (trained_px or input_px) // patch
        self.dim, self.registers, self.pooling, self.antialias = dim, registers, pooling, antialias
        self.prefix = 1 + registers
        self.embed_prefix = embed_prefix
        self.token_grid = (input_px // patch, input_px // patch)
        self.patch_embed = PatchEmbed(patch, dim, bias=not pre_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        count = side * side + (self.prefix if embed_prefix else 0)
        self.pos_embed = nn.Parameter(torch.empty(1, count, dim).normal_(std=0.02))
        self.norm_pre: nn.Module = nn.LayerNorm(dim, eps=eps) if pre_norm else nn.Identity()
        hidden = int(dim * mlp_ratio)
        self.blocks = nn.Sequential(
            *[Block(dim, heads, hidden, act=act, gated=gated, scaled=layer_scale, qkv_bias=qkv_bias, eps=eps)
              for _ in range(depth)]
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.head: nn.Module = nn.Linear(dim, projection, bias=False) if projection else nn.Identity()

    def fit_positions(self, count: int) -> None:
        """Take position embeddings of another square grid than expected; they are resampled when used.

        Raises
        ------
        FormatError
            The number is not that of a square grid.
        """
        patches = count - (self.prefix if self.embed_prefix else 0)
        side = round(max(patches, 0) ** 0.5)
        if side < 1 or side * side != patches:
            raise FormatError(f"{count} position embeddings are not those of a square image")
        self.pos_embed = nn.Parameter(torch.zeros(1, count, self.dim))

    def positions(self) -> Tensor:
        """Position embeddings on the grid of the input: float [1, t, dim]."""
        kept = self.prefix if self.embed_prefix else 0
        grid = self.pos_embed[:, kept:]
        side = round(grid.shape[1] ** 0.5)
        if (side, side) == self.token_grid:
            return self.pos_embed
        square = grid.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        square = F.interpolate(square, size=self.token_grid, mode="bicubic", antialias=self.antialias)
        grid = square.permute(0, 2, 3, 1).reshape(1, -1, self.dim).to(grid.dtype)
        return torch.cat([self.pos_embed[:, :kept], grid], 1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised float [n, 3, h, w] -> all tokens after the last norm, float [n, prefix + patches, dim]."""
        x = self.patch_embed(x)
        n = len(x)
        prefix = [self.cls_token.expand(n, -1, -1)]
        if self.reg_token is not None:
            prefix.append(self.reg_token.expand(n, -1, -1))
        if self.embed_prefix:
            x = torch.cat([*prefix, x], 1) + self.positions()
        else:
            x = torch.cat([*prefix, x + self.positions()], 1)
        return self.norm(self.blocks(self.norm_pre(x)))

    def vectors(self, x: Tensor) -> Tensor:
        """Normalised float [n, 3, h, w] -> float [n, dim]."""
        x = self.forward_features(x)
        first, mean = x[:, 0], x[:, self.prefix :].mean(1)
        pooled = {"cls": first, "mean": mean}.get(self.pooling)
        return self.head(torch.cat([first, mean], 1) if pooled is None else pooled)

    def tokens(self, x: Tensor) -> Tensor:
        """Normalised float [n, 3, h, w] -> patch tokens, float [n, ty, tx, dim]."""
        return self.forward_features(x)[:, self.prefix :].reshape(len(x), *self.token_grid, -1)


def build(spec: EncoderSpec) -> VisionTransformer:
    """Network of an encoder description."""
    return VisionTransformer(input_px=spec.input_px, pooling=spec.pooling, **spec.arch)


def rename(state: dict[str, Tensor], net: VisionTransformer) -> dict[str, Tensor]:
    """Give the weights timm's names, whosever they had, and make room for their position embeddings."""
    state = to_timm(state, no_embed_prefix=not net.embed_prefix, keep_head=isinstance(net.head, nn.Linear))
    found = state.get("pos_embed")
    if found is not None and found.dim() == 3 and found.shape != net.pos_embed.shape:
        net.fit_positions(found.shape[1])
    return state
