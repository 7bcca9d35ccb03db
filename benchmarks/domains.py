"""Spatial domains: agreement with expert labels, choice of the setting, speed and memory.

    python benchmarks/domains.py ari                              adjusted Rand index, mean and spread over seeds
    python benchmarks/domains.py select                           how kriging's setting was chosen
    python benchmarks/domains.py scale --cells 1000000            seconds and peak memory on simulated cells
    python benchmarks/domains.py speed                            SpaGCN on the fixture of 1,500 spots
    python benchmarks/domains.py fixture FILE.npz                 that fixture, for benchmarks/spagcn_reference.py

Data: the folder named by STAINSEQ_DATA, else ../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from stainseq import registry
from stainseq.core import clusters, kriging
from stainseq.core.graphs import by_sample
from stainseq.core.normalize import log1p_cp10k
from stainseq.core.pca import pca
from stainseq.core.refine import nearest, refine
from stainseq.domains import kriging as method
from stainseq.domains._inputs import check, one_thread

DATA = Path(os.environ.get("STAINSEQ_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
NAMES = ("BZ5", "BZ9", "BZ14", "BY3", "151510", "MOB")
GROUPS = {"mPFC": ("BZ5", "BZ9", "BZ14"), "mVC": ("BY3",), "DLPFC": ("151510",), "MOB": ("MOB",)}
RESULTS = Path(__file__).resolve().parent / "results"


class Labelled(NamedTuple):
    counts: Any
    coordinates: np.ndarray
    truth: np.ndarray  # -1: not labelled
    layout: str

    @property
    def k(self) -> int:
        return int(self.truth.max()) + 1

    def score(self, labels: np.ndarray) -> float:
        known = self.truth >= 0
        return clusters.adjusted_rand(labels[known], self.truth[known])


@cache
def load(name: str) -> Labelled:
    import anndata
    import h5py
    import pandas as pd

    def codes(values: Any) -> np.ndarray:
        return pd.Categorical(values).codes.astype(np.int64)

    if name.startswith("B"):
        a = anndata.read_h5ad(DATA / "starmap" / f"{'mvc' if name == 'BY3' else 'mpfc'}_{name}.h5ad")
        xy = np.asarray(a.obsm["spatial"], dtype=float)
        return Labelled(sparse.csr_array(a.X).astype(np.float32), xy, codes(a.obs["domain"]), "free")
    if name == "151510":
        folder = DATA / "visium_dlpfc_151510"
        with h5py.File(folder / "filtered_feature_bc_matrix.h5") as f:
            m = f["matrix"]
            counts = sparse.csc_array((m["data"][:], m["indices"][:], m["indptr"][:]), shape=m["shape"][:]).T.tocsr()
            ids = [b.decode() for b in m["barcodes"][:]]
        layer = pd.read_csv(folder / "layer_labels.csv").set_index("barcode").reindex(ids)["layer"]
        where = pd.read_csv(folder / "spatial" / "tissue_positions_list.csv", header=None, index_col=0).loc[ids]
        return Labelled(counts.astype(np.float32), where[[5, 4]].to_numpy(float), codes(layer), "hexagon")
    folder = DATA / "mob_rep11"
    table = pd.read_csv(folder / "Rep11_MOB_counts.tsv.gz", sep="\t", index_col=0)
    spots = pd.read_csv(folder / "spots_layers.csv").set_index("spot").loc[table.index]
    counts = sparse.csr_array(table.to_numpy(np.float32))
    return Labelled(counts, spots[["x", "y"]].to_numpy(float), codes(spots["layer"]), "square")


def assign(name: str, data: Labelled, seed: int, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    module = registry.load("domains", name)
    X = data.counts if getattr(module, "WANTS", "") == "counts" else log1p_cp10k(data.counts)
    found = module.assign(X, coordinates=data.coordinates, n_domains=data.k, seed=seed, **options)
    return found[0], found[3]


def ari(args: argparse.Namespace) -> None:
    """One record per method, data set and seed, kept in a file: what is there already is not run again."""
    kept = records(args.json)
    done = {(r["method"], r["data"], r["seed"]) for r in kept}
    for name, m, seed in itertools.product(args.data, args.methods, range(args.seeds)):
        if (m, name, seed) in done:
            continue
        data = load(name)
        wall, cpu = time.perf_counter(), time.process_time()
        labels = BASELINES[m](data, seed) if m in BASELINES else assign(m, data, seed)[0]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        refined = refine(labels, data.coordinates, layout=data.layout)
        kept.append({
            "method": m, "data": name, "seed": seed, "ari": data.score(labels), "refined": data.score(refined),
            "cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "labels": "".join(chr(48 + k) for k in labels),
        })  # fmt: skip
        print(f"{m} {name} seed {seed}: {kept[-1]['ari']:.3f}, refined {kept[-1]['refined']:.3f}, {cpu:.1f} CPU-s",
              flush=True)  # fmt: skip
        Path(args.json).write_text("[\n" + ",\n".join(json.dumps(r) for r in kept) + "\n]\n")
    print(markdown(kept))
    if args.summary:
        Path(args.summary).write_text(json.dumps(summary(kept), indent=1) + "\n")


def summary(kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the table says, one entry per method and data set, with every seed's score."""
    rows = []
    for m, n in dict.fromkeys((r["method"], r["data"]) for r in kept):
        mine = [r for r in kept if (r["method"], r["data"]) == (m, n)]
        labels = [list(r["labels"]) for r in mine]
        rows.append({
            "method": m, "data": n, "seeds": [r["seed"] for r in mine],
            "ari": [round(r["ari"], 4) for r in mine], "refined": [round(r["refined"], 4) for r in mine],
            "stability": round(clusters.stability(labels), 4) if len(labels) > 1 else None,
            "cpu_s": [r["cpu_s"] for r in mine],
        })  # fmt: skip
    return rows


