"""Networks against what timm 1.0.31 and open_clip 3.3.0 gave for the same weights (see make_timm_fixtures.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stainseq import encoders
from stainseq.encoders import lite, resnet, shell, vit
from stainseq.encoders.access import load_in_full, locate, read_state
from stainseq.encoders.description import WEIGHTS

HERE = Path(__file__).parent
_found = importlib.util.spec_from_file_location("seeded", HERE / "seeded.py")
seeded: Any = importlib.util.module_from_spec(_found)
_found.loader.exec_module(seeded)

SMALL = {"dim": 32, "depth": 2, "heads": 4, "patch": 8, "input_px": 32}
GATED = {"gated": True, "act": "silu"}
VITS = {
    "uni": {"layer_scale": True},
    "uni2-h": {**GATED, "layer_scale": True, "mlp_ratio": 5.33334, "registers": 8, "embed_prefix": False},
    "virchow2": {**GATED, "layer_scale": True, "mlp_ratio": 5.3375, "registers": 4},
    "gigapath-flash": {**GATED, "layer_scale": True, "mlp_ratio": 6.0},
    "kaiko-vitl14": {"layer_scale": True, "registers": 4, "embed_prefix": False, "trained_px": 56},
    "kaiko-vits16": {},
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(HERE / "timm_fixtures.npz") as f:
        arrays = {k: f[k] for k in f.files}
    return {"facts": json.loads(str(arrays.pop("facts"))), **arrays}


def made_alike(recorded: dict[str, Any], name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    fact = recorded["facts"][name]
    keys = [(k, shape) for k, shape in fact["keys"]]
    state = {k: torch.from_numpy(v) for k, v in seeded.state(keys, fact["seed"]).items()}
    return state, torch.from_numpy(seeded.images(fact["n"], fact["px"], fact["image_seed"]))


def close(got: torch.Tensor, want: np.ndarray, tolerance: float = 1e-5) -> None:
    assert got.shape == want.shape
    assert np.abs(got.numpy() - want).max() <= tolerance * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("name", VITS)
def test_vision_transformers(recorded: dict[str, Any], name: str) -> None:
    state, x = made_alike(recorded, name)
    net = vit.VisionTransformer(**SMALL, **VITS[name])
    load_in_full(net, vit.rename(state, net), where=name)
    with torch.inference_mode():
        tokens = net.eval().forward_features(x)
        close(tokens, recorded[name])
        grid = net.tokens(x)
        close(net.vectors(x), recorded[name][:, 0])
    assert torch.equal(grid.flatten(1, 2), tokens[:, net.prefix :])


def test_class_token_beside_the_mean_of_patch_tokens(recorded: dict[str, Any]) -> None:
    state, x = made_alike(recorded, "virchow2")
    net = vit.VisionTransformer(**SMALL, **VITS["virchow2"], pooling="cls+mean")
    load_in_full(net, vit.rename(state, net), where="virchow2")
    with torch.inference_mode():
        got = net.eval().vectors(x)
    want = recorded["virchow2"]
    close(got, np.concatenate([want[:, 0], want[:, 5:].mean(1)], 1))


def test_positions_of_another_image_size_are_resampled_as_timm_does(recorded: dict[str, Any]) -> None:
    state, x = made_alike(recorded, "kaiko-vitl14")
    arch = {k: v for k, v in VITS["kaiko-vitl14"].items() if k != "trained_px"}
    net = vit.VisionTransformer(**SMALL, **arch)
    load_in_full(net, vit.rename(state, net), where="kaiko")
    with torch.inference_mode():
        close(net.eval().forward_features(x), recorded["kaiko-vitl14"])


def test_open_clip_tower(recorded: dict[str, Any]) -> None:
    state, x = made_alike(recorded, "open-clip")
    text = {"positional_embedding": torch.zeros(3, 4), "transformer.resblocks.0.ln_1.weight": torch.ones(4),
            "logit_scale": torch.ones(())}  # fmt: skip
    for prefix, rest in (("", {}), ("visual.", text)):
        net = vit.VisionTransformer(**SMALL, eps=1e-5, act="quick-gelu", pre_norm=True, projection=16)
        named = {prefix + k: v for k, v in state.items()} | rest
        load_in_full(net, vit.rename(named, net), where="open_clip")
        with torch.inference_mode():
            close(net.eval().vectors(x), recorded["open-clip"])


@pytest.mark.parametrize(("name", "arch"), [("resnet18", {"depth": 18}), ("resnet50", {"depth": 50}),
                                            ("resnet50-hest", {"depth": 50, "stages": 3})])  # fmt: skip
def test_resnets(recorded: dict[str, Any], name: str, arch: dict[str, int]) -> None:
    # The state of a whole ResNet50 also serves its third stage: what is above it is left out by name.
    state, x = made_alike(recorded, name)
    net = resnet.ResNet(**arch, input_px=64)
    state["fc.weight"] = torch.zeros(10, 2048)
    load_in_full(net, resnet.rename(state, net), where=name)
    with torch.inference_mode():
        close(net.eval().vectors(x), recorded[name])


def test_lite0_with_its_real_weights(recorded: dict[str, Any]) -> None:
    spec = encoders.spec("lite0-multi")
    net = lite.build(spec)
    path = locate(spec, None)
    load_in_full(net, lite.rename(read_state(path), net), where=path)
    x = torch.from_numpy(seeded.images(2, 224, 5) * np.float32(0.5))
    with torch.inference_mode():
        got = net.eval().vectors(x)
    parts = [recorded[f"lite0-{kind}{i}"] for i in range(7) for kind in ("mean", "std")]
    close(got, np.concatenate([*parts, recorded["lite0"]], 1))


def test_shell_gives_the_scores_of_the_original_graph() -> None:
    with np.load(HERE / "shell_parity.npz") as f:
        seed, shape, want = int(f["seed"]), tuple(f["shape"]), f["scores"]
    net = shell.Shell(input_px=shape[-1])
    load_in_full(net, read_state(WEIGHTS / "shell.safetensors"), where="shell")
    x = np.random.default_rng(seed).random(shape, dtype=np.float32)
    with torch.inference_mode():
        scores = net.eval().stages(torch.from_numpy(x))[1].numpy()
    assert np.abs(scores - want).max() < 1e-4
