"""The slide store: streaming a large image, reading windows of points, a grid of 5 million bins.

Each job runs in a process of its own, so that its peak of memory is its own. Run with
``python benchmarks/store.py [image] [points] [grid] [transcripts]``; prints one line per figure.
"""

from __future__ import annotations

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


def timed(work: Any, repeat: int = 1) -> tuple[float, Any]:
    best, result = np.inf, None
    for _ in range(repeat):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return best, result


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def tissue(side: int) -> np.ndarray:
    """Blobs of purple on pink on white, with camera noise: compresses about as real H&E does."""
    import cv2

    rng = np.random.default_rng(0)
    field = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), 60)
    nuclei = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), 4)
    image = np.full((side, side, 3), 243.0, dtype=np.float32)
    image[field > 0] = (226, 170, 200)
    image[(field > 0) & (nuclei > 0.9 * nuclei.std())] = (120, 80, 150)
    image = cv2.GaussianBlur(image, (0, 0), 1.2) + rng.normal(0, 1.5, image.shape)
    return np.ascontiguousarray(image.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))


def image(folder: Path) -> dict[str, Any]:
    import dask.array as da
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, Scale

    from stainseq import store

    side = 20_000
    tile = da.from_array(tissue(2048), chunks=(3, 1024, 1024))
    row = da.concatenate([tile] * 10, axis=2)
    whole = da.concatenate([row] * 10, axis=1)[:, :side, :side]
    transformations = {"global": Identity(), "um": Scale([0.5, 0.5], ("x", "y"))}
    element = Image2DModel.parse(whole, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=transformations)
    before = peak_gb()
    seconds, slide = timed(
        lambda: store.create(folder / "a.zarr", SpatialData(images={"he": element}), step="bench", parameters={})
    )
    written = peak_gb()
    full = slide["he"]["scale0"]["image"]
    window, _ = timed(lambda: full[:, 9000:9448, 9000:9448].values, repeat=5)
    size = sum(f.stat().st_size for f in (folder / "a.zarr").rglob("*") if f.is_file())
    return {
        "job": "20,000 x 20,000 RGB to a store with pyramid",
        "seconds": round(seconds, 1),
        "MB/s": round(side * side * 3 / 1e6 / seconds),
        "imports_gb": round(before, 2),
        "peak_gb": round(written, 2),
        "disk_gb": round(size / 2**30, 2),
        "448 px window, ms": round(window * 1e3, 1),
    }


def plain_image(folder: Path) -> dict[str, Any]:
    import dask.array as da
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity

    side = 20_000
    tile = da.from_array(tissue(2048), chunks=(3, 1024, 1024))
    row = da.concatenate([tile] * 10, axis=2)
    whole = da.concatenate([row] * 10, axis=1)[:, :side, :side]
    element = Image2DModel.parse(
        whole, dims=("c", "y", "x"), scale_factors=[2] * 6, transformations={"um": Identity()}, chunks=(3, 512, 512)
    )
    seconds, _ = timed(lambda: SpatialData(images={"he": element}).write(folder / "p.zarr"))
    return {
        "job": "the same by plain spatialdata",
        "seconds": round(seconds, 1),
        "MB/s": round(side * side * 3 / 1e6 / seconds),
        "peak_gb": round(peak_gb(), 2),
    }


def transcripts(n: int, side: float) -> Any:
    import dask.dataframe as dd
    import pandas as pd
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    genes = pd.Index([f"GENE{i}" for i in range(400)])
    step = 2_500_000

    def part(start: int) -> pd.DataFrame:
        rng = np.random.default_rng([0, start])
        m = min(step, n - start)
        return pd.DataFrame(
            {
                "x": rng.uniform(0, side, m),
                "y": rng.uniform(0, side, m),
                "feature_name": pd.Categorical.from_codes(rng.integers(0, 400, m), categories=genes),
                "qv": rng.uniform(0, 40, m).astype(np.float32),
                "cell_id": rng.integers(0, 200_000, m).astype(np.int32),
            }
        )

    frame = dd.from_map(part, list(range(0, n, step)), meta=part(0).iloc[:0])
    return PointsModel.parse(
        frame, coordinates={"x": "x", "y": "y"}, feature_key="feature_name", transformations={"um": Identity()}
    )


def _points(folder: Path, n: int) -> tuple[float, Any]:
    from spatialdata import SpatialData

    from stainseq import store

    slide = SpatialData(points={"transcripts": transcripts(n, 10_000)})
    return timed(lambda: store.create(folder / "t.zarr", slide, step="bench", parameters={}))


def points(folder: Path) -> dict[str, Any]:
    from spatialdata import SpatialData

    seconds, _ = _points(folder, 5_000_000)
    SpatialData(points={"transcripts": transcripts(5_000_000, 10_000)}).write(folder / "p.zarr")
    ours = child("window", folder)
    plain = child("plain_window", folder)
    return {
        "job": "100 x 100 um of 5 M transcripts",
        "write_s": round(seconds, 1),
        "ours_ms": round(ours["seconds"] * 1e3, 1),
        "plain_ms": round(plain["seconds"] * 1e3, 1),
        "ratio": round(plain["seconds"] / ours["seconds"]),
        "rows": [ours["rows"], plain["rows"]],
        "ours_added_gb": ours["added_gb"],
        "plain_added_gb": plain["added_gb"],
    }


