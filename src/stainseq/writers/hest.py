"""HEST's folders: a crop of the picture around each spot or cell (h5), its expression (h5ad), splits of slides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from .._progress import progress
from .._settings import settings
from ..errors import InputError, MissingError
from ._flat import name_of
from ._format import Format

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from ..image import LevelStack

FORMAT = Format(tables="one", prefers=("counts_",), needs_region=True, image=True, several=True)

_BLOCK = 256
_THUMBNAIL_PX = 1000


def write(
    slides: list[SpatialData],
    path: Path,
    *,
    region: str,
    tables: tuple[str, ...],
    facts: dict[str, Any],
    split: Mapping[str, str] | None = None,
    size_px: int = 224,
    mpp: float = 0.5,
    image_key: str = keys.HE,
) -> list[Path]:
    """Write crops and expression of regions as HEST's benchmark reads them.

    Parameters
    ----------
    slides, path, tables, facts
        See `stainseq.writers`.
    region
        Spots or cells; a crop around the centre of each.
    split
        Set of each slide: ``splits/train_0.csv`` has all that are not "test", ``splits/test_0.csv`` these.
    size_px, mpp
        Of a crop; default 224 px at 0.5 um/px, HEST's.
    image_key
        The picture.

    Notes
    -----
    ``patches/<slide>.h5``: ``img`` uint8 [n, size, size, 3], ``coords`` int64 [n, 2] (x, y of the upper left pixel,
    full resolution), ``barcode`` bytes [n, 1]; on ``img`` the attributes patch_size_src, patch_size_target, downsample,
    pixel_size, name. Crops that reach out of the picture are left out. ``adata/<slide>.h5ad``: all regions, raw counts,
    ``obs`` in_tissue, pxl_col_in_fullres, pxl_row_in_fullres, ``obsm["spatial"]`` in pixels,
    ``uns["spatial"]["ST"]["images"]["downscaled_fullres"]``. ``metadata.csv``: id, patient, organ, and more of HEST's
    columns that are known. The genes to be predicted (``var_50genes.json``) are the benchmark's choice and not written.
    """
    import pandas as pd

    from .. import image

    if size_px < 1 or not mpp > 0:
        raise InputError(f"crops of {size_px} px at {mpp:g} um/px", fix="give both above 0")
    names = [_safe(name_of(s)) for s in slides]
    parts = _parts(names, [name_of(s) for s in slides], split)
    for folder in ("patches", "adata"):
        (path / folder).mkdir()
    rows = []
    for sdata, name in zip(slides, names, strict=True):
        opened = image.open_registered(sdata, image_key)
        rows.append(_slide(sdata, opened, path, name, region, tables[0], size_px=size_px, mpp=mpp))
    pd.DataFrame(rows).to_csv(path / "metadata.csv", index=False)
    if split is not None:
        (path / "splits").mkdir()
        for part, test in (("train", False), ("test", True)):
            chosen = [n for n in names if (parts[n] == "test") == test]
            frame = pd.DataFrame({
                "sample_id": chosen,
                "patches_path": [f"patches/{n}.h5" for n in chosen],
                "expr_path": [f"adata/{n}.h5ad" for n in chosen],
            })  # fmt: skip
            frame.to_csv(path / "splits" / f"{part}_0.csv", index=False)
    return sorted(p for p in path.rglob("*") if p.is_file())


def _parts(names: list[str], slides: list[str], split: Mapping[str, str] | None) -> dict[str, str]:
    if len(set(names)) < len(names):
        raise InputError(f"two slides would be called {max(names, key=names.count)!r}", fix="rename one of them")
    if split is None:
        return {}
    missing = [s for s in slides if s not in split]
    if missing:
        raise MissingError(
            f"no set for {', '.join(missing[:5])}", fix="HEST splits slides: split --by patient or slide"
        )
    return {n: split[s] for n, s in zip(names, slides, strict=True)}


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


def _slide(
    sdata: SpatialData,
    opened: LevelStack,
    path: Path,
    name: str,
    region: str,
    table: str,
    *,
    size_px: int,
    mpp: float,
) -> dict[str, Any]:
    """Both files of a slide, and its row of the metadata."""
    from .. import regions, store

    where = regions.get(sdata, region)
    centres = opened.to_px(where.centres_um)
    source = round(size_px * mpp / opened.mpp)
    corners = np.floor(centres).astype(np.int64) - source // 2
    height, width = opened.shape
    inside = (corners >= 0).all(axis=1) & (corners + source <= [width, height]).all(axis=1)
    ids = np.asarray(where.ids).astype(str)
    if not inside.any():
        raise InputError(
            f"no crop of {source} px lies within the picture", where=sdata.path, fix="ask for a smaller size_px or mpp"
        )
    attributes = {
        "patch_size_src": source,
        "patch_size_target": size_px,
        "downsample": source / size_px,
        "pixel_size": opened.mpp,
        "name": name,
    }
    _write_h5(path / "patches" / f"{name}.h5", opened, corners[inside], ids[inside], attributes)
    found = sdata.tables[table]
    made = _adata(found, dict(zip(ids, centres, strict=True)), opened)
    made.write_h5ad(path / "adata" / f"{name}.h5ad", compression="gzip")
    facts = store.facts(sdata)
    return {
        "id": name,
        "patient": facts.get("patient", ""),
        "organ": facts.get("tissue", ""),
        "st_technology": facts.get("platform", ""),
        "pixel_size_um_estimated": opened.mpp,
        "fullres_px_width": width,
        "fullres_px_height": height,
        "nb_genes": found.n_vars,
        "spots_under_tissue": found.n_obs,
        "patches": int(inside.sum()),
    }


def _write_h5(path: Path, opened: LevelStack, corners: np.ndarray, ids: np.ndarray, attributes: dict[str, Any]) -> None:
    import h5py

    size = attributes["patch_size_target"]
    with h5py.File(path, "w") as file:
        shape = (len(corners), size, size, 3)
        images = file.create_dataset("img", shape, dtype=np.uint8, chunks=(1, size, size, 3))
        file.create_dataset("coords", data=corners)
        file.create_dataset("barcode", data=np.char.encode(ids, "utf-8")[:, None])
        images.attrs.update(attributes)
        for start, block in _crops(opened, corners, attributes):
            images[start : start + len(block)] = block


def _crops(opened: LevelStack, corners: np.ndarray, attributes: dict[str, Any]) -> Iterator[tuple[int, np.ndarray]]:
    from ..image import read_square_px

    source, size = attributes["patch_size_src"], attributes["patch_size_target"]
    with ThreadPoolExecutor(max(1, settings.n_jobs)) as pool, progress("hest", len(corners)) as advance:
        for start in range(0, len(corners), _BLOCK):
            some = corners[start : start + _BLOCK] + source / 2
            crops = pool.map(lambda c: read_square_px(opened, c, size_px=size, factor=source / size), some)
            yield start, np.stack(list(crops))
            advance(len(some))


def _adata(table: Any, centres: dict[str, np.ndarray], opened: LevelStack) -> Any:
    from anndata import AnnData

    from ..image import level_thumbnail

    instances = table.obs[keys.INSTANCE_KEY].astype(str).to_numpy()
    xy = np.stack([centres[i] for i in instances])
    obs = table.obs.drop(columns=[keys.REGION_KEY, keys.INSTANCE_KEY]).copy()
    obs["in_tissue"] = 1
    obs["pxl_col_in_fullres"], obs["pxl_row_in_fullres"] = xy.T
    values = table.X.compute() if hasattr(table.X, "dask") else table.X
    made = AnnData(values.copy(), obs=obs, var=table.var.copy())
    made.obs_names = instances
    made.obsm["spatial"] = xy
    small, small_mpp = level_thumbnail(opened, max_px=_THUMBNAIL_PX)
    scale = {"tissue_downscaled_fullres_scalef": opened.mpp / small_mpp}
    made.uns["spatial"] = {"ST": {"images": {"downscaled_fullres": small}, "scalefactors": scale}}
    return made
