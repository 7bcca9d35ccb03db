"""What Moran's I and Geary's C share: values, weights and the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import autocorr, neighbors, normalize
from ..errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def table(
    test: Callable[[Any, Any], autocorr.Autocorrelation],
    name: str,
    counts: Any,
    coordinates: np.ndarray,
    *,
    genes: Any,
    n_neighbors: int,
    is_counts: bool,
) -> pd.DataFrame:
    """Run one of the two tests on log-normalised values and lay out its table."""
    import pandas as pd

    if n_neighbors < 1:
        raise InputError(f"n_neighbors is {n_neighbors}", fix="give at least 1")
    values = normalize.log1p_cp10k(counts) if is_counts else counts
    weights = autocorr.row_standardised(neighbors.knn_graph(coordinates, k=n_neighbors))
    found = test(values, weights)
    return pd.DataFrame(
        {
            "gene": np.asarray(genes, dtype=object),
            name: found.statistic,
            "expected": found.expected,
            "variance": found.variance,
            **({"skewness": found.skewness} if name == "I" else {}),
            "z": found.z,
            "log10_pval": found.log_p / np.log(10),
            "pval": np.exp(found.log_p),
        }
    )
