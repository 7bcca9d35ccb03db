"""Superpixels: what the fast recipe of the pixel2gene head reaches, and at what cost, beside the published one.

    python benchmarks/superpixels.py reference --slide 0            # 600 epochs, about 10 CPU minutes
    python benchmarks/superpixels.py ours --slide 0                 # the fast recipe, ridge, gene mean, ceiling
    python benchmarks/superpixels.py reference --slide 3 --size small --seed 1
    python benchmarks/superpixels.py enhance --slide 0              # thinned counts through the whole pipeline
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
from scipy import sparse

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


def split(data: dict[str, np.ndarray], inner: bool) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows: fold 0 is held out; with `inner`, fold 1 is, and fold 0 is not looked at."""
    from stainseq.core.superpixels import folds

    shape = int(data["row"].max()) + 1, int(data["column"].max()) + 1
    fold = folds(data["row"], data["column"], shape=shape)
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


def ours(data: dict[str, np.ndarray], *, seed: int, inner: bool) -> dict[str, Any]:
    """The fast recipe with each loss, ridge, gene mean, and the best that could be."""
    from stainseq.core import ceiling
    from stainseq.core.normalize import normalized
    from stainseq.heads import pixel2gene, ridge

    train, test = split(data, inner)
    places = np.column_stack([data["column"], data["row"]]) * 8.0
    raw, one = data["counts"][train], np.ones(len(train))
    counts = raw.astype(np.float32)
    logs = normalized(sparse.csr_array(raw), library=one, kind="raw")
    found: dict[str, Any] = {"n": len(train), "features": data["X"].shape[1], "genes": counts.shape[1]}

    def run(name: str, head: Any, Y: np.ndarray, back: Any, **options: Any) -> None:
        start = CLOCK()
        state = head.fit(data["X"][train], Y, coordinates=places[train], seed=seed, **options)
        spent = CLOCK() - start
        guess = back(head.predict(state, data["X"][test].astype(np.float32))[0])
        found[name] = {"cpu_s": round(spent, 2), **scores(guess, data, test)}
        print(name, found[name], flush=True)

    exposed = {"counts": raw, "library": one, "target": 1.0}
    run("fast, poisson", pixel2gene, logs, np.expm1, **exposed)
    run("fast, mse on counts", pixel2gene, counts, np.asarray, loss="mse")
    run("ridge on counts", ridge, counts, np.asarray)
    limit = ceiling.noise_ceiling(sparse.csr_array(data["counts"][test]), normalize="raw", seed=0)["pearson"]
    found["rate itself"] = scores(data["rate"][test], data, test)
    found["ceiling by count splitting"] = {"pcc": float(np.nanmean(limit))}
    found["gene mean"] = {"pcc": 0.0, "note": "a constant ranks nothing"}
    return found


def enhance(number: int, size: str, *, encoder: str, work: Path, seed: int) -> dict[str, Any]:
    """From the vendor's folder to enhanced maps of thinned counts, and their errors to what was left out."""
    import stainseq as ss
    from stainseq import regions, store

    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        root = Path(folder)
        truth = ss.datasets.xenium(root / "run", size=size, n_genes=60, seed=number)
        ss.io.convert(root / "run", root / "slide.zarr")
        slide_ = ss.io.open(root / "slide.zarr")
        ss.pp.superpixels(slide_)
        ss.pp.aggregate(slide_, region="superpixels")
        ss.pp.features(slide_, region="superpixels", encoder=encoder)
        where, table = regions.get(slide_, "superpixels"), slide_["counts_superpixels"]
        genes = [str(g) for g in table.var_names]
        whole = np.asarray(table[where.ids].X.todense(), dtype=np.int64)
        rate = _rate_under(truth, where)[:, [truth.names.index(g) for g in genes]]
        out: dict[str, Any] = {"superpixels": len(where.ids), "genes": len(genes), "encoder": encoder}
        for keep in (0.10, 0.25, 0.50):
            kept = np.random.default_rng([seed, int(keep * 100)]).binomial(whole, keep)
            thin = table[where.ids].copy()
            thin.X = sparse.csr_matrix(kept)
            name = f"kept_{keep * 100:.0f}"
            store.write_element(slide_, name, thin, step="thin", parameters={"keep": keep})
            start = CLOCK()
            metrics = ss.tl.train(
                slide_, out=root / name, region="superpixels", encoder=encoder, head="pixel2gene", normalize="raw",
                table_key=name, genes=genes, split="block", block_um=200.0 if size != "small" else 100.0, seed=seed,
            )  # fmt: skip
            spent = CLOCK() - start
            ss.tl.predict(root / name, slide_, region="superpixels", mode="enhance", truth=name, key_added="out")
            maps = _maps(slide_["out"], kept / keep, keep, where)
            goals = {"discarded": (whole - kept) / (1 - keep), "rate": rate}
            level = np.sqrt(np.maximum(rate.mean(axis=0), 1e-9))
            errors = {
                to: {m: float(np.mean(np.sqrt(np.mean((v - goal) ** 2, axis=0)) / level)) for m, v in maps.items()}
                for to, goal in goals.items()
            }
            for each in errors.values():  # the smoothing of the best bandwidth, chosen by the truth itself
                widths = [k for k in each if k.startswith("smoothed")]
                best = min(widths, key=lambda k: each[k])
                each["smoothed"], each["best bandwidth"] = each[best], float(best.split()[1])
                for k in widths:
                    del each[k]
            weight = np.asarray(slide_["out"].layers["weight"])
            out[f"keep {keep:.0%}"] = {
                **errors,
                "mean weight": float(weight.mean()),
                "pearson": metrics["summary"]["pearson"],
                "cpu_s of training": round(spent, 1),
            }
            print(keep, json.dumps(out[f"keep {keep:.0%}"]), flush=True)
    return out


