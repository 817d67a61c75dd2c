"""Stored elements in the type of sums: what each element type takes to be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from sparseflow.core.element_type import BFLOAT16, FLOAT16, FLOAT32, ElementType

Expr = Any


def widened(element: ElementType, stored: Expr, lanes: int = 1) -> Expr:
    """``stored``, a scalar or a vector as ``element`` stores it, as float32."""
    return WIDEN[element.name](stored, f"x{lanes}" if lanes > 1 else "")


def _upper_half(stored: Expr, suffix: str) -> Expr:
    bits = tirx.Cast(f"uint32{suffix}", stored)
    sixteen = tirx.const(16, "uint32")
    by = tirx.Broadcast(sixteen, int(suffix[1:])) if suffix else sixteen
    return tirx.reinterpret(f"{FLOAT32.name}{suffix}", tirx.shift_left(bits, by))


WIDEN: dict[str, Callable[[Expr, str], Expr]] = {
    FLOAT32.name: lambda stored, _: stored,
    FLOAT16.name: lambda stored, suffix: tirx.Cast(f"{FLOAT32.name}{suffix}", stored),
    BFLOAT16.name: _upper_half,
}
"""By element type: (stored elements, the suffix of TVM's name of their vector) → float32."""
