"""What is known of every channel of every tensor: constant or not, read or not, and which have to be there."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from tvm import ir

from sparseflow.core.activations import ACTIVATIONS
from sparseflow.kernels.workload import Array, Workload
from sparseflow.ops.expressions import inputs_of, is_constant, op_name, shape_of
from sparseflow.ops.operator import by_channel
from sparseflow.passes.graph import Graph
from sparseflow.passes.ops import LayerAttrs, is_layer, weight_of

Expr = Any


@dataclass
class Layer:
    """A layer's weight and bias as far as they still matter.

    Attributes
    ----------
    weight : array
        OIHW or (out, in); what cannot matter is zero.
    bias : array (filters,)
        Zero where there was none.
    open : array of bool (filters,)
        Filters whose channel of the residual is still to be added.
    """

    attrs: LayerAttrs
    weight: Array
    bias: Array
    x: Expr
    residual: Expr | None
    open: Array

    @classmethod
    def of(cls, call: Expr) -> Layer:
        """The layer of a call whose weight is dense."""
        attrs, weight = LayerAttrs.of(call), weight_of(call).copy()
        bias = [b.value.numpy().copy() for b in call.args[2].fields]
        zeros = np.zeros(weight.shape[0], np.float32)
        residual = next(iter(call.args[3].fields), None)
        present = np.full(weight.shape[0], residual is not None)
        return cls(attrs, weight, bias[0] if bias else zeros, call.args[0], residual, present)

    @property
    def workload(self) -> Workload:
        """Its shapes before anything is cut."""
        return self.attrs.workload

    @property
    def free(self) -> bool:
        """Whether its residual may have other channels than its result."""
        return self.residual is not None and self.workload.op == "conv2d"

    @property
    def live(self) -> Array:
        """bool (filters,): the filters that have weights."""
        return np.asarray(self.weight.reshape(len(self.weight), -1).any(axis=1))

    def used(self) -> Array:
        """bool (channels,): the input channels that some weight reads."""
        groups, per_group = self.workload.groups, self.weight.shape[1]
        grouped = self.weight.reshape(groups, -1, per_group, prod(self.weight.shape[2:]))
        return np.asarray(grouped.any(axis=(1, 3)).reshape(-1))

    def fold(self, value: Array) -> None:
        """Input channels of constant ``value`` (NaN: not constant) go into the bias where that is exact.

        Beside the map a padded convolution reads zeros, so that its response differs there: only the constant 0 goes,
        and all other constant channels become one.
        """
        padded = any(self.workload.padding)
        if padded and self.workload.groups == 1:
            self._merge(value)
        known = value == 0.0 if padded else ~np.isnan(value)
        known &= self.used()
        if not known.any():
            return
        groups, (filters, per_group) = self.workload.groups, self.weight.shape[:2]
        for g in np.unique(np.flatnonzero(known) // per_group):
            rows = slice(g * filters // groups, (g + 1) * filters // groups)
            columns = np.flatnonzero(known[g * per_group : (g + 1) * per_group])
            part = self.weight[rows, columns].reshape(filters // groups, len(columns), -1)
            response = part.sum(axis=2, dtype=np.float64) @ value[g * per_group + columns]
            self.bias[rows] += response.astype(np.float32)
            self.weight[rows, columns] = 0.0

    def _merge(self, value: Array) -> None:
        """Reads the largest constant channel in place of every other, with their weights in proportion."""
        magnitude = np.abs(np.nan_to_num(value))
        largest = int(magnitude.argmax())
        others = (magnitude > 0.0) & self.used()
        others[largest] = False
        if others.any():
            share = (value[others] / value[largest]).astype(np.float32)
            self.weight[:, largest] += np.einsum("oihw,i->ohw", self.weight[:, others], share)
            self.weight[:, others] = 0.0

    def fold_residual(self, value: Array) -> None:
        """Channels of the residual of constant ``value`` go into the bias."""
        known = self.open & ~np.isnan(value)
        self.bias[known] += value[known].astype(np.float32)
        self.open &= ~known

    def response(self) -> Array:
        """float64 (filters,): the result's channels that are constant; NaN where they are not."""
        bias = self.bias.astype(np.float64)
        out = ACTIVATIONS[self.workload.activation].numpy(bias, self.workload.parameter)
        return np.where(self.live | self.open, np.nan, out)

    def drop(self, wanted: Array) -> None:
        """Clears the filters whose channels nobody reads."""
        self.weight[~wanted] = 0.0
        self.bias[~wanted] = 0.0
        self.open &= wanted


@dataclass(frozen=True)
class Link:
    """An operator that works on each channel by itself.

    Attributes
    ----------
    operands : tuple of (Var, array)
        For each operand the channel, int (out channels,), that each channel of the result comes from; -1 for none.
    same : bool
        Whether the result has the channels of each operand, in order.
    """

    operands: tuple[tuple[Expr, Array], ...]
    same: bool = True


