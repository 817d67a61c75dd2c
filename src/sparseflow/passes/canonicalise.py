"""Phase 1: batch norm and constants folded into the weights; bias, residual add and activation fused into the layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparseflow.core.calibrated_ranges import LayerRanges, Range
from sparseflow.core.codec import dumps
from sparseflow.core.element_type import ELEMENT_TYPES, ElementType
from sparseflow.errors import CompileError, ElementTypeError
from sparseflow.kernels.target.base import Target
from sparseflow.kernels.template import computed
from sparseflow.kernels.workload import Array, Workload
from sparseflow.ops.activations import activation_of
from sparseflow.ops.expressions import is_constant, op_name, shape_of
from sparseflow.passes.graph import Graph, Rebuild
from sparseflow.passes.levels import read_levels
from sparseflow.passes.ops import LayerAttrs, constant, constant_name, layer_call
from sparseflow.passes.pools import PoolLast

Expr = Any


@dataclass
class _Layer:
    """A layer in the making: the weight so far, and the chain of bindings that it swallows."""

    var: Expr
    x: Expr
    weight: Array
    name: str
    workload: dict[str, Any]
    out_shape: tuple[int, ...]
    bias: Array | None = None
    residual: Expr | None = None
    activation: str = "none"
    parameter: float = 0.0

    def ranges(self, known: dict[Expr, Range]) -> str:
        """The attribute ``ranges``, of the tensors' known ranges."""
        found = LayerRanges(self.name, known.get(self.x), known.get(self.var), known.get(self.residual))
        return dumps(found) if found != LayerRanges(self.name, None, None) else ""


