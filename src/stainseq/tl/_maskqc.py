"""Instance maps against instance maps: a segmentation against the truth, or H&E against the platform's nuclei."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._progress import progress
from .._settings import settings
from ..core import instances
from ..errors import FormatError, InputError, MissingError, ScaleError

if TYPE_CHECKING:
    import pandas as pd

    from ..masks import Mask, Masks

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

RADIUS_UM = 3.0
"""Centroids closer than this are one detection: the field's 12 px at 0.25 um/px and 6 px at 0.5."""

OVERALL = ("dice", "jaccard", "dice2", "aji", "aji_plus", "dq", "sq", "pq", "bpq", "mpq")


def maskqc(
    prediction: Paths,
    truth: Paths,
    *,
    mpp: float = 0.25,
    size: tuple[int, int] | None = None,
    kinds: Sequence[str] | None = None,
    groups: str | os.PathLike[str] | pd.DataFrame | None = None,
    average: Literal["image", "tissue", "fold"] = "image",
    match_iou: float = instances.MATCH_IOU,
    missing: Literal["error", "empty", "skip"] = "error",
    compat: bool = False,
) -> dict[str, Any]:
    """Score instance maps, image by image and on average.

    Parameters
    ----------
    prediction, truth
        Files or folders, see `stainseq.masks.open_masks`; several predictions are joined. Images are matched by name
        where there are several, by order of the two arguments where each holds one.
    mpp
        Microns per pixel of the maps; sets the radius of a detection (3 um, the field's 12 px at 0.25). Default 0.25,
        the field's "40x".
    size
        (height, width) of the image where both sides are outlines.
    kinds
        Names of classes 1, 2, ...; needed where one side names its classes and the other numbers them. Default: as the
        files have them.
    groups
        Table (CSV: image, tissue and/or fold; or CellViT's types.csv: img, type) for averages over tissues and folds.
    average
        What ``summary`` holds. "image": mean over images. "tissue": mean over images within a tissue, then over
        tissues. "fold": that within each fold, then over folds, which is how PanNuke's published figures are made. All
        that can be had stand in ``averages``.
    match_iou
        Overlap above which a pair matches in PQ.
    missing
        What to do with a true map without a prediction: "error"; "empty", scored as if nothing had been found; "skip".
    compat
        Detections paired as HoVer-Net and CellViT do it; see `stainseq.core.instances.pair_centroids`.

    Returns
    -------
    dict
        ``image``: one row an image (name, dice, jaccard, dice2, aji, aji_plus, dq, sq, pq, bpq, mpq, counts; NaN where
        a score is not defined: PQ without true instances). ``summary``: the same on average, and ``f1``,
        ``precision``, ``recall`` of detection over all images together. ``classes``: per class dq, sq, pq and detection
        F1. ``averages`` and ``protocol``: every averaging by name, and what was counted how.

    Raises
    ------
    MissingError
        Names that only one side has.
    FormatError
        A map that cannot be read, or of another size than its partner.

    Notes
    -----
    Scores as in `stainseq.core.instances`. ``pq`` and ``bpq`` are the same: all classes in one map. ``mpq`` is the mean
    of the classes present in the image's truth, NaN where there is none, then averaged over images.
    """
    from ..masks import open_masks

    if not 0 < mpp < np.inf:
        raise InputError(f"mpp={mpp} is no pixel size", fix="give microns per pixel, such as 0.25")
    ours, theirs = open_masks(*_listed(prediction)), open_masks(*_listed(truth))
    pairs = _paired(ours, theirs, missing)
    table = None if groups is None else _groups(groups, [t for _, t in pairs])
    if average != "image" and (table is None or average not in table):
        raise InputError(f"average={average!r} needs to know the {average} of each image", fix="give groups")
    radius_px = RADIUS_UM / mpp

    def one(pair: tuple[str | None, str]) -> _Scored:
        found, name = pair
        true, guess = _maps(ours, found, theirs, name, size)
        return _score(name, true, guess, _names(kinds, true, guess, name), radius_px, match_iou, compat)

    with ThreadPoolExecutor(settings.n_jobs) as pool, progress("scores", len(pairs)) as advance:
        scored = []
        for result in pool.map(one, pairs):
            scored.append(result)
            advance(1)
    return _result(
        scored,
        table,
        average,
        {
            "match_iou": match_iou,
            "radius_px": radius_px,
            "mpp": mpp,
            "missing": missing,
            "average": average,
            "pairing": "HoVer-Net" if compat else "most pairs within the radius",
        },
    )


