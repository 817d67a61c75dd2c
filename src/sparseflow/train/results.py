"""The layers and the feature maps of a pruned model, as its results list them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from torch import nn

from sparseflow.core.mask import Mask
from sparseflow.core.prune_result import LayerSparsity, MapSparsity
from sparseflow.train.activations import FATReLU, map_densities
from sparseflow.train.rules import layers_of, weight_of


def map_table(
    model: nn.Module, activations: Mapping[str, nn.Module], batches: Iterable[Any]
) -> tuple[MapSparsity, ...]:
    """The maps of ``activations`` over ``batches`` of (x, labels)."""
    if not activations:
        return ()
    found = map_densities(model, activations, batches)
    return tuple(
        MapSparsity(
            name,
            found[name].density,
            found[name].size,
            float(m.threshold) if isinstance(m, FATReLU) else None,
        )
        for name, m in activations.items()
    )


def layer_table(model: nn.Module, masks: dict[str, Mask]) -> tuple[LayerSparsity, ...]:
    """Every layer with weights; those without a mask are dense."""
    rows = []
    for name, module in layers_of(model).items():
        shape = tuple(weight_of(model, name).shape)
        mask = masks.get(name)
        kept = prod(shape) if mask is None else int(mask.keep.sum())
        kind = "linear" if isinstance(module, nn.Linear) else "conv"
        rows.append(LayerSparsity(name, kind, shape, "dense" if mask is None else str(mask.structure), kept))
    return tuple(rows)
