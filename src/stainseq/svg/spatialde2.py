"""SpatialDE2's score test on counts: ten kernels, negative binomial null, exact in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core import chi2mix, kernels, nbnull, scoretest
from ._prepare import Sample, map_blocks, threads

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_BLOCK = 512


def score(
    counts: Any,
    coordinates: Any,
    *,
    genes: Any,
    kernel_space: Mapping[str, Any] | None = None,
    sizefactors: Any = None,
    obs_dist: Literal["negative_binomial", "normal"] = "negative_binomial",
    compat: bool = True,
    n_jobs: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Score test of spatial variance for each gene and kernel, combined over kernels."""
    import pandas as pd
    from threadpoolctl import threadpool_limits

    sample = Sample(counts, coordinates, genes=genes, signed=obs_dist == "normal")
    sizes = _sizes(sample, sizefactors)
    chosen = kernels.kernel_list(kernel_space, sample.coordinates, base="minimum" if compat else "median")
    family = scoretest.NullWeights.of(sizes.values)
    with threadpool_limits(1):
        tables, factors = [], []
        for kernel in chosen:
            op = _operator(kernel, sample.coordinates)
            tables.append(scoretest.compatible_moments(op, family))
            factors.append(op.factor())
        ends = np.cumsum([f.shape[1] for f in factors])
        stacked = np.ascontiguousarray(np.concatenate(factors, axis=1).T)
        moments = np.stack([np.column_stack(t) for t in tables], axis=1)

        def work(start: int, stop: int) -> tuple[NDArray[Any], ...]:
            block = sample.block(start, stop)
            m, alpha = nbnull.fit(block.data, block.indices, block.indptr, sizes, compat=compat)
            r = scoretest.residuals(block.data, block.indices, block.indptr, m, alpha, sizes.values)
            z = stacked @ r.T
            z *= z
            u = 0.5 * np.add.reduceat(z, np.concatenate([[0], ends[:-1]]), axis=0).T
            x, scale = family.place(m, alpha)
            found = family.interpolate(moments, x)
            return m, alpha, u, found[:, :, 0] * scale[:, None], found[:, :, 1] * scale[:, None] ** 2

        parts = list(map_blocks(work, sample.shape[1], _BLOCK, threads(n_jobs)))
    m, alpha, u, e, information = (np.concatenate(p) for p in zip(*parts, strict=True))
    kappa, nu, log_p = scoretest.chi2_test(u, e, information)
    log_p[m == 0] = np.nan
    combined = chi2mix.log_cauchy_combination(log_p)
    best = np.argmin(np.where(np.isnan(log_p), np.inf, log_p), axis=1)
    names = np.array([k.name for k in chosen], dtype=object)
    lengths = np.array([k.length for k in chosen])
    table = pd.DataFrame(
        {
            "gene": sample.genes,
            "kernel": np.where(m > 0, names[best], None),
            "l": np.where(m > 0, lengths[best], np.nan),
            "mean": m * sizes.values.mean(),
            "alpha": np.where(m > 0, alpha, np.nan),
            "log10_p": combined / np.log(10),
            "pval": np.exp(combined),
        }
    )
    table.attrs["kernels"] = _per_kernel(sample.genes, names, lengths, u, e, information, kappa, nu, log_p)
    return table


def _sizes(sample: Sample, given: Any) -> nbnull.SizeFactors:
    values = sample.totals() if given is None else sample.in_order(given)
    kept = values > 0
    if not kept.all():
        sample.keep_rows(kept)
    return nbnull.compress(values[kept])


def _operator(kernel: kernels.Kernel, coordinates: NDArray[Any]) -> Any:
    if kernel.name == "SE":
        return kernels.DenseOperator(kernels.dense(kernel, coordinates))
    return kernels.LowRankOperator(kernels.low_rank_factor(kernel, coordinates))


def _per_kernel(
    genes: NDArray[Any], names: NDArray[Any], lengths: NDArray[Any], u: Any, e: Any, information: Any, kappa: Any,
    nu: Any, log_p: Any,
) -> pd.DataFrame:  # fmt: skip
    import pandas as pd

    count = len(names)
    return pd.DataFrame(
        {
            "gene": np.repeat(genes, count),
            "kernel": np.tile(names, len(genes)),
            "l": np.tile(lengths, len(genes)),
            "U": u.ravel(),
            "e": e.ravel(),
            "I": information.ravel(),
            "kappa": kappa.ravel(),
            "nu": nu.ravel(),
            "log10_p": log_p.ravel() / np.log(10),
            "pval": np.exp(log_p).ravel(),
        }
    )
