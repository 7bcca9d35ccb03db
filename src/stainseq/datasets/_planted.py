"""A law from morphology to expression, planted on real tissue: what a method can find is known exactly.

The picture is H&E that comes with the package (one section a seed, in turn), its stain shifted from slide to slide.
Expression of most genes is a fixed, non-linear function of what the tissue looks like at two scales; of some it is a
smooth field of its own that no picture tells, and of some it is flat. Counts are drawn around it with a depth that
varies, so that the best possible score is known and below 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from ..errors import FormatError, InputError
from ._her2st import HER2ST, her2st

PITCH_UM = 8.0
"""Side of a superpixel: 16 px at 0.5 um/px, as Pixel2Gene and Visium HD's middle bins have it."""

KINDS = ("morphology", "hidden", "flat")
_SHARES = (0.75, 0.15, 0.10)
_MPP = 0.688
_SIZES = {"small": 50, "medium": 136, "large": 500}
"""Superpixels along a side: 0.4, 1.1 and 4 mm."""

_LAW_SEED, _LAW_GENES, _HIDDEN = 20_261_121, 2_000, 24
_STAINS = np.array([[0.65, 0.70, 0.29], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin and eosin (Ruifrok and Johnston 2001, eosin rounded)."""
# Where tissue fills the crop: (x, y) px of its corner in C2, C3, C4 for 0.4 and 1.1 mm; the whole for 4 mm.
_CORNERS = {"C2": (5600, 4700), "C3": (4200, 4600), "C4": (4300, 4600)}


@dataclass(frozen=True)
class Planted:
    """A slide whose truth is known.

    Parameters
    ----------
    rgb
        uint8 [h, w, 3] at `mpp`.
    mpp
        Microns per pixel of the picture.
    rate
        float32 [rows, columns, genes], expected counts of each superpixel; 0 off tissue.
    depth
        float32 [rows, columns], what the expected counts are multiplied by before they are drawn; mean 1.
    tissue
        bool [rows, columns].
    nuclei_um
        float64 [n, 2] (x, y) of nuclei, where haematoxylin peaks.
    names
        Gene names.
    kinds
        "morphology", "hidden" or "flat", per gene.
    """

    rgb: np.ndarray
    mpp: float
    rate: np.ndarray
    depth: np.ndarray
    tissue: np.ndarray
    nuclei_um: np.ndarray
    names: tuple[str, ...]
    kinds: tuple[str, ...]

    @property
    def side_um(self) -> float:
        """Of the square slide."""
        return self.rate.shape[0] * PITCH_UM

    def draw(self, seed: int) -> np.ndarray:
        """Counts, int32 [rows, columns, genes]: Poisson around rate times depth."""
        return np.random.default_rng([seed, 7]).poisson(self.rate * self.depth[..., None]).astype(np.int32)


def planted(
    *,
    size: Literal["small", "medium", "large"] = "small",
    n_genes: int = 40,
    counts_per_superpixel: float = 25.0,
    mpp: float = 0.5,
    stain_shift: float = 1.0,
    seed: int = 0,
) -> Planted:
    """Plant the law on real tissue.

    Parameters
    ----------
    size
        50, 136 or 500 superpixels of 8 um along a side.
    n_genes
        Genes. The law is the same for every seed: gene i means the same on every slide.
    counts_per_superpixel
        Mean total on tissue. 25 is a rich Xenium panel; 5,000-gene panels have three times as many.
    mpp
        Microns per pixel of the picture.
    stain_shift
        How far stains differ between slides; 0 leaves the scanner's.
    seed
        Section, crop, stain, hidden fields and depth.

    Raises
    ------
    InputError
        An unknown size, or more genes than the law has.
    """
    import cv2

    if size not in _SIZES:
        raise InputError(f"no size {size!r}", fix=f"one of: {', '.join(_SIZES)}")
    if not 1 <= n_genes <= _LAW_GENES:
        raise InputError(f"{n_genes} genes", fix=f"1 to {_LAW_GENES}")
    n = _SIZES[size]
    rng = np.random.default_rng([seed, 1])
    picture = _crop(HER2ST[seed % len(HER2ST)], n, rng)
    looks, tissue, violet = _looks(picture, n)
    base, weights, kinds = _law(n_genes)
    log_rate = _hidden_layer(looks.reshape(n * n, -1)) @ weights
    log_rate = log_rate.reshape(n, n, n_genes).astype(np.float32)
    for g in np.flatnonzero(np.array(kinds) == "hidden"):
        log_rate[..., g] = _field(rng, n, 6.0)
    log_rate[..., np.array(kinds) == "flat"] = 0
    rate = np.exp(0.9 * log_rate + base) * tissue[..., None]
    rate *= counts_per_superpixel / max(rate.sum(axis=2)[tissue].mean(), 1e-9)
    depth = np.exp(0.25 * _field(rng, n, 4.0) + 0.25 * rng.standard_normal((n, n)))
    side = round(n * PITCH_UM / mpp)
    rgb = _restained(cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC), rng, stain_shift)
    return Planted(
        rgb,
        n * PITCH_UM / side,
        rate.astype(np.float32),
        (depth / depth[tissue].mean()).astype(np.float32),
        tissue,
        _nuclei(violet, n),
        tuple(f"GENE{i:04d}" for i in range(n_genes)),
        kinds,
    )


@lru_cache(maxsize=3)
def _section(name: str) -> np.ndarray:
    import cv2

    found = cv2.imread(str(her2st(name) / f"{name}_HE.jpg"))
    if found is None:
        raise FormatError(
            "the tissue that comes with the package is damaged", where=her2st(name), fix="install it again"
        )
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def _crop(section: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """A square of the section, in its own pixels; near the corner that is known to be tissue."""
    whole = _section(section)
    side = min(round(n * PITCH_UM / _MPP), *whole.shape[:2])
    x, y = np.array(_CORNERS[section]) + rng.integers(-200, 201, 2)
    if side > 4000:
        x, y = np.array(whole.shape[1::-1]) // 2 + 600 - side // 2
    x, y = int(np.clip(x, 0, whole.shape[1] - side)), int(np.clip(y, 0, whole.shape[0] - side))
    return np.ascontiguousarray(whole[y : y + side, x : x + side])


def _looks(picture: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the tissue looks like, float32 [n, n, 8], at 8 um and around; where it is; and haematoxylin per pixel."""
    import cv2

    density = -np.log10((picture.astype(np.float32) + 1) / 256)
    violet, pink = np.moveaxis(np.maximum(density @ np.linalg.pinv(_STAINS).astype(np.float32), 0), -1, 0)

    def shrink(values: np.ndarray) -> np.ndarray:
        return cv2.resize(np.ascontiguousarray(values, dtype=np.float32), (n, n), interpolation=cv2.INTER_AREA)

    fine = violet - cv2.GaussianBlur(violet, (0, 0), 4)
    v, p, grain = shrink(violet), shrink(pink), np.sqrt(shrink(fine**2))
    around = [cv2.GaussianBlur(m, (0, 0), s) for m, s in ((v, 2.5), (v, 6), (p, 4), (grain, 4))]
    edge = np.hypot(*np.gradient(around[1]))
    stack = np.stack([v, p, grain, *around, edge], axis=-1)
    tissue = cv2.morphologyEx((shrink(density.mean(axis=2)) > 0.09).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3)))
    known = tissue.astype(bool)
    scale = stack[known].std(axis=0) + 1e-6 if known.any() else np.ones(8)
    middle = stack[known].mean(axis=0) if known.any() else np.zeros(8)
    return ((stack - middle) / scale).astype(np.float32), known, violet


