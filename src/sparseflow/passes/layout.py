"""Which tensors live in a lane layout, and with which halo: decided for the whole graph before anything is lowered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from tvm import relax

from sparseflow.core.activations import ACTIVATIONS
from sparseflow.core.codec import loads
from sparseflow.core.element_type import FLOAT32
from sparseflow.kernels.lane.attention import Attention
from sparseflow.kernels.lane.operators import Pool
from sparseflow.kernels.layouts.lane import LaneLayout, canonical
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.workload import Workload
from sparseflow.ops.binary import binary
from sparseflow.ops.pool import over_map, window_of
from sparseflow.passes.activations import lane_function
from sparseflow.passes.graph import Graph, is_constant, op_name, shape_of
from sparseflow.passes.map_ops import DENSE_MAP
from sparseflow.passes.ops import ATTENTION, LayerAttrs, is_layer

Expr = Any
LANES = "direct"  # the template that takes every layer that fits lanes


@dataclass
class Node:
    """An operator that works on lane layouts.

    Attributes
    ----------
    kind : str
        ``layer``, ``pool``, ``mean``, ``binary``, ``unary``, ``concat``, ``norm``, ``attention``, or ``dense_map``: an
        indexed map that is changed to lanes.
    inputs : list of Var
        The tensors it reads in lanes, the residual of a layer last.
    detail : Any
        LayerAttrs, `Pool`, `Attention`, the element-wise function's name, or a layer norm's epsilon.
    layout : LaneLayout or None
        What it writes; None for ``mean``, which writes a row-major tensor.
    view : str
        How the logical tensor maps to (channel, height, width): ``nchw``; ``matrix``, all rows in one map; or
        ``tokens``, (batch, tokens, features) with one 1 x tokens map for each image.
    needs : list of LaneLayout
        What it has to read, one for each input.
    """

    kind: str
    inputs: list[Expr]
    detail: Any
    layout: LaneLayout | None
    view: str
    needs: list[LaneLayout] = field(default_factory=list)
    non_negative: bool = False


def decide_layouts(graph: Graph, lanes: int) -> dict[Expr, Node]:
    """The lane operators of a module, with the halo each has to write for its consumers.

    Layers without a kernel yet count as in lanes where lane kernels take them.
    """
    nodes: dict[Expr, Node] = {}
    for binding in graph.bindings:
        node = _node(nodes, binding.var, binding.value, lanes)
        if node is not None:
            nodes[binding.var] = node
    for node in nodes.values():
        for source, need in zip(node.inputs, node.needs, strict=True):
            _merge(nodes.get(source), need, node.view)
    return nodes


def _merge(producer: Node | None, need: LaneLayout, view: str) -> None:
    """Widens the producer's halo for one consumer, if the producer can write what the consumer asks for."""
    if producer is None or producer.layout is None or producer.view != view:
        return
    have = producer.layout
    if not have.same_blocks(need):
        return
    reads_outside = any(need.halo) or need.ragged
    if reads_outside and have.fill != need.fill and (any(have.halo) or need.fill == 0.0):
        return
    top, left, bottom, right = (max(a, b) for a, b in zip(have.halo, need.halo, strict=True))
    halo = (top, left, bottom, right)
    wider = replace(have, halo=halo, fill=need.fill if reads_outside else have.fill)
    if wider.can_fill_halo():
        producer.layout = wider


def logical(shape: tuple[int, ...], view: str) -> tuple[int, int, int]:
    """(channels, height, width) of a tensor."""
    if view == "nchw":
        return shape[1], shape[2], shape[3]
    return shape[-1], 1, math.prod(shape[:-1]) // images(shape, view)


def images(shape: tuple[int, ...], view: str) -> int:
    """How many maps a tensor is."""
    return 1 if view == "matrix" else shape[0]


def _map_layout(var: Expr, lanes: int) -> LaneLayout:
    """The canonical layout of an NCHW tensor."""
    _, channels, height, width = shape_of(var)
    return canonical(channels, height, width, lanes)


def _node(nodes: dict[Expr, Node], var: Expr, value: Expr, lanes: int) -> Node | None:
    if is_layer(value):
        return _layer(value)
    if not isinstance(value, relax.Call):
        return None
    shape = getattr(var.ty, "shape", None)
    if shape is None or str(getattr(var.ty, "dtype", "")) != FLOAT32.name:
        return None
    name = op_name(value)
    window = window_of(name, value)
    if window is not None:
        return _pool(nodes, var, value, window, lanes)
    if name in ("relax.mean", "relax.nn.adaptive_avg_pool2d"):
        return _mean(nodes, var, value, lanes)
    if name == "relax.concat":
        return _concat(nodes, var, value, lanes)
    if name == "relax.nn.layer_norm":
        return _norm(nodes, var, value, lanes)
    if name == ATTENTION:
        return _attention(var, value, lanes)
    if name == DENSE_MAP:
        return Node("dense_map", [], None, _map_layout(var, lanes), "nchw", [], bool(value.attrs["positive"]))
    return _elementwise(nodes, var, value, lanes)