class _Scored:
    """Scores of one image, and counts that add up over images."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row
        self.detected = np.zeros(3, dtype=np.int64)
        self.classes: dict[str, dict[str, float]] = {}
        self.class_counts: dict[str, dict[str, int]] = {}


def _listed(paths: Paths) -> list[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def _paired(ours: Masks, theirs: Masks, missing: str) -> list[tuple[str | None, str]]:
    if len(ours.names) == len(theirs.names) == 1:
        return [(ours.names[0], theirs.names[0])]
    known, wanted = set(ours.names), set(theirs.names)
    strange = [n for n in ours.names if n not in wanted]
    if strange:
        raise MissingError(
            f"{len(strange)} predictions have no truth ({', '.join(map(repr, strange[:3]))})",
            where=theirs.where,
            fix="maps are matched by name: name both sides alike",
        )
    lost = [n for n in theirs.names if n not in known]
    if lost and missing == "error":
        raise MissingError(
            f"{len(lost)} images have no prediction ({', '.join(map(repr, lost[:3]))})",
            where=ours.where,
            fix='predict them, or give missing="empty" (nothing was found there) or "skip"',
        )
    return [(n if n in known else None, n) for n in theirs.names if n in known or missing == "empty"]


def _maps(ours: Masks, found: str | None, theirs: Masks, name: str, size: tuple[int, int] | None) -> tuple[Mask, Mask]:
    from ..masks import Mask

    if size is None:
        # Outlines take the size of their partner.
        try:
            true = theirs.read(name, None)
            guess = None if found is None else ours.read(found, true.instances.shape)
        except ScaleError:
            if found is None:
                raise
            guess = ours.read(found, None)
            true = theirs.read(name, guess.instances.shape)
    else:
        true, guess = theirs.read(name, size), None if found is None else ours.read(found, size)
    if guess is None:
        nothing = np.zeros_like(true.instances)
        guess = Mask(nothing, None if true.classes is None else np.zeros_like(true.classes), true.kinds)
    if guess.instances.shape != true.instances.shape:
        raise FormatError(
            f"the prediction has {guess.instances.shape} px, the truth {true.instances.shape}",
            where=f"image {name!r}",
            fix="compare maps of the same patch at the same resolution",
        )
    return true, guess


def _names(kinds: Sequence[str] | None, true: Mask, guess: Mask, image: str) -> tuple[list[str], Mask, Mask] | None:
    """Names of all classes, and both maps with classes numbered by them; None where a side has no classes."""
    if true.classes is None or guess.classes is None:
        return None
    sides = []
    for mask in (true, guess):
        if mask.kinds is not None:
            sides.append(mask.kinds)
        elif kinds is not None:
            sides.append(tuple(kinds))
        else:
            sides.append(())
    if not sides[0] and not sides[1]:
        most = int(max(true.classes.max(initial=0), guess.classes.max(initial=0)))
        return [str(k) for k in range(1, most + 1)], true, guess
    if not sides[0] or not sides[1]:
        raise InputError(
            "one side names its classes, the other numbers them",
            where=f"image {image!r}",
            fix="give kinds, the names of classes 1, 2, ...",
        )
    names = list(kinds) if kinds is not None else sorted({*sides[0], *sides[1]})
    out = []
    for mask, side in zip((true, guess), sides, strict=True):
        strange = [k for k in side if k not in names]
        if strange:
            raise InputError(f"class {strange[0]!r} is not among the kinds given", where=f"image {image!r}")
        place = np.array([0, *(names.index(k) + 1 for k in side)], dtype=np.int32)
        top = int(mask.classes.max(initial=0)) if mask.classes is not None else 0
        if top >= len(place):
            raise InputError(f"class {top}, but {len(side)} names", where=f"image {image!r}", fix="name all classes")
        out.append(mask._replace(classes=place[mask.classes], kinds=tuple(names)))
    return names, out[0], out[1]


def _score(
    name: str,
    true: Mask,
    guess: Mask,
    typed: tuple[list[str], Mask, Mask] | None,
    radius_px: float,
    match_iou: float,
    compat: bool,
) -> _Scored:
    table = instances.overlap(true.instances, guess.instances)
    quality = instances.panoptic_quality(table, match_iou=match_iou)
    row = {"name": name, **instances.pixel_scores(true.instances, guess.instances)}
    row["dice2"] = instances.ensemble_dice(table)
    row.update(instances.aggregated_jaccard(table))
    row.update(quality)
    row["bpq"], row["mpq"] = quality["pq"], np.nan
    row["n_truth"], row["n_prediction"] = len(table.truth), len(table.prediction)
    scored = _Scored(row)
    pairs = instances.pair_centroids(table.truth_xy, table.prediction_xy, radius_px=radius_px, compat=compat)
    scored.detected[:] = len(pairs), len(table.prediction) - len(pairs), len(table.truth) - len(pairs)
    if typed is None:
        return scored
    names, true, guess = typed
    truth_class = instances.majority(true.instances, np.asarray(true.classes), table.truth)
    guess_class = instances.majority(guess.instances, np.asarray(guess.classes), table.prediction)
    for k, kind in enumerate(names, start=1):
        one = instances.panoptic_quality(table.of_class(truth_class == k, guess_class == k), match_iou=match_iou)
        scored.classes[kind] = {s: one[s] for s in ("dq", "sq", "pq")}
        scored.class_counts[kind] = instances.type_counts(pairs, truth_class, guess_class, k)
    present = [c["pq"] for c in scored.classes.values() if not np.isnan(c["pq"])]
    row["mpq"] = float(np.mean(present)) if present else np.nan
    return scored


def _groups(groups: Any, names: list[str]) -> pd.DataFrame:
    import pandas as pd

    from ..readers._tables import read_table

    table = groups if isinstance(groups, pd.DataFrame) else read_table(Path(groups))
    table = table.rename(columns={"img": "image", "type": "tissue"})
    if "image" not in table or not ({"tissue", "fold"} & set(table)):
        raise FormatError(
            f"columns {', '.join(map(str, table.columns))}", where=groups, fix="give image, and tissue and/or fold"
        )
    table = table.assign(image=table["image"].astype(str).str.removesuffix(".png")).set_index("image")
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()][0]
        raise InputError(f"image {twice!r} is there twice", where=groups, fix="one row an image")
    lost = [n for n in names if n not in table.index]
    if lost:
        raise MissingError(f"{len(lost)} images are not in this table ({lost[0]!r})", where=groups)
    return table.loc[names]


def _result(
    scored: list[_Scored], table: pd.DataFrame | None, average: str, protocol: dict[str, Any]
) -> dict[str, Any]:
    import pandas as pd

    rows = pd.DataFrame([s.row for s in scored])
    averages = {"image": rows[list(OVERALL)].mean().to_dict()}
    tissues: dict[str, Any] = {}
    if table is not None:
        keys = [table[c].to_numpy() for c in ("fold", "tissue") if c in table]
        if "tissue" in table:
            means = rows[list(OVERALL)].groupby(table["tissue"].to_numpy()).mean()
            tissues = means.to_dict(orient="index")
            averages["tissue"] = means.mean().to_dict()
        if "fold" in table:
            inner = rows[list(OVERALL)].groupby(keys).mean()
            averages["fold"] = inner.groupby(level=0).mean().mean().to_dict()
    kinds = list(dict.fromkeys(k for s in scored for k in s.classes))
    classes = {}
    for kind in kinds:
        held = pd.DataFrame([s.classes[kind] for s in scored if kind in s.classes]).mean().to_dict()
        counts = pd.DataFrame([s.class_counts[kind] for s in scored if kind in s.class_counts]).sum()
        classes[kind] = {**held, **instances.type_f1({str(k): int(v) for k, v in counts.items()})}
    tp, fp, fn = np.sum([s.detected for s in scored], axis=0)
    return {
        "summary": {**averages[average], **instances.f1(tp, fp, fn), "n": len(rows)},
        "averages": averages,
        "tissues": tissues,
        "classes": classes,
        "protocol": protocol,
        "image": rows.to_dict(orient="records"),
    }
