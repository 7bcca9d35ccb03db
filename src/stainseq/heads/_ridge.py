"""Ridge regression over many penalties, genes and folds from one decomposition per fold.

With A = Zc' Zc of the centred, standardised training features and B = Zc' Yc, the eigendecomposition A = V diag(l) V'
gives the coefficients of every penalty a and every gene at once: W(a) = V (V' B) / (l + a). More features than rows:
the same from the kernel Zc Zc'.

`Primal` (rows > features) reads the data **once**: every fold's sums of squares and products are kept, training sums
are all minus the fold's, and the validation error and correlation of each gene follow from sums too,

    SSE = yy - 2 w'xy + w'xx w,

so that no prediction is ever formed, whatever the number of penalties. Products of blocks run in float32 and are added
in float64: the largest eigenvalue is about 1e8 at 100,000 rows, where float32 sums would drown small penalties.
`Dual` works on the rows of each fold.

Standardisation, centring and scaling are those of the fold's own training rows, up to one detail: in `Primal` the
bounds at which features are clipped come from all rows given.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.linalg.blas import ssyrk

from ._denoise import Plain, Variant
from ._features import BLOCK_ROWS, Scaler, blocks, fit_scaler

_SINGLE_FROM = 1024  # features from which the quadratic forms of Primal run in float32


class Path(NamedTuple):
    """Validation scores of every fold, setting and gene; a setting is a variant of the targets and a penalty.

    Parameters
    ----------
    sse
        float64 [folds, variants x penalties, genes] weighted sums of squared errors; penalties vary fastest.
    pearson
        float64, same shape; NaN where the truth is constant in the fold, 0 where the prediction is.
    total
        float64 [folds] sums of weights.
    """

    sse: np.ndarray
    pearson: np.ndarray
    total: np.ndarray


class Fitted(NamedTuple):
    """A linear map from standardised features: Y = scaler(X) @ coef + intercept."""

    scaler: Scaler
    coef: np.ndarray
    intercept: np.ndarray


class Sums(NamedTuple):
    """Weighted sums over rows of features x, targets y and their products; targets are shifted by a constant."""

    n: float
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    def minus(self, other: Sums) -> Sums:
        """Sums over the rows that are not in `other`."""
        return Sums(
            self.n - other.n,
            self.x - other.x,
            self.y - other.y,
            self.xx - other.xx,
            self.xy - other.xy,
            self.yy - other.yy,
        )

    def plus(self, other: Sums) -> Sums:
        """Sums over the rows of both."""
        return Sums(
            self.n + other.n,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )


def make(
    X: np.ndarray,
    Y: np.ndarray,
    weights: np.ndarray,
    folds: np.ndarray | None,
    *,
    variants: list[Variant] | None = None,
) -> Primal | Dual:
    """The cheaper of the two forms for this shape.

    Parameters
    ----------
    X, Y
        float32 [n, d] features and [n, columns] targets.
    weights
        [n], mean 1.
    folds
        [n] from 0, or None.
    variants
        From `_denoise.prepare`; None takes all columns as targets.
    """
    return (Primal if len(X) > X.shape[1] else Dual)(X, Y, weights, folds, variants or [Plain(Y.shape[1])])


class Primal:
    """More rows than features: everything from sums over rows."""

    def __init__(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        weights: np.ndarray,
        folds: np.ndarray | None,
        variants: list[Variant],
    ) -> None:
        self.variants = variants
        self.scaler = fit_scaler(X, weights)
        self.shift = (weights @ Y.astype(np.float64) / weights.sum()).astype(np.float32)
        labels = np.zeros(len(X), dtype=np.int64) if folds is None else folds
        self.parts = [self._sums(X, Y, weights, np.flatnonzero(labels == f)) for f in range(int(labels.max()) + 1)]
        self.all = reduce(Sums.plus, self.parts)

    def _sums(self, X: np.ndarray, Y: np.ndarray, weights: np.ndarray, rows: np.ndarray) -> Sums:
        d, g = X.shape[1], Y.shape[1]
        n, x, y, yy = 0.0, np.zeros(d), np.zeros(g), np.zeros(g)
        xx, xy = np.zeros((d, d), order="F"), np.zeros((d, g))
        for part in blocks(len(rows), BLOCK_ROWS):
            take = rows[part]
            w = weights[take]
            z, t = self.scaler(X[take]), Y[take] - self.shift
            root = np.sqrt(w).astype(np.float32)
            if (w != 1).any():
                z *= root[:, None]
                t *= root[:, None]
            n += w.sum()
            x += root @ z
            y += root @ t
            xx += ssyrk(1.0, z.T)  # one triangle: half the work
            xy += z.T @ t
            yy += np.einsum("ij,ij->j", t, t)
        return Sums(n, x, y, _mirror(xx), xy, yy)

    def path(self, alphas: np.ndarray) -> Path:
        """Scores of every setting on every fold, trained on the others."""
        scores = []
        for f, part in enumerate(self.parts):
            look = _Validation(_Basis(self.all.minus(part)), part)
            out = [
                look.score(v.columns(look.basis.products, f), self._centre(v, look.basis.y), alphas)
                for v in self.variants
            ]
            sse, r = zip(*out, strict=True)
            scores.append((np.concatenate(sse), np.concatenate(r), part.n))
        return Path(*(np.stack(s) for s in zip(*scores, strict=True)))

    def _centre(self, variant: Variant, y: np.ndarray) -> np.ndarray:
        """Mean of the variant's targets, less the shift of the targets themselves."""
        mean = variant.centre(self.shift + y)
        return mean - self.shift[: len(mean)]

    def solve(self, alpha: np.ndarray, variant: np.ndarray | None = None) -> Fitted:
        """Coefficients on all rows.

        Parameters
        ----------
        alpha
            [genes] penalty of each gene.
        variant
            [genes] number of its variant; None is the first.
        """
        basis = _Basis(self.all)
        products, centre = _chosen(self.variants, variant, basis.products, self.shift + basis.y, len(alpha))
        coef = basis.gain[:, None] * (basis.vectors @ _shrink(products, basis.values, alpha))
        intercept = centre - basis.x @ coef
        return Fitted(self.scaler, coef.astype(np.float32), intercept.astype(np.float32))


