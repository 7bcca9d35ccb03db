"""Means of maps under regions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.aggregate import mean_by_group
from ..core.grids import project
from ..errors import InputError
from .model import Region

_MOST_SAMPLES = 16


def pool(values: np.ndarray, to_um: np.ndarray, region: Region) -> np.ndarray:
    """See `stainseq.regions.pool`."""
    if values.ndim != 3:
        raise InputError(f"a map of shape {values.shape}", fix="give [rows, columns, features]")
    ty, tx, d = values.shape
    to_um = np.asarray(to_um, dtype=np.float64)
    if len(region) == 0:
        return np.zeros((0, d), dtype=np.float32)
    pixel_um = float(np.sqrt(abs(np.linalg.det(to_um[:2, :2]))))
    per_side = int(np.clip(np.ceil(pixel_um / region.geometry.spacing_um()), 1, _MOST_SAMPLES))
    flat = values.reshape(ty * tx, d)
    samples, groups = region.geometry.members(_samples((ty, tx), per_side, to_um))
    pooled = mean_by_group(flat, _pixel_of(samples, (ty, tx), per_side), groups, n_groups=len(region))
    missed = np.flatnonzero(np.bincount(groups, minlength=len(region)) == 0)
    if len(missed):
        place: Any = np.floor(project(np.linalg.inv(to_um), region.centres_um[missed]))
        with np.errstate(invalid="ignore"):
            inside = ((place >= 0) & (place < (tx, ty))).all(1)
        place = place[inside].astype(np.int64)
        pooled[missed[inside]] = values[place[:, 1], place[:, 0]]
    return pooled


def _samples(shape: tuple[int, int], per_side: int, to_um: np.ndarray) -> np.ndarray:
    """Points spread evenly over every pixel, row by row of sample points."""
    y, x = np.mgrid[: shape[0] * per_side, : shape[1] * per_side].reshape(2, -1)
    return project(to_um, np.column_stack([(x + 0.5) / per_side, (y + 0.5) / per_side]))


def _pixel_of(samples: np.ndarray, shape: tuple[int, int], per_side: int) -> np.ndarray:
    y, x = np.divmod(samples, shape[1] * per_side)
    return (y // per_side) * shape[1] + x // per_side
