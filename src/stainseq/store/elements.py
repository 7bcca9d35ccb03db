"""One element of any kind to a folder of its own, stamped, fingerprinted and read back."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import keys
from ..errors import InputError, StainseqError, StoreError
from . import content, images, matrices, metadata, points
from .files import read_json, write_json

_JSON = "json:"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of libraries about what we do on purpose."""
    with warnings.catch_warnings():
        for text in (
            "The table is annotating",
            "Object at .* is not recognized as a component of a Zarr hierarchy",
            "Consolidated metadata is currently not part",
            "The codec `vlen-utf8`",
            "The data type .* does not have a Zarr V3 specification",
            "SpatialData is not stored in the most current format",
            "Writing zarr v2 data will no longer be the default",
            "zarr v3 autosharding will be the default",
        ):
            warnings.filterwarnings("ignore", message=text)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        # ome-zarr says "no parent found" for every label image that is opened by itself, as spatialdata does.
        log = logging.getLogger("ome_zarr.reader")
        before = log.level
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(before)


def kind_of(element: Any) -> str:
    """images, labels, points, shapes or tables, as spatialdata's models see it.

    Raises
    ------
    InputError
        Not an element, or one that its model refuses; the message is spatialdata's.
    """
    from anndata import AnnData
    from spatialdata.models import (
        Image2DModel,
        Image3DModel,
        Labels2DModel,
        Labels3DModel,
        PointsModel,
        ShapesModel,
        TableModel,
        get_model,
    )

    if isinstance(element, AnnData) and TableModel.ATTRS_KEY not in element.uns:
        return "tables"
    try:
        model = get_model(element)
    except (TypeError, ValueError, KeyError) as e:
        raise InputError(
            f"not an element of a slide: {e}", fix="make it with the parse() of the spatialdata model it belongs to"
        ) from e
    kinds = {
        Image2DModel: "images",
        Image3DModel: "images",
        Labels2DModel: "labels",
        Labels3DModel: "labels",
        PointsModel: "points",
        ShapesModel: "shapes",
        TableModel: "tables",
    }
    return kinds[model]


def told(element: Any) -> dict[str, Any]:
    """What a reader says of an element for its stamp: a grid's shape, a projective place, an image without one."""
    stamp = getattr(element, "attrs", {}).get(keys.STAMP) or {}
    return {k: stamp[k] for k in ("grid", "projective", "unregistered") if k in stamp}


def check_name(sdata: Any, name: str, kind: str) -> None:
    """Refuse a name that spatialdata refuses, or that an element of another kind has.

    Raises
    ------
    InputError
        Bad or taken name.
    """
    from spatialdata._core.validation import check_valid_name

    try:
        check_valid_name(name)
    except (TypeError, ValueError) as e:
        raise InputError(str(e), where=repr(name), fix="use letters, digits, '_', '-' and '.'") from e
    there = [(k, n) for k in metadata.KINDS for n in getattr(sdata, k)]
    if sdata.path is not None:
        there += metadata.elements_on_disk(Path(sdata.path))
    for other_kind, other in there:
        if other.lower() == name.lower() and (other_kind, other) != (kind, name):
            raise InputError(f"the name {name!r} is taken by {other_kind}/{other}", fix="choose another name")


def write(
    element: Any, folder: Path, *, kind: str, name: str, stamp: dict[str, Any], arrays: Path | None = None
) -> Path:
    """Write, stamp and check one element.

    Parameters
    ----------
    element
        Any kind, settled (see `settle`); lazy ones are streamed.
    folder
        An existing empty folder to work in.
    kind, name
        What it is and is called.
    stamp
        Its stamp; ``content`` and the facts of the writer are added.
    arrays
        Of a table: folder of X and layers that were written already (`matrices.new_arrays`), which move into it.

    Returns
    -------
    pathlib.Path
        The element's folder, ready to take its name in a store.
    """
    store = folder / "store"
    with quiet():
        if kind in ("images", "labels"):
            stamp |= images.write(element, store, kind=kind, name=name)
        elif kind == "points":
            stamp |= points.write(element, store, name=name, scratch=folder / "scratch")
        elif kind == "shapes":
            with _as_input_errors(kind, name):
                stamp |= _write_shapes(element, store, name)
        else:
            with _as_input_errors(kind, name):
                stamp |= _write_table(element, store, name, stamp, arrays)
        at = store / kind / name
        described = read_json(at / "zarr.json")
        described["attributes"][keys.STAMP] = stamp
        write_json(at / "zarr.json", described)
        _check(element, store, kind=kind, name=name, stamp=stamp)
    return at


