"""The main job on real tissue that comes with the package; no network.

Three sections of one HER2-positive breast tumour (Andersson et al. 2021, CC BY 4.0, see data/her2st/LICENSE.md): learn
expression from the histology of two, predict the third, which the model never saw, and score it beside its baselines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import keys
from ._settings import settings
from .errors import StoreError

HELD_OUT = "C4"
CITATION = (
    "Tissue: Andersson A, Larsson L, Stenbeck L, et al. Spatial deconvolution of HER2-positive breast cancer "
    "delineates tumor-associated cell type interactions. Nature Communications 12, 6012 (2021). "
    "Data: Zenodo 4751624, CC BY 4.0."
)


def run(
    out: str | Path, *, encoder: str | None = None, n_genes: int = 100, seed: int = 0, overwrite: bool = False
) -> dict[str, Any]:
    """Do the whole job and write a report.

    Parameters
    ----------
    out
        Folder for ``report.html``, ``metrics.json``, the three stores and the model. A folder of an earlier or
        interrupted run is gone on with: what is finished there is not done again.
    encoder
        Default the documented default.
    n_genes
        Genes to learn, chosen on the training sections.
    seed
        Of everything random.
    overwrite
        Start from the beginning.

    Returns
    -------
    dict
        What stands in metrics.json.

    Raises
    ------
    StoreError
        `out` holds something that is not a demo's.
    """
    from . import datasets, io, pl, pp, tl
    from . import store as stores

    target = Path(out)
    _claim(target)
    done: list[dict[str, Any]] = []

    def step(what: str, action: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = action()
        done.append({"step": what, "seconds": round(time.perf_counter() - start, 1)})
        if settings.verbosity >= 2:
            _say(f"{what}  {done[-1]['seconds']:.1f} s")
        return result

    def convert(section: str) -> Any:
        path = target / f"{section}.zarr"
        if path.exists() and not overwrite:
            return stores.open(path)
        return io.convert(
            datasets.her2st(section), path, patient="C", tissue="breast", slide=section, overwrite=overwrite
        )

    slides = {s: step(f"convert {s}", lambda s=s: convert(s)) for s in datasets.HER2ST}  # type: ignore[misc]
    test = slides[HELD_OUT]
    for name, sdata in slides.items():
        step(f"features {name}", lambda sdata=sdata: pp.features(sdata, region=keys.SPOTS, encoder=encoder))  # type: ignore[misc]
    training = [slides[s] for s in datasets.HER2ST if s != HELD_OUT]
    cross = step(
        "train on C2 and C3",
        lambda: tl.train(training, out=target / "model", encoder=encoder, n_genes=n_genes, seed=seed, overwrite=True),
    )
    step(f"predict {HELD_OUT}", lambda: tl.predict(target / "model", test, region=keys.SPOTS))
    step("tissue and grid", lambda: (pp.tissue(test), pp.grid(test, spacing_um=100.0)))
    step(f"predict {HELD_OUT} on the grid", lambda: tl.predict(target / "model", test, region=keys.GRID))
    metrics = step(
        "score",
        lambda: tl.evaluate(
            test, truth=keys.counts(keys.SPOTS), prediction=keys.prediction("ridge", keys.SPOTS), seed=seed
        ),
    )
    step("spatial genes", lambda: tl.svg(test, method="spatialde2", region=keys.SPOTS))
    step("domains", lambda: tl.domains(test, n_domains=6, region=keys.SPOTS, seed=seed))
    metrics |= {
        "held_out": HELD_OUT,
        "trained_on": [s for s in datasets.HER2ST if s != HELD_OUT],
        "cross_validation": cross["summary"],
    }
    metrics["steps"] = done
    step(
        "report",
        lambda: pl.report(
            test,
            out=target / "report.html",
            metrics=metrics,
            title=f"her2st {HELD_OUT}: expression predicted from histology",
            steps=done,
            citations=[CITATION],
        ),
    )
    staged = target / ".metrics.json"
    staged.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    staged.replace(target / "metrics.json")
    return metrics


def _claim(target: Path) -> None:
    """Take a new folder or one of ours; never one that holds other things."""
    mark = target / ".stainseq-demo"
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not mark.exists()):
        raise StoreError("there is something else already", where=target, fix="give a new folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as e:
        raise StoreError(f"the folder cannot be written ({e.strerror})", where=target, fix="give another") from e


def _say(line: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(line, highlight=False)
