"""What a path holds: store, source, model, cohort, table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import keys
from .._text import counted
from ..errors import FormatError, MissingError, StainseqError, StoreError
from . import _cohort
from ._view import of_file, results

if TYPE_CHECKING:
    from spatialdata import SpatialData

_HIDDEN_FACTS = ("files", "notes")


def info(path: str | os.PathLike[str], *, repair: bool = True) -> dict[str, Any]:
    """Say what a path holds: sizes, units, what was done to it, and what is wrong with it.

    Parameters
    ----------
    path
        A slide store (also ``.zarr.zip``), a source that `convert` takes, a MODEL folder, a cohort CSV, a table
        (``.h5ad``, ``.h5mu``), or an experiment (a folder with ``metadata.tsv``).
    repair
        Mend a store that an interrupted write left untidy (see `store.repair`), and say what was done. A source,
        model or table is never changed.

    Returns
    -------
    dict
        ``path``; ``kind`` ("store", "source", "model", "cohort", "table", "experiment"); ``what`` in words; and, as far
        as they apply, ``facts``, ``sizes``, ``elements`` (name, kind, holds, step), ``steps``, ``notes``, ``problems``,
        ``repaired``.

    Raises
    ------
    MissingError
        Nothing is there.
    FormatError
        Not something that stainseq knows.
    """
    path = Path(path)
    if path.suffix in (".h5ad", ".h5mu") and path.is_file():
        return of_file(path)
    if (path / "model.json").is_file():
        return _model(path)
    if (path / "metadata.tsv").is_file():
        from .. import experiment

        return experiment.describe(path)
    if _cohort.is_cohort(path) or (path.suffix.lower() == ".csv" and path.is_file() and not _is_slide(path)):
        return _cohort.describe(path)
    if path.name.endswith(".zarr.zip") or (path / "zarr.json").is_file() or (path / ".zgroup").is_file():
        return _store(path, repair)
    if path.suffix == ".zarr" and not path.is_dir():
        raise MissingError("there is no store", where=path, fix="make one with `stainseq convert SOURCE OUT.zarr`")
    return _source(path)


def _store(path: Path, repair: bool) -> dict[str, Any]:
    from .. import lineage, store

    zipped = path.name.endswith(".zip")
    repaired: list[str] = []
    problems = [] if zipped else store.problems(path)
    if problems and repair and os.access(path, os.W_OK):
        try:
            repaired = store.repair(path)
        except StoreError as e:
            problems.append(str(e))
        else:
            problems = store.problems(path)
    sdata = store.open(path, repair=repair)
    problems += [
        f"{name} was made from another {', '.join(of)}: make it again" for name, of in lineage.stale(sdata).items()
    ]
    steps = store.steps(sdata)
    made = {(s["kind"], s["element"]): str(s.get("step", "")) for s in steps}
    elements = _elements(sdata)
    for element in elements:
        element["step"] = made.get((element["kind"], element["name"]), "not by stainseq")
    return {
        "path": str(path),
        "kind": "store",
        "what": f"slide store, {counted(len(elements), 'element')}",
        "facts": {k: v for k, v in store.facts(sdata).items() if k not in _HIDDEN_FACTS},
        "elements": elements,
        "steps": steps,
        "notes": _notes(sdata),
        "problems": problems,
        "repaired": repaired,
    }


def _is_slide(path: Path) -> bool:
    """Whether a CSV is one of a source's own files, as the coord csv of STimage-1K4M."""
    from ._read import sniff

    try:
        sniff(path)
    except FormatError:
        return False
    return True


def _source(path: Path) -> dict[str, Any]:
    """A vendor's folder or file, read lazily; what hinders reading is a problem that is listed."""
    from ._read import read, sniff

    platform, what = sniff(path)
    found: dict[str, Any] = {
        "path": str(path),
        "kind": "source",
        "what": f"{what} (platform {platform}); convert it with `stainseq convert`",
        "facts": {"platform": platform},
        "elements": [],
        "problems": [],
    }
    try:
        sdata = read(path)
    except StainseqError as e:
        return found | {"problems": [str(e)]}
    facts = dict(sdata.attrs.get(keys.STAMP, {}))
    return found | {
        "facts": {k: v for k, v in facts.items() if k not in _HIDDEN_FACTS},
        "elements": _elements(sdata),
        "notes": _notes(sdata),
    }


def _notes(sdata: SpatialData) -> list[str]:
    """What the reader noticed, dropped or changed; stores of the first version have it in their tables alone."""
    noted = sdata.attrs.get(keys.STAMP, {}).get("notes")
    if noted is None:
        noted = [n for t in sdata.tables.values() for n in t.uns.get("stainseq_read", {}).get("notes", [])]
    return [str(line) for line in noted]


