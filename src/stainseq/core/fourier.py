"""Squared-exponential kernels over many places, through a mesh and its Fourier transform; never n x n.

K(x - y) = sum over frequencies of a Gaussian spectrum, so that r'Kr is a weighted power spectrum of r. Values at places
are spread to a mesh by a window of ten nodes a side (a non-uniform FFT, relative error about 1e-9), or put on it as
they are where places are the nodes of a lattice (exact). One spreading serves all length scales: short ones by FFT of
the padded mesh, long ones, of few frequencies, by two small matrix products.

A. H. Barnett, J. Magland and L. af Klinteberg, SIAM Journal on Scientific Computing 41, C479 (2019).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from scipy import fft

from .kernels import trace3_by_probes
from .lattice import from_coordinates

if TYPE_CHECKING:
    from numpy.typing import NDArray

REACH = 6.44
"""Where a Gaussian has fallen to 1e-9, in standard deviations: of the kernel in place and of its spectrum."""

_ROUGH = 4.8
"""The same for 1e-5, enough for the third moment."""

_WIDTH = 10
_BETA = 2.30 * _WIDTH
_LONG = 0.35
"""Kernels that reach further than this part of the tissue would double the padded mesh: they go by matrix products."""

_BATCH_BYTES = 32 << 20


class Mesh:
    """A regular mesh over places, fine enough for kernels from a given length scale on.

    Parameters
    ----------
    coordinates
        float64 [n, 2]; with `lattice` the places in units along its axes.
    length
        Shortest length scale.
    lattice
        Steps of the lattice whose nodes the places are, in units of the coordinates, or None.
    """

    def __init__(
        self, coordinates: NDArray[np.float64], length: float, lattice: tuple[float, float] | None = None
    ) -> None:
        low = coordinates.min(axis=0)
        self.span = coordinates.max(axis=0) - low
        self.exact = lattice is not None
        self.step = np.array(lattice) if lattice is not None else np.full(2, math.pi * length / (2.0 * REACH))
        if self.exact:
            self.width = 1
            nodes = np.rint((coordinates - low) / self.step).astype(np.int32)
            self._x, self._y = np.ascontiguousarray(nodes[:, 0]), np.ascontiguousarray(nodes[:, 1])
            self._wx = self._wy = np.ones((len(nodes), 1))
        else:
            self.width = _WIDTH
            self._x, self._wx = _window((coordinates[:, 0] - low[0]) / self.step[0])
            self._y, self._wy = _window((coordinates[:, 1] - low[1]) / self.step[1])
        # Nodes along x and y that the places reach.
        self.nodes = np.rint(np.ceil(self.span / self.step - 1e-6)).astype(int) + self.width

    def padded(self, length: float) -> tuple[int, int]:
        """Rows and columns of a mesh on which images of a kernel of this length scale do not reach each other."""
        need = np.maximum(np.ceil((self.span + REACH * length) / self.step), self.nodes).astype(int)
        return fft.next_fast_len(int(need[1])), fft.next_fast_len(int(need[0]), real=True)

    def spread(self, r: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
        """Values [g, n] on meshes [g, *shape]."""
        out = np.zeros((len(r), *shape))
        _spread(r, self._x, self._y, self._wx, self._wy, out)
        return out

    def gather(self, field: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values at places [n] of a field on the mesh."""
        return _gather(field, self._x, self._y, self._wx, self._wy)

    def window_spectrum(self, omega: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        """Fourier transform of the window at angular frequencies, over the step; 1 on a lattice."""
        if self.exact:
            return np.ones_like(omega)
        z, w = np.polynomial.legendre.leggauss(64)
        half = 0.5 * self.width
        shape = np.exp(_BETA * (np.sqrt(1.0 - z**2) - 1.0)) * w * half
        return np.asarray(np.cos(np.outer(omega, z * half * self.step[axis])) @ shape)

    def transfer(self, length: float, shape: tuple[int, int]) -> NDArray[np.float64]:
        """Multiplier of `rfft2` on a mesh of this shape that applies the kernel from places to places."""
        ky, kx = fft.fftfreq(shape[0]) * shape[0], np.arange(shape[1] // 2 + 1, dtype=np.float64)
        if self.exact:
            # Samples of the kernel, wrapped: exact on the lattice whatever the length scale.
            y, x = ky * self.step[1], np.minimum(np.arange(shape[1]), shape[1] - np.arange(shape[1])) * self.step[0]
            sampled = np.exp(-(y**2)[:, None] / (2 * length**2) - (x**2) / (2 * length**2))
            return np.ascontiguousarray(fft.rfft2(sampled).real)
        parts = []
        for k, count, axis in ((ky, shape[0], 1), (kx, shape[1], 0)):
            omega = 2.0 * math.pi * k / (count * self.step[axis])
            within = np.abs(omega) <= REACH / length
            window = np.where(within, self.window_spectrum(omega, axis), 1.0)
            gauss = math.sqrt(2 * math.pi) * length * np.exp(-0.5 * (length * omega) ** 2)
            parts.append(np.where(within, gauss / (self.step[axis] * window**2), 0.0))
        return np.asarray(np.outer(*parts), dtype=np.float64)

    def waves(self, length: float, axis: int, count: int, *, reach: float = REACH) -> NDArray[np.float64]:
        """Cosines and sines [count nodes, features] of one axis: K is the sum of squares over pairs of features."""
        omega, share = _frequencies(self.span[axis], length, reach)
        share = np.sqrt(share) / self.window_spectrum(omega, axis)
        at = (np.arange(count) - 0.5 * (self.nodes[axis] - 1)) * self.step[axis]
        phase = np.outer(at, omega)
        return np.hstack([np.cos(phase) * share, np.sin(phase[:, 1:]) * share[1:]])


def _frequencies(span: float, length: float, reach: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies 0.. of one axis and their weights in the kernel (both signs together)."""
    period = span + reach * length
    omega = 2.0 * math.pi / period * np.arange(int(reach / length * period / (2.0 * math.pi)) + 1)
    share = math.sqrt(2 * math.pi) * length / period * np.exp(-0.5 * (length * omega) ** 2)
    return np.asarray(omega, dtype=np.float64), np.asarray(np.where(omega > 0, 2.0, 1.0) * share, dtype=np.float64)


def place_waves(coordinates: NDArray[np.float64], length: float, reach: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Features at places of both axes: K is the sum of squares over pairs of one from each, [n, fx] and [n, fy]."""
    out = []
    for axis in (0, 1):
        x = coordinates[:, axis] - 0.5 * (coordinates[:, axis].max() + coordinates[:, axis].min())
        omega, share = _frequencies(float(np.ptp(x)), length, reach)
        phase = np.outer(x, omega)
        out.append(np.hstack([np.cos(phase) * np.sqrt(share), np.sin(phase[:, 1:]) * np.sqrt(share[1:])]))
    return out[0], out[1]


def lattice_of(coordinates: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[float, float]] | None:
    """Coordinates along the axes of the rectangular or hexagonal lattice that all places lie on, and its steps.

    None where they do not lie on one to a millionth of its pitch, or on too sparse a part of it.
    """
    if len(coordinates) < 4:
        return None
    lattice = from_coordinates(coordinates)
    if not 0 < lattice.shape[0] * lattice.shape[1] <= 16 * len(coordinates):
        return None
    design = np.column_stack([lattice.col, lattice.row, np.ones(len(coordinates))]).astype(np.float64)
    axes = np.linalg.lstsq(design, coordinates, rcond=None)[0]
    steps = np.hypot(axes[:2, 0], axes[:2, 1])
    if not (steps > 0).all() or abs(axes[0] @ axes[1]) > 1e-7 * steps[0] * steps[1]:
        return None
    if np.abs(design @ axes - coordinates).max() > 1e-6 * steps.min():
        return None
    aligned = np.asarray(design[:, :2] * steps, dtype=np.float64)
    return aligned, (float(steps[0]), float(steps[1]))


class SquaredExponential:
    """Operator of one SE kernel over many places, as `stainseq.core.kernels.Operator`.

    Parameters
    ----------
    coordinates
        float64 [n, 2].
    length
        Length scale.
    lattice
        From `lattice_of`: steps, with `coordinates` along its axes.
    """

    def __init__(
        self, coordinates: NDArray[np.float64], length: float, lattice: tuple[float, float] | None = None
    ) -> None:
        self._coordinates, self._length, self._lattice = coordinates, length, lattice
        self.diagonal = np.ones(len(coordinates))
        self._features: tuple[NDArray[Any], NDArray[Any]] | None = None
        self._meshes: dict[int, tuple[Mesh, tuple[int, int], NDArray[np.float64]]] = {}

    def apply(self, x: NDArray[np.float64], power: int = 1) -> NDArray[np.float64]:
        """K @ x, or an elementwise power of K (again of this kind, with a shorter length scale) times x."""
        if power not in self._meshes:
            length = self._length / math.sqrt(power)
            mesh = Mesh(self._coordinates, length, self._lattice)
            shape = mesh.padded(length)
            self._meshes[power] = mesh, shape, mesh.transfer(length, shape)
        mesh, shape, transfer = self._meshes[power]
        out = np.empty_like(x)
        for k in range(x.shape[1]):
            spectrum = fft.rfft2(mesh.spread(np.ascontiguousarray(x[:, k])[None], shape)[0])
            spectrum *= transfer
            out[:, k] = mesh.gather(fft.irfft2(spectrum, s=shape))
        return out

    def trace3(self, w: NDArray[np.float64]) -> float:
        """tr((B diag(w))^3), B = K less its w-weighted row and column means.

        From features where they are few, else from random signs: the more frequencies, the fewer are needed.
        """
        spans = np.ptp(self._coordinates, axis=0)
        count = math.prod(2 * len(_frequencies(float(span), self._length, _ROUGH)[0]) - 1 for span in spans)
        if count <= 400:
            if self._features is None:
                self._features = place_waves(self._coordinates, self._length, _ROUGH)
            return _trace3_features(*self._features, w)
        effective = max(count / 20.0, 1.0)
        probes = int(np.clip(math.ceil(3000.0 / effective), 2, 64))
        return trace3_by_probes(self.apply, w, probes)


def _trace3_features(x: NDArray[Any], y: NDArray[Any], w: NDArray[Any]) -> float:
    width = x.shape[1] * y.shape[1]
    gram, mean = np.zeros((width, width)), np.zeros(width)
    for start in range(0, len(w), 65_536):
        part = slice(start, start + 65_536)
        features = (x[part, :, None] * y[part, None, :]).reshape(-1, width)
        mean += w[part] @ features
        half = (features * np.sqrt(w[part])[:, None]).astype(np.float32)
        gram += half.T @ half
    gram -= np.outer(mean, mean) / w.sum()
    return float(np.einsum("ij,ij->", gram @ gram, gram))


class PowerSpectra:
    """r'Kr of many vectors with several SE kernels, one spreading for all.

    Parameters
    ----------
    coordinates
        float64 [n, 2].
    lengths
        Length scales.
    lattice
        As for `SquaredExponential`.
    """

    def __init__(
        self, coordinates: NDArray[np.float64], lengths: list[float], lattice: tuple[float, float] | None = None
    ) -> None:
        self._mesh = Mesh(coordinates, min(lengths), lattice)
        widest = float(self._mesh.span.max())
        order = np.array(lengths)
        short = (REACH * order <= _LONG * widest) | (order == order.min())
        self._short, self._long = np.flatnonzero(short), np.flatnonzero(~short)
        self.count = len(lengths)
        self._shape = self._mesh.padded(float(order[short].max()))
        rows, columns = self._shape
        weights = np.stack([self._mesh.transfer(order[k], self._shape) for k in self._short]) / (rows * columns)
        half = np.full(weights.shape[2], 2.0)
        half[0] = 1.0
        if columns % 2 == 0:
            half[-1] = 1.0
        weights *= half
        # Only frequencies within the band of the shortest kernel carry weight (a quarter of them on a fine mesh).
        used = np.flatnonzero(weights.any(axis=(0, 1)))[-1] + 1
        self._columns = int(used)
        self._weights = np.ascontiguousarray(np.moveaxis(weights[:, :, :used], 0, 2))
        nodes = self._mesh.nodes
        self._waves = [
            (self._mesh.waves(order[k], 0, nodes[0]), self._mesh.waves(order[k], 1, nodes[1])) for k in self._long
        ]
        self._batch = max(1, _BATCH_BYTES // (16 * rows * columns))

    def quadratic(self, r: NDArray[np.float64]) -> NDArray[np.float64]:
        """r'Kr, [g, kernels], for r [g, n]."""
        out = np.empty((len(r), self.count))
        for start in range(0, len(r), self._batch):
            part = slice(start, min(start + self._batch, len(r)))
            mesh = self._mesh.spread(r[part], self._shape)
            for (x, y), k in zip(self._waves, self._long, strict=True):
                field = mesh[:, : self._mesh.nodes[1], : self._mesh.nodes[0]]
                out[part, k] = ((y.T @ (field @ x)) ** 2).sum(axis=(1, 2))
            rows = np.ascontiguousarray(fft.rfft(mesh, axis=2)[:, :, : self._columns])
            out[part, self._short] = _weighted_power(fft.fft(rows, axis=1, overwrite_x=True), self._weights)
        return out


@njit(cache=True)
def _window(position: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:  # pragma: no cover - compiled
    """First node and window values of each place; nodes start half a window before the first place."""
    start = np.empty(position.size, dtype=np.int32)
    values = np.empty((position.size, _WIDTH))
    half = 0.5 * _WIDTH
    for i in range(position.size):
        shifted = position[i] + 0.5 * (_WIDTH - 1)
        first = math.ceil(shifted - half)
        start[i] = max(first, 0)
        for k in range(_WIDTH):
            z = (start[i] + k - shifted) / half
            values[i, k] = math.exp(_BETA * (math.sqrt(1.0 - z * z) - 1.0)) if z * z < 1.0 else 0.0
    return start, values


@njit(cache=True, nogil=True)
def _spread(r, x, y, wx, wy, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    columns = np.uint64(out.shape[2])
    for g in range(r.shape[0]):
        mesh = out[g].reshape(-1)
        for i in range(r.shape[1]):
            # Unsigned offsets spare the test for negative indices and let the inner loop use vectors.
            first = np.uint64(y[i]) * columns + np.uint64(x[i])
            if wx.shape[1] == 1:
                mesh[first] += r[g, i]
                continue
            for a in range(_WIDTH):
                value = r[g, i] * wy[i, a]
                at = first + np.uint64(a) * columns
                for b in range(_WIDTH):
                    mesh[at + np.uint64(b)] += value * wx[i, b]


@njit(cache=True, nogil=True)
def _gather(field, x, y, wx, wy):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    columns = np.uint64(field.shape[1])
    mesh = field.reshape(-1)
    out = np.empty(x.size)
    along = np.empty(_WIDTH)
    for i in range(x.size):
        first = np.uint64(y[i]) * columns + np.uint64(x[i])
        if wx.shape[1] == 1:
            out[i] = mesh[first]
            continue
        along[:] = 0.0
        for a in range(_WIDTH):
            at = first + np.uint64(a) * columns
            for b in range(_WIDTH):
                along[b] += mesh[at + np.uint64(b)] * wy[i, a]
        total = 0.0
        for b in range(_WIDTH):
            total += along[b] * wx[i, b]
        out[i] = total
    return out


@njit(cache=True, nogil=True)
def _weighted_power(spectrum, weights):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    genes, rows, columns = spectrum.shape
    kernels = weights.shape[2]
    out = np.zeros((genes, kernels))
    for g in range(genes):
        for a in range(rows):
            for b in range(columns):
                s = spectrum[g, a, b]
                power = s.real * s.real + s.imag * s.imag
                for k in range(kernels):
                    out[g, k] += weights[a, b, k] * power
    return out
