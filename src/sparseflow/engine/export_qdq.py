"""A float model and the ranges of its maps → ONNX with quantised weights and maps, for other engines.

Where a layer's maps are in the ONNX graph is found by importing it with a marker of its own scale on every tensor:
markers hinder no fusion, so that each layer tells which tensors it reads, writes and adds.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm

from sparseflow.core.calibrated_ranges import CalibratedRanges, LayerRanges, Range
from sparseflow.core.files import complete_file
from sparseflow.core.steps import filter_steps
from sparseflow.engine.frontends.importer import import_model, read_model
from sparseflow.engine.measure.peers.base import Subject
from sparseflow.engine.measure.peers.quantising import silent
from sparseflow.engine.target.targets import resolve
from sparseflow.errors import CompileError, ImportModelError, first_line, needs
from sparseflow.passes.canonicalise import Canonicalise
from sparseflow.passes.graph import Graph
from sparseflow.passes.ops import LayerAttrs, is_layer

if TYPE_CHECKING:
    import onnx

_AXIS = {"Conv": 0, "Gemm": 0, "MatMul": 1}
"""Operators of layers, and the axis of their weight along which filters lie (of Gemm with ``transB``)."""


@dataclass(frozen=True)
class _Layer:
    """A layer of the graph: its node, its weight, and the tensors where its maps are; None where there is none."""

    node: Any
    weight: Any
    source: str | None
    result: str | None
    residual: str | None

    @property
    def axis(self) -> int:
        """Of the weight, along which filters lie."""
        turned = any(a.name == "transB" and a.i for a in self.node.attribute)
        return 1 if self.node.op_type == "Gemm" and not turned else _AXIS[self.node.op_type]

    def places(self, ranges: LayerRanges) -> Iterator[tuple[str, Range]]:
        """The tensors with their ranges."""
        found = ((self.source, ranges.source), (self.result, ranges.result), (self.residual, ranges.residual))
        yield from ((name, known) for name, known in found if name is not None and known is not None)


def export_qdq(
    model: Any,
    ranges: CalibratedRanges,
    path: str | os.PathLike[str],
    example_inputs: Sequence[Any] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Writes a model in ONNX whose layers have weights of 8 bits and maps on levels.

    Weights are int8 with a step for each filter, the one they lie on if they lie on levels; biases are int32, maps
    uint8, between ``QuantizeLinear`` and ``DequantizeLinear``. ONNX Runtime runs it, and ``compile(path,
    precision="int8")`` computes on the same levels.

    Parameters
    ----------
    model : nn.Module, ExportedProgram, ModelProto or path
        A module needs ``example_inputs``.
    ranges : CalibratedRanges
        Of the same model, as `measure_ranges` gives them; layers that they do not name stay float32.
    path : path
        Complete or not there.
    example_inputs, shapes
        As for `sparseflow.compile`.

    Raises
    ------
    CompileError
        If no layer of the model is in ``ranges``, or ONNX Runtime's quantiser refuses it.
    ImportModelError
        If the model cannot be read or written as ONNX.
    """
    with needs("peers", "export_qdq", CompileError):
        import onnx
        import onnxruntime.quantization  # noqa: F401
    graph = _as_onnx(model, example_inputs)
    layers = _with_ranges(_layers(graph, shapes), ranges)
    tensors: dict[str, Range] = {}
    for layer, known in layers:
        for tensor, found in layer.places(known):
            tensors.setdefault(tensor, found)
    try:
        with silent():
            quantised = _quantised(graph, [layer for layer, _ in layers], tensors)
    except Exception as error:
        raise CompileError(
            f"export_qdq: ONNX Runtime cannot quantise this model: {first_line(error)}"
        ) from error
    with complete_file(Path(path)) as partial:
        onnx.save(quantised, str(partial))


def _as_onnx(model: Any, example_inputs: Sequence[Any] | None) -> onnx.ModelProto:
    """A copy of the model in ONNX, with types of its tensors and names of its nodes."""
    import onnx

    if isinstance(model, str | os.PathLike):
        model = read_model(Path(model))
    if not isinstance(model, onnx.ModelProto):
        arrays = tuple(np.asarray(x) for x in example_inputs or ())
        with tempfile.TemporaryDirectory() as folder:
            model = onnx.load(str(Subject("export_qdq", model, arrays).as_onnx(Path(folder))))
    try:
        graph = onnx.shape_inference.infer_shapes(model)
    except Exception as error:
        raise ImportModelError(f"export_qdq: shapes do not fit together: {first_line(error)}") from error
    for i, node in enumerate(graph.graph.node):
        node.name = node.name or f"node{i}"
    return graph


