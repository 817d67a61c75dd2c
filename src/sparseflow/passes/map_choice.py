"""Which operators work on indexed maps: their times, the conversions between, and the choice as a minimum cut."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from sparseflow.core.plan import CandidateTime, LayerPlan
from sparseflow.kernels.indexed import operators as pixel_maps
from sparseflow.kernels.lane.conversions import Strides
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.template import TEMPLATES, Candidate, computed
from sparseflow.kernels.tuning.map_times import MapTimes
from sparseflow.kernels.workload import Workload
from sparseflow.ops.expressions import inputs_of, shape_of
from sparseflow.ops.operator import Setting
from sparseflow.passes.graph import Graph
from sparseflow.passes.layout import Node, decide_layouts
from sparseflow.passes.map_ops import map_of
from sparseflow.passes.min_cut import Edge, Step, choose_indexed, cost_of
from sparseflow.passes.ops import LayerAttrs, is_layer
from sparseflow.passes.weights import Weights

Expr = Any
MARGIN = 0.03
"""What the index has to save of all times: less than that is within what measurements alone leave open."""
BOUND = 1.25
"""How much slower than the plain plan a plan may be by its own times when every map is dense; 1.3 is promised."""
PENALTIES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Weights of the time lost on dense maps against the time gained on calibrated ones, tried until `BOUND` holds."""


@dataclass(frozen=True)
class Indexed:
    """A layer's kernel on its indexed input, and what happens when the map is dense.

    Attributes
    ----------
    candidate : CandidateTime
        At the calibrated density.
    dense_s : float
        The same kernel on a map without zeros.
    fallback_s : float
        The plain kernel with its conversions.
    elements : int
        Of the input map.
    density : float
        Calibrated.
    """

    candidate: CandidateTime
    dense_s: float
    fallback_s: float
    elements: int
    density: float

    @property
    def worst_s(self) -> float:
        """On a map without zeros, the density switch included."""
        return min(self.dense_s, self.fallback_s)

    @property
    def limit(self) -> int | None:
        """Non-zeros from which on the fallback is faster; None if it never is. Time is linear in the density."""
        if self.dense_s <= self.fallback_s:
            return None
        slope = (self.dense_s - self.candidate.time_s) / max(1.0 - self.density, 1e-6)
        density = self.density + (self.fallback_s - self.candidate.time_s) / max(slope, 1e-12)
        return int(min(max(density, self.density), 1.0) * self.elements)


@dataclass
class MapChoice:
    """The decision for a module.

    Attributes
    ----------
    indexed : frozenset of Var
        Operators that take and give indexed maps.
    layers : dict
        Layers that could → `Indexed`.
    plain_s, chosen_s : float
        All times and conversions without any index, and with those chosen.
    reasons : dict
        Layers that could and do not → why.
    """

    indexed: frozenset[Hashable] = frozenset()
    layers: dict[Expr, Indexed] = field(default_factory=dict)
    plain_s: float = 0.0
    chosen_s: float = 0.0
    reasons: dict[Expr, str] = field(default_factory=dict)


def choose_maps(
    graph: Graph, plans: tuple[LayerPlan, ...], times: MapTimes, lanes: int, weights: Weights
) -> MapChoice:
    """The operators of a planned module that work on indexed maps.

    Parameters
    ----------
    graph : Graph
    plans : tuple of LayerPlan
        Of its layers, in order.
    times : MapTimes
    lanes : int
        float32 elements of a vector.
    weights : Weights
    """
    work = _Assessment(graph, times, lanes, weights)
    work.read(plans)
    return work.choose()


