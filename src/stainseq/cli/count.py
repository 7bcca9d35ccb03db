"""Superpixels, and transcripts counted in regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ._common import Json, Key, NoSeed, Slide, emit


def superpixels(
    slide: Slide,
    /,
    *,
    pitch_um: float = 8.0,
    image_key: str = "he",
    tissue_key: str | None = None,
    key_added: str = "superpixels",
    min_cover: float = 0.5,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Lay superpixels over the tissue, along the axes of the H&E image.

    Parameters
    ----------
    pitch_um
        Side of a superpixel, um.
    image_key
        Image whose axes the grid follows.
    tissue_key
        Shapes of the tissue; default "tissue" where it is there, else a mask of the image. none: the whole image.
    key_added
        Name of the grid that is written.
    min_cover
        Least share of a superpixel that must be tissue, 0 to 1.
    """
    import stainseq as ss
    from stainseq import regions

    sdata = ss.io.open(slide)
    ss.pp.superpixels(
        sdata,
        pitch_um=pitch_um,
        image_key=image_key,
        tissue_key=tissue_key,
        key_added=key_added,
        min_cover=min_cover,
    )
    result = {"element": key_added, "regions": len(regions.get(sdata, key_added)), "pitch_um": pitch_um}
    emit(result, json, lambda c: c.print(f"{key_added}: {result['regions']} superpixels of {pitch_um:g} um"))


def aggregate(
    slide: Slide,
    /,
    *,
    region: str,
    points: str = "transcripts",
    min_qv: float | None = None,
    table: str | None = None,
    weight: Literal["area", "centre"] = "area",
    min_coverage: float = 0.0,
    key: Key = None,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Count transcripts in cells, nuclei, superpixels or any other region; or average a prediction over cells.

    Parameters
    ----------
    region
        Regions to count in.
    points
        The transcripts.
    min_qv
        Least quality; default all that the slide holds (convert keeps 20 and above).
    table
        Instead of counting: a table of superpixels (such as pred_ridge_superpixels), whose mean under every region is
        written to pred_HEAD_REGION.
    weight
        With --table: superpixels count by the share of the region in them (area), or the one under its centre (centre).
    min_coverage
        With --table: regions of which this share or less lies in superpixels get no row, 0 to 1.
    """
    import stainseq as ss
    from stainseq.errors import InputError

    sdata = ss.io.open(slide)
    if table is not None:
        if min_qv is not None:
            raise InputError("--min-qv is of transcripts, not of a table", fix="leave out --table or --min-qv")
        _per_cell(sdata, table, region=region, weight=weight, min_coverage=min_coverage, key=key, json=json)
        return
    counted = ss.pp.aggregate(sdata, region=region, points=points, min_qv=min_qv, key_added=key)
    seen = dict(counted.uns["aggregate"])
    result = {"table": key or f"counts_{region}", "n": counted.n_obs, "genes": counted.n_vars, **seen}
    text = (
        f"{result['table']}: {counted.n_obs} regions x {counted.n_vars} genes; {seen['counted']} transcripts counted, "
        f"{seen['outside']} in no region, {seen['left_out']} left out"
    )
    emit(result, json, lambda c: c.print(text))


def _per_cell(
    sdata: Any,
    table: str,
    *,
    region: str,
    weight: Literal["area", "centre"],
    min_coverage: float,
    key: str | None,
    json: Path | None,
) -> None:
    import stainseq as ss
    from stainseq import store

    ss.tl.per_cell(sdata, table, region=region, weight=weight, min_coverage=min_coverage, key_added=key)
    stamps = [s for s in store.steps(sdata) if s["step"] == "per_cell" and (key is None or s["element"] == key)]
    name, left_out = stamps[-1]["element"], stamps[-1]["left_out"]
    made = sdata.tables[name]
    covered = float(made.obs["coverage"].mean())
    result = {"table": name, "n": made.n_obs, "genes": made.n_vars, "left_out": left_out, "coverage": covered}
    text = (
        f"{name}: {made.n_obs} {region} x {made.n_vars} genes, means of {table} by {weight}; "
        f"{covered:.0%} of their area is covered on average, {left_out} outside are left out"
    )
    emit(result, json, lambda c: c.print(text))