def _layers(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None) -> dict[str, _Layer]:
    """The layers whose weights are initialisers, by name."""
    marked, tensors = _marked(model)
    imported = import_model(marked, shapes=shapes)
    mod = tvm.transform.Sequential([Canonicalise(resolve("native"))])(imported.mod)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = defaultdict(list)
    for node in model.graph.node:
        if node.op_type in _AXIS and node.input[1] in constants:
            nodes[node.input[1].removesuffix(".weight")].append(node)

    def place(found: Range | None) -> str | None:
        return None if found is None else tensors[round(found.high / 127.0) - 1]

    layers = {}
    for binding in Graph(mod).bindings:
        attrs = LayerAttrs.of(binding.value) if is_layer(binding.value) else None
        if attrs is None or attrs.map_ranges is None or len(nodes[attrs.name]) != 1:
            continue
        (node,), at = nodes[attrs.name], attrs.map_ranges
        layers[attrs.name] = _Layer(
            node, constants[node.input[1]], place(at.source), place(at.result), place(at.residual)
        )
    return layers


def _with_ranges(found: Mapping[str, _Layer], ranges: CalibratedRanges) -> list[tuple[_Layer, LayerRanges]]:
    """Each layer with its ranges: by name, or in order where writing the model as ONNX has renamed weights."""
    known = {layer.name: layer for layer in ranges.layers}
    if not known.keys() >= found.keys() and len(found) == len(ranges.layers):
        return list(zip(found.values(), ranges.layers, strict=True))
    named = [(layer, known[name]) for name, layer in found.items() if name in known]
    if not named:
        raise CompileError(
            f"export_qdq: ranges of {len(known)} layers ({', '.join(list(known)[:3])}, …) given, the model has "
            f"{len(found)} ({', '.join(list(found)[:3])}, …); measure this model's"
        )
    return named


def _marked(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy with levels on each float32 tensor that inputs decide: tensor ``i`` of the list has scale i + 1."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {tensor.name for tensor in graph.initializer}
    float32 = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    varying = {value.name for value in graph.input} - constants
    for node in graph.node:
        if varying.intersection(node.input):
            varying.update(node.output)
    tensors, pairs = sorted(varying & float32), {}
    zero = onnx.helper.make_tensor("levels.zero", onnx.TensorProto.INT8, (), [0])
    graph.initializer.append(zero)
    for i, name in enumerate(tensors):
        scale, out = onnx.numpy_helper.from_array(np.float32(i + 1), f"{name}.scale"), f"{name}.marked"
        graph.initializer.append(scale)
        pairs[name] = [
            onnx.helper.make_node("QuantizeLinear", [name, scale.name, zero.name], [f"{name}.levels"]),
            onnx.helper.make_node("DequantizeLinear", [f"{name}.levels", scale.name, zero.name], [out]),
        ]
    nodes = [pair for value in graph.input for pair in pairs.get(value.name, [])]
    for node in graph.node:
        node.input[:] = [f"{name}.marked" if name in pairs else name for name in node.input]
        nodes += [node, *(pair for name in node.output for pair in pairs.get(name, []))]
    for value in graph.output:
        value.name = f"{value.name}.marked" if value.name in pairs else value.name
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    return copy, tensors


def _quantised(model: onnx.ModelProto, layers: Sequence[_Layer], tensors: Mapping[str, Range]) -> Any:
    """The model with levels on ``tensors`` and on the weights of ``layers``."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    overrides = {}
    for layer in layers:
        weight = np.moveaxis(onnx.numpy_helper.to_array(layer.weight), layer.axis, 0)
        overrides[layer.weight.name] = [
            {"axis": layer.axis, "quant_type": QuantType.QInt8, "scale": step, "zero_point": np.int8(0)}
            for step in filter_steps(weight)
        ]
    data = {name: (np.float32(r.low), np.float32(r.high)) for name, r in tensors.items()}
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[layer.node.name for layer in layers if layer.source in tensors],
        nodes_to_exclude=[],
        op_types_to_quantize=list(_AXIS),
        extra_options={
            "OpTypesToExcludeOutputQuantization": list(_AXIS),
            "TensorQuantOverrides": overrides,
        },
    )
    for name in tensors:
        quantizer.quantize_activation_tensor(name)
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model
