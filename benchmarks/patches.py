"""Export of a data set of patches in CellViT's layout: patches/s against the floor of encoding their pictures.

    python benchmarks/patches.py [--patches 4000] [--nuclei 60] [--threads N] [--json FILE]

On a generated slide: smooth colours with noise, `--nuclei` labelled outlines in each patch. Measured in one process:

- floor: PNG encoding alone, of pixels that are read before, on as many threads
- pixels: reading them from the store and encoding
- export: `stainseq export --to cellvit`, everything

Peak memory is that of a fresh process that does the export alone (`ru_maxrss`). What is printed are both clocks; on a
machine that others use, CPU seconds are the ones to compare.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SIZE, STRIDE, MPP = 256, 192, 0.25


def slide(path: Path, n_patches: int, per_patch: int, seed: int = 0) -> None:
    """A store with a picture, nuclei, labels and patches."""
    import anndata as ad
    import cv2
    import geopandas as gpd
    import numpy as np
    import pandas as pd
    import shapely
    from scipy import sparse
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    import stainseq as ss

    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n_patches)))
    width = 64 + STRIDE * side
    tile = rng.integers(0, 255, (2048, 2048, 3), dtype=np.uint8)
    tile = cv2.GaussianBlur(tile, (0, 0), 3).astype(np.int16) * 3 - 200 + rng.integers(-5, 6, tile.shape)
    tile = np.clip(tile, 0, 255).astype(np.uint8)
    reps = -(-width // 2048)
    pixels = np.tile(tile, (reps, reps, 1))[:width, :width]
    n = int(per_patch * (width / SIZE) ** 2)
    grid = int(np.ceil(np.sqrt(n)))
    step = width * MPP / grid
    at = np.stack(np.meshgrid(np.arange(grid), np.arange(grid)), -1).reshape(-1, 2)[:n] * step + step / 2
    at += rng.uniform(-step / 6, step / 6, at.shape)
    turn = np.linspace(0, 2 * np.pi, 25)[:-1]
    radius = rng.uniform(0.32, 0.48, (n, 1)) * step * (1 + 0.08 * rng.standard_normal((n, 24)))
    rings = at[:, None] + radius[..., None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    ids = [f"n{i}" for i in range(n)]
    frame = gpd.GeoDataFrame(geometry=shapely.polygons(rings), index=ids)
    obs = pd.DataFrame({"tangram.label": pd.Categorical(rng.choice(["T", "B", "Macrophage", "Endothelial"], n))}, ids)
    obs["region"], obs["instance_id"] = pd.Categorical(["nuclei"] * n), ids
    table = ad.AnnData(sparse.csr_matrix((n, 1), dtype=np.int32), obs=obs, var=pd.DataFrame(index=["G"]))
    table.obsm["spatial"] = at
    to = {"um": Scale([MPP, MPP], axes=("x", "y")), "global": Identity()}
    image = Image2DModel.parse(
        np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=to,
        chunks=(3, 512, 512),
    )  # fmt: skip
    sdata = SpatialData(
        images={"he": image},
        shapes={"nuclei": ShapesModel.parse(frame, transformations={"um": Identity()})},
        tables={
            "counts_nuclei": TableModel.parse(table, region="nuclei", region_key="region", instance_key="instance_id")
        },
    )
    sdata.attrs["stainseq"] = {"slide": path.stem, "mpp": MPP, "tissue": "Made"}
    ss.io.write(sdata, path)
    opened = ss.io.open(path)
    ss.pp.patches(opened)


def clocked(work: Any) -> dict[str, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def measure(path: Path, out: Path, threads: int) -> dict[str, Any]:
    """The three measurements."""
    import stainseq as ss
    from stainseq import patches
    from stainseq.writers import _samples

    sdata = ss.io.open(path)
    opened = patches.load(sdata)
    n = len(opened)
    some = list(range(min(n, 512)))
    held = [opened.pixels(i) for i in some]
    with ThreadPoolExecutor(threads) as pool:
        floor = clocked(lambda: list(pool.map(lambda k: len(_samples.png(k)), held)))
        pixels = clocked(lambda: list(pool.map(lambda i: len(_samples.png(opened.pixels(i))), range(n))))
    ss.io.export(sdata, out / "full", to="cellvit", card=False)  # compiles
    full = clocked(lambda: ss.io.export(sdata, out / "full", to="cellvit", card=False, overwrite=True))
    size = sum(p.stat().st_size for p in (out / "full").rglob("*") if p.is_file())
    rate = {"floor": (floor, len(some)), "pixels": (pixels, n), "export": (full, n)}
    return {
        "patches": n,
        "threads": threads,
        **{
            k: {**t, "patches_per_s": m / t["wall_s"], "cpu_ms_per_patch": 1e3 * t["cpu_s"] / m}
            for k, (t, m) in rate.items()
        },
        "bytes_per_patch": size / n,
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=4000)
    parser.add_argument("--nuclei", type=int, default=60)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-export", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_export:
        import stainseq as ss

        ss.io.export(args.only_export[0], args.only_export[1], to="cellvit", card=False)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    os.environ["STAINSEQ_N_JOBS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "made.zarr"
        slide(path, args.patches, args.nuclei)
        alone = [sys.executable, __file__, "--only-export", str(path), str(Path(work) / "alone")]
        peak = float(subprocess.run(alone, check=True, capture_output=True, text=True).stdout.split()[-1])
        made = {**measure(path, Path(work) / "out", args.threads), "peak_mb": peak, "nuclei_per_patch": args.nuclei}
    for name in ("floor", "pixels", "export"):
        got = made[name]
        print(f"{name:8} {got['patches_per_s']:8.1f} patches/s  {got['cpu_ms_per_patch']:6.2f} ms CPU a patch")
    print(
        f"{made['patches']} patches, {made['threads']} threads, {made['bytes_per_patch'] / 1e3:.0f} kB a patch, "
        f"peak {made['peak_mb']:.0f} MB; CPU of the export over that of encoding alone: "
        f"{made['export']['cpu_ms_per_patch'] / made['floor']['cpu_ms_per_patch']:.2f}"
    )
    if args.json:
        args.json.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
