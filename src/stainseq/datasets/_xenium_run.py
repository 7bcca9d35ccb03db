"""What happened on a planted Xenium slide, before it is written in any version's words; transcripts in strips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._planted import PITCH_UM, Planted

if TYPE_CHECKING:
    from scipy import sparse

PIXEL = 0.2125
_NUCLEUS_UM, _CELL_UM = 3.2, 8.2
_SECOND_NUCLEUS, _LOW_QUALITY, _CONTROLS = 0.02, 0.14, 0.008
_STRIP, _STRIP_COUNTS = 16, 1.5e6
"""Most rows of superpixels, and about how many transcripts, that are drawn at once."""


@dataclass(frozen=True)
class Run:
    """Cells, nuclei and the panel of a slide.

    Parameters
    ----------
    cells, radius
        float64 [cells, 2] and [cells], um. Cells share no pixel.
    nuclei, nucleus_at, nucleus_radius
        int64 [nuclei] cell of each, in order; float64 [nuclei, 2] and [nuclei], um.
    features
        Id, name and type of each.
    side
        Pixels along a side of the morphology image.
    """

    cells: np.ndarray
    radius: np.ndarray
    nuclei: np.ndarray
    nucleus_at: np.ndarray
    nucleus_radius: np.ndarray
    features: list[tuple[str, str, str]]
    side: int

    def mask(self, kind: int, top: int, bottom: int) -> np.ndarray:
        """Rows of the mask of nuclei (0) or cells (1), uint32 [bottom - top, side]; label = position + 1."""
        at, radius = (self.nucleus_at, self.nucleus_radius) if kind == 0 else (self.cells, self.radius)
        out = np.zeros((bottom - top, self.side), dtype=np.uint32)
        low = np.floor((at - radius[:, None]) / PIXEL).astype(int)
        high = np.ceil((at + radius[:, None]) / PIXEL).astype(int)
        for i in np.flatnonzero((high[:, 1] > top) & (low[:, 1] < bottom)):
            x0, x1 = max(low[i, 0], 0), min(high[i, 0], self.side)
            y0, y1 = max(low[i, 1], top), min(high[i, 1], bottom)
            x, y = (np.arange(x0, x1) + 0.5) * PIXEL - at[i, 0], (np.arange(y0, y1) + 0.5) * PIXEL - at[i, 1]
            part = out[y0 - top : y1 - top, x0:x1]
            part[(x**2 + (y**2)[:, None] <= radius[i] ** 2) & (part == 0)] = i + 1
        return out


@dataclass(frozen=True)
class Strip:
    """Transcripts of some rows of superpixels.

    Parameters
    ----------
    xyz, qv, nucleus_distance
        float32 [n, 3] and [n], um.
    feature, cell
        int64 [n], into the run's features; into its cells, -1 in none: the pixel of the mask that it lies in.
    in_nucleus
        bool [n].
    """

    xyz: np.ndarray
    feature: np.ndarray
    cell: np.ndarray
    in_nucleus: np.ndarray
    nucleus_distance: np.ndarray
    qv: np.ndarray


@dataclass
class Tally:
    """What adds up over strips: transcripts, those of quality 20, and their counts [features, cells]."""

    counts: sparse.csc_array
    transcripts: int = 0
    good: int = 0
    assigned: int = 0

    def add(self, strip: Strip) -> None:
        """Count a strip."""
        from scipy import sparse

        counted = (strip.qv >= 20) & (strip.cell >= 0)
        ones = np.ones(int(counted.sum()), dtype=np.int32)
        where = (strip.feature[counted], strip.cell[counted])
        self.counts = (self.counts + sparse.coo_array((ones, where), shape=self.counts.shape).tocsc()).tocsc()
        self.transcripts += len(strip.qv)
        self.good += int((strip.qv >= 20).sum())
        self.assigned += int((strip.cell >= 0).sum())


def happen(truth: Planted, seed: int, *, second_nuclei: bool) -> Run:
    """Cells around the planted nuclei, and the panel."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng([seed, 11])
    at = truth.nuclei_um + rng.uniform(-0.05, 0.05, truth.nuclei_um.shape)
    near = cKDTree(at).query(at, k=2)[0][:, 1] if len(at) > 1 else np.full(len(at), 99.0)
    radius = np.minimum(_CELL_UM * rng.uniform(0.9, 1.1, len(at)), near / 2)
    inner = np.minimum(_NUCLEUS_UM * rng.uniform(0.8, 1.2, len(at)), 0.8 * radius)
    nuclei, where, size = np.arange(len(at)), at, inner
    if second_nuclei:
        twice = np.flatnonzero(rng.random(len(at)) < _SECOND_NUCLEUS)
        nuclei, size = np.r_[nuclei, twice], np.r_[size, 0.4 * inner[twice]]
        where = np.vstack([where, at[twice] + (0.55 * (inner + radius))[twice, None] * [[1.0, 0.0]]])
    order = np.argsort(nuclei, kind="stable")
    features = [(f"ENSG{i:011d}", name, "Gene Expression") for i, name in enumerate(truth.names)]
    extra = [
        ("NegControlProbe_{:05d}", "Negative Control Probe", 8),
        ("NegControlCodeword_{:04d}", "Negative Control Codeword", 12),
        ("UnassignedCodeword_{:04d}", "Unassigned Codeword", 20),
    ]
    features += [(k.format(i), k.format(i), kind) for k, kind, m in extra for i in range(m)]
    return Run(at, radius, nuclei[order], where[order], size[order], features, round(truth.side_um / PIXEL))


