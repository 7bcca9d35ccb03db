"""SpatialDE2's score test on counts: ten kernels, negative binomial null, in closed form for all genes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core import chi2mix, forms, kernels, nbnull, offdiagonal, scoretest
from ..errors import InputError
from ._device import product
from ._prepare import KernelTable, Sample, block_width, map_blocks, one_blas_thread, threads

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_BLOCK = 512
_COPIES = 32
"""Arrays of a gene block by places that may be alive at once, over all threads."""
_NODES = {True: (65, 33, 33), False: (33, 17, 9)}
"""Nodes of the null family with compat and without, up to 3,000 and 200,000 places and beyond. The fewest give z to
2e-5 for usual size factors and to 1e-3 for very unequal ones."""
_PROBE_PLACES = 1 << 21
_WEIGHT = {"SE": 9.0, "PER": 1.0, "linear": 9.0, "sum": 1.0}
"""Share of a kernel in the calibrated combination. A PER kernel looks for one plane wave along x + y, out of all
directions and phases that tissue may have; at equal shares five of them cost 1 to 3 % of the genes found."""


@one_blas_thread
def score(
    counts: Any,
    coordinates: Any,
    *,
    genes: Any,
    compat: bool = False,
    kernel_space: Mapping[str, Any] | None = None,
    omnibus: bool = False,
    sizefactors: Any = None,
    obs_dist: Literal["negative_binomial", "normal"] | None = None,
    is_counts: bool = True,
    max_gb: float = 4.0,
    n_jobs: int | None = None,
    device: str | None = None,
    client: Any = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Test each gene for spatial variance with each kernel, and combine over kernels.

    Parameters
    ----------
    counts
        [n, g] raw counts, sparse or dense, or anything whose column slices are.
    coordinates
        float [n, 2], um.
    genes
        Names, one per column.
    compat
        True: the statistics exactly as SpatialDE2's, faults included. False (default): the calibrated form, whose
        p-values are uniform under the null at every depth and length scale, with more power at equal false
        discovery proportion (see `stainseq.core.offdiagonal`).
    kernel_space
        Kernel name ("SE", "PER", "linear") to one or several length scales, in um; default five each of SE and PER
        from twice the spacing to the largest distance.
    omnibus
        One test of the sum of all kernels instead of one each.
    sizefactors
        [n] positive; default the total counts of each row. Rows of size 0 are left out.
    obs_dist
        "negative_binomial" (default for counts) or "normal" (default for other values): the null distribution.
    is_counts
        Whether values are raw counts.
    max_gb
        Working memory for gene blocks, beside the counts and some hundred bytes a place and kernel.
    n_jobs
        Threads; default all cores. Results are the same to the last bit for any number.
    device
        "cuda" (or "cuda:1", "cpu"): the product of residuals and kernel factors, the largest part of the work for up
        to 3,000 places, goes through torch on that device, in float64. Default: numpy.
    client
        A ``distributed.Client`` whose workers compute the blocks; the same numbers.
    seed
        Not used: the test is deterministic.

    Returns
    -------
    DataFrame
        ``gene``, ``kernel`` and ``l`` (the kernel with the smallest p-value and its length scale, um), ``mean`` (of
        the null, at the mean size factor), ``alpha`` (its dispersion; variance for "normal"), ``log10_pval``,
        ``pval`` (combined over kernels). NaN for genes without counts. ``.attrs["kernels"].frame()``: the same per
        gene and kernel, with ``U``, ``e``, ``I``, ``kappa``, ``nu`` (compat) or ``Q``, ``z``, ``skewness``.

    Raises
    ------
    InputError
        No or bad coordinates, negative or missing counts, size factors that do not fit, an unknown kernel.

    Notes
    -----
    I. Kats, R. Vento-Tormo and O. Stegle, bioRxiv 2021.10.27.466045; combination: Y. Liu and J. Xie, JASA 115, 393
    (2020).
    """

    chosen_dist = obs_dist or ("negative_binomial" if is_counts else "normal")
    if chosen_dist not in ("negative_binomial", "normal"):
        raise InputError(f"no null distribution named {chosen_dist!r}", fix="one of: negative_binomial, normal")
    sample = Sample(counts, coordinates, genes=genes, signed=chosen_dist == "normal")
    null = _NegativeBinomial(sample, sizefactors, compat) if chosen_dist == "negative_binomial" else _Gaussian(sample)
    chosen = kernels.kernel_list(kernel_space, sample.coordinates, base="minimum" if compat else "median")
    n, jobs = sample.shape[0], threads(n_jobs)
    if omnibus and 8 * n * n * 6 > max_gb * 2**30:
        raise InputError(f"omnibus of {n} places needs arrays of {48e-9 * n * n:.1f} GB, more than max_gb={max_gb}",
                         fix="raise max_gb, or leave omnibus out: single kernels need no such arrays")  # fmt: skip
    # Fixed by the data and this option alone: results do not depend on threads.
    width = block_width(n, max_gb, _COPIES, _BLOCK)
    shapes = forms.build(chosen, sample.coordinates, omnibus=omnibus, product=product(device))
    test = (_Compatible if compat else _Calibrated)(shapes, null.family, width, jobs)
    names = ["sum"] if omnibus else [k.name for k in chosen]

    def work(block: Any) -> tuple[NDArray[Any], ...]:
        mean, alpha, r, x, scale = null.residuals(block)
        return mean, alpha, *test(r, x, scale)

    parts = list(map_blocks(sample.block, work, sample.shape[1], width, jobs, client=client))
    mean, alpha, *columns = (np.concatenate(part) for part in zip(*parts, strict=True))
    per_kernel = dict(zip(test.columns, columns, strict=True))
    log_p = per_kernel["log_p"]
    log_p[~(np.isfinite(alpha) & np.isfinite(mean))] = np.nan
    return _table(sample.genes, chosen, omnibus, mean, alpha, per_kernel, test.combine(log_p, names))


