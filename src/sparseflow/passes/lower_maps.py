"""Lowering of operators on indexed maps: their kernels, the density switch, conversions to and from lanes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tvm import relax

from sparseflow.core.codec import loads
from sparseflow.kernels.indexed import operators as pixel_maps
from sparseflow.kernels.indexed.density_switch import Spec, Stage, density_switch
from sparseflow.kernels.lane.conversions import Strides
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.target.base import VectorUnit
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array, Layouts, natural_layouts
from sparseflow.ops.expressions import op_name, shape_of
from sparseflow.ops.operator import Setting
from sparseflow.passes.graph import Rebuild
from sparseflow.passes.layout import Node
from sparseflow.passes.map_ops import DENSE_MAP, INDEX_MAP, MAP_OP, MapUse, map_operator
from sparseflow.passes.ops import LayerAttrs, constant, is_layer
from sparseflow.passes.weights import Weights

Expr = Any


class Lowering(Protocol):
    """What is needed of the pass that lowers everything else."""

    rebuild: Rebuild
    nodes: dict[Expr, Node]
    lanes: dict[Expr, Expr]
    threads: int
    vectors: VectorUnit
    weights: Weights

    def kernel(self, name: str, key: str, build: Any) -> Any:
        """The global function of a kernel, built once for each ``key``."""

    def row_major(self, var: Expr, shape: tuple[int, ...]) -> Expr:
        """The row-major tensor that ``var`` is or is made of."""

    def reshaped(self, tensor: Expr, shape: tuple[int, ...]) -> Expr:
        """``tensor`` with another shape."""


class MapLowering:
    """Replaces operators on indexed maps by calls of kernels that write values, bits and count."""

    def __init__(self, lowering: Lowering) -> None:
        self.all = lowering

    def takes(self, value: Expr) -> bool:
        """Whether ``value`` reads or gives an indexed map."""
        if is_layer(value):
            return bool(LayerAttrs.of(value).maps)
        return op_name(value) in (INDEX_MAP, DENSE_MAP, MAP_OP)

    def lower(self, var: Expr, value: Expr) -> Any:
        """The call that computes ``var``, or `Rebuild.DROP` for what now lives in lanes."""
        if is_layer(value):
            return self._layer(value)
        name = op_name(value)
        if name == INDEX_MAP:
            return self._index(value)
        if name == DENSE_MAP:
            return self._dense(var, value)
        return self._operator(var, value)

    def _index(self, value: Expr) -> Expr:
        x, layout = value.args[0], loads(PixelLayout, str(value.attrs["layout"]))
        node = self.all.nodes.get(x)
        batch = int(value.attrs["batch"])
        source: LaneLayout | Strides = Strides.nchw(layout.height, layout.width)
        if node is not None and node.layout is not None and x in self.all.lanes:
            source, tensor = node.layout, self.all.lanes[x]
        else:
            shape = shape_of(x)
            tensor = self.all.row_major(x, (batch, shape[1] * shape[2] * shape[3]))
        kernel = self.all.kernel(
            "to_pixels",
            repr((batch, source, layout)),
            lambda n: pixel_maps.to_pixels(batch, source, layout, self.all.threads, n),
        )
        return _call(kernel, [tensor], layout.tensors(batch))

    def _dense(self, var: Expr, value: Expr) -> Any:
        layout = loads(PixelLayout, str(value.attrs["layout"]))
        shape, node = shape_of(var), self.all.nodes[var]
        readers = self.all.rebuild.graph.consumers.get(var, [])
        to_lanes = any(reader in self.all.nodes for reader in readers)
        out: LaneLayout | Strides = Strides.nchw(*shape[2:])
        if to_lanes and node.layout is not None:
            out = node.layout
        size = out.size if isinstance(out, LaneLayout) else shape[1] * shape[2] * shape[3]
        kernel = self.all.kernel(
            "from_pixels",
            repr((shape[0], layout, out)),
            lambda n: pixel_maps.from_pixels(shape[0], layout, out, self.all.threads, n),
        )
        call = _call(kernel, [self._field(value.args[0], 0)], (((shape[0], size), layout.element.storage),))
        tensor = self.all.rebuild.emit(call)
        if isinstance(out, LaneLayout):
            self.all.lanes[var] = tensor
        else:
            self.all.rebuild.env[var] = self.all.reshaped(tensor, shape)
        return Rebuild.DROP

    def _operator(self, var: Expr, value: Expr) -> Expr:
        operator, layouts, out = map_operator(value)
        tensors = [self._field(item, 0) for item in value.args[0].fields]
        batch = int(shape_of(tensors[0])[0])
        make = operator.on_pixels(layouts, out, Setting(batch, self.all.threads, self.all.vectors))
        if make is None:
            raise ValueError(f"{operator.name} has no kernel on indexed maps")
        kernel = self.all.kernel(f"map_{operator.name}", repr(make), make)
        if not operator.reduces:
            return _call(kernel, tensors, out.tensors(batch))
        result = _call(kernel, tensors, (((batch, out.channels), out.element.storage),))
        return self.all.reshaped(self.all.rebuild.emit(result), shape_of(var))

    def _layer(self, value: Expr) -> Expr:
        attrs = LayerAttrs.of(value)
        use = attrs.map_use
        if use is None:
            raise ValueError(f"{attrs.name} reads no indexed map")
        switch = LayerSwitch(attrs, use, self.all.weights.of(value))
        values, bits, count = (self._field(value.args[0], i) for i in range(3))
        given = {"x": values, "x_bits": bits, "count": count}
        if value.args[2].fields:
            given["bias"] = value.args[2].fields[0]
        if use.residual is not None:
            given["residual"] = self._field(value.args[3].fields[0], 0)
        given |= {key: constant(a, f"{attrs.name}.{key[1:]}") for key, a in switch.constants.items()}
        candidate = Candidate.from_json(attrs.candidate)
        key = repr((attrs.workload.without_densities(), candidate.to_json(), use))
        kernel = self.all.kernel(f"{attrs.workload.op}_{candidate.template}", key, switch.build)
        operands = [given[name] for name in switch.inputs]
        return _call(kernel, operands, tuple(switch.outputs.values()))

    def _field(self, var: Expr, index: int) -> Expr:
        """One tensor of an indexed map."""
        return self.all.rebuild.emit(relax.TupleGetItem(self.all.rebuild.old(var), index))


class LayerSwitch:
    """The kernel of a layer on indexed maps, with the plain kernel behind the density switch if there is one."""

    def __init__(self, attrs: LayerAttrs, use: MapUse, weight: LayerWeight) -> None:
        self.use, self.workload = use, attrs.workload
        self.sparse = Candidate.from_json(attrs.candidate)
        self.dense = Candidate.from_json(use.fallback) if use.fallback else None
        self.layouts = Layouts(use.input, use.output, use.residual)
        self.plain = natural_layouts(self.workload)
        self.constants = self._packed("s", self.sparse, weight, self.layouts)
        if self.dense is not None:
            self.constants |= self._packed("d", self.dense, weight, self.plain)

    def _packed(
        self, prefix: str, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        packed = weight.packed(TEMPLATES[candidate.template], self.workload, candidate, layouts)
        return {f"{prefix}{key}": array for key, array in packed.items()}

    @property
    def inputs(self) -> list[str]:
        """Names of the operands in order."""
        names = ["x", "x_bits", *(["count"] if self.dense is not None else []), *self.constants]
        names += ["bias"] if self.workload.bias else []
        return names + (["residual"] if self.use.residual is not None else [])

    @property
    def outputs(self) -> dict[str, Spec]:
        """The result, and the plain maps that the other way needs in between."""
        batch = self.workload.batch
        found: dict[str, Spec] = dict(
            zip(("y", "y_bits", "y_count"), self.use.output.tensors(batch), strict=True)
        )
        if self.dense is not None:
            for name, layout in self._plain_maps().items():
                found[name] = ((batch, layout.size), layout.element.storage)
        return found

    def _plain_maps(self) -> dict[str, LaneLayout]:
        source, output, other = self.plain.in_lanes("the density switch")
        found = {"plain_x": source, "plain_y": output}
        return found | ({"plain_residual": other} if other is not None else {})

    def build(self, name: str) -> Any:
        """The kernel."""
        sparse = self._stage("s", self.sparse, self.layouts, ("x", "x_bits"), "residual")
        sparse = Stage(sparse.build, (*sparse.operands, "y", "y_bits", "y_count"))
        if self.dense is None:
            return sparse.build(name)
        return density_switch(name, self._tensors(), self.use.limit, sparse, self._plain_way(self.dense))

    def _stage(
        self, prefix: str, candidate: Candidate, layouts: Layouts, x: tuple[str, ...], residual: str
    ) -> Stage:
        constants = [key for key in self.constants if key.startswith(prefix)]
        rest = (["bias"] if self.workload.bias else []) + (
            [residual] if self.use.residual is not None else []
        )
        template = TEMPLATES[candidate.template]
        return Stage(lambda n: template.build(self.workload, candidate, layouts, n), (*x, *constants, *rest))

    def _plain_way(self, candidate: Candidate) -> list[Stage]:
        """From the indexed maps to plain ones, the plain kernel, and back."""
        batch, threads, plain = self.workload.batch, self.workload.threads, self._plain_maps()

        def changed(source: PixelLayout, out: LaneLayout) -> Any:
            return lambda n: pixel_maps.from_pixels(batch, source, out, threads, n)

        stages = [Stage(changed(self.use.input, plain["plain_x"]), ("x", "plain_x"))]
        if self.use.residual is not None:
            layout = changed(self.use.residual, plain["plain_residual"])
            stages.append(Stage(layout, ("residual", "plain_residual")))
        layer = self._stage("d", candidate, self.plain, ("plain_x",), "plain_residual")
        stages.append(Stage(layer.build, (*layer.operands, "plain_y")))
        stages.append(
            Stage(
                lambda n: pixel_maps.to_pixels(batch, plain["plain_y"], self.use.output, threads, n),
                ("plain_y", "y", "y_bits", "y_count"),
            )
        )
        return stages

    def _tensors(self) -> Mapping[str, Spec]:
        """All parameters of the switch in order."""
        w = self.workload
        values, bits, count = self.use.input.tensors(w.batch)
        specs: dict[str, Spec] = {
            "x": values,
            "x_bits": bits,
            "count": count,
            "bias": ((w.filters,), w.sums.storage),
        }
        if self.use.residual is not None:
            specs["residual"] = self.use.residual.tensors(w.batch)[0]
        specs |= {key: (a.shape, str(a.dtype)) for key, a in self.constants.items()}
        return {key: specs[key] for key in self.inputs} | self.outputs


def _call(kernel: Any, tensors: list[Expr], outputs: tuple[Spec, ...]) -> relax.Call:
    types = [relax.TensorType(shape, dtype) for shape, dtype in outputs]
    return relax.call_tir(kernel, relax.Tuple(tensors), types if len(types) > 1 else types[0])
