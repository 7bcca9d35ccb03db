"""Slides to arrays: what a head learns from, joined by id and by gene name over slides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import featurise, keys, quality, store
from .errors import InputError, MissingError

if TYPE_CHECKING:
    from spatialdata import SpatialData

COLOUR = "colour"
"""Encoder of the colour baseline that is scored beside every model."""


@dataclass(frozen=True)
class TrainSet:
    """Regions of one or more slides, with features and raw counts.

    Parameters
    ----------
    X
        [n, d] features, float16 where they are stored so, else float32.
    colour
        float32 [n, c] features of the colour baseline.
    counts
        CSR [n, g] raw counts of the genes that all slides share.
    library
        float64 [n] counts over **all** genes of the region's own slide, for normalisation.
    genes
        Names, length g.
    ids
        str [n].
    slide, patient
        int [n] codes into `slides` and `patients`.
    coordinates
        float64 [n, 2] um, in each slide's own frame.
    slides
        Facts of every slide: slide, patient, image fingerprint, n.
    encoder
        The encoder's facts from the feature table's stamp.
    dropped
        Regions without any count, which cannot be normalised.
    """

    X: np.ndarray
    colour: np.ndarray
    counts: Any
    library: np.ndarray
    genes: list[str]
    ids: np.ndarray
    slide: np.ndarray
    patient: np.ndarray
    coordinates: np.ndarray
    slides: list[dict[str, Any]]
    encoder: dict[str, Any]
    dropped: int

    def rows(self, index: np.ndarray) -> dict[str, Any]:
        """Keyword arguments of `head.fit` for some rows."""
        return {"coordinates": self.coordinates[index], "slides": self.slide[index]}


def open_slides(slides: Any) -> list[SpatialData]:
    """Slides from stores, paths of stores, or one path of a cohort CSV.

    Patient and slide names of the cohort win over those in the stores.
    """
    if isinstance(slides, (str, os.PathLike)):
        slides = [slides]
    if not isinstance(slides, Sequence):
        slides = [slides]
    opened: list[SpatialData] = []
    for item in slides:
        if isinstance(item, (str, os.PathLike)) and str(item).lower().endswith(".csv"):
            from .cohort import read_cohort

            for row in read_cohort(Path(item)).table.to_dict("records"):
                if (
                    not str(row["path"]).endswith((".zarr", ".zarr.zip"))
                    and not (Path(row["path"]) / "zarr.json").exists()
                ):
                    raise InputError(
                        f"slide {row['slide']!r} is not converted yet",
                        where=item,
                        fix=f"run `stainseq convert {Path(item).name} FOLDER`, then use FOLDER/cohort.csv",
                    )
                sdata = store.open(row["path"])
                names = ("slide", "patient", "tissue", "platform", "split")
                facts = {k: row[k] for k in names if k in row and row[k] == row[k]}
                sdata.attrs[keys.STAMP] = {**store.facts(sdata), **{k: v for k, v in facts.items() if v}}
                opened.append(sdata)
        elif isinstance(item, (str, os.PathLike)):
            opened.append(store.open(Path(item)))
        else:
            opened.append(item)
    if not opened:
        raise InputError("no slides given", fix="give stores, or a cohort CSV")
    return opened


class Foreseen(NamedTuple):
    """What is known of a `TrainSet` before any picture is encoded: enough to lay out its folds."""

    coordinates: np.ndarray
    slide: np.ndarray
    patient: np.ndarray
    slides: list[dict[str, Any]]
    encoder: dict[str, Any]


def foresee(slides: list[SpatialData], *, table: str, encoder: str) -> Foreseen:
    """Places, slides and patients of what will be learned from.

    Parameters
    ----------
    slides
        Opened.
    table
        Name of their counts tables.
    encoder
        Name of an encoder, or of features that are there.

    Raises
    ------
    MissingError
        A slide has no such table.
    """
    from .encoders import spec

    places = [np.asarray(_counts(sdata, table).obsm[keys.SPATIAL], dtype=float) for sdata in slides]
    sizes = [len(p) for p in places]
    named = [str(store.facts(sdata).get("patient") or "") for sdata in slides]
    facts = [{"patient_known": bool(name)} for name in named]
    code = np.unique([name or f"slide {i}" for i, name in enumerate(named)], return_inverse=True)[1]
    try:
        fields = spec(encoder).fields_um
    except MissingError:  # features under a name of their own
        fields = (0.0,)
    return Foreseen(
        np.concatenate(places),
        np.repeat(np.arange(len(slides)), sizes),
        np.repeat(code, sizes),
        facts,
        {"fields_um": list(fields)},
    )


def _counts(sdata: SpatialData, name: str) -> Any:
    if name not in sdata.tables:
        raise MissingError(
            f"no table {name!r}", where=sdata.path, fix=f"tables here: {', '.join(sdata.tables) or 'none'}"
        )
    return sdata.tables[name]


def assemble(
    slides: list[SpatialData],
    *,
    region: str,
    encoder: str,
    weights: str | Path | None = None,
    table_key: str | None = None,
    genes: Sequence[str] | None = None,
    device: str = "auto",
    keep_empty: bool = False,
) -> TrainSet:
    """Join features and counts of all slides; features that are missing are computed.

    `keep_empty` keeps regions without any count: a depth-normalised target has no value there, a raw one has.

    Raises
    ------
    MissingError
        A slide has no counts table, or a wanted gene is in no slide.
    InputError
        Slides share no genes, or two slides carry the same name.
    """
    import pandas as pd
    from scipy import sparse

    name = table_key or keys.counts(region)
    tables, parts = [], []
    for sdata in slides:
        tables.append(_counts(sdata, name))
    shared = _shared_genes([t.var_names for t in tables], genes)
    names = [str(store.facts(s).get("slide") or Path(str(s.path or f"slide{i}")).stem) for i, s in enumerate(slides)]
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise InputError(
            f"slides of the same name: {', '.join(twice)}", fix="name them apart (convert --slide, or a cohort CSV)"
        )
    facts, encoder_facts, dropped = [], None, 0
    for i, (sdata, table) in enumerate(zip(slides, tables, strict=True)):
        # All slides in the way of the first, and the colour baseline looks at what the features look at.
        features, stamp = featurise.ensure_features(
            sdata, region=region, encoder=encoder, weights=weights, device=device, like=encoder_facts
        )
        colour, _ = featurise.ensure_features(
            sdata, region=region, encoder=COLOUR, device="cpu", like=featurise.colour_like(stamp["encoder"])
        )
        if encoder_facts is not None and stamp["encoder"]["fingerprint"] != encoder_facts["fingerprint"]:
            raise InputError(
                "features of different encoders", where=sdata.path, fix=f"run `stainseq features --encoder {encoder}`"
            )
        encoder_facts = stamp["encoder"]
        ids = table.obs_names.intersection(features.obs_names)
        at = pd.Index(features.obs_names).get_indexer(ids)
        raw = sparse.csr_matrix(table[ids].X)
        library = np.asarray(raw.sum(axis=1), dtype=np.float64).ravel()
        keep = (library > 0) | keep_empty
        dropped += int((~keep).sum())
        good, left_out = quality.usable(sdata, region, ids)
        keep &= good
        column = table.var_names.get_indexer(shared)
        parts.append(
            {
                "X": _stored(features.X[at[keep]]),
                "colour": np.asarray(colour[ids].X[keep], dtype=np.float32),
                "counts": raw[keep][:, column],
                "library": library[keep],
                "ids": np.asarray(ids[keep], dtype=str),
                "slide": np.full(int(keep.sum()), i),
                "coordinates": np.asarray(features.obsm[keys.SPATIAL][at][keep], dtype=float),
            }
        )
        info = store.facts(sdata)
        image_key = stamp["parameters"]["image_key"]
        facts.append(
            {
                "slide": names[i],
                "patient": str(info.get("patient") or names[i]),
                "patient_known": bool(info.get("patient")),
                "tissue": str(info.get("tissue") or ""),
                "image": stamp["inputs"][image_key],
                "n": int(keep.sum()),
                **({"left_out": left_out} if left_out else {}),
            }
        )
    joined: dict[str, Any] = {
        k: np.concatenate([p[k] for p in parts]) if len(parts) > 1 else parts[0][k] for k in parts[0] if k != "counts"
    }
    patients = sorted({f["patient"] for f in facts})
    code = np.array([patients.index(f["patient"]) for f in facts])
    if not len(joined["ids"]):
        raise InputError(f"no {region} with both counts and features", fix="check that the ids of both tables agree")
    return TrainSet(
        **joined,
        counts=sparse.vstack([p["counts"] for p in parts]).tocsr(),
        genes=shared,
        patient=code[joined["slide"]],
        slides=facts,
        encoder=dict(encoder_facts or {}),
        dropped=dropped,
    )


def _stored(values: Any) -> np.ndarray:
    values = np.asarray(values)
    return values if values.dtype == np.float16 else values.astype(np.float32, copy=False)


def _shared_genes(columns: list[Any], wanted: Sequence[str] | None) -> list[str]:
    shared = columns[0]
    for other in columns[1:]:
        shared = shared.intersection(other, sort=False)
    if not len(shared):
        raise InputError("the slides share no genes", fix="use one naming (symbols or Ensembl ids) in all of them")
    if wanted is None:
        return [str(g) for g in shared]
    absent = [g for g in wanted if g not in shared]
    if absent:
        raise MissingError(
            f"{len(absent)} of {len(wanted)} wanted genes are not in all slides ({', '.join(absent[:5])} ...)",
            fix="drop them from the gene list",
        )
    return [str(g) for g in wanted]
