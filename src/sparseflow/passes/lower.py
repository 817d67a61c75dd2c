"""Phase 5: layers become calls of generated kernels with packed constants.

Layouts change only where neighbours disagree.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from sparseflow.core.element_type import FLOAT32, UINT8, ElementType, Quantised
from sparseflow.kernels.lane import conversions as relayout
from sparseflow.kernels.lane.conversions import Strides
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.rescale import rescaling
from sparseflow.kernels.target.base import Target
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.workload import Layouts
from sparseflow.ops.expressions import inputs_of, op_name, shape_of
from sparseflow.ops.operator import Operator, Setting
from sparseflow.passes.graph import Rebuild
from sparseflow.passes.layout import Node, decide_layouts, images, logical
from sparseflow.passes.lower_maps import MapLowering
from sparseflow.passes.ops import LayerAttrs, constant, is_layer
from sparseflow.passes.weights import Weights

Expr = Any
OPAQUE = 8  # TVM's OpPatternKind: FuseOps leaves the function alone


@tvm.transform.module_pass(opt_level=0, name="sparseflow.Lower")
class Lower:
    """Replaces ``sparseflow`` operators, and what can stay in lanes between them, by calls of TIR kernels."""

    def __init__(self, target: Target, threads: int = 1, weights: Weights | None = None) -> None:
        self.target, self.threads, self.weights = target, threads, weights or Weights()

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class."""
        return _Lowering(mod, self.threads, self.target, self.weights).run()


