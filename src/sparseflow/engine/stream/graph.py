"""What of a network a stream can recompute in parts, and the rest, which runs whole when anything before it changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from sparseflow.core.element_type import FLOAT32
from sparseflow.errors import CompileError
from sparseflow.ops.expressions import inputs_of, is_constant, op_name, shape_of
from sparseflow.ops.operator import Operator, operator_of
from sparseflow.passes.graph import Graph, Rebuild
from sparseflow.passes.ops import CONV2D, LINEAR, LayerAttrs, is_layer

Expr = Any


@dataclass(frozen=True)
class MapNode:
    """An operator from maps to a map.

    Attributes
    ----------
    name : str
        For the reader.
    var : Var
        Its result.
    inputs : tuple of Var
        The maps it reads; the residual of a layer last.
    shape : (int, int, int)
        Channels, height and width of the result.
    layer : LayerAttrs or None
        Of a convolution, or of a linear layer, which reads a whole map.
    operator : Operator or None
        For what is no layer.
    call : Call
        The operator in the IR.
    """

    name: str
    var: Expr
    inputs: tuple[Expr, ...]
    shape: tuple[int, int, int]
    layer: LayerAttrs | None
    operator: Operator | None
    call: Expr

    @property
    def tiled(self) -> LayerAttrs | None:
        """The layer, if it is one of which tiles are recomputed: a convolution."""
        return self.layer if op_name(self.call) == CONV2D else None


@dataclass(frozen=True)
class Split:
    """A network in two: maps that are recomputed in parts, and the rest as a module of its own.

    Attributes
    ----------
    source : Var
        The frame.
    nodes : tuple of MapNode
    rest : IRModule
        Takes the maps of ``boundary`` as (1, C, H, W) tensors and returns the network's outputs.
    boundary : tuple of Var
    """

    source: Expr
    nodes: tuple[MapNode, ...]
    rest: tvm.IRModule
    boundary: tuple[Expr, ...]


def split(mod: tvm.IRModule) -> Split:
    """Cuts an indexed module.

    Raises
    ------
    CompileError
        If its input is not one batch-1 map, or a convolution stands behind an operator that needs whole maps.
    """
    graph = Graph(mod)
    source = _source(graph)
    maps: dict[Expr, tuple[int, int, int]] = {source: _map_shape(source)}
    nodes: list[MapNode] = []
    whole: dict[Expr, str] = {}
    rest = []
    for binding in graph.bindings:
        node = _node(graph, binding.var, binding.value, maps)
        if node is not None:
            maps[binding.var] = node.shape
            nodes.append(node)
            continue
        reason = next((whole[v] for v in inputs_of(binding.value) if whole.get(v)), "")
        if is_layer(binding.value) and binding.value.op.name == CONV2D:
            name = LayerAttrs.of(binding.value).name
            raise CompileError(
                f"{name}: stands behind {reason or 'an operator'}, which a stream runs whole; layers, pooling, "
                "element-wise operators and concat of maps are run in parts"
            )
        whole[binding.var] = reason or op_name(binding.value)
        rest.append(binding)
    if not any(node.tiled for node in nodes):
        first = next((name for name in whole.values() if name), "the input")
        raise CompileError(
            f"no convolution to recompute in parts: {first} comes first, and a stream runs it whole"
        )
    rest = _needed(graph, rest)
    read = [v for b in rest for v in inputs_of(b.value)] + inputs_of(graph.output)
    boundary = tuple(dict.fromkeys(v for v in read if v in maps))
    used = _used(nodes, boundary)
    return Split(source, used, _module(mod, rest, boundary), boundary)


def _source(graph: Graph) -> Expr:
    params = list(graph.function.params)
    if len(params) != 1:
        raise CompileError(f"{len(params)} inputs: a stream has one, a (1, C, H, W) frame")
    shape, dtype = shape_of(params[0]), str(params[0].ty.dtype)
    if len(shape) != 4 or shape[0] != 1 or dtype != FLOAT32.name:
        raise CompileError(f"input {dtype}{list(shape)}: a stream takes float32 frames (1, C, H, W)")
    return params[0]


def _map_shape(var: Expr) -> tuple[int, int, int]:
    _, channels, height, width = shape_of(var)
    return channels, height, width


def _needed(graph: Graph, bindings: list[Any]) -> list[Any]:
    """The bindings on which the outputs depend."""
    wanted, kept = set(inputs_of(graph.output)), []
    for binding in reversed(bindings):
        if binding.var in wanted:
            wanted.update(inputs_of(binding.value))
            kept.append(binding)
    return kept[::-1]


def _used(nodes: list[MapNode], boundary: tuple[Expr, ...]) -> tuple[MapNode, ...]:
    """The nodes on which the boundary depends."""
    wanted, kept = set(boundary), []
    for node in reversed(nodes):
        if node.var in wanted:
            wanted.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))


def _node(graph: Graph, var: Expr, value: Expr, maps: dict[Expr, tuple[int, int, int]]) -> MapNode | None:
    if op_name(value) == LINEAR:
        return _linear(graph, var, value, maps)
    if len(getattr(getattr(var.ty, "shape", None), "values", ())) != 4:
        return None
    layer, operator = LayerAttrs.of(value) if is_layer(value) else None, operator_of(value)
    if layer is not None:
        name, inputs = layer.name, [value.args[0], *list(value.args[3].fields)[:1]]
    elif operator is not None and operator.in_streams():
        name, inputs = operator.name, operator.operands(value)
    else:
        return None
    if any(is_constant(x) or x not in maps for x in inputs):
        return None
    return MapNode(name, var, tuple(inputs), _map_shape(var), layer, operator, value)


def _linear(graph: Graph, var: Expr, value: Expr, maps: dict[Expr, tuple[int, int, int]]) -> MapNode | None:
    """A dense linear layer on the one row that a flattened map is."""
    attrs = LayerAttrs.of(value)
    workload, flat = attrs.workload, graph.value(graph.resolve(value.args[0]))
    if op_name(flat) != "relax.reshape" or flat.args[0] not in maps:
        return None
    simple = attrs.format == "dense" and workload.width == 1 and not value.args[3].fields
    if not simple or shape_of(var) != (1, workload.filters):
        return None
    return MapNode(attrs.name, var, (flat.args[0],), (workload.filters, 1, 1), attrs, None, value)


def _module(mod: tvm.IRModule, bindings: list[Any], boundary: tuple[Expr, ...]) -> tvm.IRModule:
    """``bindings`` as a module whose parameters are the maps that they read."""
    rebuild = Rebuild(mod)
    params = [relax.Var(f"map{i}", relax.TensorType(shape_of(v), v.ty.dtype)) for i, v in enumerate(boundary)]
    rebuild.env = dict(zip(boundary, params, strict=True))
    builder = rebuild.builder
    with builder.function("main", params):
        with builder.dataflow():
            for binding in bindings:
                rebuild.env[binding.var] = rebuild.emit(rebuild.old(binding.value))
            out = builder.emit_output(rebuild.old(rebuild.graph.output))
        builder.emit_func_output(out)
    return builder.finalize()
