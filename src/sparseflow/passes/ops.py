"""The Relax operators of sparseflow: layers whose weight may be an index.

``sparseflow.conv2d(x, weight, bias, residual)`` and ``sparseflow.linear(...)`` take tuples: ``weight`` is ``(dense,)``
or the arrays of a kernel index ``(indptr, indices, data)``; ``bias`` and ``residual`` hold one tensor or none. Of a
layer that multiplies levels ``weight`` holds these, and ``bias`` is ``(bias, step)``, what a level of each filter is
worth. What they compute is ``activation(layer(x, weight) + bias + residual)``. A residual with other channels than the
result comes with their index, ``(residual, index)``: int32 (filters,), the channel that each filter adds, -1 for none.
``sparseflow.attention(q, k, v, mask)`` takes (batch, tokens, features) matrices and a tuple of one additive mask or
none. All parameters stand in the attributes, so that passes match attributes, never names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from tvm import ir, relax

from sparseflow.core.calibrated_ranges import LayerRanges
from sparseflow.core.codec import dumps, loads
from sparseflow.core.formats import FORMATS, KernelIndex
from sparseflow.kernels.lane.attention import Attention
from sparseflow.kernels.workload import Array, Workload
from sparseflow.ops.attention import ATTENTION
from sparseflow.passes.map_ops import MapUse, map_type

CONV2D = "sparseflow.conv2d"
LINEAR = "sparseflow.linear"


@dataclass(frozen=True)
class LayerAttrs:
    """The attributes of a layer operator.

    Attributes
    ----------
    name : str
        The weight's name in the model; only shown, never matched.
    workload : Workload
        Shapes, epilogue, density of the tap covers, threads.
    out_shape : tuple of int
        The logical shape of the result.
    format : str
        ``dense`` or the name of the index format of ``weight``.
    detection : str
        JSON of what was found in the zeros; empty before the index phase.
    candidate : str
        JSON of the chosen kernel; empty before the plan phase.
    maps : str
        JSON of a `MapUse` when input, residual and result are maps that carry their index; else empty.
    ranges : str
        JSON of `LayerRanges` when the layer multiplies levels, or could as the model is quantised; else empty.
    note : str
        What a pass before the plan has to say of the choice.
    """

    name: str
    workload: Workload
    out_shape: tuple[int, ...]
    format: str = "dense"
    detection: dict[str, Any] = field(default_factory=dict)
    candidate: str = ""
    maps: str = ""
    ranges: str = ""
    note: str = ""

    def to_attrs(self) -> ir.Attrs:
        """As the attributes of a Relax call."""
        return ir.make_node(
            "ir.DictAttrs",
            name=self.name,
            workload=self.workload.key_exact(),
            out_shape=json.dumps(self.out_shape),
            format=self.format,
            detection=json.dumps(self.detection),
            candidate=self.candidate,
            maps=self.maps,
            ranges=self.ranges,
            note=self.note,
        )

    @classmethod
    def of(cls, call: relax.Call) -> LayerAttrs:
        """Reads them back from a call."""
        a = call.attrs
        return cls(
            str(a["name"]),
            Workload.from_key(str(a["workload"])),
            tuple(json.loads(str(a["out_shape"]))),
            str(a["format"]),
            json.loads(str(a["detection"])),
            str(a["candidate"]),
            str(a["maps"]),
            str(a["ranges"]),
            str(a["note"]),
        )

    @property
    def map_use(self) -> MapUse | None:
        """How it works on indexed maps; None if it does not."""
        return loads(MapUse, self.maps) if self.maps else None

    @property
    def map_ranges(self) -> LayerRanges | None:
        """Between which numbers its maps lie, if that is known."""
        return loads(LayerRanges, self.ranges) if self.ranges else None

    def with_(self, **changes: Any) -> LayerAttrs:
        """A copy with some fields changed."""
        return replace(self, **changes)


def layer_call(
    attrs: LayerAttrs, x: relax.Expr, weight: relax.Tuple, bias: relax.Tuple, residual: relax.Tuple
) -> relax.Call:
    """A call of the layer operator that ``attrs`` describes."""
    op = ir.Op.get(CONV2D if attrs.workload.op == "conv2d" else LINEAR)
    return relax.Call(op, [x, weight, bias, residual], attrs.to_attrs())


def is_layer(expr: Any) -> bool:
    """True for a call of ``sparseflow.conv2d`` or ``sparseflow.linear``."""
    return isinstance(expr, relax.Call) and isinstance(expr.op, ir.Op) and expr.op.name in (CONV2D, LINEAR)


def attention_call(
    shape: Attention, operands: list[relax.Expr], mask: relax.Tuple, out_shape: tuple[int, ...]
) -> relax.Call:
    """A call of the attention operator on q, k and v."""
    attrs = ir.make_node("ir.DictAttrs", shape=dumps(shape), out_shape=json.dumps(out_shape))
    return relax.Call(ir.Op.get(ATTENTION), [*operands, mask], attrs)


def constant(array: Array, name: str = "") -> ir.GenericConst:
    """A Relax constant that carries its name in its span."""
    span = ir.Span(ir.SourceName(name), 0, 0, 0, 0) if name else None
    tensor = device_tensor(array)
    return ir.GenericConst(tensor, relax.TensorType(array.shape, str(array.dtype)), span)


def device_tensor(array: Array) -> Any:
    """``array`` copied into memory of TVM's alignment."""
    array = np.asarray(array, order="C")  # keeps a scalar's shape, as ascontiguousarray would not
    tensor = tvm.runtime.empty(array.shape, str(array.dtype))
    tensor.copyfrom(array)
    return tensor


def constant_name(expr: ir.GenericConst) -> str:
    """The name in a constant's span; empty if it has none."""
    return str(expr.span.source_name.name) if expr.span is not None else ""


def weight_of(call: relax.Call) -> Array:
    """The dense weight of a layer call (OIHW, or (out, in) of a linear layer), decoded if it is an index."""
    stored = stored_weight(call)
    return stored.decode() if isinstance(stored, KernelIndex) else stored


def stored_weight(call: relax.Call) -> Array | KernelIndex:
    """The weight of a layer call as the IR holds it."""
    attrs = LayerAttrs.of(call)
    arrays = [item.value.numpy() for item in call.args[1].fields]
    shape = attrs.workload.weight_shape if attrs.workload.op == "conv2d" else attrs.workload.weight_shape[:2]
    if attrs.format == "dense":
        return np.asarray(arrays[0]).reshape(shape)
    named = dict(zip(INDEX_ARRAYS, arrays, strict=True))
    return KernelIndex(FORMATS[attrs.format](), shape, named["data"].dtype, named)


INDEX_ARRAYS = ("indptr", "indices", "data")


def _infer(call: relax.Call, _builder: Any) -> Any:
    if is_layer(call):
        attrs = LayerAttrs.of(call)
        if attrs.map_use is not None:
            return map_type(attrs.map_use.output, attrs.workload.batch)
    return relax.TensorType(tuple(json.loads(str(call.attrs["out_shape"]))), call.args[0].ty.dtype)


for _name in (CONV2D, LINEAR, ATTENTION):
    ir.register_op_attr(_name, "FPurity", True)
    ir.register_op_attr(_name, "FInferType", _infer)
