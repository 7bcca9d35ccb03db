"""One score report for every prediction: per gene, summary, baselines, ceiling, spatial intervals.

Conventions, stated once:

- A gene whose truth is constant over the scored rows has no correlation, R2 or SSIM: it is `null`, counted in
  `n_constant`, and left out of the summary means.
- A prediction that is constant (the gene-mean baseline is, by construction) explains nothing: its Pearson and Spearman
  are 0, counted in `n_constant_predictions`. This is a convention; the coefficient itself is undefined.
- With `folds`, scores are taken inside each fold and averaged over folds with equal weight, because predictions of
  different models have different offsets: pooling them would punish or reward the offsets.
- Intervals come from a bootstrap over spatial blocks, drawn with replacement inside each section: the estimate plus and
  minus Student's t (blocks - sections degrees of freedom) times the bootstrap's standard error. Few large blocks with a
  t quantile cover the true value where tissue is smooth; percentiles over many small blocks, or over rows, do not. They
  say how much the score would vary over other tissue of the same sections; not over other patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student

from ..errors import InputError
from . import lattice as lattices
from .ceiling import mean_known
from .metrics import per_gene, ssim_maps
from .splits import block_labels, slide_codes

METRICS = ("pearson", "spearman", "rmse", "mse", "r2", "ssim")
_GENE_BLOCK = 512
_BLOCKS = 12
_TINY = 1e-10  # relative variance below which a resample counts as constant


def score(
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    genes: Sequence[str],
    coordinates: np.ndarray | None = None,
    slides: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    baselines: Mapping[str, np.ndarray] | None = None,
    ceiling: np.ndarray | None = None,
    array: np.ndarray | None = None,
    ssim: bool = True,
    n_boot: int = 1000,
    block_um: float | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of a prediction beside its baselines and its ceiling.

    Parameters
    ----------
    truth
        [n, genes] measured, normalised expression; NaN is missing.
    prediction
        [n, genes] in the same unit and order.
    genes
        Names of the columns.
    coordinates
        [n, 2] x, y in um: for spatial blocks and SSIM. Without them rows are resampled one by one and SSIM is `null`.
    slides
        [n] section of each row.
    folds
        [n] which model predicted the row; see the conventions above.
    baselines
        Predictions to compare with, by name, such as "gene_mean" and "colour".
    ceiling
        [genes] noise ceiling of Pearson, from `noise_ceiling`.
    array
        [n, 2] array row and column; else the lattice of SSIM is fitted to the coordinates.
    ssim
        False leaves SSIM out.
    n_boot
        Resamples of the intervals; 0 leaves intervals out.
    block_um
        Side of a block; None makes about 12 blocks of a section: the larger the blocks, the less neighbours in two
        blocks are alike, and the t quantile pays for their small number.
    level
        Of the intervals.
    seed
        Of the resampling.

    Returns
    -------
    JSON-able: "n"; "genes": rows of gene, pearson, spearman, rmse, mse, r2, ssim (and ceiling); "summary": means over
    genes, "median_pearson", "interval" (of the mean Pearson), "intervals" (of every mean), counts and what was
    resampled; "baseline": the same means per baseline with "interval" and "difference" (ours minus it, paired, with
    interval); "ceiling": mean and share reached.
    """
    truth = np.asarray(truth)
    predictions = {"": np.asarray(prediction), **{k: np.asarray(v) for k, v in (baselines or {}).items()}}
    if len(genes) != truth.shape[1]:
        raise InputError(f"{len(genes)} gene names for {truth.shape[1]} columns", where="genes", fix="join by name")
    sheet = _Sheet(truth, coordinates, slides, folds, array if ssim else None, ssim)
    points = {name: sheet.per_gene(p) for name, p in predictions.items()}
    out: dict[str, Any] = {"n": len(truth), "genes": _gene_rows(genes, points[""][0], ceiling)}
    drawn: dict[str, np.ndarray] = {}
    blocks, over = sheet.blocks(block_um)
    width = _width(blocks, sheet.slides, level)
    if n_boot:
        weights = _draw_weights(blocks, sheet.slides, n_boot, seed)
        drawn = {name: sheet.resample(p, points[name][1], blocks, weights) for name, p in predictions.items()}
    out["summary"] = _summary(points[""][0], drawn.get(""), width)
    out["summary"] |= {
        "n_genes": truth.shape[1],
        "n_constant": int(sheet.constant.sum()),
        "n_constant_predictions": int(sheet.flat(predictions[""]).sum()),
        "interval_level": level,
        "interval_over": over,
        "n_blocks": int(blocks.max(initial=-1)) + 1,
    }
    out["baseline"] = {}
    for name in predictions:
        if name:
            entry = _summary(points[name][0], drawn.get(name), width)
            entry["difference"] = _difference(points[""][0], points[name][0], drawn.get(""), drawn.get(name), width)
            out["baseline"][name] = entry
    if ceiling is not None:
        top = _mean(np.where(np.isnan(points[""][0]["pearson"]), np.nan, ceiling))
        reached = out["summary"]["pearson"]
        out["ceiling"] = {"pearson": top, "reached": None if not top or reached is None else reached / top}
    return out


