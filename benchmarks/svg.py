"""Spatially variable genes: speed, memory and agreement of the tests. Prints one JSON object a run.

    python benchmarks/svg.py speed                      35,554 genes x 1,470 spots x 10 kernels
    python benchmarks/svg.py many --places 100000 --genes 200
    python benchmarks/svg.py published                  SpatialDE 1 against its table on mob_rep11
    python benchmarks/svg.py permuted                   real counts at shuffled places: tails of the null

Times are CPU seconds and wall seconds; kernels are compiled by a small run first. Data: STAINSEQ_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stainseq.svg import spatialde, spatialde2


def data_dir() -> Path:
    return Path(os.environ.get("STAINSEQ_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def timed(name: str, run: Any, **facts: Any) -> Any:
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    facts |= {"cpu_s": round(time.process_time() - cpu, 2), "wall_s": round(time.perf_counter() - wall, 2)}
    facts["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(json.dumps({"run": name, **facts}), flush=True)
    return result


def hexagon(rng: np.random.Generator, places: int) -> np.ndarray:
    row, col = (a.ravel() for a in np.meshgrid(np.arange(44), np.arange(35), indexing="ij"))
    xy = np.column_stack([(2 * col + row % 2) * 50.0, row * 50.0 * np.sqrt(3)])
    return xy[np.sort(rng.permutation(len(xy))[:places])]


def counts(rng: np.random.Generator, sizes: np.ndarray, genes: int, mean: float, spread: float) -> sparse.csc_array:
    parts = []
    width = max(1, 4_000_000 // len(sizes))
    for start in range(0, genes, width):
        g = min(width, genes - start)
        mu, alpha = np.exp(rng.normal(mean, spread, g)), np.exp(rng.normal(-0.7, 0.5, g))
        parts.append(sparse.csc_array(rng.poisson(rng.gamma(1 / alpha, alpha * mu * sizes[:, None])), dtype=np.float32))
    return sparse.csc_array(sparse.hstack(parts, format="csc"))


def speed() -> None:
    rng = np.random.default_rng(3)
    xy = hexagon(rng, 1470)
    x = counts(rng, np.exp(rng.normal(0, 0.5, len(xy))), 35_554, -2.6, 1.9)
    for compat in (False, True):
        spatialde2.score(x[:, :600], xy, genes=np.arange(600), compat=compat)
        timed("speed", lambda c=compat: spatialde2.score(x, xy, genes=np.arange(x.shape[1]), compat=c), compat=compat,
              genes=x.shape[1], places=len(xy), nonzeros=x.nnz)  # fmt: skip


def many(places: int, genes: int) -> None:
    rng = np.random.default_rng(4)
    xy = rng.uniform(0, 10 * np.sqrt(places), (places, 2))
    x = counts(rng, np.exp(rng.normal(0, 0.4, places)), genes, -3.5, 1.3)
    for k in (1, genes):
        facts = {"genes": k, "places": places, "nonzeros": x[:, :k].nnz}
        timed("many", lambda k=k: spatialde2.score(x[:, :k], xy, genes=np.arange(k), sizefactors=np.ones(places)),
              **facts)  # fmt: skip


def published() -> None:
    import pandas as pd

    folder = data_dir() / "mob_rep11"
    matrix = pd.read_csv(folder / "Rep11_MOB_counts.tsv.gz", sep="\t", index_col=0)
    table = pd.read_csv(folder / "published_SpatialDE_Rep11_MOB.csv.gz").set_index("g")
    genes = [g for g in table.index if g in matrix.columns]
    matrix, table = matrix.loc[matrix.sum(axis=1) > 10, genes], table.loc[genes]
    xy = np.array([[float(a) for a in name.split("x")] for name in matrix.index])
    for compat in (False, True):
        run = timed("published", lambda c=compat: spatialde.score(matrix.to_numpy(float), xy, genes=genes, compat=c),
                    compat=compat, genes=len(genes))  # fmt: skip
        run = run.set_index("gene")
        gain = run["LLR"] - table["LLR"]
        both = set(run.index[run["qval"] < 0.05]) & set(table.index[table["qval"] < 0.05])
        print(json.dumps({
            "llr_correlation": float(np.corrcoef(run["LLR"], table["LLR"])[0, 1]),
            "lowest_gain": float(gain.min()), "highest_gain": float(gain.max()),
            "better_by_0.1": {g: round(float(gain[g]), 4) for g in gain.index[gain > 0.1]} if not compat else None,
            "significant_in_both": len(both), "significant_published": int((table["qval"] < 0.05).sum()),
            "length_equal": float(np.isclose(run["l"], table["l"]).mean()),
        }))  # fmt: skip


def permuted() -> None:
    import h5py
    import pandas as pd

    folder = data_dir() / "visium_placenta"
    with h5py.File(next(folder.rglob("*.h5"))) as f:
        m = f["matrix"]
        x = sparse.csc_array((m["data"][:], m["indices"][:], m["indptr"][:]), shape=tuple(m["shape"][:])).T.tocsc()
        names = [b.decode() for b in m["barcodes"][:]]
    at = pd.read_csv(next(folder.rglob("tissue_positions*.csv"))).set_index("barcode").loc[names]
    xy = at[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)
    x = x[:, (x > 0).sum(axis=0) >= 10]
    order = np.random.default_rng(0).permutation(len(xy))
    for compat in (False, True):
        p = timed("permuted", lambda c=compat: spatialde2.score(x, xy[order], genes=np.arange(x.shape[1]), compat=c),
                  compat=compat, genes=x.shape[1], places=len(xy))["pval"].to_numpy()  # fmt: skip
        print(json.dumps({"below": {str(a): float((p < a).mean()) for a in (0.05, 0.01, 0.001, 0.0001)}}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "many", "published", "permuted"])
    parser.add_argument("--places", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=200)
    options = parser.parse_args()
    if options.what == "many":
        many(options.places, options.genes)
    else:
        {"speed": speed, "published": published, "permuted": permuted}[options.what]()


if __name__ == "__main__":
    main()
