"""What runs a network: ONNX Runtime, OpenVINO or torch, behind one small face."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError, InputError
from ..spec import fingerprint
from .description import EncoderSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

MODES = ("vectors", "tokens")


def cached_graph(spec: EncoderSpec, mode: str, *, source: str, cache_dir: Path, make: Callable[[], nn.Module]) -> bytes:
    """ONNX graph of an encoder from the disk cache, made on first use.

    Parameters
    ----------
    spec, source
        Description and fingerprint of the weights; with the code of the networks they name the file.
    mode
        "vectors" or "tokens".
    cache_dir
        Folder of the cache; one that cannot be written to costs time and nothing else.
    make
        Builds the network; not called when the graph is cached, so that torch is not even imported.
    """
    key = fingerprint("graph", _code(), spec.fingerprint(), source, mode)
    path = cache_dir / "encoders" / f"{spec.name}-{mode}-{key[:16]}.onnx"
    if path.is_file():
        return path.read_bytes()
    from . import onnx_graph
    from .layers import Whole

    whole = Whole(make(), mean=spec.mean, std=spec.std, mode=mode)
    graph = onnx_graph.build(whole, input_px=spec.input_px)
    try:
        write_atomically(path, graph)
    except OSError:
        return graph
    return graph


@cache
def _code() -> str:
    """Fingerprint of the networks and the exporter, so that a changed one makes its graphs anew."""
    return fingerprint(*[p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py"))])


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or absent, whoever else writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


class SessionBackend:
    """An exported graph in ONNX Runtime or OpenVINO on CPU, float32.

    Each image is one call of one thread, and `n_threads` images run side by side. So an image gives the same
    bytes whatever else is in the batch and however many threads there are (neither runtime promises that for
    larger batches), and nothing waits: 1.3 to 2 times the images a second of threads inside a call (measured).

    Parameters
    ----------
    graph
        Returns the ONNX bytes of a mode; each mode becomes a session on first use.
    runtime
        "onnxruntime" or "openvino".
    n_threads
        Images at a time.
    """

    device = "cpu"
    chunk = 64
    pad = False

    def __init__(self, graph: Callable[[str], bytes], *, runtime: str, n_threads: int) -> None:
        self.runtime, self._graph, self._n_threads = runtime, graph, max(1, n_threads)
        self._calls: dict[str, Callable[[Bytes], Floats]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="stainseq-encoder")

    @property
    def dim(self) -> int:
        """Numbers a vector."""
        return self._shape("vectors")[0]

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self._shape("tokens")[0], self._shape("tokens")[1]

    @property
    def token_dim(self) -> int:
        """Numbers a token."""
        return self._shape("tokens")[2]

    def vectors(self, images: Bytes) -> Floats:
        """uint8 [n, h, w, 3] -> float32 [n, dim]."""
        return self._run("vectors", images)

    def tokens(self, images: Bytes) -> Floats:
        """uint8 [n, h, w, 3] -> float32 [n, ty, tx, token_dim]."""
        return self._run("tokens", images)

    def _run(self, mode: str, images: Bytes) -> Floats:
        out = np.empty((len(images), *self._shape(mode)), np.float32)
        call = self._calls[mode]

        def one(i: int) -> None:
            out[i] = call(images[i : i + 1])[0]

        if self._n_threads == 1:
            for i in range(len(images)):
                one(i)
        else:
            list(self._pool.map(one, range(len(images))))
        return out

    def _shape(self, mode: str) -> tuple[int, ...]:
        if mode not in self._calls:
            self._calls[mode], self._shapes[mode] = self.start(mode)
        return self._shapes[mode]

    def start(self, mode: str) -> tuple[Callable[[Bytes], Floats], tuple[int, ...]]:
        """What runs a mode on one image, and the shape of what it gives."""
        start = _openvino if self.runtime == "openvino" else _onnxruntime
        return start(self._graph(mode), self._n_threads)


def _onnxruntime(graph: bytes, n_threads: int) -> tuple[Callable[[Bytes], Floats], tuple[int, ...]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    shape = tuple(int(v) for v in session.get_outputs()[0].shape[1:])
    return (lambda images: session.run(None, {name: images})[0]), shape


def _openvino(graph: bytes, n_threads: int) -> tuple[Callable[[Bytes], Floats], tuple[int, ...]]:
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": n_threads,
        "NUM_STREAMS": n_threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    loaded = core.read_model(graph)
    loaded.reshape({0: [1, *list(loaded.inputs[0].get_partial_shape())[1:]]})
    model = core.compile_model(loaded, "CPU", settings)
    shape = tuple(int(v.get_length()) for v in list(model.outputs[0].get_partial_shape())[1:])
    local = threading.local()

    def call(images: Bytes) -> Floats:
        if not hasattr(local, "request"):
            local.request = model.create_infer_request()
        out: Floats = local.request.infer({0: images})[0]
        return out

    return call, shape


class TorchBackend:
    """A network in torch, with autocast on a GPU.

    On a CPU each image is one call: matrix products of several images share their rows out to threads, and a row's
    last digits would depend on its place in the batch. That costs 3 to 8 % (ResNet50, ViT-S/16), and an image gives
    the same bytes whatever else is in the batch. On a GPU, where one image would leave it idle, calls have 64.

    Parameters
    ----------
    net
        Module with `vectors`, `tokens` and `token_grid`.
    device
        "cpu", "cuda", "cuda:1", "mps".
    precision
        "fp32", "bf16" or "fp16".
    """

    pad = True  # On a GPU matrix products may be computed in another order for another batch size.

    def __init__(self, net: nn.Module, spec: EncoderSpec, *, device: str, precision: str) -> None:
        import torch

        from .layers import Whole

        if precision == "fp16" and device == "cpu":
            raise InputError("fp16 does not run on a CPU at any useful speed", where=f"encoder {spec.name}",
                             fix="precision='auto' (fp32 on a CPU)")  # fmt: skip
        self.device, self.runtime = device, f"torch-{precision}"
        self.chunk = 1 if device == "cpu" else 64
        types: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
        self._torch, self._autocast = torch, types[precision]
        modules = {m: Whole(net, mean=spec.mean, std=spec.std, mode=m) for m in MODES}
        self._modules = {m: w.eval().to(device) for m, w in modules.items()}
        self._grid = tuple(int(v) for v in net.token_grid)  # type: ignore[union-attr]
        self._blank = np.zeros((1, spec.input_px, spec.input_px, 3), np.uint8)
        # Networks whose input takes minutes say what they give.
        known: tuple[int, int] = getattr(net, "output_dims", (0, 0))
        self.dim, self._token_dim = known[0] or int(self.vectors(self._blank).shape[-1]), known[1]

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self._grid[0], self._grid[1]

    @property
    def token_dim(self) -> int:
        """Numbers a token."""
        self._token_dim = self._token_dim or int(self.tokens(self._blank).shape[-1])
        return self._token_dim

    def vectors(self, images: Bytes) -> Floats:
        """uint8 [n, h, w, 3] -> float32 [n, dim]."""
        return self._forward("vectors", images)

    def tokens(self, images: Bytes) -> Floats:
        """uint8 [n, h, w, 3] -> float32 [n, ty, tx, token_dim]."""
        return self._forward("tokens", images)

    def _forward(self, mode: str, images: Bytes) -> Floats:
        torch = self._torch
        # A copy, for torch takes neither negative strides nor, in silence, what cannot be written to.
        x = torch.from_numpy(images.copy()).to(self.device)
        kind = self.device.split(":")[0]
        with torch.inference_mode(), torch.autocast(kind, dtype=self._autocast, enabled=self._autocast is not None):
            out: Any = self._modules[mode](x)
        return out.float().cpu().numpy()


def pick_device(wanted: str) -> str:
    """Turn "auto" into "cuda", "mps" or "cpu"; refuse a device that is not there.

    Raises
    ------
    InputError
        A GPU was asked for and torch sees none.
    """
    if wanted == "cpu" or (wanted == "auto" and not _maybe_gpu()):
        return "cpu"
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    kind = wanted.split(":")[0]
    if (kind == "cuda" and cuda) or (kind == "mps" and mps):
        return wanted
    raise InputError(f"device {wanted!r} is not available to torch", fix="device='auto' or device='cpu'")


def _maybe_gpu() -> bool:
    """Whether asking torch for a GPU is worth the two seconds of its import."""
    if version("torch").endswith("+cpu"):
        return False
    return not sys.platform.startswith("linux") or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def pick_runtime(wanted: str, device: str) -> str:
    """Turn "auto" into "onnxruntime" on a CPU and "torch" elsewhere.

    Raises
    ------
    DependencyError
        OpenVINO was asked for and is not installed.
    """
    from importlib.util import find_spec

    if wanted == "auto":
        return "onnxruntime" if device == "cpu" else "torch"
    if wanted not in ("onnxruntime", "openvino", "torch"):
        raise InputError(f"unknown runtime {wanted!r}", fix="auto, onnxruntime, openvino or torch")
    if wanted != "torch" and device != "cpu":
        raise InputError(f"{wanted} runs on the CPU here, not on {device}", fix="runtime='auto'")
    if wanted == "openvino" and find_spec("openvino") is None:
        raise DependencyError("OpenVINO is not installed", fix="pip install 'stainseq[openvino]'")
    return wanted
