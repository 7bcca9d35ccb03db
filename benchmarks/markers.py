"""Markers and metagenes of many cells: seconds and peak memory.

python benchmarks/markers.py --cells 1000000 --genes 1000
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from domains import cells

import stainseq as ss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=10)
    args = parser.parse_args()
    import anndata
    import pandas as pd

    small = cells(2000, 50)
    work(
        anndata.AnnData(small.counts, obsm={"spatial": small.coordinates}), small.truth, lambda *_, **__: None
    )  # compiles
    data = cells(args.cells, args.genes, n_layers=args.layers)
    table = anndata.AnnData(data.counts, obs=pd.DataFrame(index=np.arange(args.cells).astype(str)))
    table.obsm["spatial"] = data.coordinates
    print(f"{args.cells} cells x {args.genes} genes, {data.counts.nnz / 1e6:.0f} M non-zeros, {args.layers} domains; "
          f"data alone {peak():.2f} GiB", flush=True)  # fmt: skip
    work(table, data.truth, print)


def work(table: Any, truth: np.ndarray, tell: Callable[..., Any]) -> None:
    import pandas as pd

    table.obs_names = table.obs_names.astype(str)
    table.obs["layer"] = pd.Categorical(truth.astype(str))
    filters = {"min_in_group_fraction": 0.1, "min_fold_change": 1.1}

    def timed(name: str, call: Callable[[], Any]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        found = call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        tell(f"{name}: {len(found)} rows, {wall:.1f} s wall, {cpu:.1f} CPU-s, peak {peak():.2f} GiB", flush=True)

    timed("markers against the rest", lambda: ss.tl.markers(table, domain_key="layer", against="rest", **filters))
    # A layer of so many cells meets its neighbours at the border alone.
    timed("markers against neighbours", lambda: ss.tl.markers(table, domain_key="layer", ratio=1e-3, **filters))
    timed("metagene of one domain", lambda: ss.tl.metagene(table, domain_key="layer", target="0"))
    timed("metagenes of all domains", lambda: ss.tl.metagene(table, domain_key="layer", target="all"))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
