"""Each cell to the type whose expression makes its counts likeliest, with a factor of the platform for every gene.

Counts of a cell are multinomial with the type's expression times a factor per gene (probes and panels differ from
sequencing), fitted by expectation maximisation over all cells; log-likelihoods are divided by the overdispersion of the
counts, so that proportions are not surer than the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..core.likelihood import fit
from ..core.values import in_range
from .tangram import _profiles


def assign(
    counts: sp.csr_matrix,
    *,
    reference: sp.csr_matrix,
    types: np.ndarray,
    n_types: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    max_rounds: int = 50,
    platform: bool = True,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Fit and label; nothing is random.

    Parameters
    ----------
    counts, reference, types, n_types, seed, progress
        See the package.
    max_rounds
        Of expectation maximisation.
    platform
        Fit a factor for each gene; without, the reference must come from the same platform.
    """
    in_range("likelihood", max_rounds=(max_rounds, 1, np.inf))
    profiles, _ = _profiles(reference, types, n_types)
    found = fit(profiles, counts, platform=platform, max_rounds=max_rounds, progress=progress)
    info = {"rounds": found.rounds, "overdispersion": found.overdispersion}
    return found.posterior.argmax(axis=1).astype(np.int32), found.posterior, info
