"""Layers that multiply whole numbers of 8 bits: which, what their levels are worth, and which maps are stored so."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import ir, relax

from sparseflow.core.activations import ACTIVATIONS
from sparseflow.core.calibrated_ranges import CalibratedRanges, LayerRanges
from sparseflow.core.codec import dumps
from sparseflow.core.element_type import BFLOAT16, FLOAT32, INT8, UINT8
from sparseflow.core.steps import filter_steps, on_levels
from sparseflow.errors import CompileError
from sparseflow.kernels.rescale import bounded_step
from sparseflow.kernels.template import TEMPLATES
from sparseflow.kernels.workload import Workload
from sparseflow.ops.expressions import is_constant, op_name, shape_of
from sparseflow.ops.operator import operator_of
from sparseflow.passes.graph import Graph, Rebuild
from sparseflow.passes.ops import LayerAttrs, constant, is_layer, layer_call, weight_of

Expr = Any
VIEWS = ("relax.reshape", "relax.permute_dims", "relax.multiply", "relax.divide")
"""What may lie between a linear layer and the products of attention."""


@tvm.transform.module_pass(opt_level=0, name="sparseflow.Quantise")
class Quantise:
    """Every layer that a kernel computes on levels gets weights on levels and the ranges of its maps.

    Before: ``conv2d(x, (w,), (bias,), …)``. After: ``conv2d(x, (levels,), (bias, step), …)`` with the maps' types in
    its workload and their ranges in the attribute ``ranges``. A layer writes levels where such a layer, or an operator
    in front of one, reads them; else float32. The other layers stay in float32; where neighbours differ, lowering
    converts.

    Parameters
    ----------
    ranges : CalibratedRanges, optional
        Of the same model: one record for each layer, in order. They fill in what the layers' own ``ranges``, of a model
        that was quantised before, leave open; a layer of which neither tells the input's range stays in float32.
    limit : float
        Largest error of a layer's sums (`LayerRanges.error`) with which it is put on levels.
    """

    def __init__(self, ranges: CalibratedRanges | None = None, limit: float = math.inf) -> None:
        self.ranges, self.limit = ranges, limit

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class.

        Raises
        ------
        CompileError
            If the ranges are another model's.
        """
        graph = Graph(mod)
        ranges = _before_pools(graph, self._ranges(graph))
        results = _results(graph, {var: r for var, r in ranges.items() if r.error <= self.limit})

        def visit(rebuild: Rebuild, var: Expr, value: Expr) -> Any:
            if var in results:
                return self._layer(rebuild, value, results[var], ranges[var])
            if var not in ranges or ranges[var].error <= self.limit:
                return None
            attrs, error = LayerAttrs.of(value), ranges[var].error
            told = f"not on levels: its sums would move by {error:.1%}, more than {self.limit:.0%}"
            return layer_call(attrs.with_(note=told), *(rebuild.old(a) for a in value.args))

        return Rebuild(mod).run(visit)

    def _ranges(self, graph: Graph) -> dict[Expr, LayerRanges]:
        """What is known of each layer."""
        layers = {b.var: LayerAttrs.of(b.value) for b in graph.bindings if is_layer(b.value)}
        names = [attrs.name for attrs in layers.values()]
        given = [LayerRanges(name, None, None) for name in names]
        if self.ranges is not None:
            given = list(self.ranges.layers)
            known = [layer.name for layer in given]
            if names != known:
                raise CompileError(
                    f"calibration: ranges of {len(known)} layers ({', '.join(known[:3])}, …) given, the model has "
                    f"{len(names)} ({', '.join(names[:3])}, …); calibrate this model"
                )
        return {
            var: _filled(attrs.map_ranges or more, more)
            for (var, attrs), more in zip(layers.items(), given, strict=True)
        }

    def _layer(self, rebuild: Rebuild, value: Expr, wanted: Workload, ranges: LayerRanges) -> Any:
        attrs, weight, source = LayerAttrs.of(value), weight_of(value), ranges.source
        if source is None:
            return None
        if ranges.result is not None and ACTIVATIONS[wanted.activation].clamps:
            ends = ACTIVATIONS[wanted.activation].numpy(np.array([-np.inf, np.inf]), wanted.parameter)
            ranges = replace(ranges, result=ranges.result.within(*map(float, ends)))
        given = value.args[2].fields
        bias = given[0].value.numpy() if given else np.zeros(wanted.filters, np.float32)
        scale = UINT8.covering(source.low, source.high).scale
        step = bounded_step(filter_steps(weight), bias, scale)
        levels = on_levels(weight, step)
        workload = wanted.with_zeros_of(levels.reshape(wanted.weight_shape))
        named = relax.Tuple([constant(levels, attrs.name)])
        added = relax.Tuple([constant(bias, f"{attrs.name}.bias"), constant(step, f"{attrs.name}.step")])
        x, residual = (rebuild.old(value.args[i]) for i in (0, 3))
        return layer_call(attrs.with_(workload=workload, ranges=dumps(ranges)), x, named, added, residual)


