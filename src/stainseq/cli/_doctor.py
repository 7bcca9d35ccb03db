"""The checks of `stainseq doctor`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

REQUIRED = {
    "numpy": "numpy",
    "scipy": "scipy",
    "numba": "numba",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "h5py": "h5py",
    "zarr": "zarr",
    "dask": "dask",
    "anndata": "anndata",
    "spatialdata": "spatialdata",
    "geopandas": "geopandas",
    "shapely": "shapely",
    "tifffile": "tifffile",
    "imagecodecs": "imagecodecs",
    "opencv-python-headless": "cv2",
    "scikit-learn": "sklearn",
    "torch": "torch",
    "onnxruntime": "onnxruntime",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
}
OPTIONAL = {
    "openvino": ("openvino", "openvino", "encodes faster on CPU"),
    "openslide-python": ("openslide", "openslide", "reads more slide formats"),
    "timm": ("timm", "timm", "encoders that only timm has"),
    "transformers": ("transformers", "transformers", "encoders that only transformers has"),
    "open-clip-torch": ("open_clip", "open-clip", "encoders that only open_clip has"),
    "scanpy": ("scanpy", "scanpy", "single-cell workflows"),
    "harmonypy": ("harmonypy", "harmony", "Harmony between samples in `integrate`"),
}
MIN_FREE_GB = 2.0


def checks() -> list[dict[str, Any]]:
    """All checks: name, status (ok, info, fail), found, fix."""
    rows = [_python(), *_required(), *_optional(), *_devices(), *_machine(), _cache()]
    return [*rows, *_encoders()]


def _row(name: str, status: str, found: str, fix: str = "") -> dict[str, Any]:
    return {"name": name, "status": status, "found": found, "fix": fix}


def _python() -> dict[str, Any]:
    return _row("Python", "ok", ".".join(map(str, sys.version_info[:3])))


def _lowest() -> dict[str, str]:
    """Lower bounds that the installed package states."""
    import re

    found = {}
    for line in requires("stainseq") or ():
        match = re.match(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9.]+)", line)
        if match and "extra ==" not in line:
            found[match[1].lower()] = match[2]
    return found


def _older(have: str, least: str) -> bool:
    import re

    def numbers(text: str) -> list[int]:
        return [int(n) for n in re.findall(r"\d+", text.split("+")[0])[:3]]

    return numbers(have) < numbers(least)


def _try(module: str) -> str:
    """Why a module cannot be imported; empty when it can."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError, TypeError) as e:
        return f"{type(e).__name__}: {e}".splitlines()[0]
    return ""


def _required() -> list[dict[str, Any]]:
    lowest, rows = _lowest(), []
    for package, module in REQUIRED.items():
        try:
            have = version(package)
        except PackageNotFoundError:
            rows.append(_row(package, "fail", "missing", f"pip install {package}"))
            continue
        why = _try(module)
        least = lowest.get(package.lower())
        if why:
            rows.append(_row(package, "fail", f"{have}, broken ({why})", f"pip install --force-reinstall {package}"))
        elif least and _older(have, least):
            rows.append(_row(package, "fail", f"{have}, needs {least}", f"pip install -U '{package}>={least}'"))
        else:
            rows.append(_row(package, "ok", have))
    return rows


def _optional() -> list[dict[str, Any]]:
    rows = []
    for package, (module, extra, what) in OPTIONAL.items():
        fix = f"pip install 'stainseq[{extra}]'"
        if importlib.util.find_spec(module) is None:
            rows.append(_row(package, "info", f"not installed: {what}", fix))
            continue
        why = _try(module)
        have = version(package)
        rows.append(_row(package, "info", f"{have}, broken ({why})", fix) if why else _row(package, "ok", have))
    return rows


def _devices() -> list[dict[str, Any]]:
    if importlib.util.find_spec("torch") is None or _try("torch"):
        return []
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [_row("device", "ok", f"cuda: {', '.join(names)}")]
    if torch.backends.mps.is_available():
        return [_row("device", "ok", "mps (Apple GPU)")]
    fix = (
        "" if torch.version.cuda is None else "a CUDA build of torch is installed, but no GPU is seen: check the driver"
    )
    return [_row("device", "info" if fix else "ok", "cpu", fix)]


def _machine() -> list[dict[str, Any]]:
    import psutil

    from .._settings import settings

    memory = psutil.virtual_memory()
    found = f"{settings.n_jobs} threads, {memory.total / 2**30:.0f} GiB memory ({memory.available / 2**30:.0f} free)"
    return [_row("machine", "ok", found)]


def _cache() -> dict[str, Any]:
    """The cache folder is tried by writing into it."""
    from .._settings import settings

    folder = Path(settings.cache_dir)
    probe = folder / f".doctor-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as e:
        return _row(
            "cache folder", "fail", f"{folder}: {e.strerror or e}", "set STAINSEQ_CACHE_DIR to a folder you can write"
        )
    free = shutil.disk_usage(folder).free / 2**30
    if free < MIN_FREE_GB:
        return _row("cache folder", "fail", f"{folder}: {free:.1f} GiB free", "free space, or set STAINSEQ_CACHE_DIR")
    return _row("cache folder", "ok", f"{folder}, {free:.0f} GiB free")


def _encoders() -> list[dict[str, Any]]:
    from .. import registry

    rows = registry.describe("encoders")
    default = [r for r in rows if r.get("default")]
    here = sum(bool(r["available"]) for r in rows)
    out = [_row("encoders", "ok", f"{here} of {len(rows)} can run as installed", "")]
    for row in default:
        if row["available"]:
            out.append(_row("default encoder", "ok", str(row["name"])))
        else:
            needs = row.get("needs") or ""
            text = needs if isinstance(needs, str) else ", ".join(map(str, needs))
            out.append(_row("default encoder", "fail", f"{row['name']} needs {text}", "pip install stainseq again"))
    return out