class _Assessment:
    """Times of all operators in both forms, and of all conversions."""

    def __init__(self, graph: Graph, times: MapTimes, lanes: int, weights: Weights) -> None:
        self.weights = weights
        self.graph, self.times = graph, times
        self.nodes = decide_layouts(graph, lanes)
        self.steps: dict[Hashable, Step] = {}
        self.layers: dict[Expr, Indexed] = {}
        self.outside: list[Expr] = list(inputs_of(graph.output))
        self.edges: dict[Hashable, Edge] = {}

    def read(self, plans: tuple[LayerPlan, ...]) -> None:
        """Fills ``steps``, ``layers``, ``outside`` and ``edges``."""
        remaining = iter(plans)
        for binding in self.graph.bindings:
            var, value = binding.var, binding.value
            reads = tuple(dict.fromkeys(inputs_of(value)))
            if is_layer(value):
                plan = next(remaining)
                self.steps[var] = Step(reads, plan.chosen.time_s)
                self._layer(var, value, plan)
            elif var in self.nodes and self._operator(var, self.nodes[var], reads):
                continue
            else:
                self.outside += reads
        if self.layers:
            self._connect()

    def _layer(self, var: Expr, value: Expr, plan: LayerPlan) -> None:
        attrs = LayerAttrs.of(value)
        found = [c for c in plan.candidates if TEMPLATES[c.template].layout == "pixels"]
        if not found or attrs.workload.op != "conv2d":
            return
        workload, weight = attrs.workload, self.weights.of(value)
        candidate = Candidate(found[0].template, found[0].parameters)
        dense_s = self.times.layer(workload, candidate, weight, 1.0)
        changes = [self._edge(v).plain_s for v in inputs_of(value)] + [self._edge(var).index_s]
        elements = math.prod(shape_of(value.args[0]))
        self.layers[var] = Indexed(
            found[0], dense_s, plan.chosen.time_s + sum(changes), elements, workload.map_density
        )
        self.steps[var] = replace(self.steps[var], indexed_s=found[0].time_s)

    def _operator(self, var: Expr, node: Node, reads: tuple[Expr, ...]) -> bool:
        """Whether an operator without weights works on indexed maps; notes its times if so."""
        operator, batch = node.operator, shape_of(var)[0]
        if node.view != "nchw" or operator is None:
            return False
        sources = [map_of(v) for v in node.inputs]
        where = Setting(batch, self._threads, self.times.selector.target.vectors)
        build = operator.on_pixels(sources, sources[0] if operator.reduces else map_of(var), where)
        if build is None:
            return False
        layouts = [self._lane_layout(v, need) for v, need in zip(node.inputs, node.needs, strict=True)]
        plain = operator.on_lanes(layouts, node.layout or layouts[0], where)
        key = repr((operator, batch, self._threads))
        self.steps[var] = Step(
            reads,
            self.times.kernel(f"lanes {key} {layouts} {node.layout}", plain),
            self.times.kernel(f"pixels {key} {sources}", build),
        )
        return True

    @property
    def _threads(self) -> int:
        return self.times.threads

    def _lane_layout(self, var: Expr, need: LaneLayout) -> LaneLayout:
        layout = self.nodes[var].layout if var in self.nodes else None
        return need if layout is None or not layout.same_blocks(need) else layout

    def _connect(self) -> None:
        """Conversions of all maps that might need one."""
        able = {name for name, step in self.steps.items() if math.isfinite(step.indexed_s)}
        for name in able:
            for var in (name, *self.steps[name].reads):
                self._edge(var)

    def _edge(self, var: Any) -> Edge:
        if var in self.edges:
            return self.edges[var]
        shape = shape_of(var)
        if len(shape) != 4 or computed(var.ty.dtype) is None:
            return Edge(0.0, 0.0)
        node, batch, threads = self.nodes.get(var), shape[0], self._threads
        plain: LaneLayout | Strides = Strides.nchw(*shape[2:])
        if node is not None and node.layout is not None and node.view == "nchw":
            plain = node.layout
        layout = map_of(var)
        key = repr((batch, plain, layout, threads))
        to_index = self.times.kernel(
            f"to_pixels {key}", lambda n: pixel_maps.to_pixels(batch, plain, layout, threads, n)
        )
        to_plain = self.times.kernel(
            f"from_pixels {key}", lambda n: pixel_maps.from_pixels(batch, layout, plain, threads, n)
        )
        self.edges[var] = Edge(to_index, to_plain)
        return self.edges[var]

    def choose(self) -> MapChoice:
        """The cheapest choice that keeps the bound on dense maps and saves more than the margin."""
        plain = self._cost(frozenset())
        choice = MapChoice(layers=self.layers, plain_s=plain, chosen_s=plain)
        if not self.layers:
            return choice
        best: frozenset[Hashable] = frozenset()
        for penalty in PENALTIES:
            best = choose_indexed(self._penalised(penalty), self.edges, self.outside)
            if self._dense_cost(best) <= BOUND * plain:
                break
        else:
            best = frozenset()
        cost = self._cost(best)
        if cost > (1.0 - MARGIN) * plain or not any(v in best for v in self.layers):
            saved = max(0.0, 1.0 - cost / plain)
            why = f"no index: it would save {saved:.1%} of all layers' time, less than {MARGIN:.0%}"
            choice.reasons = dict.fromkeys(self.layers, why)
            return choice
        choice.indexed, choice.chosen_s = best, cost
        choice.reasons = {v: self._why_plain(v) for v in self.layers if v not in best}
        return choice

    def _penalised(self, penalty: float) -> dict[Hashable, Step]:
        steps = dict(self.steps)
        for var, found in self.layers.items():
            lost = max(0.0, found.worst_s - steps[var].plain_s)
            steps[var] = replace(steps[var], indexed_s=steps[var].indexed_s + penalty * lost)
        return steps

    def _dense_cost(self, indexed: frozenset[Hashable]) -> float:
        """Of a choice when no map has a zero."""
        steps = dict(self.steps)
        for var, found in self.layers.items():
            steps[var] = replace(steps[var], indexed_s=found.worst_s)
        return cost_of(indexed, steps, self.edges, self.outside)

    def _cost(self, indexed: frozenset[Hashable]) -> float:
        return cost_of(indexed, self.steps, self.edges, self.outside)

    def _why_plain(self, var: Expr) -> str:
        step, found = self.steps[var], self.layers[var]
        ratio = found.candidate.time_s / step.plain_s
        if ratio >= 1.0:
            return (
                f"no index: {found.candidate.label} is {ratio:.2f}x slower at map density {found.density:.2f}"
            )
        return f"no index: {found.candidate.label} saves {1.0 - ratio:.0%} of the layer, less than its conversions cost"


def input_layout(workload: Workload) -> PixelLayout:
    """The layout, halo included, in which a layer reads its indexed input."""
    return workload.pixel_layouts().in_pixels("a layer")[0]
