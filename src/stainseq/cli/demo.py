"""The demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ._common import Json, Seed, emit, show_scores

if TYPE_CHECKING:
    from rich.console import Console


def demo(
    out: Path,
    /,
    *,
    encoder: str | None = None,
    n_genes: int = 100,
    overwrite: bool = False,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Do the main job on real breast tumour tissue that comes with the package; no network.

    Parameters
    ----------
    out
        Folder for report.html, metrics.json, the stores and the model. What an earlier run finished there is kept.
    encoder
        Encoder (stainseq list encoders); the documented default when left out.
    n_genes
        Genes to learn, chosen on the training sections.
    overwrite
        Start from the beginning.
    """
    from stainseq import demo as job

    metrics = job.run(out, encoder=encoder, n_genes=n_genes, seed=seed, overwrite=overwrite)

    def show(console: Console) -> None:
        show_scores(console, metrics)
        console.print(f"\nopen {out / 'report.html'}")

    emit(metrics, json, show)
