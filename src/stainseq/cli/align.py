"""Registration of the H&E image by landmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ._common import Json, Seed, Slide, emit, number, table

if TYPE_CHECKING:
    from rich.console import Console


def align(
    slide: Slide,
    /,
    *,
    he: Annotated[Path, Parameter(help="Landmarks of the H&E image: a file of x and y in pixels.")],
    target: Annotated[
        Path | None,
        Parameter(help="The same landmarks, in the same order, of the frame to lay it onto; default the file of --he."),
    ] = None,
    image: Path | None = None,
    kind: Literal["similarity", "affine", "projective"] | None = None,
    he_level: int | None = None,
    target_level: int | None = None,
    target_unit: Literal["um", "px"] | None = None,
    target_key: str | None = None,
    consensus_um: float | None = None,
    image_key: str = "he",
    any_scale: bool = False,
    figure: Path | None = None,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Register the H&E image by landmarks; tells how far off it is, in um.

    Parameters
    ----------
    image
        Picture file to add to a slide that has no H&E, or under another --image-key.
    kind
        Of transform. Default: the simplest whose error at left-out landmarks is within a tenth of the lowest.
    he_level
        Pyramid level of the H&E landmarks; default the number after "#" in the file's name, else 0.
    target_level
        The same for the target's.
    target_unit
        um, or px of an image of the slide; needed where the file does not tell.
    target_key
        Image that target pixels belong to; default the only other image of the slide.
    consensus_um
        Landmarks further off than this are taken for mistakes and left out, um; default: all count.
    image_key
        The H&E image.
    any_scale
        Accept a pixel size that contradicts the image's metadata.
    figure
        File (PNG, PDF, SVG) for a picture of the result.
    """
    import stainseq as ss

    sdata = ss.io.open(slide)
    result = ss.pp.align(
        sdata,
        he=he,
        target=target,
        image=image,
        kind=kind,
        he_level=he_level,
        target_level=target_level,
        target_unit=target_unit,
        target_key=target_key,
        consensus_um=consensus_um,
        image_key=image_key,
        any_scale=any_scale,
        seed=seed,
    )
    if figure is not None:
        from stainseq._files import write_file

        drawn = ss.pl.alignment(sdata, result["landmarks"], image_key=image_key)
        write_file(figure, lambda staged: drawn.savefig(staged, dpi=200, bbox_inches="tight", pad_inches=0.03))

    def show(console: Console) -> None:
        shown = table("kind", "residual, um>", "left out, um>", "worst left out, um>", "")
        for name, errors in result["kinds"].items():
            residual, left_out = errors["residual_um"], errors["left_out_um"]
            mark = "taken" if name == result["kind"] else ""
            shown.add_row(name, number(residual["rms"]), number(left_out["rms"]), number(left_out["max"]), mark)
        console.print(shown)
        turned = f"{result['mpp']:.5f} um/px, turned by {result['rotation_deg']:.2f} degrees"
        console.print(turned + (", mirrored" if result["mirrored"] else ""))
        console.print(f"{result['n_used']} of {result['n']} landmarks used")
        overlap = result["overlap"]
        if overlap["after"] is not None:
            before = "" if overlap["before"] is None else f"; before {overlap['before']:.3f}"
            console.print(f"tissue and measured regions: Dice {overlap['after']:.3f}{before}")
        if result["stale"]:
            console.print(f"computed from the image as it lay before, to be made again: {', '.join(result['stale'])}")

    emit(result, json, show)
