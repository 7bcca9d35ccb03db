"""Where an element lies: its transformations, changed without copying a value."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from .. import keys, spec
from . import content, elements, files, metadata, swap


def place(
    sdata: Any, path: Path | None, name: str, transformation: Any, *, kind: str, to: str, stamp: dict[str, Any]
) -> None:
    """Give an element a transformation, on disk by one exchange of its folder, and in memory.

    The new folder shares the files of the old one by hard links (copies, where the file system has none): values are
    never rewritten, and the element has the old place or the new one whenever the process dies.

    Parameters
    ----------
    sdata
        The slide.
    path
        Its store, or None.
    name
        The element.
    transformation
        A spatialdata transformation.
    kind
        images, labels, points or shapes.
    to
        Coordinate system.
    stamp
        The element's next stamp, without "content".
    """
    import spatialdata
    from spatialdata.transformations import set_transformation

    element = getattr(sdata, kind)[name]
    if path is None:
        set_transformation(element, transformation, to)
        element.attrs[keys.STAMP] = stamp
        return
    with swap.staging(path, op="write", kind=kind, name=name) as stage:
        work = stage.folder / "work"
        spatialdata.SpatialData().write(work, consolidate_metadata=False)
        at = _linked(path / kind / name, work / kind / name)
        files.write_json(work / kind / "zarr.json", metadata.kind_group(work, kind))
        with elements.quiet():
            staged = spatialdata.read_zarr(work)
            moved = getattr(staged, kind)[name]
            set_transformation(moved, transformation, to, write_to_sdata=staged)
        # Values have not changed: their fingerprint and the new place make the new one.
        stamp["content"] = spec.fingerprint("placed", stamp["values"], content.transformations(moved))
        described = files.read_json(at / "zarr.json")
        described["attributes"][keys.STAMP] = stamp
        files.write_json(at / "zarr.json", described)
        swap.commit_element(stage, at, kind=kind, name=name)
    elements.attach(sdata, moved, kind=kind, name=name, stamp=stamp)


def _linked(source: Path, target: Path) -> Path:
    """A folder of the same files. JSON is copied, for it is about to change."""

    def bring(a: str, b: str) -> None:
        if not a.endswith(".json"):
            try:
                os.link(a, b)
                return
            except OSError:
                pass  # another file system, or one without links: copying is always right
        shutil.copy2(a, b)

    shutil.copytree(source, target, copy_function=bring)
    return target