@contextmanager
def _as_input_errors(kind: str, name: str) -> Iterator[None]:
    """spatialdata's and anndata's refusals of what they are given, as ours."""
    from anndata._io.specs.registry import IORegistryError

    try:
        yield
    except StainseqError:
        raise
    except (TypeError, ValueError, KeyError, IORegistryError) as e:
        said = str(e).strip().splitlines() or [type(e).__name__]
        raise InputError(
            f"it cannot be stored: {said[0]}",
            where=f"{kind}/{name}",
            fix="bring it into the form that spatialdata stores",
        ) from e


def _write_shapes(element: Any, store: Path, name: str) -> dict[str, Any]:
    from spatialdata import SpatialData

    SpatialData(shapes={name: element}).write(store)
    return {"content": content.shapes(element), "rows": len(element)}


def _write_table(
    element: Any, store: Path, name: str, stamp: dict[str, Any], arrays: Path | None = None
) -> dict[str, Any]:
    import zarr
    from anndata.io import write_elem
    from spatialdata import SpatialData

    element.uns[keys.STAMP] = to_uns(stamp)
    SpatialData(tables={name: element}).write(store)
    if arrays is not None:
        matrices.take_arrays(arrays, store / "tables" / name)
    group = zarr.open_group(store / "tables" / name, mode="r+", use_consolidated=False)
    more = {"content": content.zarr_tree(group), "shape": list(element.shape)}
    for key, value in to_uns(more).items():
        write_elem(group, f"uns/{keys.STAMP}/{key}", value)
    element.uns[keys.STAMP] = to_uns({**stamp, **more})
    return more


def settle(element: Any) -> Any:
    """A table with pandas axes and no view; all other elements as they are.

    Tables that were opened lazily (`anndata.experimental.read_lazy`) have axes that spatialdata refuses. Their
    matrices stay lazy, and are streamed.
    """
    import pandas as pd
    from anndata import AnnData

    if not isinstance(element, AnnData):
        return element
    if element.isbacked:
        return element.to_memory()
    if isinstance(element.obs, pd.DataFrame) and isinstance(element.var, pd.DataFrame):
        return element.copy() if element.is_view else element
    mappings = {k: _loaded(dict(getattr(element, k)), frames_only=True) for k in _MAPPINGS}
    return AnnData(
        element.X,
        obs=element.obs.to_memory(),
        var=element.var.to_memory(),
        uns=_loaded(dict(element.uns), frames_only=False),
        **mappings,
    )


_MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp")


def _loaded(value: Any, *, frames_only: bool) -> Any:
    if isinstance(value, dict):
        return {k: _loaded(v, frames_only=frames_only) for k, v in value.items()}
    if hasattr(value, "to_memory"):
        return value.to_memory()
    return value if frames_only or not hasattr(value, "compute") else value.compute()


def _is_lazy(table: Any) -> bool:
    parts = [table.X, *(v for k in _MAPPINGS for v in getattr(table, k).values())]
    return any(hasattr(p, "dask") for p in parts)


def to_uns(stamp: dict[str, Any]) -> dict[str, Any]:
    """A stamp as ``uns["stainseq"]`` holds it: plain values as they are, others as ``"json:..."`` text.

    AnnData files cannot hold lists of dictionaries or mixed lists.
    """
    return {k: v if isinstance(v, (str, int, float, bool)) else _JSON + json.dumps(v) for k, v in stamp.items()}


def from_uns(kept: Any) -> dict[str, Any] | None:
    """The stamp again, from what a table's ``uns["stainseq"]`` holds."""
    if not isinstance(kept, dict):
        return None
    found = {}
    for key, value in kept.items():
        value = value.item() if getattr(value, "ndim", None) == 0 else value
        text = isinstance(value, str) and value.startswith(_JSON)
        found[key] = json.loads(value.removeprefix(_JSON)) if text else value
    return found


