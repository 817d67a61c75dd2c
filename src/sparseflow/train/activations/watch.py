"""Reading the maps of a running network: what activations receive, what they give, and how dense that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.prune_result import MapSparsity
from sparseflow.train.activations.modules import FATReLU
from sparseflow.train.trainer import evaluating


@contextmanager
def watched(
    activations: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Calls ``see(name, input, output)`` whenever an activation has run, inside the ``with`` block."""

    def hook(name: str) -> Callable[..., None]:
        return lambda _module, inputs, output: see(name, inputs[0], output)

    handles = [module.register_forward_hook(hook(name)) for name, module in activations.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def map_densities(
    model: nn.Module, activations: Mapping[str, nn.Module], batches: Iterable[Any]
) -> dict[str, MapSparsity]:
    """How dense each activation's map is over ``batches`` of (x, labels)."""
    if not activations:
        return {}
    kept: dict[str, int] = dict.fromkeys(activations, 0)
    total: dict[str, int] = dict.fromkeys(activations, 0)
    size: dict[str, int] = dict.fromkeys(activations, 0)

    def see(name: str, _x: Tensor, y: Tensor) -> None:
        kept[name] += int(torch.count_nonzero(y))
        total[name] += y.numel()
        size[name] = y[0].numel()

    with watched(activations, see), torch.no_grad(), evaluating(model) as device:
        for x, _labels in batches:
            model(x.to(device))
    return {
        name: MapSparsity(
            name,
            kept[name] / max(total[name], 1),
            size[name],
            float(module.threshold) if isinstance(module, FATReLU) else None,
        )
        for name, module in activations.items()
    }
