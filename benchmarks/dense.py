"""Features of superpixels: a window around each against dense maps, in time and in what they tell of expression.

    python benchmarks/dense.py                      # accuracy and time on a generated slide of 1.1 mm
    python benchmarks/dense.py --side-mm 6.5        # time and memory of dense features alone, 660,000 superpixels
    python benchmarks/dense.py --floors             # operations and bytes, counted

Accuracy: planted expression (`stainseq.datasets.planted`), superpixels in four folds of blocks of 136 um, ridge with
its own choice of penalty inside the training blocks, mean Pearson over the genes that morphology tells, against the
counts and against the planted rate. Windows are encoded for every second superpixel along both axes (``--every``), for
they take that long; both are trained and scored on these. Seconds are CPU seconds of all threads: on a shared machine
wall time says more about the neighbours.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from stainseq import datasets, dense, encoders, engine
from stainseq._settings import settings
from stainseq.core.metrics import pearson
from stainseq.heads import ridge
from stainseq.image import LevelStack
from stainseq.regions.grid import Grid
from stainseq.regions.model import Region

PITCH_UM = 8.0
BLOCK, FOLDS = 17, 4


def stack(rgb: np.ndarray, mpp: float, name: str) -> LevelStack:
    """A pyramid in memory."""
    import cv2

    levels, sizes = [rgb], [1.0]
    while min(levels[-1].shape[:2]) > 512:
        h, w = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (w // 2, h // 2), interpolation=cv2.INTER_AREA))
        sizes.append(sizes[-1] * 2)
    planes = tuple(np.ascontiguousarray(np.moveaxis(a, -1, 0)) for a in levels)
    return LevelStack(planes, tuple(sizes), np.diag([mpp, mpp, 1.0]), mpp, name)


def superpixels(shape: tuple[int, int], keep: np.ndarray) -> Region:
    """Those of a grid of 8 um at the image's corner that are kept."""
    rows, cols = np.nonzero(keep)
    centres = np.column_stack([cols + 0.5, rows + 0.5]) * PITCH_UM
    grid = Grid(rows.astype(np.int32), cols.astype(np.int32), shape, np.diag([PITCH_UM, PITCH_UM, 1.0]))
    return Region("superpixels", "grid", centres, grid, lambda: np.arange(len(rows)).astype(str))


