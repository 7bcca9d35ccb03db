"""Sets for training and testing that share no pixel, and what they share where they do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .. import keys
from ..core import sets as cores
from ..core import splits
from ..errors import InputError, MissingError

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ..patches import Patches

SETS = ("train", "valid", "test")
FRACTIONS = (0.6, 0.2, 0.2)
"""STHELAR's shares."""

COMPAT_SEED = 42
_FEWEST = 5
"""Patches of a stratum below which `compat` does not stratify: fewer cannot be dealt to three sets."""


class _Slide(NamedTuple):
    name: str
    patient: str
    tissue: str
    picture: str
    patches: Patches | None
    centres: np.ndarray  # of labelled nuclei, in pixels of the patches
    kinds: np.ndarray  # their classes, from 1


def split(
    slides: Any,
    *,
    by: Literal["patient", "slide", "block"] = "patient",
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    block_um: float = 1000.0,
    buffer_um: float = 32.0,
    patches: str = keys.PATCHES,
    region: str | None = None,
    labels: str | None = None,
    table: str | None = None,
    label_map: str | None = None,
    max_shared: float | None = None,
    compat: bool = False,
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Deal slides or patches to train, valid and test, and report what the sets share.

    Parameters
    ----------
    slides
        A cohort CSV, or slides (stores, their paths).
    by
        "patient": all slides of a patient go together (the honest choice where there are several). "slide". "block":
        square blocks of tissue within each slide, for few slides; patches too near to another set are left out.
    fractions
        Of train, valid, test; 0 leaves a set out. Default 0.6, 0.2, 0.2, as STHELAR. Groups are whole: what was reached
        stands in ``shares``.
    seed
        Which groups go together.
    block_um
        Side of a block. Default 1 mm: wider than the structures that make neighbours alike.
    buffer_um
        Least distance between patches of different sets, with `by` "block". Default 32 um, which is 128 px at 0.25
        um/px, the margin of STHELAR's own converter of 2026. Train gives way to valid, and both to test.
    patches
        Shapes element of the patches. Splits by patient and slide do without.
    region, labels, table, label_map
        For the table of classes: nuclei of this region with the labels of this column (CSV or obs of this table) under
        this map; as `io.export` to "cellvit" takes them. Default: "nuclei" or "cells", and their only
        ``<method>.label``, where there is one.
    max_shared
        Share of pixels, or of a patient's patches, that two sets may have in common, of the smaller. Default 0; 1 with
        `compat`.
    compat
        STHELAR's published split instead: patches at random, within each tissue, stratified by whether they show the
        tissue's rarest class; 20 % test, a quarter of the rest valid, seed 42, by scikit-learn. It leaks, and the
        report says how much. The same rule, not the same draw: that depends on the order of the authors' tables.
    out
        JSON to write.

    Returns
    -------
    dict
        ``sets``: name to slides, or to patches with `by` "block" and `compat`. ``leaks``: dicts of ``kind`` ("pixels",
        "patient", "image"), ``sets``, ``a``, ``b`` (slide or patient on either side), ``shared`` (0 to 1) and, for
        pixels, ``pixels``. ``unit``, ``shares`` (of patches, or of slides without), ``left_out`` (patches of the
        buffer), ``balance`` (set to class to nuclei with their centre in it, each once), and the parameters.

    Raises
    ------
    InputError
        Too few groups or blocks for the sets; sets that share more than `max_shared`. Nothing is written then.
    MissingError
        Slides without patient or patches, where they are needed.
    """
    from .._files import check_output, write_json
    from ..trainset import open_slides

    shares = _shares(fractions)
    check_output(out)
    if by not in ("patient", "slide", "block"):
        raise InputError(f"by={by!r}", fix="patient, slide or block")
    opened = open_slides(slides)
    made_of_patches = compat or by == "block"
    prepared, classes = _prepare(opened, patches, made_of_patches, region, labels, table, label_map)
    if compat:
        parts = _published(prepared)
        left_out: list[str] = []
    elif by == "block":
        parts, left_out = _blocks(prepared, shares, block_um, buffer_um, seed)
    else:
        parts, left_out = _groups(prepared, by, shares, seed), []
    used = SETS if compat else tuple(shares)
    leaks = _leaks(prepared, parts, used, by_patient=not made_of_patches)
    allowed = max_shared if max_shared is not None else float(compat)
    _refuse(leaks, allowed)
    sizes = {n: sum(int((p == n).sum()) for p in parts) for n in used}
    result = {
        "sets": {n: _members(prepared, parts, n, made_of_patches) for n in used},
        "leaks": leaks,
        "unit": "patch" if made_of_patches else "slide",
        "by": "random" if compat else by,
        "seed": COMPAT_SEED if compat else seed,
        "fractions": dict(zip(SETS, FRACTIONS, strict=True)) if compat else shares,
        "shares": {n: v / max(sum(sizes.values()), 1) for n, v in sizes.items()},
        "sizes": sizes,
        "left_out": left_out,
        "max_shared": allowed,
        "balance": _balance(prepared, parts, used, classes),
    }
    if by == "block" and not compat:
        result |= {"block_um": block_um, "buffer_um": buffer_um}
    if out is not None:
        write_json(Path(out), result)
    return result


def _shares(fractions: Sequence[float]) -> dict[str, float]:
    given = [float(v) for v in fractions]
    if len(given) != len(SETS) or min(given) < 0 or abs(sum(given) - 1) > 1e-6 or given[0] == 0:
        raise InputError(
            f"fractions {', '.join(f'{v:g}' for v in given)}", fix="give three that sum to 1, of train, valid, test"
        )
    return {n: v for n, v in zip(SETS, given, strict=True) if v > 0}


def _prepare(
    opened: list[SpatialData],
    patches: str,
    needed: bool,
    region: str | None,
    labels: str | None,
    table: str | None,
    label_map: str | None,
) -> tuple[list[_Slide], list[str]]:
    from .. import patches as windows
    from .. import store
    from ..writers._classes import classify, load_map
    from ..writers._flat import name_of

    names = [name_of(s) for s in opened]
    if len(set(names)) < len(names):
        raise InputError(f"two slides are called {max(names, key=names.count)!r}", fix="rename one of them")
    cut = [windows.load(s, patches=patches) if needed or patches in s.shapes else None for s in opened]
    if None in cut:  # sizes in patches would compare with nothing
        cut = [None] * len(cut)
    texts = [_labels(s, region, labels, table) for s in opened]
    classes, kinds = ([], [np.zeros(0, dtype=np.int32)] * len(opened))
    if any(len(t) for t, _ in texts):
        found, kinds = classify([t for t, _ in texts], load_map(label_map), unlabelled="class")
        classes = list(found.names)
    slides = []
    for sdata, name, one, (_, um), kind in zip(opened, names, cut, texts, kinds, strict=True):
        facts = store.facts(sdata)
        picture = store.fingerprint_of(sdata, keys.HE) if keys.HE in sdata.images else ""
        centres = one.to_px(um) if one is not None and len(um) else um
        told = (str(facts.get("patient") or ""), str(facts.get("tissue") or "Unknown"))
        slides.append(_Slide(name, *told, picture, one, centres, kind))
    return slides, classes


def _labels(
    sdata: SpatialData, region: str | None, labels: str | None, table: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of nuclei and where they lie (um); none where nothing is labelled and nothing was asked for."""
    from .. import regions
    from ..writers._labels import labels_of, owners_of

    known = regions.names(sdata)
    named = region or next((r for r in (keys.NUCLEI, keys.CELLS) if r in known), None)
    none: tuple[np.ndarray, np.ndarray] = (np.zeros(0, dtype=object), np.zeros((0, 2)))
    if named is None:
        if labels is not None:
            raise MissingError("no nuclei or cells to count", where=sdata.path, fix="name them (--region)")
        return none
    own = table or keys.counts(named)
    if labels is None and (
        own not in sdata.tables or not any(str(c).endswith(".label") for c in sdata.tables[own].obs)
    ):
        return none
    where = regions.get(sdata, named)
    return labels_of(sdata, where.ids, owners_of(sdata, named, where.ids), labels=labels, table=own), where.centres_um


def _groups(slides: list[_Slide], by: str, shares: dict[str, float], seed: int) -> list[np.ndarray]:
    if by == "patient":
        without = [s.name for s in slides if not s.patient]
        if without:
            raise MissingError(
                f"no patient of {', '.join(without[:5])}", fix="name patients in the cohort, or split --by slide"
            )
    groups = np.array([s.patient if by == "patient" else s.name for s in slides])
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < len(shares):
        raise InputError(
            f"{len(names)} {by}{'s'[: len(names) != 1]} cannot make {len(shares)} sets",
            fix="split --by block" if by == "slide" or len(slides) < len(shares) else "split --by slide or --by block",
        )
    sizes = np.bincount(codes, weights=[_size(s) for s in slides], minlength=len(names))
    chosen = np.array(list(shares), dtype=object)[cores.deal(sizes, list(shares.values()), names=names, seed=seed)]
    return [np.full(_size(s), chosen[c], dtype=object) for s, c in zip(slides, codes, strict=True)]


def _size(slide: _Slide) -> int:
    return 1 if slide.patches is None else len(slide.patches)


def _blocks(
    slides: list[_Slide], shares: dict[str, float], block_um: float, buffer_um: float, seed: int
) -> tuple[list[np.ndarray], list[str]]:
    """Each slide by itself, so that every set has patches of all."""
    if not buffer_um >= 0:
        raise InputError(f"buffer_um={buffer_um:g}", fix="give 0 or more")
    parts, left_out = [], []
    names = np.array(list(shares), dtype=object)
    for slide in slides:
        cut = _cut(slide)
        blocks = splits.block_labels((cut.corners + cut.size_px / 2) * cut.mpp, block_um=block_um)
        sizes = np.bincount(blocks)
        if len(sizes) < len(shares):
            raise InputError(
                f"{len(sizes)} block{'s'[: len(sizes) != 1]} of {block_um:g} um cannot make {len(shares)} sets",
                where=slide.name,
                fix="take smaller blocks (--block-um)",
            )
        called = np.array([f"{slide.name}/{i}" for i in range(len(sizes))])
        dealt = cores.deal(sizes, list(shares.values()), names=called, seed=seed)[blocks]
        last_first = range(len(shares) - 1, -1, -1)
        kept = cores.apart(cut.corners, dealt, size=cut.size_px, gap=buffer_um / cut.mpp, order=last_first)
        lost = [str(n) for i, n in enumerate(names) if not (kept & (dealt == i)).any()]
        if lost:
            raise InputError(
                f"the buffer of {buffer_um:g} um leaves nothing of {', '.join(lost)}",
                where=slide.name,
                fix="take larger blocks (--block-um) or a smaller buffer (--buffer-um)",
            )
        chosen = names[dealt]
        chosen[~kept] = None
        parts.append(chosen)
        left_out += cut.ids[~kept].tolist()
    return parts, left_out


def _cut(slide: _Slide) -> Patches:
    if slide.patches is None:
        raise MissingError("no patches", where=slide.name, fix="run `stainseq patches` first")
    return slide.patches


def _published(slides: list[_Slide]) -> list[np.ndarray]:
    """STHELAR's rule: at random within a tissue, by whether a patch shows the tissue's rarest class."""
    from sklearn.model_selection import train_test_split

    parts = [np.full(len(_cut(s)), None, dtype=object) for s in slides]
    for tissue in dict.fromkeys(s.tissue for s in slides):
        mine = [i for i, s in enumerate(slides) if s.tissue == tissue]
        met = np.concatenate([slides[i].kinds for i in mine])
        counts = np.bincount(met) if len(met) else np.zeros(1, dtype=np.int64)
        counts[0] = 0
        rarest = int(np.argmin(np.where(counts > 0, counts, np.iinfo(np.int64).max)))
        stratum = np.concatenate([_shows(slides[i], rarest) for i in mine])
        rows = np.arange(len(stratum))
        if len(rows) < _FEWEST:
            raise InputError(f"{len(rows)} patches of {tissue} cannot make three sets", fix="cut more patches")
        strata = stratum if np.bincount(stratum, minlength=2).min() >= _FEWEST else None
        rest, test = train_test_split(rows, test_size=0.2, random_state=COMPAT_SEED, stratify=strata)
        train, valid = train_test_split(
            rest, test_size=0.25, random_state=COMPAT_SEED, stratify=None if strata is None else strata[rest]
        )
        dealt = np.full(len(rows), None, dtype=object)
        for name, chosen in zip(SETS, (train, valid, test), strict=True):
            dealt[chosen] = name
        starts = np.cumsum([0, *(len(parts[i]) for i in mine)])
        for i, a, b in zip(mine, starts[:-1], starts[1:], strict=True):
            parts[i][:] = dealt[a:b]
    return parts


def _shows(slide: _Slide, kind: int) -> np.ndarray:
    """int64 [patches], 1 where a nucleus of the class has its centre in it."""
    cut = _cut(slide)
    of_kind = slide.centres[slide.kinds == kind] if len(slide.kinds) else slide.centres[:0]
    return _holds(of_kind, cut.corners + cut.size_px / 2, cut.size_px / 2).astype(np.int64)


def _holds(points: np.ndarray, centres: np.ndarray, half: float) -> np.ndarray:
    """Which squares hold a point."""
    from scipy.spatial import cKDTree

    if not len(points):
        return np.zeros(len(centres), dtype=bool)
    return np.asarray(cKDTree(points).query(centres, p=np.inf)[0] <= half)


def _leaks(
    slides: list[_Slide], parts: list[np.ndarray], used: Sequence[str], *, by_patient: bool
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    sizes = {n: sum(int((p == n).sum()) for p in parts) for n in used}
    for first, second in combinations(used, 2):
        smaller = min(sizes[first], sizes[second])
        for slide, part in zip(slides, parts, strict=True):
            if slide.patches is None:
                continue
            corners = slide.patches.corners
            a, b, both = cores.shared_area(corners[part == first], corners[part == second], size=slide.patches.size_px)
            if both:
                share = both / min(a, b)
                found.append({**_leak("pixels", first, second, slide.name, slide.name, share), "pixels": both})
        sides = [{i for i, p in enumerate(parts) if (p == n).any()} for n in (first, second)]
        for i in sorted(sides[0]):
            for j in sorted(sides[1] - {i}):
                less = min(int((parts[i] == first).sum()), int((parts[j] == second).sum())) / max(smaller, 1)
                if slides[i].picture and slides[i].picture == slides[j].picture:
                    found.append(_leak("image", first, second, slides[i].name, slides[j].name, min(less, 1.0)))
                if by_patient and slides[i].patient and slides[i].patient == slides[j].patient:
                    found.append(_leak("patient", first, second, slides[i].name, slides[j].name, min(less, 1.0)))
    return found


def _leak(kind: str, first: str, second: str, a: str, b: str, shared: float) -> dict[str, Any]:
    return {"kind": kind, "sets": [first, second], "a": a, "b": b, "shared": float(shared)}


def _refuse(leaks: list[dict[str, Any]], allowed: float) -> None:
    bad = [x for x in leaks if x["shared"] > allowed]
    if not bad:
        return
    what = {"pixels": "pixels of", "patient": "the patient of", "image": "the picture of"}
    shown = "; ".join(
        f"{x['sets'][0]} and {x['sets'][1]} share {what[x['kind']]} "
        f"{x['a'] if x['a'] == x['b'] else x['a'] + ' and ' + x['b']} ({x['shared']:.1%})"
        for x in bad[:4]
    )
    more = f"; and {len(bad) - 4} more" if len(bad) > 4 else ""
    raise InputError(
        f"the split leaks: {shown}{more}",
        fix="split by patient, or by block with a buffer, or allow it (--max-shared)",
    )


def _members(slides: list[_Slide], parts: list[np.ndarray], name: str, of_patches: bool) -> list[str]:
    if not of_patches:
        return [s.name for s, p in zip(slides, parts, strict=True) if p[0] == name]
    return [str(i) for s, p in zip(slides, parts, strict=True) for i in _cut(s).ids[p == name]]


def _balance(
    slides: list[_Slide], parts: list[np.ndarray], used: Sequence[str], classes: list[str]
) -> dict[str, dict[str, int]]:
    """Nuclei of each class with their centre in patches of a set, each once; of whole slides where there are none."""
    if not classes:
        return {}
    table = {}
    for name in used:
        counts = np.zeros(len(classes) + 1, dtype=np.int64)
        for slide, part in zip(slides, parts, strict=True):
            chosen = part == name
            if not chosen.any() or not len(slide.kinds):
                continue
            kinds = slide.kinds
            if slide.patches is not None:
                centres = slide.patches.corners[chosen] + slide.patches.size_px / 2
                kinds = kinds[_holds(centres, slide.centres, slide.patches.size_px / 2)]
            counts += np.bincount(kinds, minlength=len(counts))
        table[name] = {c: int(v) for c, v in zip(classes, counts[1:], strict=True)}
    return table
