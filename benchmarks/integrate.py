"""Integration of the three labelled mouse cortex sections: joint domains against those of each section alone.

    python benchmarks/integrate.py --methods kriging kmeans spagcn --seeds 5

Data: starmap/mpfc_*.h5ad in the folder named by STAINSEQ_DATA, else ../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

import stainseq as ss
from stainseq import registry
from stainseq.core.clusters import adjusted_rand

DATA = Path(os.environ.get("STAINSEQ_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
NAMES = ("BZ5", "BZ9", "BZ14")
CORRECTIONS = (None, "none", "centre", "harmony")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=[row["name"] for row in registry.describe("domains")])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    import anndata

    tables = [anndata.read_h5ad(DATA / "starmap" / f"mpfc_{name}.h5ad") for name in NAMES]
    truth = {name: t.obs["domain"].astype(str).to_numpy() for name, t in zip(NAMES, tables, strict=True)}
    seeds = range(args.seeds)
    print("| method | correction | " + " | ".join(NAMES) + " | worst loss against alone | mixing | seconds |")
    print("|---" * (len(NAMES) + 5) + "|")
    for method in args.methods:
        alone = np.array(
            [
                [
                    adjusted_rand(
                        ss.tl.domains(t.copy(), n_domains=4, method=method, seed=s)["refined"].to_numpy(), truth[n]
                    )
                    for n, t in zip(NAMES, tables, strict=True)
                ]
                for s in seeds
            ]
        )
        print(f"| {method} | each alone | " + cells(alone) + " | | | |", flush=True)
        for how in CORRECTIONS if method in ("kmeans", "kriging") else (None,):
            joint, mixing, start = [], [], time.perf_counter()
            for s in seeds:
                found = ss.tl.integrate([t.copy() for t in tables], n_domains=4, method=method, correction=how, seed=s)
                mixing.append(found.attrs["mixing"])
                by = {n: found.loc[found["sample"] == n, "refined"].to_numpy() for n in NAMES}
                joint.append([adjusted_rand(by[n], truth[n]) for n in NAMES])
            loss = float((alone.mean(axis=0) - np.mean(joint, axis=0)).max())
            seconds = (time.perf_counter() - start) / len(seeds)
            print(
                f"| {method} | {how or 'its own'} | {cells(np.array(joint))} | {loss:+.3f} | "
                f"{np.mean(mixing):.3f} ± {np.std(mixing):.3f} | {seconds:.1f} |",
                flush=True,
            )


def cells(scores: np.ndarray) -> str:
    return " | ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(scores.mean(axis=0), scores.std(axis=0), strict=True))


if __name__ == "__main__":
    main()
