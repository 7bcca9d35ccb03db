"""Sections of the HER2-positive breast tumour set (Andersson et al. 2021, CC BY 4.0): counts, places and features.

Windows are cut straight from the images, 112 and 224 um around every spot, resampled bilinearly where that enlarges and
by area where it shrinks; features are kept in a cache folder under the encoder's fingerprint.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stainseq import encoders
from stainseq.core.windows import OUTSIDE, bounds, resample

PITCH_UM = 200.0


@dataclass
class Section:
    """One section: counts of all its genes, places, and its image once it is needed."""

    name: str
    counts: sparse.csr_array
    genes: np.ndarray
    coordinates: np.ndarray
    pixels: np.ndarray
    array: np.ndarray
    mpp: float
    image_path: Path

    @property
    def library(self) -> np.ndarray:
        return np.asarray(self.counts.sum(axis=1)).ravel().astype(float)


def load(folder: Path, name: str) -> Section:
    """Spots joined by id; the pixel size from the array's 200 um pitch."""
    import pandas as pd

    base = folder / name
    counts = pd.read_csv(base / f"{name}_counts.tsv.gz", sep="\t", index_col=0)
    spots = pd.read_csv(base / f"{name}_selection.tsv", sep="\t")
    spots.index = [
        f"{x}x{y}" for x, y in zip(spots["x"].round().astype(int), spots["y"].round().astype(int), strict=True)
    ]
    if spots.index.duplicated().any() or not counts.index.isin(spots.index).all():
        raise SystemExit(f"{name}: spots and counts do not join by id")
    spots = spots.loc[counts.index]
    new, px = spots[["new_x", "new_y"]].to_numpy(), spots[["pixel_x", "pixel_y"]].to_numpy()
    pitch = [np.polyfit(new[:, i], px[:, i], 1)[0] for i in (0, 1)]
    mpp = PITCH_UM / float(np.mean(pitch))
    return Section(
        name=name,
        counts=sparse.csr_array(counts.to_numpy(np.int64)),
        genes=counts.columns.to_numpy(str),
        coordinates=px * mpp,
        pixels=px,
        array=np.rint(new[:, ::-1]).astype(int),
        mpp=mpp,
        image_path=base / f"{name}_HE.jpg",
    )


def features(section: Section, encoder_name: str, cache: Path, threads: int) -> np.ndarray:
    """Features of every spot, float32 [n, dim]."""
    encoder = encoders.load(encoder_name, device="cpu", n_threads=threads)
    key = f"{section.name}-{encoder_name}-{encoder.fingerprint()}-{_digest(section.image_path)}"
    path = cache / f"{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}.npy"
    if path.is_file():
        return np.load(path)
    windows = cut(section, encoder, len(section.pixels))
    out = np.concatenate([encoder(windows[i : i + 64]) for i in range(0, len(windows), 64)])
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, out)
    partial.replace(path)
    return out


def seconds_per_spot(section: Section, encoder_name: str, *, spots: int = 32) -> float:
    """CPU seconds of encoding one spot's windows on one thread, the better of two runs."""
    encoder = encoders.load(encoder_name, device="cpu", n_threads=1)
    windows = cut(section, encoder, spots)
    encoder(windows[:4])
    seconds = []
    for _ in range(2):
        start = time.process_time()
        encoder(windows)
        seconds.append(time.process_time() - start)
    return min(seconds) / len(windows)


def cut(section: Section, encoder: Any, n: int) -> np.ndarray:
    """Windows of the first n spots, uint8 [n, fields, px, px, 3]."""
    image = _image(section.image_path)
    return np.stack([_windows(image, p, encoder, section.mpp) for p in section.pixels[:n]])


def _windows(image: np.ndarray, centre: np.ndarray, encoder: Any, mpp: float) -> np.ndarray:
    out = []
    for field in encoder.fields_um:
        step = field / encoder.input_px / mpp
        y0, y1, x0, x1 = bounds(centre, encoder.input_px, step)
        block = np.full((y1 - y0, x1 - x0, 3), OUTSIDE, np.uint8)
        ya, yb, xa, xb = max(y0, 0), min(y1, image.shape[0]), max(x0, 0), min(x1, image.shape[1])
        block[ya - y0 : yb - y0, xa - x0 : xb - x0] = image[ya:yb, xa:xb]
        out.append(resample(block, (y0, x0), centre, encoder.input_px, step))
    return np.stack(out)


_IMAGES: dict[Path, np.ndarray] = {}


def _image(path: Path) -> np.ndarray:
    import cv2

    if path not in _IMAGES:
        _IMAGES.clear()  # 280 MB each
        _IMAGES[path] = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
    return _IMAGES[path]


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def common_genes(sections: list[Section]) -> np.ndarray:
    """Names that all sections have, sorted."""
    names = set(sections[0].genes)
    for s in sections[1:]:
        names &= set(s.genes)
    return np.array(sorted(names))


def counts_of(section: Section, genes: np.ndarray) -> sparse.csr_array:
    """Columns by name."""
    place = {g: i for i, g in enumerate(section.genes)}
    return section.counts[:, [place[g] for g in genes]]