class _NegativeBinomial:
    """Fits and residuals of counts."""

    def __init__(self, sample: Sample, given: Any, compat: bool) -> None:
        values = sample.totals() if given is None else sample.per_row(given, "sizefactors")
        if not np.isfinite(values).all() or (values < 0).any():
            raise InputError("size factors that are negative or not finite", where="sizefactors")
        kept = values > 0
        if kept.sum() < 2:
            raise InputError(f"{int(kept.sum())} rows have counts", fix="needs at least 2")
        sample.keep_rows(kept)
        self._compat = compat
        self.sizes = nbnull.compress(values[kept])
        size = int(kept.sum() > forms.DENSE_PLACES) + int(kept.sum() > 200_000)
        self.family = scoretest.NullWeights.of(self.sizes.values, _NODES[compat][size])

    def residuals(self, block: Any) -> tuple[NDArray[Any], ...]:
        m, alpha = nbnull.fit(block.data, block.indices, block.indptr, self.sizes, compat=self._compat)
        r = scoretest.residuals(block.data, block.indices, block.indptr, m, alpha, self.sizes.values)
        x, scale = self.family.place(m, alpha)
        return m * self.sizes.values.mean(), np.where(m > 0, alpha, np.nan), r, x, scale


class _Gaussian:
    """The same of values with constant variance; genes that do not vary are not tested."""

    def __init__(self, sample: Sample) -> None:
        self.family = scoretest.NullWeights.gaussian(sample.shape[0])

    def residuals(self, block: Any) -> tuple[NDArray[Any], ...]:
        values = block.toarray().T
        mean = values.mean(axis=1)
        values -= mean[:, None]
        variance = (values**2).mean(axis=1)
        variance[variance <= (1e-12 * mean) ** 2] = np.nan
        return mean, variance, values / variance[:, None], np.zeros(len(mean)), 1.0 / variance


