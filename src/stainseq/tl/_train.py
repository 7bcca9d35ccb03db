"""Learn expression from histology, with cross-validated scores."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import keys
from ..errors import InputError
from . import _tables

if TYPE_CHECKING:
    from ..core.splits import Fold
    from ..trainset import Foreseen, TrainSet

_GIVEN = {"counts", "library", "coordinates", "slides", "groups", "folds", "weights", "seed"}
"""What a head is given by `train`, and so no option of the user's."""

_ROWS = 20_000
_SEEN = {"cp10k": 0.1, "raw": 0.002}


def train(
    slides: Any,
    *,
    out: str | Path,
    region: str = keys.SPOTS,
    encoder: str | None = None,
    weights: str | Path | None = None,
    head: str | None = None,
    split: Literal["patient", "slide", "block"] | None = None,
    n_folds: int | None = None,
    block_um: float = 1000.0,
    genes: Sequence[str] | str | Path | None = None,
    n_genes: int = 250,
    table_key: str | None = None,
    normalize: Literal["cp10k", "raw"] = "cp10k",
    options: dict[str, Any] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Fit a head on one or more slides, score it by cross-validation and write a MODEL folder.

    Everything that is fitted (genes, scaling, penalties, networks) is fitted on the training part of a fold alone.
    Features that a slide does not have yet are computed.

    Parameters
    ----------
    slides
        Paths of stores, opened stores, or the path of a cohort CSV.
    out
        The MODEL folder to write.
    region
        Regions to learn from.
    encoder, weights
        Encoder and its local weights; default the documented default.
    head
        Name of a head (`stainseq list heads`); default ridge, the fastest. For superpixels, bins and cells take
        pixel2gene; started by torchrun, all processes train it together.
    split
        What is held out together. Default: patients where there are two or more, else slides, else spatial blocks.
    n_folds
        Default: every patient or slide once (at most 10 folds), or 5 folds of blocks.
    block_um
        Side of a spatial block; 1 mm is beyond the reach of a 224 um field and of most local structures.
    genes
        Names, or a file with one name a line. Default: chosen by variance, in each fold on its training part.
    n_genes
        How many to choose. The 250 most variable cover what H&E is known to tell; more costs little with ridge.
    table_key
        Counts table; default ``counts_<region>``.
    normalize
        Unit of the targets: "cp10k", log1p of counts per 10,000, or "raw", log1p of counts. Raw targets reward guessing
        how many molecules a spot caught, which for spots is no expression; superpixels and cells of one run hold too
        few counts to be divided by, and how many there are is part of what is asked.
    options
        Further options of the head.
    seed
        Of everything random.
    overwrite
        Replace a model that is there already.
    device
        For encoding. Networks are trained where ``settings.device`` or their own option ``device`` says.

    Returns
    -------
    dict
        What stands in MODEL/metrics.json: n, genes (scores per gene), summary with interval, baseline, ceiling, split,
        n_folds, n_genes (of the model; every fold chooses its own, so that more may be scored).

    Raises
    ------
    InputError
        Too few slides, regions or genes for what is asked.
    StoreError
        There is something at `out` already.
    """
    from .. import featurise, model, registry, trainset
    from .._progress import progress
    from ..core.normalize import UNITS
    from ..heads import _ranks

    if n_genes < 1 or (n_folds is not None and n_folds < 2) or not block_um > 0:
        raise InputError(
            f"n_genes {n_genes}, n_folds {n_folds}, block_um {block_um:g}",
            fix="at least one gene (--n-genes), two folds (--folds) and a length that is positive (--block-um)",
        )
    if normalize not in UNITS:
        raise InputError(f"no normalisation named {normalize!r}", fix=f"one of: {', '.join(UNITS)}")
    start = time.perf_counter()
    target = model.writable(out, overwrite=overwrite)
    name = head or registry.default("heads")
    plugin = registry.load("heads", name)
    _tables.check_options(plugin.fit, name, options or {}, given=_GIVEN)
    opened, network = trainset.open_slides(slides), featurise.encoder_name(encoder)
    foreseen = trainset.foresee(opened, table=table_key or keys.counts(region), encoder=network)
    make_folds(foreseen, split, n_folds=n_folds, block_um=block_um, seed=seed)  # refuses before hours of encoding
    with _ranks.first_alone((options or {}).get("device")):
        data = trainset.assemble(
            # Opened again by the others: the first has written features since.
            opened if is_first() else trainset.open_slides(slides),
            region=region,
            encoder=network,
            weights=weights,
            table_key=table_key,
            genes=_gene_list(genes),
            device=device,
            keep_empty=normalize == "raw",
        )
    by, folds = make_folds(data, split, n_folds=n_folds, block_um=block_um, seed=seed)
    fit = Fitting(plugin, data, options or {}, seed, normalize)
    everything = np.arange(len(data.ids))
    chosen = np.arange(len(data.genes)) if genes is not None else choose_genes(data, everything, n_genes, normalize)
    states, colour, held_out = [], [], HeldOut(data, normalize)
    with progress(f"train {name}", len(folds) + 1) as advance:
        fitted = fit.together([*(f.train for f in folds), everything], chosen)
        for i, fold in enumerate(folds):
            wanted = chosen if genes is not None else choose_genes(data, fold.train, n_genes, normalize)
            states.append(fit.fold(i, fold, wanted, chosen, held_out, state=fitted[i] if fitted else None))
            colour.append(fit.colour(fold.train, chosen))
            advance(1)
        final = fitted[-1] if fitted else fit.head(everything, chosen)
        colour.insert(0, fit.colour(everything, chosen))
        advance(1)
    metrics = {**held_out.score(seed=seed), "split": by, "n_folds": len(folds), "n_genes": len(chosen)}
    training = _training_table(data, folds)
    names = [data.genes[i] for i in chosen]
    config = {
        "format_version": model.MODEL_FORMAT,
        "package_version": _version(),
        "fingerprint": model.content_fingerprint(names, final, training),
        "head": name,
        "options": options or {},
        "encoder": data.encoder,
        "colour": True,
        "region": region,
        "genes": names,
        "gene_mean": [float(v) for v in fit.targets(everything, chosen).mean(axis=0)],
        "units": UNITS[normalize],
        "slides": data.slides,
        "split": by,
        "n_folds": len(folds),
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 2),
        "notes": _notes(data, by),
    }
    if is_first():
        model.save(model.Model(config, final, states, training, colour, metrics), target, overwrite=overwrite)
    return metrics


def is_first() -> bool:
    """Whether this process is the one that writes and prints, of those that torchrun has started."""
    from ..heads import _ranks

    return _ranks.rank() == 0


class Fitting:
    """One head on one training set: fits on some rows and genes, predicts and scores others.

    Parameters
    ----------
    plugin
        A head's module.
    data
        The training set.
    options
        Options of the head.
    seed
        Of everything random.
    normalize
        Unit of the targets.
    """

    def __init__(
        self, plugin: Any, data: TrainSet, options: dict[str, Any], seed: int, normalize: str = "cp10k"
    ) -> None:
        self.plugin, self.data, self.options, self.seed, self.normalize = plugin, data, options, seed, normalize

    def targets(self, rows: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Normalised log counts, float32 [rows, genes]."""
        from ..core import normalize

        counts = self.data.counts[rows][:, genes]
        return normalize.normalized(counts, library=self.data.library[rows], kind=self.normalize)

    def head(self, rows: np.ndarray, genes: np.ndarray) -> dict[str, np.ndarray]:
        """Fit the head."""
        return self._fit(self.plugin, self.data.X, rows, genes, self.options)

    def together(self, parts: list[np.ndarray], genes: np.ndarray) -> list[dict[str, np.ndarray]] | None:
        """Fit the head on several parts at once, reading features once; None where it has no way to."""
        if not hasattr(self.plugin, "fit_parts") or self.options.get("recipe", "fast") != "fast":
            return None
        takes = inspect.signature(self.plugin.fit_parts).parameters
        options = {k: v for k, v in self.options.items() if k in takes}
        every = np.arange(len(self.data.ids))
        states: list[dict[str, np.ndarray]] = self.plugin.fit_parts(
            self.data.X,
            self.targets(every, genes),
            parts,
            **self._given(self.plugin.fit_parts, every, genes),
            **options,
        )
        return states

    def predict(self, state: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Mean for some rows; a head that reads in batches when it learns is given no more at a time here."""
        size = _ROWS if hasattr(self.plugin, "fit_parts") else max(len(rows), 1)
        pieces = [rows[a : a + size] for a in range(0, len(rows), size)] or [rows]
        data = self.data
        return np.concatenate([self.plugin.predict(state, data.X[p], **data.rows(p))[0] for p in pieces])

    def colour(self, rows: np.ndarray, genes: np.ndarray) -> dict[str, np.ndarray]:
        """Fit the colour baseline: the same targets by ridge from colour statistics."""
        from .. import registry

        return self._fit(registry.load("heads", "ridge"), self.data.colour, rows, genes, {})

    def _separable(self) -> bool:
        """Whether a gene's fit does not depend on which others are fitted with it, under the options at hand."""
        together = getattr(self.plugin, "TOGETHER", {})
        return getattr(self.plugin, "SEPARABLE", False) and all(self.options.get(k) != v for k, v in together.items())

    def _fit(self, plugin: Any, X: np.ndarray, rows: np.ndarray, genes: np.ndarray, options: dict[str, Any]) -> Any:
        return plugin.fit(X[rows], self.targets(rows, genes), **self._given(plugin.fit, rows, genes), **options)

    def _given(self, function: Any, rows: np.ndarray, genes: np.ndarray) -> dict[str, Any]:
        """What a head is told of some rows beside features and targets."""
        data = self.data
        groups = data.patient if len(np.unique(data.patient[rows])) > 1 else data.slide
        # Heads with a count loss scale their rates by the whole library, not by the chosen genes.
        takes = inspect.signature(function).parameters
        extra: dict[str, Any] = {"library": data.library[rows]} if "library" in takes else {}
        if extra and self.normalize == "raw":
            extra = {"library": np.ones(len(rows))} | ({"target": 1.0} if "target" in takes else {})
        counts = data.counts[rows][:, genes]
        return {"counts": counts, "groups": groups[rows], "seed": self.seed, **data.rows(rows), **extra}

    def fold(
        self,
        number: int,
        fold: Fold,
        wanted: np.ndarray,
        kept: np.ndarray,
        held_out: HeldOut,
        *,
        state: dict[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Predict a fold's test rows for the genes chosen in its training part; return the state for the final genes.

        A head that fits genes together is fitted twice when both sets differ, so that the choice of the final genes,
        which has seen the held-out counts, cannot touch the scores. `state` is the one for the final genes, where it is
        there already.
        """
        from ..registry import load

        data, test = self.data, fold.test
        if np.array_equal(wanted, kept):
            columns, state = np.arange(len(wanted)), state or self.head(fold.train, wanted)
            scored = state
        elif self._separable():
            both = np.union1d(wanted, kept)
            columns, scored = np.searchsorted(both, wanted), self.head(fold.train, both)
            state = self.head(fold.train, kept)
        else:
            columns, scored = np.arange(len(wanted)), self.head(fold.train, wanted)
            state = state or self.head(fold.train, kept)
        mean = self.predict(scored, test)
        by_colour, _ = load("heads", "ridge").predict(
            self.colour(fold.train, wanted), data.colour[test], **data.rows(test)
        )
        gene_mean = self.targets(fold.train, wanted).mean(axis=0)
        held_out.add(number, test, wanted, self.targets(test, wanted), mean[:, columns], gene_mean, by_colour)
        return state


class HeldOut:
    """Held-out predictions of all folds, side by side with the truth.

    A gene that was not chosen in a fold's training part is missing (NaN) in that fold.
    """

    def __init__(self, data: TrainSet, normalize: str = "cp10k") -> None:
        self.data, self.normalize = data, normalize
        self.folds = np.full(len(data.ids), -1)
        self.parts: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []

    def add(
        self,
        number: int,
        rows: np.ndarray,
        genes: np.ndarray,
        truth: np.ndarray,
        mean: np.ndarray,
        *baselines: np.ndarray,
    ) -> None:
        """Keep one fold's predictions; `baselines` are gene mean [genes] and colour [rows, genes]."""
        gene_mean, colour = baselines
        self.folds[rows] = number
        values = {"truth": truth, "mean": mean, "gene_mean": np.broadcast_to(gene_mean, truth.shape), "colour": colour}
        self.parts.append((rows, genes, values))

    def score(self, *, seed: int) -> dict[str, Any]:
        """Scores over all folds; see `core.scores.score`."""
        from ..core import ceiling, scores

        data = self.data
        scored = np.flatnonzero(self.folds >= 0)
        genes = np.unique(np.concatenate([g for _, g, _ in self.parts]))
        # The truth alone says what is missing: predictions there are never looked at.
        full = {k: np.zeros((len(data.ids), len(genes)), dtype=np.float32) for k in self.parts[0][2]}
        full["truth"][:] = np.nan
        limits = np.full((len(self.parts), len(genes)), np.nan)
        for i, (rows, own, values) in enumerate(self.parts):
            at = np.searchsorted(genes, own)
            for k, v in values.items():
                full[k][np.ix_(rows, at)] = v
            limits[i, at] = ceiling.noise_ceiling(
                data.counts[rows][:, own], library=data.library[rows], normalize=self.normalize, seed=seed
            )["pearson"]
        return scores.score(
            full["truth"][scored],
            full["mean"][scored],
            genes=[data.genes[g] for g in genes],
            coordinates=data.coordinates[scored],
            slides=data.slide[scored],
            folds=self.folds[scored],
            baselines={k: full[k][scored] for k in ("gene_mean", "colour")},
            ceiling=ceiling.mean_known(limits, axis=0),
            seed=seed,
        )


def choose_genes(data: TrainSet, rows: np.ndarray, n_genes: int, normalize: str = "cp10k") -> np.ndarray:
    """Most variable genes by Pearson residuals within slides, among those seen in a tenth of the rows (raw: 1 in 500).

    Where few counts are divided by the depth they record the depth; raw counts of superpixels are few and stay whole.
    """
    from ..core import genes

    picked = genes.highly_variable(
        data.counts[rows], n_top=n_genes, batches=data.slide[rows], min_fraction=_SEEN[normalize]
    )
    if not len(picked):
        raise InputError(
            f"no gene is seen in {_SEEN[normalize]:.1%} of the regions", fix="give --genes, or check the counts"
        )
    return np.sort(np.asarray(picked))


def make_folds(
    data: TrainSet | Foreseen, split: str | None, *, n_folds: int | None, block_um: float, seed: int
) -> tuple[str, list[Fold]]:
    """Folds by patient, slide or spatial block; chooses the strictest that the slides allow when none is asked for."""
    from ..core import splits

    if split not in (None, "patient", "slide", "block"):
        raise InputError(f"split={split!r}", fix="one of: patient, slide, block")
    # A slide whose patient is unknown may be a section of any other's patient: such slides never count as patients.
    known = all(s["patient_known"] for s in data.slides)
    n_patients, n_slides = len(np.unique(data.patient)) if known else 1, len(data.slides)
    split = split or ("patient" if n_patients > 1 else "slide" if n_slides > 1 else "block")
    if split == "block":
        seen_um = [*data.encoder.get("fields_um", [112.0]), *(data.encoder.get("scales_um") or [])]
        buffer_um = max(float(side) for side in seen_um)
        return split, splits.by_block(
            data.coordinates, data.slide, block_um=block_um, buffer_um=buffer_um, n_folds=n_folds or 5, seed=seed
        )
    groups = data.patient if split == "patient" else data.slide
    available = len(np.unique(groups))
    if available < 2:
        raise InputError(
            f"one {split} cannot be split by {split}",
            fix="give more slides (convert --patient names patients), or --split "
            + ("slide" if n_slides > 1 else "block"),
        )
    return split, splits.by_group(groups, n_folds=min(n_folds or 10, available), seed=seed)


def _gene_list(genes: Sequence[str] | str | Path | None) -> list[str] | None:
    if genes is None:
        return None
    path = None
    if isinstance(genes, (str, Path)):
        path = Path(genes)
        if not path.is_file():
            raise InputError("no such gene list", where=path, fix="give a text file with one gene name a line")
        genes = [name for line in path.read_text().splitlines() if (name := line.strip())]
    names = list(genes)
    if not names:
        raise InputError("a gene list without a gene", where=path, fix="name genes, or leave the choice to --n-genes")
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
    if twice:
        named = ", ".join(twice[:5]) + (", ..." if len(twice) > 5 else "")
        raise InputError(f"{len(twice)} gene names occur more than once ({named})", where=path, fix="list each once")
    return names


def _training_table(data: TrainSet, folds: list[Fold]) -> Any:
    import pandas as pd

    of_fold = np.full(len(data.ids), -1)
    for i, fold in enumerate(folds):
        of_fold[fold.test] = i
    x, y = data.coordinates.T
    return pd.DataFrame({"id": data.ids, "slide": data.slide, "fold": of_fold, "x_um": x, "y_um": y})


def _notes(data: TrainSet, split: str) -> list[str]:
    notes = []
    if data.dropped:
        notes.append(f"{data.dropped} regions without any count were left out")
    if split != "patient":
        notes.append("scores are within patients: they say nothing about new patients")
    if not all(s["patient_known"] for s in data.slides):
        notes.append("some slides name no patient (convert --patient): patients cannot be told apart")
    return notes


def _version() -> str:
    from .. import __version__

    return __version__
