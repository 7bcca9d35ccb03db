"""Fixed colour separation of haematoxylin and eosin (Ruifrok and Johnston 2001, Anal Quant Cytol Histol 23:291)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RUIFROK: NDArray[np.float64] = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Optical density of haematoxylin and eosin in red, green, blue (ImageJ's "H&E" 1 and "E" rows)."""


def _inverse() -> NDArray[np.float64]:
    stains = RUIFROK / np.linalg.norm(RUIFROK, axis=1, keepdims=True)
    residual = np.cross(stains[0], stains[1])
    full = np.vstack([stains, residual / np.linalg.norm(residual)])
    return np.linalg.inv(full).T


HE_MATRIX: NDArray[np.float64] = _inverse()
"""Rows that turn an optical density (r, g, b) into haematoxylin, eosin and residual."""