def _filled(ranges: LayerRanges, more: LayerRanges) -> LayerRanges:
    """``ranges`` with what they leave open from ``more``."""
    return replace(
        ranges,
        source=ranges.source or more.source,
        result=ranges.result or more.result,
        residual=ranges.residual or more.residual,
        error=more.error,
    )


def _before_pools(graph: Graph, ranges: dict[Expr, LayerRanges]) -> dict[Expr, LayerRanges]:
    """The ranges, a result that layers read through max pools only having the range that they are read in."""
    found = dict(ranges)
    for var in ranges:
        read, behind = graph.only_user(var), False
        while read is not None and not is_layer(graph.definition[read]):
            operator = operator_of(graph.definition[read])
            if operator is None or not operator.selects:
                break
            read, behind = graph.only_user(read), True
        if behind and read in ranges and ranges[read].source is not None:
            found[var] = replace(ranges[var], result=ranges[read].source)
    return found


def _results(graph: Graph, ranges: dict[Expr, LayerRanges]) -> dict[Expr, Workload]:
    """The workload on levels of each layer of ``ranges`` that a kernel computes so; the others stay as they are."""
    wanted: set[Expr] = set()
    found: dict[Expr, Workload] = {}
    for binding in reversed(graph.bindings):
        var, value = binding.var, binding.value
        if is_layer(value):
            if var not in ranges:
                continue
            workload = _on_levels(LayerAttrs.of(value).workload, var in wanted, ranges[var])
            if workload is None:
                continue
            pairs = replace(workload, result=BFLOAT16)
            if workload.result == FLOAT32 and _taken(pairs, "lanes") and _read_by_products(graph, var):
                workload = pairs
            found[var] = workload
            if _taken(workload, "lanes"):  # kernels on rows round their input themselves
                wanted.add(graph.resolve(value.args[0]))
            if workload.result == UINT8:
                wanted.update(graph.resolve(r) for r in value.args[3].fields[:1])
        elif isinstance(value, ir.Var) and var in wanted:
            wanted.add(graph.resolve(value))
        elif var in wanted and (operator := operator_of(value)) is not None:
            operands = operator.operands(value)
            shapes = map(shape_of, operands)
            if operator.takes(UINT8, [shape[1] if len(shape) == 4 else shape[-1] for shape in shapes]):
                wanted.update(map(graph.resolve, operands))
    return found


def _on_levels(workload: Workload, wanted: bool, ranges: LayerRanges) -> Workload | None:
    """The workload on levels, with levels for its result if they are wanted and there is a kernel that writes them."""
    if ranges.source is None:
        return None
    known = ranges.result is not None and (ranges.residual is not None or not workload.residual)
    for result in (UINT8, FLOAT32) if wanted else (FLOAT32, UINT8):
        if result == UINT8 and not known:
            continue
        quantised = replace(workload, maps=UINT8, weights=INT8, result=result, bias=True)
        if _taken(quantised, "lanes", "rows"):
            return quantised
    return None


def _read_by_products(graph: Graph, var: Expr) -> bool:
    """Whether only products of maps read a tensor, seen from another side: attention, which multiplies pairs too."""
    readers = graph.consumers.get(var, [])
    if not readers or graph.uses[var] != len(readers):
        return False
    for reader in readers:
        value = graph.definition[reader]
        product = op_name(value) == "relax.matmul" and not any(map(is_constant, value.args))
        if not product and not (op_name(value) in VIEWS and _read_by_products(graph, reader)):
            return False
    return True


def _taken(workload: Workload, *layouts: str) -> bool:
    """Whether there is a dense kernel for it on one of these layouts."""
    dense = (t for t in TEMPLATES.values() if t.format == "dense" and t.layout in layouts)
    return any(t.refusal(workload) is None for t in dense)
