"""SpatialDE (version 1): Gaussian processes, fraction of spatial variance and length scale of each gene."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import chi2mix, gp, kernels
from ..errors import InputError
from ._prepare import KernelTable, Sample, map_blocks, one_blas_thread, threads

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_BLOCK = 1024
_PARAMETERS = {"const": 2, "linear": 3, "SE": 4, "PER": 4}


@one_blas_thread
def score(
    counts: Any,
    coordinates: Any,
    *,
    genes: Any,
    compat: bool = False,
    kernel_space: Mapping[str, Any] | None = None,
    model_search: bool = False,
    sizefactors: Any = None,
    is_counts: bool = True,
    max_gb: float = 4.0,
    n_jobs: int | None = None,
    client: Any = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare a Gaussian process over places with no dependence on place, for each gene.

    Parameters
    ----------
    counts
        [n, g] raw counts (stabilised by one Anscombe transformation, log total counts regressed out, as the authors
        recommend), or values to be tested as they are with ``is_counts=False``.
    coordinates
        float [n, 2], um.
    genes
        Names, one per column.
    compat
        True: the original's optimiser, one gene at a time, which for some genes stops short of the best optimum; to
        reproduce published tables, a hundred times slower.
    kernel_space
        ``{"SE": lengths}`` in um; default ten from half the smallest to twice the largest distance.
    model_search
        Also fit periodic (ten periods) and linear covariances and choose by BIC.
    sizefactors
        [n] positive, instead of total counts.
    is_counts
        Whether values are raw counts.
    max_gb
        Memory for n x n arrays (three are held); beyond it the test is refused.
    n_jobs
        Threads; default all cores. Results are the same for any number.
    client
        A ``distributed.Client`` whose workers compute the blocks; the same numbers.
    seed
        Not used: the test is deterministic.

    Returns
    -------
    DataFrame
        ``gene``, ``FSV`` (fraction of variance that is spatial), ``l`` (length scale, um), ``LLR``, ``pval``
        (chi-square with one degree of freedom of LLR, as the original, which does not double it), ``qval`` (Storey),
        ``log10_pval``, then the original's further columns ``M``, ``n``, ``model``, ``max_delta``, ``max_ll``,
        ``max_ll_null``, ``max_mu_hat``, ``max_s2_t_hat``, ``s2_logdelta``, ``s2_FSV``, ``BIC``, ``G`` (Gower factor);
        with `model_search` ``search_model``, ``search_l``, ``search_BIC``. Genes that do not vary have NaN.
        ``.attrs["kernels"].frame()``: log-likelihood and FSV per gene and length scale.

    Raises
    ------
    InputError
        As for ``spatialde2``, or more places than `max_gb` allows.

    Notes
    -----
    V. Svensson, S. A. Teichmann and O. Stegle, Nature Methods 15, 343 (2018). The likelihood is maximised over all of
    log delta in [-10, 20], where the original's optimiser stops short of the best optimum for some genes.
    ``s2_logdelta`` is minus the inverse second derivative of the log-likelihood and ``s2_FSV`` follows from it.
    """

    sample = Sample(counts, coordinates, genes=genes, signed=not is_counts)
    values = _Values(sample, sizefactors) if is_counts else _Plain(sample)
    n, jobs = sample.shape[0], threads(n_jobs)
    if 3 * 8 * n * n > max_gb * 2**30:
        raise InputError(f"{n} places need {24e-9 * n * n:.1f} GB for covariances, more than max_gb={max_gb}",
                         fix="raise max_gb, or use method spatialde2 or sparkx")  # fmt: skip
    smallest, _, largest = kernels.extent(sample.coordinates)
    lengths = np.logspace(np.log10(smallest / 2.0), np.log10(largest * 2.0), 10)
    fitted = _se_lengths(kernel_space, lengths)
    models = [("SE", x) for x in fitted]
    if model_search:
        models += [("PER", x) for x in lengths] + [("linear", np.nan)]
    optimise = gp.fit_as_original if compat else gp.fit
    results = []
    for model, length in models:
        s = gp.spectrum(gp.covariance(model, float(length), sample.coordinates))
        parts = list(map_blocks(values, partial(optimise, s=s), sample.shape[1], _BLOCK, jobs, client=client))
        joined = {f: np.concatenate([getattr(p, f) for p in parts]) for f in gp.Fits.__dataclass_fields__}
        results.append((gp.Fits(**joined), s.gower))
    null = np.concatenate(list(map_blocks(values, gp.constant_likelihood, sample.shape[1], _BLOCK, jobs)))
    return _table(sample, models, results, null, len(fitted))


