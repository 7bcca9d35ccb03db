"""Images a second of each offline encoder in each runtime, as ratios to plain eager torch.

    python benchmarks/encoders.py [--threads 2] [--images 32] [--rounds 3] [NAME ...]

A name may be several joined by "+"; "auto" is what `encoders.load` takes.

Runtimes take turns in every round and the best round counts, so that other work on the machine disturbs the
ratios little. "folded" is torch with batch norms folded and channels last, the best that torch alone does.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from stainseq import encoders
from stainseq.encoders.access import locate
from stainseq.encoders.build import EXPORTABLE, network
from stainseq.encoders.layers import ConvUnit, Whole


def folded(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    for unit in [m for m in net.modules() if isinstance(m, ConvUnit)]:
        weight, bias = unit.folded()
        unit.conv.weight = nn.Parameter(weight)
        unit.norm = _Shift(bias)
    return net.to(memory_format=torch.channels_last)


class _Shift(nn.Module):
    def __init__(self, bias: torch.Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias


def in_torch(name: str, images: np.ndarray) -> dict[str, Callable[[], object]]:
    """All members of an encoder in eager torch, as they are and folded; nothing where one has no torch network."""
    parts = [encoders.spec(n) for n in name.split("+")]
    if any(s.family not in EXPORTABLE for s in parts):
        return {}
    fields = encoders.spec(name).fields_um
    wholes: dict[str, list[tuple[nn.Module, torch.Tensor]]] = {"eager": [], "folded": []}
    for s in parts:
        net = network(s, None if s.loader == "builtin" else locate(s, None), 0)
        own = images[:, [fields.index(um) for um in s.fields_um]]
        flat = torch.from_numpy(own.reshape(-1, *own.shape[2:]))
        for label, one in (("eager", net), ("folded", folded(net))):
            wholes[label].append((Whole(one, mean=s.mean, std=s.std, mode="vectors").eval(), flat))

    def run(label: str) -> object:
        with torch.inference_mode():
            return [whole(x[i : i + 16]) for whole, x in wholes[label] for i in range(0, len(x), 16)]

    return {label: lambda label=label: run(label) for label in wholes}


def candidates(name: str, threads: int, images: np.ndarray) -> dict[str, Callable[[], object]]:
    out = in_torch(name, images)
    for runtime in ("auto", "onnxruntime", "openvino"):
        if runtime != "auto" and (not out or importlib.util.find_spec(runtime) is None):
            continue
        encoder = encoders.load(name, device="cpu", runtime=runtime, n_threads=threads)
        out[runtime] = lambda encoder=encoder: encoder(images)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    offline = [n for n in encoders.spec_names() if encoders.spec(n).loader in ("builtin", "shipped", "wheel")]
    rows = {r["name"]: r["available"] for r in encoders.describe_all()}
    print(f"{given.threads} threads, {given.images} windows; windows/s, CPU ms a window, ratio of windows/s to eager")
    for name in given.names or [n for n in offline if rows[n]]:
        s = encoders.spec(name)
        shape = (given.images, len(s.fields_um), s.input_px, s.input_px, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        runs = candidates(name, given.threads, images)
        best = dict.fromkeys(runs, (0.0, np.inf))
        for label in runs:
            runs[label]()
        for _ in range(given.rounds):
            for label, run in runs.items():
                wall, cpu = time.perf_counter(), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
                run()
                wall, cpu = time.perf_counter() - wall, sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - cpu
                rate, cost = given.images / wall, 1000 * cpu / given.images
                best[label] = (max(best[label][0], rate), min(best[label][1], cost))
        base = best.get("eager", (np.nan, 0))[0]
        cells = [f"{label} {rate:6.1f}/s {cost:6.1f} ms x{rate / base:.2f}" for label, (rate, cost) in best.items()]
        print(f"{name:16s} {s.dim:5d}  " + "  |  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