def strips(truth: Planted, run: Run, seed: int) -> Iterator[Strip]:
    """Transcripts of the whole slide, some rows of superpixels at a time, in no order within."""
    from scipy.spatial import cKDTree

    tree = cKDTree(run.cells) if len(run.cells) else None
    inner = np.zeros(len(run.cells))
    inner[run.nuclei[::-1]] = run.nucleus_radius[::-1]  # the first of a cell counts
    n_genes = len(truth.names)
    height = int(np.clip(_STRIP_COUNTS * len(truth.rate) // max(truth.rate.sum(), 1), 1, _STRIP))
    for top in range(0, len(truth.rate), height):
        rng = np.random.default_rng([seed, 13, top])
        rate = truth.rate[top : top + height] * truth.depth[top : top + height, :, None]
        counts = rng.poisson(rate)
        row, column, gene = np.nonzero(counts)
        order = rng.permutation(np.repeat(np.arange(len(gene)), counts[row, column, gene]))
        row, column, gene = row[order] + top, column[order], gene[order]
        n = len(gene)
        xy = (np.column_stack([column, row]) + rng.random((n, 2))) * PITCH_UM
        control = rng.random(n) < _CONTROLS
        feature = np.where(control, rng.integers(n_genes, len(run.features), n), gene)
        qv = np.where(rng.random(n) < _LOW_QUALITY, rng.uniform(7, 20, n), rng.uniform(20, 40, n)).astype(np.float32)
        xyz = np.column_stack([xy, rng.uniform(12, 30, n)]).astype(np.float32)
        cell, nucleus = _labels_at(run, xyz[:, :2].astype(np.float64))
        gap = np.full(n, np.inf)
        if tree is not None:
            far = np.flatnonzero(cell < 0)
            owner = cell.copy()
            owner[far] = tree.query(xy[far])[1]
            gap = np.maximum(np.linalg.norm(xy - run.cells[owner], axis=1) - inner[owner], 0)
        gap[nucleus] = 0
        yield Strip(xyz, feature, cell, nucleus, gap.astype(np.float32), qv)


def _labels_at(run: Run, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cell that each transcript lies in (-1 none) and whether it lies in a nucleus, by the masks as the vendor does."""
    if not len(xy):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
    x, y = np.floor(xy / PIXEL).astype(np.int64).T
    cell, nucleus = np.full(len(xy), -1, dtype=np.int64), np.zeros(len(xy), dtype=bool)
    inside = np.flatnonzero((x < run.side) & (y < run.side))  # a sliver at the far edge lies in no pixel
    x, y = x[inside], y[inside]
    top, bottom = (int(y.min()), int(y.max()) + 1) if len(y) else (0, 1)
    cell[inside] = run.mask(1, top, bottom)[y - top, x].astype(np.int64) - 1
    nucleus[inside] = run.mask(0, top, bottom)[y - top, x] > 0
    return cell, nucleus
