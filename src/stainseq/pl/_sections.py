"""The sections of a report, each from what the slide holds; a section without its data is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from . import _compare, _find, _learned, _scores, _spatial
from ._embed import Cell, Picture, Row, Table, number, power, raster, vector, with_interval

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

GENES_UP_TO = 2_000
RANKED = 15


_TESTS = {"moran": "Moran's I", "geary": "Geary's C", "spatialde2": "SpatialDE2's score test", "sparkx": "SPARK-X"}


class Page:
    """What a report shows of one slide.

    Parameters
    ----------
    sdata
        The slide.
    region, truth, prediction, image_key, metrics, n_genes
        As for `report`.
    """

    def __init__(
        self,
        sdata: SpatialData,
        *,
        region: str,
        truth: str | None,
        prediction: str | None,
        image_key: str,
        metrics: dict[str, Any],
        n_genes: int,
    ) -> None:
        self.sdata, self.region, self.metrics, self.n_genes = sdata, region, metrics, n_genes
        self.image_key = image_key
        wanted = truth or metrics.get("truth") or keys.counts(region)
        self.truth = wanted if truth or wanted in sdata.tables else None
        self.prediction = prediction or metrics.get("prediction") or self._prediction()
        for name in (self.truth, self.prediction):
            if name is not None:
                _find.table_of(sdata, region=region, table_key=name)

    def _prediction(self) -> str | None:
        found = _find.predictions(self.sdata, self.region)
        if not found and self.truth is None:
            found = _find.predictions(self.sdata)
        return found[0] if found else None

    def _predicted_region(self) -> str:
        return (
            self.region
            if self.prediction is None
            else _find.region_of(self.sdata.tables[self.prediction], self.prediction)
        )

    @property
    def measured(self) -> AnnData | None:
        """The table of counts."""
        return None if self.truth is None else self.sdata.tables[self.truth]

    @property
    def guessed(self) -> AnnData | None:
        """The table of predictions."""
        return None if self.prediction is None else self.sdata.tables[self.prediction]

    @property
    def main(self) -> tuple[AnnData, str, str] | None:
        """Table, its name and its region: what ranking and domains are looked for in."""
        if self.truth is not None:
            return self.sdata.tables[self.truth], self.truth, self.region
        if self.prediction is not None:
            return self.sdata.tables[self.prediction], self.prediction, self._predicted_region()
        return None

    @cached_property
    def known(self) -> dict[str, Any]:
        """Facts of the slide."""
        from .. import store

        return store.facts(self.sdata)

    @cached_property
    def image(self) -> Any:
        """The opened image, or None."""
        return _find.open_image(self.sdata, self.image_key)

    # ---- head ---------------------------------------------------------------------------------------------------

    def name(self) -> str:
        """Title when none is given."""
        return f"Slide {self.known['slide']}" if self.known.get("slide") else "Slide report"

    def lead(self) -> str:
        """One line below the title."""
        if self.metrics.get("trained_on") and self.metrics.get("held_out"):
            learned = " and ".join(map(str, self.metrics["trained_on"]))
            return f"The model learned from {learned} and never saw {self.metrics['held_out']}, which is shown here."
        return ""

    def facts(self) -> list[tuple[str, str]]:
        """Slide, patient, tissue, platform, image."""
        out = [(k, str(self.known[k])) for k in ("slide", "patient", "tissue", "platform") if self.known.get(k)]
        if self.image is not None:
            h, w = self.image.shape
            mm = self.image.mpp / 1000
            out.append(("image", f"{w:,} × {h:,} px, {w * mm:.1f} × {h * mm:.1f} mm"))
            out.append(("pixel", f"{self.image.mpp:.3f} µm"))
        return out

    def numbers(self) -> list[dict[str, str]]:
        """The few figures that matter."""
        out = []
        if self.measured is not None:
            per_spot = np.asarray(self.measured.X.sum(axis=1)).ravel()
            out.append(_fact(f"{self.measured.n_obs:,}", f"{self.region} measured"))
            out.append(_fact(f"{self.measured.n_vars:,}", f"genes, median {np.median(per_spot):,.0f} counts a spot"))
        elif self.guessed is not None:
            n = self.guessed.n_obs
            out.append(_fact(f"{n:,}", f"{_learned.regions(self._predicted_region(), n)} predicted"))
        if self.guessed is not None:
            out.append(_fact(f"{self.guessed.n_vars:,}", "genes predicted from the image"))
        if not self._scored() and self.model.get("cross_validation"):
            return out + _own_scores(self.model["cross_validation"])
        summary = self.metrics.get("summary", {})
        if summary.get("pearson") is not None:
            shown = with_interval(summary["pearson"], summary.get("interval"))
            label = f"mean Pearson per gene{', 95 % interval ' + shown.small if shown.small else ''}"
            out.append(_fact(shown.text, label))
        colour = self.metrics.get("baseline", {}).get("colour", {}).get("pearson")
        if colour is not None:
            out.append(_fact(number(colour).text, "the same from colour alone"))
        ceiling = (self.metrics.get("ceiling") or {}).get("pearson")
        if ceiling is not None:
            out.append(_fact(number(ceiling).text, "most that counting noise allows"))
        return out

    # ---- pictures -----------------------------------------------------------------------------------------------

    def overview(self) -> list[Picture]:
        """The section, and where its regions lie."""
        out = []
        region = self.main[2] if self.main else self.region
        if self.image is not None:
            figure = _spatial.spatial(
                self.sdata,
                region="",
                image_key=self.image,
                crop_um=self._crop(region),
                panel_inches=3.4,
            )
            out.append(raster(figure, alt="Picture of the stained tissue section.", caption="The section."))
        if self.main is not None:
            figure = _spatial.spatial(
                self.sdata, region=region, table_key=self.main[1], image_key=self.image, panel_inches=3.4
            )
            n = self.main[0].n_obs
            text = f"The {n:,} {_learned.regions(region, n)} in their true size and place."
            out.append(raster(figure, alt="The same picture with the outline of every region.", caption=text))
        return out

    def _crop(self, region: str) -> Any:
        """What the maps show, so that the picture beside them shows the same."""
        from .. import image as images

        if self.main is None:
            return images.extent_um(self.image)
        return _find.view(_find.marks(self.sdata, self.main[0], region), None, self.image)

    def pairs(self) -> dict[str, Any] | None:
        """Measured beside predicted: the best genes and typical ones."""
        if self.measured is None or self.guessed is None:
            return None
        best, typical = self._chosen()
        groups = [("Best predicted", best), ("Typical (around the median score)", typical)]
        if not self._scored():
            groups = [("Most expressed genes", best)]
        shown = [{"title": t, "pictures": [self._pair(g) for g in genes]} for t, genes in groups if genes]
        if not shown:
            return None
        note = (
            "Left as measured, right as predicted from the image. Both maps of a gene have one colour scale, "
            "from the 1st to the 99th percentile of both together."
        )
        return {"note": f"{note} {self._seen()}".strip(), "groups": shown}

    def _pair(self, gene: str) -> Picture:
        score = self._scored().get(gene)
        figure = _compare.measured_predicted(
            self.sdata,
            genes=gene,
            truth=self.truth,
            prediction=self.prediction,
            region=self.region,
            image_key=self.image,
            panel_inches=1.9,
        )
        caption = gene if score is None else f"{gene}, Pearson {number(score).text}"
        return raster(figure, alt=f"Two maps of {gene}: measured and predicted.", caption=caption)

    def _scored(self) -> dict[str, float]:
        return {g["gene"]: g["pearson"] for g in self.metrics.get("genes", []) if g.get("pearson") is not None}

    def _chosen(self) -> tuple[list[str], list[str]]:
        scored = sorted(self._scored().items(), key=lambda item: -item[1])
        names = [g for g, _ in scored]
        if not names:
            return self._most_expressed(), []
        best = names[: self.n_genes]
        middle = max(self.n_genes, len(names) // 2 - self.n_genes // 2)
        return best, names[middle : middle + self.n_genes]

    def _most_expressed(self) -> list[str]:
        measured, guessed = self.measured, self.guessed
        if measured is None or guessed is None:
            return []
        shared = guessed.var_names.intersection(measured.var_names, sort=False)
        total = np.asarray(measured[:, shared].X.sum(axis=0)).ravel()
        return [str(shared[i]) for i in np.argsort(-total, kind="stable")[: self.n_genes]]

    def _seen(self) -> str:
        """Whether the model had seen these regions."""
        table = self.guessed
        if table is None or keys.FOLD not in table.obs:
            return ""
        out_of_fold = int((table.obs[keys.FOLD] >= 0).sum())
        if out_of_fold == 0:
            return "The slide was not among those that the model learned from."
        return (
            f"{out_of_fold:,} of {table.n_obs:,} {_learned.regions(self.region)} were in the training set; each is "
            "shown as predicted by the cross-validation model that had not seen it."
        )

    def predicted(self) -> dict[str, Any] | None:
        """Predictions where nothing was measured: the whole tissue on a grid, or a slide with H&E alone."""
        names = _find.predictions(self.sdata)
        if self.truth is not None:
            names = [t for t in names if _find.region_of(self.sdata.tables[t], t) != self.region]
        if not names:
            return None
        name = self.prediction if self.prediction in names else names[0]
        table = self.sdata.tables[name]
        region = _find.region_of(table, name)
        genes = [g for g in self._chosen()[0] if g in table.var_names] or _most_varying(table, self.n_genes)
        pictures = []
        for gene in genes[: self.n_genes]:
            figure = _spatial.spatial(
                self.sdata, color=gene, region=region, table_key=name, image_key=self.image, panel_inches=1.6
            )
            pictures.append(raster(figure, alt=f"Map of predicted {gene}.", caption=gene))
        note = f"{table.n_obs:,} {_learned.regions(region, table.n_obs)}, predicted from the image alone."
        if self.truth is None:
            note = f"{note} {self._seen()}".strip()
        title = "Predicted over the whole tissue" if self.truth is not None else "Predicted expression"
        return {"title": title, "note": note, "pictures": pictures}

    # ---- scores -------------------------------------------------------------------------------------------------

    def scores(self) -> dict[str, Any] | None:
        """The table of scores beside baselines and ceiling, and every gene."""
        if not self._scored():
            return None
        m = self.metrics
        note = (
            f"{m.get('n', 0):,} {_learned.regions(self.region)}, {len(m['genes']):,} genes, log(1 + counts per "
            "10,000). The gene mean predicts each gene's mean over the training set everywhere; colour only is the "
            "same method given nothing but the colours around a spot; the ceiling is what a perfect prediction would "
            "score given the counting noise of the measurement."
        )
        picture = vector(
            _scores.scores(m), alt="Histogram of the Pearson correlation over genes, with baselines and ceiling."
        )
        return {
            "note": note,
            "picture": picture,
            "table": _learned.score_table(m),
            "genes": self._gene_table(),
            "lines": _learned.score_lines(m),
        }

    def _gene_table(self) -> Table:
        rows = sorted(self.metrics["genes"], key=lambda g: -(g["pearson"] if g.get("pearson") is not None else -np.inf))
        shown = [m for m in _learned.METRICS if any(g.get(m[0]) is not None for g in rows)]
        has_ceiling = any(g.get("ceiling") is not None for g in rows)
        table = Table(["gene", *(label for _, label in shown), *(["ceiling"] if has_ceiling else [])], sortable=True)
        for g in rows[:GENES_UP_TO]:
            cells = [Cell(str(g["gene"])), *(number(g.get(name)) for name, _ in shown)]
            table.rows.append(Row([*cells, number(g.get("ceiling"))] if has_ceiling else cells))
        return table

    @cached_property
    def model(self) -> dict[str, Any]:
        """Facts of the model that the prediction comes from; empty where it states none."""
        from .. import store

        stamp = store.stamp_of(self.sdata, self.prediction) if self.prediction else None
        return dict((stamp or {}).get("model") or {})

    def learned(self) -> dict[str, Any] | None:
        """The model: what it learned from, and how it scored in cross-validation."""
        if not self.model:
            return None
        return _learned.section(self.model, known=self.known, measured=bool(self._scored()))

    # ---- genes and domains --------------------------------------------------------------------------------------

    def ranking(self) -> dict[str, Any] | None:
        """The spatially variable genes that tl.svg marked."""
        if self.main is None:
            return None
        table, name, region = self.main
        key = _ranking_key(table)
        if key is None:
            return None
        rank = table.var[f"{key}.rank"]
        order = rank.dropna().sort_values(kind="stable").index
        marked = table.var[f"{key}.svg"].to_numpy(dtype=bool)
        uns = table.uns.get(key, {})
        method = str(uns.get("params", {}).get("method", key))
        label = _TESTS.get(method, method)
        fdr = float(uns.get("params", {}).get("fdr", 0.05))
        significant = int((table.var[f"{key}.padj"] <= fdr).sum())
        note = (
            f"{label}: {len(order):,} genes tested, {significant:,} significant at a false discovery rate of {fdr:.0%}"
        )
        note += f", {int(marked.sum()):,} marked." if marked.sum() != significant else "."
        pictures = [
            raster(
                _spatial.spatial(
                    self.sdata, color=g, region=region, table_key=name, image_key=self.image, panel_inches=1.6
                ),
                alt=f"Map of {g}.",
                caption=f"{i + 1}. {g}",
            )
            for i, g in enumerate(order[: self.n_genes])
        ]
        return {"note": note, "pictures": pictures, "table": _ranking_table(table, key, order[:RANKED])}

    def domains(self) -> dict[str, Any] | None:
        """The domain map that tl.domains wrote."""
        if self.main is None:
            return None
        table, name, region = self.main
        found = [c.removesuffix(".refined") for c in table.obs if c.endswith(".refined")]
        found = [k for k in found if f"{k}.domain" in table.obs]
        if not found:
            return None
        key = found[-1]
        refined = table.obs[f"{key}.refined"]
        figure = _spatial.spatial(
            self.sdata,
            color=f"{key}.refined",
            region=region,
            table_key=name,
            image_key=self.image,
            panel_inches=3.0,
            title="",
        )
        sizes = refined.value_counts().reindex(refined.cat.categories).to_numpy()
        listed = Table(["domain", region, "share"], narrow=True)
        for domain, n in zip(refined.cat.categories, sizes, strict=True):
            share = n / max(int(sizes.sum()), 1)
            listed.rows.append(Row([Cell(str(domain)), Cell(f"{n:,}", float(n)), Cell(f"{share:.0%}", float(share))]))
        method = str(table.uns.get(key, {}).get("params", {}).get("method", key))
        note = f"{len(sizes)} domains by {method} on expression and place, after a vote of the neighbours."
        return {
            "note": note,
            "picture": raster(figure, alt="Map of the domains."),
            "table": listed,
        }

    # ---- what was done ------------------------------------------------------------------------------------------

    def elements(self) -> list[dict[str, str]]:
        """Every stamped element: who made it, with what, when."""
        from .. import store

        rows = []
        for stamp in store.steps(self.sdata):
            for made in [*stamp.get("history", []), stamp]:
                rows.append(
                    {
                        "element": str(stamp["element"]),
                        "step": str(made.get("step", "")),
                        "parameters": _short(made.get("parameters", {})),
                        "created": str(made.get("created", "")).replace("T", " ")[:16],
                    }
                )
        return sorted(rows, key=lambda row: row["created"])

    def absent(self) -> str:
        """What could be here, and how to get it."""
        hints = []
        if self.prediction is None:
            hints.append("predictions (stainseq predict)")
        elif self.truth is not None and not self._scored():
            hints.append("scores (stainseq evaluate)")
        if self.main is not None and _ranking_key(self.main[0]) is None:
            hints.append("spatially variable genes (stainseq svg)")
        if self.main is not None and not any(c.endswith(".refined") for c in self.main[0].obs):
            hints.append("domains (stainseq domains)")
        return f"Not in this store: {', '.join(hints)}." if hints else ""


def timings(steps: Sequence[Mapping[str, Any]]) -> Table | None:
    """Steps and the time they took."""
    if not steps:
        return None
    table = Table(["step", "seconds"], narrow=True)
    table.rows = [Row([Cell(str(s["step"])), number(s.get("seconds"), 1)]) for s in steps]
    total = sum(float(s.get("seconds") or 0) for s in steps)
    table.rows.append(Row([Cell("all"), number(total, 1)], strong=True))
    return table


def version_line() -> str:
    """Versions of what ran."""
    from .._environment import versions

    return "Made with " + ", ".join(f"{k} {v}" for k, v in versions().items()) + "."


def _own_scores(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """The model's cross-validation, where this slide has no scores."""
    summary = scores.get("summary") or {}
    if summary.get("pearson") is None:
        return []
    shown = with_interval(summary["pearson"], summary.get("interval"))
    span = f", 95 % interval {shown.small}" if shown.small else ""
    out = [_fact(shown.text, f"mean Pearson per gene in the model's cross-validation{span}")]
    colour = (scores.get("baseline") or {}).get("colour", {}).get("pearson")
    return [*out, _fact(number(colour).text, "the same from colour alone")] if colour is not None else out


