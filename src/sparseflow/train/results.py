"""The layers of a pruned model, as its results list them."""

from __future__ import annotations

from math import prod

from torch import nn

from sparseflow.core.mask import Mask
from sparseflow.core.prune_result import LayerSparsity
from sparseflow.train.rules import layers_of, weight_of


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