def _chosen(
    variants: list[Variant], variant: np.ndarray | None, products: np.ndarray, means: np.ndarray, n_genes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Products and means with every gene's own variant."""
    out, centre = np.empty((len(products), n_genes)), np.empty(n_genes)
    own = np.zeros(n_genes, dtype=np.int64) if variant is None else variant
    for i in np.unique(own):
        out[:, own == i] = variants[i].columns(products, -1)[:, own == i]
        centre[own == i] = variants[i].centre(means)[own == i]
    return out, centre


def _mirror(upper: np.ndarray) -> np.ndarray:
    """Fill the lower triangle, in place."""
    for part in blocks(len(upper), 256):
        upper[part.stop :, part] = upper[part, part.stop :].T
        own = upper[part, part]
        own += np.triu(own, 1).T
    return upper


class _Basis:
    """Eigenvectors of the training features' correlation sums, and the targets seen from them."""

    def __init__(self, s: Sums) -> None:
        self.x, self.y = s.x / s.n, s.y / s.n
        a = s.xx - np.outer(s.x, self.x)
        variance = np.maximum(np.diag(a), 0) / s.n
        self.gain = np.divide(1, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 1e-9)
        a *= self.gain[:, None]
        a *= self.gain
        values, self.vectors = eigh(a, overwrite_a=True, check_finite=False, driver="evd")
        self.values = np.maximum(values, 0)
        self.products = self.vectors.T @ (self.gain[:, None] * (s.xy - np.outer(s.x, self.y)))


class _Validation:
    """Errors and correlations of a fold, from its sums alone."""

    def __init__(self, basis: _Basis, s: Sums) -> None:
        self.basis, self.s = basis, s
        self.dtype = np.float32 if len(basis.gain) >= _SINGLE_FROM else np.float64
        scaled = basis.gain[:, None] * basis.vectors
        # The fold's rows less the training mean, seen from the eigenvectors: x - m has sums of squares
        # xx - x m' - m x' + n m m', and its projections are those of x and m.
        x, m = scaled.T @ s.x, scaled.T @ basis.x
        self.sums = x - s.n * m
        self.scaled = scaled.astype(self.dtype)
        self.square = self.scaled.T @ s.xx.astype(self.dtype) @ self.scaled
        self.square -= np.outer(self.sums, m).astype(self.dtype)
        self.square -= np.outer(m, x).astype(self.dtype)

    def score(self, products: np.ndarray, my: np.ndarray, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[penalties, genes] errors and correlations of models with these products and target means."""
        s, mx, genes = self.s, self.basis.x, slice(0, len(my))
        sy = s.y[genes]
        xy = s.xy[:, genes] - np.outer(s.x - s.n * mx, my) - np.outer(mx, sy)
        cross = self.scaled.T @ xy.astype(self.dtype)
        y, yy = sy - s.n * my, s.yy[genes] - 2 * my * sy + s.n * my * my
        shrink = 1 / (self.basis.values + np.asarray(alphas)[:, None])
        # What is linear in the coefficients comes for all penalties at once.
        yp, p = shrink @ (products * cross), (shrink * self.sums) @ products
        products, out = products.astype(self.dtype), []
        for i, row in enumerate(shrink.astype(self.dtype)):
            z = products * row[:, None]
            pp = np.einsum("ij,ij->j", z, self.square @ z)
            out.append(_from_sums(s.n, p[i], y, np.maximum(pp, 0).astype(np.float64), yy, yp[i]))
        sse, r = zip(*out, strict=True)
        return np.stack(sse), np.stack(r)


class Dual:
    """At least as many features as rows: everything from the rows' inner products."""

    def __init__(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        weights: np.ndarray,
        folds: np.ndarray | None,
        variants: list[Variant],
    ) -> None:
        self.variants = variants
        self.X, self.Y, self.weights, self.folds = X, Y, weights, folds

    def path(self, alphas: np.ndarray) -> Path:
        """Scores of every setting on every fold, trained on the others."""
        labels = np.zeros(len(self.X), dtype=np.int64) if self.folds is None else self.folds
        scores = []
        for f in range(int(labels.max()) + 1):
            kernel = _Kernel(self.X, self.Y, self.weights, np.flatnonzero(labels != f))
            test = np.flatnonzero(labels == f)
            seen, w, truth = kernel.look(self.X[test]), self.weights[test], self.Y[test].astype(np.float64)
            out = []
            for v in self.variants:
                products, centre = v.columns(kernel.products, f), v.centre(kernel.y)
                y = truth[:, : len(centre)] - centre
                out += [_from_rows(w, y, seen @ _shrink(products, kernel.values, a)) for a in alphas]
            sse, r = zip(*out, strict=True)
            scores.append((np.stack(sse), np.stack(r), w.sum()))
        return Path(*(np.stack(s) for s in zip(*scores, strict=True)))

    def solve(self, alpha: np.ndarray, variant: np.ndarray | None = None) -> Fitted:
        """Coefficients on all rows; see `Primal.solve`."""
        kernel = _Kernel(self.X, self.Y, self.weights, np.arange(len(self.X)))
        products, centre = _chosen(self.variants, variant, kernel.products, kernel.y, len(alpha))
        coef = kernel.rows.T @ (kernel.vectors @ _shrink(products, kernel.values, alpha))
        intercept = centre - kernel.x @ coef
        return Fitted(kernel.scaler, coef.astype(np.float32), intercept.astype(np.float32))


class _Kernel:
    """Eigenvectors of the centred kernel of training rows, and the targets seen from them."""

    def __init__(self, X: np.ndarray, Y: np.ndarray, weights: np.ndarray, rows: np.ndarray) -> None:
        w = weights[rows]
        total = max(w.sum(), 1e-300)
        root = np.sqrt(w)[:, None]
        self.scaler = fit_scaler(X[rows], np.maximum(w, 1e-300))
        z = self.scaler(X[rows]).astype(np.float64)
        self.x = w @ z / total
        self.rows = (z - self.x) * root
        y = Y[rows].astype(np.float64)
        self.y = w @ y / total
        values, self.vectors = eigh(self.rows @ self.rows.T, check_finite=False, driver="evd")
        self.values = np.maximum(values, 0)
        self.products = self.vectors.T @ ((y - self.y) * root)

    def look(self, X: np.ndarray) -> np.ndarray:
        """Other rows seen from the eigenvectors: predictions are this times the shrunken products."""
        return (self.scaler(X).astype(np.float64) - self.x) @ (self.rows.T @ self.vectors)


def _shrink(products: np.ndarray, values: np.ndarray, penalty: float | np.ndarray) -> np.ndarray:
    return products / (values[:, None] + penalty)


def _from_rows(w: np.ndarray, y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _from_sums(w.sum(), w @ p, w @ y, w @ (p * p), w @ (y * y), w @ (y * p))


def _from_sums(
    n: float, p: np.ndarray, y: np.ndarray, pp: np.ndarray, yy: np.ndarray, yp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared error and Pearson correlation from weighted sums of predictions and truths."""
    sse = np.maximum(yy - 2 * yp + pp, 0)
    n = max(n, 1e-300)
    vy, vp, cov = yy / n - (y / n) ** 2, pp / n - (p / n) ** 2, yp / n - (y / n) * (p / n)
    varies = (vy > 1e-12 * np.maximum(yy / n, 1e-300)) & (vy > 0)
    moves = vp > 1e-12 * np.maximum(pp / n, 1e-300)
    r = np.divide(cov, np.sqrt(np.maximum(vy * vp, 0)), out=np.zeros_like(cov), where=varies & moves & (vp > 0))
    return sse, np.where(varies, np.clip(r, -1, 1), np.nan)
