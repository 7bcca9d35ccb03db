"""Random weights of the right architecture give what transformers gives, under all its names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stainseq.encoders.access import load_in_full
from stainseq.encoders.vit import VisionTransformer, rename

transformers = pytest.importorskip("transformers", reason="transformers is an optional extra")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}
OURS = {"dim": 32, "depth": 2, "heads": 4, "patch": 8}


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """All parameters random, so that a swapped or forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model.eval()


def states(model: torch.nn.Module, folder: Path) -> list[dict[str, torch.Tensor]]:
    """The state dict with the names in memory and with those on disk, which differ in transformers 5."""
    model.save_pretrained(folder)
    return [dict(model.state_dict()), load_file(folder / "model.safetensors")]


def agree(net: VisionTransformer, state: dict[str, torch.Tensor], x: torch.Tensor, want: np.ndarray) -> None:
    load_in_full(net, rename(state, net), where="test")
    with torch.inference_mode():
        got = net.eval().forward_features(x).numpy()
    assert got.shape == want.shape
    assert np.abs(got - want).max() < 1e-5


def images(px: int) -> torch.Tensor:
    return torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(7))


def test_vit(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**SMALL, intermediate_size=128, image_size=32)
    model = randomise(transformers.ViTModel(config))
    with torch.inference_mode():
        want = model(images(32)).last_hidden_state.numpy()
    for state in states(model, tmp_path):
        agree(VisionTransformer(input_px=32, **OURS, eps=1e-12), state, images(32), want)


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("trained_px", [32, 56])
def test_dinov2(tmp_path: Path, swiglu: bool, trained_px: int) -> None:
    config = transformers.Dinov2Config(**SMALL, mlp_ratio=4, image_size=trained_px, use_swiglu_ffn=swiglu)
    model = randomise(transformers.Dinov2Model(config))
    with torch.inference_mode():
        want = model(images(32)).last_hidden_state.numpy()
    hidden = (int(128 * 2 / 3) + 7) // 8 * 8 * 2
    shape = {"gated": True, "act": "silu", "mlp_ratio": hidden / 32} if swiglu else {}
    for state in states(model, tmp_path):
        net = VisionTransformer(input_px=32, **OURS, layer_scale=True, antialias=False, **shape)
        agree(net, state, images(32), want)


def test_dinov2_with_registers(tmp_path: Path) -> None:
    config = transformers.Dinov2WithRegistersConfig(**SMALL, mlp_ratio=4, image_size=32, num_register_tokens=4)
    model = randomise(transformers.Dinov2WithRegistersModel(config))
    with torch.inference_mode():
        want = model(images(32)).last_hidden_state.numpy()
    for state in states(model, tmp_path):
        net = VisionTransformer(input_px=32, **OURS, layer_scale=True, registers=4, embed_prefix=False)
        agree(net, state, images(32), want)


def test_clip_vision(tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(**SMALL, intermediate_size=128, image_size=32, projection_dim=16)
    model = randomise(transformers.CLIPVisionModelWithProjection(config))
    with torch.inference_mode():
        want = model(images(32)).image_embeds.numpy()
    for state in states(model, tmp_path):
        net = VisionTransformer(input_px=32, **OURS, eps=1e-5, act="quick-gelu", pre_norm=True, projection=16)
        load_in_full(net, rename(state, net), where="test")
        with torch.inference_mode():
            got = net.eval().vectors(images(32)).numpy()
        assert np.abs(got - want).max() < 1e-5


def test_whole_clip_leaves_the_text_tower_out(tmp_path: Path) -> None:
    vision = {**SMALL, "intermediate_size": 128, "image_size": 32}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
            "vocab_size": 50}  # fmt: skip
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
    model = randomise(transformers.CLIPModel(config))
    with torch.inference_mode():
        out = model.get_image_features(images(32))
        want = getattr(out, "pooler_output", out).numpy()
    for state in states(model, tmp_path):
        net = VisionTransformer(input_px=32, **OURS, eps=1e-5, act="quick-gelu", pre_norm=True, projection=16)
        load_in_full(net, rename(state, net), where="test")
        with torch.inference_mode():
            got = net.eval().vectors(images(32)).numpy()
        assert np.abs(got - want).max() < 1e-5
