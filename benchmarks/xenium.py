"""Xenium: binning of transcripts against pandas and geopandas, and a folder of 40 million transcripts end to end.

    python benchmarks/xenium.py binning [--counts 60] [--repeat 3]
    python benchmarks/xenium.py folder [--counts 200] [--size large] [--keep FOLDER]

Both on folders that `stainseq.datasets.xenium` writes. `binning` counts the same transcripts both ways in one run: the
plain way reads transcripts.parquet with pandas, drops low quality and the names of controls (by what stands before
``_``), maps microns to pixels of the H&E, names each bin by a text ``<x>_<y>``, and makes the dense table by groupby
and unstack (for cells and nuclei: a spatial join of geopandas, then the same); files that the published scripts write
in between are left out. Ours streams the stored slide. `folder` runs each step in a process of its own, so that its
peak memory is its own. Seconds of both clocks are printed; on a machine that others use, CPU seconds are the ones to
compare.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def clocked(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


CONTROLS = ("BLANK", "NegControlCodeword", "NegControlProbe", "UnassignedCodeword", "DeprecatedCodeword")


def plain_transcripts(folder: Path) -> Any:
    import pandas as pd

    frame = pd.read_parquet(folder / "transcripts.parquet")
    control = frame["feature_name"].str.split("_").str[0].isin(CONTROLS)
    return frame[(frame["qv"] >= 20) & ~control]


def plain_bins(folder: Path, step_px: float) -> Any:
    """Dense counts of superpixels, as the published scripts make them."""
    import numpy as np

    frame = plain_transcripts(folder)
    to_morphology = np.loadtxt(folder / "planted_he_imagealignment.csv", delimiter=",")
    xy = frame[["x_location", "y_location"]].to_numpy(dtype=np.float64) / 0.2125
    mapped = np.column_stack([xy, np.ones(len(xy))]) @ np.linalg.inv(to_morphology).T
    place = np.floor(mapped[:, :2] / mapped[:, 2:] / step_px).astype(int)
    frame = frame.assign(bx=place[:, 0], by=place[:, 1])
    frame["id"] = frame["bx"].astype(str) + "_" + frame["by"].astype(str)
    return frame.groupby(["id", "feature_name"]).size().unstack(fill_value=0)


def plain_shapes(folder: Path, shapes: Any) -> Any:
    """Dense counts of outlines by a spatial join."""
    import geopandas as gpd

    frame = plain_transcripts(folder)
    points = gpd.GeoDataFrame(frame, geometry=gpd.points_from_xy(frame["x_location"], frame["y_location"]))
    outlines = gpd.GeoDataFrame({"id": shapes.index.to_numpy()}, geometry=shapes.geometry.to_numpy())
    joined = gpd.sjoin(points, outlines, predicate="within")
    # A transcript counts once: for the first listed of those that hold it.
    joined = joined.sort_values("index_right", kind="stable")
    joined = joined[~joined.index.duplicated()]
    return joined.groupby(["id", "feature_name"]).size().unstack(fill_value=0)


def on_outlines(folder: Path, shapes: Any) -> int:
    """Transcripts exactly on an outline: geopandas' "within" leaves them out, ours gives them to one side."""
    import shapely

    frame = plain_transcripts(folder)
    tree = shapely.STRtree(shapes.geometry.boundary.to_numpy())
    return len(tree.query(shapely.points(frame["x_location"], frame["y_location"]), predicate="intersects")[0])


def differing(dense: Any, ours: Any) -> int:
    """Counts that differ between a dense frame and our table, over all regions and genes."""
    import numpy as np

    wide = dense.reindex(index=ours.obs_names, columns=ours.var_names, fill_value=0).to_numpy()
    left = int(dense.to_numpy().sum()) - int(wide.sum())  # counted there in a region that we do not have
    return int((np.asarray(ours.X.todense()) != wide).sum()) + abs(left)


