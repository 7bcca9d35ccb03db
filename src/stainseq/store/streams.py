"""Tables whose matrices are written while they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import spec
from . import swap

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@contextmanager
def stream_table(
    sdata: SpatialData,
    name: str,
    table: AnnData,
    arrays: Mapping[str, Any],
    *,
    step: str,
    parameters: dict[str, Any],
    inputs: dict[str, str] | None = None,
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Add or replace a table whose matrices are written block by block inside ``with``.

    Nothing of it is seen before the block ends, and nothing is left where it ends with an error.

    Parameters
    ----------
    sdata
        The slide. Without a path, the matrices are in memory.
    name
        Name of the table.
    table
        The rest of it, without X and layers; obs, var, obsm and uns may still be changed inside the block.
    arrays
        Types of the matrices, by "X" or the name of a layer.
    step, parameters, inputs
        See `write_element`.

    Yields
    ------
    tuple
        The matrices by name, to be read and written in slices (`matrices.row_blocks`, `matrices.column_blocks`), and
        a dict that takes further facts for the stamp.

    Raises
    ------
    InputError, StoreError
        See `write_element`.
    """
    from . import _subfolder, _writable, elements, matrices

    elements.check_name(sdata, name, "tables")
    more: dict[str, Any] = {}
    if sdata.path is None:
        made: dict[str, Any] = {k: np.zeros(table.shape, dtype=d) for k, d in arrays.items()}
        yield made, more
        table.X = made.pop("X", None)
        for key, values in made.items():
            table.layers[key] = values
        stamp = spec.stamp(step, parameters=parameters, inputs=inputs, **more)
        elements.attach(sdata, table, kind="tables", name=name, stamp=stamp)
        return
    path = _writable(sdata)
    with swap.staging(path, op="write", kind="tables", name=name) as stage:
        folder = stage.folder / "arrays"
        yield matrices.new_arrays(folder, table.shape, arrays), more
        stamp = spec.stamp(step, parameters=parameters, inputs=inputs, **more)
        at = elements.write(
            table, _subfolder(stage.folder), kind="tables", name=name, stamp=stamp, arrays=folder
        )  # fmt: skip
        swap.commit_element(stage, at, kind="tables", name=name)
    with elements.quiet():
        sdata.tables[name] = elements.reopen(path, "tables", name)