def compare(
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    metric: str = "pearson",
    coordinates: np.ndarray | None = None,
    slides: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    n_boot: int = 2000,
    block_um: float | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Difference and ratio of two predictions with paired intervals.

    Both are scored on the same resamples, so what is hard about a piece of tissue cancels out.

    Parameters
    ----------
    truth, first, second
        [n, genes].
    metric
        One of pearson, spearman, rmse, mse, r2, averaged over genes.
    coordinates, slides, folds, n_boot, block_um, level, seed
        See `score`.

    Returns
    -------
    "first", "second", "difference", "ratio" (first over second), and "difference_interval", "ratio_interval".
    """
    if metric not in METRICS[:-1]:
        raise InputError(f"no metric named {metric!r}", fix=f"one of: {', '.join(METRICS[:-1])}")
    truth = np.asarray(truth)
    sheet = _Sheet(truth, coordinates, slides, folds, None, False)
    blocks, over = sheet.blocks(block_um)
    weights = _draw_weights(blocks, sheet.slides, n_boot, seed)
    at = METRICS.index(metric)
    value: list[Any] = []
    drawn = []
    for p in (np.asarray(first), np.asarray(second)):
        scores, maps = sheet.per_gene(p)
        value.append(_mean(scores[metric]))
        drawn.append(sheet.resample(p, maps, blocks, weights)[:, at])
    known = value[0] is not None and value[1] is not None
    difference = value[0] - value[1] if known else None
    ratio = value[0] / value[1] if known and value[1] else None
    width = _width(blocks, sheet.slides, level)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[0] / drawn[1]
    return {
        "metric": metric,
        "first": value[0],
        "second": value[1],
        "difference": difference,
        "difference_interval": _interval(difference, drawn[0] - drawn[1], width),
        "ratio": ratio,
        "ratio_interval": _interval(ratio, ratios, width),
        "interval_level": level,
        "interval_over": over,
        "n_blocks": int(blocks.max(initial=-1)) + 1,
    }


class _Sheet:
    """The truth and where its rows lie; scores any prediction against it."""

    def __init__(
        self,
        truth: np.ndarray,
        coordinates: np.ndarray | None,
        slides: np.ndarray | None,
        folds: np.ndarray | None,
        array: np.ndarray | None,
        ssim: bool,
    ) -> None:
        n = len(truth)
        self.truth, self.coordinates = truth, coordinates
        self.slides, self.folds = slide_codes(slides, n), slide_codes(folds, n)
        self.n_folds = int(self.folds.max(initial=-1)) + 1
        self.constant = np.all([_constant(truth[self.folds == f]) for f in range(self.n_folds)], axis=0)
        self.lattices: list[tuple[np.ndarray, lattices.Lattice]] = []
        if ssim and (coordinates is not None or array is not None):
            for s in range(int(self.slides.max(initial=-1)) + 1):
                rows = np.flatnonzero(self.slides == s)
                fitted = (
                    lattices.from_array(array[rows, 0], array[rows, 1])
                    if array is not None
                    else lattices.from_coordinates(np.asarray(coordinates)[rows])
                )
                self.lattices.append((rows, fitted))

    def flat(self, prediction: np.ndarray) -> np.ndarray:
        """Genes whose prediction is constant in some fold where the truth is not."""
        parts = [self.folds == f for f in range(self.n_folds)]
        return np.any([_constant(prediction[p]) & ~_constant(self.truth[p]) for p in parts], axis=0)

    def per_gene(self, prediction: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Scores per gene [genes] and SSIM per row and gene [n, genes]."""
        parts = []
        for f in range(self.n_folds):
            rows = self.folds == f
            values = per_gene(self.truth[rows], prediction[rows])
            flat = _constant(prediction[rows]) & ~_constant(self.truth[rows])
            for name in ("pearson", "spearman"):
                values[name][flat] = 0
            parts.append(values)
        scores = {name: mean_known(np.stack([p[name] for p in parts]), axis=0) for name in METRICS[:-1]}
        maps = self._ssim(prediction)
        scores["ssim"] = np.full(self.truth.shape[1], np.nan) if maps is None else mean_known(maps, axis=0)
        return scores, maps

    def _ssim(self, prediction: np.ndarray) -> np.ndarray | None:
        if not self.lattices or len(self.truth) == 0:
            return None
        missing = np.isnan(self.truth)
        out = np.full(self.truth.shape, np.nan)
        # One range per gene over all scored sections: the same error weighs the same on each.
        high = np.where(missing, -np.inf, self.truth).max(axis=0)
        low = np.where(missing, np.inf, self.truth).min(axis=0)
        span = np.maximum(high - low, 0).astype(np.float64)
        for rows, fitted in self.lattices:
            # A map has no holes: a section counts for the genes that were measured in all of its rows.
            whole = np.flatnonzero(~missing[rows].any(axis=0) & (span > 0))
            at = np.ix_(rows, whole)
            out[at] = ssim_maps(self.truth[at], prediction[at], lattice=fitted, data_range=span[whole])
        return out

    def blocks(self, block_um: float | None) -> tuple[np.ndarray, str]:
        """Block of each row, and what a block is, in words."""
        if self.coordinates is None:
            return np.arange(len(self.truth)), "rows"
        if block_um is None:
            sides = []
            for s in np.unique(self.slides):
                extent = np.ptp(np.asarray(self.coordinates)[self.slides == s], axis=0)
                sides.append(np.sqrt(max(extent[0] * extent[1], 1.0) / _BLOCKS))
            block_um = float(np.median(sides)) if sides else 1.0
        labels = block_labels(self.coordinates, block_um=block_um, slides=self.slides)
        return labels, f"blocks of {block_um:.0f} um"

    def resample(
        self, prediction: np.ndarray, maps: np.ndarray | None, blocks: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Means over genes of every metric, for every resample: float64 [resamples, metrics]."""
        g = self.truth.shape[1]
        total = np.zeros((len(weights), len(METRICS)))
        count = np.zeros((len(weights), len(METRICS)))
        for start in range(0, g, _GENE_BLOCK):
            part = slice(start, start + _GENE_BLOCK)
            values = self._resample_block(part, prediction, maps, blocks, weights)
            known = ~np.isnan(values)
            total += np.where(known, values, 0).sum(axis=2).T
            count += known.sum(axis=2).T
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def _resample_block(
        self, part: slice, prediction: np.ndarray, maps: np.ndarray | None, blocks: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        per_fold = []
        for f in range(self.n_folds):
            rows = self.folds == f
            t, p = self.truth[rows, part].astype(np.float64), prediction[rows, part].astype(np.float64)
            missing = np.isnan(t)
            used, local = np.unique(blocks[rows], return_inverse=True)
            w = weights[:, used]
            moments = _moments(t, p, missing, local.ravel(), w)
            ranks = _moments(_ranks(t, missing), _ranks(p, missing), missing, local.ravel(), w)
            per_fold.append(np.stack([_pearson(moments), _pearson(ranks), *_errors(moments)]))
        scores = mean_known(np.stack(per_fold), axis=0)
        similar = np.full(scores.shape[1:], np.nan) if maps is None else _block_mean(maps[:, part], blocks, weights)
        return np.concatenate([scores, similar[None]])


def _ranks(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    # Ranks are taken once, not in every resample: exact in the limit, and a thousand times cheaper.
    if not missing.any():
        return rankdata(values, axis=0)
    return np.nan_to_num(rankdata(np.where(missing, np.nan, values), axis=0, nan_policy="omit"))


def _moments(
    t: np.ndarray, p: np.ndarray, missing: np.ndarray, blocks: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Weighted sums over blocks, [resamples, genes], of values centred and scaled per gene."""
    known = ~missing
    count = np.maximum(known.sum(axis=0), 1)
    centre = np.where(known, t, 0).sum(axis=0) / count
    t = np.where(known, t - centre, 0)
    scale = np.sqrt((t * t).sum(axis=0) / count)
    scale[scale == 0] = 1
    t = t / scale
    # Predictions keep the truth's centre and scale, so that errors keep their meaning.
    p = np.where(known, (p - centre) / scale, 0)
    sums = {"n": known.astype(np.float64), "t": t, "p": p, "tt": t * t, "pp": p * p, "tp": t * p}
    out = {name: weights @ _block_sums(v, blocks) for name, v in sums.items()}
    out["scale"] = scale
    return out


def _block_sums(values: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    order = np.argsort(blocks, kind="stable")
    starts = np.flatnonzero(np.diff(blocks[order], prepend=-1))
    return np.add.reduceat(values[order], starts, axis=0)


def _pearson(m: dict[str, np.ndarray]) -> np.ndarray:
    n = np.maximum(m["n"], 1)
    vt, vp = m["tt"] / n - (m["t"] / n) ** 2, m["pp"] / n - (m["p"] / n) ** 2
    cov = m["tp"] / n - (m["t"] / n) * (m["p"] / n)
    varies = vp > _TINY * np.maximum(m["pp"] / n, 1e-300)
    r = np.divide(cov, np.sqrt(np.maximum(vt * vp, 0)), out=np.zeros_like(cov), where=varies & (vt > _TINY))
    return np.where(vt > _TINY, np.clip(r, -1, 1), np.nan)


def _errors(m: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = np.maximum(m["n"], 1)
    scaled = np.maximum((m["tt"] - 2 * m["tp"] + m["pp"]) / n, 0)
    variance = m["tt"] / n - (m["t"] / n) ** 2
    known = m["n"] > 0
    mse = np.where(known, scaled * m["scale"] ** 2, np.nan)
    r2 = 1 - np.divide(scaled, variance, out=np.full_like(scaled, np.nan), where=known & (variance > _TINY))
    return np.sqrt(mse), mse, r2


def _block_mean(maps: np.ndarray, blocks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    known = ~np.isnan(maps)
    top = weights @ _block_sums(np.where(known, maps, 0), blocks)
    bottom = weights @ _block_sums(known.astype(np.float64), blocks)
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _draw_weights(blocks: np.ndarray, slides: np.ndarray, n_boot: int, seed: int) -> np.ndarray:
    """How often each block is drawn: float64 [n_boot, blocks]; as many draws per section as it has blocks."""
    n_blocks = int(blocks.max(initial=-1)) + 1
    home = np.zeros(n_blocks, dtype=np.int64)
    home[blocks] = slides
    weights = np.zeros((n_boot, n_blocks))
    for s in np.unique(home):
        members = np.flatnonzero(home == s)
        rng = np.random.default_rng([seed, int(s)])
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n_boot)
    return weights


def _constant(values: np.ndarray) -> np.ndarray:
    """Columns that hold one value (or none) besides NaN."""
    if len(values) == 0:
        return np.ones(values.shape[1], dtype=bool)
    low = np.where(np.isnan(values), np.inf, values).min(axis=0)
    high = np.where(np.isnan(values), -np.inf, values).max(axis=0)
    return ~(high > low)


def _gene_rows(genes: Sequence[str], scores: dict[str, np.ndarray], ceiling: np.ndarray | None) -> list[dict[str, Any]]:
    columns = {name: scores[name].tolist() for name in METRICS}
    if ceiling is not None:
        columns["ceiling"] = np.asarray(ceiling, dtype=float).tolist()
    return [
        {"gene": str(gene), **{name: _plain(values[i]) for name, values in columns.items()}}
        for i, gene in enumerate(genes)
    ]


def _summary(scores: dict[str, np.ndarray], drawn: np.ndarray | None, width: float) -> dict[str, Any]:
    out: dict[str, Any] = {name: _mean(scores[name]) for name in METRICS}
    known = scores["pearson"][~np.isnan(scores["pearson"])]
    out["median_pearson"] = float(np.median(known)) if len(known) else None
    if drawn is not None:
        out["intervals"] = {name: _interval(out[name], drawn[:, i], width) for i, name in enumerate(METRICS)}
        out["interval"] = out["intervals"]["pearson"]
    return out


def _difference(
    ours: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    drawn: np.ndarray | None,
    their_drawn: np.ndarray | None,
    width: float,
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in METRICS:
        a, b = _mean(ours[name]), _mean(theirs[name])
        out[name] = None if a is None or b is None else a - b
    if drawn is not None and their_drawn is not None:
        gap = drawn - their_drawn
        out["intervals"] = {name: _interval(out[name], gap[:, i], width) for i, name in enumerate(METRICS)}
        out["interval"] = out["intervals"]["pearson"]
    return out


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _width(blocks: np.ndarray, slides: np.ndarray, level: float) -> float:
    """Half an interval in bootstrap standard errors: Student's t, and n / (n - 1) for the resampled variance."""
    n_blocks = int(blocks.max(initial=-1)) + 1
    freedom = n_blocks - len(np.unique(slides))
    return float(student.ppf((1 + level) / 2, freedom) * np.sqrt(n_blocks / freedom)) if freedom > 0 else np.nan


def _interval(value: float | None, drawn: np.ndarray, width: float) -> list[float | None]:
    known = drawn[np.isfinite(drawn)]
    if value is None or len(known) == 0 or not np.isfinite(width):
        return [None, None]
    # Half the central 68 %: the standard error where resamples are normal, and finite where a ratio's are not.
    error = float(np.diff(np.quantile(known, [0.1587, 0.8413]))[0]) / 2
    return [value - width * error, value + width * error]


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