def records(path: str) -> list[dict[str, Any]]:
    return json.loads(Path(path).read_text()) if Path(path).exists() else []


def _smoothed(k: int, *, standardised: bool = False) -> Any:
    def run(data: Labelled, seed: int) -> np.ndarray:
        """k-means on 15 principal components, averaged over a row and its k neighbours.

        Standardised: of log1p of counts scaled to the median total, each gene divided by its standard deviation and
        cut at 10. It comes nearest to the figures that served as a bar (.84, .57, .80, .73, .49, see the docs).
        """
        values = log1p_cp10k(data.counts)
        if standardised:
            values = method.normalise(data.counts).toarray().astype(np.float64)
            deviation = values.std(axis=0)
            values = np.clip((values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1), -10, 10)
        scores = pca(values, 15).scores
        smooth = scores[nearest(data.coordinates, k)].mean(axis=1) if k else scores
        return clusters.kmeans(smooth, data.k, seed=seed)

    return run


BASELINES = {
    f"k-means of {'standardised ' if standardised else ''}PCs, {k} neighbours": _smoothed(k, standardised=standardised)
    for standardised in (False, True)
    for k in (0, 6, 30)
}
METHODS = ("kriging", "kmeans", "spagcn", "deepst")
PUBLISHED = {  # mean of 20 runs, Genome Biology 2024, s13059-024-03361-0
    "SpaGCN": (0.357, 0.319, 0.372, 0.443, 0.444), "DeepST": (0.464, 0.430, 0.372, 0.394, 0.444),
    "STAGATE": (0.229, 0.326, 0.238, 0.283, 0.453), "GraphST": (0.286, 0.533, 0.724, 0.537, 0.443),
    "CCST": (0.433, 0.449, 0.416, 0.496, 0.376), "ADEPT": (0.749, 0.525, 0.775, 0.594, 0.496),
}  # fmt: skip


