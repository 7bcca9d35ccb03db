"""Moran's I on the nearest-neighbour graph, with exact randomisation moments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import autocorr
from ._autocorr import table

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DEFAULT = True


def score(
    counts: Any,
    coordinates: np.ndarray,
    *,
    genes: Any,
    n_neighbors: int = 6,
    is_counts: bool = True,
    max_gb: float = 4.0,
    n_jobs: int | None = None,
    client: Any = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Moran's I of each gene.

    Parameters
    ----------
    counts
        [n, g] raw counts, sparse, dense or anything whose column slices are; or, with ``is_counts=False``, values to be
        tested as they are.
    coordinates
        float [n, 2], um.
    genes
        Names, one per column.
    n_neighbors
        Nearest neighbours, equal weights, rows summing to 1; all that tie with the last are taken. The default gives
        the six around a spot of a hexagonal array and the eight around one of a square array.
    is_counts
        True: log(1 + counts per 10,000) is tested.
    max_gb
        Working memory for gene blocks, beside the counts and the graph.
    n_jobs
        Threads; default all cores. Results are the same to the last bit for any number.
    client
        A ``distributed.Client`` whose workers compute the blocks; the same numbers.
    seed
        Not used: the test is deterministic.

    Returns
    -------
    DataFrame
        ``gene``, ``I``, ``expected`` (-1 / (n - 1)), ``variance``, ``skewness``, ``z``, ``log10_pval``, ``pval``
        (one-sided: neighbours alike; gamma distribution with the three exact moments). Genes that do not vary have
        NaN statistics and pval 1.

    Notes
    -----
    P. A. P. Moran, Biometrika 37, 17 (1950); moments under randomisation: Cliff and Ord, Spatial Processes (1981).
    """
    return table(
        autocorr.moran,
        "I",
        counts,
        coordinates,
        genes=genes,
        n_neighbors=n_neighbors,
        is_counts=is_counts,
        max_gb=max_gb,
        n_jobs=n_jobs,
        client=client,
    )
