"""Throughput of encoding against the encoder's bare forward pass, and peak memory of a 20,000 x 20,000 px slide.

    python benchmarks/slide.py IMAGE [IMAGE ...] [--side 20000] [--regions 512] [--encoder NAME]

The slide is made by tiling the given images. Each part runs in a process of its own, so that its peak memory is its
own; throughput and the bare forward pass are measured in one process, one after the other, three times.
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
from pathlib import Path

from stainseq import encoders


def make_slide(images: list[str], out: Path, side: int) -> None:
    """A tiled JPEG TIFF of `side` px, written tile by tile from the images in turn."""
    import cv2
    import numpy as np
    import tifffile

    sources = [cv2.cvtColor(cv2.imread(p), cv2.COLOR_BGR2RGB) for p in images]
    tile = 512

    def tiles() -> object:
        for y in range(0, side, tile):
            for x in range(0, side, tile):
                source = sources[(y // 8192 + x // 8192) % len(sources)]
                h, w = source.shape[0] - tile, source.shape[1] - tile
                block = source[y % h : y % h + tile, x % w : x % w + tile]
                yield np.ascontiguousarray(block[: min(tile, side - y), : min(tile, side - x)])

    with tifffile.TiffWriter(out, bigtiff=True) as tif:
        tif.write(
            tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(tile, tile), photometric="rgb", compression="jpeg"
        )


def convert(source: str, out: str) -> dict[str, object]:
    import stainseq as ss

    start = time.perf_counter()
    ss.io.convert(source, out, platform="wsi", mpp=0.688)
    return {"seconds": round(time.perf_counter() - start, 1)}


def encode(store: str, encoder: str, regions: int) -> dict[str, object]:
    import numpy as np

    from stainseq import engine, image
    from stainseq import store as stores

    opened = image.open_image(stores.open(store))
    network = encoders.load(encoder)
    height, width = (s * opened.mpp for s in opened.shape)
    side = int(np.sqrt(regions))
    corner = np.array([width, height]) * 0.2
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    points = corner + grid * 100.0
    batch = np.random.default_rng(0).integers(
        0, 255, (engine.BATCH, len(network.fields_um), network.input_px, network.input_px, 3), dtype=np.uint8
    )
    network(batch)
    ratios, rates = [], []
    for repeat in range(3):
        bare = _bare(network, batch, len(points) // engine.BATCH)
        start = time.perf_counter()
        engine.encode_points(opened, points + repeat * 0.01, network)
        rate = len(points) / (time.perf_counter() - start)
        ratios.append(rate / bare)
        rates.append(rate)
    return {
        "regions": len(points),
        "regions_per_s": [round(r, 1) for r in rates],
        "of_bare_forward": [round(r, 3) for r in ratios],
    }


def _bare(network: object, batch: object, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(max(1, calls)):
        network(batch)  # type: ignore[operator]
    return max(1, calls) * len(batch) / (time.perf_counter() - start)  # type: ignore[arg-type]


def apart(*arguments: str) -> dict[str, object]:
    """Run one part in a process of its own; adds its peak memory."""
    # A cache of its own: what an earlier run has encoded must not be found.
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "STAINSEQ_CACHE_DIR": cache}
        command = [sys.executable, __file__, "--part", *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--part"]:
        part, *rest = sys.argv[2:]
        result = convert(*rest) if part == "convert" else encode(rest[0], rest[1], int(rest[2]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**result, "peak_gb": round(peak, 2)}))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+")
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--regions", type=int, default=529)
    parser.add_argument("--encoder", default=encoders.default_name())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slide, store = Path(folder) / "slide.tif", Path(folder) / "slide.zarr"
        make_slide(args.images, slide, args.side)
        print(json.dumps({"slide": f"{args.side} x {args.side} px", "tiff_gb": round(slide.stat().st_size / 2**30, 2)}))
        print("convert", json.dumps(apart("convert", str(slide), str(store))))
        print("encode ", json.dumps(apart("encode", str(store), args.encoder, str(args.regions))))


if __name__ == "__main__":
    main()
