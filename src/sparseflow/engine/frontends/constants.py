"""Weights as Relax constants that carry their parameter's name in their span; what all frontends share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparseflow.errors import ImportModelError


def named_constant(array: np.ndarray[Any, Any], name: str) -> Any:
    """A Relax constant of ``array`` (copied) whose span's source name is ``name``."""
    span = tvm.ir.Span(tvm.ir.SourceName(name), 0, 0, 0, 0)
    plain = relax.const(np.ascontiguousarray(array).reshape(array.shape), str(array.dtype))
    return tvm.ir.GenericConst(plain.value, plain.ty, span)


def constant_name(expr: Any) -> str:
    """The parameter name of a constant, or ``""`` if it has none."""
    span = getattr(expr, "span", None)
    return str(span.source_name.name) if span is not None else ""


def address(constant: Any) -> int:
    """Where the values of a constant lie in memory: equal for two views of one weight."""
    return int(np.from_dlpack(constant.value).ctypes.data)


def elu(
    emit: Callable[[Any], Any], x: Any, alpha: float, scale: float = 1.0, input_scale: float = 1.0
) -> Any:
    """``scale (max(0, x) + min(0, alpha (exp(input_scale x) - 1)))``: ELU, SELU and CELU."""

    def times(y: Any, factor: float) -> Any:
        return y if factor == 1.0 else emit(relax.op.multiply(y, relax.const(factor, dtype)))

    dtype = str(x.ty.dtype.dtype)
    power = emit(relax.op.exp(times(x, input_scale)))
    below = emit(relax.op.nn.relu(emit(relax.op.subtract(relax.const(1.0, dtype), power))))
    return emit(relax.op.add(times(emit(relax.op.nn.relu(x)), scale), times(below, -scale * alpha)))


def check_dtype(name: str, dtype: str) -> None:
    """Nothing for float32 and for integers and truth values.

    Raises
    ------
    ImportModelError
        For any other floating-point type.
    """
    if "float" in dtype and dtype != "float32":
        raise ImportModelError(
            f"tensor {name!r}: its type is {dtype}; only float32 models compile: convert the model first (.float())"
        )


def close_blocks(builder: Any) -> None:
    """Ends the block that a failed translation leaves open, of which TVM would warn on standard error."""
    with contextlib.suppress(RuntimeError, AttributeError):
        builder._end_block()
