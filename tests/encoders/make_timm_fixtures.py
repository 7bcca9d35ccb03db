"""Record what timm and open_clip give, for tests that need neither.

Run once, by hand, in an environment of its own (timm and torchvision would disturb the package's)::

    python3.11 -m venv v && v/bin/pip install torch==2.13.0 numpy safetensors pyyaml \\
        huggingface-hub pillow regex ftfy tqdm
    v/bin/pip install --no-deps timm==1.0.31 torchvision==0.28.0 open-clip-torch==3.3.0
    v/bin/python tests/encoders/make_timm_fixtures.py efficientnet-lite0-57934424.pth

Weights and images come from `seeded.py`, so the fixture holds names, shapes and outputs only. For
EfficientNet-Lite0 the weights are those of its wheel (the argument).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

# torchvision's wheel lacks its operators beside a CPU build of torch; declared, it imports. A test aid only.
_schemas = torch.library.Library("torchvision", "DEF")
_schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

sys.path.insert(0, str(Path(__file__).parent))
import open_clip  # noqa: E402
import seeded  # noqa: E402
import timm  # noqa: E402
from open_clip.transformer import QuickGELU  # noqa: E402
from open_clip.transformer import VisionTransformer as OpenClip  # noqa: E402
from timm.layers import SwiGLU, SwiGLUPacked  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

HERE = Path(__file__).parent
BASE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 0,
        "dynamic_img_size": True}  # fmt: skip
GATED = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}

VITS = {
    "uni": {**BASE, "init_values": 1e-5},
    "uni2-h": {**BASE, **GATED, "init_values": 1e-5, "mlp_ratio": 5.33334, "reg_tokens": 8, "no_embed_class": True},
    "virchow2": {**BASE, **GATED, "init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, "global_pool": ""},
    "gigapath-flash": {**BASE, "mlp_layer": SwiGLU, "act_layer": torch.nn.SiLU, "init_values": 1e-5, "mlp_ratio": 3.0},
    "kaiko-vitl14": {**BASE, "img_size": 56, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    "kaiko-vits16": BASE,
}


def fill(model: torch.nn.Module, seed: int) -> list[tuple[str, list[int]]]:
    keys = [(k, list(v.shape)) for k, v in model.state_dict().items()]
    model.load_state_dict({k: torch.from_numpy(v) for k, v in seeded.state(keys, seed).items()})
    model.eval()
    return keys


def main(weights: str) -> None:
    facts: dict[str, object] = {"made_with": {m.__name__: m.__version__ for m in (torch, timm, open_clip)}}
    arrays: dict[str, np.ndarray] = {}

    def record(name: str, model: torch.nn.Module, x: np.ndarray, call: object = None, seed: int = 1) -> None:
        keys = fill(model, seed)
        with torch.inference_mode():
            arrays[name] = (call or model)(torch.from_numpy(x)).numpy()
        facts[name] = {"keys": keys, "seed": seed, "px": x.shape[-1], "n": len(x), "image_seed": 5}

    for name, arch in VITS.items():
        model = VisionTransformer(**arch)
        record(name, model, seeded.images(2, 32, 5), model.forward_features)
    for depth in (18, 50):
        record(f"resnet{depth}", timm.create_model(f"resnet{depth}", num_classes=0), seeded.images(2, 64, 5))
    stage3 = timm.create_model("resnet50", features_only=True, out_indices=[3])
    record("resnet50-hest", stage3, seeded.images(2, 64, 5), lambda x: stage3(x)[0].mean((2, 3)))
    clip = OpenClip(image_size=32, patch_size=8, width=32, layers=2, heads=4, mlp_ratio=4.0, output_dim=16,
                    act_layer=QuickGELU)  # fmt: skip
    record("open-clip", clip, seeded.images(2, 32, 5))

    lite = timm.create_model("tf_efficientnet_lite0", num_classes=0, pretrained=False)
    source = {k: v for k, v in torch.load(weights, weights_only=True).items() if not k.startswith("_fc")}
    names = list(lite.state_dict())
    lite.load_state_dict(dict(zip(names, source.values(), strict=True)))
    lite.eval()
    x = torch.from_numpy(seeded.images(2, 224, 5) * 0.5)
    with torch.inference_mode():
        y = lite.act1(lite.bn1(lite.conv_stem(x))) if hasattr(lite, "act1") else lite.bn1(lite.conv_stem(x))
        for i, stage in enumerate(lite.blocks):
            y = stage(y)
            arrays[f"lite0-mean{i}"] = y.mean((2, 3)).numpy()
            arrays[f"lite0-std{i}"] = y.double().std((2, 3), unbiased=False).float().numpy()
        arrays["lite0"] = lite(x).numpy()
    np.savez_compressed(HERE / "timm_fixtures.npz", facts=json.dumps(facts), **arrays)
    print(facts["made_with"], {k: v.shape for k, v in arrays.items()})


if __name__ == "__main__":
    main(sys.argv[1])
