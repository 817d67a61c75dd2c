"""Phase 4: each layer gets the kernel that is fastest on the target; dense always competes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from sparseflow.core.codec import dumps, loads
from sparseflow.core.element_type import FLOAT32
from sparseflow.core.plan import CandidateTime, LayerPlan, Plan
from sparseflow.errors import CompileError
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.tuning.cold_weights import rounded
from sparseflow.kernels.tuning.map_times import BYTES_PER_CYCLE
from sparseflow.kernels.tuning.selector import Choice, Selector, layouts_for
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Workload
from sparseflow.passes.graph import Graph, Rebuild
from sparseflow.passes.layout import Node, decide_layouts
from sparseflow.passes.ops import LayerAttrs, constant, is_layer, layer_call
from sparseflow.passes.precision import RealLayer, real_layer
from sparseflow.passes.weights import Weights

Expr = Any
HOPELESS = 0.5
"""Part of a predicted time below which no measured one is expected: a kernel that could win only then is not tried."""


@tvm.transform.module_pass(opt_level=0, name="sparseflow.PlanKernels")
class PlanKernels:
    """Writes the chosen candidate into the attribute ``candidate`` of every layer.

    Attributes
    ----------
    plan : Plan
        Set when the pass has run: every layer with its candidates' times and the reasons of the rejected.
    """

    def __init__(self, selector: Selector, threads: int = 1, weights: Weights | None = None) -> None:
        self.selector, self.threads, self.weights = selector, threads, weights or Weights()
        self.plan: Plan | None = None

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class."""
        layers = []
        graph = Graph(mod)
        nodes = decide_layouts(graph, self.selector.target.vectors.lanes)
        self.selector.between = rounded(weight_bytes(graph, self.weights), self.selector.target.caches)

        def visit(rebuild: Rebuild, var: Expr, value: Expr) -> Any:
            if not is_layer(value):
                return None
            attrs = _with_halo(LayerAttrs.of(value), nodes.get(var))
            weight = self.weights.of(value)
            choice = self.selector.choose(attrs.workload, weight, attrs.name)
            x, tensors, bias, residual = (rebuild.old(a) for a in value.args)
            if attrs.workload.maps != FLOAT32:
                real = real_layer(attrs, weight, value.args[2])
                wide = self._if_faster(attrs.workload, real, without_map_index(choice))
                if wide is not None:
                    attrs, weight, choice = real.attrs, real.weight, wide
                    tensors = relax.Tuple([constant(weight.dense, attrs.name)])
                    bias = relax.Tuple([constant(b, f"{attrs.name}.bias") for b in real.bias])
            best = without_map_index(choice)
            layers.append(describe(attrs, weight, choice, best))
            chosen = attrs.with_(candidate=Candidate(best.template, best.parameters).to_json())
            call = layer_call(chosen, x, tensors, bias, residual)
            self.weights.put(call, weight)
            return call

        mod = Rebuild(mod).run(visit)
        chosen = self.selector
        self.plan = Plan(tuple(layers), str(chosen.target), self.threads, chosen.measure, exact=chosen.exact)
        return mod.with_attr("sparseflow.plan", dumps(self.plan))

    def _if_faster(self, narrow: Workload, real: RealLayer, best: CandidateTime) -> Choice | None:
        """The kernels of a layer on narrow maps in float32, if the best is faster even with both maps converted.

        A narrow kernel on rows reads and writes float32 too.
        """
        wide = real.attrs.workload
        moved = narrow.batch * sum(x.input_bytes + x.output_bytes for x in (narrow, wide))
        on_rows = TEMPLATES[best.template].layout == "rows"
        conversions_s = 0.0 if on_rows else moved / BYTES_PER_CYCLE / self.selector.target.clock_hz
        if conversions_s + HOPELESS * self.selector.predicted_s(wide) >= best.time_s:
            return None
        choice = self.selector.choose(wide, real.weight, real.attrs.name)
        return choice if without_map_index(choice).time_s + conversions_s < best.time_s else None


