"""Patches, and scores of instance maps."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..errors import FormatError
from ._common import Json, NoSeed, Slide, emit, number, open_to_change, table

if TYPE_CHECKING:
    from rich.console import Console

Truth = Annotated[Path, Parameter(name="--truth", help="True instance maps: a file, or a folder of one map an image.")]
Prediction = Annotated[
    list[Path], Parameter(name=("--pred", "--prediction"), help="Predicted maps, alike; may be repeated and is joined.")
]
SHOWN = ("dice", "jaccard", "dq", "sq", "pq", "mpq", "aji", "aji_plus", "f1")


def patches(
    slide: Slide,
    /,
    *,
    size_px: int = 256,
    overlap_px: int = 64,
    mpp: float = 0.25,
    image_key: str = "he",
    tissue_key: str | None = None,
    min_tissue: float = 0.5,
    region: str | None = None,
    min_cells: int = 0,
    max_upsampling: float = 1.5,
    key_added: Annotated[str, Parameter(name=("--key", "--key-added"), help="Name of the shapes.")] = "patches",
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Cut a slide into overlapping square patches at a stated resolution.

    Parameters
    ----------
    size_px
        Side of a patch, px of --mpp.
    overlap_px
        What neighbours share, px.
    mpp
        Pixel size of the patches, um; the slide is resampled where its own differs. 0.25 is "40x", 0.5 "20x".
    image_key
        Picture whose axes the patches follow.
    tissue_key
        Shapes of the tissue; "tissue" where it is there when left out.
    min_tissue
        Least share of a patch that is tissue, 0 to 1.
    region
        Nuclei or cells that are counted in each patch; nuclei, else cells, when left out.
    min_cells
        Least number of them.
    max_upsampling
        The slide may be so many times coarser than --mpp.
    """
    import stainseq as ss
    from stainseq import store

    sdata = open_to_change(slide)
    ss.pp.patches(
        sdata,
        size_px=size_px,
        overlap_px=overlap_px,
        mpp=mpp,
        image_key=image_key,
        tissue_key=tissue_key,
        min_tissue=min_tissue,
        region=region,
        min_cells=min_cells,
        max_upsampling=max_upsampling,
        key_added=key_added,
    )
    made, frame = store.stamp_of(sdata, key_added) or {}, sdata.shapes[key_added]
    result = {
        "element": key_added,
        "patches": len(frame),
        "left_out": made["left_out"],
        "size_px": size_px,
        "overlap_px": overlap_px,
        "mpp": mpp,
        "image_mpp": made["image_mpp"],
        "cells": made["parameters"]["region"],
        "cells_per_patch": float(frame["n_cells"].mean()),
    }
    emit(result, json, lambda console: _show_patches(console, result))


def _show_patches(console: Console, made: dict[str, Any]) -> None:
    resampled = abs(made["mpp"] / made["image_mpp"] - 1) > 0.01
    console.print(
        f"{made['element']}: {made['patches']} patches of {made['size_px']} px at {made['mpp']:g} um/px"
        + (f", resampled from {made['image_mpp']:.4g}" if resampled else "")
        + f"; {made['left_out']} left out"
    )
    if made["cells"]:
        console.print(f"{made['cells_per_patch']:.1f} {made['cells']} a patch")


def maskqc(
    *,
    pred: Prediction,
    truth: Truth,
    mpp: float = 0.25,
    size: tuple[int, int] | None = None,
    kinds: Path | None = None,
    groups: Path | None = None,
    average: Literal["image", "tissue", "fold"] = "image",
    match_iou: float = 0.5,
    missing: Literal["error", "empty", "skip"] = "error",
    compat: bool = False,
    csv: Path | None = None,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Score instance maps: Dice, Jaccard, PQ (DQ, SQ), AJI, detection; per image, per class, on average.

    Reads label images (PNG, TIFF, npy; an RGB PNG has one colour an instance), npz, HoVer-Net .mat, PanNuke masks,
    CellViT h5 and zip, and outlines (GeoJSON).

    Parameters
    ----------
    mpp
        Pixel size of the maps, um; a detection is a pair of centroids within 3 um.
    size
        Height and width in px, where both sides are outlines.
    kinds
        JSON that names the classes: a list for 1, 2, ..., or CellViT's cat2idx.json (names to numbers from 0).
    groups
        CSV of image and tissue and/or fold (CellViT's types.csv), for averages over these.
    average
        What the summary is: mean over images, over tissues (images first), or over folds (tissues first, as PanNuke's
        published figures).
    match_iou
        Overlap above which a pair matches.
    missing
        An image without prediction: an error, scored as empty, or left out.
    compat
        Pair detections as HoVer-Net and CellViT do.
    csv
        File for one row an image.
    """
    import stainseq as ss

    from .._files import check_output, write_file

    check_output(csv)
    result = ss.tl.maskqc(
        pred,
        truth,
        mpp=mpp,
        size=size,
        kinds=None if kinds is None else _kinds(kinds),
        groups=groups,
        average=average,
        match_iou=match_iou,
        missing=missing,
        compat=compat,
    )
    if csv is not None:
        import pandas as pd

        write_file(csv, lambda staged: pd.DataFrame(result["image"]).to_csv(staged, index=False))
    emit(result, json, lambda console: _show(console, result))


def _kinds(path: Path) -> list[str]:
    try:
        held = jsonlib.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise FormatError(f"no JSON ({e})", where=path, fix="give a list of names") from e
    numbered = isinstance(held, dict) and all(isinstance(v, int) for v in held.values())
    if numbered and sorted(held.values()) in (list(range(len(held))), list(range(1, len(held) + 1))):
        return sorted(held, key=held.__getitem__)
    if isinstance(held, list) and all(isinstance(k, str) for k in held):
        return held
    raise FormatError("neither a list of names nor names with numbers", where=path, fix="give a list of names")


def _show(console: Console, result: dict[str, Any]) -> None:
    summary, many = result["summary"], len(result["image"]) > 1
    mean = f"mean over {result['protocol']['average']}s" if many else result["image"][0]["name"]
    shown = table("", *(f"{s.replace('_plus', '+')}>" for s in SHOWN))
    rows = [(mean, summary)]
    if many:
        rows += [(f"mean over {k}s", v) for k, v in result["averages"].items() if k != result["protocol"]["average"]]
    rows += [(f"tissue {k}", v) for k, v in result["tissues"].items()]
    rows += [(f"class {k}", v) for k, v in result["classes"].items()]
    for name, values in rows:
        shown.add_row(name, *(number(values.get(s), 4) if values.get(s) is not None else "" for s in SHOWN))
    console.print(f"{summary['n']} images" if many else "1 image")
    console.print(shown)
