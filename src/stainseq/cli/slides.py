"""Commands on slides: convert, info, tissue, grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ._output import Json, Output, Overwrite, open_slide


def convert(
    source: Path,
    out: Path,
    /,
    *,
    platform: str | None = None,
    mpp: float | None = None,
    slide: str | None = None,
    patient: str | None = None,
    tissue: str | None = None,
    option: Annotated[list[str] | None, Parameter(name="--option", negative=())] = None,
    overwrite: Overwrite = False,
    json: Json = None,
) -> None:
    """Convert a source of any supported platform to a slide store.

    Parameters
    ----------
    source
        A folder, a path prefix, or the file that names the slide.
    out
        The store to make, by custom NAME.zarr.
    platform
        Name of a reader (`stainseq list readers`); default by content.
    mpp
        Microns per pixel; default from metadata or the array's pitch, never guessed.
    slide
        Name of the slide; default from the source.
    patient
        Whose tissue it is: cross-validation holds patients out.
    tissue
        Organ or tissue.
    option
        KEY=VALUE, an option of the reader; may be given several times.
    """
    from .. import io, store

    options = _options(option)
    made = io.convert(
        source,
        out,
        platform=platform,
        mpp=mpp,
        slide=slide,
        patient=patient,
        tissue=tissue,
        overwrite=overwrite,
        **options,
    )
    facts = store.facts(made)
    show = Output(json)
    show.line(
        f"{out}: {facts.get('platform')}, {facts.get('mpp', float('nan')):.4f} um/px from {facts.get('mpp_from')}"
    )
    for name, size in _elements(made):
        show.line(f"  {name:24} {size}")
    for note in facts.get("notes", []):
        show.line(f"  note: {note}")
    show.json({"path": str(out), "facts": facts, "elements": dict(_elements(made))})


def info(path: Path, /, *, json: Json = None) -> None:
    """Tell what a store, source folder, model or table holds: sizes, units, mpp, steps done, problems.

    Parameters
    ----------
    path
        A store, a source that `convert` takes, a MODEL folder, or an .h5ad file.
    """
    from ..errors import MissingError

    if not path.exists() and not list(path.parent.glob(path.name + "*")):
        raise MissingError("nothing here", where=path, fix="check the path")
    show = Output(json)
    if (path / "model.json").is_file():
        found = _info_model(path, show)
    elif path.suffix == ".h5ad":
        found = _info_table(path, show)
    elif (path / "zarr.json").is_file() or (path / ".zgroup").is_file() or path.name.endswith(".zarr.zip"):
        found = _info_store(path, show)
    else:
        from .. import io

        platform, what = io.sniff(path)
        show.line(f"{path}: {what}; convert it with: stainseq convert {path} OUT.zarr --platform {platform}")
        found = {"kind": "source", "platform": platform, "what": what}
    show.json({"path": str(path), **found})


def tissue(
    slide: Path, /, *, image_key: str = "he", mpp: float = 4.0, min_area_um2: float = 10_000.0, json: Json = None
) -> None:
    """Find the tissue: outlines as shapes `tissue`.

    Parameters
    ----------
    slide
        A store.
    image_key
        Image element.
    mpp
        Resolution at which to look, um per px.
    min_area_um2
        Smaller pieces are dropped.
    """
    from .. import pp

    sdata = pp.tissue(open_slide(slide), image_key=image_key, mpp=mpp, min_area_um2=min_area_um2)
    areas = [float(a) for a in sdata.shapes["tissue"]["area_um2"]]
    show = Output(json)
    show.line(f"{len(areas)} pieces of tissue, {sum(areas) / 1e6:.2f} mm2")
    show.json({"pieces": len(areas), "area_mm2": sum(areas) / 1e6})


def grid(slide: Path, /, *, spacing_um: float = 100.0, min_cover: float = 0.5, json: Json = None) -> None:
    """Lay a regular grid over the tissue, to predict on slides with H&E alone: shapes `grid`.

    Parameters
    ----------
    slide
        A store; its tissue is found first where that was not done.
    spacing_um
        Distance of neighbouring centres.
    min_cover
        Least share of a grid cell that must be tissue.
    """
    from .. import pp

    sdata = open_slide(slide)
    if "tissue" not in sdata.shapes:
        pp.tissue(sdata)
    pp.grid(sdata, spacing_um=spacing_um, min_cover=min_cover)
    show = Output(json)
    show.line(f"{len(sdata.shapes['grid'])} regions of {spacing_um:g} um")
    show.json({"regions": len(sdata.shapes["grid"]), "spacing_um": spacing_um})


def _options(pairs: list[str] | None) -> dict[str, Any]:
    import ast

    from ..errors import InputError

    out: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--option {pair!r} is not KEY=VALUE")
        try:
            out[key.replace("-", "_")] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[key.replace("-", "_")] = value
    return out


def _elements(sdata: Any) -> list[tuple[str, str]]:
    from .. import regions

    rows = []
    for name, image in sdata.images.items():
        level = next(iter(image["scale0"].values())) if hasattr(image, "children") and image.children else image
        rows.append((f"images/{name}", " x ".join(f"{level.sizes[d]} {d}" for d in ("c", "y", "x"))))
    for name in sdata.labels:
        rows.append((f"labels/{name}", "label image"))
    for name, shapes in sdata.shapes.items():
        rows.append(
            (f"shapes/{name}", f"{len(shapes)} {shapes.geometry.geom_type.iloc[0].lower() if len(shapes) else ''}s")
        )
    for name in sdata.points:
        kind = f"grid of {len(regions.get(sdata, name).ids)} bins" if name in regions.names(sdata) else "points"
        rows.append((f"points/{name}", kind))
    for name, table in sdata.tables.items():
        rows.append((f"tables/{name}", f"{table.n_obs} x {table.n_vars}"))
    return rows


def _info_store(path: Path, show: Output) -> dict[str, Any]:
    from .. import store

    problems = store.problems(path)
    sdata = store.open(path)
    facts, elements, steps = store.facts(sdata), _elements(sdata), store.steps(sdata)
    show.line(f"{path}: slide store")
    for key in ("slide", "patient", "tissue", "platform", "mpp", "mpp_from"):
        if facts.get(key) is not None:
            show.line(f"  {key:10} {facts[key]}")
    show.table(["element", "size"], elements)
    show.table(
        ["step", "element", "version", "when"],
        [(s["step"], s["element"], s["package_version"], s["created"]) for s in steps],
    )
    for problem in problems:
        show.line(f"  problem: {problem}")
    show.line("no problems" if not problems else f"{len(problems)} problems (mended on opening where possible)")
    return {"kind": "store", "facts": facts, "elements": dict(elements), "steps": steps, "problems": problems}


def _info_model(path: Path, show: Output) -> dict[str, Any]:
    from .. import model

    learned = model.load(path)
    c = learned.config
    show.line(
        f"{path}: {c['head']} on {c['encoder']['name']} of {c['region']}, {len(c['genes'])} genes in {c['units']}"
    )
    show.line(f"  trained on {', '.join(s['slide'] for s in c['slides'])}; {c['n_folds']} folds by {c['split']}")
    pearson = learned.metrics.get("summary", {}).get("pearson")
    if pearson is not None:
        show.line(f"  cross-validated mean Pearson {pearson:.3f}")
    for note in c.get("notes", []):
        show.line(f"  note: {note}")
    return {
        "kind": "model",
        **{k: c[k] for k in ("head", "encoder", "region", "genes", "units", "slides", "split", "notes")},
    }


def _info_table(path: Path, show: Output) -> dict[str, Any]:
    import anndata

    from ..errors import FormatError

    try:
        table = anndata.read_h5ad(path, backed="r")
    except (OSError, KeyError, ValueError) as e:
        raise FormatError(f"not a readable h5ad ({e})", where=path, fix="write it again with anndata") from e
    show.line(f"{path}: table of {table.n_obs} x {table.n_vars}")
    fields = {k: list(getattr(table, k).keys()) for k in ("obs", "var", "obsm", "varm", "layers", "uns")}
    for key, names in fields.items():
        if names:
            show.line(f"  {key}: {', '.join(names)}")
    problem = [] if "spatial" in table.obsm else ["no coordinates: obsm['spatial'] is absent"]
    for p in problem:
        show.line(f"  problem: {p}")
    return {"kind": "table", "n_obs": table.n_obs, "n_vars": table.n_vars, **fields, "problems": problem}
