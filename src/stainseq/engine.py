"""The streaming feature engine: windows of a slide through an encoder, resumable inside the slide.

Reading and resampling (one thread), encoding (the caller's thread, the encoder's own threads) and writing (one
thread) overlap. Windows are encoded in an order that depends on the coordinates alone, and every finished batch is in
a preallocated file before a line in a journal says how far that order is done: a killed run goes on behind the last
journal line, with whatever batch size, and gives the bytes that an uninterrupted run gives (on a GPU with another
batch size: the same to the last digits of its precision). Results are kept in ``settings.cache_dir / "features"``,
under a name made from the content of the image, the regions, the encoder and the precision, so nothing is ever encoded
twice.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._files import REASONS
from ._settings import settings
from .core import windows
from .errors import InputError, ScaleError, StoreError
from .image import LevelStack, read_window_px
from .spec import fingerprint

if TYPE_CHECKING:
    from .encoders import Encoder

ENGINE_VERSION = 2
"""Part of every cache key: raised when windows, their order or the journal change."""

BATCH = 32
"""Windows a batch: enough that reading, encoding and writing overlap, little to repeat after a kill."""

_MAPPED = 1 << 28
"""Bytes of a result that may lie mapped in memory before they are let go."""

MAX_UPSAMPLING = 8.0
"""A slide this much coarser than the encoder's pixels holds none of what the encoder looks at."""


@dataclass(frozen=True)
class Run:
    """What one call of the engine did.

    Parameters
    ----------
    path
        The .npy file of the result, in the cache.
    encoded
        Windows encoded in this call; the others came from an earlier one.
    seconds
        Wall time.
    key
        Fingerprint of everything the result depends on.
    """

    path: Path
    encoded: int
    seconds: float
    key: str


def encode_points(
    image: LevelStack,
    centres_um: np.ndarray,
    encoder: Encoder,
    *,
    batch_size: int = BATCH,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, Run]:
    """One vector for the window around each point.

    Parameters
    ----------
    image
        From `image.open_image`.
    centres_um
        float [n, 2], (x, y) in microns.
    encoder
        From `encoders.load`; its ``fields_um`` and ``input_px`` say what to read.
    batch_size
        Windows per call of the encoder: memory and speed; no number and no cache entry depends on it.
    progress
        Called with the number of windows finished since the last call.

    Returns
    -------
    tuple
        float32 [n, dim] (a read-only memory map, in the order of `centres_um`) and a `Run`.

    Raises
    ------
    InputError
        A centre is not finite, or the encoder returned something that is not.
    ScaleError
        The slide is far too coarse for the encoder.
    """
    centres_px = _checked(image, centres_um, encoder)
    tile = 2048
    order = windows.tile_order(centres_px, tile)
    key = key_of(image, encoder.fingerprint(), "points", np.ascontiguousarray(centres_px))

    def write(store: np.ndarray, batch: slice, vectors: np.ndarray) -> None:
        store[order[batch]] = vectors

    def read(batch: slice) -> np.ndarray:
        return _windows(image, centres_px[order[batch]], encoder)

    done = run(key, (len(order), encoder.dim), len(order), read, encoder, write, batch_size, progress)
    return np.load(done.path, mmap_mode="r"), done


