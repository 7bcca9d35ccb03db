"""Pictures of a planted Xenium slide: fluorescence at the instrument's pixels, and the H&E laid on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ._planted import Planted
from ._xenium_run import PIXEL

_CHANNELS = ("DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin")


def write_morphology(out: Path, version: str, truth: Planted) -> None:
    """DAPI (and from version 2 on three more stains) from the H&E's densities, at the instrument's pixels."""
    import cv2

    side = round(truth.side_um / PIXEL)
    # By table, from grey level to stain: densities of a whole slide as numbers with a point would take 4 GB.
    density = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)

    def stain(colour: int, strength: float) -> np.ndarray:
        grown = cv2.resize(truth.rgb[..., colour], (side, side), interpolation=cv2.INTER_LINEAR)
        return np.clip(density * strength, 0, 65535).astype(np.uint16)[grown]

    dapi = stain(0, 4000)
    _ome(out / "morphology.ome.tif", np.stack([dapi // 2, dapi, dapi // 2]), ["DAPI"] * 3, axes="ZYX")
    if version < "2":
        for name in ("morphology_mip", "morphology_focus"):
            _ome(out / f"{name}.ome.tif", dapi, ["DAPI"], axes="YX")
        return
    folder = out / "morphology_focus"
    folder.mkdir()
    names = [f"morphology_focus_{i:04d}" for i in range(4)]
    if version >= "4":
        names = ["ch0000_dapi", "ch0001_atp1a1_cd45_e-cadherin", "ch0002_18s", "ch0003_alphasma_vimentin"]
    planes = (lambda: dapi, lambda: stain(1, 2500), lambda: stain(2, 2500), lambda: stain(1, 2500))
    for name, channel, plane in zip(names, _CHANNELS, planes, strict=True):
        _ome(folder / f"{name}.ome.tif", plane(), [channel], axes="YX")


def _ome(
    path: Path, pixels: np.ndarray, channels: list[str], *, axes: str, mpp: float = PIXEL, rgb: bool = False
) -> None:
    """OME-TIFF with a pyramid in SubIFDs, halved until a level fits into one tile."""
    import cv2
    import tifffile

    levels = [pixels]
    while max(levels[-1].shape[-3:-1] if rgb else levels[-1].shape[-2:]) > 512:
        last = levels[-1]
        h, w = last.shape[:2] if rgb else last.shape[-2:]
        size = (w // 2, h // 2)
        if last.ndim == 3 and not rgb:
            levels.append(np.stack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in last]))
        else:
            levels.append(cv2.resize(last, size, interpolation=cv2.INTER_AREA))
    metadata: dict[str, Any] = {"axes": axes, "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm"}
    metadata |= {"PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    if axes == "YX":
        metadata["Channel"] = {"Name": channels}
    options: dict[str, Any] = {"tile": (512, 512), "compression": "zlib", "compressionargs": {"level": 1}}
    if rgb:
        options = {"tile": (512, 512), "compression": "jpeg", "compressionargs": {"level": 92}, "photometric": "rgb"}
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as tif:
        tif.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **options)
        for level in levels[1:]:
            tif.write(level, subfiletype=1, metadata=None, **options)


def write_he(out: Path, truth: Planted, *, projective: bool) -> None:
    """H&E turned by 89.5 degrees and its alignment: H&E pixels to morphology pixels."""
    import cv2

    mpp, angle = 0.27405, np.radians(-89.5)
    scale = mpp / PIXEL
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    side = truth.side_um / PIXEL
    corners = np.array([[0, 0, 1], [side, 0, 1], [0, side, 1], [side, side, 1]]) @ np.linalg.inv(matrix).T
    low = corners[:, :2].min(axis=0)
    matrix[:2, 2] = matrix[:2, :2] @ low
    width, height = np.ceil(corners[:, :2].max(axis=0) - low).astype(int)
    if projective:
        matrix[2, :2] = 8e-7, -9.9e-7
    to_he = np.linalg.inv(matrix) @ np.diag([truth.mpp / PIXEL, truth.mpp / PIXEL, 1.0])
    # OpenCV puts pixel centres at whole numbers, the alignment pixel corners.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    warp = np.linalg.inv(half) @ to_he @ half
    turned = cv2.warpPerspective(
        truth.rgb, warp, (int(width), int(height)), flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255)
    )
    _ome(out / "planted_he_image.ome.tif", turned, [], axes="YXS", mpp=mpp, rgb=True)
    lines = [",".join(repr(float(v)) for v in row) for row in matrix]
    (out / "planted_he_imagealignment.csv").write_text("\n".join(lines) + "\n")
