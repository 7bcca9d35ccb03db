"""Make ``shell.safetensors`` and the parity fixture from the wheel of lavlab-shell.

Run once, by hand, with the wheel unpacked::

    pip download --no-deps lavlab-shell==0.9.1 && unzip lavlab_shell-0.9.1-*.whl -d shell-wheel
    python tests/encoders/make_shell_weights.py shell-wheel/shell/weights/model_v1.onnx

The requirements of that package are not needed. The fixture holds a seeded input and the class scores of the
original ONNX file in ONNX Runtime.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from stainseq.encoders import shell

HERE = Path(__file__).parent


def convert(path: Path) -> dict[str, torch.Tensor]:
    """Weights under our names: convolutions by name, norms by the order in which the graph applies them."""
    graph = onnx.load(path).graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    names = {"convInit.conv": "first", "conv_final.2.conv": "last"}
    for level, count in enumerate(shell.DOWN_BLOCKS):
        if level:
            names[f"down_layers.{level}.0.conv"] = f"enter.{level}"
        for block in range(count):
            for conv in ("conv1", "conv2"):
                names[f"down_layers.{level}.{block + 1}.{conv}.conv"] = f"down.{level}.{block}.{conv}"
    for i in range(len(shell.CHANNELS) - 1):
        names[f"up_samples.{i}.0.conv"] = f"narrow.{i}"
        for conv in ("conv1", "conv2"):
            names[f"up_layers.{i}.0.{conv}.conv"] = f"up.{i}.{conv}"
    out = {}
    for old, new in names.items():
        for part in ("weight", "bias"):
            if f"{old}.{part}" in values:
                out[f"{new}.{part}"] = values[f"{old}.{part}"]
    pending: list[str] = []
    gains: dict[str, str] = {}
    for node in graph.node:
        # gain and shift of a norm come right after it; the convolution that follows says which norm it is.
        if node.op_type == "Mul":
            gains["weight"] = node.input[1]
        elif node.op_type == "Add" and node.input[1] in values:
            gains["bias"] = node.input[1]
        elif node.op_type == "Conv" and node.input[1].removesuffix(".weight") in names:
            conv = names[node.input[1].removesuffix(".weight")]
            if gains:
                norm = "last_norm" if conv == "last" else conv.replace("conv1", "norm1").replace("conv2", "norm2")
                for part, key in gains.items():
                    out[f"{norm}.{part}"] = values[key].reshape(-1)
                pending.append(norm)
                gains = {}
    return {k: torch.from_numpy(v.copy()) for k, v in out.items()}


def main(path: Path) -> None:
    state = convert(path)
    net = shell.Shell(input_px=64).eval()
    net.load_state_dict(state)
    rng = np.random.default_rng(20)
    x = rng.random((2, 3, 64, 64), dtype=np.float32)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = session.run(None, {"input": x})[0]
    with torch.inference_mode():
        exact = net.stages(torch.from_numpy(x))[1].numpy()
        net.load_state_dict({k: v.half().float() for k, v in state.items()})
        rounded = net.stages(torch.from_numpy(x))[1].numpy()
    print(f"largest score {np.abs(want).max():.3f}; difference in float32 {np.abs(exact - want).max():.2e}, "
          f"with float16 weights {np.abs(rounded - want).max():.2e}")  # fmt: skip
    # float16 would halve the file and miss 1e-4 by far, so float32 it is.
    save_file(state, net_file := Path(shell.__file__).parent / "weights" / "shell.safetensors",
              metadata={"source": "lavlab-shell 0.9.1 shell/weights/model_v1.onnx", "licence": "MIT"})  # fmt: skip
    np.savez_compressed(HERE / "shell_parity.npz", seed=20, shape=x.shape, scores=want.astype(np.float32))
    print(net_file, net_file.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
