"""Phase 2: zeros follow the graph, forward and backward.

A filter without weights makes a channel of zeros, so whoever reads that channel needs no weights for it; a channel that
nobody reads needs no filter. Both are written as zeros into the neighbours' weights: the index phase then leaves them
out of storage and work. Branches of a residual add keep their own channels, since nothing is cut from any tensor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparseflow.kernels.workload import Array, Workload
from sparseflow.passes.graph import Graph, Rebuild, inputs_of, op_name, shape_of
from sparseflow.passes.ops import LayerAttrs, constant, is_layer, layer_call, weight_of

Expr = Any
CHANNELWISE = (
    "relax.nn.max_pool2d",
    "relax.nn.avg_pool2d",
    "relax.nn.relu",
    "relax.nn.silu",
    "relax.nn.gelu",
)
ZERO_AT_ZERO = ("none", "relu", "relu6", "silu", "gelu", "hardswish")


@dataclass
class _Weights:
    """A layer's weight and bias, as far as they are still needed."""

    attrs: LayerAttrs
    weight: Array
    bias: Array | None

    @property
    def workload(self) -> Workload:
        return self.attrs.workload

    def columns(self, kept: Array) -> Array:
        """``kept`` input channels (C,) as a mask that broadcasts against the OIHW or (out, in) weight."""
        groups = self.workload.groups
        filters = self.weight.shape[0]
        per_filter = np.repeat(kept.reshape(groups, -1), filters // groups, axis=0)
        return per_filter.reshape(per_filter.shape + (1,) * (self.weight.ndim - 2))

    def reads(self) -> Array:
        """Input channels (C,) that some weight reads."""
        groups = self.workload.groups
        used = (self.weight != 0).reshape(groups, self.weight.shape[0] // groups, self.weight.shape[1], -1)
        return np.asarray(used.any(axis=(1, 3)).reshape(-1))


@tvm.transform.module_pass(opt_level=0, name="sparseflow.Propagate")
class Propagate:
    """Zeroes the weights that only meet zeros and those whose results nobody reads, until nothing changes.

    The module's attribute ``sparseflow.removed`` tells how many each layer lost: `removed_weights` reads it.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class."""
        graph = Graph(mod)
        layers = {b.var: _read(b.value) for b in graph.bindings if is_layer(b.value)}
        before = now = _counts(layers)
        while True:
            _forward(graph, layers)
            _backward(graph, layers)
            last, now = now, _counts(layers)
            if now == last:
                break
        lost = {var: before[var] - now[var] for var in layers}
        removed = {layers[var].attrs.name: int(n) for var, n in lost.items() if n}

        def visit(rebuild: Rebuild, var: Expr, value: Expr) -> Any:
            return _emit(rebuild, layers[var], value) if var in layers and lost[var] else None

        if not removed:
            return mod
        return Rebuild(mod).run(visit).with_attr("sparseflow.removed", json.dumps(removed))


def _counts(layers: dict[Expr, _Weights]) -> dict[Expr, int]:
    return {var: int(np.count_nonzero(layer.weight)) for var, layer in layers.items()}


def removed_weights(mod: tvm.IRModule) -> dict[str, int]:
    """What `Propagate` took from each layer of a module that it has gone over."""
    text = (mod.attrs or {}).get("sparseflow.removed")
    return dict(json.loads(str(text))) if text else {}


def _read(call: Expr) -> _Weights:
    bias = [b.value.numpy().copy() for b in call.args[2].fields]
    return _Weights(LayerAttrs.of(call), weight_of(call).copy(), bias[0] if bias else None)


def _emit(rebuild: Rebuild, layer: _Weights, value: Expr) -> Expr:
    name = layer.attrs.name
    attrs = layer.attrs.with_(workload=layer.workload.with_zeros_of(layer.weight))
    bias = [] if layer.bias is None else [constant(layer.bias, f"{name}.bias")]
    weight = relax.Tuple([constant(layer.weight, name)])
    return layer_call(
        attrs, rebuild.old(value.args[0]), weight, relax.Tuple(bias), rebuild.old(value.args[3])
    )


def _forward(graph: Graph, layers: dict[Expr, _Weights]) -> None:
    """Finds the channels that are zero everywhere, and zeroes the weights that read them."""
    zero: dict[Expr, Array] = {}
    for b in graph.bindings:
        if b.var in layers:
            layer = layers[b.var]
            source = zero.get(b.value.args[0])
            if source is not None:
                layer.weight *= ~layer.columns(source)
            zero[b.var] = _silent(layer, [zero.get(r) for r in b.value.args[3].fields])
            continue
        found = _through(b.value, zero)
        if found is not None:
            zero[b.var] = found


def _silent(layer: _Weights, residual: list[Array | None]) -> Array:
    """Output channels of a layer that are zero at every position."""
    dead = ~(layer.weight != 0).reshape(layer.weight.shape[0], -1).any(axis=1)
    if layer.bias is not None:
        clipped = layer.workload.activation in ("relu", "relu6")
        dead &= layer.bias <= 0 if clipped else layer.bias == 0
    if layer.workload.activation not in ZERO_AT_ZERO:
        return np.zeros_like(dead)
    for other in residual:
        dead = np.zeros_like(dead) if other is None else dead & other
    return np.asarray(dead)


def _through(value: Expr, zero: dict[Expr, Array]) -> Array | None:
    """The zero channels after an operator that is no layer; None if it is not known."""
    name = op_name(value)
    operands = [zero.get(v) for v in inputs_of(value)]
    if not operands or any(o is None for o in operands):
        return None
    known = [o for o in operands if o is not None]
    if name in CHANNELWISE or (name == "relax.mean" and _spatial_mean(value)):
        return known[0]
    if name == "relax.add" and len(known) == 2 and known[0].shape == known[1].shape:
        return np.asarray(known[0] & known[1])
    if name == "relax.reshape" and _flattens(value):
        return np.repeat(known[0], int(np.prod(shape_of(value.args[0])[2:])))
    return None


def _spatial_mean(value: Expr) -> bool:
    rank = len(shape_of(value.args[0]))
    return rank == 4 and sorted(int(a) % 4 for a in value.attrs.axis or []) == [2, 3]


def _flattens(value: Expr) -> bool:
    shape, out = shape_of(value.args[0]), shape_of(value)
    return len(shape) == 4 and out == (shape[0], int(np.prod(shape[1:])))


def _backward(graph: Graph, layers: dict[Expr, _Weights]) -> None:
    """Finds the channels that nobody reads, and zeroes the filters that make them."""
    read: dict[Expr, Array] = {}

    def need(var: Expr, channels: Array | None) -> None:
        """``None`` stands for all channels."""
        if channels is None:
            read[var] = np.ones(1, bool)
        elif var not in read:
            read[var] = channels.copy()
        elif read[var].shape == channels.shape:
            read[var] |= channels
        else:
            read[var] = np.ones(1, bool)

    for var in inputs_of(graph.output):
        need(var, None)
    for b in reversed(graph.bindings):
        wanted = read.get(b.var, np.zeros(1, bool))
        everything = wanted.size == 1 and bool(wanted.all())
        if b.var in layers:
            _drop_unread(layers[b.var], None if everything else wanted)
            need(b.value.args[0], layers[b.var].reads())
            for r in b.value.args[3].fields:
                need(r, None if everything else wanted)
            continue
        passes = op_name(b.value) in CHANNELWISE or op_name(b.value) == "relax.add"
        if op_name(b.value) == "relax.mean" and _spatial_mean(b.value):
            passes = True
        for v in inputs_of(b.value):
            if passes and not everything and wanted.size > 1 and shape_of(v)[:2] == shape_of(b.var)[:2]:
                need(v, wanted)
            elif (
                op_name(b.value) == "relax.reshape"
                and not everything
                and wanted.size > 1
                and _flattens(b.value)
            ):
                need(v, np.asarray(wanted.reshape(shape_of(v)[1], -1).any(axis=1)))
            else:
                need(v, None)


def _drop_unread(layer: _Weights, wanted: Array | None) -> None:
    if wanted is None or wanted.shape != (layer.weight.shape[0],):
        return
    layer.weight[~wanted] = 0
    if layer.bias is not None:
        layer.bias[~wanted] = 0
