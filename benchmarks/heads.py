"""Speed and memory of the heads on the shapes that users have.

    python benchmarks/heads.py                # small: seconds
    python benchmarks/heads.py --full         # 5 folds x 20 penalties x 1,000 genes x 100,000 rows x 2,848 features

The ridge path (every fold and penalty trained and scored) is compared with one scikit-learn Ridge fit per penalty and
fold: two such fits are timed with their scoring and multiplied.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import numpy as np

from stainseq.core.metrics import pearson
from stainseq.heads import _ridge

# CPU seconds of all threads: on a shared machine wall time says more about the neighbours than about the code.
CLOCK = time.process_time


def planted(n: int, d: int, g: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of a decaying spectrum, as encoders give, and targets that a linear map explains in part."""
    rng = np.random.default_rng(seed)
    k = min(d, 200)
    load = (rng.standard_normal((k, d)) * (1 / np.sqrt(1 + np.arange(k)))[:, None]).astype(np.float32)
    latent = rng.standard_normal((n, k), dtype=np.float32)
    X = np.empty((n, d), dtype=np.float32)
    for s in range(0, n, 8192):
        X[s : s + 8192] = latent[s : s + 8192] @ load
        X[s : s + 8192] += 0.5 * rng.standard_normal(X[s : s + 8192].shape, dtype=np.float32)
    Y = latent @ (rng.standard_normal((k, g)) * 0.05).astype(np.float32)
    Y += rng.standard_normal((n, g), dtype=np.float32)
    return X, Y


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def ours(X: np.ndarray, Y: np.ndarray, folds: np.ndarray, alphas: np.ndarray) -> tuple[float, _ridge.Path]:
    start = CLOCK()
    path = _ridge.make(X, Y, np.ones(len(X)), folds).path(alphas)
    return CLOCK() - start, path


def stock(X: np.ndarray, Y: np.ndarray, folds: np.ndarray, alphas: np.ndarray) -> tuple[float, list[np.ndarray]]:
    """Mean CPU seconds of one scikit-learn fit and scoring, and the scores of the fits timed."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    seconds, scores = [], []
    train, test = folds != 0, folds == 0
    scaler = StandardScaler().fit(X[train])
    Z, T = scaler.transform(X[train]), scaler.transform(X[test])
    for alpha in alphas[[0, -1]]:  # standardising is not timed: it could be shared
        start = CLOCK()
        p = Ridge(alpha=alpha, copy_X=False).fit(Z, Y[train]).predict(T)
        error = ((p - Y[test]) ** 2).mean(axis=0)
        r = pearson(Y[test], p)
        seconds.append(CLOCK() - start)
        scores.append(np.stack([error, r]))
    return float(np.mean(seconds)), scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--json")
    args = parser.parse_args()
    n, d, g = (100_000, 2848, 1000) if args.full else (10_000, 1000, 200)
    n = args.rows or n
    X, Y = planted(n, d, g)
    folds, alphas = np.arange(n) % 5, np.logspace(0, 7, 20)
    data_gb = peak_gb()
    seconds, path = ours(X, Y, folds, alphas)
    ours_gb = peak_gb()
    one, scores = stock(X, Y, folds, alphas)
    gap = max(float(np.abs(path.pearson[0, a] - s[1]).max()) for a, s in zip((0, -1), scores, strict=True))
    result = {
        "shape": [n, d, g],
        "folds": 5,
        "penalties": 20,
        "cpu_seconds": seconds,
        "sklearn_cpu_seconds": one * 100,
        "speedup": one * 100 / seconds,
        "largest_difference_of_pearson": gap,
        "data_gb": data_gb,
        "peak_gb": ours_gb,
    }
    print(json.dumps(result, indent=1))
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f)


if __name__ == "__main__":
    sys.exit(main())
