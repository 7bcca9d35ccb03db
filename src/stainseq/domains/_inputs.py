"""What every domain method does first and last: check, put rows in a canonical order, one thread, number the labels.

Rows are sorted by (sample, y, x, content) before anything random happens, and the answer is put back, so that shuffled
input gives the same domains. Linear algebra runs on one thread, because sums split over threads differ in their last
bits and a clustering can turn on those; what is worth more threads (neighbour searches) does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ..core.splits import row_hash, slide_codes
from ..errors import InputError

Assignment = tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, Any]]
"""labels int32 [n], probabilities float32 [n, K], embedding float32 [n, d] or None, info."""


class Inputs(NamedTuple):
    """Checked inputs in canonical order.

    Parameters
    ----------
    X
        [n, g] expression, CSR or dense float.
    coordinates
        float64 [n, 2].
    image
        float64 [n, d] image features, or None.
    samples
        int64 [n] codes.
    order
        int64 [n]: row i here is row order[i] of the input.
    n_domains
        K.
    """

    X: Any
    coordinates: np.ndarray
    image: np.ndarray | None
    samples: np.ndarray
    order: np.ndarray
    n_domains: int

    def finish(
        self, labels: np.ndarray, probabilities: np.ndarray, embedding: np.ndarray | None, info: dict[str, Any]
    ) -> Assignment:
        """Number domains by falling size, put rows back, and make sure that there are exactly K.

        Parameters
        ----------
        labels
            int [n] in canonical order, columns of `probabilities`.
        probabilities
            [n, K], rows sum to 1.
        embedding
            [n, d] or None.
        info
            Facts of the run.
        """
        k = self.n_domains
        size = np.bincount(labels, minlength=k)
        if len(size) != k or (size == 0).any():
            raise InputError(
                f"{(size > 0).sum()} domains came out where {k} were asked for",
                where="domains",
                fix="please report this with the data: it should not happen",
            )
        first = np.full(k, len(labels))
        np.minimum.at(first, labels, np.arange(len(labels)))
        by = np.lexsort((first, -size))
        number = np.empty(k, dtype=np.int32)
        number[by] = np.arange(k)
        back = np.empty_like(self.order)
        back[self.order] = np.arange(len(self.order))
        facts = {"n_domains": k, "duplicate_coordinates": duplicates(self.coordinates, self.samples), **info}
        return (
            number[labels][back],
            np.ascontiguousarray(probabilities[:, by][back], dtype=np.float32),
            None if embedding is None else np.ascontiguousarray(embedding[back], dtype=np.float32),
            facts,
        )


def check(
    X: Any,
    coordinates: np.ndarray,
    n_domains: int,
    *,
    image_features: np.ndarray | None = None,
    samples: np.ndarray | None = None,
) -> Inputs:
    """Check the inputs of a domain method and put rows in canonical order.

    Parameters
    ----------
    X
        [n, g] expression, dense or sparse.
    coordinates
        [n, 2] x, y.
    n_domains
        K, 1 to n.
    image_features
        [n, d] or None.
    samples
        [n] sample of each row, or None.

    Raises
    ------
    InputError
        Shapes that do not match, NaN or infinite values, K outside 1 .. n, all rows at one place.
    """
    X = X.tocsr() if sparse.issparse(X) else np.asarray(X)
    if X.ndim != 2 or X.shape[1] == 0:
        raise InputError(f"expression has shape {X.shape}", where="domains", fix="give rows x genes")
    n = X.shape[0]
    values = X.data if sparse.issparse(X) else X
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise InputError(
            "expression holds NaN, infinite or non-numeric values", where="domains", fix="remove those rows or genes"
        )
    xy = np.asarray(coordinates, dtype=np.float64)
    if xy.shape != (n, 2) or not np.isfinite(xy).all():
        raise InputError(
            f"coordinates of shape {xy.shape} for {n} rows, or not finite",
            where="domains",
            fix="give finite x, y for every row",
        )
    if isinstance(n_domains, bool) or int(n_domains) != n_domains or not 1 <= n_domains <= n:
        raise InputError(f"{n_domains} domains of {n} rows", where="n_domains", fix=f"ask for 1 to {n}")
    if n > 1 and (xy == xy[0]).all():
        raise InputError("all rows are at one place", where="coordinates", fix="give spatial coordinates")
    image = _image(image_features, n)
    codes = slide_codes(samples, n)
    order = np.lexsort((row_hash(X), xy[:, 0], xy[:, 1], codes))
    X = X[order] if values.dtype.kind == "f" else X[order].astype(np.float32)
    return Inputs(X, xy[order], None if image is None else image[order], codes[order], order, int(n_domains))


def _image(features: np.ndarray | None, n: int) -> np.ndarray | None:
    if features is None:
        return None
    image = np.asarray(features, dtype=np.float64)
    image = image[:, None] if image.ndim == 1 else image
    if image.ndim != 2 or len(image) != n or not np.isfinite(image).all():
        raise InputError(
            f"image features of shape {image.shape} for {n} rows, or not finite",
            where="image_features",
            fix="give one finite vector per row",
        )
    return image


def duplicates(coordinates: np.ndarray, samples: np.ndarray) -> int:
    """How many rows share their place with an earlier row of the same sample.

    Parameters
    ----------
    coordinates
        [n, 2].
    samples
        [n] codes.
    """
    return len(coordinates) - len(np.unique(np.column_stack([samples, coordinates]), axis=0))


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS and OpenMP on one thread, so that results are the same bits on any machine load."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def agree(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Probabilities in which the label is always (one of) the most probable, float64 [n, K].

    Where a method's labels do not come from its probabilities (communities of a graph), the label and the domains that
    seemed likelier share their sum equally: the row counts as undecided between them.

    Parameters
    ----------
    labels
        int [n].
    probabilities
        [n, K].
    """
    own = probabilities[np.arange(len(labels)), labels]
    open_ = probabilities >= own[:, None]
    mean = (probabilities * open_).sum(axis=1) / open_.sum(axis=1)
    return np.where(open_, mean[:, None], probabilities)
