"""Who made an element and from what: what may be replaced, and what is out of date."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import regions, store
from .errors import StoreError
from .spec import fingerprint

if TYPE_CHECKING:
    import numpy as np
    from spatialdata import SpatialData


def claim(sdata: SpatialData, name: str, *, step: str) -> None:
    """Refuse to let a step's result take the name of an element that another step made.

    Making a result again replaces it; measured counts, or what somebody else put into the slide, are never replaced.

    Parameters
    ----------
    sdata
        The slide.
    name
        Name that the result is about to take.
    step
        The step that is about to write it.

    Raises
    ------
    StoreError
        Something else has the name.
    """
    if name not in sdata:
        return
    stamp = store.stamp_of(sdata, name) or {}
    made = str(stamp.get("step", "something other than stainseq"))
    earlier = {made, *(str(s.get("step")) for s in stamp.get("history", []))}
    if step not in earlier:
        raise StoreError(
            f"{name!r} is there already, made by {made}",
            where=sdata.path,
            fix="give the result another name (key_added, --key)",
        )


def ids_fingerprint(ids: np.ndarray) -> str:
    """Names a set of regions in their order."""
    return fingerprint("ids", "\n".join(map(str, ids)).encode())


def stale(sdata: SpatialData) -> dict[str, list[str]]:
    """Elements that were made from others as they no longer are.

    Parameters
    ----------
    sdata
        The slide.

    Returns
    -------
    dict
        Element to the elements that have changed since, or that are stale themselves; in the order they were made.
    """
    named = set(regions.names(sdata))
    found: dict[str, list[str]] = {}
    for step in store.steps(sdata):
        inputs = {k: v for k, v in step.get("inputs", {}).items() if k in sdata and k != step["element"]}
        # Tables gain results without changing what was computed from their values.
        changed = [
            source
            for source, known in inputs.items()
            if source not in sdata.tables and (source in found or known not in _now(sdata, source, source in named))
        ]
        if changed:
            found[step["element"]] = changed
    return found


def _now(sdata: SpatialData, name: str, is_region: bool) -> set[str | None]:
    """What steps may have recorded of an element as it is: its content, or the ids of its regions."""
    content = (store.stamp_of(sdata, name) or {}).get("content")
    ids = {ids_fingerprint(regions.get(sdata, name).ids)} if is_region else set()
    return {str(content), *ids}
