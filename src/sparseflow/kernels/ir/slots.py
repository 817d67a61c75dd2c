"""Slots of 32 bits that hold a float32, or neighbouring channels in a narrower type: reading, writing, multiplying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import BFLOAT16, FLOAT32, ElementType
from sparseflow.kernels.ir import emit

Expr = Any
PAIRS = r"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)

define linkonce_odr <16 x float> @sparseflow_dot_bfloat16(<16 x float> %sum, <16 x i32> %x, <16 x i32> %w)
    alwaysinline nounwind {
  %a = bitcast <16 x i32> %x to <32 x bfloat>
  %b = bitcast <16 x i32> %w to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sum, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}

define linkonce_odr <16 x i32> @sparseflow_pair_bfloat16(<16 x float> %low, <16 x float> %high)
    alwaysinline nounwind {
  %a = fptrunc <16 x float> %low to <16 x bfloat>
  %b = fptrunc <16 x float> %high to <16 x bfloat>
  %c = bitcast <16 x bfloat> %a to <16 x i16>
  %d = bitcast <16 x bfloat> %b to <16 x i16>
  %e = zext <16 x i16> %c to <16 x i32>
  %f = zext <16 x i16> %d to <16 x i32>
  %g = shl <16 x i32> %f, splat (i32 16)
  %h = or <16 x i32> %e, %g
  ret <16 x i32> %h
}
"""
"""LLVM IR of what TVM has no name for, on vectors of 16 slots: vdpbf16ps, and two roundings joined in one slot."""


def helpers(*elements: ElementType) -> str:
    """What kernels on slots of ``elements`` call, as LLVM IR for `emit.prim_func`."""
    return PAIRS if BFLOAT16 in elements else ""


def parts(element: ElementType, slot: Expr, lanes: int) -> list[Expr]:
    """The float32 vectors of the channels in a vector of slots."""
    if element == FLOAT32:
        return [slot]
    if element != BFLOAT16:
        raise ValueError(f"no kernel reads slots of {element}")
    high = emit.splat(tirx.const(-65536, "int32"), lanes)  # the upper half's bits
    sixteen = emit.splat(tirx.const(16, "int32"), lanes)
    kind = f"{FLOAT32.name}x{lanes}"
    return [
        tirx.reinterpret(kind, tirx.shift_left(slot, sixteen)),
        tirx.reinterpret(kind, tirx.bitwise_and(slot, high)),
    ]


def joined(element: ElementType, values: Sequence[Expr], lanes: int) -> Expr:
    """The inverse of `parts`, rounded; missing channels are zeros."""
    if element == FLOAT32:
        return values[0]
    low, high = [*values, emit.const(0.0, lanes)][:2]
    return T.call_extern(f"int32x{lanes}", "sparseflow_pair_bfloat16", low, high)


def dot(element: ElementType, total: Expr, x: Expr, weight: Expr, lanes: int) -> Expr:
    """``total`` plus the products of the channels in ``x`` and ``weight``, both vectors of slots."""
    if element == FLOAT32:
        return total + weight * x
    return T.call_extern(f"{FLOAT32.name}x{lanes}", "sparseflow_dot_bfloat16", total, x, weight)
