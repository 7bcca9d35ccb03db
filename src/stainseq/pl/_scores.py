"""Scores of a prediction: each gene beside its baselines and what counting noise allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingError
from . import _style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"gene_mean": "gene mean", "colour": "colour only"}
_UNITS = {
    "pearson": "Pearson correlation per gene",
    "spearman": "Spearman correlation per gene",
    "rmse": "RMSE per gene",
    "mse": "MSE per gene",
    "r2": "R² per gene",
    "ssim": "SSIM per gene",
}


def scores(metrics: Mapping[str, Any], *, metric: str = "pearson", width: float = 4.2, height: float = 2.3) -> Figure:
    """Draw the distribution of a score over genes, with the mean, its interval, the baselines and the ceiling.

    Parameters
    ----------
    metrics
        As `tl.evaluate` and `tl.train` return them, or ``metrics.json``.
    metric
        "pearson", "spearman", "rmse", "mse", "r2" or "ssim".
    width, height
        Inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingError
        The metrics have no such score for any gene.
    """
    rows = metrics.get("genes", [])
    found = np.array([np.nan if g.get(metric) is None else g[metric] for g in rows], dtype=float)
    found = found[np.isfinite(found)]
    if not len(found):
        raise MissingError(f"no gene has the score {metric!r}", fix=f"one of: {', '.join(_UNITS)}")
    summary = metrics.get("summary", {})
    with _style.style():
        figure = _style.new_figure(width, height)
        ax = figure.subplots()
        low, high = min(found.min(), 0.0) if metric in ("pearson", "spearman", "r2") else found.min(), found.max()
        bins = np.linspace(low, high if high > low else low + 1, 31)
        ax.hist(found, bins=bins.tolist(), color="#56B4E9", edgecolor="white", linewidth=0.4)
        mean = summary.get(metric)
        mean = float(found.mean()) if mean is None else float(mean)
        interval = (summary.get("intervals") or {}).get(metric)
        interval = summary.get("interval") if interval is None and metric == "pearson" else interval
        if interval is not None and None not in interval:
            ax.axvspan(*interval, color="#0072B2", alpha=0.18, linewidth=0)
        lines = [("this model", mean, "#0072B2", "-")]
        for i, (name, entry) in enumerate(metrics.get("baseline", {}).items()):
            if entry.get(metric) is not None:
                colour = ("#777777", "#D55E00", "#CC79A7", "#882255")[i % 4]
                lines.append((NAMES.get(name, name.replace("_", " ")), float(entry[metric]), colour, "--"))
        ceiling = (metrics.get("ceiling") or {}).get(metric)
        if ceiling is not None:
            lines.append(("noise ceiling", float(ceiling), "#009E73", "-."))
        for name, at, colour, dash in lines:
            ax.axvline(at, color=colour, linestyle=dash, linewidth=1.2, label=f"{name} {at:.2f}")
        ax.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=len(lines), columnspacing=1.2, handlelength=1.8
        )
        ax.set_xlabel(_UNITS.get(metric, metric))
        ax.set_ylabel("genes")
    return figure
