"""Superpixels, and transcripts counted in regions."""

from __future__ import annotations

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
    key: Key = None,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Count transcripts in cells, nuclei, superpixels or any other region.

    Parameters
    ----------
    region
        Regions to count in.
    points
        The transcripts.
    min_qv
        Least quality; default all that the slide holds (convert keeps 20 and above).
    """
    import stainseq as ss

    sdata = ss.io.open(slide)
    counted = ss.pp.aggregate(sdata, region=region, points=points, min_qv=min_qv, key_added=key)
    seen = dict(counted.uns["aggregate"])
    result = {"table": key or f"counts_{region}", "n": counted.n_obs, "genes": counted.n_vars, **seen}
    text = (
        f"{result['table']}: {counted.n_obs} regions x {counted.n_vars} genes; {seen['counted']} transcripts counted, "
        f"{seen['outside']} in no region, {seen['left_out']} left out"
    )
    emit(result, json, lambda c: c.print(text))
