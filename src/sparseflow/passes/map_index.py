"""Phase 4, second pass: feature maps that pay for it carry an index, as tuples of tensors in the IR."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from sparseflow.core.codec import dumps
from sparseflow.core.plan import LayerPlan, Plan
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.tuning.map_times import MapTimes
from sparseflow.kernels.tuning.selector import Choice
from sparseflow.ops.expressions import inputs_of, shape_of
from sparseflow.ops.operator import Operator
from sparseflow.passes.graph import Graph, Rebuild
from sparseflow.passes.layout import Node, decide_layouts
from sparseflow.passes.map_choice import Indexed, MapChoice, choose_maps, input_layout
from sparseflow.passes.map_ops import MapUse, dense_map, index_map, map_of, map_op
from sparseflow.passes.ops import LayerAttrs, is_layer, layer_call
from sparseflow.passes.plan import describe, plan_of
from sparseflow.passes.weights import Weights

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="sparseflow.IndexMaps")
class IndexMaps:
    """Lets the maps carry an index where the layers that read them are faster for it, conversions included.

    Before: ``sparseflow.conv2d(x, …)`` with a kernel on plain maps. After: ``sparseflow.conv2d(m, …)`` takes a tuple
    ``m = (values, bits, count)`` and gives another; ``sparseflow.index_map`` and ``sparseflow.dense_map`` stand where
    the neighbours differ.

    Parameters
    ----------
    times : MapTimes
        Of the target.
    """

    def __init__(self, times: MapTimes, weights: Weights | None = None) -> None:
        self.times, self.lanes = times, times.selector.target.vectors.lanes
        self.weights = weights or Weights()

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class."""
        graph, plan = Graph(mod), plan_of(mod)
        choice = choose_maps(graph, plan.layers, self.times, self.lanes, self.weights)
        noted = dumps(_noted(graph, plan, choice, self.weights))
        if choice.indexed:
            mod = _Rewriting(mod, choice, self.lanes).run()
        return mod.with_attr("sparseflow.plan", noted)


class _Rewriting:
    """One run: the tuple of every indexed map, and the halo that its readers need."""

    def __init__(self, mod: tvm.IRModule, choice: MapChoice, lanes: int) -> None:
        self.rebuild, self.choice = Rebuild(mod), choice
        self.graph = self.rebuild.graph
        self.nodes: dict[Expr, Node] = decide_layouts(self.graph, lanes)
        self.maps: dict[Expr, Expr] = {}
        self.halos: dict[Expr, tuple[int, int, int, int]] = {}

    def run(self) -> tvm.IRModule:
        """The module with tuples for indexed maps."""
        for binding in self.graph.bindings:
            if binding.var in self.choice.indexed and is_layer(binding.value):
                workload = LayerAttrs.of(binding.value).workload
                self._widen(binding.value.args[0], input_layout(workload))
        return self.rebuild.run(self._visit)

    def _widen(self, var: Expr, wanted: PixelLayout) -> None:
        have = self.halos.get(var, (0, 0, 0, 0))
        top, left, bottom, right = (max(a, b) for a, b in zip(have, wanted.halo, strict=True))
        self.halos[var] = (top, left, bottom, right)

    def layout(self, var: Expr) -> PixelLayout:
        """The layout of ``var`` as an indexed map, with the halo that all readers together need."""
        return map_of(var).with_halo(self.halos.get(var, (0, 0, 0, 0)))

    def _visit(self, _rebuild: Rebuild, var: Expr, value: Expr) -> Any:
        if var not in self.choice.indexed:
            for used in inputs_of(value):
                self._plain(used)
            return None
        if is_layer(value):
            self.maps[var] = self.rebuild.emit(self._layer(var, value))
        elif (operator := self.nodes[var].operator) is not None:
            call = self._operator(var, operator)
            if operator.reduces:
                return call
            self.maps[var] = self.rebuild.emit(call)
        if var in inputs_of(self.graph.output):
            self._plain(var)
        return Rebuild.DROP

    def _plain(self, var: Expr) -> None:
        """Makes sure that the new function has ``var`` as a plain tensor."""
        if var in self.maps and var not in self.rebuild.env and var in self.graph.definition:
            positive = var in self.nodes and self.nodes[var].non_negative
            call = dense_map(self.maps[var], self.layout(var), shape_of(var), positive)
            self.rebuild.env[var] = self.rebuild.emit(call)

    def _indexed(self, var: Expr) -> Expr:
        """The tuple of ``var``, made of the plain tensor if its producer does not give it."""
        if var not in self.maps:
            call = index_map(self.rebuild.old(var), self.layout(var), shape_of(var)[0])
            self.maps[var] = self.rebuild.emit(call)
        return self.maps[var]

    def _layer(self, var: Expr, value: Expr) -> Expr:
        attrs, found = LayerAttrs.of(value), self.choice.layers[var]
        x, residual = value.args[0], list(value.args[3].fields)
        limit = found.limit
        use = MapUse(
            self.layout(x),
            self.layout(var),
            self.layout(residual[0]) if residual else None,
            "" if limit is None else attrs.candidate,
            found.elements if limit is None else limit,
        )
        candidate = Candidate(found.candidate.template, found.candidate.parameters)
        attrs = attrs.with_(candidate=candidate.to_json(), maps=dumps(use))
        weight, bias = (self.rebuild.old(value.args[i]) for i in (1, 2))
        others = relax.Tuple([self._indexed(r) for r in residual])
        return layer_call(attrs, self._indexed(x), weight, bias, others)

    def _operator(self, var: Expr, operator: Operator) -> Expr:
        inputs = self.nodes[var].inputs
        layouts = [self.layout(v) for v in inputs]
        out = layouts[0] if operator.reduces else self.layout(var)
        return map_op([self._indexed(v) for v in inputs], operator, layouts, out, shape_of(var))


