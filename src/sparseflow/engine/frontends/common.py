"""What the frontends share: the check of types, weights by their address, ELU, blocks closed after a failure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from sparseflow.errors import ImportModelError


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