def markdown(kept: list[dict[str, Any]]) -> str:
    """The table of docs/domains.md: mean ± standard deviation over seeds."""
    lines = ["| method | " + " | ".join(NAMES) + " | mean of the first five | stability | CPU-s, 151510 |",
             "|---" * (len(NAMES) + 4) + "|"]  # fmt: skip
    for m in (*BASELINES, *METHODS):
        for kind, label in (("ari", m), ("refined", f"{m}, refined")):
            by = {n: [r[kind] for r in kept if r["method"] == m and r["data"] == n] for n in NAMES}
            if not any(by.values()) or (m in BASELINES and kind == "refined"):
                continue
            cells = [f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" if len(v) > 1 else "" for v in by.values()]
            five = [np.mean(by[n]) for n in NAMES[:5] if by[n]]
            same = [[list(r["labels"]) for r in kept if r["method"] == m and r["data"] == n] for n in NAMES]
            steady = f"{np.mean([clusters.stability(x) for x in same if len(x) > 1]):.3f}" if kind == "ari" else ""
            cpu = [r["cpu_s"] for r in kept if r["method"] == m and r["data"] == "151510" and kind == "ari"]
            lines.append(f"| {label} | " + " | ".join(cells) + f" | {np.mean(five):.3f} | {steady} | "
                         + (f"{np.median(cpu):.1f}" if cpu else "") + " |")  # fmt: skip
    for m, values in PUBLISHED.items():
        cells = [f"{v:.3f}" for v in values]
        lines.append(f"| *{m}, published* | " + " | ".join(cells) + f" | | {np.mean(values):.3f} | | |")
    return "\n".join(lines)


GRID = {"n_genes": (500, 1000, 2000), "n_shared": (6, 12, 18, 30), "n_components": (5, 8, 10, 15, 20),
        "n_neighbors": (18, 24, 36, 48)}  # fmt: skip


def select(args: argparse.Namespace) -> None:
    """Leave one group of data sets out: the setting best on the others, scored on it; and k-means against the mixture.

    Every setting is scored by its mean over groups. A setting chosen so never saw the labels it is scored on.
    """
    settings = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    default = {"n_genes": 500, "n_shared": 12, "n_components": 10, "n_neighbors": 36}
    if args.draw:
        drawn = np.sort(np.random.default_rng(0).choice(len(settings), args.draw, replace=False))
        settings = [settings[i] for i in {*drawn.tolist(), settings.index(default)}]
    scores = np.empty((2, len(settings), len(NAMES)))  # k-means, mixture
    for j, name in enumerate(NAMES):
        _score_settings(load(name), settings, scores[:, :, j])
        gain = scores[1, :, j] - scores[0, :, j]
        print(f"{name}: k-means {scores[0, :, j].mean():.3f}, mixture {scores[1, :, j].mean():.3f}; mixture better in "
              f"{(gain > 0).mean():.0%} of settings, median gain {np.median(gain):+.3f}", flush=True)  # fmt: skip
    for kind, found in zip(("k-means", "mixture"), scores, strict=True):
        group = np.stack([found[:, [NAMES.index(n) for n in names]].mean(axis=1) for names in GROUPS.values()], axis=1)
        print(f"{kind}: {len(settings)} settings; mean over groups: median {np.median(group.mean(1)):.3f}, "
              f"worst {group.mean(1).min():.3f}, best {group.mean(1).max():.3f}, "
              f"default {group[settings.index(default)].mean():.3f}")  # fmt: skip
        for j, (left, names) in enumerate(GROUPS.items()):
            best = int(np.delete(group, j, axis=1).mean(axis=1).argmax())
            held = ", ".join(f"{n} {found[best, NAMES.index(n)]:.3f}" for n in names)
            print(f"chosen without {left}: {settings[best]}: {held}")


def _score_settings(data: Labelled, settings: list[dict[str, int]], out: np.ndarray) -> None:
    at = check(data.counts, data.coordinates, data.k)
    rows, truth = by_sample(at.samples, len(at.order)), data.truth[at.order]
    data = data._replace(truth=truth)
    with one_thread():
        values = method.normalise(at.X)
        near = method.neighbours(at, rows, max(GRID["n_neighbors"]))
        for genes, shared in itertools.product(GRID["n_genes"], GRID["n_shared"]):
            mine = [i for i, s in enumerate(settings) if s["n_genes"] == genes and s["n_shared"] == shared]
            if not mine:
                continue
            X = method._genes(values, genes)
            parts = kriging.shared_components(X, near[:, 1 : shared + 1], max(GRID["n_components"]), samples=rows)
            for i in mine:
                own = near[:, : settings[i]["n_neighbors"] + 1]
                z = parts.scores[:, : settings[i]["n_components"]]
                z = kriging.krige(z, at.coordinates, own, kriging.fit_covariance(z, at.coordinates, own[:, 1:]))
                out[0, i] = data.score(clusters.kmeans(z, data.k, seed=0))
                out[1, i] = data.score(method.cluster(z, data.k, 0)[0])


def cells(n: int, n_genes: int, *, n_layers: int = 6) -> Labelled:
    """Irregular cells in wavy layers, about a tenth of the values not zero."""
    rng = np.random.default_rng(0)
    side = 10 * np.sqrt(n)
    xy = rng.uniform(0, side, (n, 2))
    wave = xy[:, 1] / side + 0.03 * np.sin(8 * np.pi * xy[:, 0] / side)
    layer = np.clip((wave * n_layers).astype(int), 0, n_layers - 1)
    kind = rng.integers(0, 5, n)
    rate = np.exp(rng.normal(-3.0, 1.2, n_genes) + rng.normal(0, 0.5, (n_layers, 1, n_genes))
                  + rng.normal(0, 0.7, (1, 5, n_genes)))  # fmt: skip
    blocks = []
    for start in range(0, n, 20_000):
        rows = slice(start, start + 20_000)
        blocks.append(sparse.csr_array(rng.poisson(rate[layer[rows], kind[rows]]).astype(np.float32)))
    return Labelled(sparse.vstack(blocks).tocsr(), xy, layer, "free")


def scale(args: argparse.Namespace) -> None:
    data = cells(args.cells, args.genes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for name in args.methods:
        wall, cpu = time.perf_counter(), time.process_time()
        labels, info = assign(name, data, 0)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: {args.cells} cells x {args.genes} genes ({data.counts.nnz / 1e6:.0f} M non-zeros): "
              f"{wall:.0f} s wall, {cpu:.0f} CPU-s, peak {peak:.2f} GiB (data alone {before:.2f}), "
              f"ARI {data.score(labels):.3f}, {info}", flush=True)  # fmt: skip


def fixture() -> Labelled:
    """The planted layers of the reference page: 1,500 hexagonal spots, 4,992 genes."""
    import importlib.util

    path = Path(__file__).resolve().parents[1] / "tests" / "domains_methods" / "conftest.py"
    spec = importlib.util.spec_from_file_location("planted", path)
    if spec is None or spec.loader is None:
        raise SystemExit("the tests are not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module._planted()
    return Labelled(found.counts, found.coordinates, found.layer.astype(np.int64), "hexagon")


def write_fixture(args: argparse.Namespace) -> None:
    """For benchmarks/spagcn_reference.py, which runs without stainseq."""
    data = fixture()
    np.savez_compressed(args.out, counts=data.counts.toarray(), xy=data.coordinates, layer=data.truth)


def speed(args: argparse.Namespace) -> None:
    """SpaGCN end to end and step by step; measured for SpaGCN 1.2.7 on the same fixture: see the constants."""
    from stainseq.core import de
    from stainseq.core.metagene import find_metagene

    data = fixture()
    X = log1p_cp10k(data.counts)
    upstream = {"search_l, search_res, train": 0.26 + 22.2 + 7.1, "refine": 4.7, "radius, neighbours": 5.2,
                "markers of one domain": 32.9, "metagene": 1.05}  # fmt: skip
    assign("spagcn", data, 1)  # compiles and imports
    total = 0.0

    def timed(name: str, call: Any) -> Any:
        nonlocal total
        start, cpu = time.perf_counter(), time.process_time()
        out = call()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        total += wall
        print(f"{name}: {wall:.3f} s wall, {cpu:.3f} CPU-s; SpaGCN 1.2.7 {upstream[name]:.2f} s "
              f"({upstream[name] / wall:.0f} x by wall)")  # fmt: skip
        return out

    labels, info = timed("search_l, search_res, train", lambda: assign("spagcn", data, args.seed))
    refined = timed("refine", lambda: refine(labels, data.coordinates))
    between = de.distance_quantiles(data.coordinates, (0.001, 0.1))

    def around() -> Any:
        low, high = de.distance_quantiles(data.coordinates, (0.001, 0.1))
        return de.surroundings(data.coordinates, refined, 0, between=(low, high))

    near = timed("radius, neighbours", around)
    rows = np.isin(refined, [0, *near.domains])
    found = timed("markers of one domain", lambda: de.compare(X[rows], refined[rows] == 0))
    start = int(np.nanargmax(found.z))
    timed("metagene", lambda: find_metagene(X, refined == 0, start))
    whole = sum(upstream.values())
    print(f"in all {total:.2f} s; SpaGCN 1.2.7 {whole:.1f} s ({whole / total:.0f} x); radius between {between}; "
          f"ARI {data.score(labels):.3f}, refined {data.score(refined):.3f}, {info}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(required=True)
    p = sub.add_parser("ari")
    p.add_argument("--methods", nargs="*", default=[*BASELINES, *METHODS])
    p.add_argument("--data", nargs="*", default=list(NAMES))
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--json", default="domains_ari.json", help="records of all runs, labels included")
    p.add_argument("--summary", default=str(RESULTS / "domains_ari.json"), help="scores of every seed, for the docs")
    p.set_defaults(run=ari)
    p = sub.add_parser("select")
    p.add_argument("--draw", type=int, default=0, help="so many settings drawn at random, beside the default; 0: all")
    p.set_defaults(run=select)
    p = sub.add_parser("scale")
    p.add_argument("--methods", nargs="*", default=["kriging"])
    p.add_argument("--cells", type=int, default=353_762)
    p.add_argument("--genes", type=int, default=300)
    p.set_defaults(run=scale)
    p = sub.add_parser("fixture")
    p.add_argument("out")
    p.set_defaults(run=write_fixture)
    p = sub.add_parser("speed")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=speed)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
