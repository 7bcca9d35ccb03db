"""Shifts between samples taken out of an embedding, before it is clustered."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..errors import DependencyError, InputError

Correction = Literal["none", "centre", "harmony"]
_ROWS_PER_CLUSTER, _CLUSTERS = 30, 100  # harmonypy's own rule, which comes to none at all below 15 rows


def correct(values: np.ndarray, samples: np.ndarray, how: Correction, *, seed: int) -> np.ndarray:
    """Move the rows of each sample so that samples can be clustered together.

    Parameters
    ----------
    values
        float64 [n, d] embedding, rows in canonical order.
    samples
        int [n] codes.
    how
        "none": as they are. "centre": each sample's mean is subtracted, which supposes that samples hold much the same
        tissue. "harmony": Harmony, which mixes samples within soft clusters, and so may also pull apart or together
        what truly differs in amount; it needs ``harmonypy`` and gives the same bits on any number of threads.
    seed
        Of Harmony's clusters.

    Raises
    ------
    InputError
        No such correction.
    DependencyError
        harmonypy is not installed.

    Notes
    -----
    I. Korsunsky et al., Nature Methods 16, 1289 (2019).
    """
    if how not in ("none", "centre", "harmony"):
        raise InputError(f"correction is {how!r}", where="domains", fix="give none, centre or harmony")
    n_samples = int(samples.max(initial=0)) + 1
    if how == "none" or n_samples < 2:
        return values
    if how == "centre":
        size = np.bincount(samples)
        means = np.stack([np.bincount(samples, weights=column) / size for column in values.T], axis=1)
        return np.asarray(values - means[samples])
    try:
        from harmonypy import run_harmony
    except ImportError as e:
        raise DependencyError(
            "harmonypy is not installed", where="correction harmony", fix="pip install 'stainseq[harmony]'"
        ) from e
    n_clusters = int(np.clip(round(len(values) / _ROWS_PER_CLUSTER), 2, _CLUSTERS))
    found = run_harmony(
        values.T, {"sample": samples}, "sample", nclust=n_clusters, random_state=seed, verbose=False, ncores=1
    )
    return np.ascontiguousarray(found.Z_corr, dtype=np.float64)
