"""Which tensors live in a lane layout, and with which halo: decided for the whole graph before anything is lowered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparseflow.core.activations import ACTIVATIONS
from sparseflow.core.calibrated_ranges import Range
from sparseflow.core.element_type import ELEMENT_TYPES, ElementType, Quantised
from sparseflow.kernels.layouts.lane import LaneLayout, canonical
from sparseflow.kernels.template import TEMPLATES, Candidate, computed
from sparseflow.kernels.workload import Workload
from sparseflow.ops.expressions import op_name, shape_of
from sparseflow.ops.operator import Operator, operator_of
from sparseflow.passes.graph import Graph
from sparseflow.passes.map_ops import DENSE_MAP
from sparseflow.passes.ops import LayerAttrs, is_layer

Expr = Any


@dataclass
class Node:
    """An operator that works on lane layouts.

    Attributes
    ----------
    layer : LayerAttrs or None
    operator : Operator or None
        None for a layer, and for an indexed map that is changed to lanes.
    inputs : list of Var
        The tensors it reads in lanes, the residual of a layer last.
    layout : LaneLayout or None
        What it writes; None if that is row-major.
    view : str
        How the logical tensor maps to (channel, height, width): see `Operator.views`.
    needs : list of LaneLayout
        What it has to read, one for each input.
    """

    layer: LayerAttrs | None
    operator: Operator | None
    inputs: list[Expr]
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


def _node(nodes: dict[Expr, Node], var: Expr, value: Expr, lanes: int) -> Node | None:
    if is_layer(value):
        return _layer(nodes, value)
    if getattr(var.ty, "shape", None) is None or computed(var.ty.dtype) is None:
        return None
    if op_name(value) == DENSE_MAP:
        layout = canonical(*logical(shape_of(var), "nchw"), lanes, ELEMENT_TYPES[str(var.ty.dtype)])
        return Node(None, None, [], layout, "nchw", [], bool(value.attrs["positive"]))
    operator = operator_of(value)
    return None if operator is None else _operator(nodes, var, value, operator, lanes)


def _operator(nodes: dict[Expr, Node], var: Expr, value: Expr, operator: Operator, lanes: int) -> Node | None:
    """An operator all of whose operands are in lanes already, in one view."""
    operands = operator.operands(value)
    if operator.reads_anything:
        view, positive = "matrix" if shape_of(var)[0] == 1 else "tokens", [False] * len(operands)
    else:
        if any(o not in nodes or nodes[o].layout is None for o in operands):
            return None
        views = {nodes[o].view for o in operands}
        view, positive = views.pop(), [nodes[o].non_negative for o in operands]
        if views or view not in operator.views:
            return None
    shapes = [logical(shape_of(o), view) for o in operands]
    stored = [_stored(nodes, o, view) for o in operands]
    element = _common(operator, stored, [shape[0] for shape in shapes]) or ELEMENT_TYPES[str(var.ty.dtype)]
    out = canonical(*(shapes[0] if operator.reduces else logical(shape_of(var), view)), lanes, element)
    needs = operator.needs(out, shapes, lanes, all(positive))
    if isinstance(element, Quantised):  # each operand has levels of its own
        needs = [replace(need, element=own or element) for need, own in zip(needs, stored, strict=True)]
    non_negative = operator.non_negative(positive)
    return Node(None, operator, operands, None if operator.reduces else out, view, needs, non_negative)


def _stored(nodes: dict[Expr, Node], var: Expr, view: str) -> ElementType | None:
    """The type in which a tensor lies in lanes; None if it does not."""
    node = nodes.get(var)
    return node.layout.element if node is not None and node.layout is not None and node.view == view else None


def _common(
    operator: Operator, stored: Sequence[ElementType | None], channels: Sequence[int]
) -> ElementType | None:
    """The type of an operator's result, if its kernels take the one that all its operands have."""
    kinds = {type(e) if isinstance(e, Quantised) else e for e in stored}
    first = stored[0] if len(kinds) == 1 else None
    if first is None or not operator.takes(first, channels):
        return None
    if not isinstance(first, Quantised):
        return first
    found = operator.range([e.range for e in stored if isinstance(e, Quantised)])
    return None if found is None else first.covering(*found)


def _layer(nodes: dict[Expr, Node], value: Expr) -> Node | None:
    attrs = LayerAttrs.of(value)
    if attrs.maps or not _takes_lanes(attrs):
        return None
    w: Workload = attrs.workload
    view = "nchw" if w.op == "conv2d" else "matrix"
    ranges = attrs.map_ranges

    def element(of: ElementType, found: Range | None) -> ElementType:
        return of.covering(found.low, found.high) if isinstance(of, Quantised) and found is not None else of

    layout = w.output_layout
    layout = replace(layout, element=element(w.result, ranges.result if ranges else None))
    needs = [replace(w.input_layout(layout), element=element(w.maps, ranges.source if ranges else None))]
    residual = list(value.args[3].fields)[:1]
    added = replace(layout, channels=w.residual_channels or w.filters)
    added = replace(added, element=element(w.result, ranges.residual if ranges else None))
    needs += [added for _ in residual]
    for i, operand in enumerate([value.args[0], *residual]):
        have = _stored(nodes, operand, view)
        if isinstance(have, Quantised) and isinstance(needs[i].element, Quantised):
            needs[i] = replace(needs[i], element=have)
    positive = ACTIVATIONS[w.activation].non_negative
    return Node(attrs, None, [value.args[0], *residual], layout, view, needs, positive)


def _takes_lanes(attrs: LayerAttrs) -> bool:
    """Whether the chosen kernel works on lanes; before the choice, whether a dense one of that layout would do."""
    if attrs.candidate:
        return TEMPLATES[Candidate.from_json(attrs.candidate).template].layout == "lanes"
    on_lanes = (t for t in TEMPLATES.values() if (t.layout, t.format) == ("lanes", "dense"))
    return any(t.refusal(attrs.workload) is None for t in on_lanes)
