"""Outlines of nuclei: GeoJSON as QuPath writes it, and CellViT's cells.json; drawn by the even-odd rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..core import aggregate, raster
from ..errors import FormatError, ScaleError
from ._model import Mask, Masks


def open_outlines(path: Path) -> Masks:
    """See `stainseq.masks.open_masks`."""

    def read(name: str, shape: tuple[int, int] | None) -> Mask:
        if shape is None:
            raise ScaleError(
                "outlines have no image size", where=path, fix="compare them with a label image, or give --size"
            )
        return _drawn(*_polygons(path), shape)

    return Masks([path.stem], read, str(path))


def _polygons(path: Path) -> tuple[list[list[np.ndarray]], list[str | None]]:
    """Rings of each nucleus, and its class."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as e:
        raise FormatError(f"no JSON that can be read ({e})", where=path, fix="write it again") from e
    if isinstance(held, dict) and "cells" in held:
        found = held["cells"]
    elif isinstance(held, dict):
        found = held.get("features", [held])
    else:
        found = held
    shapes, kinds = [], []
    try:
        for item in found:
            shapes.append(_rings(item))
            kinds.append(_kind(item))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise FormatError(
            f"item {len(kinds)} is no polygon ({type(e).__name__}: {e})", where=path, fix="give GeoJSON of polygons"
        ) from e
    return shapes, kinds


def _rings(item: dict[str, Any]) -> list[np.ndarray]:
    if "contour" in item:
        rings = [item["contour"]]
    else:
        geometry = item["geometry"]
        if geometry["type"] == "Polygon":
            rings = geometry["coordinates"]
        elif geometry["type"] == "MultiPolygon":
            rings = [ring for part in geometry["coordinates"] for ring in part]
        else:
            raise ValueError(f"geometry {geometry['type']}")
    out = []
    for ring in rings:
        points = np.asarray(ring, dtype=np.float64)[:, :2]
        if len(points) < 3 or not np.isfinite(points).all():
            raise ValueError("a ring of fewer than 3 points, or not finite")
        out.append(points if np.array_equal(points[0], points[-1]) else np.vstack([points, points[:1]]))
    if not out:
        raise ValueError("no rings")
    return out


def _kind(item: dict[str, Any]) -> str | None:
    if "contour" in item:
        return None if item.get("type") is None else str(item["type"])
    properties = item.get("properties") or {}
    kind = properties.get("classification")
    kind = kind.get("name") if isinstance(kind, dict) else kind
    kind = kind if kind is not None else properties.get("class", properties.get("label"))
    return None if kind is None else str(kind)


def _drawn(shapes: list[list[np.ndarray]], kinds: list[str | None], shape: tuple[int, int]) -> Mask:
    if not shapes:
        return Mask(np.zeros(shape, dtype=np.uint32))
    rings = [ring for each in shapes for ring in each]
    outlines = aggregate.outlines_of_rings(
        np.vstack(rings), np.r_[0, np.cumsum([len(r) for r in rings])], np.r_[0, np.cumsum([len(s) for s in shapes])]
    )
    instances = raster.raster(outlines, np.arange(1, len(shapes) + 1, dtype=np.uint32), shape=shape)
    names = tuple(sorted({k for k in kinds if k is not None}))
    if not names:
        return Mask(instances)
    of = np.array([0, *(names.index(k) + 1 if k is not None else 0 for k in kinds)], dtype=np.int32)
    return Mask(instances, of[instances], names)
