"""Time and memory of maps of many cells: points, true outlines, bins of a grid, labels.

python benchmarks/plots.py [--cells 250000] [--out FOLDER]

The slide is made here: cells on a jittered lattice over 5 mm x 5 mm, outlines of 24 vertices, one gene, one column of
8 domains. Printed: CPU seconds and wall seconds from the call to the finished PNG, and the memory that it took.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import warnings
from pathlib import Path

import anndata
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

import stainseq as ss
from stainseq import regions, store

SIDE_UM = 5000.0
VERTICES = 24


def centres(n: int) -> np.ndarray:
    side = int(np.ceil(np.sqrt(n)))
    pitch = SIDE_UM / side
    at = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)[:n]
    return (at + 0.5) * pitch + np.random.default_rng(0).uniform(-0.2, 0.2, (len(at), 2)) * pitch


def table(xy: np.ndarray, region: str, ids: list[str], label: np.ndarray | None = None) -> anndata.AnnData:
    rng = np.random.default_rng(1)
    wave = np.sin(xy[:, 0] / 400) * np.cos(xy[:, 1] / 600)
    counts = np.column_stack([rng.poisson(np.exp(1 + wave)), rng.poisson(5, len(xy))])
    obs = pd.DataFrame(
        {"domain": pd.Categorical((np.digitize(wave, np.linspace(-0.8, 0.8, 7))).astype(str))}, index=ids
    )
    obs["region"], obs["instance_id"] = pd.Categorical([region] * len(xy)), ids if label is None else label
    made = anndata.AnnData(sparse.csr_matrix(counts.astype(np.int32)), obs=obs, var=pd.DataFrame(index=["G", "other"]))
    made.obsm["spatial"] = xy
    return TableModel.parse(made, region=region, region_key="region", instance_key="instance_id")


def slide(n: int, folder: Path) -> SpatialData:
    xy = centres(n)
    ids = [f"c{i}" for i in range(n)]
    pitch = SIDE_UM / np.ceil(np.sqrt(n))
    angle = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    stretch = np.random.default_rng(2).uniform(0.6, 1.1, (n, 2)) * pitch * 0.48
    ring = xy[:, None] + np.stack([np.cos(angle), np.sin(angle)], -1) * stretch[:, None]
    frame = gpd.GeoDataFrame(geometry=shapely.polygons(ring), index=ids)
    px = round(SIDE_UM / 2)
    at = np.minimum((xy / 2).astype(int), px - 1)
    raster = np.zeros((px, px), np.int32)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            raster[np.clip(at[:, 1] + dy, 0, px - 1), np.clip(at[:, 0] + dx, 0, px - 1)] = np.arange(1, n + 1)
    um = {"um": Identity()}
    sdata = SpatialData(
        shapes={"cells": ShapesModel.parse(frame, transformations=um)},
        labels={
            "nuclei_labels": Labels2DModel.parse(
                raster, dims=("y", "x"), transformations={"um": Scale([2, 2], axes=("x", "y"))}
            )
        },
        tables={
            "counts_cells": table(xy, "cells", ids),
            "counts_nuclei_labels": table(xy, "nuclei_labels", [str(i + 1) for i in range(n)], np.arange(1, n + 1)),
        },
    )
    made = store.create(folder / "big.zarr", sdata, step="benchmark", parameters={})
    side = int(np.ceil(np.sqrt(n)))
    row, col = np.divmod(np.arange(n), side)
    grid = [f"b{i}" for i in range(n)]
    transform = np.diag([pitch, pitch, 1.0])
    regions.add_grid(
        made, "bins", rows=row, cols=col, ids=grid, shape=(side, side), transform=transform, step="b", parameters={}
    )
    bins = table(np.column_stack([col + 0.5, row + 0.5]) * pitch, "bins", grid)
    store.write_element(made, "counts_bins", bins, step="benchmark", parameters={})
    return made


def measure(name: str, draw, out: Path) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    figure = draw()
    figure.savefig(out / f"{name.replace(' ', '_')}.png", dpi=200, bbox_inches="tight")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:34s} {cpu:6.2f} CPU-s {wall:6.2f} s   peak so far {peak:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=250_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        sdata = slide(given.cells, Path(folder))
        few = slide(300, Path(folder) / "few")
        for region in ("cells", "bins", "nuclei_labels"):  # imports and compilation, which are paid once a session
            ss.pl.spatial(few, color="G", region=region)
        print(f"{given.cells:,} cells")
        plain = sdata["counts_cells"]
        crop = (2000.0, 2000.0, 2400.0, 2400.0)
        measure("points, gene", lambda: ss.pl.spatial(plain, color="G"), out)
        measure("points, domain", lambda: ss.pl.spatial(plain, color="domain"), out)
        for region, what in (("cells", "outlines"), ("bins", "grid"), ("nuclei_labels", "labels")):
            measure(f"{what}, gene", lambda r=region: ss.pl.spatial(sdata, color="G", region=r), out)
            measure(f"{what}, domain", lambda r=region: ss.pl.spatial(sdata, color="domain", region=r), out)
            measure(f"{what}, cropped", lambda r=region: ss.pl.spatial(sdata, color="G", region=r, crop_um=crop), out)
        measure("outlines alone", lambda: ss.pl.spatial(sdata, region="cells"), out)


if __name__ == "__main__":
    main()