def _check(element: Any, store: Path, *, kind: str, name: str, stamp: dict[str, Any]) -> None:
    """Open what was written and compare its size with what was given."""
    if kind == "tables":
        import zarr

        group = zarr.open_group(store / kind / name, mode="r", use_consolidated=False)
        index = group["obs"].attrs["_index"]
        got, want = list(group[f"obs/{index}"].shape), [element.n_obs]  # type: ignore[union-attr]
    elif kind == "shapes":
        got, want = [len(reopen(store, kind, name))], [len(element)]
    elif kind == "points":
        import pyarrow.dataset as ds

        files = [str(f) for f in points.data_files(store / kind / name)]
        got, want = [ds.dataset(files, format="parquet").count_rows()], [stamp["rows"]]
        reopen(store, kind, name)
    else:
        first = images.levels_of(reopen(store, kind, name))[0]
        source = images.levels_of(element)[0]
        got, want = [*first.shape, str(first.dtype)], [*source.shape, str(source.dtype)]
    if got != want:
        raise StoreError(
            f"{kind}/{name} reads back as {got}, not {want}", where=store, fix="check the disk and write again"
        )


def reopen(store: Path, kind: str, name: str) -> Any:
    """A stored element as it is opened with its slide."""
    import spatialdata

    if kind == "tables":
        import zarr

        group = zarr.open_group(store / kind / name, mode="r", use_consolidated=False)
        return matrices.read_table(group, max_bytes=matrices.LAZY_ABOVE, dense_only=True)
    return getattr(spatialdata.read_zarr(store, selection=(kind,)), kind)[name]


def read_slide(path: Path) -> Any:
    """A slide as spatialdata opens it, but for large dense matrices of tables: these stay on disk, as Dask arrays.

    Parameters
    ----------
    path
        A slide store.
    """
    import spatialdata

    groups = matrices.stored_tables(path)
    largest = max((matrices.largest_matrix(g, dense_only=True) for g in groups.values()), default=0)
    if largest <= matrices.LAZY_ABOVE:
        return spatialdata.read_zarr(path)
    listed = metadata.elements_listed(path)
    sdata = spatialdata.read_zarr(path, selection=tuple(k for k in metadata.KINDS if k != "tables"))
    for name in groups:
        if listed is None or ("tables", name) in listed:
            sdata.tables[name] = reopen(path, "tables", name)
    return sdata


def attach(sdata: Any, element: Any, *, kind: str, name: str, stamp: dict[str, Any]) -> None:
    """Put a written element into the object: lazily from disk where it is streamed, else the one given."""
    with quiet():
        if sdata.path is None:
            if kind == "tables":
                element.uns[keys.STAMP] = to_uns(stamp)
            else:
                element.attrs[keys.STAMP] = stamp
        elif kind == "tables" and not _is_lazy(element):
            element.uns[keys.STAMP] = to_uns(stamp)
        elif kind != "shapes":
            element = reopen(Path(sdata.path), kind, name)
        mapping = getattr(sdata, kind)
        mapping[name] = element


def fingerprint(sdata: Any, *, kind: str, name: str) -> str:
    """Fingerprint of an element that has none recorded."""
    import tempfile

    folder = Path(sdata.path) / kind / name if sdata.path is not None else None
    if folder is not None and folder.is_dir():
        element = None if kind == "tables" else getattr(sdata, kind).get(name)
        return stored_fingerprint(
            folder,
            kind,
            element=reopen(Path(sdata.path), kind, name) if element is None and kind != "tables" else element,
        )
    element = getattr(sdata, kind)[name]
    if kind in ("images", "labels"):
        return images.content_of(element, kind)
    if kind == "shapes":
        return content.shapes(element)
    with tempfile.TemporaryDirectory() as scratch:
        if kind == "points":
            return points.content_of(element, Path(scratch))
        return str(_write_table(element.copy(), Path(scratch) / "store", name, {})["content"])


def stored_fingerprint(folder: Path, kind: str, *, element: Any = None) -> str:
    """Fingerprint of a stored element.

    Parameters
    ----------
    folder
        Its folder in a store.
    kind
        images, labels, points, shapes or tables.
    element
        The opened element, where the kind needs its transformations (all but tables).
    """
    import zarr

    if kind == "tables":
        return content.zarr_tree(zarr.open_group(folder, mode="r", use_consolidated=False))
    if kind == "shapes":
        return content.shapes(element)
    if kind == "points":
        import pyarrow.dataset as ds

        dataset = ds.dataset([str(f) for f in points.data_files(folder)], format="parquet")
        columns = [c for c in dataset.schema.names if c != "__null_dask_index__"]  # dask's, not the user's
        running = content.Columns(dataset.schema.empty_table().select(columns).schema)
        for batch in dataset.to_batches(columns=columns, batch_size=1 << 18):
            running.update(batch)
        return running.digest(content.transformations(element))
    return images.content_of(element, kind)