def _layer(value: Expr) -> Node | None:
    attrs = LayerAttrs.of(value)
    if attrs.maps or not _takes_lanes(attrs):
        return None
    w: Workload = attrs.workload
    layout = w.output_layout
    residual = list(value.args[3].fields)[:1]
    added = replace(layout, channels=w.residual_channels or w.filters)
    needs = [w.input_layout(layout)] + [added for _ in residual]
    view = "nchw" if w.op == "conv2d" else "matrix"
    positive = ACTIVATIONS[w.activation].non_negative
    return Node("layer", [value.args[0], *residual], attrs, layout, view, needs, positive)


def _takes_lanes(attrs: LayerAttrs) -> bool:
    """Whether the chosen kernel works on lanes; before the choice, whether the dense one of that layout would do."""
    if attrs.candidate:
        return TEMPLATES[Candidate.from_json(attrs.candidate).template].layout == "lanes"
    return TEMPLATES[LANES].refusal(attrs.workload) is None


def _pool(nodes: dict[Expr, Node], var: Expr, value: Expr, window: Pool, lanes: int) -> Node | None:
    if value.args[0] not in nodes:
        return None
    channels, height, width = shape_of(value.args[0])[1:]
    out_height, out_width = shape_of(var)[2:]
    layout = canonical(channels, out_height, out_width, lanes)
    positive = nodes[value.args[0]].non_negative
    need = layout.read_by((channels, height, width), window.kernel_size, window.stride, window.padding)
    if window.kind == "max" and not positive:
        need = replace(need, fill=float("-inf"))
    return Node("pool", [value.args[0]], window, layout, "nchw", [need], positive)


def _mean(nodes: dict[Expr, Node], var: Expr, value: Expr, lanes: int) -> Node | None:
    source = value.args[0]
    if source not in nodes or nodes[source].view != "nchw" or len(shape_of(source)) != 4:
        return None
    if op_name(value) == "relax.mean":
        if not over_map(value):
            return None
    elif shape_of(var)[2:] != (1, 1):
        return None
    need = _map_layout(source, lanes)
    return Node("mean", [source], None, None, "nchw", [need])


def _concat(nodes: dict[Expr, Node], var: Expr, value: Expr, lanes: int) -> Node | None:
    if not isinstance(value.args[0], relax.Tuple):
        return None
    items = list(value.args[0].fields)
    if len(shape_of(var)) != 4 or int(value.attrs.axis) % 4 != 1 or not all(i in nodes for i in items):
        return None
    layouts = [_map_layout(i, lanes) for i in items]
    positive = all(nodes[i].non_negative for i in items)
    return Node("concat", items, None, _map_layout(var, lanes), "nchw", layouts, positive)


def _norm(nodes: dict[Expr, Node], var: Expr, value: Expr, lanes: int) -> Node | None:
    """A layer norm over the features of a matrix that is in lanes already."""
    source = value.args[0]
    axes = [int(a) % len(shape_of(var)) for a in value.attrs.axes]
    if source not in nodes or nodes[source].view == "nchw" or axes != [len(shape_of(var)) - 1]:
        return None
    view = nodes[source].view
    layout = canonical(*logical(shape_of(var), view), lanes)
    return Node("norm", [source], float(value.attrs.epsilon), layout, view, [layout])


def _attention(var: Expr, value: Expr, lanes: int) -> Node:
    view = "matrix" if shape_of(var)[0] == 1 else "tokens"
    operands = list(value.args[:3])
    needs = [canonical(*logical(shape_of(o), view), lanes) for o in operands]
    layout = canonical(*logical(shape_of(var), view), lanes)
    return Node("attention", operands, loads(Attention, str(value.attrs["shape"])), layout, view, needs)


def _elementwise(nodes: dict[Expr, Node], var: Expr, value: Expr, lanes: int) -> Node | None:
    """An operator that maps zeros to zeros, on tensors of one shape of which all are in lanes already."""
    unary, two = lane_function(value), binary(op_name(value))
    function = unary or (None if two is None else two.name)
    operands = list(value.args[: 1 if unary else 2])
    if function is None or any(is_constant(o) or o not in nodes for o in operands):
        return None
    views = {nodes[o].view for o in operands}
    if len(views) != 1 or any(nodes[o].layout is None or shape_of(o) != shape_of(var) for o in operands):
        return None
    view = views.pop()
    layout = canonical(*logical(shape_of(var), view), lanes)
    positive = (unary is not None and ACTIVATIONS[unary].non_negative) or (
        two is not None and two.non_negative and all(nodes[o].non_negative for o in operands)
    )
    return Node(
        "unary" if unary else "binary",
        operands,
        function,
        layout,
        view,
        [layout] * len(operands),
        positive,
    )