def _maps(table: Any, measured: np.ndarray, keep: float, where: Any) -> dict[str, np.ndarray]:
    """Every map in counts at full depth."""
    import cv2

    row, column = where.geometry.rows, where.geometry.cols
    row, column = row - row.min(), column - column.min()
    canvas = np.zeros((row.max() + 1, column.max() + 1, measured.shape[1]))
    canvas[row, column], there = measured, np.zeros(canvas.shape[:2])
    there[row, column] = 1
    maps = {
        "enhanced": np.expm1(np.asarray(table.X)) / keep,
        "measured": measured,
        "predicted": np.expm1(np.asarray(table.layers["predicted"])) / keep,
    }
    for sigma in (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0):
        size = (2 * int(np.ceil(3 * sigma)) + 1,) * 2
        weight = cv2.GaussianBlur(there, size, sigma, borderType=cv2.BORDER_CONSTANT)[row, column]
        total = np.stack([cv2.GaussianBlur(canvas[..., g], size, sigma, borderType=cv2.BORDER_CONSTANT)[row, column]
                          for g in range(canvas.shape[2])], axis=1)  # fmt: skip
        maps[f"smoothed {sigma}"] = total / weight[:, None]
    return maps


def _rate_under(truth: Any, where: Any) -> np.ndarray:
    """Expected counts of each superpixel, [n, genes]: the planted ones under 8 x 8 points of it."""
    per_square = truth.rate * truth.depth[..., None]
    side, out = len(per_square), 0
    for dy in (np.arange(8) + 0.5) / 8:
        for dx in (np.arange(8) + 0.5) / 8:
            at = np.column_stack([where.geometry.cols + dx, where.geometry.rows + dy, np.ones(len(where.ids))])
            um = at @ np.asarray(where.geometry.transform).T
            x, y = (np.floor(um[:, k] / um[:, 2] / 8.0).astype(int) for k in (0, 1))
            inside = (x >= 0) & (y >= 0) & (x < side) & (y < side)
            values = per_square[np.clip(y, 0, side - 1), np.clip(x, 0, side - 1)]
            out = out + np.where(inside[:, None], values, 0) / 64
    return out


def show() -> None:
    """Print what stands in the results, one line a run."""
    for name, found in json.loads(RESULTS.read_text()).items():
        print(f"\n{name}: {found['command']}")
        rows = found.get("epochs") or [{"what": k, **v} for k, v in found.items() if isinstance(v, dict)]
        for row in rows:
            print("  ", json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))


def record(key: str, found: dict[str, Any]) -> None:
    """Add one run to the results, by name."""
    RESULTS.parent.mkdir(exist_ok=True)
    every = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    told = " ".join(sys.argv[1:]).split(" --cache")[0]  # where the cache lies says nothing
    every[key] = {"command": f"python benchmarks/superpixels.py {told}", **found}
    RESULTS.write_text(json.dumps(dict(sorted(every.items())), indent=1) + "\n")


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["features", "reference", "ours", "enhance", "show"])
    parser.add_argument("--slide", type=int, default=0)
    parser.add_argument("--size", default="medium", choices=["small", "medium"])
    parser.add_argument("--genes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inner", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "stainseq-superpixels")
    parser.add_argument("--encoder", default="lite0-multi")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "show":
        show()
        return
    if args.what == "enhance":
        name = f"enhance {args.size} slide {args.slide}"
        record(name, enhance(args.slide, args.size, encoder=args.encoder, work=args.cache, seed=args.seed))
        return
    data = slide(args.slide, args.size, args.genes, args.cache)
    print({k: v.shape for k, v in data.items()})
    if args.what == "reference":
        name = f"reference {args.size} slide {args.slide} seed {args.seed}" + (" inner" if args.inner else "")
        record(name, reference(data, seed=args.seed, inner=args.inner))
    elif args.what == "ours":
        name = f"ours {args.size} slide {args.slide} seed {args.seed}" + (" inner" if args.inner else "")
        record(name, ours(data, seed=args.seed, inner=args.inner))


if __name__ == "__main__":
    main()
