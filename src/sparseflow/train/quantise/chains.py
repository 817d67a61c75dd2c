"""What follows each layer of a network: its batch norm, and the layer that alone reads what it makes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from sparseflow.train.trainer import evaluating

aten = torch.ops.aten
LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)
SCALES = (
    *(aten.relu.default, aten.relu_.default, aten.dropout.default),
    *(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default),
    *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
    *(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default),
)
"""Operators on single channels with f(a x) = a f(x) for a > 0."""
POOLS = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
FOLDS = (aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.mean.dim)
"""Operators that do so if they leave (batch, channels · …)."""


@dataclass(frozen=True)
class Chain:
    """What comes after a layer, as long as nothing else reads it.

    Attributes
    ----------
    norm : str or None
        The batch norm that reads what the layer makes, a max pooling between them or not.
    pooled : bool
        Whether there is such a pooling: the batch norm cannot be folded then.
    reader : str or None
        The layer that reads the map, after the batch norm and operators that scale with their input.
    """

    norm: str | None = None
    pooled: bool = False
    reader: str | None = None


def chains_of(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> dict[str, Chain]:
    """The chain of each layer, in the order in which they run; layers and batch norms that run twice are in none.

    Parameters
    ----------
    model : nn.Module
        Anything that `torch.export` takes; it is left as it is.
    example_inputs : tuple of Tensor
        For one call.
    """
    with evaluating(model):
        program = torch.export.export(model, example_inputs)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}

    def module(node: Node) -> str:
        """The module whose weight an operator has; '' for none."""
        place = 3 if node.target == aten.batch_norm.default else 1
        weight = node.args[1] if node.args[1] is not None else node.args[place]
        return str(names.get(getattr(weight, "name", ""), "")).rpartition(".")[0]

    known = [n for n in program.graph.nodes if n.target in (*LAYERS, aten.batch_norm.default)]
    runs = Counter(map(module, known))
    once = {n: name for n in known if (name := module(n)) and runs[name] == 1}
    return {name: _chain(node, once) for node, name in once.items() if node.target in LAYERS}


def _chain(layer: Node, once: dict[Node, str]) -> Chain:
    norm: str | None = None
    pooled, scaled, node = False, False, layer
    if layer.target == aten.linear.default and len(_shape(layer)) != 2:
        return Chain()
    while len(node.users) == 1:
        source, (node,) = node, node.users
        target: Any = node.target
        if target in LAYERS:
            reads = node.args[0] is source and (target != aten.linear.default or len(_shape(source)) == 2)
            reader = once.get(node) if reads else None
            return Chain(norm, pooled and norm is not None, reader)
        if target == aten.batch_norm.default:
            if norm is not None or scaled or node not in once:
                break
            norm = once[node]
        elif target in SCALES or (target in FOLDS and _keeps_channels(node)):
            pooled |= target in POOLS and norm is None
            scaled |= target not in POOLS
        else:
            break
    return Chain(norm, pooled and norm is not None)


def _keeps_channels(node: Node) -> bool:
    """Whether a row is left of each sample, its channels in order."""
    before, after = _shape(node.all_input_nodes[0]), _shape(node)
    if node.target == aten.mean.dim:
        axes: Any = node.args[1]
        return {axis % len(before) for axis in axes}.isdisjoint((0, 1)) and len(after) in (2, len(before))
    return len(after) == 2 and before[0] == after[0] and after[1] % before[1] == 0


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(int(n) for n in node.meta["val"].shape)