class _Lowering:
    """One run: the layouts, the kernels built so far, and both forms of every tensor."""

    def __init__(self, mod: tvm.IRModule, threads: int, target: Target, weights: Weights) -> None:
        self.rebuild, self.weights = Rebuild(mod), weights
        self.nodes = decide_layouts(self.rebuild.graph, target.vectors.lanes)
        self.threads, self.vectors = threads, target.vectors
        self.lanes: dict[Expr, Expr] = {}  # old variable → its lane tensor
        self.changed: dict[tuple[Expr, LaneLayout, tuple[int, int]], Expr] = {}
        self.kernels: dict[str, Any] = {}
        self.attrs = mod.attrs
        self.maps = MapLowering(self)

    def run(self) -> tvm.IRModule:
        """The lowered module."""
        mod = self.rebuild.run(self._visit)
        return relax.transform.DeadCodeElimination()(mod)

    def _visit(self, _rebuild: Rebuild, var: Expr, value: Expr) -> Any:
        if self.maps.takes(value):
            return self.maps.lower(var, value)
        node = self.nodes.get(var)
        if node is not None:
            return self._lane_node(var, value, node)
        for used in self._lane_inputs(value):
            self.rebuild.env[used] = self._plain(used)
        return self._rows_layer(value) if is_layer(value) else None

    def _lane_inputs(self, value: Expr) -> list[Expr]:
        return [v for v in inputs_of(value) if v in self.lanes and v not in self.rebuild.env]

    def _lane_node(self, var: Expr, value: Expr, node: Node) -> Any:
        step = self._step(node)
        if step != (1, 1):
            node = _stepped(node)
        inputs = [self._in_lanes(node.inputs[0], node.needs[0], node.view, step)]
        inputs += [
            self._in_lanes(x, need, node.view)
            for x, need in zip(node.inputs[1:], node.needs[1:], strict=True)
        ]
        tensors, layouts = [t for t, _ in inputs], [layout for _, layout in inputs]
        batch, out = images(shape_of(node.inputs[0]), node.view), node.layout
        if out is None:
            kernel, small = self._operator(value, node.operator, batch, layouts, layouts[0])
            result = self._call(kernel, tensors + small, (batch, layouts[0].channels), FLOAT32.name)
            return self.reshaped(result, shape_of(var))
        if node.layer is not None:
            kernel, constants = self._layer(value, node.layer, layouts, out)
            tensors = [tensors[0], *constants, *tensors[1:]]
        else:
            kernel, small = self._operator(value, node.operator, batch, layouts, out)
            tensors += small
        self.lanes[var] = self._call(kernel, tensors, (batch, out.size), out.element.slot)
        if var in self.rebuild.graph.uses and self._read_outside(var):
            self.rebuild.env[var] = self._plain(var)
        return Rebuild.DROP

    def _read_outside(self, var: Expr) -> bool:
        return var in inputs_of(self.rebuild.graph.output)

    def _layer(
        self, value: Expr, attrs: LayerAttrs, inputs: list[LaneLayout], out: LaneLayout
    ) -> tuple[Any, list[Expr]]:
        candidate = Candidate.from_json(attrs.candidate)
        template, workload = TEMPLATES[candidate.template], attrs.workload
        residual = inputs[1] if len(inputs) > 1 else None
        layouts = Layouts(_read(inputs[0]), _written(out), _read(residual) if residual is not None else None)
        key = repr((workload.without_densities(), candidate.to_json(), layouts))
        kernel = self.kernel(
            f"{workload.op}_{template.name}", key, lambda n: template.build(workload, candidate, layouts, n)
        )
        packed = self.weights.of(value).packed(template, workload, candidate, layouts)
        constants = [constant(a, f"{attrs.name}.{k}") for k, a in packed.items()]
        added = list(value.args[2].fields)
        if workload.quantised:
            elements = inputs[0].element, out.element, residual.element if residual is not None else None
            added = self._rescaling(value, attrs, elements)
        picks = list(value.args[3].fields[1:])
        if picks and workload.padded > workload.filters:
            spare = (0, workload.padded - workload.filters)
            picks = [constant(np.pad(p.value.numpy(), spare, constant_values=-1), attrs.name) for p in picks]
        return kernel, [*constants, *added, *picks]

    def _operator(
        self, value: Expr, operator: Operator | None, batch: int, inputs: list[LaneLayout], out: LaneLayout
    ) -> tuple[Any, list[Expr]]:
        """The kernel of an operator, and what it reads beside the maps."""
        if operator is None:
            raise ValueError(f"{op_name(value)}: a map with an index has kernels of its own")
        where = Setting(batch, self.threads, self.vectors)
        make = operator.on_lanes(inputs, out, where)
        small = [self.row_major(t, (math.prod(shape_of(t)),)) for t in operator.tensors(value)]
        constants = [constant(a) for a in operator.lane_constants(inputs, out)]
        return self.kernel(operator.name, repr(make), make), small + constants

    def row_major(self, var: Expr, shape: tuple[int, ...]) -> Expr:
        """A small operand as the row-major tensor it is or is made of."""
        if var in self.lanes and var not in self.rebuild.env:
            self.rebuild.env[var] = self._plain(var)
        return self.reshaped(self.rebuild.old(var), shape)

    def _rows_layer(self, value: Expr) -> Expr:
        attrs = LayerAttrs.of(value)
        workload, candidate = attrs.workload, Candidate.from_json(attrs.candidate)
        template = TEMPLATES[candidate.template]
        key = repr((workload.without_densities(), candidate.to_json()))
        kernel = self.kernel(
            f"{workload.op}_{template.name}", key, lambda n: template.build(workload, candidate, Layouts(), n)
        )
        packed = self.weights.of(value).packed(template, workload, candidate, Layouts())
        x = self.reshaped(self.rebuild.old(value.args[0]), (workload.width, workload.channels))
        residual = [
            self.reshaped(self.rebuild.old(r), (workload.width, workload.filters))
            for r in value.args[3].fields
        ]
        constants = [constant(a, f"{attrs.name}.{k}") for k, a in packed.items()]
        added = list(value.args[2].fields)
        ranges = attrs.map_ranges
        if workload.quantised and ranges is not None and ranges.source is not None:
            source = UINT8.covering(ranges.source.low, ranges.source.high)
            added = self._rescaling(value, attrs, (source, FLOAT32, FLOAT32 if residual else None))
        tensors = [x, *constants, *added, *residual]
        result = self._call(kernel, tensors, (workload.width, workload.filters), FLOAT32.name)
        return self.reshaped(result, attrs.out_shape)

    def _rescaling(
        self, value: Expr, attrs: LayerAttrs, elements: tuple[ElementType, ElementType, ElementType | None]
    ) -> list[Expr]:
        """What a layer on levels adds to its sums and multiplies them with, for source, result and residual."""
        bias, step = (field.value.numpy() for field in value.args[2].fields)
        levels = self.weights.of(value).dense
        scales = rescaling(attrs.workload, levels, step, bias, *elements)  # type: ignore[arg-type]
        return [constant(a, f"{attrs.name}.{k}") for k, a in scales.items()]

    def _step(self, node: Node) -> tuple[int, int]:
        """The stride of a 1x1 layer whose input has to change its layout, so that it may be left out on the way."""
        if node.layer is None:
            return (1, 1)
        workload = node.layer.workload
        if workload.kernel_size != (1, 1) or any(workload.padding):
            return (1, 1)
        x = node.inputs[0]
        if x not in self.lanes or self._ready(x, node.needs[0], node.view) is not None:
            return (1, 1)
        return workload.stride

    def _ready(self, var: Expr, need: LaneLayout, view: str) -> LaneLayout | None:
        """The layout in which ``var`` lies in lanes, if that serves ``need``."""
        node = self.nodes.get(var)
        if node is None or node.view != view or node.layout is None or var not in self.lanes:
            return None
        serves = node.layout.serves(need) or (
            node.non_negative and node.layout.serves(replace(need, fill=0.0))
        )
        return node.layout if serves else None

    def _in_lanes(
        self, var: Expr, need: LaneLayout, view: str, step: tuple[int, int] = (1, 1)
    ) -> tuple[Expr, LaneLayout]:
        """``var`` in a layout that serves ``need``: as its producer left it, or converted (once)."""
        ready = self._ready(var, need, view)
        if ready is not None:
            return self.lanes[var], ready
        node = self.nodes.get(var)
        source: Strides | LaneLayout
        have = node.layout if node is not None and node.view == view else None
        element = need.element
        if have is not None and var in self.lanes:
            source = replace(have, element=element)
            if (var, source, (1, 1)) not in self.changed:
                self.changed[var, source, (1, 1)] = self._retyped(self.lanes[var], have, element)[0]
            tensor = self.changed[var, source, (1, 1)]
            batch = int(shape_of(tensor)[0])
            if element != have.element and source.serves(need):
                return tensor, source
        else:
            plain = self.row_major(var, shape_of(var))
            shape = shape_of(plain)
            batch = images(shape, view)
            source = Strides.nchw(*shape[2:]) if view == "nchw" else Strides.matrix(shape[-1])
            tensor = self.reshaped(plain, (batch, math.prod(shape) // batch))
            element = FLOAT32
        if (var, need, step) not in self.changed:
            into = replace(need, element=element)
            kernel = self.kernel(
                "to_lanes",
                repr((batch, source, into)),
                lambda n: relayout.to_lanes(batch, source, into, self.threads, n),
            )
            table = constant(relayout.lane_table(into, source, step))
            made = self._call(kernel, [tensor, table], (batch, into.size), element.slot)
            self.changed[var, need, step] = self._retyped(made, into, need.element)[0]
        return self.changed[var, need, step], need

    def _plain(self, var: Expr) -> Expr:
        """The row-major form of a tensor that lives in lanes."""
        node = self.nodes[var]
        layout, tensor = node.layout, self.lanes[var]
        if layout is None:
            raise ValueError("a row-major result has no lanes")
        tensor, layout = self._retyped(tensor, layout, FLOAT32)
        batch = int(shape_of(tensor)[0])
        channels, height, width = logical(shape_of(var), node.view)
        strides = Strides.nchw(height, width) if node.view == "nchw" else Strides.matrix(channels)
        kernel = self.kernel(
            "from_lanes",
            repr((batch, layout, strides)),
            lambda n: relayout.from_lanes(batch, layout, strides, self.threads, n),
        )
        table = constant(relayout.plain_table(layout))
        flat = self._call(kernel, [tensor, table], (batch, channels * height * width), FLOAT32.name)
        return self.reshaped(flat, shape_of(var))

    def kernel(self, name: str, key: str, build: Any) -> Any:
        """The global function of a kernel, built once for each ``key``."""
        if key not in self.kernels:
            unique = f"{name.replace('-', '_')}_{len(self.kernels)}"
            function: tirx.PrimFunc = build(unique).with_attr("op_pattern", OPAQUE)
            self.kernels[key] = self.rebuild.builder.add_func(function, unique)
        return self.kernels[key]

    def _call(self, kernel: Any, tensors: list[Expr], shape: tuple[int, ...], dtype: str) -> Expr:
        return self.rebuild.emit(relax.call_tir(kernel, relax.Tuple(tensors), relax.TensorType(shape, dtype)))

    def _retyped(self, tensor: Expr, layout: LaneLayout, element: ElementType) -> tuple[Expr, LaneLayout]:
        """A tensor in lanes, and its layout, in another element type."""
        if layout.element == element:
            return tensor, layout
        batch, out = int(shape_of(tensor)[0]), replace(layout, element=element)
        make = partial(relayout.retype, batch, layout, element, self.threads)
        kernel = self.kernel("retype", repr(make), make)
        return self._call(kernel, [tensor], (batch, out.size), element.slot), out

    def reshaped(self, tensor: Expr, shape: tuple[int, ...]) -> Expr:
        """``tensor`` with another shape."""
        return (
            tensor if shape_of(tensor) == tuple(shape) else self.rebuild.emit(relax.op.reshape(tensor, shape))
        )


def _read(layout: LaneLayout) -> LaneLayout:
    """A layer's input or residual without what its levels mean, which the kernel reads from an operand."""
    return (
        replace(layout, element=layout.element.at(1.0)) if isinstance(layout.element, Quantised) else layout
    )


def _written(layout: LaneLayout) -> LaneLayout:
    """The same of a result; the zero point stays in the code where it is written outside of the map."""
    outside = any(layout.halo) or layout.ragged
    return replace(layout, element=layout.element.unit) if outside else _read(layout)


def _stepped(node: Node) -> Node:
    """A strided 1x1 layer as one without stride on the pixels that it reads."""
    if node.layer is None or node.layout is None:
        raise ValueError("only layers have strides")
    w = node.layer.workload
    workload = replace(w, height=w.out_height, width=w.out_width, stride=(1, 1))
    need = replace(workload.input_layout(node.layout), element=node.needs[0].element)
    needs = [need, *node.needs[1:]]
    return replace(node, layer=node.layer.with_(workload=workload), needs=needs)
