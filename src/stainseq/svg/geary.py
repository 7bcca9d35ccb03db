"""Geary's C on the nearest-neighbour graph, with exact randomisation moments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core import autocorr
from ._autocorr import table

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


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
    """Geary's C of each gene.

    Parameters
    ----------
    counts, coordinates, genes, n_neighbors, is_counts, max_gb, n_jobs, client, seed
        As for ``moran``.

    Returns
    -------
    DataFrame
        ``gene``, ``C``, ``expected`` (1), ``variance``, ``z`` (positive where neighbours are alike, that is C < 1),
        ``log10_pval``, ``pval`` (one-sided: neighbours alike). Genes that do not vary have NaN statistics and pval 1.

    Notes
    -----
    R. C. Geary, The Incorporated Statistician 5, 115 (1954); moments under randomisation: Cliff and Ord, Spatial
    Processes (1981).
    """
    return table(
        autocorr.geary,
        "C",
        counts,
        coordinates,
        genes=genes,
        n_neighbors=n_neighbors,
        is_counts=is_counts,
        max_gb=max_gb,
        n_jobs=n_jobs,
        client=client,
    )
