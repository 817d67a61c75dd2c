"""From a model to a stream engine: the maps to keep, the kernels of every layer's parts, the rest of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import tvm

from sparseflow.engine.build import Build, Progress, build, inside_tvm
from sparseflow.engine.frontends.importer import Imported, import_model
from sparseflow.engine.runtime.manifest import Signature
from sparseflow.engine.runtime.threads import set_threads
from sparseflow.engine.stream.graph import MapNode, Split, split
from sparseflow.engine.stream.steps import (
    KeptMap,
    LayerStep,
    Part,
    PixelStep,
    Size,
    Step,
    shared,
    shared_copy,
)
from sparseflow.engine.stream.stream import StreamEngine
from sparseflow.engine.stream.tiles import BATCH, PartKernel, part_kernels, window_of
from sparseflow.engine.target.targets import resolve
from sparseflow.errors import CompileError
from sparseflow.kernels.incremental import operators as kept_maps
from sparseflow.kernels.incremental import tiles as tile_kernels
from sparseflow.kernels.incremental.operators import KeptLayout, Window
from sparseflow.kernels.incremental.tiles import Tiles
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.template import TEMPLATES
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array, Workload
from sparseflow.ops.expressions import shape_of
from sparseflow.ops.operator import Make
from sparseflow.passes import pipeline
from sparseflow.passes.ops import LayerAttrs, device_tensor, stored_weight, weight_of

Expr = Any


def compile_stream(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    threshold: float = 0.0,
    *,
    threads: int = 1,
    measure: bool = True,
    exact: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> StreamEngine:
    """An engine for frames of which little changes from one to the next.

    It keeps every map up to the last convolution, and recomputes the tiles that a change reaches; what follows runs
    whole when anything before it changed. It runs on this machine only, and cannot be saved.

    Parameters
    ----------
    model, example_inputs, threads, exact, shapes, progress
        See `sparseflow.compile`. The model has one input, a (1, C, H, W) frame.
    threshold : float
        Differences up to this fraction of a map's largest magnitude in the first frame are taken as none; 0 is exact.
    measure : bool
        Measure what the tiles of each size cost, on which the choice of a size for each frame rests.

    Raises
    ------
    ImportModelError
        If the model cannot be read.
    CompileError
        If the network has no convolutions that can be run in parts, or one behind an operator that needs whole maps.
    """
    if not isinstance(threshold, float | int | np.floating) or not 0.0 <= threshold < 1.0:
        raise CompileError(f"threshold={threshold}: a fraction of a map's largest magnitude, 0 to below 1")
    how = Build(resolve("native"), threads, measure, exact, progress=progress)
    how.say("import")
    imported = import_model(model, example_inputs, shapes)
    with inside_tvm("propagation"), how.target.tvm:
        phases = pipeline.phases(how.selector(), how.threads)
        passes = [p for name in ("canonicalise", "propagate", "index") for p in phases[name]]
        parts = split(tvm.transform.Sequential(passes)(imported.mod))
    specs = tuple(Signature(f"map{i}", shape_of(v), str(v.ty.dtype)) for i, v in enumerate(parts.boundary))
    rest = build(Imported(parts.rest, specs, imported.outputs), how)
    return _Builder(parts, how).engine(imported, rest, threshold)


class Kernel:
    """A kernel that can be called once its module is compiled.

    Attributes
    ----------
    name : str
    """

    def __init__(self, name: str) -> None:
        self.name, self._function = name, None

    def bind(self, module: Any) -> None:
        """Takes the machine code from ``module``."""
        self._function = module[self.name]

    def __call__(self, *arguments: Any) -> None:
        if self._function is None:
            raise RuntimeError(f"{self.name} is not compiled yet")
        self._function(*arguments)


class _Builder:
    """One run: which kernels are needed, and what they become."""

    def __init__(self, parts: Split, how: Build) -> None:
        self.parts, self.how = parts, how
        self.lanes = how.target.vectors.lanes
        self.functions: dict[str, Any] = {}
        self.known: dict[str, Kernel] = {}
        self.scratch: dict[tuple[int, int, int], Any] = {}
        self.layouts: dict[Expr, KeptLayout] = {}
        self.kernels: dict[Expr, list[PartKernel]] = {}

    def engine(self, imported: Imported, rest: Any, threshold: float) -> StreamEngine:
        """The engine, its kernels compiled."""
        self._choose()
        self._lay_out()
        self.kept = {var: KeptMap(layout) for var, layout in self.layouts.items()}
        frame = self.kept[self.parts.source]
        accept = self._kernel("accept", partial(kept_maps.accept, frame.layout))
        steps = [self._step(node) for node in self.parts.nodes]
        for step, node in zip(steps, self.parts.nodes, strict=True):
            step.macs = node.layer.workload.macs if node.layer is not None else 0
        self.how.say("generate code of the parts")
        with inside_tvm("generating code"):
            module = tvm.compile(tvm.IRModule(self.functions), target=self.how.target.tvm)
        for kernel in self.known.values():
            kernel.bind(module)
        if self.how.measure:
            set_threads(self.how.threads)
            for step in steps:
                if isinstance(step, LayerStep):
                    self.how.say(f"measure {step.name}")
                    step.measure()
        boundary = [self.kept[v] for v in self.parts.boundary]
        return StreamEngine(
            (imported.inputs, imported.outputs), accept, frame, steps, rest, boundary, threshold
        )

    def _choose(self) -> None:
        """The part kernels of every layer, by the cost model."""
        for node in self.parts.nodes:
            if node.tiled is not None:
                self.kernels[node.var] = part_kernels(node.tiled.workload, self.how.exact, node.name)

    def _windows(self, node: MapNode) -> list[tuple[Window, list[Tiles]]]:
        """For each input of an operator what an output position reads, and the tiles in which it is read."""
        if node.operator is not None:
            pixels = [Tiles(node.shape[1], node.shape[2], (1, 1))]
            return [(node.operator.window(), pixels) for _ in node.inputs]
        if node.tiled is None:  # a linear layer
            return [(Window(), [])]
        found = [k.tiles for k in self.kernels[node.var]]
        return [(window_of(node.tiled.workload), found), *((Window(), found) for _ in node.inputs[1:])]

    def _lay_out(self) -> None:
        """Each map with the margin that its readers need."""
        _, channels, height, width = shape_of(self.parts.source)
        shapes = {self.parts.source: (channels, height, width), **{n.var: n.shape for n in self.parts.nodes}}
        self.layouts = {var: KeptLayout(*shape, lanes=self.lanes) for var, shape in shapes.items()}
        for node in self.parts.nodes:
            for var, (window, sizes) in zip(node.inputs, self._windows(node), strict=True):
                for tiles in sizes:
                    have = self.layouts[var]
                    need = tiles.margin(have, window)
                    top, left, bottom, right = (max(a, b) for a, b in zip(have.margin, need, strict=True))
                    self.layouts[var] = replace(have, margin=(top, left, bottom, right))

    def _step(self, node: MapNode) -> Step:
        sources, target = tuple(self.kept[v] for v in node.inputs), self.kept[node.var]
        if node.operator is not None:
            writer = node.operator.on_kept([s.layout for s in sources], target.layout)
            return PixelStep(node.name, sources, target, self._kernel(node.name, writer))
        if node.tiled is not None:
            return self._layer(node, node.tiled, sources, target)
        return self._linear(node, sources[0], target)

    def _linear(self, node: MapNode, source: KeptMap, target: KeptMap) -> Step:
        layouts = source.layout, target.layout
        workload = LayerAttrs.of(node.call).workload
        writer = partial(kept_maps.linear, *layouts, (workload.activation, workload.parameter))
        depth = target.layout.depth
        bias, sums = shared((depth,)), shared((source.pixels * depth,))
        for operand in node.call.args[2].fields:
            bias[0][: target.layout.channels] = operand.value.numpy()
        data = shared_copy(kept_maps.pack_linear(weight_of(node.call), *layouts))
        return PixelStep(
            node.name, (source,), target, self._kernel("linear", writer), (data, bias[1], sums[1])
        )

    def _layer(self, node: MapNode, attrs: LayerAttrs, sources: tuple[KeptMap, ...], target: KeptMap) -> Step:
        windows = [w for w, _ in self._windows(node)]
        read = [(s.layout, w) for s, w in zip(sources, windows, strict=True)]
        packed = _Packed(node.call, attrs.workload)
        sizes = []
        for tiles, same in groupby(self.kernels[node.var], key=lambda k: k.tiles):
            specs = list(same)
            step = specs[0].lanes * BATCH
            slots = -(-tiles.count // step) * step
            find = self._kernel("find", partial(tile_kernels.find, target.layout, tiles, slots))
            parts = tuple(self._part(spec, read, target.layout, slots, packed) for spec in specs)
            sizes.append(Size(tiles, find, parts, slots))
        reach = self._kernel("reach", partial(tile_kernels.reach, target.layout, read))
        return LayerStep(node.name, sources, target, reach, tuple(sizes))

    def _part(
        self, spec: PartKernel, read: list[tuple[KeptLayout, Window]], target: KeptLayout, slots: int, packed: _Packed
    ) -> Part:  # fmt: skip
        template, layouts, batch = TEMPLATES[spec.candidate.template], spec.layouts, spec.batch
        output = spec.workload.output_layout
        sides = [x for x in (layouts.input, layouts.residual) if isinstance(x, LaneLayout)]
        gathers = tuple(
            self._kernel(
                "gather", partial(tile_kernels.gather, source, window, spec.tiles, layout, batch, slots)
            )
            for (source, window), layout in zip(read, sides, strict=True)
        )
        scatter = partial(tile_kernels.scatter, target, spec.tiles, output, batch, slots)
        layer = partial(template.build, spec.workload.without_densities(), spec.candidate, layouts)
        lanes = tuple(self._lanes(i, batch, side.size) for i, side in enumerate([*sides, output]))
        return Part(
            spec,
            gathers,
            self._kernel(f"layer_{template.name}", layer),
            self._kernel("scatter", scatter),
            packed.operands(spec),
            lanes,
        )

    def _lanes(self, slot: int, batch: int, size: int) -> Any:
        """Room for groups of tiles, shared by all layers; the result's is apart from the inputs'."""
        key = slot, batch, size
        if key not in self.scratch:
            self.scratch[key] = shared((batch, size))[1]
        return self.scratch[key]

    def _kernel(self, name: str, writer: Make) -> Kernel:
        """A kernel, written once for equal writers."""
        key = repr(writer)
        if key not in self.known:
            kernel = Kernel(f"{name.replace('-', '_')}_{len(self.known)}")
            self.functions[kernel.name] = writer(kernel.name)
            self.known[key] = kernel
        return self.known[key]


class _Packed:
    """A layer's constant operands; kernels that pack its weight alike share it."""

    def __init__(self, call: Expr, workload: Workload) -> None:
        self.weight = LayerWeight(stored_weight(call), workload.weight_shape)
        others = (*call.args[2].fields, *call.args[3].fields[1:])
        self.others = tuple(device_tensor(x.value.numpy()) for x in others)
        self.known: list[tuple[dict[str, Array], tuple[Any, ...]]] = []

    def operands(self, spec: PartKernel) -> tuple[Any, ...]:
        """Packed weight, bias, residual index: those it has."""
        template = TEMPLATES[spec.candidate.template]
        fresh = template.pack(spec.workload, spec.candidate, self.weight, spec.layouts)
        for arrays, tensors in self.known:
            if all(np.array_equal(arrays[k], fresh[k]) for k in fresh):
                return *tensors, *self.others
        made = tuple(shared_copy(a) for a in fresh.values())
        self.known.append((fresh, made))
        return *made, *self.others
