"""Which versions run here."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "stainseq",
    "numpy",
    "scipy",
    "pandas",
    "anndata",
    "spatialdata",
    "zarr",
    "dask",
    "torch",
    "onnxruntime",
    "scikit-learn",
    "matplotlib",
)


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of packages; those that are not installed are left out. Nothing is imported.

    Parameters
    ----------
    packages
        Distribution names.
    """
    found = {"Python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
