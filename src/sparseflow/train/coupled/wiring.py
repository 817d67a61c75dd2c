"""Which channels of a network can only be removed together: its exported graph read channel by channel.

Every channel that a layer makes is a number; where two channels meet (residual sums, grouped and depthwise
convolutions) their numbers are united. What is left are *units*: a unit is kept or removed in all its layers at once.
Units that meet an operator which is not known here, or leave the network, stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import networkx
import numpy as np
import torch
from networkx.utils import UnionFind
from torch import Tensor, nn
from torch.fx import Node

from sparseflow.core.activations import keeping_zero
from sparseflow.core.arrays import Array
from sparseflow.train.trainer import evaluating

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


def _overloads(names: Iterable[str]) -> tuple[Any, ...]:
    """``aten.NAME.default`` and its in-place form."""
    found = [getattr(aten, n + end, None) for n in names for end in ("", "_")]
    return tuple(operator.default for operator in found if operator is not None)


KEEPS_ZERO = _overloads((
    *keeping_zero(True), "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "dropout", "clone",
    "contiguous", "detach",
))  # fmt: skip
"""Operators on single channels that make zeros of zeros."""
LOSES_ZERO = _overloads(keeping_zero(False))
"""Operators on single channels that make something else of zeros."""
SUMS = (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.maximum.default, aten.minimum.default)
PRODUCTS = (aten.mul.Tensor, aten.mul_.Tensor)
FLATTENS = (aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class Ports:
    """The units on both sides of a layer.

    Attributes
    ----------
    outputs : ndarray of int (filters,)
    inputs : ndarray of int (channels,)
    groups : int
    """

    outputs: Array
    inputs: Array
    groups: int = 1


@dataclass(frozen=True)
class Wiring:
    """Which unit every channel of every layer belongs to.

    Attributes
    ----------
    layers : dict of Ports
        Convolutions and linear layers by module name.
    norms : dict of ndarray of int
        Batch norms by module name: the unit of each channel.
    pinned : ndarray of bool (units,)
        Units that have to stay.
    """

    layers: dict[str, Ports]
    norms: dict[str, Array]
    pinned: Array

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.pinned)

    def sets(self) -> list[tuple[str, ...]]:
        """Layers that share a unit of their filters, directly or through others, in the order in which they run."""
        shared = networkx.Graph()
        for name, ports in self.layers.items():
            shared.add_edges_from((name, unit) for unit in ports.outputs.tolist())
        groups = networkx.connected_components(shared)
        order = {name: i for i, name in enumerate(self.layers)}
        found = [tuple(sorted(group & order.keys(), key=order.__getitem__)) for group in groups]
        return sorted(found, key=lambda layers: order[layers[0]])


@dataclass(frozen=True)
class _Tensor:
    """What is known of a tensor: the channel numbers along axis 1, and whether a silent channel is zero in it."""

    ids: Array
    zero: bool = True


def wiring_of(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Wiring:
    """The wiring of a model, which is left as it is.

    Parameters
    ----------
    model : nn.Module
        Anything that `torch.export` takes.
    example_inputs : tuple of Tensor
        For one call; axis 0 is the batch.

    References
    ----------
    G. Fang et al., "DepGraph: towards any structural pruning", CVPR 2023, section 3 (groups of coupled layers); here
    channel by channel, so that parts of a layer may belong to different groups.
    """
    with evaluating(model):
        program = torch.export.export(model, example_inputs)
    return _Reading(program).run()


class _Reading:
    """One walk over an exported graph."""

    def __init__(self, program: Any) -> None:
        self.program = program
        self.same = UnionFind()
        self.count = 0
        self.pins: set[int] = set()
        self.tensors: dict[Node, _Tensor] = {}
        self.layers: dict[str, tuple[Array, Array, int]] = {}
        self.norms: dict[str, Array] = {}
        signature = program.graph_signature
        self.names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}

    def run(self) -> Wiring:
        """The units after all nodes."""
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self._visit(node)
            elif node.op == "output":
                self._pin_inputs(node)
        number: dict[int, int] = {}  # of each set, in the order of its first channel
        units = np.array([number.setdefault(self.same[i], len(number)) for i in range(self.count)], np.int64)
        pinned = np.isin(np.arange(len(number)), units[sorted(self.pins)])
        layers = {n: Ports(units[o], units[i], g) for n, (o, i, g) in self.layers.items()}
        return Wiring(layers, {n: units[ids] for n, ids in self.norms.items()}, pinned)

    # ------------------------------------------------------------------ numbers
    def _new(self, count: int) -> Array:
        self.count += count
        return np.arange(self.count - count, self.count)

    def _unite(self, a: Array, b: Array) -> None:
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            self.same.union(x, y)

    def _pin(self, ids: Array) -> None:
        self.pins.update(ids.tolist())

    def _pin_inputs(self, node: Node) -> None:
        for source in node.all_input_nodes:
            if source in self.tensors:
                self._pin(self.tensors[source].ids)

    # ------------------------------------------------------------------ operators
    def _visit(self, node: Node) -> None:
        made: _Tensor | None = None
        target, x = node.target, self._operand(node, 0)
        if target in CONVOLUTIONS or (target == aten.linear.default and _rank(node) == 2):
            made = self._layer(node)
        elif x is None and target != aten.cat.default:
            made = None
        elif target == aten.batch_norm.default:
            made = self._norm(node)
        elif target in KEEPS_ZERO or (target == aten.mean.dim and _rank(node) in (2, _rank(node.args[0]))):
            made = x
        elif target in LOSES_ZERO and x is not None:
            made = _Tensor(x.ids, False)
        elif target in SUMS or target in PRODUCTS:
            made = self._binary(node, target in PRODUCTS)
        elif target == aten.cat.default:
            made = self._joined(node)
        elif target in FLATTENS:
            made = self._flattened(node)
        elif target == aten.chunk.default:
            self._chunked(node)
            return
        elif getattr(target, "__name__", "") == "getitem":
            return
        if made is None:
            self._pin_inputs(node)
        else:
            self.tensors[node] = made

    def _operand(self, node: Node, place: int) -> _Tensor | None:
        source = node.args[place] if len(node.args) > place else None
        return self.tensors.get(source) if isinstance(source, Node) else None

    def _layer(self, node: Node) -> _Tensor | None:
        weight = self.names.get(getattr(node.args[1], "name", ""))
        source = node.args[0]
        if weight is None or not isinstance(source, Node):
            return None
        name, shape = weight.removesuffix(".weight"), tuple(self.program.state_dict[weight].shape)
        groups = int(node.args[6]) if len(node.args) > 6 else 1
        x = self.tensors.get(source)
        if x is None:  # the network's own input, or what an unknown operator made
            x = _Tensor(self._new(shape[1] * groups))
            self._pin(x.ids)
        if not x.zero:
            self._pin(x.ids)
        out = self._new(shape[0])
        if name in self.layers:  # one weight used twice: its filters and channels are the same
            self._unite(self.layers[name][0], out)
            self._unite(self.layers[name][1], x.ids)
        self._tie_groups(x.ids, out, groups)
        self.layers[name] = (out, x.ids, groups)
        return _Tensor(out)

    def _tie_groups(self, inputs: Array, out: Array, groups: int) -> None:
        """Depthwise filters go with their channel; the groups of other convolutions keep the same places."""
        if groups == 1:
            return
        if groups == len(inputs):
            self._unite(np.repeat(inputs, len(out) // groups), out)
            return
        for ids in (inputs.reshape(groups, -1), out.reshape(groups, -1)):
            for row in ids[1:]:
                self._unite(ids[0], row)

    def _norm(self, node: Node) -> _Tensor | None:
        x, weight = self._operand(node, 0), self.names.get(getattr(node.args[1], "name", ""))
        if x is None or weight is None:  # without a scale its shift cannot be made zero
            return None
        self.norms[weight.removesuffix(".weight")] = x.ids
        return x

    def _binary(self, node: Node, product: bool) -> _Tensor | None:
        a = self._operand(node, 0)
        other = node.args[1]
        if a is None:
            return None
        if not isinstance(other, Node):
            return a if product else _Tensor(a.ids, False)
        b = self.tensors.get(other)
        if b is None or len(a.ids) != len(b.ids):
            return None
        self._unite(a.ids, b.ids)
        return _Tensor(a.ids, (a.zero or b.zero) if product else (a.zero and b.zero))

    def _joined(self, node: Node) -> _Tensor | None:
        parts = [self.tensors.get(p) for p in node.all_input_nodes]
        axis = int(node.args[1]) if len(node.args) > 1 else 0
        sources = node.args[0]
        whole = isinstance(sources, list | tuple) and len(sources) == len(parts)
        if axis % max(1, _rank(node)) != 1 or not whole or any(p is None for p in parts):
            return None
        known = [p for p in parts if p is not None]
        return _Tensor(np.concatenate([p.ids for p in known]), all(p.zero for p in known))

    def _flattened(self, node: Node) -> _Tensor | None:
        """(batch, channels, …) to (batch, channels · …): each channel becomes several in a row."""
        x, out = self._operand(node, 0), _shape(node)
        if x is None or len(out) < 2 or out[1] % len(x.ids) or (len(out) != 2 and out[1] != len(x.ids)):
            return None
        if len(out) == 2 and out[0] != _shape(node.args[0])[0]:
            return None
        return _Tensor(np.repeat(x.ids, out[1] // len(x.ids)), x.zero)

    def _chunked(self, node: Node) -> None:
        """Equal parts: they stay equally large, so their channels are tied place by place."""
        x, axis = self._operand(node, 0), int(node.args[2]) if len(node.args) > 2 else 0
        parts = int(node.args[1])
        if x is None:
            return
        if axis % max(1, _rank(node.args[0])) != 1 or len(x.ids) % parts:
            self._pin_inputs(node)
            return
        rows = x.ids.reshape(parts, -1)
        for row in rows[1:]:
            self._unite(rows[0], row)
        for user in node.users:
            self.tensors[user] = _Tensor(rows[int(user.args[1])], x.zero)


def _shape(value: Any) -> Sequence[int]:
    return tuple(int(n) for n in value.meta["val"].shape)


def _rank(value: Any) -> int:
    found: Callable[[], int] = value.meta["val"].dim
    return found()
