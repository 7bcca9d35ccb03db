"""From picture to vectors: tissue, grid, features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ._common import Json, Key, NoSeed, Slide, emit, open_to_change
from .show import check_figure, save_figure


def tissue(
    slide: Slide,
    /,
    *,
    image_key: str = "he",
    key_added: str = "tissue",
    mpp: float = 4.0,
    min_area_um2: float = 10_000.0,
    max_hole_um2: float = 40_000.0,
    quality: Annotated[bool, Parameter(negative=())] = False,
    region: str = "superpixels",
    plot: Path | None = None,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Find the tissue on a slide, and (--quality) which superpixels of it are fit to learn from and to predict.

    Parameters
    ----------
    image_key
        Image element.
    key_added
        Name of the shapes element that is written.
    mpp
        Resolution at which to look, um per pixel.
    min_area_um2
        Smaller pieces are dropped, um2.
    max_hole_um2
        Smaller holes are filled, um2.
    quality
        Also tell good superpixels from background, pen, folds, blur and pale tissue: table quality_REGION. Train and
        predict then leave out what is not good. Superpixels of 8 um are laid where there are none.
    region
        With --quality: the superpixels, or another grid along the picture.
    plot
        With --quality: figure to write, such as F.png.
    """
    import stainseq as ss
    from stainseq import regions
    from stainseq.errors import InputError

    if plot is not None and not quality:
        raise InputError("--plot shows the quality of superpixels", where=plot, fix="give --quality too")
    if plot is not None:
        check_figure(plot)
    sdata = open_to_change(slide)
    ss.pp.tissue(
        sdata,
        image_key=image_key,
        key_added=key_added,
        mpp=mpp,
        min_area_um2=min_area_um2,
        max_hole_um2=max_hole_um2,
    )
    area = sdata.shapes[key_added].geometry.area
    result: dict[str, Any] = {"element": key_added, "pieces": len(area), "area_mm2": float(area.sum()) / 1e6}
    text = f"{key_added}: {result['pieces']} pieces, {result['area_mm2']:.2f} mm2 of tissue"
    if quality:
        if region == "superpixels" and region not in regions.names(sdata):
            ss.pp.superpixels(sdata, image_key=image_key, tissue_key=key_added)
        found = ss.pp.quality(sdata, region=region, image_key=image_key).obs["quality"].value_counts(sort=False)
        result["quality"] = {str(k): int(n) for k, n in found.items()}
        shares = ", ".join(f"{n / found.sum():.1%} {k}" for k, n in found.items() if n)
        text += f"\nquality_{region}: {found.sum()} {region}, {shares}"
        if plot is not None:
            save_figure(ss.pl.superpixel_quality(sdata, region=region, image_key=image_key), plot)
            result["figure"] = str(plot)
    emit(result, json, lambda c: c.print(text))


