"""Spatially variable genes: speed, memory and agreement of the tests. Prints one JSON object a run.

    python benchmarks/svg.py speed                      35,554 genes x 1,470 spots x 10 kernels
    python benchmarks/svg.py scale --places 100000 --genes 20000 [--methods spatialde2 sparkx moran]
    python benchmarks/svg.py scale --places 1000000 --genes 1000
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

from stainseq.core import forms, kernels
from stainseq.svg import moran, sparkx, spatialde, spatialde2


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
        start = time.perf_counter()
        timed("speed", lambda c=compat: spatialde2.score(x, xy, genes=np.arange(x.shape[1]), compat=c), compat=compat,
              genes=x.shape[1], places=len(xy), nonzeros=x.nnz, load=os.getloadavg()[0])  # fmt: skip
        print(json.dumps({"times_faster_than_the_notebooks_313_s": round(313 / (time.perf_counter() - start), 1)}))


def many_counts(rng: np.random.Generator, places: int, genes: int) -> sparse.csc_array:
    """Counts of single cells, 4 % above 0, drawn by their places: a dense draw would take hours."""
    share = np.clip(np.exp(rng.normal(-3.7, 1.0, genes)), 1e-4, 0.5)
    indptr, indices, data = [0], [], []
    for p in share:
        at = np.unique(rng.integers(0, places, int(p * places)))
        indices.append(at.astype(np.int32))
        data.append(rng.geometric(0.7, len(at)).astype(np.float32))
        indptr.append(indptr[-1] + len(at))
    return sparse.csc_array((np.concatenate(data), np.concatenate(indices), np.array(indptr)), shape=(places, genes))


def machine() -> tuple[float, float]:
    """Float64 operations a second in a matrix product, and bytes a second in a copy, on all cores."""
    a, b = np.ones((1500, 1500)), np.ones(25_000_000)
    best = [1e9, 1e9]
    for _ in range(4):
        for k, run in enumerate((lambda: a @ a, b.copy)):
            start = time.perf_counter()
            run()
            best[k] = min(best[k], time.perf_counter() - start)
    return 2 * 1500**3 / best[0], 16 * b.size / best[1]


def least(method: str, form: forms.SpectralForms, x: sparse.csc_array) -> tuple[float, float]:
    """Operations and bytes of the statistics alone, kernels and null given."""
    n, g = x.shape
    if method == "sparkx":
        return 2.0 * 22 * x.nnz, 12.0 * x.nnz
    if method == "moran":
        return 2.0 * 7 * x.nnz, 12.0 * x.nnz
    pairs = sum(op.upper.nnz for op in form._pairs.values())
    nodes = form._spectra._shape[0] * form._spectra._shape[1]
    spread = 2 * form._spectra._mesh.width**2 * n
    flops = g * (2 * pairs + spread + 2.5 * nodes * np.log2(nodes) + 2 * 10 * n + 6 * n)
    width = max(1, int(4 * 2**30 / (8 * n * 32)))
    return flops, g * 8.0 * (4 * n + nodes * 2) + 12.0 * pairs * g / width


def scale(places: int, genes: int, methods: list[str]) -> None:
    rng = np.random.default_rng(4)
    xy = rng.uniform(0, 10 * np.sqrt(places), (places, 2))
    x = many_counts(rng, places, genes)
    flops_s, bytes_s = machine()
    form = forms.SpectralForms(kernels.kernel_list(None, xy), xy) if "spatialde2" in methods else None
    tests = {"spatialde2": spatialde2, "sparkx": sparkx, "moran": moran}
    for method in methods:
        tests[method].score(x[:3500, :4], xy[:3500], genes=np.arange(4))
        # Few genes first: what is done once for all of them.
        for k in (min(16, genes), genes):
            flops, moved = least(method, form, x[:, :k])
            facts = {"method": method, "genes": k, "places": places, "nonzeros": x[:, :k].nnz,
                     "floor_s": round(max(flops / flops_s, moved / bytes_s), 2), "gflop": round(flops / 1e9),
                     "gb_moved": round(moved / 1e9, 1)}  # fmt: skip
            timed("scale", lambda m=method, k=k: tests[m].score(x[:, :k], xy, genes=np.arange(k)), **facts)


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
    parser.add_argument("what", choices=["speed", "scale", "published", "permuted"])
    parser.add_argument("--places", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--methods", nargs="+", default=["spatialde2", "sparkx", "moran"])
    options = parser.parse_args()
    if options.what == "scale":
        scale(options.places, options.genes, options.methods)
    else:
        {"speed": speed, "published": published, "permuted": permuted}[options.what]()


if __name__ == "__main__":
    main()
