"""From a batch of windows to vectors: fields, chunks, checks. The same for every encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..spec import fingerprint
from .description import EncoderSpec
from .grids import regrid

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@runtime_checkable
class Encoder(Protocol):
    """Turns image windows into numbers.

    A window of each of `fields_um`, all centred on the same point, is resampled by the caller to
    `input_px` x `input_px`.
    """

    name: str
    spec: EncoderSpec
    dim: int
    input_px: int
    fields_um: tuple[float, ...]
    device: str

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens that tile the first field."""

    @property
    def token_dim(self) -> int:
        """Numbers a token."""

    def __call__(self, batch: Bytes) -> Floats:
        """uint8 [n, fields, h, w, 3] (or [n, h, w, 3] for one field) -> float32 [n, dim]."""

    def tokens(self, batch: Bytes) -> Floats:
        """The same batch -> float32 [n, ty, tx, token_dim]; tokens tile the first field."""

    def fingerprint(self) -> str:
        """Names all that decides the numbers: description, weights, precision and runtime."""


class Backend(Protocol):
    """Runs one network on uint8 images of one field."""

    device: str
    runtime: str
    chunk: int
    pad: bool

    @property
    def dim(self) -> int:
        """Numbers a vector."""

    @property
    def token_dim(self) -> int:
        """Numbers a token."""

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""

    def vectors(self, images: Bytes) -> Floats:
        """uint8 [n, h, w, 3] -> float32 [n, dim]."""

    def tokens(self, images: Bytes) -> Floats:
        """uint8 [n, h, w, 3] -> float32 [n, ty, tx, token_dim]."""


def check_batch(batch: Bytes, spec: EncoderSpec) -> Bytes:
    """uint8 [n, fields, h, w, 3] of the right size, or an error that says what is wrong.

    Raises
    ------
    InputError
        Wrong dtype, number of fields, size or channels.
    """
    batch = np.asarray(batch)
    if batch.dtype != np.uint8:
        raise InputError(f"windows are {batch.dtype}, not uint8", where=f"encoder {spec.name}",
                         fix="scale them to 0..255 and convert")  # fmt: skip
    if batch.ndim == 4 and len(spec.fields_um) == 1:
        batch = batch[:, None]
    want = (len(spec.fields_um), spec.input_px, spec.input_px, 3)
    if batch.ndim != 5 or batch.shape[1:] != want:
        um = " and ".join(f"{v:g}" for v in spec.fields_um)
        raise InputError(
            f"windows have shape {batch.shape}, not (n, {', '.join(map(str, want))})",
            where=f"encoder {spec.name}",
            fix=f"give windows of {um} um, each {spec.input_px} x {spec.input_px} px RGB",
        )
    return batch


class NetworkEncoder:
    """One network applied to each field; the fields' vectors are joined.

    Parameters
    ----------
    spec
        Description.
    backend
        What runs it.
    source
        Fingerprint of the weights.
    wider
        The same network on windows so many times as wide, at the same resolution, with entries of the description's
        `arch` replaced; None where the network is tied to its input side.
    tokens_only
        Vectors will not be asked for: their graph is not made.
    """

    def __init__(self, spec: EncoderSpec, backend: Backend, *, source: str,
                 wider: Callable[[int, Mapping[str, Any] | None], Encoder] | None = None,
                 tokens_only: bool = False) -> None:  # fmt: skip
        self.spec, self.backend, self._source, self.wider = spec, backend, source, wider
        self.name, self.input_px, self.fields_um = spec.name, spec.input_px, spec.fields_um
        self.device = backend.device
        self.dim = spec.dim if tokens_only else backend.dim * len(spec.fields_um)
        if self.dim != spec.dim:
            raise InputError(f"the network gives {self.dim} numbers, its description says {spec.dim}",
                             where=f"encoder {spec.name}", fix="correct dim in the TOML file")  # fmt: skip

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens that tile the first field."""
        return self.backend.token_grid

    @property
    def token_dim(self) -> int:
        """Numbers a token, over all fields."""
        return self.backend.token_dim * len(self.fields_um)

    def fingerprint(self) -> str:
        """Names all that decides the numbers: description, weights, precision and runtime."""
        return fingerprint("encoder", self.spec.fingerprint(), self._source, self.backend.runtime)

    def __call__(self, batch: Bytes) -> Floats:
        """uint8 [n, fields, h, w, 3] (or [n, h, w, 3] for one field) -> float32 [n, dim].

        Raises
        ------
        InputError
            A batch of another shape or dtype; a result that is not finite.
        """
        batch = check_batch(batch, self.spec)
        n, fields = batch.shape[:2]
        out = np.empty((n * fields, self.backend.dim), np.float32)
        self._run(batch, out, self.backend.vectors)
        return out.reshape(n, self.dim)

    def tokens(self, batch: Bytes) -> Floats:
        """The same batch -> float32 [n, ty, tx, token_dim].

        Tokens tile the first field; those of a wider field are resampled to the tokens of the first.
        """
        batch = check_batch(batch, self.spec)
        n, fields = batch.shape[:2]
        out = self.one_field(batch.reshape(-1, *batch.shape[2:]))
        if fields == 1:
            return out
        out = out.reshape(n, fields, *out.shape[1:])
        first = self.fields_um[0]
        parts = [regrid(out[:, i], self.token_grid, part=first / um) for i, um in enumerate(self.fields_um)]
        return np.concatenate(parts, axis=-1)

    def one_field(self, images: Bytes) -> Floats:
        """uint8 [n, h, w, 3] of any field -> float32 [n, ty, tx, dim], the tokens of that field."""
        out = np.empty((len(images), *self.token_grid, self.backend.token_dim), np.float32)
        self._run(images[:, None], out, self.backend.tokens)
        return out

    def _run(self, batch: Bytes, out: Floats, forward: Any) -> None:
        images = batch.reshape(-1, *batch.shape[2:])
        step = self.backend.chunk
        for start in range(0, len(images), step):
            piece = images[start : start + step]
            n = len(piece)
            if self.backend.pad and n < step:
                # The same matrix sizes for every call, so that results do not depend on the batch.
                piece = np.concatenate([piece, np.zeros((step - n, *piece.shape[1:]), np.uint8)])
            out[start : start + n] = forward(np.ascontiguousarray(piece))[:n]
        if not np.isfinite(out).all():
            bad = ~np.isfinite(out.reshape(len(batch), -1)).all(1)
            raise InputError(
                f"{int(bad.sum())} of {len(batch)} results are not finite, the first at window {int(bad.argmax())}",
                where=f"encoder {self.name}",
                fix="use precision='fp32', or check the weights file",
            )