@tvm.transform.module_pass(opt_level=0, name="sparseflow.Canonicalise")
class Canonicalise:
    """Every convolution and linear layer with a constant weight becomes one ``sparseflow`` operator.

    Before: ``conv2d → batch_norm → add(residual) → relu``. After: ``sparseflow.conv2d(x, (w,), (b,), (residual,))``
    with batch norm in ``w`` and ``b`` (b' = (b - mean)·γ/√(var + ε) + β, w' = w·γ/√(var + ε)). Markers of levels are
    gone; what they say of a layer's maps is in its attribute ``ranges``.
    """

    def __init__(self, target: Target, threads: int = 1, weights: ElementType = Workload.weights) -> None:
        self.target, self.threads, self.weights = target, threads, weights

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class."""
        mod, known = read_levels(tvm.transform.Sequential([PoolLast()])(mod))
        graph = Graph(mod)
        layers: dict[Expr, _Layer] = {}
        swallowed: set[Expr] = set()
        for binding in graph.bindings:
            if binding.var in swallowed:
                continue
            layer = _start(graph, binding.var)
            if layer is None:
                continue
            chain = _extend(graph, layer, swallowed | layers.keys())
            swallowed.update(chain)
            layers[layer.var] = layer

        def visit(rebuild: Rebuild, var: Expr, value: Expr) -> Any:
            layer = layers.get(var)
            if layer is not None:
                return self._emit(rebuild, layer, layer.ranges(known))
            return Rebuild.DROP if var in swallowed else None

        return relax.transform.DeadCodeElimination()(Rebuild(mod).run(visit))

    def _emit(self, rebuild: Rebuild, layer: _Layer, ranges: str) -> Expr:
        values = self._rounded(layer)
        workload = Workload(
            **layer.workload,
            bias=layer.bias is not None,
            residual=layer.residual is not None,
            activation=layer.activation,
            parameter=layer.parameter,
            threads=self.threads,
            target=self.target,
            weights=self.weights,
            maps=ELEMENT_TYPES[str(layer.x.ty.dtype)],
        ).with_zeros_of(values)
        attrs = LayerAttrs(layer.name, workload, layer.out_shape, ranges=ranges)
        bias = [] if layer.bias is None else [constant(layer.bias, f"{layer.name}.bias")]
        residual = [] if layer.residual is None else [rebuild.old(layer.residual)]
        weight = constant(values, layer.name)
        return layer_call(
            attrs, rebuild.old(layer.x), relax.Tuple([weight]), relax.Tuple(bias), relax.Tuple(residual)
        )

    def _rounded(self, layer: _Layer) -> Array:
        """The weight in numbers of the type it is to be stored in."""
        try:
            return self.weights.rounded(layer.weight)
        except ElementTypeError as error:
            raise CompileError(f"layer {layer.name}: {error}") from error


def _start(graph: Graph, var: Expr) -> _Layer | None:
    call = graph.definition[var]
    if op_name(call) == "relax.nn.conv2d":
        return _conv2d(graph, var, call)
    if op_name(call) == "relax.matmul":
        return _linear(graph, var, call)
    return None


def _conv2d(graph: Graph, var: Expr, call: Expr) -> _Layer | None:
    a, weight = call.attrs, graph.value(call.args[1])
    layouts = (str(a.data_layout), str(a.kernel_layout), str(a.out_layout))
    if not is_constant(weight) or layouts != ("NCHW", "OIHW", "NCHW") or computed(weight.ty.dtype) is None:
        return None
    batch, channels, height, width = shape_of(call.args[0])
    values = weight.value.numpy()
    workload = {
        "op": "conv2d",
        "batch": batch,
        "channels": channels,
        "height": height,
        "width": width,
        "filters": values.shape[0],
        "kernel_size": values.shape[2:],
        "stride": tuple(int(v) for v in a.strides),
        "padding": tuple(int(v) for v in a.padding),
        "dilation": tuple(int(v) for v in a.dilation),
        "groups": int(a.groups),
    }
    name = _layer_name(constant_name(weight), "conv2d", var)
    return _Layer(var, call.args[0], values, name, workload, shape_of(var))


def _linear(graph: Graph, var: Expr, call: Expr) -> _Layer | None:
    x, weight = call.args
    transposed = op_name(graph.value(weight)) == "relax.permute_dims"
    if transposed:
        weight = graph.value(weight).args[0]
    weight = graph.value(weight)
    if not is_constant(weight) or len(shape_of(weight)) != 2 or computed(weight.ty.dtype) is None:
        return None
    values = weight.value.numpy() if transposed else weight.value.numpy().T
    shape = shape_of(x)
    if len(shape) < 2:
        return None
    rows = math.prod(shape[:-1])
    workload = {
        "op": "linear",
        "batch": 1,
        "channels": shape[-1],
        "height": 1,
        "width": rows,
        "filters": values.shape[0],
    }
    name = _layer_name(constant_name(weight), "linear", var)
    return _Layer(var, x, np.ascontiguousarray(values), name, workload, shape_of(var))


def _layer_name(weight_name: str, kind: str, var: Expr) -> str:
    return weight_name.removesuffix(".weight") if weight_name else f"{kind}_{var.name}"


def _extend(graph: Graph, layer: _Layer, taken: set[Expr]) -> list[Expr]:
    """Moves ``layer`` to the end of the chain of single-use operators it can swallow; returns what it swallowed."""
    chain: list[Expr] = []
    while True:
        found = activation_of(graph, layer.var)
        if found is not None:
            layer.activation, layer.parameter = found.activation.name, found.parameter
            layer.var = found.result
            return chain + found.inside
        if graph.uses[layer.var] != 1:
            return chain
        (user,) = graph.consumers.get(layer.var, [None])
        if user is None or user in taken:
            return chain
        following = _swallow(graph, layer, user, graph.definition[user])
        if following is None:
            return chain
        chain.append(layer.var)
        if following is not user:
            chain.append(user)
        layer.var = following


def _swallow(graph: Graph, layer: _Layer, user: Expr, step: Expr) -> Expr | None:
    """The variable after ``step`` if the layer can take it in, else None."""
    name = op_name(step)
    if name == "relax.nn.batch_norm" and layer.residual is None and layer.workload["op"] == "conv2d":
        return _batch_norm(graph, layer, user, step)
    if name in ("relax.add", "relax.multiply", "relax.subtract", "relax.divide") and layer.residual is None:
        return user if _arithmetic(graph, layer, name, step) else None
    return None


def _batch_norm(graph: Graph, layer: _Layer, user: Expr, step: Expr) -> Expr | None:
    parameters = [graph.value(a) for a in step.args[1:5]]
    users = graph.consumers.get(user, [])
    if (
        int(step.attrs.axis) != 1
        or bool(step.attrs.training)
        or not all(is_constant(p) for p in parameters)
        or len(users) != 1
    ):
        return None
    item = graph.definition[users[0]]
    if not isinstance(item, relax.TupleGetItem) or item.index != 0:
        return None
    gamma, beta, mean, var = (p.value.numpy().astype(np.float64) for p in parameters)
    scale = 1.0 / np.sqrt(var + float(step.attrs.epsilon))
    if step.attrs.scale:
        scale = scale * gamma
    shift = (beta if step.attrs.center else 0.0) - mean * scale
    _affine(layer, scale, shift)
    return users[0]


def _affine(layer: _Layer, scale: Any, shift: Any) -> None:
    filters = layer.weight.shape[0]
    scale = np.broadcast_to(np.asarray(scale, np.float64), (filters,))
    shape = (-1,) + (1,) * (layer.weight.ndim - 1)
    layer.weight = (layer.weight * scale.reshape(shape)).astype(np.float32)
    bias = np.zeros(filters) if layer.bias is None else layer.bias.astype(np.float64)
    layer.bias = (bias * scale + shift).astype(np.float32)


def _arithmetic(graph: Graph, layer: _Layer, name: str, step: Expr) -> bool:
    first = step.args[0] if not is_constant(step.args[0]) else None
    mine = 0 if first is not None and first == layer.var else 1
    other = graph.value(step.args[1 - mine])
    if is_constant(other):
        per_filter = _per_filter(layer, other.value.numpy())
        if per_filter is None or (name in ("relax.divide", "relax.subtract") and mine == 1):
            return False
        values = per_filter.astype(np.float64)
        scale, shift = {
            "relax.add": (1.0, values),
            "relax.subtract": (1.0, -values),
            "relax.multiply": (values, 0.0),
            "relax.divide": (1.0 / values if name == "relax.divide" else 1.0, 0.0),
        }[name]
        _affine(layer, scale, shift)
        return True
    operand = step.args[1 - mine]
    same = operand != layer.var and shape_of(operand) == layer.out_shape and name == "relax.add"
    if same and operand.ty.dtype == layer.x.ty.dtype:
        layer.residual = operand
        return True
    return False


def _per_filter(layer: _Layer, values: Array) -> Array | None:
    """A constant that is the same for all positions as one value for each filter; None if it is not."""
    filters = layer.weight.shape[0]
    rank = len(layer.out_shape)
    axis = 1 if layer.workload["op"] == "conv2d" else rank - 1
    shape = (1,) * (rank - values.ndim) + values.shape
    if len(shape) != rank or any(n != 1 for i, n in enumerate(shape) if i != axis):
        return None
    if shape[axis] not in (1, filters):
        return None
    return np.broadcast_to(values.reshape(-1), (filters,))
