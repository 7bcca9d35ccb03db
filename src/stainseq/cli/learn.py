"""Expression from histology: train, predict, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .. import keys
from ._common import (
    Json,
    Key,
    NoSeed,
    Options,
    Seed,
    Slide,
    TableKey,
    emit,
    number,
    open_to_change,
    options,
    show_scores,
    table,
)

if TYPE_CHECKING:
    from rich.console import Console


def train(
    *slides: Annotated[Path, Parameter(help="Slide stores, or one cohort CSV (slide, path, patient).")],
    out: Path,
    region: str = "spots",
    encoder: str | None = None,
    weights: Path | None = None,
    head: str | None = None,
    split: Literal["patient", "slide", "block"] | None = None,
    n_folds: Annotated[int | None, Parameter(name=("--folds", "--n-folds"))] = None,
    block_um: float = 1000.0,
    genes: Path | None = None,
    n_genes: int = 250,
    table_key: TableKey = None,
    normalize: Literal["cp10k", "raw"] = "cp10k",
    option: Options = None,
    overwrite: bool = False,
    device: str = "auto",
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Learn expression from histology, with cross-validated scores, and write a MODEL folder.

    Parameters
    ----------
    out
        The MODEL folder.
    region
        Regions to learn from. Superpixels (of 8 um) are laid, and their transcripts counted, where they are not yet.
    encoder
        Encoder (stainseq list encoders); the documented default when left out.
    weights
        Local weights of the encoder.
    head
        Head (stainseq list heads); the documented default when left out, pixel2gene for superpixels, bins and cells
        (on several GPUs: torchrun --nproc-per-node N -m stainseq train ...).
    split
        What is held out together; patients when there are two or more, else slides, else blocks.
    n_folds
        Folds; every patient or slide once (at most 10), or 5 of blocks, when left out.
    block_um
        Side of a spatial block, um.
    genes
        File with one gene name a line; chosen by variance in each fold when left out.
    n_genes
        How many to choose.
    normalize
        Unit of the targets: log1p of counts per 10,000, or (for superpixels and cells) of raw counts.
    overwrite
        Replace a model that is there.
    device
        auto, cpu, cuda, mps; for encoding.
    """
    import stainseq as ss
    from stainseq.heads._ranks import first_alone
    from stainseq.tl._train import is_first

    if not slides:
        from cyclopts import CycloptsError

        raise CycloptsError(msg="no slide to learn from: name one or more stores, or a cohort CSV")
    cohort = len(slides) == 1 and slides[0].suffix.lower() == ".csv"
    given: Any = slides[0] if cohort else list(slides)
    options_of_head = options(option)
    if region == keys.SUPERPIXELS and table_key is None:
        with first_alone(options_of_head.get("device")):
            if is_first():
                _lay_superpixels(given)
    metrics = ss.tl.train(
        given,
        out=out,
        region=region,
        encoder=encoder,
        weights=weights,
        head=head,
        split=split,
        n_folds=n_folds,
        block_um=block_um,
        genes=genes,
        n_genes=n_genes,
        table_key=table_key,
        normalize=normalize,
        options=options_of_head,
        seed=seed,
        overwrite=overwrite,
        device=device,
    )

    if not is_first():  # of the processes that torchrun has started
        return

    def show(console: Console) -> None:
        console.print(f"{out}: cross-validated over {metrics['n_folds']} folds by {metrics['split']}")
        if len(metrics["genes"]) > metrics["n_genes"]:
            console.print(
                f"the model predicts {metrics['n_genes']} genes; each fold chose its own {metrics['n_genes']} without "
                f"looking at what it held out, {len(metrics['genes'])} different ones in all, which are scored:"
            )
        show_scores(console, metrics)

    emit(metrics, json, show)


def _lay_superpixels(given: Any) -> None:
    """Lay and count superpixels on the slides that have transcripts and no such table."""
    import stainseq as ss
    from stainseq import regions, trainset

    for sdata in trainset.open_slides(given):
        if keys.counts(keys.SUPERPIXELS) in sdata.tables or keys.TRANSCRIPTS not in sdata.points:
            continue
        if keys.SUPERPIXELS not in regions.names(sdata):
            ss.pp.superpixels(sdata)
        ss.pp.aggregate(sdata, region=keys.SUPERPIXELS)


