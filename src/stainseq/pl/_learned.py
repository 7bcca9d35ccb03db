"""What a prediction comes from: the model, what it learned from, and how it scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import keys
from . import _scores
from ._embed import Cell, Row, Table, number, with_interval

METRICS = (("pearson", "Pearson"), ("spearman", "Spearman"), ("rmse", "RMSE"), ("r2", "R²"), ("ssim", "SSIM"))


def score_table(m: Mapping[str, Any]) -> Table:
    """Scores of a model beside its baselines and the ceiling."""
    shown = [x for x in METRICS if m["summary"].get(x[0]) is not None]
    table = Table(["", *(label for _, label in shown)])
    entries = [("this model", m["summary"], True)]
    entries += [(_scores.NAMES.get(k, k.replace("_", " ")), v, False) for k, v in m.get("baseline", {}).items()]
    for name, entry, strong in entries:
        intervals = entry.get("intervals") or {"pearson": entry.get("interval")}
        cells = [
            with_interval(entry.get(x), intervals.get(x)) if x == "pearson" else number(entry.get(x)) for x, _ in shown
        ]
        table.rows.append(Row([Cell(name), *cells], strong))
    ceiling = m.get("ceiling") or {}
    if ceiling.get("pearson") is not None:
        table.rows.append(Row([Cell("noise ceiling"), *(number(ceiling.get(x)) for x, _ in shown)]))
    return table


def score_lines(m: Mapping[str, Any]) -> list[str]:
    """What is to be said below them."""
    lines = []
    for name, entry in m.get("baseline", {}).items():
        gap = entry.get("difference") or {}
        if gap.get("pearson") is not None:
            cell = with_interval(gap["pearson"], gap.get("interval"))
            span = f" ({cell.small})" if cell.small else ""
            label = _scores.NAMES.get(name, name.replace("_", " "))
            lines.append(f"Pearson above {label}: {cell.text}{span}, paired.")
    summary = m.get("summary", {})
    if summary.get("interval_over") and summary.get("interval") is not None:
        level = float(summary.get("interval_level", 0.95))
        lines.append(f"Intervals: {level:.0%}, over {summary.get('n_blocks', '')} {_over(summary['interval_over'])}.")
    reached = (m.get("ceiling") or {}).get("reached")
    if reached is not None:
        lines.append(f"{reached:.0%} of the ceiling is reached.")
    cross = (m.get("cross_validation") or {}).get("pearson")
    if cross is not None:
        lines.append(f"Cross-validation inside the training set: Pearson {number(cross).text}.")
    return lines


def _over(text: Any) -> str:
    return str(text).replace(" um", " µm")


def regions(region: str, n: int = 2) -> str:
    """What the regions are called in a sentence."""
    name = {keys.GRID: "places on a grid"}.get(region, region)
    if n != 1:
        return name
    return {keys.GRID: "place on a grid", keys.NUCLEI: "nucleus", keys.PATCHES: "patch"}.get(
        region, name.removesuffix("s")
    )


def section(model: Mapping[str, Any], *, known: Mapping[str, Any], measured: bool) -> dict[str, Any]:
    """The model's own facts and cross-validated scores, for beside its prediction.

    Parameters
    ----------
    model
        `Model.facts`, as the prediction's stamp holds them.
    known
        Facts of the slide.
    measured
        Whether the prediction is scored on this slide, too.
    """
    scores = model.get("cross_validation") or {}
    facts = [(k, str(model[k])) for k in ("name", "head", "encoder") if model.get(k)]
    facts += [(k, _listed(model[k])) for k in ("slides", "patients", "tissues") if model.get(k)]
    facts.append(("learned from", f"{model.get('n', 0):,} {regions(str(model.get('region', '')))}"))
    note = ""
    if (scores.get("summary") or {}).get("pearson") is not None:
        held_out = {"patient": "patient", "slide": "slide", "block": "part of a slide"}.get(str(model.get("split")), "")
        note = (
            f"Cross-validation inside the training slides, {model.get('n_folds')} folds by {model.get('split')}: each "
            f"of their {regions(str(model.get('region', '')))} is predicted by a model that had not seen its "
            f"{held_out or 'fold'}; {scores.get('n_genes', 0):,} genes, log(1 + counts per 10,000)."
        )
        if not measured:
            note += (
                " Nothing was measured on this slide, so nothing more is known of how good its prediction is; on "
                "another patient, tissue or stain it may be worse."
            )
    return {
        "facts": facts,
        "note": note,
        "table": score_table(scores) if note else None,
        "lines": [*score_lines(scores if note else {}), *_warnings(model, known)],
    }


def _warnings(model: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    lines = [f"Of this model: {note}." for note in model.get("notes", [])]
    tissue, learned = str(known.get("tissue") or ""), [str(t) for t in model.get("tissues", [])]
    if tissue and learned and tissue.lower() not in [t.lower() for t in learned]:
        lines.insert(0, f"This slide is of {tissue}, the model learned from {' and '.join(learned)}.")
    return lines


def _listed(names: list[str], most: int = 12) -> str:
    return ", ".join(map(str, names[:most])) + (f", ... ({len(names)})" if len(names) > most else "")
