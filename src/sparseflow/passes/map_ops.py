"""The Relax operators on feature maps that carry their index.

Such a map is a tuple of three tensors, ``(values, bits, count)``, in the order and with the shapes of
`PixelLayout.tensors`. ``sparseflow.index_map(x)`` makes it of a plain tensor, ``sparseflow.dense_map(map)`` makes a
plain tensor of it; layers whose attribute ``maps`` is set take and give such tuples (`MapUse`), and so does
``sparseflow.map_op((map, …))``, an `Operator` that has kernels on them; one that reduces gives a plain tensor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tvm import ir, relax

from sparseflow.core.codec import dumps, loads
from sparseflow.core.element_type import ELEMENT_TYPES
from sparseflow.kernels.layouts.indexed import PixelLayout
from sparseflow.ops.expressions import shape_of
from sparseflow.ops.operator import OPERATORS, Operator

INDEX_MAP = "sparseflow.index_map"
DENSE_MAP = "sparseflow.dense_map"
MAP_OP = "sparseflow.map_op"
Expr = Any


@dataclass(frozen=True)
class MapUse:
    """How a layer works on indexed maps.

    Attributes
    ----------
    input, output : PixelLayout
    residual : PixelLayout or None
    fallback : str
        JSON of the candidate that runs when the map is dense; empty if none is ever faster.
    limit : int
        Non-zeros of the input map up to which the layer's own candidate runs.
    """

    input: PixelLayout
    output: PixelLayout
    residual: PixelLayout | None = None
    fallback: str = ""
    limit: int = 0


def map_of(var: Expr) -> PixelLayout:
    """The layout of an NCHW tensor as an indexed map without halo."""
    _, channels, height, width = shape_of(var)
    return PixelLayout(channels, height, width, element=ELEMENT_TYPES[str(var.ty.dtype)])


def map_type(layout: PixelLayout, batch: int) -> Any:
    """The Relax type of an indexed map."""
    return ir.TupleType([relax.TensorType(shape, dtype) for shape, dtype in layout.tensors(batch)])


def index_map(x: Expr, layout: PixelLayout, batch: int) -> relax.Call:
    """``(values, bits, count)`` of a plain tensor (N, C, H, W)."""
    attrs = ir.make_node("ir.DictAttrs", layout=dumps(layout), batch=batch)
    return relax.Call(ir.Op.get(INDEX_MAP), [x], attrs)


def dense_map(x: Expr, layout: PixelLayout, shape: tuple[int, ...], positive: bool) -> relax.Call:
    """The plain tensor of an indexed map; ``positive`` if no value is negative."""
    attrs = ir.make_node("ir.DictAttrs", layout=dumps(layout), out_shape=json.dumps(shape), positive=positive)
    return relax.Call(ir.Op.get(DENSE_MAP), [x], attrs)


def map_op(
    operands: list[Expr],
    operator: Operator,
    layouts: list[PixelLayout],
    out: PixelLayout,
    shape: tuple[int, ...],
) -> relax.Call:
    """An operator on indexed maps of ``layouts`` whose result, of ``shape``, is one of layout ``out``."""
    attrs = ir.make_node(
        "ir.DictAttrs",
        kind=operator.kind,
        operator=dumps(operator),
        inputs=dumps(layouts),
        out=dumps(out),
        out_shape=json.dumps(shape),
    )
    return relax.Call(ir.Op.get(MAP_OP), [relax.Tuple(operands)], attrs)


def map_operator(call: relax.Call) -> tuple[Operator, list[PixelLayout], PixelLayout]:
    """What a `map_op` call is: the operator, the layouts of its operands and of its result."""
    a = call.attrs
    operator = loads(OPERATORS[str(a["kind"])], str(a["operator"]))
    return operator, loads(list[PixelLayout], str(a["inputs"])), loads(PixelLayout, str(a["out"]))


def _infer_index(call: relax.Call, _builder: Any) -> Any:
    return map_type(loads(PixelLayout, str(call.attrs["layout"])), int(call.attrs["batch"]))


def _infer_dense(call: relax.Call, _builder: Any) -> Any:
    return relax.TensorType(tuple(json.loads(str(call.attrs["out_shape"]))), call.args[0].ty.fields[0].dtype)


def _infer_op(call: relax.Call, _builder: Any) -> Any:
    operator, _, out = map_operator(call)
    shape = tuple(json.loads(str(call.attrs["out_shape"])))
    return relax.TensorType(shape, out.element.name) if operator.reduces else map_type(out, shape[0])


for _name, _infer in ((INDEX_MAP, _infer_index), (DENSE_MAP, _infer_dense), (MAP_OP, _infer_op)):
    ir.register_op_attr(_name, "FPurity", True)
    ir.register_op_attr(_name, "FInferType", _infer)
