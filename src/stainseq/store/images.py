"""Images and labels: streamed to disk in bands, with their pyramid, never whole in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .._settings import settings
from ..core.grids import halve
from ..errors import InputError
from . import content
from .files import read_json, write_json

CHUNK_PX = 512
"""Side of a chunk: 0.8 MB of RGB, one read for a patch of 224 px in most places."""
SMALLEST_PX = 512
"""The pyramid ends with the first level whose short side is below this."""
_BAND_BYTES = 64 << 20
_ZSTD_LEVEL = {"images": 1, "labels": 3}

Box = tuple[int, int, int, int]
Fetch = Callable[[Box], np.ndarray]


def levels_of(element: Any) -> list[Any]:
    """The levels of a raster as DataArrays, finest first."""
    from xarray import DataArray

    if isinstance(element, DataArray):
        return [element]
    names = sorted(element.children, key=lambda n: int(n.removeprefix("scale")))
    return [next(iter(element[n].data_vars.values())) for n in names]


def pyramid_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of every level that we build: halves, rounded down, until the short side is below 512 px."""
    shapes = [(height, width)]
    while min(shapes[-1]) >= SMALLEST_PX:
        h, w = shapes[-1]
        shapes.append((h // 2, w // 2))
    return shapes


def write(element: Any, store: Path, *, kind: str, name: str) -> dict[str, Any]:
    """Write a raster into a new store of its own.

    A single-scale raster gets a pyramid, each level the 2 x 2 mean (labels: the upper left value) of the one
    below, where an odd last row or column is left out. A multiscale one keeps its levels.

    Parameters
    ----------
    element
        Image (c, y, x) or labels (y, x), DataArray or DataTree, usually backed by dask.
    store
        Folder to make.
    kind
        "images" or "labels".
    name
        Name of the element.

    Returns
    -------
    dict
        ``content`` (fingerprint) and ``levels`` (shape of each).
    """
    given = levels_of(element)
    _check(given[0], kind)
    spatial = [tuple(level.shape[-2:]) for level in given]
    if len(given) == 1:
        spatial = pyramid_shapes(*spatial[0])
    folder = _skeleton(element, given[0], store, kind=kind, name=name, spatial=spatial)
    paths = [d["path"] for d in read_json(folder / "zarr.json")["attributes"]["ome"]["multiscales"][0]["datasets"]]
    digests, shapes = [], []
    below: Any = None
    for i, (path, (h, w)) in enumerate(zip(paths, spatial, strict=True)):
        shape = (*given[0].shape[:-2], h, w)
        array = _new_array(folder, path, shape=shape, like=given[0], kind=kind)
        fetch, step = (
            (_from_dask(given[i].data), _source_step(given[i])) if i < len(given) else _from_below(below, kind)
        )
        digests.append(_stream(fetch, array, step=step))
        shapes.append({"shape": list(shape), "dtype": str(given[0].dtype)})
        below = array
    fingerprint = content.raster(
        shapes, digests, channels=_channels(given[0]), transformations=content.transformations(element)
    )
    return {"content": fingerprint, "levels": [s["shape"] for s in shapes]}


def content_of(element: Any, kind: str) -> str:
    """Fingerprint of a raster that was written by someone else, or that is not written yet."""
    given = levels_of(element)
    levels = [{"shape": list(level.shape), "dtype": str(level.dtype)} for level in given]
    digests = [_stream(_from_dask(level.data), None, step=_source_step(level), shape=level.shape) for level in given]
    return content.raster(
        levels, digests, channels=_channels(given[0]), transformations=content.transformations(element)
    )


def _check(level: Any, kind: str) -> None:
    want = ("c", "y", "x") if kind == "images" else ("y", "x")
    if tuple(level.dims) != want:
        raise InputError(
            f"{kind} have the dimensions {', '.join(want)}, not {', '.join(map(str, level.dims))}",
            fix="transpose it, or drop the z axis",
        )
    if 0 in level.shape:
        raise InputError(f"an empty raster of shape {tuple(level.shape)}", fix="give one with pixels")
    if level.dtype.kind not in "biuf":
        raise InputError(f"a raster of type {level.dtype} cannot be stored", fix="turn it into numbers")


def _channels(level: Any) -> list[str] | None:
    return [str(c) for c in level.coords["c"].values] if "c" in level.coords else None


def _skeleton(element: Any, level: Any, store: Path, *, kind: str, name: str, spatial: list[tuple[int, int]]) -> Path:
    """Let spatialdata write its metadata for a tiny raster with as many levels, transformations and channels."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel
    from spatialdata.transformations import get_transformation

    side = 2 ** len(spatial)
    tiny = np.zeros((*level.shape[:-2], side, side), dtype=level.dtype)
    model = Image2DModel if kind == "images" else Labels2DModel
    options: dict[str, Any] = {"transformations": dict(get_transformation(element, get_all=True))}
    if kind == "images" and "c" in level.coords:
        options["c_coords"] = level.coords["c"].values.tolist()
    if len(spatial) > 1:
        options["scale_factors"] = [2] * (len(spatial) - 1)
    parsed = model.parse(tiny, dims=level.dims, **options)
    SpatialData(**{kind: {name: parsed}}).write(store)
    folder = store / kind / name
    described = read_json(folder / "zarr.json")
    for i, dataset in enumerate(described["attributes"]["ome"]["multiscales"][0]["datasets"]):
        factors = [_factor(spatial[0][axis], spatial[i][axis]) for axis in (0, 1)]
        dataset["coordinateTransformations"] = [{"type": "scale", "scale": [1.0] * (level.ndim - 2) + factors}]
    write_json(folder / "zarr.json", described)
    return folder


def _factor(full: int, level: int) -> float:
    """Down-sampling factor: the whole number that was meant, where rounding down explains the shape."""
    whole = round(full / level)
    return float(whole) if full // whole == level else full / level


def _new_array(folder: Path, path: str, *, shape: tuple[int, ...], like: Any, kind: str) -> Any:
    import zarr
    from zarr.codecs import ZstdCodec

    chunks = (*shape[:-2], min(CHUNK_PX, shape[-2]), min(CHUNK_PX, shape[-1]))
    return zarr.create_array(
        store=folder,
        name=path,
        shape=shape,
        chunks=chunks,
        dtype=like.dtype,
        dimension_names=list(like.dims),
        compressors=ZstdCodec(level=_ZSTD_LEVEL[kind]),
        fill_value=0,
        overwrite=True,
    )


def _source_step(level: Any) -> tuple[int, int]:
    """Height and width of the blocks to read: whole source chunks in whole blocks of ours, so that each source
    chunk is decoded about once, within 64 MB where the source's chunks allow."""
    chunks = getattr(level.data, "chunks", None)
    h, w = (max(chunks[-2]), max(chunks[-1])) if chunks else (CHUNK_PX, CHUNK_PX)
    rows, columns = -(-h // CHUNK_PX) * CHUNK_PX, -(-w // CHUNK_PX) * CHUNK_PX
    row_bytes = rows * level.dtype.itemsize * int(np.prod(level.shape[:-2], dtype=np.int64))
    fits = max(1, _BAND_BYTES // (row_bytes * columns)) * columns
    return rows, fits


def _from_dask(data: Any) -> Fetch:
    def fetch(box: Box) -> np.ndarray:
        y0, y1, x0, x1 = box
        part = data[..., y0:y1, x0:x1]
        if hasattr(part, "compute"):
            part = part.compute(scheduler="threads", num_workers=settings.n_jobs)
        return np.asarray(part)

    return fetch


def _from_below(below: Any, kind: str) -> tuple[Fetch, tuple[int, int]]:
    def fetch(box: Box) -> np.ndarray:
        y0, y1, x0, x1 = (2 * v for v in box)
        part = below[..., y0:y1, x0:x1]
        return halve(part) if kind == "images" else np.ascontiguousarray(part[..., ::2, ::2])

    pixel = below.dtype.itemsize * int(np.prod(below.shape[:-2], dtype=np.int64))
    wide = max(1, _BAND_BYTES // (4 * CHUNK_PX * CHUNK_PX * pixel)) * CHUNK_PX
    return fetch, (CHUNK_PX, wide)


def _boxes(shape: tuple[int, ...], step: tuple[int, int]) -> Iterator[Box]:
    h, w = shape[-2:]
    for y in range(0, h, step[0]):
        for x in range(0, w, step[1]):
            yield y, min(y + step[0], h), x, min(x + step[1], w)


def _stream(fetch: Fetch, array: Any, *, step: tuple[int, int], shape: tuple[int, ...] | None = None) -> list[bytes]:
    """Copy a level block by block, reading one ahead; digests of its 512 px blocks in row order."""
    shape = array.shape if shape is None else shape
    digests: dict[tuple[int, int], bytes] = {}
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(settings.n_jobs) as hashers:
        boxes = list(_boxes(shape, step))
        ahead = reader.submit(fetch, boxes[0])
        for i, box in enumerate(boxes):
            values = ahead.result()
            if i + 1 < len(boxes):
                ahead = reader.submit(fetch, boxes[i + 1])
            places = [(y, x) for y in range(box[0], box[1], CHUNK_PX) for x in range(box[2], box[3], CHUNK_PX)]
            parts = [values[..., y - box[0] :, x - box[2] :][..., :CHUNK_PX, :CHUNK_PX] for y, x in places]
            hashed = hashers.map(content.block, parts)
            if array is not None:
                array[..., box[0] : box[1], box[2] : box[3]] = values
            digests.update(zip(places, hashed, strict=True))
    return [digests[place] for place in sorted(digests)]
