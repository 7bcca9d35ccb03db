"""Quality of tissue, square by square: what is glass, what is damaged, and what an encoder should not be asked about.

The role that HistoSweep has before Pixel2Gene, by other means: thresholds are physical (optical density, hue, sharpness
against the slide's own) and not counts of squares, so that they mean the same on a biopsy and on a whole section.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tissue import otsu

CLASSES = ("good", "background", "pen", "fold", "blurred", "pale")
"""What a square can be; the first is kept."""

_FOLD_TIMES = 1.5
"""Two layers of tissue are twice as dense; so many times the 95th percentile is beyond any one layer."""

_INK_RED, _INK_BLUE, _INK_SPREADS, _INK_DENSITY = 1.12, 0.9, 3.0, 0.15
"""Haematoxylin and eosin absorb green most, red about as much and blue half as much, though laboratories differ. Ink,
pigment or dust is what absorbs red or blue more, relative to green, than these, and than the slide's own third quartile
by three times its distance from the median; and is that dense."""

_BLACK_DENSITY, _BLACK_EVEN = 0.75, 0.8
"""Black ink is this dense in its clearest channel's terms: the least absorbed channel over the most."""

_AMID = 0.5
"""Share of the 3 x 3 squares around one from which it lies amid tissue."""

_SHARP = 0.25
_PALE = 0.045


@dataclass(frozen=True)
class Looks:
    """Sums over the pixels of each square, from which everything follows.

    Parameters
    ----------
    density
        float32 [rows, columns], mean optical density.
    colour
        float32 [rows, columns, 3], mean of red, green, blue, 0 to 1.
    grain
        float32 [rows, columns], mean absolute Laplacian of the density: how sharp it is.
    inside
        float32 [rows, columns], share of pixels in the image.
    """

    density: np.ndarray
    colour: np.ndarray
    grain: np.ndarray
    inside: np.ndarray


def look(block: np.ndarray, step: int) -> Looks:
    """Sums of a block of whole squares.

    Parameters
    ----------
    block
        uint8 [rows * step, columns * step, 3].
    step
        Pixels along a square.
    """
    import cv2

    h, w = block.shape[0] // step, block.shape[1] // step
    grey = -np.log10((block.astype(np.float32).mean(axis=2) + 1) / 256)
    rough = np.abs(cv2.Laplacian(cv2.GaussianBlur(grey, (0, 0), 0.8), cv2.CV_32F))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.resize(values, (w, h), interpolation=cv2.INTER_AREA))

    colour = cv2.resize(block, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return Looks(mean(grey), colour, mean(rough), np.ones((h, w), dtype=np.float32))


def join(parts: list[list[Looks]]) -> Looks:
    """Blocks put together, row by row."""

    def stack(name: str) -> np.ndarray:
        return np.concatenate([np.concatenate([getattr(p, name) for p in row], axis=1) for row in parts], axis=0)

    return Looks(*(stack(n) for n in ("density", "colour", "grain", "inside")))


def classify(looks: Looks, *, min_cover: float = 0.5) -> np.ndarray:
    """Class of each square, uint8 [rows, columns], positions in `CLASSES`.

    Background is what lies below Otsu's threshold of the slide's optical density (amid tissue: below half of it); pen
    is ink, pigment or dust of a colour that haematoxylin and eosin cannot give, or black; a fold is more than 1.5 times
    as dense as tissue is at its 95th percentile; blurred squares are those whose grain, over their density, is below a
    quarter of the slide's median in the neighbourhood; pale ones are barely stained.

    Parameters
    ----------
    looks
        From `look`.
    min_cover
        Squares of which less lies in the image are background.
    """
    import cv2

    density, inside = looks.density, looks.inside
    out = np.zeros(density.shape, dtype=np.uint8)
    ink = _ink(looks.colour)
    usable = (inside >= min_cover) & ~ink
    glass = float(np.percentile(density[usable], 1)) if usable.any() else 0.0
    threshold = otsu(density[usable]) if usable.any() else 0.0
    # One class only, as in a crop that is all tissue: its level decides.
    threshold = threshold * 0.6 + glass * 0.4 if threshold - glass > 0.04 else (0.0 if glass > 0.1 else np.inf)
    tissue = usable & (density > threshold)
    # Loose stroma is pale square by square: what is half as dense as needed and lies amid tissue is tissue.
    amid = cv2.blur(tissue.astype(np.float32), (3, 3), borderType=cv2.BORDER_REPLICATE) > _AMID
    tissue |= usable & amid & (density > glass + 0.5 * (threshold - glass))
    out[~tissue] = CLASSES.index("background")
    out[ink] = CLASSES.index("pen")
    if not tissue.any():
        return out
    around = cv2.GaussianBlur(np.where(tissue, density, 0), (0, 0), 1.5)
    weight = cv2.GaussianBlur(tissue.astype(np.float32), (0, 0), 1.5)
    smooth = around / np.maximum(weight, 1e-6)
    out[tissue & (smooth > _FOLD_TIMES * np.percentile(smooth[tissue], 95))] = CLASSES.index("fold")
    sharp = looks.grain / np.maximum(density - glass, 0.02)
    blurred = cv2.blur(np.where(tissue, sharp, 0), (5, 5)) / np.maximum(
        cv2.blur(tissue.astype(np.float32), (5, 5)), 1e-6
    )
    fine = out == 0
    out[fine & (blurred < _SHARP * np.median(sharp[tissue]))] = CLASSES.index("blurred")
    out[(out == 0) & (density - glass < _PALE)] = CLASSES.index("pale")
    return out


def _ink(colour: np.ndarray) -> np.ndarray:
    """Squares of a colour that no mixture of haematoxylin and eosin has, and what touches two of them."""
    import cv2

    red, green, blue = np.moveaxis(-np.log10(np.clip(colour, 1 / 255, 1)), -1, 0)
    off = np.zeros(red.shape, dtype=bool)
    dense = green > _INK_DENSITY
    for other, least in ((red, _INK_RED), (blue, _INK_BLUE)):
        ratio = other / np.maximum(green, 1e-3)
        middle, upper = np.percentile(ratio[dense], [50, 75]) if dense.any() else (0.0, 0.0)
        off |= (ratio > max(least, upper + _INK_SPREADS * (upper - middle))) & (other > _INK_DENSITY)
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    off |= (low > _BLACK_EVEN * high) & (low > _BLACK_DENSITY)
    grown = cv2.morphologyEx(off.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    # Edges of a stroke are a mixture of ink and what lies below: one square on each side belongs to it.
    strokes = cv2.morphologyEx(grown, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    return np.asarray(off | cv2.dilate(strokes, np.ones((3, 3), np.uint8)).astype(bool))