def _law(n_genes: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Base log rates [genes], weights [hidden, genes] of unit variance, and kinds; the same for every slide."""
    rng = np.random.default_rng([_LAW_SEED, 2])
    kinds = rng.choice(KINDS, size=_LAW_GENES, p=_SHARES)
    kinds[:3] = KINDS  # each kind is there however few genes are asked for
    weights = rng.standard_normal((_HIDDEN, _LAW_GENES)) * (rng.random((_HIDDEN, _LAW_GENES)) < 0.35)
    base = rng.normal(-0.5, 0.8, _LAW_GENES)
    weights /= 0.6 * np.sqrt((weights**2).sum(axis=0) + 1e-9)
    return base[:n_genes], weights[:, :n_genes], tuple(str(k) for k in kinds[:n_genes])


def _hidden_layer(looks: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng([_LAW_SEED, 3])
    into = rng.standard_normal((looks.shape[1], _HIDDEN)) * 0.8
    return np.tanh(looks @ into + rng.standard_normal(_HIDDEN) * 0.7)


def _field(rng: np.random.Generator, n: int, sigma: float) -> np.ndarray:
    """A smooth random field, float32 [n, n], mean 0 and variance 1."""
    import cv2

    values = cv2.GaussianBlur(rng.standard_normal((n, n)).astype(np.float32), (0, 0), sigma)
    return (values - values.mean()) / values.std()


def _restained(rgb: np.ndarray, rng: np.random.Generator, shift: float) -> np.ndarray:
    """Another laboratory's stains: both densities scaled, and a tint of the glass."""
    strength = np.exp(shift * rng.normal(0, 0.12, 2))
    tint = shift * rng.normal(0, 0.01, 3)
    turn = np.linalg.pinv(_STAINS) @ np.diag(strength - 1) @ _STAINS
    density = -np.log10((rgb.astype(np.float32) + 1) / 256)
    density = density + (density @ turn.astype(np.float32)) + tint.astype(np.float32)
    return np.clip(256 * 10 ** -np.maximum(density, 0) - 1, 0, 255).astype(np.uint8)


def _nuclei(violet: np.ndarray, n: int) -> np.ndarray:
    """Peaks of haematoxylin at the scale of a nucleus, float64 [nuclei, 2] um."""
    import cv2

    step = n * PITCH_UM / violet.shape[0]
    smooth = cv2.GaussianBlur(violet, (0, 0), 2.2 / step)
    reach = 2 * round(3.0 / step) + 1
    peak = (smooth == cv2.dilate(smooth, np.ones((reach, reach)))) & (smooth > 0.28)
    y, x = np.nonzero(peak)
    return (np.column_stack([x, y]) + 0.5) * step
