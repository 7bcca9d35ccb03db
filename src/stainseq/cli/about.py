"""Commands about this installation: list, doctor."""

from __future__ import annotations

from typing import Any, Literal

from ._output import Json, Output


def list_(kind: Literal["encoders", "heads", "readers", "domains", "svg", "writers"], /, *, json: Json = None) -> None:
    """List what is available here and what it needs.

    Parameters
    ----------
    kind
        What to list.
    """
    from .. import registry

    rows = registry.describe(kind)
    show = Output(json)
    show.table(
        ["name", "available", "default", "needs", "summary"],
        [(r["name"], r["available"], "default" if r["default"] else "", r["needs"] or "", r["summary"]) for r in rows],
    )
    show.json(rows)


def doctor(*, json: Json = None) -> None:
    """Check this installation: versions, optional parts, device, cache, and a fix for each thing missing."""
    rows = [*_packages(), _torch(), _cache()]
    show = Output(json)
    show.table(["", "what", "found", "fix"], [(r["status"], r["what"], r["found"], r["fix"]) for r in rows])
    show.json(rows)


_REQUIRED = ("spatialdata", "anndata", "zarr", "dask", "torch", "onnxruntime", "scikit-learn", "numba", "tifffile")
_OPTIONAL = {
    "openslide-python": ("openslide", "more slide formats"),
    "openvino": ("openvino", "faster encoding on Intel CPUs"),
    "timm": ("timm", "encoders outside our own networks"),
    "transformers": ("transformers", "encoders outside our own networks"),
    "open-clip-torch": ("open-clip", "image-text encoders"),
    "scanpy": ("scanpy", "further analysis of the tables"),
}


def _packages() -> list[dict[str, str]]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from .. import __version__

    rows = [
        {"status": "ok", "what": "stainseq", "found": __version__, "fix": ""},
        {"status": "ok", "what": "python", "found": platform.python_version(), "fix": ""},
    ]
    for name in (*_REQUIRED, *_OPTIONAL):
        extra, why = _OPTIONAL.get(name, ("", ""))
        try:
            rows.append({"status": "ok", "what": name, "found": version(name), "fix": ""})
        except PackageNotFoundError:
            fix = f"pip install 'stainseq[{extra}]' ({why})" if extra else f"pip install {name}"
            rows.append({"status": "optional" if extra else "missing", "what": name, "found": "-", "fix": fix})
    return rows


def _torch() -> dict[str, str]:
    import torch

    if torch.cuda.is_available():
        return {"status": "ok", "what": "device", "found": torch.cuda.get_device_name(0), "fix": ""}
    if torch.backends.mps.is_available():
        return {"status": "ok", "what": "device", "found": "mps", "fix": ""}
    return {"status": "ok", "what": "device", "found": f"cpu, {torch.get_num_threads()} threads", "fix": ""}


def _cache() -> dict[str, Any]:
    from .._settings import settings

    row = {"status": "ok", "what": "cache", "found": str(settings.cache_dir), "fix": ""}
    try:
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        probe = settings.cache_dir / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as e:
        row |= {"status": "missing", "found": f"{settings.cache_dir}: {e.strerror}", "fix": "set STAINSEQ_CACHE_DIR"}
    return row
