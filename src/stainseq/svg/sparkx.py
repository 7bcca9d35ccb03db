"""SPARK-X: covariance of counts with eleven transformed coordinates; the fastest, for any number of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import chi2mix
from ..core.autocorr import benjamini_hochberg
from ._prepare import KernelTable, Sample, block_width, map_blocks, one_blas_thread, threads

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_BLOCK = 2048
_COPIES = 8
"""Arrays of a gene block by places that may be alive at once, over all threads, at the density of single cells."""
_QUANTILES = (0.2, 0.4, 0.6, 0.8, 1.0)


@one_blas_thread
def score(
    counts: Any,
    coordinates: Any,
    *,
    genes: Any,
    is_counts: bool = True,
    max_gb: float = 4.0,
    n_jobs: int | None = None,
    client: Any = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Test each gene for covariance with place.

    Parameters
    ----------
    counts
        [n, g] raw counts, sparse or dense, or anything whose column slices are. No normalisation takes place.
    coordinates
        float [n, 2], um.
    genes
        Names, one per column.
    is_counts
        False: values below 0 are allowed; the test is the same.
    max_gb
        Working memory for gene blocks, beside the counts.
    n_jobs
        Threads; default all cores. Results are the same for any number.
    client
        A ``distributed.Client`` whose workers compute the blocks; the same numbers.
    seed
        Not used: the test is deterministic.

    Returns
    -------
    DataFrame
        ``gene``, ``kernel`` (with the smallest p-value: "linear", "gaussian1".."gaussian5", "cosine1".."cosine5"),
        ``adjustedPval`` (Benjamini-Yekutieli, as the authors' adjustment), ``log10_pval``, ``pval`` (Cauchy
        combination, a p of 1 counting as 0.99 so that one symmetric transformation cannot hide the others). NaN for
        genes that do not vary. ``.attrs["kernels"].frame()``: statistic and p per gene and kernel.

    Raises
    ------
    InputError
        No or bad coordinates, negative or missing counts.

    Notes
    -----
    J. Zhu, S. Sun and X. Zhou, Genome Biology 22, 184 (2021). With S the two centred, transformed coordinates of n
    places, T = n y'S (S'S)^-1 S'y / y'y, which under the null is 1 - n mean(y)^2 / y'y times a chi-square with as many
    degrees of freedom as S has columns: both eigenvalues are one, so that no mixture has to be integrated.
    """
    import pandas as pd

    sample = Sample(counts, coordinates, genes=genes, signed=not is_counts)
    bases, names = _bases(sample.coordinates)
    ranks = np.array([basis.shape[1] for basis in bases])
    starts = np.concatenate([[0], np.cumsum(ranks)[:-1]])
    stacked = np.concatenate(bases, axis=1)
    n = sample.shape[0]

    def work(block: Any) -> tuple[NDArray[Any], ...]:
        square = np.asarray((block * block).sum(axis=0)).ravel()
        mean = np.asarray(block.sum(axis=0)).ravel() / n
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic = n * np.add.reduceat((block.T @ stacked) ** 2, starts, axis=1) / square[:, None]
            varying = 1.0 - n * mean**2 / square
        return statistic, np.where(varying > 1e-12, varying, np.nan)

    width = block_width(n, max_gb, _COPIES, _BLOCK)
    parts = list(map_blocks(sample.block, work, sample.shape[1], width, threads(n_jobs), client=client))
    statistic, varying = (np.concatenate(p) for p in zip(*parts, strict=True))
    log_p = chi2mix.log_chi2_sf(statistic / varying[:, None], ranks)
    combined = chi2mix.log_cauchy_combination(log_p, ceiling=0.01)
    best = np.argmin(np.where(np.isnan(log_p), np.inf, log_p), axis=1)
    table = pd.DataFrame(
        {
            "gene": sample.genes,
            "kernel": np.where(np.isnan(combined), None, names[best]),
            **adjusted(combined),
            "log10_pval": combined / np.log(10),
            "pval": np.exp(combined),
        }
    )
    table.attrs["kernels"] = KernelTable(sample.genes, names, None, T=statistic, log_p=log_p)
    return table


def adjusted(log_p: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The authors' adjustment of natural logs of p-values, [g]: Benjamini-Yekutieli."""
    tested = int((~np.isnan(log_p)).sum())
    harmonic = np.log(np.sum(1.0 / np.arange(1, tested + 1))) if tested else 0.0
    return {"adjustedPval": benjamini_hochberg(log_p + harmonic)}


def _bases(coordinates: NDArray[np.float64]) -> tuple[list[NDArray[np.float64]], NDArray[Any]]:
    """Orthonormal bases of the transformed, centred coordinates, so that T is n |Q'y|^2 / y'y."""
    centred = coordinates - coordinates.mean(axis=0)
    scale = np.quantile(np.abs(centred), _QUANTILES, axis=0)
    # Where many cells share a coordinate a quantile can be 0, which would divide by nothing.
    scale = np.where(scale > 0, scale, np.abs(centred).max(axis=0) + (np.ptp(coordinates, axis=0) == 0))
    transformed, names = [centred], ["linear"]
    for k, length in enumerate(scale):
        transformed.append(np.exp(-(centred**2) / (2.0 * length**2)))
        names.append(f"gaussian{k + 1}")
    for k, length in enumerate(scale):
        transformed.append(np.cos(2.0 * np.pi * centred / length))
        names.append(f"cosine{k + 1}")
    bases, kept = [], []
    for columns, name in zip(transformed, names, strict=True):
        columns = columns - columns.mean(axis=0)
        u, s, _ = np.linalg.svd(columns, full_matrices=False)
        full = s > 1e-10 * np.sqrt(len(columns))
        if full.any():
            bases.append(u[:, full])
            kept.append(name)
    return bases, np.array(kept, dtype=object)
