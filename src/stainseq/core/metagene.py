"""Metagenes: sums and differences of a few genes that mark one domain."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ..errors import InputError
from .de import compare_all

_LEAST = 5


class Step(NamedTuple):
    """One round of the search that was kept.

    Parameters
    ----------
    added, removed
        Gene numbers put in with + and with -.
    difference
        Mean of the metagene inside the domain less the mean outside.
    outside
        Rows outside the domain that looked like it before this round.
    """

    added: int
    removed: int
    difference: float
    outside: int


class Metagene(NamedTuple):
    """A metagene and how it was found.

    Parameters
    ----------
    genes, signs
        int [m] gene numbers and +1 or -1, in the order in which they came; the start gene first.
    values
        float64 [n], shifted to minimum 0 after every round.
    steps
        Rounds kept.
    """

    genes: np.ndarray
    signs: np.ndarray
    values: np.ndarray
    steps: list[Step]


def find_metagene(X: Any, inside: np.ndarray, start: int, *, max_iter: int = 5) -> Metagene:
    """SpaGCN's search for a metagene of a domain.

    Rows that look like the domain (above its mean) are compared with it; the gene most raised in the domain is added,
    the gene most raised in the others subtracted. A round is kept while the number of look-alikes does not rise and
    the difference of means does not fall.

    Parameters
    ----------
    X
        [n, g] log-normalised expression, dense or sparse (CSC is read without a copy).
    inside
        bool [n], rows of the domain.
    start
        Number of the gene to start from.
    max_iter
        Rounds at most.

    Raises
    ------
    InputError
        The domain has no rows, or all; or the gene number is out of range.

    Notes
    -----
    J. Hu et al., Nature Methods 18, 1342 (2021). Genes are ranked by the Wilcoxon score with ties; the search also ends
    when fewer than five rows are on one side.
    """
    X = sparse.csc_array(X)
    inside = np.asarray(inside, dtype=bool)
    n, g = X.shape
    if inside.shape != (n,) or not 0 < inside.sum() < n:
        raise InputError(f"{int(inside.sum())} of {n} rows are in the domain", where="metagene", fix="name a domain")
    if not 0 <= start < g:
        raise InputError(f"gene number {start} of {g}", where="metagene", fix="name a gene of the table")
    meta = _column(X, start)
    genes, signs, steps = [start], [1], []
    outside, difference = n, 0.0
    for _ in range(max_iter):
        alike = inside | (meta > _mean(meta[inside]))
        sizes = inside[alike].sum(), (~inside[alike]).sum()
        if min(sizes) < _LEAST:
            break
        z = compare_all(X, np.where(alike, inside, -1), {1: [0]})[0].z
        if np.isnan(z).all():
            break
        added, removed = int(np.nanargmax(z)), int(np.nanargmin(z))
        now = meta + _column(X, added) - _column(X, removed)
        now -= now.min()
        gap = _mean(now[inside]) - _mean(now[~inside])
        if sizes[1] > outside or gap < difference:
            break
        outside, difference, meta = int(sizes[1]), gap, now
        genes += [added, removed]
        signs += [1, -1]
        steps.append(Step(added, removed, gap, outside))
    return Metagene(np.array(genes), np.array(signs), meta, steps)


def _column(X: Any, gene: int) -> np.ndarray:
    return np.asarray(X[:, [gene]].toarray(), dtype=np.float64).ravel()


def _mean(values: np.ndarray) -> float:
    """The same bits in any order of rows."""
    return float(np.sort(values).mean())