def predict(
    model: Annotated[Path, Parameter(help="A MODEL folder.")],
    slide: Slide,
    /,
    *,
    region: str | None = None,
    weights: Path | None = None,
    image_key: str = "he",
    mode: Literal["infer", "enhance"] = "infer",
    truth: str | None = None,
    quality: str | None = None,
    key: Key = None,
    device: str = "auto",
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Predict the expression of every region of a slide from its picture.

    Parameters
    ----------
    region
        Regions to predict; when left out those that the model learned from, or a grid on a slide that has none of them.
        Superpixels (of 8 um) and a grid are laid where there are none. Regions seen in training get the prediction of
        the model that had not seen them.
    weights
        Local weights of the encoder, as given to train.
    image_key
        Image element.
    mode
        infer: from the picture alone. enhance: combined with the region's counts, each by what it is worth.
    truth
        Table of counts for enhance; counts_REGION when left out.
    quality
        Table of quality (stainseq tissue --quality): what is not good is left out. quality_REGION where it is there;
        "none" predicts all regions.
    device
        auto, cpu, cuda, mps; for encoding.
    """
    import stainseq as ss
    from stainseq import model as models
    from stainseq import regions, store
    from stainseq.tl._predict import check_image, region_for

    learned, sdata = models.load(model), open_to_change(slide)
    region = region or region_for(learned, sdata)
    if region in ("grid", "superpixels") and region not in regions.names(sdata):
        check_image(sdata, image_key)
        if "tissue" not in sdata.shapes:
            ss.pp.tissue(sdata, image_key=image_key)
        if region == "grid":
            ss.pp.grid(sdata)
        else:
            ss.pp.superpixels(sdata, image_key=image_key)
    ss.tl.predict(
        learned,
        sdata,
        region=region,
        weights=weights,
        image_key=image_key,
        mode=mode,
        truth=truth,
        quality=quality,
        key_added=key,
        device=device,
    )
    name = key or keys.prediction(str(learned.config["head"]), region)
    made, stamp = sdata.tables[name], store.stamp_of(sdata, name) or {}
    out_of_fold, left_out = int(stamp["out_of_fold"]), dict(stamp["left_out"])
    result: dict[str, Any] = {"table": name, "n": made.n_obs, "genes": made.n_vars, "out_of_fold": out_of_fold}
    result["left_out"] = left_out
    text = f"{name}: {made.n_obs} regions x {made.n_vars} genes"
    if out_of_fold:
        text += f"; {out_of_fold} of a training slide, each predicted by the fold that had not seen it"
    if left_out:
        text += f"; left out by quality: {', '.join(f'{n} {kind}' for kind, n in left_out.items())}"
    if mode == "enhance":
        found = stamp["enhanced"]
        result |= {"measured": found["measured"], "mean_weight": found["mean_weight"]}
        text += f"; {result['measured']} measured, which count for {result['mean_weight']:.0%} on average"
    emit(result, json, lambda c: c.print(text))


def evaluate(
    slide: Slide,
    /,
    *,
    truth: str = "counts_spots",
    prediction: str,
    genes: Path | None = None,
    block_um: float | None = None,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Score a prediction against the measurement, beside its baselines and the noise ceiling.

    Parameters
    ----------
    truth
        Table of raw counts.
    prediction
        Table of the prediction.
    genes
        File with one gene name a line; all that both tables have when left out.
    block_um
        Side of the blocks that intervals are drawn over, um; about 12 blocks a slide when left out.
    """
    import stainseq as ss
    from stainseq.tl._train import _gene_list

    metrics = ss.tl.evaluate(
        ss.io.open(slide), truth=truth, prediction=prediction, genes=_gene_list(genes), block_um=block_um, seed=seed
    )

    def show(console: Console) -> None:
        show_scores(console, metrics)
        ranked = sorted(
            (g for g in metrics["genes"] if g.get("pearson") is not None), key=lambda g: -float(g["pearson"])
        )
        best = table("best genes", "pearson>", "spearman>", "rmse>")
        for g in ranked[:10]:
            best.add_row(str(g["gene"]), number(g["pearson"]), number(g.get("spearman")), number(g.get("rmse")))
        console.print()
        console.print(best)

    emit(metrics, json, show)