def window(folder: Path) -> dict[str, Any]:
    from stainseq import store

    slide = store.open(folder / "t.zarr")
    before = peak_gb()
    seconds, table = timed(lambda: store.read_points_window(slide, "transcripts", (5000, 5000, 5100, 5100)), repeat=3)
    return {"seconds": seconds, "rows": table.num_rows, "added_gb": round(peak_gb() - before, 2)}


def plain_window(folder: Path) -> dict[str, Any]:
    import spatialdata

    slide = spatialdata.read_zarr(folder / "p.zarr")
    before = peak_gb()
    query = spatialdata.bounding_box_query
    box = {"min_coordinate": [5000, 5000], "max_coordinate": [5100, 5100], "target_coordinate_system": "um"}
    seconds, rows = timed(lambda: len(query(slide["transcripts"], axes=("x", "y"), **box).compute()))
    return {"seconds": seconds, "rows": rows, "added_gb": round(peak_gb() - before, 2)}


def many(folder: Path) -> dict[str, Any]:
    from stainseq import regions, store

    n = 40_000_000
    seconds, slide = _points(folder, n)
    written = peak_gb()
    window_s, table = timed(lambda: store.read_points_window(slide, "transcripts", (5000, 5000, 5100, 5100)), repeat=3)
    side = 1250
    row, col = np.divmod(np.arange(side * side), side)
    pitch = np.diag([8.0, 8.0, 1.0])
    regions.add_grid(
        slide, "bins", rows=row, cols=col, ids=None, shape=(side, side), transform=pitch, step="bench", parameters={}
    )
    bins = regions.get(slide, "bins")
    counting, counts = timed(lambda: regions.aggregate(slide, bins, "transcripts"))
    return {
        "job": "40 M transcripts",
        "write_s": round(seconds, 1),
        "M rows/s": round(n / 1e6 / seconds, 2),
        "write_peak_gb": round(written, 2),
        "window_ms": round(window_s * 1e3, 1),
        "window_rows": table.num_rows,
        "to 1.56 M bins, s": round(counting, 1),
        "counted": int(counts.X.sum()),
        "peak_gb": round(peak_gb(), 2),
    }


def grid(folder: Path) -> dict[str, Any]:
    from spatialdata import SpatialData

    from stainseq import regions, store

    side = 2250
    row, col = np.divmod(np.arange(side * side, dtype=np.int32), side)
    turn = np.deg2rad(1)
    transform = np.array(
        [[2 * np.cos(turn), -2 * np.sin(turn), 50], [2 * np.sin(turn), 2 * np.cos(turn), 80], [1e-7, 0, 1]]
    )
    slide = store.create(folder / "g.zarr", SpatialData(), step="bench", parameters={})
    names = lambda r, c: np.char.add(np.char.add(np.char.add("s_002um_", r.astype(str)), "_"), c.astype(str))  # noqa: E731
    before = peak_gb()
    seconds, _ = timed(
        lambda: regions.add_grid(
            slide,
            "bins_002um",
            rows=row,
            cols=col,
            ids=names,
            shape=(side, side),
            transform=transform,
            step="bench",
            parameters={},
        )
    )
    written = peak_gb()
    reading = child("grid_window", folder)
    opening, region = timed(lambda: regions.get(slide, "bins_002um"))
    xy = np.random.default_rng(0).uniform(100, 4500, (5_000_000, 2))
    assigning, _ = timed(lambda: region.geometry.assign(xy), repeat=2)
    return {
        "job": "grid of 5,062,500 bins",
        "write_s": round(seconds, 1),
        "before_gb": round(before, 2),
        "write_peak_gb": round(written, 2),
        "window_100um_ms": round(reading["seconds"] * 1e3, 1),
        "window_bins": reading["rows"],
        "window_added_gb": reading["added_gb"],
        "open_region_s": round(opening, 2),
        "assign M points/s": round(5 / assigning, 1),
        "peak_gb": round(peak_gb(), 2),
    }


def grid_window(folder: Path) -> dict[str, Any]:
    from stainseq import regions, store

    slide = store.open(folder / "g.zarr")
    before = peak_gb()
    seconds, frame = timed(lambda: regions.read_window(slide, "bins_002um", (2000, 2000, 2100, 2100)), repeat=3)
    return {"seconds": seconds, "rows": len(frame), "added_gb": round(peak_gb() - before, 2)}


def child(job: str, folder: Path) -> dict[str, Any]:
    """Run one job in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--job", job, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


JOBS = {"image": ["image", "plain_image"], "points": ["points"], "grid": ["grid"], "transcripts": ["many"]}


def main() -> None:
    if sys.argv[1:2] == ["--job"]:
        print(json.dumps(globals()[sys.argv[2]](Path(sys.argv[3]))))
        return
    for group in sys.argv[1:] or JOBS:
        for job in JOBS[group]:
            folder = Path(tempfile.mkdtemp())
            try:
                print(json.dumps(child(job, folder)), flush=True)
            finally:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
