"""Data-parallel training: several processes started by ``torchrun``, each on a share of every batch.

Without such a start everything here is the identity. Weights are equal in all processes after every step, because
gradients are averaged; buffers are made equal at the end of each epoch, before a method looks at the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if _active() else 0


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _active() else 1


def barrier() -> None:
    """Wait until all processes are here."""
    if processes() > 1:
        distributed.barrier()


@contextmanager
def process_group() -> Iterator[None]:
    """The group that ``torchrun`` described, for the duration; nothing where there is none or it exists already."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _active():
        yield
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def shared(model: nn.Module) -> nn.Module:
    """``model`` for the forward pass of a training: its gradients are averaged over all processes."""
    return DistributedDataParallel(model) if processes() > 1 else model


def synchronise(model: nn.Module) -> None:
    """Give all processes the weights and buffers of the first one."""
    if processes() > 1:
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                distributed.broadcast(tensor.data, 0)


def total(values: list[float]) -> list[float]:
    """The sums of ``values`` over all processes."""
    if processes() == 1:
        return values
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor)
    return [float(v) for v in tensor]


def gathered(value: Any) -> list[Any]:
    """``value`` of every process, in the order of their ranks."""
    found: list[Any] = [value]
    if processes() > 1:
        found = [None] * processes()
        distributed.all_gather_object(found, value)
    return found


def _active() -> bool:
    return bool(distributed.is_available() and distributed.is_initialized())
