"""ONNX graphs → Relax, initialisers as named constants."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from sparseflow.engine.frontends.common import check_dtype, elu
from sparseflow.engine.frontends.levels import dequantise, quantise
from sparseflow.engine.frontends.onnx_fold import Arrays, fold
from sparseflow.engine.frontends.onnx_resize import resize_axes
from sparseflow.engine.frontends.resample import pad, resample
from sparseflow.engine.frontends.shapes import Shapes, check_shapes, fit_shape
from sparseflow.errors import ImportModelError, first_line
from sparseflow.passes.ops import constant


def load_onnx(path: Path) -> Any:
    """The `onnx.ModelProto` in a file, external data included.

    Raises
    ------
    ImportModelError
        If the file is truncated, is no ONNX model, or its external data are missing.
    """
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise ImportModelError(
            f"{path}: not a readable ONNX model ({first_line(error)}); is the file complete?"
        ) from error
    if not model.graph.node:
        raise ImportModelError(f"{path}: the ONNX file holds no graph; is the file complete?")
    return model


def onnx_to_relax(model: Any, shapes: Shapes) -> tuple[Any, list[str], list[str]]:
    """One Relax module of an ONNX model, the names of its inputs and of its outputs.

    Raises
    ------
    ImportModelError
        If an operator is unsupported (named with its node) or a dimension stays free.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    initialised = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initialised]
    check_shapes([value.name for value in inputs], shapes)
    bound = {value.name: _bound_shape(value, shapes.get(value.name)) for value in inputs}
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    _check_operators(graph)
    graph, constants, labels = fold(model, bound)
    for name, array in constants.items():
        if array.ndim > 1:
            check_dtype(name, str(array.dtype))
    importer = _Importer(bound, "float32", keep_params_in_input=False)
    read = set(_read(graph))
    importer.name_constants({name: array for name, array in constants.items() if name in read}, labels)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            mod = importer.from_onnx(graph, opset)
        except ImportModelError:
            raise
        except Exception as error:
            raise ImportModelError(
                f"ONNX graph {graph.name!r}: TVM cannot translate it: {first_line(error)}"
            ) from error
    return mod, [value.name for value in inputs], [value.name for value in graph.output]


def _read(graph: Any) -> Iterator[str]:
    """The names of the tensors that a graph and those inside of it read or return."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g)


def _bound_shape(value: Any, wanted: Sequence[int] | None) -> list[int]:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        if wanted is None:
            raise ImportModelError(
                f"input {value.name!r}: no shape in the model; give --shape {value.name}=…"
            )
        return [int(w) for w in wanted]
    declared: list[int | str] = [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or "?"
        for d in tensor.shape.dim
    ]
    pairs = dict(fit_shape(value.name, declared, wanted))
    return [pairs.get(i, d if isinstance(d, int) else 0) for i, d in enumerate(declared)]


def operators() -> set[str]:
    """The operators that can be imported, by TVM or by this project."""
    return {*onnx_frontend._get_convert_map(), *HIGH_LEVEL, "If", "Constant"}


def _check_operators(graph: Any) -> None:
    known = operators()
    for node in graph.node:
        if node.op_type not in known:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise ImportModelError(
                f"unsupported operator {name} at node {node.name or node.output[0]!r}: "
                "replace it by supported operators or keep it outside of the compiled part"
            )


class _Importer(onnx_frontend.ONNXGraphImporter):
    """TVM's importer with named constants, failures by node, and high-level forms where TVM inlines loops."""

    def _check_for_unsupported_ops(self, graph: Any) -> None:
        """Nothing: `_check_operators` has done it, with the forms that this project adds."""

    def name_constants(self, constants: Arrays, labels: dict[str, str]) -> None:
        """Make ``constants`` known under their tensor names, each with its label in the span."""
        for name, array in constants.items():
            self._nodes[name] = constant(array, labels[name])

    def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
        convert = HIGH_LEVEL.get(op_name)
        try:
            expr = convert(self.bb, inputs, attrs) if convert is not None else None
            if expr is None:
                return super()._convert_operator(op_name, inputs, attrs, opset)
            return self.bb.normalize(expr) if not isinstance(expr, relax.Tuple) else expr
        except ImportModelError:
            raise
        except Exception as error:
            raise ImportModelError(
                f"unsupported use of {_place(op_name, attrs)}: TVM cannot translate it ({first_line(error)})"
            ) from error


def _place(op_name: str, attrs: dict[str, Any]) -> str:
    node = attrs.get("tvm_custom", {}).get("name") or "(unnamed)"
    return f"operator {op_name} at node {node!r}"


def _array(expr: Any) -> np.ndarray[Any, Any] | None:
    return np.asarray(expr.value.numpy()) if isinstance(expr, tvm.ir.GenericConst) else None