def _with_halo(attrs: LayerAttrs, node: Node | None) -> LayerAttrs:
    """The layer with the halo that its consumers ask for, so that filling it is a part of its time."""
    if node is None or node.layout is None:
        return attrs
    return attrs.with_(workload=replace(attrs.workload, halo=node.layout.halo))


def weight_bytes(graph: Graph, weights: Weights) -> int:
    """Bytes of all weights other than zero: what a call of the network reads between two calls of one layer."""
    layers = [b.value for b in graph.bindings if is_layer(b.value)]
    return sum(LayerAttrs.of(v).workload.weights.nbytes * weights.of(v).nonzeros for v in layers)


def plan_of(mod: tvm.IRModule) -> Plan:
    """The plan that `PlanKernels` left in the module."""
    return loads(Plan, str(mod.attrs["sparseflow.plan"]))


def without_map_index(choice: Choice) -> CandidateTime:
    """The fastest kernel that reads its input as it is; whether a map carries an index is decided by `IndexMaps`.

    Raises
    ------
    CompileError
        If there is none.
    """
    plain = [t for t in choice.times if TEMPLATES[t.template].layout != "pixels"]
    if not plain:
        raise CompileError("no kernel reads this layer's input without its index")
    return plain[0]


def describe(attrs: LayerAttrs, weight: LayerWeight, choice: Choice, best: CandidateTime) -> LayerPlan:
    """The record of one decision, ``best`` being the chosen candidate."""
    workload, candidate = attrs.workload, Candidate(best.template, best.parameters)
    template = TEMPLATES[best.template]
    rows = best.parameters.get("R", 1)
    live = weight.dense[: workload.blocks(rows) * rows] if template.unions else weight.dense
    density = float((live != 0).mean())
    columns = workload.taps
    total = math.ceil(workload.filters / rows) * columns
    positions = workload.batch * workload.out_height * workload.out_width
    if template.format == "dense":
        computed = math.ceil(len(live) / rows) * columns
        value_bytes, index_bytes = live.size * template.stored(workload, candidate).nbytes, 0
    else:
        packed = weight.packed(template, workload, candidate, layouts_for(template, workload))
        computed = min(packed["data"].size // rows, total)
        value_bytes = packed["data"].nbytes
        index_bytes = sum(a.nbytes for a in packed.values()) - value_bytes
    note = attrs.note
    if template.format == "dense" and density < 1.0:
        note = "; ".join(filter(None, (note, _why_dense(workload, choice, best))))
    return LayerPlan(
        name=attrs.name,
        op=workload.op,
        weight_shape=weight.shape if workload.op == "conv2d" else weight.shape[:2],
        output_shape=attrs.out_shape,
        structure=str(attrs.detection.get("structure", "Dense")),
        density=density,
        format=template.format,
        value_bytes=value_bytes,
        index_bytes=index_bytes,
        tiles_total=total,
        tiles_computed=computed,
        macs_dense=workload.macs,
        macs_computed=positions * computed * rows
        if rows * total == weight.dense.size
        else round(workload.macs * computed / total),
        map_density=workload.map_density if workload.map_density < 1.0 else None,
        chosen=best,
        candidates=choice.times,
        rejected=choice.rejected,
        note=note,
        element=workload.maps.name,
    )


def _why_dense(workload: Workload, choice: Choice, best: CandidateTime) -> str:
    templates = [(t, TEMPLATES[t.template]) for t in choice.times]
    sparse = [t for t, template in templates if template.format != "dense" and template.layout != "pixels"]
    if not sparse:
        return f"left dense: no sparse kernel takes density {workload.density():.2f}"
    verb = "measured" if sparse[0].measured else "predicted"
    return f"left dense: {sparse[0].label} is {verb} {sparse[0].time_s / best.time_s:.2f}x slower"
