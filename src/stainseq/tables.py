"""Expression tables in files: AnnData (h5ad), MuData (h5mu) and the tables of slide stores.

The one place that knows how these files are opened, which modality of several is meant, and how they are written so
that they appear under their name only when they are complete.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import keys
from ._files import write_file
from .errors import FormatError, InputError, MissingError

if TYPE_CHECKING:
    from anndata import AnnData

H5AD, H5MU = ".h5ad", ".h5mu"


def split_modality(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """``X.h5mu/rna`` as the file and its modality, as mudata writes it; other paths as they are.

    Parameters
    ----------
    path
        Of a file or a store, or of a modality inside a MuData file.
    """
    path = Path(path)
    if path.parent.suffix == H5MU and not path.parent.is_dir():
        return path.parent, path.name
    return path, None


def open_path(path: str | os.PathLike[str], *, modality: str | None = None) -> Any:
    """Open whatever holds expression.

    Parameters
    ----------
    path
        An h5ad file, an h5mu file (``X.h5mu/rna`` names a modality), or a slide store.
    modality
        Of an h5mu file. Default: its only one, or the only one with ``obsm["spatial"]``.

    Returns
    -------
    AnnData or SpatialData

    Raises
    ------
    MissingError
        No such file or modality; several modalities and none named.
    FormatError
        Not such a file, or damaged.
    StoreError
        Not a store.
    """
    path, inside = split_modality(path)
    if path.suffix not in (H5AD, H5MU):
        from . import store

        return store.open(path)
    if not path.is_file():
        raise MissingError("no such file", where=path, fix="check the path")
    if path.suffix == H5AD:
        return read_h5ad(path)
    return _read_modality(path, modality or inside)


def read_h5ad(path: Path) -> AnnData:
    """Read an h5ad file; what is damaged is one clear error."""
    import anndata

    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as e:
        raise FormatError(f"not an AnnData file, or damaged ({e})", where=path, fix="write it again") from e


def read_h5mu(path: Path) -> Any:
    """Read a whole h5mu file as MuData; what is damaged is one clear error."""
    import mudata

    try:
        with mudata.set_options(pull_on_update=False):
            return mudata.read_h5mu(path)
    except (OSError, KeyError, ValueError, AttributeError) as e:
        raise FormatError(f"not a MuData file, or damaged ({e})", where=path, fix="write it again") from e


def _read_modality(path: Path, wanted: str | None) -> AnnData:
    """One modality alone: the others, which may be large, are not read."""
    import h5py
    from anndata.io import read_elem

    try:
        with h5py.File(path, "r") as file:
            there = {str(name): keys.SPATIAL in group.get("obsm", {}) for name, group in file["mod"].items()}
            name = choose_modality(there, wanted, where=path)
            found: AnnData = read_elem(file["mod"][name])
            return found
    except MissingError:
        raise
    except (OSError, KeyError, ValueError, AttributeError) as e:
        raise FormatError(f"not a MuData file, or damaged ({e})", where=path, fix="write it again") from e


def modality(mdata: Any, *, name: str | None = None) -> AnnData:
    """One modality of a MuData in memory, chosen as `open_path` does."""
    there = {str(k): keys.SPATIAL in v.obsm for k, v in mdata.mod.items()}
    found: AnnData = mdata.mod[choose_modality(there, name, where="the MuData")]
    return found


def is_mudata(data: Any) -> bool:
    """Whether something is a MuData, told without importing mudata."""
    return type(data).__module__.split(".")[0] == "mudata" and hasattr(data, "mod")


def choose_modality(there: dict[str, bool], wanted: str | None, *, where: object) -> str:
    """Name of the modality that is meant.

    Parameters
    ----------
    there
        Names, and whether each has coordinates.
    wanted
        Name asked for.
    where
        Named in the error.

    Raises
    ------
    MissingError
        No such modality; several that it could be.
    """
    if wanted is not None:
        if wanted not in there:
            raise MissingError(f"no modality {wanted!r}", where=where, fix=f"one of: {', '.join(there) or 'none'}")
        return wanted
    placed = [name for name, has in there.items() if has]
    for names in (list(there), placed):
        if len(names) == 1:
            return names[0]
    raise MissingError(
        f"{len(there)} modalities, {len(placed)} of them with coordinates",
        where=where,
        fix=f"name one (--modality, or FILE.h5mu/NAME): {', '.join(there) or 'none there'}",
    )


def write_table(table: Any, path: str | os.PathLike[str]) -> Path:
    """Write an AnnData as h5ad, or a MuData as h5mu; the file appears only when it is complete.

    Parameters
    ----------
    table
        AnnData or MuData.
    path
        File to write, ``.h5ad`` or ``.h5mu``.

    Raises
    ------
    InputError
        The ending does not fit the object, or something in it cannot be written.
    StoreError
        No permission, full disk.
    """
    path = Path(path)
    want = H5MU if is_mudata(table) else H5AD
    if path.suffix != want:
        kind = "a MuData" if want == H5MU else "an AnnData"
        raise InputError(f"{kind} is written as {want}", where=path, fix=f"name the file {path.stem}{want}")
    from anndata._io.specs.registry import IORegistryError  # what anndata raises for a value that it has no form for

    try:
        return write_file(path, lambda staged: _write(table, staged))
    except (IORegistryError, TypeError, ValueError, NotImplementedError) as e:
        first = str(e).strip().splitlines()[0]
        raise InputError(f"something in the table cannot be written ({first})", where=path, fix="remove it") from e


def _write(table: Any, path: Path) -> None:
    if not is_mudata(table):
        table.write_h5ad(path)
        return
    import mudata

    with mudata.set_options(pull_on_update=False):  # columns stay where they are: mudata's own next default
        table.write_h5mu(path)
