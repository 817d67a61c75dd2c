"""Reading the maps of a running network: what activations receive, what they give, and how dense that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.train.trainer import evaluating


@dataclass(frozen=True)
class MapUse:
    """One activation's map over some samples.

    Attributes
    ----------
    density : float
        Mean fraction of non-zeros.
    size : int
        Elements of one sample's map.
    """

    density: float
    size: int


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
) -> dict[str, MapUse]:
    """How dense each activation's map is over ``batches`` of (x, labels)."""
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
    return {name: MapUse(kept[name] / max(total[name], 1), size[name]) for name in activations}


def mean_density(uses: Mapping[str, MapUse]) -> float:
    """The density of all maps together: each counts by its elements."""
    elements = sum(use.size for use in uses.values())
    return sum(use.density * use.size for use in uses.values()) / max(elements, 1)
