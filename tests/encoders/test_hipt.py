"""HIPT by local weights: published names, strict loading, plain formulas, passes divided by what they saw."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stainseq import encoders
from stainseq.encoders import build
from stainseq.encoders.dense import parts
from stainseq.encoders.hipt import Hipt, read
from stainseq.errors import AccessError, FormatError, MissingError

torch = pytest.importorskip("torch")


def state(dim: int, depth: int, *, top: bool, seed: int) -> dict[str, Any]:
    """A random state dict with the published names and shapes."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int, scale: float = 0.05) -> Any:
        return torch.randn(*shape, generator=generator) * scale

    out = {"cls_token": some(1, 1, dim), "pos_embed": some(1, 197, dim)}
    if top:
        out |= {"phi.0.weight": some(dim, 384), "phi.0.bias": some(dim)}
    else:
        out |= {"patch_embed.proj.weight": some(dim, 3, 16, 16), "patch_embed.proj.bias": some(dim)}
    for i in range(depth):
        for name, shape in (("attn.qkv", (3 * dim, dim)), ("attn.proj", (dim, dim)), ("mlp.fc1", (4 * dim, dim)),
                            ("mlp.fc2", (dim, 4 * dim))):  # fmt: skip
            out |= {f"blocks.{i}.{name}.weight": some(*shape), f"blocks.{i}.{name}.bias": some(shape[0])}
        for norm in ("norm1", "norm2"):
            out |= {f"blocks.{i}.{norm}.weight": 1 + some(dim), f"blocks.{i}.{norm}.bias": some(dim)}
    return out | {"norm.weight": 1 + some(dim), "norm.bias": some(dim)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints as DINO's training saves them: two networks with a head, wrapped, beside the options."""
    made = tmp_path_factory.mktemp("hipt")
    for name, top, dim, depth in (("vit256_small_dino.pth", False, 384, 12), ("vit4k_xs_dino.pth", True, 192, 6)):
        own = {f"module.backbone.{k}": v for k, v in state(dim, depth, top=top, seed=dim).items()}
        head = {"module.head.mlp.0.weight": torch.zeros(8, dim), "module.head.last_layer.weight_g": torch.ones(8, 1)}
        teacher = own | head
        torch.save({"teacher": teacher, "args": argparse.Namespace(lr=1.0), "epoch": 3}, made / name)
    return made


def transformer(tokens: Any, s: dict[str, Any], heads: int, depth: int) -> Any:
    """The usual formulas, written out."""

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * s[name + ".weight"] + s[name + ".bias"]

    def linear(x: Any, name: str) -> Any:
        return x @ s[name + ".weight"].T + s[name + ".bias"]

    x = tokens
    for i in range(depth):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        t, d = x.shape
        q, k, v = qkv.view(t, 3, heads, d // heads).permute(1, 2, 0, 3)
        weight = torch.softmax(q @ k.transpose(1, 2) / (d // heads) ** 0.5, -1)
        x = x + linear((weight @ v).transpose(0, 1).reshape(t, d), f"blocks.{i}.attn.proj")
        hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        x = x + linear(torch.nn.functional.gelu(hidden), f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")


def positions(s: dict[str, Any], grid: tuple[int, int]) -> Any:
    square = s["pos_embed"][:, 1:].view(1, 14, 14, -1).permute(0, 3, 1, 2)
    factor = [(k + 0.1) / 14 for k in grid]
    out = torch.nn.functional.interpolate(square, scale_factor=factor, mode="bicubic")
    assert out.shape[2:] == grid
    return torch.cat([s["pos_embed"][0, :1], out[0].flatten(1).T])


def small(px: int, shifts: int) -> Any:
    return replace(encoders.spec("hipt"), input_px=px, fields_um=(px / 2,), arch={"shifts": shifts})


def test_one_pass_is_what_the_formulas_say(folder: Path) -> None:
    s = small(512, 1)
    encoder = build.single(s, weights=folder, device="cpu", precision="auto", runtime="auto", n_threads=1, seed=None)
    image = np.random.default_rng(0).integers(0, 255, (1, 1, 512, 512, 3), dtype=np.uint8)
    got = encoder.tokens(image)
    assert got.shape == (1, 32, 32, 579)
    low, high = state(384, 12, top=False, seed=384), state(192, 6, top=True, seed=192)
    x = (torch.from_numpy(image[0, 0]).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        grid = []
        for i in range(2):
            for j in range(2):
                patch = x[256 * i : 256 * (i + 1), 256 * j : 256 * (j + 1)]
                cut = patch.view(16, 16, 16, 16, 3).permute(0, 2, 4, 1, 3).reshape(256, 768)
                embedded = cut @ low["patch_embed.proj.weight"].reshape(384, 768).T + low["patch_embed.proj.bias"]
                out = transformer(torch.cat([low["cls_token"][0], embedded]) + positions(low, (16, 16)), low, 6, 12)
                sub = got[0, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16, 192:576]
                assert np.abs(sub - out[1:].view(16, 16, 384).numpy()).max() < 1e-4
                grid.append(out[0])
        lifted = torch.nn.functional.gelu(torch.stack(grid) @ high["phi.0.weight"].T + high["phi.0.bias"])
        top = transformer(torch.cat([high["cls_token"][0], lifted]) + positions(high, (2, 2)), high, 6, 6)
    expected = top[1:].view(2, 2, 192).numpy().repeat(16, 0).repeat(16, 1)
    assert np.abs(got[0, ..., :192] - expected).max() < 1e-4
    colour = image[0, 0].reshape(32, 16, 32, 16, 3).mean((1, 3)) / 255
    assert np.abs(got[0, ..., 576:] - colour).max() < 1e-5
    assert encoder(image).shape == (1, 579)


def tiny(px: int, shifts: int) -> Hipt:
    torch.manual_seed(0)
    return Hipt(input_px=px, shifts=shifts, dim=12, depth=1, heads=2, top_dim=6, top_depth=1, top_heads=2).eval()


def test_shifted_passes_are_divided_by_those_that_saw_a_token() -> None:
    net = tiny(768, 4)
    x = torch.randn(3, 768, 768, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        got = net.one(x)
        sums, seen = torch.zeros(48, 48, 18), torch.zeros(48, 48, 1)
        for i in (0, 4, 8, 12):
            for j in (0, 4, 8, 12):
                h, w = (3 if i == 0 else 2), (3 if j == 0 else 2)
                part = x[:, 16 * i : 16 * i + 256 * h, 16 * j : 16 * j + 256 * w].contiguous()
                sub, first = net.patches(part)
                top = net.vit4k(first)
                for y in range(16 * h):
                    for z in range(16 * w):
                        sums[i + y, j + z] += torch.cat([top[y // 16, z // 16], sub[y, z]])
                        seen[i + y, j + z] += 1
    assert (seen[0, 0], seen[-1, -1], seen[20, 20]) == (1, 1, 16)
    assert torch.allclose(got[..., :18], sums / seen, atol=1e-5)


def test_every_token_counts_fully_at_the_border() -> None:
    """The original divides by 16 everywhere: its first tokens are a 16th of what they should be, its last nothing."""
    net = tiny(512, 4)
    with torch.inference_mode():
        size = net.one(torch.full((3, 512, 512), 0.3)).norm(dim=-1)
    assert size.min() > 0.5 * size.max()


def test_weights_are_loaded_in_full_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    s = small(256, 1)
    options: dict[str, Any] = {"device": "cpu", "precision": "auto", "runtime": "auto", "n_threads": 1, "seed": None}
    with pytest.raises(AccessError, match="vit4k_xs_dino"):
        build.single(s, weights=None, **options)
    with pytest.raises(MissingError, match="0 weights files of vit256"):
        build.single(s, weights=tmp_path, **options)
    with pytest.raises(MissingError, match="not found"):
        build.single(s, weights=tmp_path / "nowhere", **options)
    for name in ("vit256_small_dino.pth", "vit4k_xs_dino.pth"):
        (tmp_path / name).symlink_to(folder / name)
    torn = state(192, 6, top=True, seed=1)
    del torn["blocks.3.norm1.bias"]
    (tmp_path / "vit4k_xs_dino.pth").unlink()
    torch.save(torn, tmp_path / "vit4k_xs_dino.pth")
    with pytest.raises(FormatError, match=r"missing: vit4k\.blocks\.3\.norm1\.bias"):
        build.single(s, weights=tmp_path, **options)
    assert "vit256.blocks.11.mlp.fc2.bias" in read(folder)
    assert encoders.describe_all()[encoders.spec_names().index("hipt")]["available"] is False


def test_a_region_is_one_part_with_its_border_thrown_away() -> None:
    s = replace(small(512, 1), arch={"shifts": 1, "dim": 12, "depth": 1, "heads": 2, "top_dim": 6, "top_depth": 1,
                                     "top_heads": 2}, dim=21)  # fmt: skip
    encoder = build.single(s, weights=None, device="cpu", precision="auto", runtime="auto", n_threads=1, seed=1)
    (part,) = parts(encoder)
    assert (part.tokens, part.halo, part.core, part.dim, part.token_um) == (32, 4, 24, 21, 8.0)
    assert part.run(np.zeros((1, 1, 512, 512, 3), np.uint8)).shape == (1, 32, 32, 21)
