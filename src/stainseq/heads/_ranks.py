"""Several processes that train one model together, as torch's own launcher (torchrun) starts them."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from ..errors import DependencyError


class Ranks(NamedTuple):
    """Which of how many processes this is; one of one where there was no launcher."""

    rank: int = 0
    world: int = 1

    def total(self, values: Any) -> Any:
        """Sum a tensor over all processes, in place."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def first(self, values: Any) -> Any:
        """The first process's tensor in all of them, in place: so that decisions are taken alike."""
        if self.world > 1:
            import torch.distributed as dist

            dist.broadcast(values, 0)
        return values


def rank() -> int:
    """Number of this process, from the launcher's environment; 0 without one. Only process 0 writes and prints."""
    return int(os.environ.get("RANK", 0)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0


@contextmanager
def first_alone(device: str | None = None) -> Iterator[None]:
    """The first process does the block before the others do: what it writes is there for them."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    import torch.distributed as dist

    from ._mlp import pick_device

    ranks, _ = join(pick_device(device))
    if ranks.rank:
        dist.barrier()
    yield
    if not ranks.rank:
        dist.barrier()


def join(device: str) -> tuple[Ranks, str]:
    """Meet the other processes, and take this one's GPU.

    Parameters
    ----------
    device
        Torch device; of several GPUs each process takes its own.

    Raises
    ------
    DependencyError
        A launcher started several processes, and this torch cannot connect them.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return Ranks(), device
    import torch.distributed as dist

    cuda = device.startswith("cuda")
    if not dist.is_available():
        raise DependencyError("this torch cannot train in several processes", fix="start one, without torchrun")
    if cuda and ":" not in device:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if not dist.is_initialized():
        # The others wait while the first encodes slides: hours, where the default gives up after minutes.
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(days=7))
        atexit.register(dist.destroy_process_group)
    return Ranks(dist.get_rank(), dist.get_world_size()), device
