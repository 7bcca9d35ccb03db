"""Which genes to model: highly variable by Pearson residuals, or the HEST benchmark's rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from ..errors import InputError
from .normalize import check_counts

_BLOCK_VALUES = 1 << 23  # dense values held at once: 64 MB of float64


def residual_variances(counts: Any, *, theta: float = 100.0, clip: float | None = None) -> np.ndarray:
    """Variance of each gene's analytic Pearson residuals under a negative binomial null.

    Lause, Berens & Kobak, Genome Biology 2021: mu = row total x gene total / total,
    r = (x - mu) / sqrt(mu + mu^2 / theta), clipped; the variance is the population variance over rows.

    Parameters
    ----------
    counts
        [n, genes] raw counts, dense or sparse. Memory: one block of genes at a time is made dense.
    theta
        Overdispersion of the null; 100 as in the paper.
    clip
        Bound of |r|; None is sqrt(n), as in the paper.

    Returns
    -------
    float64 [genes]; 0 for genes without counts.
    """
    counts = check_counts(counts)
    n, n_genes = counts.shape
    if clip is None:
        clip = float(np.sqrt(n))
    columns = counts.tocsc() if sparse.issparse(counts) else counts
    rows = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    genes = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    total, used = genes.sum(), rows > 0
    out = np.zeros(n_genes)
    step = max(1, _BLOCK_VALUES // max(n, 1))
    for start in range(0, n_genes if total > 0 else 0, step):
        block = columns[:, start : start + step]
        block = block.toarray() if sparse.issparse(block) else block
        mu = np.outer(rows[used], genes[start : start + step] / total)
        r = block[used] - mu
        scale = np.sqrt(mu + mu * mu / theta)
        np.divide(r, scale, out=r, where=scale > 0)
        np.clip(r, -clip, clip, out=r)
        # Rows without counts have residual 0 for every gene but still count as rows.
        mean = r.sum(axis=0) / n
        out[start : start + step] = (r * r).sum(axis=0) / n - mean**2
    out[genes == 0] = 0
    return np.maximum(out, 0)


def detected_fraction(counts: Any) -> np.ndarray:
    """Share of rows in which each gene has a count, float64 [genes]."""
    counts = check_counts(counts)
    if sparse.issparse(counts):
        seen = np.bincount(counts.indices[counts.data > 0], minlength=counts.shape[1])
    else:
        seen = (counts > 0).sum(axis=0)
    return seen / max(counts.shape[0], 1)


def highly_variable(
    counts: Any,
    *,
    n_top: int,
    batches: np.ndarray | None = None,
    min_fraction: float = 0.1,
    theta: float = 100.0,
    clip: float | None = None,
) -> np.ndarray:
    """Indices of the most variable genes, best first.

    Genes are ranked inside each batch by the variance of their Pearson residuals; a gene counts for a batch if it is
    among its `n_top`; genes are ordered by the number of such batches, then by the median rank over them (the
    ``pearson_residuals`` flavour of scanpy.experimental), then by the mean residual variance, then by index.
    Unlike scanpy 1.11, each batch is clipped at the square root of its own size rather than the first batch's.

    Parameters
    ----------
    counts
        [n, genes] raw counts of the **training rows only**; genes chosen on test rows leak.
    n_top
        How many.
    batches
        [n] section or slide of each row; None is one batch.
    min_fraction
        A gene must have a count in at least this share of the rows of every batch. 0.1 as in the HEST benchmark:
        below it, normalised counts are mostly a record of the depth. 0 switches it off.
    theta, clip
        See `residual_variances`.

    Returns
    -------
    int64 [at most n_top]; fewer where fewer genes pass `min_fraction`.

    Raises
    ------
    InputError
        No gene passes.
    """
    counts = check_counts(counts)
    if n_top < 1:
        raise InputError(f"n_top is {n_top}", fix="ask for at least one gene")
    codes = _codes(batches, counts.shape[0])
    variances, keep = [], np.ones(counts.shape[1], dtype=bool)
    for b in range(codes.max(initial=0) + 1):
        part = counts[np.flatnonzero(codes == b)]
        keep &= detected_fraction(part) >= min_fraction
        variances.append(residual_variances(part, theta=theta, clip=clip))
    table = np.stack(variances)
    keep &= table.max(axis=0) > 0
    if not keep.any():
        raise InputError(
            f"no gene has counts in at least {min_fraction:.0%} of the rows of every batch",
            where="counts",
            fix="lower min_fraction",
        )
    kept = np.flatnonzero(keep)
    table = table[:, kept]
    ranks = np.argsort(np.argsort(-table, axis=1, kind="stable"), axis=1, kind="stable").astype(float)
    among = ranks < n_top
    times = among.sum(axis=0)
    median = np.full(len(kept), np.inf)
    chosen = times > 0
    median[chosen] = np.nanmedian(np.where(among, ranks, np.nan)[:, chosen], axis=0)
    order = np.lexsort((kept, -table.mean(axis=0), median, -times))
    return kept[order][:n_top].astype(np.int64)


def hest_genes(
    counts: Sequence[Any], *, genes: Sequence[str], n_top: int = 50, min_fraction: float = 0.1, n_bins: int = 20
) -> np.ndarray:
    """Genes by the HEST benchmark's rule: normalised dispersion of log1p of raw counts.

    Per slide, genes with counts in at least ceil(min_fraction x rows) rows; their intersection without names that
    hold "BLANK" or "Control"; all slides together, log1p, Seurat's dispersion (Satija et al. 2015) normalised in
    equal-width bins of mean expression.

    Parameters
    ----------
    counts
        One [n, genes] matrix of raw counts per slide, same columns. The benchmark itself gives **all** slides, test
        slides too; for an honest score give the training slides.
    genes
        Names of the columns.
    n_top
        How many; the benchmark's is 50.
    min_fraction, n_bins
        The benchmark's values.

    Returns
    -------
    int64 [n_top] column indices in the order of the gene names, as the benchmark lists them.
    """
    names = np.asarray(genes, dtype=str)
    checked = [check_counts(c) for c in counts]
    if any(c.shape[1] != len(names) for c in checked):
        raise InputError("a slide has another number of genes than there are names", where="counts", fix="join by name")
    keep = (np.char.find(names, "BLANK") < 0) & (np.char.find(names, "Control") < 0)
    for c in checked:
        keep &= detected_fraction(c) * c.shape[0] >= np.ceil(min_fraction * c.shape[0]) - 1e-9
    kept = np.flatnonzero(keep)
    if len(kept) == 0:
        raise InputError("no gene is common to all slides", where="counts", fix="lower min_fraction")
    kept = kept[np.argsort(names[kept], kind="stable")]
    stacked = sparse.vstack([sparse.csr_array(c)[:, kept] for c in checked], format="csr").astype(np.float32)
    score = _seurat_dispersion(stacked, n_bins)
    top = min(n_top, len(kept))
    cutoff = np.sort(score[~np.isnan(score)])[::-1][top - 1]
    return kept[np.flatnonzero(np.nan_to_num(score, nan=-np.inf) >= cutoff)][:top].astype(np.int64)


def _seurat_dispersion(counts: Any, n_bins: int) -> np.ndarray:
    """Dispersion of raw counts, standardised in bins of log mean (expm1 of log1p is the counts again)."""
    n = counts.shape[0]
    mean = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel() / n
    square = counts.multiply(counts).astype(np.float64)
    variance = (np.asarray(square.sum(axis=0)).ravel() - n * mean**2) / max(n - 1, 1)
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = np.maximum(variance, 0) / mean
    dispersion = np.log(np.where(dispersion == 0, np.nan, dispersion))
    level = np.log1p(mean)
    edges = np.linspace(level.min(), level.max(), n_bins + 1)
    edges[0] -= (edges[-1] - edges[0]) * 0.001  # as pandas.cut, so that the lowest gene falls in the first bin
    bins = np.clip(np.searchsorted(edges, level, side="left") - 1, 0, n_bins - 1)
    score = np.full(len(level), np.nan)
    for b in np.unique(bins):
        members = np.flatnonzero(bins == b)
        known = dispersion[members][~np.isnan(dispersion[members])]
        if len(known) == 0:
            continue
        # A bin of one gene has no spread; Seurat's convention makes its score 1.
        centre, width = (known.mean(), known.std(ddof=1)) if len(known) > 1 else (0.0, known[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            score[members] = (dispersion[members] - centre) / width
    return score


def _codes(labels: np.ndarray | None, n: int) -> np.ndarray:
    if labels is None:
        return np.zeros(n, dtype=np.int64)
    labels = np.asarray(labels)
    if len(labels) != n:
        raise InputError(f"{len(labels)} batch labels for {n} rows", where="batches", fix="give one per row")
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