def grid(
    slide: Slide,
    /,
    *,
    spacing_um: float = 100.0,
    tissue_key: str = "tissue",
    key_added: str = "grid",
    min_cover: float = 0.5,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Lay a regular grid over the tissue, to predict on slides with H&E alone.

    Parameters
    ----------
    spacing_um
        Distance of neighbouring centres, um.
    tissue_key
        Shapes of the tissue (stainseq tissue, which is run first where that was not done).
    key_added
        Name of the shapes element that is written.
    min_cover
        Least share of a grid cell that must be tissue, 0 to 1.
    """
    import stainseq as ss

    sdata = open_to_change(slide)
    if tissue_key == "tissue" and tissue_key not in sdata.shapes:
        ss.pp.tissue(sdata)
    ss.pp.grid(sdata, spacing_um=spacing_um, tissue_key=tissue_key, key_added=key_added, min_cover=min_cover)
    result = {"element": key_added, "regions": len(sdata.shapes[key_added]), "spacing_um": spacing_um}
    emit(result, json, lambda c: c.print(f"{key_added}: {result['regions']} regions, {spacing_um:g} um apart"))


def features(
    slide: Slide,
    /,
    *,
    region: str = "spots",
    encoder: str | None = None,
    weights: Path | None = None,
    image_key: str = "he",
    key: Key = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "auto",
    mode: Literal["auto", "windows", "dense"] = "auto",
    scales_um: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True)] = None,
    map_file: Annotated[Path | None, Parameter(name="--map")] = None,
    map_mpp: float | None = None,
    json: Json = None,
    seed: NoSeed = 0,
) -> None:
    """Encode the picture around every region; goes on where an interrupted run stopped.

    Parameters
    ----------
    region
        Regions to encode.
    encoder
        Name, or several joined by "+" (stainseq list encoders); the documented default when left out.
    weights
        Local weights, for encoders that do not come with the package.
    image_key
        Image element.
    batch_size
        Windows per call of the encoder; changes speed, not values.
    device
        auto, cpu, cuda, cuda:1, mps.
    precision
        auto (float32 on CPU, the encoder's own on GPU) or float32.
    mode
        windows: one of the encoder's field around every region. dense: the slide once, then means over squares around
        every region, 200 times faster on superpixels. auto: dense for fine grids. Models remember it.
    scales_um
        Sides of the squares of dense features, um; the pitch, 32 and 112 when left out.
    map_file
        Take features from this map of another program (.npy, .zarr, HIPT embeddings as .pickle), not from an encoder;
        --key names them, and train takes that name as --encoder.
    map_mpp
        um per token of that map; when left out it has the grid's shape, or covers the image.
    """
    import stainseq as ss
    from stainseq import featurise, store

    sdata = open_to_change(slide)
    if map_file is not None or map_mpp is not None:
        _from_map(
            sdata, map_file, map_mpp, region=region, image_key=image_key, key=key, scales_um=scales_um, encoder=encoder
        )
        made = sdata.tables[str(key)]
        found = {"table": key, "n": made.n_obs, "dim": made.n_vars, "coverage": float(made.obsm["coverage"].mean())}
        text = f"{key}: {made.n_obs} regions x {made.n_vars} dimensions; {found['coverage']:.1%} covered"
        emit(found, json, lambda c: c.print(text))
        return
    ss.pp.features(
        sdata,
        region=region,
        encoder=encoder,
        weights=weights,
        image_key=image_key,
        key_added=key,
        batch_size=batch_size,
        device=device,
        precision=precision,
        mode=mode,
        scales_um=scales_um,
    )
    name = key or featurise.table_name(featurise.encoder_name(encoder), region)
    made, stamp = sdata.tables[name], store.stamp_of(sdata, name) or {}
    encoded, seconds = stamp.get("encoded", 0), stamp.get("seconds")
    rate = f", {encoded / seconds:.1f} a second" if encoded and seconds else ""
    facts = stamp.get("encoder", {})
    result = {
        "table": name, "n": made.n_obs, "dim": made.n_vars, "encoded": encoded, "seconds": seconds,
        "mode": facts.get("mode", "windows"), "scales_um": facts.get("scales_um", []),
    }  # fmt: skip
    how = f"dense at {', '.join(f'{s:g}' for s in result['scales_um'])} um; " if result["mode"] == "dense" else ""
    text = f"{name}: {made.n_obs} regions x {made.n_vars} dimensions; {how}{encoded} encoded now{rate}, the rest cached"
    emit(result, json, lambda c: c.print(text))


def _from_map(
    sdata: Any, file: Path | None, mpp: float | None, *, region: str, image_key: str, key: str | None, scales_um: Any,
    encoder: str | None,
) -> None:  # fmt: skip
    import stainseq as ss
    from stainseq.errors import InputError

    if file is None or key is None or encoder is not None:
        raise InputError("a map needs a file and a name, and no encoder", fix="--map FILE --key NAME [--map-mpp UM]")
    ss.pp.features_from_map(
        sdata, file, region=region, key_added=key, mpp=mpp, scales_um=scales_um, image_key=image_key
    )