def timed(run) -> tuple:
    """Result, CPU seconds and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    out = run()
    return out, time.process_time() - cpu, time.perf_counter() - wall


def held_out(X: np.ndarray, counts: np.ndarray, rate: np.ndarray, where: Region) -> tuple[float, float]:
    """Mean Pearson on held-out blocks, against log counts and the log of the planted rate."""
    library = counts.sum(axis=1)
    Y = np.log1p(counts / np.maximum(library, 1)[:, None] * np.median(library)).astype(np.float32)
    block = where.geometry.rows // BLOCK * 1000 + where.geometry.cols // BLOCK
    fold = np.unique(block, return_inverse=True)[1] % FOLDS
    scores = []
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        # Blocks are groups, so that the penalty is chosen on blocks that were not learned from.
        state = ridge.fit(X[train], Y[train], counts=counts[train], coordinates=where.centres_um[train],
                          slides=np.zeros(train.sum(), int), groups=block[train], seed=0)  # fmt: skip
        mean, _ = ridge.predict(state, X[test], coordinates=where.centres_um[test], slides=np.zeros(test.sum(), int))
        scores.append([np.nanmean(pearson(mean, truth[test])) for truth in (Y, np.log1p(rate))])
    return tuple(np.mean(scores, axis=0))


def accuracy(encoder: str, n_genes: int, seed: int, step: int) -> dict:
    """Windows and dense features of one slide, timed and scored."""
    slide = datasets.planted(size="medium", n_genes=n_genes, seed=seed)
    image = stack(slide.rgb, slide.mpp, f"planted-{seed}")
    network = encoders.load(encoder)
    every = superpixels(slide.tissue.shape, slide.tissue)
    rows, cols = every.geometry.rows, every.geometry.cols
    some = np.flatnonzero((rows % step == 0) & (cols % step == 0))
    told = np.array(slide.kinds) == "morphology"
    counts, rate = (a[rows[some], cols[some]][:, told] for a in (slide.draw(seed), slide.rate))
    part = every.take(some)
    # Graphs are made and compiled before the clock starts.
    engine.encode_points(image, part.centres_um[:2], network)
    dense.encode(image, every.take(np.arange(2)), network)
    (X, run), cpu, _ = timed(lambda: engine.encode_points(image, part.centres_um, network))
    out = {"windows": {"dim": X.shape[1], "ms_per_superpixel": 1e3 * cpu / run.encoded}}
    out["windows"]["pcc_counts"], out["windows"]["pcc_rate"] = held_out(np.asarray(X), counts, rate, part)
    for scales in (None, (PITCH_UM,)):
        (Z, run), cpu, _ = timed(lambda scales=scales: dense.encode(image, every, network, scales_um=scales))
        name = "dense " + " ".join(f"{s:g}" for s in dense.scales_for(every, scales))
        out[name] = {"dim": Z.shape[1], "ms_per_superpixel": 1e3 * cpu / len(every)}
        values = np.asarray(Z[some], dtype=np.float32)
        out[name]["pcc_counts"], out[name]["pcc_rate"] = held_out(values, counts, rate, part)
    return out


def large(encoder: str, side_mm: float) -> dict:
    """Dense features of a whole slide: real tissue, repeated in mirrors."""
    slide = datasets.planted(size="medium", n_genes=4, seed=0)
    n = int(np.ceil(side_mm * 1000 / PITCH_UM))
    side = int(np.ceil(n * PITCH_UM / slide.mpp))
    times = -(-side // slide.rgb.shape[0])
    row = np.concatenate([slide.rgb[:, :: -1 if i % 2 else 1] for i in range(times)], axis=1)
    rgb = np.concatenate([row[:: -1 if i % 2 else 1] for i in range(times)])[:side, :side]
    image = stack(rgb, slide.mpp, f"large-{side_mm}")
    where = superpixels((n, n), np.ones((n, n), dtype=bool))
    network = encoders.load(encoder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (X, run), cpu, wall = timed(lambda: dense.encode(image, where, network))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "superpixels": len(where), "dim": X.shape[1], "windows": run.encoded, "cpu_s": cpu, "wall_s": wall,
        "table_gb": X.nbytes / 1e9, "picture_gb": rgb.nbytes * 4 / 3 / 1e9, "peak_gb_before": before, "peak_gb": peak,
    }  # fmt: skip


def floors(side_mm: float) -> dict:
    """Operations of EfficientNet-Lite0 (0.41 G multiply-adds a 224 px image) and bytes, counted."""
    n = (side_mm * 1000 / PITCH_UM) ** 2
    each, fields = 0.82, (112.0, 224.0)
    tiles = sum((side_mm * 1000 / um) ** 2 for um in fields)
    overlap = (56 / 40) ** 2
    return {
        "superpixels": n,
        "windows_tflop": n * each * len(fields) / 1e3,
        "dense_tflop": tiles * each * overlap / 1e3,
        "windows_gb_read": n * len(fields) * 224 * 224 * 3 / 1e9,
        "dense_gb_read": tiles * overlap * 224 * 224 * 3 / 1e9,
    }


def main() -> None:
    """Run what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default=encoders.default_name())
    parser.add_argument("--side-mm", type=float)
    parser.add_argument("--genes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--floors", action="store_true")
    args = parser.parse_args()
    if args.floors:
        result = floors(args.side_mm or 6.5)
    else:
        with tempfile.TemporaryDirectory() as folder:
            settings.cache_dir = Path(folder)
            result = (
                large(args.encoder, args.side_mm) if args.side_mm else accuracy(args.encoder, args.genes, args.seed)
            )
    print(json.dumps(result, indent=1, default=float))


if __name__ == "__main__":
    main()