def _hard_sigmoid(_bb: Any, inputs: Any, attrs: dict[str, Any]) -> Any:
    if abs(attrs.get("alpha", 0.2) - 1 / 6) > 1e-6 or attrs.get("beta", 0.5) != 0.5:
        return None
    x, dtype = inputs[0], str(inputs[0].ty.dtype.dtype)
    shifted = relax.op.clip(relax.op.add(x, relax.const(3.0, dtype)), 0, 6)
    return relax.op.divide(shifted, relax.const(6.0, dtype))


def _celu(bb: Any, inputs: Any, attrs: dict[str, Any]) -> Any:
    """``max(0, x) + min(0, alpha (exp(x / alpha) - 1))``."""
    alpha = float(attrs.get("alpha", 1.0))
    return elu(bb.emit, inputs[0], alpha, input_scale=1.0 / alpha)


def _clip(_bb: Any, inputs: Any, attrs: dict[str, Any]) -> Any:
    low, high = attrs.get("min", -math.inf), attrs.get("max", math.inf)
    bounds = [_array(value) for value in list(inputs)[1:] if value is not None]
    if any(b is None for b in bounds) or str(inputs[0].ty.dtype.dtype) != "float32":
        return None
    if len(inputs) > 1 and inputs[1] is not None:
        low = float(_array(inputs[1]))  # type: ignore[arg-type]
    if len(inputs) > 2 and inputs[2] is not None:
        high = float(_array(inputs[2]))  # type: ignore[arg-type]
    return relax.op.clip(inputs[0], low, high)


def _dropout(_bb: Any, inputs: Any, attrs: dict[str, Any]) -> Any:
    training = _array(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else None
    if training is not None and bool(training):
        raise ImportModelError("unsupported operator Dropout in training mode: export the model in eval mode")
    return inputs[0] if attrs["tvm_custom"]["num_outputs"] == 1 else None


def _pad(bb: Any, inputs: Any, attrs: dict[str, Any]) -> Any:
    mode = attrs.get("mode", b"constant")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    rank = len(inputs[0].ty.shape)
    given = [None if x is None else _array(x) for x in inputs[1:]] + [None] * 3
    pads = given[0] if given[0] is not None else attrs.get("pads", attrs.get("paddings"))  # of opset 1
    if pads is None or any(x is not None and a is None for x, a in zip(inputs[1:], given, strict=False)):
        raise ImportModelError("unsupported operator Pad with widths that are no constants")
    value = float(attrs.get("value", 0.0) if given[1] is None else given[1].reshape(()))
    axes = range(rank) if given[2] is None else [int(a) % rank for a in given[2]]
    both = {a: (int(pads[i]), int(pads[i + len(axes)])) for i, a in enumerate(axes)}
    return pad(bb.emit, inputs[0], both, mode, value)


def _resize(bb: Any, inputs: Any, attrs: dict[str, Any]) -> Any:
    x, *rest = inputs
    if len(rest) == 1:  # opset 10, and Upsample of opset 9: no region of interest
        rest = [None, *rest]
    roi, scales, sizes = [
        None if a is None or not a.size else a for a in map(_array, [*rest, None, None, None][:3])
    ]
    if "scales" in attrs:
        scales = np.asarray(attrs["scales"])
    if attrs.get("mode", b"nearest") in (b"bilinear", "bilinear"):  # Upsample of opset 1
        attrs = {**attrs, "mode": "linear"}
    if not rest or (len(rest) == 2 and rest[0] is None):
        attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", **attrs}
    try:
        axes = resize_axes(
            [int(n) for n in x.ty.shape],
            attrs,
            *(None if a is None else a.tolist() for a in (scales, sizes, roi)),
        )
    except ValueError as error:
        raise ImportModelError(f"unsupported operator Resize: {error}") from error
    return resample(bb.emit, x, axes, float(attrs.get("extrapolation_value", 0.0)))


def _quantise(_bb: Any, inputs: Any, attrs: dict[str, Any]) -> Any:
    x, scale, zero = [*inputs, None][:3]
    dtype = "uint8" if zero is None else str(zero.ty.dtype.dtype)
    return quantise(
        _place("QuantizeLinear", attrs), x, _array(scale), 0 if zero is None else _array(zero), dtype
    )


def _dequantise(bb: Any, inputs: Any, attrs: dict[str, Any]) -> Any:
    x, scale, zero = [*inputs, None][:3]
    if str(x.ty.dtype.dtype) == "int32":  # sums, which are no map
        return None
    return dequantise(
        _place("DequantizeLinear", attrs), bb, x, _array(scale), 0 if zero is None else _array(zero)
    )


HIGH_LEVEL: dict[str, Callable[[Any, Any, dict[str, Any]], Any]] = {
    "Celu": _celu,
    "Clip": _clip,
    "DequantizeLinear": _dequantise,
    "Dropout": _dropout,
    "HardSigmoid": _hard_sigmoid,
    "Pad": _pad,
    "QuantizeLinear": _quantise,
    "Resize": _resize,
    "Upsample": _resize,
}
"""Operators that this project translates; one that gives None is left to TVM."""