def encode_map(
    image: LevelStack,
    box_um: tuple[float, float, float, float],
    encoder: Encoder,
    *,
    halo_tokens: int | None = None,
    keep: Callable[[tuple[float, float, float, float]], bool] | None = None,
    batch_size: int = 8,
    dtype: str = "float16",
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray, Run]:
    """A dense map of tokens over a rectangle, window by window with a halo.

    Each window of the encoder yields a square of tokens; those within the halo see too little of their surroundings
    and are thrown away, the others are owned by exactly one window, so there are no seams.

    Parameters
    ----------
    image
        From `image.open_image`.
    box_um
        (min_x, min_y, max_x, max_y) in microns.
    encoder
        An encoder with tokens; they tile its first field.
    halo_tokens
        Tokens to drop on each side; default a quarter of the window's.
    keep
        Says of a window's core (a box in microns) whether it is wanted; others stay NaN. Default all.
    batch_size
        Windows per call of the encoder.
    dtype
        Of the map; float16 halves the disk and is finer than what encoders reproduce between machines.
    progress
        Called with the number of windows finished.

    Returns
    -------
    tuple
        dtype [rows, cols, dim] (read-only memory map, NaN where not wanted), float [3, 3] from (column, row) of the
        map (token i covers [i, i + 1)) to microns, and a `Run`.
    """
    field = encoder.fields_um[0]
    ty, _ = encoder.token_grid
    halo = ty // 4 if halo_tokens is None else halo_tokens
    core = ty - 2 * halo
    if core < 1:
        raise InputError(f"a halo of {halo} tokens leaves nothing of a window of {ty}", fix="lower halo_tokens")
    pitch = field / ty
    rows, cols = (max(1, int(np.ceil((b - a) / pitch))) for a, b in ((box_um[1], box_um[3]), (box_um[0], box_um[2])))
    wy, wx = -(-rows // core), -(-cols // core)
    corner = np.array([box_um[0], box_um[1]])
    lattice = np.stack(np.meshgrid(np.arange(wx), np.arange(wy)), axis=-1).reshape(-1, 2)
    cores = corner + lattice * core * pitch
    wanted = np.array([keep is None or keep((x, y, x + core * pitch, y + core * pitch)) for x, y in cores])
    lattice, cores = lattice[wanted], cores[wanted]
    centres_px = _checked(image, cores + core * pitch / 2, encoder)
    key = key_of(image, encoder.fingerprint(), "map", np.asarray(box_um, dtype=float), halo, dtype, lattice)
    to_um = np.array([[pitch, 0, corner[0]], [0, pitch, corner[1]], [0, 0, 1.0]])

    def write(store: np.ndarray, batch: slice, tokens: np.ndarray) -> None:
        inner = in_range_of(dtype, tokens[:, halo : halo + core, halo : halo + core])
        for (i, j), block in zip(lattice[batch], inner, strict=True):
            x, y = i * core, j * core
            h, w = min(core, rows - y), min(core, cols - x)
            store[y : y + h, x : x + w] = block[:h, :w]

    def read(batch: slice) -> np.ndarray:
        return _windows(image, centres_px[batch], encoder)

    shape = (rows, cols, encoder.token_dim)
    done = run(key, shape, len(lattice), read, encoder.tokens, write, batch_size, progress, dtype=dtype, fill=np.nan)
    return np.load(done.path, mmap_mode="r"), to_um, done


def in_range_of(dtype: str, values: np.ndarray) -> np.ndarray:
    """Values as a type of float holds them: beyond its largest they are its largest, not infinite."""
    limit = float(np.finfo(dtype).max)
    return np.clip(values, -limit, limit).astype(dtype)


def run(
    key: str,
    shape: tuple[int, ...],
    n: int,
    read: Callable[[slice], np.ndarray],
    encode: Callable[[np.ndarray], np.ndarray],
    write: Callable[[np.ndarray, slice, np.ndarray], None],
    batch_size: int,
    progress: Callable[[int], None] | None,
    *,
    dtype: str = "float32",
    fill: float = 0.0,
) -> Run:
    """Encode what a journal does not yet vouch for of n windows.

    Parameters
    ----------
    key
        Name of the cache entry (`key_of`).
    shape, dtype, fill
        Of the result, and what it holds where nothing is written.
    n
        Windows.
    read
        Pixels of a batch of windows, called in a thread of its own.
    encode
        From pixels to values, in the caller's thread.
    write
        Puts the values of a batch into the result, in a third thread.
    batch_size
        Windows a batch.
    progress
        Called with the number of windows finished.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is no number of windows", fix="give 1 or more")
    start = time.perf_counter()
    with journalled(key, shape, n, dtype=dtype, fill=fill) as job:
        done = job.finished
        edges = [done, *range((done // batch_size + 1) * batch_size, n, batch_size), n]
        batches = [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]
        if progress is not None:
            progress(done)
        _stream(batches, read, encode, lambda batch, values: job.write(batch, values, write), progress)
    return Run(job.path, n - done, time.perf_counter() - start, key)


def _windows(image: LevelStack, centres_px: np.ndarray, encoder: Encoder) -> np.ndarray:
    """uint8 [n, fields, px, px, 3]: what the encoder looks at around each centre."""
    px, n_fields = encoder.input_px, len(encoder.fields_um)
    batch = np.empty((len(centres_px), n_fields, px, px, 3), dtype=np.uint8)
    for i, centre in enumerate(centres_px):
        for k, field in enumerate(encoder.fields_um):
            batch[i, k] = read_window_px(image, centre, size_px=px, factor=field / px / image.mpp)
    return batch


def _checked(image: LevelStack, centres_um: np.ndarray, encoder: Encoder) -> np.ndarray:
    centres_um = np.asarray(centres_um, dtype=float).reshape(-1, 2)
    if not np.isfinite(centres_um).all():
        bad = int((~np.isfinite(centres_um)).any(axis=1).sum())
        raise InputError(f"{bad} region centres are not finite", fix="drop them or mend their coordinates")
    finest = min(encoder.fields_um) / encoder.input_px
    if image.mpp > MAX_UPSAMPLING * finest:
        raise ScaleError(
            f"the slide has {image.mpp:.2f} um/px, encoder {encoder.name!r} looks at {finest:.2f} um/px",
            fix="convert an image of higher resolution (the one the spots were aligned on)",
        )
    return image.to_px(centres_um)


def key_of(image: LevelStack, *parts: Any) -> str:
    """Name of a cache entry: the content and place of the image, and what else decides the result."""
    scale = [round(float(v), 9) for v in image.to_um.ravel()]
    return fingerprint(ENGINE_VERSION, image.fingerprint, scale, *parts)


def _stream(
    batches: list[slice],
    read: Callable[[slice], np.ndarray],
    encode: Callable[[np.ndarray], np.ndarray],
    write: Callable[[slice, np.ndarray], None],
    progress: Callable[[int], None] | None,
) -> None:
    """Reader thread → this thread → writer thread; an error in one ends all and is raised here."""
    if not batches:
        return
    ahead: queue.Queue[Any] = queue.Queue(maxsize=3)
    stop = threading.Event()

    def hand_over(item: Any) -> None:
        while not stop.is_set():
            try:
                ahead.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for batch in batches:
                if stop.is_set():
                    return
                hand_over((batch, read(batch)))
        except Exception as e:  # noqa: BLE001  (handed to the caller's thread, which raises it)
            hand_over(e)

    reader = threading.Thread(target=produce, name="stainseq-reader", daemon=True)
    reader.start()
    with ThreadPoolExecutor(1, thread_name_prefix="stainseq-writer") as writer:
        pending = None
        try:
            for _ in batches:
                item = ahead.get()
                if isinstance(item, Exception):
                    raise item
                batch, pixels = item
                vectors = encode(pixels)
                if not np.isfinite(vectors).all():
                    raise InputError("the encoder returned values that are not finite", fix="check its weights")
                if pending is not None:
                    pending.result()
                pending = writer.submit(write, batch, vectors)
                if progress is not None:
                    progress(batch.stop - batch.start)
            if pending is not None:
                pending.result()
        finally:
            stop.set()
            # A reader left in a codec while the interpreter shuts down would abort the process after Ctrl-C.
            reader.join()


class _Job:
    """One result file and the journal of how many windows, in their order, it holds."""

    def __init__(self, folder: Path, shape: tuple[int, ...], n: int, dtype: str, fill: float) -> None:
        self.path, self._log, self._n = folder / "values.npy", folder / "journal", n
        self._dtype, self._shape, self._fill = np.dtype(dtype), shape, fill
        self.finished = self._reached = self._vouched = self._read_journal()
        self._array: np.ndarray | None = None
        self._flushed = time.monotonic()

    def _read_journal(self) -> int:
        if not (self.path.exists() and self._log.exists()):
            return 0
        # A full disk or a power cut may leave half a line: only lines that end count, and the next one starts afresh.
        text = self._log.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(self._log, whole)
        return max((int(x) for x in text[:whole].split() if x.isdigit() and int(x) <= self._n), default=0)

    def write(self, batch: slice, values: np.ndarray, put: Callable[[np.ndarray, slice, np.ndarray], None]) -> None:
        if self._array is None:
            self._array = self._open()
        put(self._array, batch, values)
        self._reached = batch.stop
        if time.monotonic() - self._flushed > 1.0:
            self.flush()

    def _open(self) -> np.ndarray:
        if not self.path.exists():
            fresh = self.path.with_suffix(".partial")
            array = np.lib.format.open_memmap(fresh, mode="w+", dtype=self._dtype, shape=self._shape)
            if self._fill != 0:
                array[...] = self._fill
            array.flush()
            del array
            os.replace(fresh, self.path)
        return np.lib.format.open_memmap(self.path, mode="r+")

    def flush(self) -> None:
        """Values first, then the line that vouches for them."""
        if self._array is None and not self.path.exists():
            self._array = self._open()
        if isinstance(self._array, np.memmap):
            self._array.flush()
            _let_go(self._array)
        if self._reached > self._vouched:
            with open(self._log, "ab") as f:
                f.write(f"{self._reached}\n".encode())
                f.flush()
                os.fsync(f.fileno())
        self._vouched, self._flushed = self._reached, time.monotonic()


def unmapping(store: np.ndarray) -> Callable[[int], None]:
    """Lets go of the pages of a memory map every so many rows: what lies in the file needs no place in memory.

    Parameters
    ----------
    store
        A writable memory map. Pages that were changed stay with the system until they are on disk.

    Returns
    -------
    Callable
        To be called with the number of rows written since the last call.
    """
    held, lock = 0, threading.Lock()
    per_row = store.nbytes // max(len(store), 1)

    def wrote(rows: int) -> None:
        nonlocal held
        with lock:
            held += rows * per_row
            if held > _MAPPED:
                _let_go(store)
                held = 0

    return wrote


def _let_go(store: np.ndarray) -> None:
    mapped = getattr(store, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


@contextmanager
def journalled(key: str, shape: tuple[int, ...], n: int, *, dtype: str, fill: float) -> Iterator[_Job]:
    """A result in the cache and its journal, for one writer; what it lacks is everything behind ``job.finished``."""
    folder = settings.cache_dir / "features" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            job = _Job(folder, shape, n, dtype, fill)
            try:
                yield job
            finally:
                job.flush()
            (folder / "about.json").write_text(json.dumps({"shape": shape, "dtype": dtype, "windows": n}))
    except OSError as e:
        if e.errno not in REASONS:
            raise
        raise StoreError(
            f"the feature cache cannot be written ({e.strerror or e})",
            where=folder,
            fix="free space, or set STAINSEQ_CACHE_DIR to a folder that can be written",
        ) from e


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer a cache entry; the system releases the lock when a process dies."""
    import fcntl

    with open(folder / "lock", "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise StoreError(
                "another run is encoding the same regions", where=folder, fix="wait for it, or stop it first"
            ) from e
        yield
