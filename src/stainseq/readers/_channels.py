"""Fluorescence images: one channel a file or a page, any number of them, lazily with their pyramids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..errors import FormatError
from ._picture import lazy
from ._tiff import PageArray, _check_extent, _ome_mpp, _open

if TYPE_CHECKING:
    from dask.array import Array


def open_channels(
    paths: list[Path], *, stack: bool = False
) -> tuple[list[Array], list[str], tuple[float, float] | None]:
    """Open channels lazily.

    Parameters
    ----------
    paths
        One TIFF a channel, all of one size; or one TIFF of one or several planes.
    stack
        The planes of the one file are depths of one channel: the middle one is taken.

    Returns
    -------
    tuple
        Levels (c, y, x), finest first; channel names; microns per pixel (x, y) where the first file tells.

    Raises
    ------
    FormatError
        Damaged, truncated, or channels of different sizes.
    """
    import dask.array as da

    stacks: list[list[Array]] = []
    mpp, names = None, list[str]()
    for path in paths:
        with _open(path) as tif:
            try:
                pages: Any = tif.pages
                planes = [pages[0]] if len(paths) > 1 else [p for p in pages if p.shape == pages[0].shape]
                planes = [planes[len(planes) // 2]] if stack else planes
                for page in planes:
                    levels = [page, *(page.pages or [])]
                    _check_extent(levels, path)
                    stacks.append([_plane(level, path) for level in levels])
                if mpp is None and tif.ome_metadata:
                    mpp = _ome_mpp(tif.ome_metadata, 0, pages[0].shape[:2])
                told = _names(tif.ome_metadata)
                names += told if len(told) == len(planes) else told[len(names) : len(names) + 1]
            except (ValueError, IndexError, KeyError, OSError, RuntimeError) as e:
                if isinstance(e, FormatError):
                    raise
                raise FormatError(f"a damaged or truncated TIFF ({e})", where=path, fix="copy it again") from e
    sizes = {tuple(level.shape for level in stack) for stack in stacks}
    if len(sizes) > 1:
        depth = min(len(stack) for stack in stacks)
        if len({stack[0].shape for stack in stacks}) > 1:
            raise FormatError("channels of different sizes", where=paths[0].parent, fix="copy the images again")
        stacks = [stack[:depth] for stack in stacks]
    if len(names) != len(stacks) or len(set(names)) < len(names):
        names = [p.name.split(".")[0] for p in paths] if len(paths) > 1 else [str(i) for i in range(len(stacks))]
    return [da.stack(level) for level in zip(*stacks, strict=True)], names, mpp


def _plane(page: Any, path: Path) -> Array:
    array = PageArray(page, path)
    if array.ndim != 2:
        raise FormatError(f"a fluorescence image of shape {array.shape}", where=path, fix="give one channel a plane")
    return lazy(array, array.chunks)


def _names(xml: str | None) -> list[str]:
    if not xml:
        return []
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return []
    channels = [c for c in root.iter() if c.tag.rsplit("}", 1)[-1] == "Channel"]
    names = [c.get("Name") or "" for c in channels]
    return names if all(names) and len(set(names)) == len(names) else []
