"""Files of the Hugging Face hub, fetched only when an encoder that lives there is asked for by name."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from ..errors import AccessError, DependencyError
from .description import EncoderSpec

ENDPOINT = "https://huggingface.co"


def candidates(spec: EncoderSpec) -> list[str]:
    """File names to try, in order; a repository may hold either form of the same weights."""
    return [name.strip() for name in spec.file_name.split(",") if name.strip()]


def download(spec: EncoderSpec) -> Path:
    """Path of the weights in the hub cache; fetched if they are not there yet.

    Parameters
    ----------
    spec
        With hub_id, revision and file_name (several, separated by commas, are tried in order).

    Raises
    ------
    DependencyError
        huggingface_hub is not installed.
    AccessError
        The repository is gated or absent, or the hub cannot be reached; one line that says what to do.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as e:
        raise DependencyError(
            "huggingface_hub is not installed",
            where=f"encoder {spec.name}",
            fix=f"pip install huggingface_hub, or get the file from {spec.page} and give --weights FILE",
        ) from e
    names = candidates(spec)
    with translated(spec), _quiet():
        for name in names:
            try:
                return Path(hf_hub_download(spec.hub_id, name, revision=spec.revision or None, local_files_only=True))
            except EntryNotFoundError:
                continue
        _require_network(spec)
        return _fetch(spec, names, hf_hub_download)


def _fetch(spec: EncoderSpec, names: list[str], fetch: Callable[..., Any]) -> Path:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:
        try:
            return Path(fetch(spec.hub_id, name, revision=spec.revision or None))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            continue
    raise AccessError(
        f"{spec.hub_id} holds no file {' or '.join(names)}",
        where=f"encoder {spec.name}",
        fix=f"look at {spec.page} and give the weights with --weights FILE",
    )


def _require_network(spec: EncoderSpec) -> None:
    """Refuse at once what the hub client would retry for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise _unreachable(spec, "HF_HUB_OFFLINE is set and the weights are not in the hub cache")
    host = urlsplit(os.environ.get("HF_ENDPOINT", ENDPOINT)).hostname or ""
    if not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError as e:
            raise _unreachable(spec, f"no network ({host} cannot be found)") from e


def _unreachable(spec: EncoderSpec, what: str) -> AccessError:
    gated = f"request access at {spec.page}, then " if spec.gated else ""
    return AccessError(
        what,
        where=f"encoder {spec.name}",
        fix=f"{gated}get {candidates(spec)[0] if spec.file_name else 'the weights'} from {spec.page} on a machine with "
        "network and give --weights FILE",
    )


@contextmanager
def translated(spec: EncoderSpec) -> Iterator[None]:
    """Turn what hub clients raise into one `AccessError`."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    where = f"encoder {spec.name}"
    ask = (f"request access at {spec.page}, then log in with 'hf auth login' or set HF_TOKEN, "
           "or give the downloaded file with --weights FILE")  # fmt: skip
    try:
        yield
    except GatedRepoError as e:
        raise AccessError(f"{spec.hub_id} is gated and this account has no access", where=where, fix=ask) from e
    except RepositoryNotFoundError as e:
        # The hub answers the same for a private, a gated and an absent repository when nobody is logged in.
        raise AccessError(f"{spec.hub_id} is not there or needs a login", where=where, fix=ask) from e
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError, TimeoutError) as e:
        first = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise _unreachable(spec, f"the hub cannot be reached ({first[:120]})") from e


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the hub client's log lines off stderr: the error that follows says it all."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
