"""kill -9 at random moments of convert and features: the store must open, and going on must give identical results.

    python benchmarks/kill.py SOURCE --kills 20 --encoder lite0-multi2

Runs the job once undisturbed, then again and again with a SIGKILL at a random moment until it gets through, and
compares every array of the final store with the undisturbed one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = """
import sys
from pathlib import Path
import stainseq as ss
from stainseq import store
source, out, encoder, mpp = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
if not out.exists():
    ss.io.convert(source, out, patient="p", mpp=float(mpp) if mpp else None)
sdata = store.open(out)
name = f"features_{encoder.replace('+', '.')}_spots"
if name not in sdata.tables:
    ss.pp.features(sdata, encoder=encoder, batch_size=8)
"""


def job(source: str, out: Path, cache: Path, encoder: str, mpp: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "STAINSEQ_CACHE_DIR": str(cache), "STAINSEQ_PROGRESS": "0"}
    command = [sys.executable, "-c", JOB, source, str(out), encoder, mpp]
    return subprocess.Popen(command, env=env, start_new_session=True)


def content(out: Path) -> dict[str, str]:
    """Fingerprints of all elements, from the bytes of the arrays."""
    from stainseq import store

    sdata = store.open(out)
    return {name: store.fingerprint_of(sdata, name) for _, name, _ in sdata.gen_elements()}


def plain_opens(out: Path) -> None:
    """Plain spatialdata reads it, after our repair."""
    import spatialdata

    from stainseq import store

    store.repair(out)
    spatialdata.read_zarr(out)


def main(argv: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--encoder", default="lite0-multi2")
    parser.add_argument("--mpp", default="")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = time.perf_counter()
        if job(args.source, root / "calm.zarr", root / "calm", args.encoder, args.mpp).wait() != 0:
            raise SystemExit("the undisturbed run failed")
        whole = time.perf_counter() - start
        expected = content(root / "calm.zarr")
        kills, opened, runs = 0, 0, 0
        while kills < args.kills:
            out, cache = root / f"run{runs}.zarr", root / f"cache{runs}"
            runs += 1
            while True:
                process = job(args.source, out, cache, args.encoder, args.mpp)
                try:
                    wait = rng.uniform(0, whole) if kills < args.kills else None
                    code = process.wait(timeout=wait)
                    if code != 0:
                        raise SystemExit(f"a resumed run failed with exit code {code}")
                    break
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    kills += 1
                    if out.exists():
                        content(out)
                        plain_opens(out)
                        opened += 1
            if content(out) != expected:
                raise SystemExit("a resumed run gave another result")
    result = {
        "kills": kills,
        "runs": runs,
        "stores_opened_after_a_kill": opened,
        "identical": True,
        "calm_seconds": round(whole, 1),
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
