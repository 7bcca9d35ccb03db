"""Several tables over the same cells as one: multiple factor analysis, exact, and STHELAR's late fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ..errors import InputError
from .pca import moments, pca


class Fusion(NamedTuple):
    """Axes that several tables share.

    Parameters
    ----------
    scores
        float64 [n, d], one column an axis.
    variance
        float64 [d], variance (divisor n - 1) of each axis, falling.
    weights
        float64 [blocks], what each block was divided by: its first singular value (`mfa`), the standard deviation of
        its first component (`late_fusion`).
    contributions
        float64 [blocks, d], share of each block in each axis; columns sum to one.
    """

    scores: np.ndarray
    variance: np.ndarray
    weights: np.ndarray
    contributions: np.ndarray


def scaled(X: Any, *, max_value: float | None = 10.0) -> Any:
    """Columns divided by their standard deviation, far values cut off; zeros stay zeros.

    The same as scanpy's ``scale`` up to the column means, which every later step removes: a value counts at most
    `max_value` standard deviations above its column's mean. Only non-zeros can lie that far, so nothing becomes dense.

    Parameters
    ----------
    X
        [n, g] log-normalised expression, dense or CSR.
    max_value
        None cuts nothing. Default 10, as the field's workflows.

    Returns
    -------
    float64 [n, g] of the kind of `X`; columns that do not vary are zero.
    """
    mean, variance = moments(X)
    sd = np.sqrt(variance)
    factor = np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 0)
    most = np.full(len(sd), np.inf) if max_value is None else mean + max_value * sd
    if not sparse.issparse(X):
        return np.minimum(np.asarray(X, dtype=np.float64), most) * factor
    X = X.tocsr().astype(np.float64, copy=True)
    X.data = np.minimum(X.data, most[X.indices]) * factor[X.indices]
    return X


def mfa(blocks: Sequence[Any], n_components: int, *, seed: int = 0) -> Fusion:
    """Multiple factor analysis: each block divided by its first singular value, then one PCA over all columns.

    Parameters
    ----------
    blocks
        Tables [n, g_k] over the same rows, standardised columns (`scaled`), dense or CSR; centred here.
    n_components
        Axes wanted.
    seed
        Start of the Lanczos iterations of wide tables; changes the last digits only.

    Raises
    ------
    InputError
        Rows differ, or a block does not vary.

    Notes
    -----
    Escofier & Pages, Computational Statistics & Data Analysis 1994.
    """
    n = _rows(blocks)
    lengths = np.array([np.sqrt(pca(block, 1, seed=seed).variance[0] * (n - 1)) for block in blocks])
    parts = [block / length for block, length in zip(blocks, lengths, strict=True)]
    joined = sparse.hstack(parts, format="csr") if any(sparse.issparse(b) for b in blocks) else np.hstack(parts)
    found = pca(joined, n_components, seed=seed)
    return Fusion(found.scores, found.variance, lengths, _contributions(found.loadings, [b.shape[1] for b in blocks]))


def late_fusion(
    blocks: Sequence[Any], n_components: int, *, per_block: Sequence[int] | int = 15, seed: int = 0
) -> Fusion:
    """STHELAR's variant: the leading components of each block, scaled so that the first has variance one, and a PCA of
    these.

    Parameters
    ----------
    blocks, n_components, seed
        As in `mfa`.
    per_block
        Components kept of each block; 11 to 21 by eye in the publication. Default 15.
    """
    n = _rows(blocks)
    kept = [per_block] * len(blocks) if isinstance(per_block, int) else list(per_block)
    if len(kept) != len(blocks) or min(kept) < 1:
        raise InputError(
            f"{kept} components for {len(blocks)} blocks", fix="give one number, or one a block, from 1 on"
        )
    scores, spread = [], []
    for block, k in zip(blocks, kept, strict=True):
        found = pca(block, min(k, n - 1), seed=seed)
        spread.append(np.sqrt(found.variance[0]))
        scores.append(found.scores / spread[-1])
    found = pca(np.hstack(scores), n_components, seed=seed)
    shares = _contributions(found.loadings, [s.shape[1] for s in scores])
    return Fusion(found.scores, found.variance, np.array(spread), shares)


def _rows(blocks: Sequence[Any]) -> int:
    sizes = {block.shape[0] for block in blocks}
    if len(sizes) != 1:
        raise InputError(f"blocks of {sorted(sizes)} rows", where="fusion", fix="give tables over the same cells")
    return int(sizes.pop())


def _contributions(loadings: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    return np.stack([(part**2).sum(axis=1) for part in np.split(loadings, np.cumsum(widths)[:-1], axis=1)])