def binning(counts: float, repeat: int, work: Path) -> None:
    import stainseq as ss
    from stainseq import image, regions

    folder, store = work / "bundle", work / "slide.zarr"
    ss.datasets.xenium(folder, size="medium", n_genes=300, counts_per_superpixel=counts)
    ss.io.convert(folder, store)
    sdata = ss.io.open(store)
    ss.pp.superpixels(sdata, tissue_key="none", min_cover=0)
    step = 8.0 / image.open_image(sdata).mpp
    n = len(sdata["transcripts"])
    print(f"{n} transcripts of quality 20, 300 genes, superpixels of {step:.2f} px")
    for name in ("superpixels", "cells", "nuclei", "cells_labels", "nuclei_labels"):
        region = regions.get(sdata, name)
        # The first call compiles or loads the kernels; opening the region is not part of either way.
        regions.aggregate(sdata, region, "transcripts", n_jobs=1)
        runs = [clocked(lambda r=region: regions.aggregate(sdata, r, "transcripts", n_jobs=1)) for _ in range(repeat)]
        ours, cpu = runs[0][0], min(r[2] for r in runs)
        row = {"region": name, "regions": ours.n_obs, "ours_cpu_s": round(cpu, 3)}
        row |= {"ours_wall_s": round(min(r[1] for r in runs), 3), "millions_per_s_and_core": round(n / cpu / 1e6, 2)}
        if name == "superpixels":
            ours.obs_names = [f"{i.split('_')[1]}_{i.split('_')[0]}" for i in ours.obs_names]
            dense, wall, plain = clocked(lambda: plain_bins(folder, step))
        elif not name.endswith("labels"):
            dense, wall, plain = clocked(lambda s=sdata[name]: plain_shapes(folder, s))
            row["transcripts_on_an_outline"] = on_outlines(folder, sdata[name])
        else:
            print(json.dumps(row))
            continue
        row |= {"plain_cpu_s": round(plain, 2), "plain_wall_s": round(wall, 2), "ratio_cpu": round(plain / cpu, 1)}
        print(json.dumps(row | {"counts_that_differ": differing(dense, ours)}))
    ours, vendor = regions.aggregate(sdata, "cells_labels", "transcripts"), sdata["counts_cells"]
    same = (ours[vendor.obs_names, vendor.var_names].X != vendor.X).nnz == 0
    print(json.dumps({"counts of cells_labels equal the run's own matrix": bool(same), "sum": int(vendor.X.sum())}))


def step(name: str, *arguments: str) -> dict[str, Any]:
    """One step of `folder`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--step", name, *arguments], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_step(name: str, arguments: list[str]) -> dict[str, Any]:
    if name == "generate":
        import stainseq as ss

        ss.datasets.xenium(arguments[0], size=arguments[1], n_genes=300, counts_per_superpixel=float(arguments[2]))  # type: ignore[arg-type]
        return {}
    from stainseq.cli import run

    code = run([name, *arguments])
    if code:
        raise SystemExit(code)
    return {}


def folder(counts: float, size: str, work: Path) -> None:
    bundle, store = work / "bundle", work / "slide.zarr"
    if not bundle.exists():
        print("generate", json.dumps(step("generate", str(bundle), size, str(counts))), flush=True)
    told = json.loads((bundle / "experiment.xenium").read_text())
    gb = sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file()) / 2**30
    print(json.dumps({"transcripts": told["num_transcripts"], "cells": told["num_cells"], "folder_gb": round(gb, 1)}))
    for name, arguments in {
        "convert": [str(bundle), str(store)],
        "superpixels": [str(store)],
        "aggregate superpixels": [str(store), "--region", "superpixels"],
        "aggregate cells_labels": [str(store), "--region", "cells_labels"],
        "aggregate nuclei": [str(store), "--region", "nuclei"],
    }.items():
        print(f"{name:22s}", json.dumps(step(name.split()[0], *arguments)), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        result, wall, cpu = clocked(lambda: run_step(sys.argv[2], sys.argv[3:]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**result, "wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "peak_gb": round(peak, 2)}))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("binning", "folder"))
    parser.add_argument("--counts", type=float, help="transcripts per superpixel: 60 for binning, 200 for folder")
    parser.add_argument("--size", default="large", choices=("small", "medium", "large"))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--keep", help="folder to work in, kept; a bundle that is there is used again")
    args = parser.parse_args()
    os.environ["STAINSEQ_PROGRESS"] = "0"
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(args.keep or scratch)
        work.mkdir(parents=True, exist_ok=True)
        if args.part == "binning":
            binning(args.counts or 60, args.repeat, work)
        else:
            folder(args.counts or 200, args.size, work)


if __name__ == "__main__":
    main()
