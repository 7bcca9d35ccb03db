"""Visium HD with 5 million bins of 2 um: conversion to a store, windows of counts and outlines, beside spatialdata-io.

Each job runs in a process of its own, so that its peak of memory is its own. The folder is generated in bands, with
the sizes of real runs: 18,085 genes, about 20 counts in a bin of 2 um, full-resolution H&E.

Run with ``python benchmarks/visium_hd.py [--side 2240] [--folder KEEP] [--reference PYTHON]``; `PYTHON` is the
interpreter of an environment that has spatialdata-io. Prints one line per figure.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

GENES = 18_085
COUNTS = 20.0
MPP = 0.2738
BAND = 64
"""Bins of 2 um that are drawn at a time: whole bins of 16 um, and less than 100 MB."""


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def generate(folder: Path, side: int) -> dict[str, Any]:
    """Write the folder band by band; every bin is under tissue."""
    from scipy import sparse

    from stainseq.datasets import _tenx

    rng = np.random.default_rng(0)
    popularity = rng.lognormal(0, 2.0, GENES)
    edges = np.cumsum(popularity / popularity.sum())
    genes = tuple(f"GENE{i:05d}" for i in range(GENES))
    to_px = _array_to_picture(side)
    squares = {um: folder / "binned_outputs" / f"square_{um:03d}um" for um in (2, 8, 16)}
    for square in squares.values():
        (square / "spatial").mkdir(parents=True)
    matrices = {um: _tenx.Matrix(square / "filtered_feature_bc_matrix.h5", genes) for um, square in squares.items()}
    places = {um: _tenx.Positions(square / "spatial", um, to_px, MPP) for um, square in squares.items()}
    for top in range(0, side, BAND):
        rows = min(BAND, side - top)
        total = rng.poisson(COUNTS * np.exp(0.5 * rng.standard_normal(rows * side) - 0.125))
        which = np.repeat(np.arange(rows * side, dtype=np.int32), total)
        gene = np.searchsorted(edges, rng.random(len(which))).clip(0, GENES - 1).astype(np.int32)
        shape = (rows * side, GENES)
        fine = sparse.coo_array((np.ones(len(which), dtype=np.int32), (which, gene)), shape=shape).tocsr()
        for um in squares:
            k = um // 2
            band = _tenx.coarsened(fine, (rows, side), k)
            row, column = np.divmod(np.arange(band.shape[0], dtype=np.int32), side // k)
            row += top // k
            places[um].append(row, column, np.ones(len(row), dtype=bool))
            matrices[um].append(band, _tenx.barcodes(um, row, column))
    nonzero = {um: m.close() for um, m in matrices.items()}
    for p in places.values():
        p.close()
    _for_the_reference(folder, side, genes, to_px)
    _picture(folder / "microscope_image" / "he.btf", round(side * 2 / MPP) + 200)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return {
        "job": f"generate {side * side / 1e6:.2f} M bins of 2 um",
        "millions of non-zeros": {um: round(n / 1e6, 1) for um, n in nonzero.items()},
        "disk_gb": round(size / 2**30, 2),
        "peak_gb": round(peak_gb(), 2),
    }


def _for_the_reference(folder: Path, side: int, genes: tuple[str, ...], to_px: np.ndarray) -> None:
    """What spatialdata-io wants to see, too: metadata of the feature slices, small pictures."""
    import cv2
    from scipy import sparse

    from stainseq.datasets import _tenx

    nothing = sparse.csr_array((side * side, len(genes)), dtype=np.int32)
    all_of_it = np.ones((side, side), dtype=bool)
    _tenx.feature_slices(folder / "feature_slice.h5", nothing, (side, side), genes, tissue=all_of_it, to_px=to_px)
    (folder / "spatial").mkdir(exist_ok=True)
    for name in ("tissue_hires_image.png", "tissue_lowres_image.png", "cytassist_image.tiff"):
        cv2.imwrite(str(folder / "spatial" / name), np.full((600, 600, 3), 240, dtype=np.uint8))


def _array_to_picture(side: int) -> np.ndarray:
    """Microns of the array to pixels, mirrored, turned by 0.87 degrees, and a slight homography, as real ones are."""
    angle = np.radians(0.87)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    mirror = np.array([[-1, 0, 2 * side], [0, 1, 0], [0, 0, 1.0]])
    matrix = np.array([[1, 0, 100], [0, 1, 50], [0, 0, 1.0]]) @ np.diag([1 / MPP, 1 / MPP, 1.0]) @ turn @ mirror
    matrix[2, :2] = 2e-8, -1e-8
    return matrix / matrix[2, 2]


def _picture(path: Path, side: int) -> None:
    """A tiled BigTIFF of the size of the array, from one piece of tissue over and over."""
    import cv2
    import tifffile

    import stainseq as ss

    source = cv2.imread(str(next(ss.datasets.her2st("C2").glob("*.jpg"))))[:, :, ::-1]
    tile = np.ascontiguousarray(source[2000:2512, 2000:2512])
    path.parent.mkdir()
    n = -(-side // 512)
    options: dict[str, Any] = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 85}}
    tifffile.imwrite(
        path,
        (tile for _ in range(n * n)),
        shape=(side, side, 3),
        dtype="uint8",
        bigtiff=True,
        tile=(512, 512),
        **options,
    )


def convert(folder: Path, out: Path) -> dict[str, Any]:
    import stainseq as ss

    start, used = time.perf_counter(), cpu_s()
    slide = ss.io.convert(folder, out)
    seconds = time.perf_counter() - start
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return {
        "job": "stainseq convert",
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu_s() - used, 1),
        "peak_gb": round(peak_gb(), 2),
        "disk_gb": round(size / 2**30, 2),
        "tables": {name: list(t.shape) for name, t in slide.tables.items()},
    }


def windows(folder: Path, out: Path) -> dict[str, Any]:
    """Windows with the tables left on disk, and the same with the whole slide open."""
    import spatialdata

    import stainseq as ss

    found: dict[str, Any] = {"job": "windows"}
    for how, opener in (
        ("tables on disk", lambda: spatialdata.read_zarr(out, selection=("images", "points"))),
        ("all in memory", lambda: ss.io.open(out)),
    ):
        start = time.perf_counter()
        slide = opener()
        found[how] = {"open_s": round(time.perf_counter() - start, 1)}
        for name, width in (("bins_002um", 100), ("bins_002um", 500), ("bins_008um", 500)):
            found[how][f"{width} um of {name}"] = _window(slide, name, width)
        found[how]["peak_gb"] = round(peak_gb(), 2)
    return found


def _window(slide: Any, name: str, width: int) -> dict[str, Any]:
    from stainseq import regions

    x, y = regions.get(slide, name).centres_um.mean(axis=0)
    box = (x, y, x + width, y + width)
    start = time.perf_counter()
    frame = regions.read_window(slide, name, box)
    outlines = time.perf_counter() - start
    start = time.perf_counter()
    counts = regions.read_counts(slide, name, box)
    seconds = time.perf_counter() - start
    return {
        "bins": [len(frame), counts.n_obs],
        "counts": int(counts.X.sum()),
        "outlines_ms": round(outlines * 1e3),
        "outlines and counts_ms": round(seconds * 1e3),
    }


def reference(folder: Path, out: Path) -> dict[str, Any]:
    """spatialdata-io: what its users call, and writing it."""
    import spatialdata_io

    start, used = time.perf_counter(), cpu_s()
    slide = spatialdata_io.visium_hd(folder, dataset_id="", load_segmentations_only=False)
    read = time.perf_counter() - start
    slide.write(out.with_name("reference.zarr"))
    return {
        "job": "spatialdata-io visium_hd and write",
        "read_s": round(read, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_s": round(cpu_s() - used, 1),
        "peak_gb": round(peak_gb(), 2),
    }


JOBS = {"convert": convert, "windows": windows, "reference": reference}


def child(job: str, folder: Path, out: Path, python: str = sys.executable) -> dict[str, Any]:
    done = subprocess.run([python, __file__, "--child", job, str(folder), str(out)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]
        return {"job": job, "failed": last}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    if "--child" in sys.argv:
        job, folder, out = sys.argv[2:5]
        print(json.dumps(JOBS[job](Path(folder), Path(out))))
        return
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--side", type=int, default=2240, help="bins of 2 um along a side, a multiple of 64")
    options.add_argument("--folder", type=Path, help="where the generated folder is kept; default a temporary one")
    options.add_argument("--reference", help="Python that has spatialdata-io")
    given = options.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="visium_hd_"))
    folder, out = given.folder or scratch / "run", scratch / "slide.zarr"
    try:
        if not folder.exists():
            print(generate(folder, given.side), flush=True)
        print(child("convert", folder, out), flush=True)
        print(child("windows", folder, out), flush=True)
        if given.reference:
            print(child("reference", folder, out, given.reference), flush=True)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