class _Compatible:
    """SpatialDE2's own moments and chi-square approximation."""

    columns = ("U", "e", "I", "kappa", "nu", "log_p")

    def __init__(self, shapes: forms.Forms, family: scoretest.NullWeights, width: int, n_jobs: int) -> None:
        self._shapes, self._family = shapes, family
        with ThreadPoolExecutor(n_jobs) as pool:
            tables = list(
                pool.map(lambda k: scoretest.compatible_moments(shapes.operator(k), family), range(len(shapes)))
            )
        self._moments = np.stack([np.column_stack(t) for t in tables], axis=1)

    def __call__(self, r: Any, x: Any, scale: Any) -> tuple[NDArray[Any], ...]:
        u = 0.5 * self._shapes.quadratic(r)
        e, information = np.moveaxis(self._family.interpolate(self._moments, x), 2, 0)
        e, information = e * scale[:, None], information * scale[:, None] ** 2
        return u, e, information, *scoretest.chi2_test(u, e, information)

    def combine(self, log_p: NDArray[Any], names: list[str]) -> NDArray[Any]:
        return chi2mix.log_cauchy_combination(log_p)


class _Calibrated:
    """Pairs of places only, three moments, and a combination that knows how the kernels go together."""

    columns = ("Q", "z", "skewness", "log_p")

    def __init__(self, shapes: forms.Forms, family: scoretest.NullWeights, width: int, n_jobs: int) -> None:
        self._shapes = shapes
        makers = [partial(shapes.operator, k) for k in range(len(shapes))]
        self._test = offdiagonal.PairTest(makers, family, n_jobs=n_jobs)
        self._correlation = self._null_correlation(family, width)

    def _null_correlation(self, family: scoretest.NullWeights, width: int) -> NDArray[Any]:
        """Correlation of the kernels' statistics, from Gaussian residuals with the weights of a typical gene."""
        middle = np.array([0.0 if len(family.nodes) == 1 else 0.5])
        w = family.weights_at(middle)[:, 0]
        rng, scores = np.random.default_rng(0), []
        count = int(np.clip(_PROBE_PLACES // len(w), 128, 1024))
        for start in range(0, count, width):
            r = rng.standard_normal((min(width, count - start), len(w))) * np.sqrt(w)
            r -= np.outer(r.sum(axis=1) / w.sum(), w)
            scores.append(self._test.standardise(r, self._shapes.quadratic(r), np.repeat(middle, len(r)))[1])
        return np.corrcoef(np.concatenate(scores), rowvar=False).reshape(len(self._shapes), len(self._shapes))

    def __call__(self, r: Any, x: Any, scale: Any) -> tuple[NDArray[Any], ...]:
        q, z, skewness = self._test.standardise(r, self._shapes.quadratic(r), x)
        return q, z, skewness, offdiagonal.log_tail(z, skewness)

    def combine(self, log_p: NDArray[Any], names: list[str]) -> NDArray[Any]:
        return offdiagonal.combine(log_p, self._correlation, np.array([_WEIGHT[name] for name in names]))


def _table(
    genes: NDArray[Any],
    chosen: list[kernels.Kernel],
    omnibus: bool,
    mean: NDArray[Any],
    alpha: NDArray[Any],
    per_kernel: dict[str, NDArray[Any]],
    combined: NDArray[Any],
) -> pd.DataFrame:
    import pandas as pd

    names = np.array(["sum"] if omnibus else [k.name for k in chosen], dtype=object)
    lengths = np.array([np.nan] if omnibus else [k.length for k in chosen])
    log_p = per_kernel.pop("log_p")
    tested = ~np.isnan(combined)
    best = np.argmin(np.where(np.isnan(log_p), np.inf, log_p), axis=1)
    table = pd.DataFrame(
        {
            "gene": genes,
            "kernel": np.where(tested, names[best], None),
            "l": np.where(tested, lengths[best], np.nan),
            "mean": mean,
            "alpha": alpha,
            "log10_pval": combined / np.log(10),
            "pval": np.exp(combined),
        }
    )
    table.attrs["kernels"] = KernelTable(genes, names, lengths, **per_kernel, log_p=log_p)
    return table
