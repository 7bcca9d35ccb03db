"""Several encoders as one: "lite0-multi2+shell+morphology"."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..spec import fingerprint
from .description import join
from .grids import regrid
from .network import Bytes, Encoder, Floats, check_batch


def resize(images: Bytes, px: int) -> Bytes:
    """Square uint8 images [n, h, w, 3] at another side, averaging over the covered area when shrinking.

    Whole factors are exact means, rounded half up; other factors use OpenCV (area when shrinking, cubic when
    enlarging).
    """
    side = images.shape[1]
    if side == px:
        return images
    if side % px == 0:
        k = side // px
        n = len(images)
        total = images.reshape(n, px, k, px, k, 3).sum((2, 4), dtype=np.uint32)
        return ((total + k * k // 2) // (k * k)).astype(np.uint8)
    import cv2

    how = cv2.INTER_AREA if px < side else cv2.INTER_CUBIC
    return np.stack([cv2.resize(image, (px, px), interpolation=how) for image in images])


class CompositeEncoder:
    """The vectors of several encoders side by side, from one batch.

    The batch holds the union of the members' fields, ascending; each member takes its own, resized to its own
    input side (the batch has the largest).

    Parameters
    ----------
    members
        Loaded encoders, in the order of the name.
    """

    def __init__(self, members: list[Encoder]) -> None:
        self.members, self.device = members, members[0].device
        self.spec = join([m.spec for m in members])
        self.name, self.fields_um = self.spec.name, self.spec.fields_um
        self.input_px, self.dim = self.spec.input_px, self.spec.dim

    @property
    def token_grid(self) -> tuple[int, int]:
        """The finest grid of the members, in tokens of the smallest field."""
        return max(m.token_grid for m in self.members)

    @property
    def token_dim(self) -> int:
        """Numbers a token, over all members."""
        return sum(m.token_dim for m in self.members)

    def fingerprint(self) -> str:
        """Names all that decides the numbers, of all members in order."""
        return fingerprint("composite", [m.fingerprint() for m in self.members])

    def __call__(self, batch: Bytes) -> Floats:
        """uint8 [n, fields, h, w, 3] (or [n, h, w, 3] for one field) -> float32 [n, dim]."""
        batch = check_batch(batch, self.spec)
        return np.concatenate([m(self._part(batch, m)) for m in self.members], axis=1)

    def tokens(self, batch: Bytes) -> Floats:
        """The same batch -> float32 [n, ty, tx, token_dim], all members on the finest grid of the smallest field."""
        batch = check_batch(batch, self.spec)
        parts = []
        for m in self.members:
            share = self.fields_um[0] / m.fields_um[0]
            parts.append(regrid(m.tokens(self._part(batch, m)), self.token_grid, part=share))
        return np.concatenate(parts, axis=-1)

    def _part(self, batch: Bytes, member: Encoder) -> NDArray[np.uint8]:
        which = [self.fields_um.index(um) for um in member.fields_um]
        part = batch[:, which]
        if member.input_px == self.input_px:
            return part
        flat = resize(part.reshape(-1, *part.shape[2:]), member.input_px)
        return flat.reshape(*part.shape[:2], *flat.shape[1:])
