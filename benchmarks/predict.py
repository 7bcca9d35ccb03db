"""Prediction of a slide of 660,000 superpixels: seconds, CPU, peak memory, against the arithmetic that it cannot avoid.

    python benchmarks/predict.py [--side 812] [--genes 425] [--features 579] [--heads ridge mlp] [--modes infer enhance]

Features are plugged in (a planted law of 12 smooth factors, as expression has), the model is trained on a slide of its
own. Every part runs in a process of its own, `stainseq predict` as users call it; peak memory is the kernel's account
of that process. Two floors are measured on the same threads, right after: the product features x genes over the whole
slide in numpy, nothing read or written (`matmul`), and the forward pass of the published network (579-256-256-256-256
and the genes) at the speed of a large float32 product (`floor`). On a machine that does other work, CPU seconds are
the ones to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PITCH_UM = 8.0
IMAGE_MPP = 4.0
ENCODER = "plugged"


def fields(side: int, seed: int) -> np.ndarray:
    """12 smooth factors of a square slide, float32 [side * side, 12]."""
    import cv2

    rng = np.random.default_rng(seed)
    made = []
    for k in range(12):
        noise = rng.standard_normal((side, side)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), 2.0 + 2 * k)
        made.append((smooth / smooth.std()).ravel())
    return np.stack(made, axis=1)


def slide(path: str, side: int, features: int, genes: int, seed: int) -> None:
    """A store with a picture, superpixels, features of two encoders and counts."""
    from scipy import sparse
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    from stainseq import keys, lineage, regions, store

    law = np.random.default_rng(7)  # the same on every slide
    to_features = law.standard_normal((12, features)).astype(np.float32)
    to_genes = law.standard_normal((12, genes)).astype(np.float32) * 0.3
    level = law.normal(-2.0, 0.8, genes).astype(np.float32)
    rng, factors = np.random.default_rng([seed, 1]), fields(side, seed)

    px = int(side * PITCH_UM / IMAGE_MPP)
    picture = rng.integers(120, 240, (3, px, px), dtype=np.uint8)
    scale = Scale([IMAGE_MPP, IMAGE_MPP], axes=("x", "y"))
    image = Image2DModel.parse(picture, dims=("c", "y", "x"), transformations={"global": scale, keys.UM: scale})
    facts = {"slide": Path(path).stem, "patient": Path(path).stem, "mpp": IMAGE_MPP}
    sdata = store.create(path, SpatialData(images={"he": image}), step="convert", parameters={}, facts=facts)
    rows, cols = (v.ravel() for v in np.mgrid[:side, :side])
    regions.add_grid(
        sdata, keys.SUPERPIXELS, rows=rows, cols=cols, ids=None, shape=(side, side),
        transform=np.diag([PITCH_UM, PITCH_UM, 1.0]), step="superpixels", parameters={},
    )  # fmt: skip
    where = regions.get(sdata, keys.SUPERPIXELS)
    geometry = where.geometry
    factors = factors[geometry.rows.astype(np.int64) * side + geometry.cols]  # stored in order of place

    def put(name: str, values: object, names: list[str], **more: object) -> None:
        inputs = {"he": store.fingerprint_of(sdata, "he"), keys.SUPERPIXELS: lineage.ids_fingerprint(where.ids)}
        about = {"region": keys.SUPERPIXELS, "image_key": "he"}
        table = regions.table(where, values, var_names=names)
        store.write_element(sdata, name, table, step="features", parameters=about, inputs=inputs, more=dict(more))

    for name, dim in ((ENCODER, features), ("colour", 18)):
        X = factors @ to_features[:, :dim]
        for start in range(0, len(X), 65_536):
            part = X[start : start + 65_536]
            part += rng.standard_normal(part.shape, dtype=np.float32)
        encoder = {"name": name, "fingerprint": f"benchmark-{name}-{dim}", "fields_um": [8.0], "input_px": 16}
        put(keys.features(name, keys.SUPERPIXELS), X, [str(i) for i in range(dim)], encoder=encoder)
        del X
    parts = []
    for start in range(0, len(factors), 65_536):
        rate = np.exp(level + factors[start : start + 65_536] @ to_genes)
        parts.append(sparse.csr_array(rng.poisson(rate).astype(np.int32)))
    put(keys.counts(keys.SUPERPIXELS), sparse.csr_matrix(sparse.vstack(parts)), [f"g{i:04d}" for i in range(genes)])


def train(store: str, out: str, head: str, genes: int) -> None:
    """A model of superpixels, by blocks of its slide."""
    import stainseq as ss

    options = {"max_epochs": 3} if head == "mlp" else {}
    ss.tl.train(
        store, out=out, region="superpixels", encoder=ENCODER, head=head, normalize="raw", n_genes=genes, n_folds=2,
        split="block", block_um=200.0, options=options,
    )  # fmt: skip


def floor(side: int, features: int, genes: int) -> dict[str, float]:
    """Wall and CPU seconds of the bare product over the slide, and of the published network at a large one's speed."""
    rng = np.random.default_rng(0)
    n, block = side * side, 65_536
    X = rng.standard_normal((block, features)).astype(np.float32)
    W = rng.standard_normal((features, genes)).astype(np.float32)
    X @ W
    start, spent = time.perf_counter(), time.process_time()
    for _ in range(0, n, block):
        X @ W
    share = n / (-(-n // block) * block)
    matmul, matmul_cpu = (time.perf_counter() - start) * share, (time.process_time() - spent) * share
    A = rng.standard_normal((4096, 4096)).astype(np.float32)
    A @ A
    start, spent = time.perf_counter(), time.process_time()
    for _ in range(3):
        A @ A
    once = 3 * 2.0 * 4096**3
    speed, speed_cpu = once / (time.perf_counter() - start), once / (time.process_time() - spent)
    forward = 2.0 * (features * 256 + 3 * 256 * 256 + 256 * genes) * n
    return {
        "matmul_s": matmul,
        "matmul_cpu_s": matmul_cpu,
        "tflop_forward": forward / 1e12,
        "floor_s": forward / speed,
        "floor_cpu_s": forward / speed_cpu,
    }


def apart(*command: str) -> dict[str, float]:
    """Run a command in a process of its own: seconds, CPU seconds and peak memory."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)
    output = process.stdout.read().decode() if process.stdout else ""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}\n{output}")
    found = {
        "seconds": time.perf_counter() - start,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_gb": used.ru_maxrss / 2**20,
    }
    last = output.strip().splitlines()[-1:] or [""]
    return {**found, **(json.loads(last[0]) if last[0].startswith("{") else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=812, help="superpixels along a side; 812 x 8 um is 6.5 mm")
    parser.add_argument("--genes", type=int, default=425)
    parser.add_argument("--features", type=int, default=579)
    parser.add_argument("--heads", nargs="+", default=["ridge", "mlp"])
    parser.add_argument("--modes", nargs="+", default=["infer", "enhance"])
    parser.add_argument("--folder", help="where to work; slides that are there already are taken")
    parser.add_argument("--out", help="JSON of the figures")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        what, *rest = args.part
        if what == "slide":
            slide(rest[0], *(int(v) for v in rest[1:]))
        elif what == "train":
            train(rest[0], rest[1], rest[2], int(rest[3]))
        else:
            print(json.dumps(floor(*(int(v) for v in rest))))
        return
    me = [sys.executable, __file__, "--part"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        sizes = [str(v) for v in (args.features, args.genes)]
        for name, side, seed in (("train", 150, 1), ("slide", args.side, 2)):
            if not (folder / f"{name}.zarr").exists():
                made = apart(*me, "slide", str(folder / f"{name}.zarr"), str(side), *sizes, str(seed))
                print(f"{name}.zarr: {side * side} superpixels, made in {made['seconds']:.0f} s", flush=True)
        rows = []
        for head in args.heads:
            model = folder / f"model-{head}"
            if not model.exists():
                apart(*me, "train", str(folder / "train.zarr"), str(model), head, str(args.genes))
            for mode in args.modes:
                bare = apart(*me, "floor", str(args.side), *sizes)
                cli = [sys.executable, "-m", "stainseq", "predict", str(model), str(folder / "slide.zarr")]
                found = apart(*cli, "--region", "superpixels", "--mode", mode, "--key", f"pred_{head}_{mode}")
                row = {"head": head, "mode": mode, "superpixels": args.side**2, "genes": args.genes, **found}
                row |= {k: v for k, v in bare.items() if k not in found}
                row["of_floor"], row["of_matmul"] = row["seconds"] / row["floor_s"], row["seconds"] / row["matmul_s"]
                row["cpu_of_floor"] = row["cpu_s"] / row["floor_cpu_s"]
                rows.append(row)
                print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