def _noted(graph: Graph, plan: Plan, choice: MapChoice, weights: Weights) -> Plan:
    """The plan with what was decided of the maps."""
    layers, carried = [], 0
    values = [(b.var, b.value) for b in graph.bindings if is_layer(b.value)]
    for (var, value), layer in zip(values, plan.layers, strict=True):
        if var in choice.indexed and var in choice.layers:
            layers.append(_indexed_plan(value, layer, choice.layers[var], weights))
            carried += 1
        else:
            layers.append(replace(layer, map_note=_note(layer, choice.reasons.get(var, ""))))
    note = "map index: none of the layers would be faster with it"
    if carried:
        note = (
            f"map index: {carried} of {len(layers)} layers skip the zeros of their input; times of layers and "
            f"conversions sum to {choice.chosen_s * 1e3:.2f} ms, {choice.plain_s * 1e3:.2f} ms without"
        )
    elif choice.layers:
        note = next(iter(choice.reasons.values()))
    return replace(plan, layers=tuple(layers), notes=(*plan.notes, note))


def _note(layer: LayerPlan, reason: str) -> str:
    """Why a layer reads its input without an index: the choice's reason, or why no kernel applies."""
    if reason:
        return reason
    refused = [r for r in layer.rejected if TEMPLATES[r.template].layout == "pixels"]
    # the template for dense weights takes any: what it refuses is the map, not how the weights were pruned
    refused.sort(key=lambda r: TEMPLATES[r.template].format != "dense")
    return f"no index: {refused[0].reason if refused else 'no kernel for it was fast enough to be measured'}"


def _indexed_plan(value: Expr, layer: LayerPlan, found: Indexed, weights: Weights) -> LayerPlan:
    """The record of a layer that reads an indexed map."""
    attrs = LayerAttrs.of(value)
    record = describe(attrs, weights.of(value), Choice(layer.candidates, layer.rejected), found.candidate)
    layout = input_layout(attrs.workload)
    shape = layout.tensors(attrs.workload.batch)[1][0]
    switch = None if found.limit is None else found.limit / found.elements
    return replace(
        record, map_format=layout.format, map_index_bytes=shape[0] * shape[1] * 8, map_switch=switch
    )