def _elements(sdata: SpatialData) -> list[dict[str, str]]:
    describe = {"images": _raster, "labels": _raster, "points": _points, "shapes": _shapes, "tables": _annotation}
    return [
        {"name": name, "kind": kind, "holds": tell(sdata, name)}
        for kind, tell in describe.items()
        for name in getattr(sdata, kind)
    ]


def _raster(sdata: SpatialData, name: str) -> str:
    element = sdata[name]
    levels = list(element.children.values()) if hasattr(element, "children") else [element]
    first = next(iter(levels[0].data_vars.values())) if hasattr(levels[0], "data_vars") else levels[0]
    sizes = dict(zip(first.dims, first.shape, strict=True))
    channels = f"{sizes['c']} channels, " if "c" in sizes else ""
    mpp = _mpp(sdata, name)
    pixel = f", {mpp:.4g} um per pixel" if mpp else ", not placed in um"
    pyramid = f", {len(levels)} levels" if len(levels) > 1 else ""
    return f"{sizes['x']:,} x {sizes['y']:,} px, {channels}{first.dtype}{pixel}{pyramid}"


def _mpp(sdata: SpatialData, name: str) -> float | None:
    import numpy as np
    from spatialdata.transformations import get_transformation

    found = get_transformation(sdata[name], get_all=True)
    if keys.UM not in found:
        return None
    matrix = found[keys.UM].to_affine_matrix(("x", "y"), ("x", "y"))
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def _points(sdata: SpatialData, name: str) -> str:
    from .. import regions

    if name in regions.names(sdata):
        return f"grid of {len(regions.get(sdata, name)):,} bins"
    frame = sdata.points[name]
    return f"{len(frame):,} points, columns {', '.join(map(str, frame.columns))}"


def _shapes(sdata: SpatialData, name: str) -> str:
    frame = sdata.shapes[name]
    if not len(frame):
        return "empty"
    kinds = ", ".join(sorted({str(k).lower() for k in frame.geom_type.unique()}))
    if "radius" in frame:
        low, high = float(frame["radius"].min()), float(frame["radius"].max())
        size = f"diameter {2 * low:.4g}" + (f" to {2 * high:.4g}" if high > low * 1.001 else "")
        return f"{len(frame):,} circles, {size}"
    return counted(len(frame), kinds)


def _annotation(sdata: SpatialData, name: str) -> str:
    table = sdata.tables[name]
    region = table.uns.get("spatialdata_attrs", {}).get("region")
    of = f" of {region if isinstance(region, str) else ', '.join(region)}" if region is not None else ""
    form = getattr(table.X, "format", None)
    dtype = getattr(table.X, "dtype", "no values")
    found = [entry["name"] for entry in results(table)]
    also = f"; results {', '.join(found)}" if found else ""
    return f"{table.n_obs:,} x {table.n_vars:,}{of}, {dtype}{f' {form}' if form else ''}{also}"


def _model(path: Path) -> dict[str, Any]:
    from .. import model

    loaded = model.load(path)
    config = loaded.config
    slides = [str(s.get("slide", s.get("path", "?"))) for s in config["slides"]]
    summary = loaded.metrics.get("summary", {})
    facts = {
        "head": config["head"],
        "encoder": config["encoder"].get("name"),
        "region": config["region"],
        "units": config["units"],
        "slides": slides,
        **{k: v for k, v in loaded.facts().items() if k in ("patients", "tissues") and v},
        "split": f"{config['split']}, {config['n_folds']} folds",
        "seed": config["seed"],
        "package_version": config.get("package_version"),
        "fingerprint": loaded.fingerprint,
    }
    scores = {k: summary[k] for k in ("pearson", "interval") if summary.get(k) is not None}
    others = {k: v.get("pearson") for k, v in loaded.metrics.get("baseline", {}).items()}
    others["ceiling"] = (loaded.metrics.get("ceiling") or {}).get("pearson")
    scores |= {k.replace("_", " "): v for k, v in others.items() if scores and v is not None}
    return {
        "path": str(path),
        "kind": "model",
        "what": f"model, {counted(len(loaded.genes), 'gene')} from "
        f"{counted(len(loaded.training), 'region')} of {counted(len(slides), 'slide')}",
        "facts": facts,
        "sizes": {"genes": loaded.genes, **({"cross-validated": scores} if scores else {})},
        "notes": [str(n) for n in config.get("notes", [])],
    }