def adjusted(log_p: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The original's adjustment of natural logs of p-values, [g]: Storey's q-values."""
    return {"qval": gp.storey_q(np.exp(log_p))}


def _se_lengths(space: Mapping[str, Any] | None, default: NDArray[Any]) -> NDArray[Any]:
    if space is None:
        return default
    if set(space) - {"const"} != {"SE"}:
        raise InputError(f"kernels {', '.join(space)} of spatialde", where="kernel_space",
                         fix='give {"SE": lengths}; model_search adds the others')  # fmt: skip
    lengths = np.atleast_1d(np.asarray(space["SE"], dtype=np.float64))
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise InputError("length scales that are not above 0", where="kernel_space")
    return lengths


class _Plain:
    """Values as they are, [g, n]."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample

    def __call__(self, start: int, stop: int) -> NDArray[np.float64]:
        return np.ascontiguousarray(self._sample.block(start, stop).toarray().T)


class _Values:
    """Counts made comparable: log(y + 1 / 2 phi) with one phi, then log total counts regressed out."""

    def __init__(self, sample: Sample, given: Any) -> None:
        total = sample.totals() if given is None else sample.per_row(given, "sizefactors")
        kept = total > 0
        if kept.sum() < 2:
            raise InputError(f"{int(kept.sum())} rows have counts", fix="needs at least 2")
        sample.keep_rows(kept)
        self._sample = sample
        log_total = np.log(total[kept])
        self._covariate = log_total
        centred = log_total - log_total.mean()
        spread = centred @ centred
        # All cells alike: nothing to regress on.
        self._direction = centred / spread if spread > 1e-20 * len(centred) else np.zeros_like(centred)
        n, parts = sample.shape[0], []
        for start in range(0, sample.shape[1], _BLOCK):
            block = sample.block(start, min(start + _BLOCK, sample.shape[1]))
            first = np.asarray(block.sum(axis=0)).ravel() / n
            parts.append((first, (np.asarray((block * block).sum(axis=0)).ravel() - n * first**2) / (n - 1)))
        mean, variance = (np.concatenate(p) for p in zip(*parts, strict=True))
        self._shift = 0.5 / gp.anscombe_dispersion(mean[mean > 0], variance[mean > 0])

    def __call__(self, start: int, stop: int) -> NDArray[np.float64]:
        values = np.log(self._sample.block(start, stop).toarray().T + self._shift)
        return np.asarray(values - np.outer(values @ self._direction, self._covariate))


def _table(
    sample: Sample,
    models: list[tuple[str, Any]],
    results: list[tuple[gp.Fits, float]],
    null: NDArray[Any],
    n_lengths: int,
) -> pd.DataFrame:
    import pandas as pd

    n, g = sample.shape
    likelihood = np.column_stack([fits.log_likelihood for fits, _ in results])
    likelihood[~np.isfinite(null)] = np.nan
    row = np.arange(g)
    best = np.argmax(np.where(np.isnan(likelihood[:, :n_lengths]), -np.inf, likelihood[:, :n_lengths]), axis=1)
    pick = {name: np.column_stack([getattr(fits, name) for fits, _ in results])[row, best]
            for name in ("log_delta", "mean", "variance", "curvature")}  # fmt: skip
    gower = np.array([factor for _, factor in results])
    lengths = np.array([length for _, length in models])
    tested = ~np.isnan(likelihood[:, 0])
    delta = np.where(tested, np.exp(pick["log_delta"]), np.nan)
    max_ll = likelihood[row, best]
    llr = max_ll - np.where(tested, null, np.nan)
    log_p = chi2mix.log_chi2_sf(llr, 1.0)
    fsv = gower[best] / (gower[best] + delta)
    with np.errstate(divide="ignore", invalid="ignore"):
        s2_logdelta = np.where(pick["curvature"] < 0, -1.0 / pick["curvature"], np.inf)
    table = pd.DataFrame(
        {
            "gene": sample.genes,
            "FSV": fsv,
            "l": np.where(tested, lengths[best], np.nan),
            "LLR": llr,
            "pval": np.exp(log_p),
            **adjusted(log_p),
            "log10_pval": log_p / np.log(10),
            "M": _PARAMETERS["SE"],
            "n": n,
            "model": "SE",
            "max_delta": delta,
            "max_ll": max_ll,
            "max_ll_null": null,
            "max_mu_hat": pick["mean"],
            "max_s2_t_hat": pick["variance"],
            "s2_logdelta": s2_logdelta,
            "s2_FSV": (fsv * (1.0 - fsv)) ** 2 * s2_logdelta,
            "BIC": -2.0 * max_ll + _PARAMETERS["SE"] * np.log(n),
            "G": np.where(tested, gower[best], np.nan),
        }
    )
    if len(models) > n_lengths:
        bic = -2.0 * likelihood + np.array([_PARAMETERS[m] for m, _ in models]) * np.log(n)
        chosen = np.argmin(np.where(np.isnan(bic), np.inf, bic), axis=1)
        table["search_model"] = np.where(tested, np.array([m for m, _ in models], dtype=object)[chosen], None)
        table["search_l"] = np.where(tested, lengths[chosen], np.nan)
        table["search_BIC"] = bic[row, chosen]
    deltas = np.exp(np.column_stack([fits.log_delta for fits, _ in results]))
    names = np.array([m for m, _ in models], dtype=object)
    spatial = gower / (gower + deltas)
    table.attrs["kernels"] = KernelTable(sample.genes, names, lengths, max_ll=likelihood, FSV=spatial)
    return table
