"""Commands of the main job: features, train, predict, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ._output import Json, Output, Overwrite, Seed, open_slide
from .slides import _options


def features(
    slide: Path,
    /,
    *,
    region: str = "spots",
    encoder: str | None = None,
    weights: Path | None = None,
    image_key: str = "he",
    key: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "auto",
    json: Json = None,
) -> None:
    """Encode the image around every region: table `features_<encoder>_<region>`. Resumes where it was killed.

    Parameters
    ----------
    slide
        A store.
    region
        Regions to encode: shapes, labels or a grid.
    encoder
        Name (`stainseq list encoders`), or several joined by +; default the documented one.
    weights
        Local weights file, for encoders whose weights do not come with the package.
    image_key
        Image element.
    key
        Another name for the table.
    batch_size
        Windows per call of the encoder.
    device
        auto, cpu, cuda, cuda:1, mps.
    precision
        auto, or fp32, bf16, fp16.
    """
    from .. import featurise, store

    sdata = open_slide(slide)
    table = featurise.write_features(
        sdata,
        region=region,
        encoder=encoder,
        weights=weights,
        image_key=image_key,
        key_added=key,
        batch_size=batch_size,
        device=device,
        precision=precision,
    )
    name = key or featurise.table_name(featurise.encoder_name(encoder), region)
    stamp = store.stamp_of(sdata, name) or {}
    show = Output(json)
    rate = (
        f", {stamp['encoded'] / stamp['seconds']:.1f} regions/s"
        if stamp.get("encoded") and stamp.get("seconds")
        else ""
    )
    show.line(f"{name}: {table.n_obs} x {table.n_vars}; {stamp.get('encoded', 0)} encoded now{rate}, the rest cached")
    show.json(
        {
            "table": name,
            "n": table.n_obs,
            "dim": table.n_vars,
            "encoded": stamp.get("encoded"),
            "seconds": stamp.get("seconds"),
        }
    )


def train(
    slides: list[Path],
    /,
    *,
    out: Path,
    region: str = "spots",
    encoder: str | None = None,
    weights: Path | None = None,
    head: str | None = None,
    split: Literal["patient", "slide", "block"] | None = None,
    folds: int | None = None,
    block_um: float = 1000.0,
    genes: Path | None = None,
    n_genes: int = 250,
    option: Annotated[list[str] | None, Parameter(name="--option", negative=())] = None,
    device: str = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Learn expression from histology; writes a MODEL folder with cross-validated scores.

    Parameters
    ----------
    slides
        Stores, or one cohort CSV (slide, path, patient, ...). Missing features are computed.
    out
        The MODEL folder.
    region
        Regions to learn from.
    encoder
        Image encoder; default the documented one.
    weights
        Its local weights file.
    head
        Name (`stainseq list heads`); default ridge.
    split
        What is held out together; default patients where there are several, else slides, else spatial blocks.
    folds
        Number of folds; default one a patient or slide (at most 10), 5 of blocks.
    block_um
        Side of a spatial block.
    genes
        File with one gene a line; default the most variable, chosen inside each fold.
    n_genes
        How many to choose.
    option
        KEY=VALUE, an option of the head; may be given several times.
    device
        For encoding.
    """
    from .. import tl

    metrics = tl.train(
        slides,
        out=out,
        region=region,
        encoder=encoder,
        weights=weights,
        head=head,
        split=split,
        n_folds=folds,
        block_um=block_um,
        genes=genes,
        n_genes=n_genes,
        options=_options(option),
        seed=seed,
        overwrite=overwrite,
        device=device,
    )
    show = Output(json)
    show.line(f"{out}: {metrics['n']} regions, {metrics['n_folds']} folds by {metrics['split']}, cross-validated:")
    show_scores(show, metrics)
    show.json(metrics)


def predict(
    model: Path,
    slide: Path,
    /,
    *,
    region: str = "spots",
    weights: Path | None = None,
    image_key: str = "he",
    mode: Literal["infer"] = "infer",
    key: str | None = None,
    device: str = "auto",
    json: Json = None,
) -> None:
    """Predict expression from the image: table `pred_<head>_<region>`. Regions seen in training get out-of-fold values.

    Parameters
    ----------
    model
        A MODEL folder.
    slide
        A store; H&E alone is enough (`stainseq grid` lays the regions).
    region
        Regions to predict; `grid` is laid where it is not there.
    weights
        The encoder's local weights file.
    image_key
        Image element.
    mode
        infer: from the image alone.
    key
        Another name for the table.
    device
        For encoding.
    """
    from .. import model as models
    from .. import pp, tl

    learned, sdata = models.load(model), open_slide(slide)
    if region == "grid" and "grid" not in sdata.shapes:
        if "tissue" not in sdata.shapes:
            pp.tissue(sdata, image_key=image_key)
        pp.grid(sdata)
    tl.predict(
        learned, sdata, region=region, weights=weights, image_key=image_key, mode=mode, key_added=key, device=device
    )
    name = key or f"pred_{learned.config['head']}_{region}"
    table = sdata.tables[name]
    seen = int((table.obs["fold"] >= 0).sum())
    show = Output(json)
    show.line(f"{name}: {table.n_obs} regions x {table.n_vars} genes; {seen} of them out of fold")
    show.json({"table": name, "n": table.n_obs, "genes": table.n_vars, "out_of_fold": seen})


def evaluate(
    slide: Path,
    /,
    *,
    prediction: str,
    truth: str = "counts_spots",
    genes: Path | None = None,
    block_um: float | None = None,
    top: int = 10,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Score a prediction against measured counts, beside the baselines and the noise ceiling.

    Parameters
    ----------
    slide
        A store.
    prediction
        Table of predictions.
    truth
        Table of raw counts.
    genes
        File with one gene a line; default all that both tables have.
    block_um
        Side of the blocks of the bootstrap; default about 12 blocks a slide.
    top
        Genes to print.
    """
    from .. import tl
    from ..tl._train import _gene_list

    metrics = tl.evaluate(
        open_slide(slide), truth=truth, prediction=prediction, genes=_gene_list(genes), block_um=block_um, seed=seed
    )
    show = Output(json)
    show.line(f"{prediction} against {truth}: {metrics['n']} regions, {metrics['out_of_fold']} of them out of fold")
    show_scores(show, metrics)
    best = sorted(metrics["genes"], key=lambda g: -(g["pearson"] if g["pearson"] is not None else -2))[:top]
    columns = ["gene", "pearson", "spearman", "rmse", "ssim", "ceiling"]
    show.table(
        columns, [[g.get(c) for c in columns] for g in best], title=f"best {len(best)} of {len(metrics['genes'])} genes"
    )
    show.json(metrics)


def show_scores(show: Output, metrics: dict[str, Any]) -> None:
    """The score table: the model, its baselines, and the ceiling."""
    names = ["pearson", "spearman", "rmse", "r2", "ssim"]
    rows: list[list[Any]] = [["model", *(metrics["summary"].get(k) for k in names), _interval(metrics["summary"])]]
    for name, values in metrics.get("baseline", {}).items():
        rows.append([name.replace("_", " "), *(values.get(k) for k in names), _interval(values)])
    if metrics.get("ceiling"):
        rows.append(["noise ceiling", metrics["ceiling"].get("pearson"), None, None, None, None, None])
    show.table(["mean over genes", *names, "95 % interval of pearson"], rows)


def _interval(values: dict[str, Any]) -> str | None:
    interval = values.get("interval")
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else None
