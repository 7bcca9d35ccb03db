"""How well any predictor could do: the noise ceiling by count splitting."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ..errors import InputError
from .metrics import pearson
from .normalize import check_counts, library_sizes, log1p_cp10k, log1p_raw
from .splits import slide_codes


def thin(counts: Any, rng: np.random.Generator, *, probability: float = 0.5) -> Any:
    """Binomial thinning: keep each molecule with a probability.

    The kept and the dropped counts are independent given the rate when counts are Poisson around it.

    Parameters
    ----------
    counts
        [n, genes] whole numbers, dense or CSR.
    rng
        Source of randomness.
    probability
        Share kept, 0..1.

    Returns
    -------
    int64, same shape and kind.
    """
    if sparse.issparse(counts):
        kept = rng.binomial(_whole(counts.data), probability)
        return sparse.csr_array((kept, counts.indices, counts.indptr), shape=counts.shape)
    return rng.binomial(_whole(counts), probability)


def noise_ceiling(
    counts: Any,
    *,
    library: np.ndarray | None = None,
    normalize: str = "cp10k",
    target: float = 1e4,
    groups: np.ndarray | None = None,
    draws: int = 10,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Highest Pearson correlation that a perfect predictor of the underlying expression would reach.

    Counts are split at random into two halves that share the expression and not the sampling noise. Their
    correlation r per gene, stretched to full depth by Spearman-Brown, is the reliability 2r / (1 + r) of the measured
    values; a noise-free predictor correlates with them at its square root.

    Parameters
    ----------
    counts
        [n, genes] raw counts of the scored rows and genes, dense or sparse.
    library
        [n] total counts over all genes; the part that is not in `counts` is split too. None: rows' own sums.
    normalize
        "cp10k" (`log1p_cp10k`) or "raw" (`log1p_raw`): the normalisation that the score uses.
    target
        See `log1p_cp10k`.
    groups
        [n] fold or section: correlations are taken inside each and averaged, as scores with `folds` are.
    draws
        Random splits that are averaged; 10 leaves a standard error of about 0.002 for 50 genes on 180 spots.
    seed
        Random seed.

    Returns
    -------
    "pearson" and "reliability", float64 [genes], 0..1; NaN for genes that are constant in a half.
    """
    counts = check_counts(counts)
    if normalize not in ("cp10k", "raw"):
        raise InputError(f"no normalisation named {normalize!r}", fix="one of: cp10k, raw")
    own = library_sizes(counts)
    rest = np.zeros_like(own) if library is None else np.asarray(library, dtype=np.float64).ravel() - own
    if (rest < 0).any():
        raise InputError("library sizes are smaller than the counts of their row", where="library")
    codes = slide_codes(groups, counts.shape[0])
    together = np.zeros(counts.shape[1])
    for d in range(draws):
        rng = np.random.default_rng([seed, d])
        first = thin(counts, rng)
        rest_first = rng.binomial(_whole(rest), 0.5)
        halves = []
        for half, others in ((first, rest_first), (counts - first, rest - rest_first)):
            size = library_sizes(half) + others
            values = log1p_raw(half) if normalize == "raw" else log1p_cp10k(half, library=size, target=target)
            halves.append(values.toarray() if sparse.issparse(values) else values)
        parts = [pearson(halves[0][codes == c], halves[1][codes == c]) for c in range(codes.max(initial=0) + 1)]
        together += mean_known(np.stack(parts), axis=0) / draws
    r = np.clip(together, 0, 1)
    reliability = 2 * r / (1 + r)
    return {"pearson": np.sqrt(reliability), "reliability": reliability}


def mean_known(values: np.ndarray, *, axis: int) -> np.ndarray:
    """Mean along an axis of the values that are not NaN; NaN where there are none."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0).sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _whole(values: np.ndarray) -> np.ndarray:
    rounded = np.rint(values)
    if np.abs(rounded - values).max(initial=0) > 1e-3:
        raise InputError("counts are not whole numbers", where="counts", fix="give raw counts, not normalised ones")
    return rounded.astype(np.int64)