def _fact(value: str, label: str) -> dict[str, str]:
    return {"value": value, "label": label}


def _most_varying(table: AnnData, n: int) -> list[str]:
    return [str(table.var_names[i]) for i in np.argsort(-_find.variances(table.X), kind="stable")[:n]]


def _ranking_key(table: AnnData) -> str | None:
    found = [c.removesuffix(".rank") for c in table.var if c.endswith(".rank")]
    found = [k for k in found if {f"{k}.padj", f"{k}.svg"} <= set(table.var)]
    return found[-1] if found else None


def _ranking_table(table: AnnData, key: str, genes: Any) -> Table:
    """The first genes with the method's own figures, where it kept them."""
    full = table.uns.get(key, {}).get("table")
    own = [c for c in ("I", "C", "LLR", "FSV", "z") if full is not None and c in full]
    listed = Table(["gene", *own, "adjusted p", "spots with counts", "counts"], sortable=True)
    if full is not None:
        full = full.set_index("gene")
    matrix = table[:, genes].X
    dense = np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)
    for i, gene in enumerate(genes):
        padj = float(table.var.loc[gene, f"{key}.padj"])
        seen, total = float((dense[:, i] > 0).mean()), float(dense[:, i].sum())
        cells = [Cell(str(gene)), *(number(float(full.loc[gene, c])) for c in own)]
        cells.append(power(float(np.log10(padj))) if padj > 0 else Cell("<1e−300", -400.0))
        listed.rows.append(Row([*cells, Cell(f"{seen:.0%}", seen), Cell(f"{total:,.0f}", total)]))
    return listed


def _short(parameters: Any) -> str:
    if not isinstance(parameters, dict):
        return str(parameters)
    kept = {k: v for k, v in parameters.items() if v is not None}
    text = ", ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in kept.items())
    return text if len(text) <= 300 else text[:297] + "..."
