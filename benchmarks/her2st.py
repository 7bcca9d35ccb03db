"""How well histology predicts expression on real tissue, and what each part of stainseq adds.

    python benchmarks/her2st.py --data ../shared/data/her2st --cache ~/.cache/stainseq-her2st --json her2st.json

Sections C2, C3, C4 of one patient are left out in turn; then all three predict B4 of another patient. Everything
(genes, scaling, components, penalties, epochs) is chosen on the training sections. Prints markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from her2st_data import Section, common_genes, counts_of, features, load, seconds_per_spot
from scipy import sparse

from stainseq import registry
from stainseq.core import ceiling, genes, metrics, normalize, scores
from stainseq.core.neighbors import knn_graph, neighbour_mean

JOINED = ("lite0-multi2+shell", "lite0-multi2+morphology", "lite0-multi2+shell+morphology")
WORDS = {
    "colour": "colour statistics",
    "morphology": "classical texture and nuclei, 112 um",
    "morphology2": "classical texture and nuclei, 112 + 224 um",
    "random-resnet18": "untrained ResNet18",
    "shell": "H&E-trained SHELL",
    "lite0": "lite0, last layer",
    "lite0-multi": "lite0, all stages, 112 um",
    "lite0-multi224": "lite0, all stages, 224 um",
    "lite0-multi2": "lite0, all stages, 112 + 224 um",
}
SINGLE = tuple(WORDS)
TESTS = ("C2", "C3", "C4", "B4")
PARTS = {"C": TESTS[:3], "B4": TESTS[3:]}
CONTEXT = {"context_k": 8}  # the first ring of a square array
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "gene mean": ("mean", {}),
    "hest": ("hest", {}),
    "ridge": ("ridge", {}),
    "ridge, slides z-scored": ("ridge", {"per_slide": True}),
    "ridge + denoised (spatial)": ("ridge", {"denoise": "spatial"}),
    "ridge + denoised (low rank)": ("ridge", {"denoise": "lowrank"}),
    "ridge + context": ("ridge", CONTEXT),
    "ridge + context + denoised (spatial)": ("ridge", {**CONTEXT, "denoise": "spatial"}),
    "knn": ("knn", {}),
    "knn + context": ("knn", CONTEXT),
    "mlp, one network": ("mlp", {"members": 1}),
    "mlp, ensemble of 8": ("mlp", {}),
    "mlp, one network + context": ("mlp", {"members": 1, **CONTEXT}),
    "mlp, ensemble of 8 + context": ("mlp", CONTEXT),
}
MIXED = "ridge and mlp + context, mean"
ENSEMBLE = "mlp, ensemble of 8 + context"
STEPS = (
    ("context, in the ridge", "ridge + context", "ridge"),
    ("context, in the ensemble", ENSEMBLE, "mlp, ensemble of 8"),
    ("denoised targets, spatial", "ridge + denoised (spatial)", "ridge"),
    ("denoised targets, low rank", "ridge + denoised (low rank)", "ridge"),
    ("denoised targets, spatial, on top of context", "ridge + context + denoised (spatial)", "ridge + context"),
    ("ensembling: 8 networks against one", "mlp, ensemble of 8", "mlp, one network"),
    ("ensembling, with context: 8 networks against one", ENSEMBLE, "mlp, one network + context"),
    ("ensembling: ridge and networks, with context, against the networks", MIXED, ENSEMBLE),
    ("network instead of a line", "mlp, ensemble of 8", "ridge"),
    ("network instead of a line, both with context", ENSEMBLE, "ridge + context"),
    ("all of it against plain ridge", MIXED, "ridge"),
)


@dataclass
class Task:
    """Train on some sections, test on one."""

    train: list[Section]
    test: Section
    names: np.ndarray
    Y: np.ndarray
    T: np.ndarray
    raw: tuple[np.ndarray, np.ndarray]
    slides: np.ndarray
    ceiling: float
    oracle: float
    predictions: dict[str, np.ndarray] = field(default_factory=dict)

    def pearson(self, name: str) -> float:
        """Mean over genes; a constant prediction counts 0."""
        return float(np.nan_to_num(metrics.pearson(self.T, self.predictions[name])).mean())


def make_task(train: list[Section], test: Section, n_genes: int) -> Task:
    names = common_genes([*train, test])
    stacked = sparse.vstack([counts_of(s, names) for s in train], format="csr")
    slides = np.repeat(np.arange(len(train)), [s.counts.shape[0] for s in train])
    top = genes.highly_variable(stacked, n_top=n_genes, batches=slides)

    def targets(s: Section) -> np.ndarray:
        return normalize.log1p_cp10k(counts_of(s, names[top]), library=s.library).toarray()

    def raw(s: Section) -> np.ndarray:
        return normalize.log1p_raw(counts_of(s, names[top])).toarray()

    T = targets(test)
    best = ceiling.noise_ceiling(counts_of(test, names[top]), library=test.library)["pearson"]
    near = neighbour_mean(knn_graph(test.coordinates, k=8), T)
    return Task(
        train=train,
        test=test,
        names=names[top],
        Y=np.concatenate([targets(s) for s in train]),
        T=T,
        raw=(np.concatenate([raw(s) for s in train]), raw(test)),
        slides=slides,
        ceiling=float(np.nanmean(best)),
        oracle=float(np.nanmean(metrics.pearson(T, near))),
    )


def run(
    task: Task,
    X: dict[str, np.ndarray],
    head: str,
    options: dict[str, Any],
    *,
    Y: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    module = registry.load("heads", head)
    state = module.fit(
        np.concatenate([X[s.name] for s in task.train]),
        task.Y if Y is None else Y,
        coordinates=np.concatenate([s.coordinates for s in task.train]),
        slides=task.slides,
        groups=task.slides,
        seed=seed,
        **options,
    )
    mean, _ = module.predict(state, X[task.test.name], coordinates=task.test.coordinates)
    return mean


def encoder_scores(
    tasks: dict[str, Task], X: dict[str, dict[str, np.ndarray]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Pearson by encoder, head (ridge, hest, raw = ridge on log1p of raw counts) and test section."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for name in (*SINGLE, *JOINED):
        out[name] = {"ridge": {}, "hest": {}, "raw": {}}
        for test, task in tasks.items():
            for head in ("ridge", "hest"):
                key = f"{name}/{head}"
                task.predictions[key] = run(task, X[name], head, {})
                out[name][head][test] = task.pearson(key)
            guess = run(task, X[name], "ridge", {}, Y=task.raw[0])
            out[name]["raw"][test] = float(np.nan_to_num(metrics.pearson(task.raw[1], guess)).mean())
        print(f"<!-- {name}: {out[name]['ridge']} -->", flush=True)
    return out


def choose_default(table: dict[str, dict[str, dict[str, float]]], cost: dict[str, float]) -> dict[str, Any]:
    """The cheapest encoder whose loss to the best, paired over the C sections, is within its standard error."""
    values = {n: np.array([r["ridge"][s] for s in TESTS[:3]]) for n, r in table.items()}
    best = max(values, key=lambda n: values[n].mean())
    rows = {}
    for name, v in values.items():
        gap = values[best] - v
        error = float(gap.std(ddof=1) / np.sqrt(3))
        own = float(values[best].std(ddof=1) / np.sqrt(3))
        rows[name] = {
            "gap": float(gap.mean()),
            "gap_error": error,
            "within": bool(gap.mean() <= error),
            "within_unpaired": bool(gap.mean() <= own),
        }
    chosen = min((n for n in rows if rows[n]["within"]), key=cost.__getitem__)
    loose = min((n for n in rows if rows[n]["within_unpaired"]), key=cost.__getitem__)
    return {"best": best, "default": chosen, "default_by_unpaired_rule": loose, "candidates": rows}


def several_seeds(name: str) -> bool:
    """A single network depends on its seed."""
    return "one network" in name


def head_scores(tasks: dict[str, Task], X: dict[str, np.ndarray], seeds: int) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    seconds: dict[str, list[float]] = {}
    for name, (head, options) in HEADS.items():
        out[name] = {}
        for test, task in tasks.items():
            start = time.perf_counter()
            task.predictions[name] = run(task, X, head, options)
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            out[name][test] = task.pearson(name)
            if several_seeds(name):
                guesses = [run(task, X, head, options, seed=s) for s in range(1, seeds)]
                more = [np.nan_to_num(metrics.pearson(task.T, p)).mean() for p in guesses]
                out[name][test] = float(np.mean([out[name][test], *more]))
        print(f"<!-- {name}: {out[name]}, {np.mean(seconds[name]):.1f} s a fit -->", flush=True)
    out[MIXED] = {}
    for test, task in tasks.items():
        task.predictions[MIXED] = (task.predictions["ridge + context"] + task.predictions[ENSEMBLE]) / 2
        out[MIXED][test] = task.pearson(MIXED)
    return out


def paired(tasks: dict[str, Task], first: str, second: str, tests: tuple[str, ...]) -> dict[str, Any]:
    """Difference and ratio with intervals over blocks of tissue, folds apart.

    Column j is the j-th gene chosen in the fold's own training sections: sets differ a little between folds.
    """
    used = [tasks[t] for t in tests]
    number = np.repeat(np.arange(len(used)), [len(t.T) for t in used])
    return scores.compare(
        np.concatenate([t.T for t in used]),
        np.concatenate([t.predictions[first] for t in used]),
        np.concatenate([t.predictions[second] for t in used]),
        coordinates=np.concatenate([t.test.coordinates for t in used]),
        slides=number,
        folds=number,
    )


def interval(tasks: dict[str, Task], name: str, tests: tuple[str, ...]) -> list[float | None]:
    """Interval of the mean Pearson over blocks of tissue."""
    used = [tasks[t] for t in tests]
    number = np.repeat(np.arange(len(used)), [len(t.T) for t in used])
    return scores.score(
        np.concatenate([t.T for t in used]),
        np.concatenate([t.predictions[name] for t in used]),
        genes=[str(j) for j in range(used[0].T.shape[1])],
        coordinates=np.concatenate([t.test.coordinates for t in used]),
        slides=number,
        folds=number,
        ssim=False,
    )["summary"]["interval"]


def step(table: dict[str, dict[str, float]], first: str, second: str) -> dict[str, float]:
    gap = np.array([table[first][t] - table[second][t] for t in TESTS[:3]])
    return {
        "gain": float(gap.mean()),
        "error": float(gap.std(ddof=1) / np.sqrt(3)),
        "B4": table[first]["B4"] - table[second]["B4"],
    }


def mean_c(row: dict[str, float]) -> float:
    return float(np.mean([row[t] for t in TESTS[:3]]))


def header(*cells: str) -> list[str]:
    return ["", "| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]


def markdown(result: dict[str, Any]) -> str:
    parts = (_encoders, _choice, _ratios, _heads, _steps)
    return "\n".join(line for part in parts for line in part(result))


def _encoders(result: dict[str, Any]) -> list[str]:
    lines = ["### Encoders", *header(
        "features", "dim", "CPU ms a spot", "C2", "C3", "C4", "mean of C", "HEST's ridge, mean of C", "C to B4",
        "HEST's ridge, C to B4", "raw counts, mean of C", "raw counts, C to B4",
    )]  # fmt: skip
    lines.append("| gene mean (0 by convention) | | | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |")
    for name, row in result["encoders"].items():
        r, h, raw = row["ridge"], row["hest"], row["raw"]
        mark = "**" if name == result["choice"]["default"] else ""
        first, *others = name.split("+")
        words = " + ".join([WORDS[first], *others])
        lines.append(
            f"| {mark}{words}{mark} (`{name}`) | {row['dim']} | {row['ms']:.0f} | {r['C2']:.3f} | {r['C3']:.3f} | "
            f"{r['C4']:.3f} | {mark}{mean_c(r):.3f}{mark} | {mean_c(h):.3f} | {r['B4']:.3f} | {h['B4']:.3f} | "
            f"{mean_c(raw):.3f} | {raw['B4']:.3f} |"
        )
    for label, key in (("true expression of the 8 nearest spots", "oracle"), ("noise ceiling", "ceiling")):
        v = result[key]
        cells = f"{v['C2']:.3f} | {v['C3']:.3f} | {v['C4']:.3f} | {mean_c(v):.3f} | | {v['B4']:.3f}"
        lines.append(f"| {label} | | | {cells} | | | |")
    return lines


def _choice(result: dict[str, Any]) -> list[str]:
    choice = result["choice"]
    lines = ["", "### Choice of the default encoder", *header("features", "behind the best", "paired standard error")]
    for name, row in sorted(choice["candidates"].items(), key=lambda item: item[1]["gap"]):
        lines.append(f"| `{name}` | {row['gap']:.4f} | {row['gap_error']:.4f} |")
    return [*lines, "", f"Best `{choice['best']}`; cheapest within one paired standard error: `{choice['default']}`; "
            f"within one standard error of the best's own mean: `{choice['default_by_unpaired_rule']}`."]  # fmt: skip


def _ratios(result: dict[str, Any]) -> list[str]:
    lines = ["", "### Ratios, with 95 % intervals over blocks of tissue", *header("what", "C2, C3, C4", "C to B4")]
    for label, pair in result["ratios"].items():
        cells = []
        for part in ("C", "B4"):
            p = pair[part]
            low, high = p["ratio_interval"]
            a, b = p["difference_interval"]
            # A ratio of two numbers near zero says nothing: across patients only the difference is given.
            ratio = f"{p['ratio']:.2f} ({low:.2f} to {high:.2f}), " if part == "C" else ""
            cells.append(f"{ratio}difference {p['difference']:+.3f} ({a:+.3f} to {b:+.3f})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _heads(result: dict[str, Any]) -> list[str]:
    lines = ["", f"### Heads, on `{result['choice']['default']}`"]
    lines += header("head", "C2", "C3", "C4", "mean of C (95 % interval)", "C to B4 (95 % interval)")
    for name, r in result["heads"].items():
        # The interval is that of one seed: where the mean of several is shown, it would be another thing's.
        spans = result["intervals"][name] if not several_seeds(name) else {}
        c, b = (f" ({spans[p][0]:.3f} to {spans[p][1]:.3f})" if spans and name != "gene mean" else "" for p in PARTS)
        lines.append(
            f"| {name} | {r['C2']:.3f} | {r['C3']:.3f} | {r['C4']:.3f} | {mean_c(r):.3f}{c} | {r['B4']:.3f}{b} |"
        )
    return lines


def _steps(result: dict[str, Any]) -> list[str]:
    lines = ["", "### What each step added"]
    lines += header("step", "gain on C ± standard error over sections", "95 % interval over blocks", "on B4")
    for label, s in result["steps"].items():
        span = f"{s['interval'][0]:+.3f} to {s['interval'][1]:+.3f}" if s["interval"] else ""
        lines.append(f"| {label} | {s['gain']:+.3f} ± {s['error']:.3f} | {span} | {s['B4']:+.3f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("STAINSEQ_DATA", "../shared/data")) / "her2st")
    parser.add_argument("--cache", type=Path, required=True, help="folder for features")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--genes", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=4, help="single networks that are averaged")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    sections = {name: load(args.data, name) for name in TESTS}
    X: dict[str, dict[str, np.ndarray]] = {n: {} for n in (*SINGLE, *JOINED)}
    for s in sections.values():
        for name in SINGLE:
            X[name][s.name] = features(s, name, args.cache, args.threads)
        for name in JOINED:
            X[name][s.name] = np.concatenate([X[part][s.name] for part in name.split("+")], axis=1)
    ms = {name: 1000 * seconds_per_spot(sections["C2"], name) for name in SINGLE}
    ms |= {name: sum(ms[part] for part in name.split("+")) for name in JOINED}
    tasks = {t: make_task([sections[s] for s in TESTS[:3] if s != t], sections[t], args.genes) for t in TESTS}
    table = encoder_scores(tasks, X)
    choice = choose_default(table, ms)
    chosen = choice["default"]
    heads = head_scores(tasks, X[chosen], args.seeds)
    ratios = {
        f"ensemble with context over our ridge, `{chosen}`": (ENSEMBLE, "ridge"),
        f"ensemble with context over HEST's ridge, `{chosen}`": (ENSEMBLE, "hest"),
        f"`{chosen}` over `lite0`, both ridge": (f"{chosen}/ridge", "lite0/ridge"),
        "`lite0-multi2` over `lite0`, both ridge": ("lite0-multi2/ridge", "lite0/ridge"),
        f"`{chosen}` over `lite0-multi2`, both ridge": (f"{chosen}/ridge", "lite0-multi2/ridge"),
        f"our ridge over HEST's, `{chosen}`": (f"{chosen}/ridge", f"{chosen}/hest"),
        "our ridge over HEST's, `lite0-multi2`": ("lite0-multi2/ridge", "lite0-multi2/hest"),
        "our ridge over HEST's, `lite0`": ("lite0/ridge", "lite0/hest"),
    }
    result = {
        "protocol": {"genes": args.genes, "target": "log1p of counts per 10,000", "train": "C2, C3, C4 but the tested"},
        "spots": {n: s.counts.shape[0] for n, s in sections.items()},
        "mpp": {n: s.mpp for n, s in sections.items()},
        "genes": {n: t.names.tolist() for n, t in tasks.items()},
        "encoders": {n: {**row, "dim": X[n]["C2"].shape[1], "ms": ms[n]} for n, row in table.items()},
        "choice": choice,
        "oracle": {n: t.oracle for n, t in tasks.items()},
        "ceiling": {n: t.ceiling for n, t in tasks.items()},
        "ratios": {k: {p: paired(tasks, *v, t) for p, t in PARTS.items()} for k, v in ratios.items()},
        "heads": heads,
        "intervals": {n: {p: interval(tasks, n, t) for p, t in PARTS.items()} for n in (*HEADS, MIXED)},
        "steps": {
            k: {
                **step(heads, a, b),
                "interval": None if several_seeds(b) else paired(tasks, a, b, PARTS["C"])["difference_interval"],
            }
            for k, a, b in STEPS
        },
    }
    print(markdown(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
