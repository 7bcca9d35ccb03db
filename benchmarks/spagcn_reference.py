"""What SpaGCN 1.2.7 itself computes on the planted fixture: start, length scale and labels, for tests and timings.

Runs in an environment of its own, since SpaGCN needs setuptools < 81 and dense tables:

    python3.11 -m venv spagcn && spagcn/bin/pip install torch==2.13.0 "setuptools<81" numpy==2.4.6 scipy==1.17.1 \
        pandas==2.3.3 anndata==0.12.19 scanpy==1.11.5 scikit-learn==1.9.1 louvain==0.8.2 igraph==0.11.9 \
        opencv-python-headless && spagcn/bin/pip install --no-deps SpaGCN==1.2.7
    python benchmarks/domains.py fixture fixture.npz                                  in stainseq's environment
    spagcn/bin/python benchmarks/spagcn_reference.py fixture fixture.npz OUT.npz      for the tests
    spagcn/bin/python benchmarks/spagcn_reference.py time fixture.npz --domains 7     for docs/domains.md
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
import warnings

warnings.filterwarnings("ignore")

import anndata  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import scanpy as sc  # noqa: E402
import SpaGCN as spg  # noqa: E402
import torch  # noqa: E402

SEED = 100


def _seeded() -> None:
    random.seed(SEED)
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  what SpaGCN draws from


def _table(counts, xy):
    adata = anndata.AnnData(counts.astype(np.float32))
    adata.obs["x"], adata.obs["y"] = xy[:, 0], xy[:, 1]
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def picture(width: int, height: int) -> np.ndarray:
    """An image that a test can draw again."""
    y, x = np.mgrid[:height, :width]
    bands = [np.sin(x / 41) + np.cos(y / 29), np.cos(x / 17), np.sin((x + 2 * y) / 53)]
    return np.stack([np.rint(127 + 40 * b) for b in bands], axis=2).astype(np.uint8)


def fixture(args) -> None:
    """The first 400 spots: everything from which the test starts, and where SpaGCN ends."""
    a = np.load(args.source)
    rows, pixels = slice(0, 400), 0.1
    xy = a["xy"][rows]
    adata = _table(a["counts"][rows, :1500], xy)
    x, y = xy[:, 0].tolist(), xy[:, 1].tolist()
    adj = spg.calculate_adj_matrix(x=x, y=y, histology=False)
    length = spg.search_l(0.5, adj, start=0.01, end=1000, tol=0.01, max_run=100)
    image = picture(1100, 500)
    px, py = (xy[:, 0] * pixels).astype(int), (xy[:, 1] * pixels).astype(int)
    # x_pixel is the row of the image, as in SpaGCN's tutorial.
    seen = spg.calculate_adj_matrix(x=x, y=y, x_pixel=py.tolist(), y_pixel=px.tolist(), image=image, beta=49, alpha=1,
                                    histology=True)  # fmt: skip
    seen_length = spg.search_l(0.5, seen, start=0.01, end=1000, tol=0.01, max_run=100)
    start = {}
    fit = spg.simple_GC_DEC.fit

    def watched(self, X, adjacency, **options):
        start["W"] = self.gc.weight.detach().numpy().copy()
        start["b"] = self.gc.bias.detach().numpy().copy()
        fit(self, X, adjacency, **options)
        start["labels"] = self.trajectory[0]

    spg.simple_GC_DEC.fit = watched
    _seeded()
    model = spg.SpaGCN()
    model.set_l(length)
    model.train(adata, adj, init_spa=True, init="louvain", res=0.7, tol=5e-3, lr=0.05, max_epochs=200)
    pred, prob = model.predict()
    refined = spg.refine(sample_id=adata.obs.index.tolist(), pred=pred.tolist(), dis=adj, shape="hexagon")
    np.savez_compressed(
        args.out, xy=xy, pcs=model.embed.astype(np.float32), W=start["W"], b=start["b"],
        start=start["labels"].astype(np.int8), labels=pred.astype(np.int8), q=prob.astype(np.float32),
        refined=np.asarray(refined).astype(np.int8), length=length, seen_length=seen_length, seen=seen[:5], px=px,
        py=py,
    )  # fmt: skip


def timing(args) -> None:
    """Seconds of each step, wall and CPU."""
    a = np.load(args.source)
    xy, took = a["xy"], {}
    x, y = xy[:, 0].tolist(), xy[:, 1].tolist()

    def timed(name, call):
        wall, cpu = time.perf_counter(), time.process_time()
        found = call()
        took[name] = (time.perf_counter() - wall, time.process_time() - cpu)
        return found

    adata = _table(a["counts"], xy)
    adj = timed("adjacency", lambda: spg.calculate_adj_matrix(x=x, y=y, histology=False))
    length = timed("search_l", lambda: spg.search_l(0.5, adj, start=0.01, end=1000, tol=0.01, max_run=100))
    seeds = {"r_seed": SEED, "t_seed": SEED, "n_seed": SEED}
    res = timed("search_res", lambda: spg.search_res(
        adata, adj, length, args.domains, start=0.7, step=0.1, tol=5e-3, lr=0.05, max_epochs=20, **seeds))  # fmt: skip

    def train():
        _seeded()
        model = spg.SpaGCN()
        model.set_l(length)
        model.train(adata, adj, init_spa=True, init="louvain", res=res, tol=5e-3, lr=0.05, max_epochs=200)
        return model.predict()[0]

    pred = timed("train", train)
    refined = timed("refine", lambda: spg.refine(
        sample_id=adata.obs.index.tolist(), pred=pred.tolist(), dis=adj, shape="hexagon"))  # fmt: skip
    adata.obs["pred"] = pd.Categorical(np.asarray(refined).astype(str))
    target, ids = str(refined[0]), adata.obs.index.tolist()

    def around():
        flat = adj[adj != 0]
        radius = spg.search_radius(
            target_cluster=target, cell_id=ids, x=x, y=y, pred=adata.obs["pred"].tolist(),
            start=np.quantile(flat, 0.001), end=np.quantile(flat, 0.1),
            num_min=10, num_max=14, max_run=100)  # fmt: skip
        return spg.find_neighbor_clusters(target_cluster=target, cell_id=ids, x=x, y=y,
                                          pred=adata.obs["pred"].tolist(), radius=radius, ratio=1 / 2)[:3]  # fmt: skip

    near = timed("radius, neighbours", around)
    timed("markers of one domain", lambda: spg.rank_genes_groups(
        input_adata=adata, target_cluster=target, nbr_list=near, label_col="pred", adj_nbr=True, log=True))  # fmt: skip
    print(json.dumps({
        "l": float(length), "res": float(res), "domains": len(set(pred.tolist())), "seconds": took,
        "wall_s": sum(t[0] for t in took.values()), "cpu_s": sum(t[1] for t in took.values()),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }, indent=1))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(required=True)
    p = sub.add_parser("fixture")
    p.add_argument("source")
    p.add_argument("out")
    p.set_defaults(run=fixture)
    p = sub.add_parser("time")
    p.add_argument("source")
    p.add_argument("--domains", type=int, default=7)
    p.set_defaults(run=timing)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
