"""Superpixels: what the fast recipe of the pixel2gene head reaches, and at what cost, beside the published one.

    python benchmarks/superpixels.py reference --slide 0            # 600 epochs, about 10 CPU minutes
    python benchmarks/superpixels.py ours --slide 0                 # the fast recipe, ridge, gene mean, ceiling
    python benchmarks/superpixels.py reference --slide 3 --size small --seed 1
    python benchmarks/superpixels.py show                           # the table of all that was run

Slides are generated: a law from morphology to expression is planted on real tissue (`datasets.planted`), with noise,
genes that no picture tells and a known ceiling. The folds are the publication's: blocks of 8 x 8 superpixels, dealt to
ten folds; the first is held out. Features are the same for all: EfficientNet-Lite0's tokens of 8 um and colour
statistics at three scales, standardised on the training rows (the publication's features are layer-normalised). CPU
seconds are those of the process, on one thread; evaluation is not counted. Whatever is tuned is tuned with `--inner`,
which splits the training part once more and never looks at the held-out fold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "superpixels.json"
CHECKPOINTS = (1, 10, 25, 50, 100, 150, 200, 250, 300, 400, 450, 500, 600)
CLOCK = time.process_time


def slide(number: int, size: str, n_genes: int, cache: Path) -> dict[str, np.ndarray]:
    """Features, counts, rates and places of the superpixels on tissue; kept between runs."""
    file = cache / f"{size}-{number}-{n_genes}.npz"
    if file.is_file():
        return dict(np.load(file))
    import cv2

    from stainseq import encoders
    from stainseq.datasets import planted

    truth = planted(size=size, n_genes=n_genes, seed=number)
    n = len(truth.tissue)
    px = truth.rgb.shape[0] // n
    parts = [_tokens(truth.rgb, encoders.load("lite0-multi", device="cpu"), px)]
    colour = _tokens(truth.rgb, encoders.load("colour", device="cpu"), px)
    parts += [colour, *(cv2.GaussianBlur(colour, (0, 0), s, borderType=cv2.BORDER_REFLECT) for s in (1.5, 4.0))]
    row, column = np.nonzero(truth.tissue)
    found = {
        "X": np.concatenate([p[row, column] for p in parts], axis=1).astype(np.float16),
        "counts": truth.draw(number)[row, column],
        "rate": (truth.rate * truth.depth[..., None])[row, column],
        "row": row,
        "column": column,
        "kind": np.array(truth.kinds),
    }
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(file, **found)
    return found


def _tokens(rgb: np.ndarray, encoder: Any, px: int) -> np.ndarray:
    """One token per superpixel, float32 [n, n, d]: windows of 14 x 14, of which the inner 8 x 8 are kept."""
    n, halo, core = rgb.shape[0] // px, 3, 8
    wide = np.pad(rgb, ((halo * px, (halo + core) * px), (halo * px, (halo + core) * px), (0, 0)), mode="reflect")
    side, out = 14 * px, None
    for y in range(0, n, core):
        windows = np.stack([wide[y * px : y * px + side, x * px : x * px + side] for x in range(0, n, core)])
        tokens = encoder.tokens(windows)[:, halo : halo + core, halo : halo + core]
        if out is None:
            out = np.zeros((n + core, n + core, tokens.shape[-1]), np.float32)
        for i, x in enumerate(range(0, n, core)):
            out[y : y + core, x : x + core] = tokens[i]
    return out[:n, :n]


def folds_of(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The publication's folds: GroupKFold(10) of blocks of 8 x 8, numbered without collisions."""
    from sklearn.model_selection import GroupKFold

    block = (row // 8) * (column.max() // 8 + 1) + column // 8
    out = np.empty(len(row), dtype=int)
    for k, (_, test) in enumerate(GroupKFold(10).split(block, groups=block)):
        out[test] = k
    return out


def split(data: dict[str, np.ndarray], inner: bool) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows: fold 0 is held out; with `inner`, fold 1 is, and fold 0 is not looked at."""
    fold = folds_of(data["row"], data["column"])
    return (np.flatnonzero(fold > 1), np.flatnonzero(fold == 1)) if inner else (
        np.flatnonzero(fold > 0), np.flatnonzero(fold == 0))  # fmt: skip


def standardised(X: np.ndarray, train: np.ndarray) -> np.ndarray:
    """float32, by mean and deviation of the training rows."""
    X = X.astype(np.float32)
    mean, sd = X[train].mean(axis=0), X[train].std(axis=0)
    return np.clip((X - mean) / np.where(sd > 1e-6, sd, 1), -5, 5)


def scores(guess: np.ndarray, data: dict[str, np.ndarray], test: np.ndarray) -> dict[str, float]:
    """Mean over genes of the correlation with counts and with expected counts, all genes and those a picture tells."""
    from stainseq.core.metrics import pearson

    told = data["kind"] == "morphology"
    to_counts = np.nan_to_num(pearson(guess, data["counts"][test].astype(float)))
    to_rate = np.nan_to_num(pearson(guess, data["rate"][test].astype(float)))
    return {
        "pcc": float(to_counts.mean()),
        "pcc_rate": float(to_rate.mean()),
        "pcc_told": float(to_counts[told].mean()),
        "pcc_rate_told": float(to_rate[told].mean()),
    }


def reference(data: dict[str, np.ndarray], *, seed: int, inner: bool) -> dict[str, Any]:
    """The published network and recipe, looked at on the way."""
    import torch

    from stainseq.heads import pixel2gene

    train, test = split(data, inner)
    X, Y = standardised(data["X"], train), data["counts"].astype(np.float32)
    low, span = Y[train].min(axis=0), np.ptp(Y[train], axis=0)
    x, y = torch.from_numpy(X[train]), torch.from_numpy((Y[train] - low) / np.where(span > 0, span, 1))
    n = len(train)
    lr, batch = pixel2gene.rate_of(n), min(128, n // 16)
    torch.manual_seed(seed)
    net = pixel2gene.network(x.shape[1], y.shape[1])
    spent, rows, start = 0.0, [], CLOCK()

    def look(epoch: int) -> None:
        nonlocal spent, start
        if epoch not in CHECKPOINTS:
            return
        spent += CLOCK() - start
        with torch.no_grad():
            guess = net(torch.from_numpy(X[test])).numpy() * span + low
            own = net(x[::10]).numpy() * span + low
        rows.append({"epoch": epoch, "cpu_s": round(spent, 1), **scores(guess, data, test)})
        rows[-1]["pcc_train"] = scores(own, data, train[::10])["pcc"]
        print(rows[-1], flush=True)
        start = CLOCK()

    pixel2gene.train(net, x, y, epochs=CHECKPOINTS[-1], lr=lr, batch=batch, after=look)
    return {"n": n, "features": X.shape[1], "genes": Y.shape[1], "lr": lr, "batch": batch, "epochs": rows}


def record(key: str, found: dict[str, Any]) -> None:
    """Add one run to the results, by name."""
    RESULTS.parent.mkdir(exist_ok=True)
    every = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    every[key] = {"command": "python benchmarks/superpixels.py " + " ".join(sys.argv[1:]), **found}
    RESULTS.write_text(json.dumps(dict(sorted(every.items())), indent=1) + "\n")


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["features", "reference"])
    parser.add_argument("--slide", type=int, default=0)
    parser.add_argument("--size", default="medium", choices=["small", "medium"])
    parser.add_argument("--genes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inner", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "stainseq-superpixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = slide(args.slide, args.size, args.genes, args.cache)
    print({k: v.shape for k, v in data.items()})
    if args.what == "reference":
        name = f"reference {args.size} slide {args.slide} seed {args.seed}" + (" inner" if args.inner else "")
        record(name, reference(data, seed=args.seed, inner=args.inner))


if __name__ == "__main__":
    main()
