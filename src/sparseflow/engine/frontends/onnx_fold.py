"""Static shapes bound, everything that depends on constants and shapes alone evaluated, before translation.

Exporters write shape arithmetic (Shape, Gather, Concat, …) even where all shapes are known. `fold` runs
shape inference and evaluates such nodes until nothing changes; a weight that is only transposed, cast or
dequantised keeps its initialiser's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from sparseflow.errors import ImportModelError, first_line

_RANDOM = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)
_KEEPS_NAME = (
    "Transpose",
    "Identity",
    "Cast",
    "QuantizeLinear",
    "DequantizeLinear",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
)
_SKELETON_LIMIT = 1024  # larger initialisers play no part in shape inference
QUANTISED_SUFFIX = "_quantized"  # what ONNX Runtime's quantiser appends to a weight's name
_ROUNDS = 16  # each round resolves one more link of a chain of data-dependent shapes

Arrays = dict[str, "np.ndarray[Any, Any]"]


def fold(model: Any, shapes: Mapping[str, Sequence[int]]) -> tuple[Any, Arrays, dict[str, str]]:
    """The model's graph without its constant nodes, all constants by tensor name, and names to call them by.

    Parameters
    ----------
    model : onnx.ModelProto
        Left as it is.
    shapes : dict of str to sequence of int
        The static shape of every input.
    """
    constants: Arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    labels = {name: name for name in constants}
    graph = _without_weights(model.graph, shapes)
    for _ in range(_ROUNDS):
        known = _inferred_shapes(model, graph, constants)
        kept = []
        for node in graph.node:
            values = _evaluate(node, constants, known, model.opset_import)
            if values is None:
                kept.append(node)
                continue
            constants.update(values)
            for name in values:
                inherits = node.op_type in _KEEPS_NAME and node.input and node.input[0] in labels
                labels[name] = labels[node.input[0]] if inherits else name
                if node.op_type == "DequantizeLinear":
                    labels[name] = labels[name].removesuffix(QUANTISED_SUFFIX)
        done = len(kept) == len(graph.node)
        del graph.node[:]
        graph.node.extend(kept)
        if done:
            break
    return graph, constants, labels


def _without_weights(graph: Any, shapes: Mapping[str, Sequence[int]]) -> Any:
    out = onnx.GraphProto(name=graph.name)
    initialised = {t.name for t in graph.initializer}
    out.node.extend(graph.node)
    out.output.extend(graph.output)
    for value in graph.input:
        if value.name in initialised:
            continue
        dtype = value.type.tensor_type.elem_type
        out.input.append(onnx.helper.make_tensor_value_info(value.name, dtype, list(shapes[value.name])))
    return out


def _inferred_shapes(model: Any, graph: Any, constants: Arrays) -> dict[str, tuple[int, ...]]:
    """Tensor name → static shape, for all that shape inference can tell."""
    skeleton = onnx.ModelProto(ir_version=max(model.ir_version, 8), graph=graph)
    skeleton.opset_import.extend(model.opset_import)
    del skeleton.graph.output[:]
    skeleton.graph.output.extend(onnx.ValueInfoProto(name=v.name) for v in graph.output)
    used = {name for node in graph.node for name in node.input}
    for name in used & constants.keys():
        array = constants[name]
        if array.size <= _SKELETON_LIMIT:
            skeleton.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        else:
            dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            skeleton.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, array.shape))
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except Exception as error:
        raise ImportModelError(
            f"ONNX graph {graph.name!r}: its shapes do not fit together: {first_line(error)}"
        ) from error
    known = {name: constants[name].shape for name in constants}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        if tensor.HasField("shape") and min(dims, default=0) >= 0:
            known[value.name] = tuple(dims)
    return known


def _evaluate(
    node: Any, constants: Arrays, known: Mapping[str, tuple[int, ...]], opsets: Any
) -> Arrays | None:
    """The node's outputs if they follow from constants and shapes alone, else None."""
    if node.op_type == "Shape" and node.input[0] in known:
        start, end = (next((a.i for a in node.attribute if a.name == k), None) for k in ("start", "end"))
        return {node.output[0]: np.asarray(known[node.input[0]][start:end], "int64")}
    if node.op_type == "Size" and node.input[0] in known:
        return {node.output[0]: np.asarray(np.prod(known[node.input[0]]), "int64")}
    inputs = [name for name in node.input if name]
    if node.op_type in _RANDOM or any(name not in constants for name in inputs):
        return None
    if any(attribute.HasField("g") for attribute in node.attribute):
        return None
    values = [onnx.ValueInfoProto(name=name) for name in inputs]
    results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "constant", values, results)
    single = onnx.helper.make_model(graph, opset_imports=list(opsets))
    try:
        outputs = ReferenceEvaluator(single).run(None, {name: constants[name] for name in inputs})
    except Exception:  # an operator the evaluator lacks stays in the graph, for TVM to translate or refuse
        return None
    return {value.name: np.asarray(array) for value, array in zip(results, outputs, strict=True)}
