"""Sources and stores: convert, info."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ._common import Json, NoSeed, Options, emit, options, table

if TYPE_CHECKING:
    from rich.console import Console


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
    image: Path | None = None,
    counts: Path | None = None,
    positions: Path | None = None,
    obs: Path | None = None,
    min_qv: float | None = None,
    controls: Annotated[bool | None, Parameter(negative="--no-controls")] = None,
    he: Path | None = None,
    he_alignment: str | None = None,
    bins_um: list[int] | None = None,
    radius_unit: str | None = None,
    overwrite: bool = False,
    option: Options = None,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Convert any supported source to a slide store, or all slides of a cohort to a folder of stores.

    Parameters
    ----------
    source
        A folder, a path prefix, or the file that names the slide; or a cohort CSV whose paths are such, or the
        meta_all_gene.csv of STimage-1K4M.
    out
        The store to make, NAME.zarr; of a cohort the folder for the stores and their cohort.csv, where stores that are
        there are kept.
    platform
        Reader (stainseq list readers); told by content when left out.
    mpp
        Microns per pixel; from the metadata or the array's pitch when left out, never guessed.
    slide
        Name of the slide; the source's own when left out.
    patient
        Name of the patient.
    tissue
        Tissue, such as breast.
    image
        st, stimage, visium, visium-hd: the picture, where it does not lie with the rest.
    counts
        st: the counts, where the folder does not tell.
    positions
        st: the positions.
    obs
        st, stimage, visium: CSV of id and further columns, such as labels.
    min_qv
        xenium: least quality of a transcript; 20 when left out.
    controls
        xenium: keep control probes and codewords; genes only when left out.
    he
        xenium: the H&E, where it does not lie with the rest.
    he_alignment
        xenium: its alignment CSV; "none" keeps it apart for stainseq align.
    bins_um
        visium-hd: sizes of bins to take, such as 8; may be repeated; all when left out.
    radius_unit
        superpixel: what radius-raw.txt holds: diameter_um (its page) or radius_px (its code); diameter_um when left
        out.
    overwrite
        Replace a store that is there.
    """
    import stainseq as ss

    from ..io._cohort import is_cohort

    given: dict[str, Any] = {"platform": platform, "mpp": mpp, "slide": slide, "patient": patient, "tissue": tissue}
    given |= {"image": image, "counts": counts, "positions": positions, "obs": obs, "min_qv": min_qv}
    given |= {"controls": controls, "he": he, "he_alignment": he_alignment, "bins_um": bins_um}
    given |= {"radius_unit": radius_unit}
    given = {**{k: v for k, v in given.items() if v is not None}, **options(option)}
    if platform is None and is_cohort(source):
        _convert_cohort(source, out, overwrite=overwrite, json=json, given=given)
        return
    ss.io.convert(source, out, overwrite=overwrite, **given)
    found = ss.io.info(out, repair=False)
    emit(found, json, lambda console: _show(console, found))


def _convert_cohort(source: Path, out: Path, *, overwrite: bool, json: Path | None, given: dict[str, Any]) -> None:
    from stainseq.errors import InputError

    from .._text import counted
    from ..io._cohort import convert_cohort

    if "slide" in given:
        raise InputError("--slide names one slide, this is a cohort", where=source, fix="leave it out")
    found = convert_cohort(source, out, overwrite=overwrite, **given)

    def show(console: Console) -> None:
        done = f"{counted(found['converted'], 'slide')} converted, {found['kept']} kept that were there"
        console.print(f"{done}, {len(found['failed'])} failed")
        for name, why in found["failed"].items():
            console.print(f"  {name}: {why}")
        if found["cohort"]:
            console.print(f"{found['cohort']} names the stores; stainseq train takes it")

    emit(found, json, show)
    if found["failed"]:
        first = next(iter(found["failed"]))
        raise InputError(
            f"{counted(len(found['failed']), 'slide')} could not be converted, the first of them {first}",
            where=source,
            fix=found["failed"][first],
        )


def info(
    path: Path,
    /,
    *,
    repair: Annotated[bool, Parameter(negative="--no-repair")] = True,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Say what a store, source folder, model, cohort or table holds: sizes, units, steps, problems.

    Parameters
    ----------
    path
        A store, a source that convert takes, a MODEL folder, a cohort CSV, an h5ad or h5mu file.
    repair
        Mend a store that an interrupted write left untidy. Nothing that can be opened is removed.
    """
    import stainseq as ss

    found = ss.io.info(path, repair=repair)
    emit(found, json, lambda console: _show(console, found))


def _show(console: Console, found: dict[str, Any]) -> None:
    console.print(f"{found['path']}: {found['what']}")
    for title, rows in (("facts", found.get("facts")), ("sizes", found.get("sizes"))):
        if rows:
            shown = table("", "")
            shown.show_header = False
            for name, value in rows.items():
                shown.add_row(f"  {name}", _text(value))
            console.print(f"{title}")
            console.print(shown)
    if found.get("elements"):
        shown = table("element", "kind", "holds", "made by")
        for e in found["elements"]:
            shown.add_row(e["name"], e["kind"], e["holds"], e.get("step", ""))
        console.print()
        console.print(shown)
    if found.get("notes"):
        console.print("\nnotes")
        for line in found["notes"]:
            console.print(f"  {line}")
    if found.get("repaired"):
        console.print("\nrepaired")
        for line in found["repaired"]:
            console.print(f"  {line}")
    if found.get("problems"):
        console.print("\nproblems")
        for line in found["problems"]:
            console.print(f"  {line}")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        shown = ", ".join(map(_text, value[:12]))
        return shown + (f", ... ({len(value)})" if len(value) > 12 else "")
    return str(value)
