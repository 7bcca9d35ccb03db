"""What Moran's I and Geary's C share: values, weights, gene blocks and the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ..core import autocorr, neighbors
from ..errors import InputError
from ._prepare import Sample, block_width, map_blocks, one_blas_thread, threads

if TYPE_CHECKING:
    import pandas as pd

_BLOCK = 512
_COPIES = 12
"""Arrays of a gene block by places that may be alive at once, over all threads."""
_TARGET = 1e4
_DENSE = 0.3
"""From this share of stored values on a block is tested as a dense array, which is also kinder to large means."""


@one_blas_thread
def table(
    test: Callable[[Any, autocorr.Graph], autocorr.Autocorrelation],
    name: str,
    counts: Any,
    coordinates: np.ndarray,
    *,
    genes: Any,
    n_neighbors: int,
    is_counts: bool,
    max_gb: float,
    n_jobs: int | None,
    client: Any,
) -> pd.DataFrame:
    """Run one of the two tests on log-normalised values and lay out its table."""
    import pandas as pd

    if n_neighbors < 1:
        raise InputError(f"n_neighbors is {n_neighbors}", fix="give at least 1")
    sample = Sample(counts, coordinates, genes=genes, signed=not is_counts)
    if sample.shape[0] < 4:
        raise InputError(f"spatial autocorrelation of {sample.shape[0]} places", fix="needs at least 4")
    graph = autocorr.Graph.of(autocorr.row_standardised(neighbors.knn_graph(sample.coordinates, k=n_neighbors)))
    factor = None
    if is_counts:
        total = sample.totals()
        factor = np.divide(_TARGET, total, out=np.zeros_like(total), where=total > 0)

    def work(block: sparse.csc_array) -> autocorr.Autocorrelation:
        if factor is not None:
            values = np.log1p(block.data * factor[block.indices])
            block = sparse.csc_array((values, block.indices, block.indptr), shape=block.shape)
        full = block.nnz > _DENSE * block.shape[0] * block.shape[1]
        return test(block.toarray() if full else block, graph)

    width = block_width(sample.shape[0], max_gb, _COPIES, _BLOCK)
    parts = list(map_blocks(sample.block, work, sample.shape[1], width, threads(n_jobs), client=client))
    found = {
        f: np.concatenate([getattr(p, f) for p in parts]) for f in ("statistic", "variance", "z", "log_p", "skewness")
    }
    return pd.DataFrame(
        {
            "gene": np.asarray(genes, dtype=object),
            name: found["statistic"],
            "expected": parts[0].expected,
            "variance": found["variance"],
            **({"skewness": found["skewness"]} if name == "I" else {}),
            "z": found["z"],
            "log10_pval": found["log_p"] / np.log(10),
            "pval": np.exp(found["log_p"]),
        }
    )