@dataclass
class Channels:
    """The channels of a canonical module: facts first, then what has to be kept.

    Attributes
    ----------
    axis : dict
        Tensors whose channels are known, and the axis along which they lie.
    count : dict
        How many channels they have.
    constant : dict
        float64 (channels,): the value of a channel that is the same everywhere, else NaN.
    read : dict
        bool (channels,): whether the result depends on the channel.
    """

    graph: Graph
    layers: dict[Expr, Layer] = field(default_factory=dict)
    links: dict[Expr, Link] = field(default_factory=dict)
    axis: dict[Expr, int] = field(default_factory=dict)
    count: dict[Expr, int] = field(default_factory=dict)
    constant: dict[Expr, Array] = field(default_factory=dict)
    read: dict[Expr, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> Channels:
        """Analyses a canonical module until no more zeros follow."""
        self = cls(graph)
        for b in graph.bindings:
            self._enter(b.var, b.value)
        weights = -1
        while True:
            self._forward()
            self._backward()
            last, weights = weights, sum(int(np.count_nonzero(x.weight)) for x in self.layers.values())
            if weights == last:
                return self

    def _enter(self, var: Expr, value: Expr) -> None:
        if is_layer(value):
            layer = self.layers[var] = Layer.of(value)
            self.axis[var] = 1 if layer.workload.op == "conv2d" else len(shape_of(var)) - 1
            self.count[var] = layer.workload.filters
            return
        link, axis = self._link(var, value)
        if link is not None:
            self.links[var], self.axis[var], self.count[var] = link, axis, shape_of(var)[axis]

    def _link(self, var: Expr, value: Expr) -> tuple[Link | None, int]:
        """How an operator that is no layer treats channels, and along which axis; None if it mixes them."""
        name, operands = op_name(value), inputs_of(value)
        axes = {self.axis.get(v) for v in operands}
        if len(axes) != 1 or None in axes or getattr(var.ty, "shape", None) is None:
            return None, 0
        axis, source = self.axis[operands[0]], operands[0]
        shape, out = shape_of(source), shape_of(var)
        straight = np.arange(shape[axis])
        rule = by_channel(value, axis)
        if rule is not None:
            link = (
                self._joined(operands, out[axis])
                if rule.joins
                else Link(tuple((v, straight) for v in operands))
            )
            return link, axis
        if name == "relax.reshape" and axis == 1 and out[:1] == shape[:1] and len(out) >= 2:
            if out[1] == shape[1]:
                return Link(((source, straight),)), 1
            if len(out) == 2 and out[1] == prod(shape[1:]):
                return Link(((source, np.repeat(straight, prod(shape[2:]))),), same=False), 1
        return None, 0

    def _joined(self, operands: list[Expr], total: int) -> Link:
        found, first = [], 0
        for v in operands:
            places = np.full(total, -1)
            places[first : first + self.count[v]] = np.arange(self.count[v])
            found.append((v, places))
            first += self.count[v]
        return Link(tuple(found), same=False)

    def _forward(self) -> None:
        """Constant channels, from the inputs on; the weights that read them become bias."""
        for b in self.graph.bindings:
            if b.var in self.layers:
                layer = self.layers[b.var]
                if self.tracked(layer.x, layer):
                    layer.fold(self.constant[layer.x])
                if layer.free and self.tracked(layer.residual, layer):
                    layer.fold_residual(self.constant[layer.residual])
                self.constant[b.var] = layer.response()
            elif b.var in self.links:
                self.constant[b.var] = self._constant(b.var, b.value)

    def tracked(self, x: Expr, layer: Layer) -> bool:
        """Whether a layer's channels lie where the known channels of its operand ``x`` do."""
        return x in self.axis and self.axis[x] == (
            1 if layer.workload.op == "conv2d" else len(shape_of(x)) - 1
        )

    def _constant(self, var: Expr, value: Expr) -> Array:
        link, rule = self.links[var], by_channel(value, self.axis[var])
        known = [np.where(at >= 0, self.constant[v][at], np.nan) for v, at in link.operands]
        if rule is None:  # a reshape
            return known[0]
        if any(is_constant(a) for a in value.args):
            values, shape = iter(known), shape_of(var)
            known = [
                _per_channel(a, self.axis[var], shape) if is_constant(a) else next(values)
                for a in value.args
                if is_constant(a) or isinstance(a, ir.Var)
            ]
        return rule.constant(value, known)

    def _backward(self) -> None:
        """The channels on which the result depends, from the outputs back; the filters of all others are cleared."""
        self.read = {v: np.zeros(n, bool) for v, n in self.count.items()}

        def need(var: Expr, channels: Array | bool) -> None:
            if var in self.read:
                self.read[var] |= channels

        for v in inputs_of(self.graph.output):
            need(v, True)
        for b in reversed(self.graph.bindings):
            wanted = self.read.get(b.var)
            layer, link = self.layers.get(b.var), self.links.get(b.var)
            if layer is not None and wanted is not None:
                layer.drop(wanted)
                need(layer.x, layer.used() if self.tracked(layer.x, layer) else True)
                if layer.residual is not None:
                    need(layer.residual, layer.open if self.tracked(layer.residual, layer) else True)
            elif link is not None and wanted is not None:
                for v, at in link.operands:
                    need(v, gathered(wanted, at, self.count[v]))
            else:
                for v in inputs_of(b.value):
                    need(v, True)


def gathered(wanted: Array, at: Array, count: int) -> Array:
    """bool (count,): the channels of an operand from which some ``wanted`` channel of the result comes."""
    out = np.zeros(count, bool)
    out[at[wanted & (at >= 0)]] = True
    return out


def _per_channel(value: Expr, axis: int, shape: tuple[int, ...]) -> Array:
    """A constant operand as one number for each channel; NaN where it differs along other axes."""
    array = value.value.numpy()
    array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if array.ndim != len(shape) or any(n != 1 for i, n in enumerate(array.shape) if i != axis):
        return np.full(shape[axis], np.nan)
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (shape[axis],))
