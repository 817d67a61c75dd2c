"""Slots of 32 bits that hold a float32, or neighbouring channels in a narrower type: reading, writing, multiplying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import BFLOAT16, FLOAT32, UINT8, ElementType, Quantised
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
ORDER = [part * 16 + channel * 4 + slot for part in range(4) for slot in range(4) for channel in range(4)]
"""The packing instructions work in parts of 128 bits, each of which then holds four slots channel by channel."""
QUADS = f"""
declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>)
declare <16 x i32> @llvm.x86.avx512.mask.cvtps2dq.512(<16 x float>, <16 x i32>, i16, i32)
declare <32 x i16> @llvm.x86.avx512.packssdw.512(<16 x i32>, <16 x i32>)
declare <64 x i8> @llvm.x86.avx512.packuswb.512(<32 x i16>, <32 x i16>)

define linkonce_odr <16 x i32> @sparseflow_dot_uint8(<16 x i32> %sum, <16 x i32> %x, <16 x i32> %w)
    alwaysinline nounwind {{
  %a = bitcast <16 x i32> %x to <64 x i8>
  %b = bitcast <16 x i32> %w to <64 x i8>
  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %sum, <64 x i8> %a, <64 x i8> %b)
  ret <16 x i32> %r
}}

define linkonce_odr <32 x i16> @sparseflow_rounded(<16 x float> %a, <16 x float> %b) alwaysinline nounwind {{
  %c = call <16 x i32> @llvm.x86.avx512.mask.cvtps2dq.512(<16 x float> %a, <16 x i32> zeroinitializer, i16 -1, i32 4)
  %d = call <16 x i32> @llvm.x86.avx512.mask.cvtps2dq.512(<16 x float> %b, <16 x i32> zeroinitializer, i16 -1, i32 4)
  %r = call <32 x i16> @llvm.x86.avx512.packssdw.512(<16 x i32> %c, <16 x i32> %d)
  ret <32 x i16> %r
}}

define linkonce_odr <16 x i32> @sparseflow_quad_uint8(<16 x float> %a, <16 x float> %b, <16 x float> %c,
    <16 x float> %d) alwaysinline nounwind {{
  %ab = call <32 x i16> @sparseflow_rounded(<16 x float> %a, <16 x float> %b)
  %cd = call <32 x i16> @sparseflow_rounded(<16 x float> %c, <16 x float> %d)
  %p = call <64 x i8> @llvm.x86.avx512.packuswb.512(<32 x i16> %ab, <32 x i16> %cd)
  %q = shufflevector <64 x i8> %p, <64 x i8> poison, <64 x i32> <{", ".join(f"i32 {i}" for i in ORDER)}>
  %r = bitcast <64 x i8> %q to <16 x i32>
  ret <16 x i32> %r
}}
"""
"""The same for four channels: vpdpbusd, and four roundings, saturated to a byte each, joined in one slot."""
EXPAND = """
declare <64 x i8> @llvm.x86.avx512.mask.expand.v64i8(<64 x i8>, <64 x i8>, <64 x i1>)

define linkonce_odr <16 x i32> @sparseflow_expand_int8(ptr %start, i64 %at, i64 %mask) alwaysinline nounwind {
  %p = getelementptr i8, ptr %start, i64 %at
  %v = load <64 x i8>, ptr %p, align 1
  %m = bitcast i64 %mask to <64 x i1>
  %e = call <64 x i8> @llvm.x86.avx512.mask.expand.v64i8(<64 x i8> %v, <64 x i8> zeroinitializer, <64 x i1> %m)
  %r = bitcast <64 x i8> %e to <16 x i32>
  ret <16 x i32> %r
}
"""
"""vpexpandb: bytes that lie behind each other, put where a mask of 64 bits has ones; zeros in between."""
DECODE = """
declare <64 x i8> @llvm.x86.avx512.pshuf.b.512(<64 x i8>, <64 x i8>)
declare <64 x i8> @llvm.x86.avx512.mask.expand.v64i8(<64 x i8>, <64 x i8>, <64 x i1>)

define linkonce_odr <16 x i32> @sparseflow_decode_int8(ptr %start, i64 %at, i64 %mask, <16 x i32> %table)
    alwaysinline nounwind {
  %p = getelementptr i8, ptr %start, i64 %at
  %v = load <32 x i8>, ptr %p, align 1
  %w = zext <32 x i8> %v to <32 x i16>
  %h = shl <32 x i16> %w, splat (i16 4)
  %o = or <32 x i16> %w, %h
  %n = and <32 x i16> %o, splat (i16 3855)
  %i = bitcast <32 x i16> %n to <64 x i8>
  %t = bitcast <16 x i32> %table to <64 x i8>
  %d = call <64 x i8> @llvm.x86.avx512.pshuf.b.512(<64 x i8> %t, <64 x i8> %i)
  %m = bitcast i64 %mask to <64 x i1>
  %e = call <64 x i8> @llvm.x86.avx512.mask.expand.v64i8(<64 x i8> %d, <64 x i8> zeroinitializer, <64 x i1> %m)
  %r = bitcast <64 x i8> %e to <16 x i32>
  ret <16 x i32> %r
}
"""
"""The same for codes of 4 bits, the first in the low half of a byte, whose bytes vpshufb finds in a table of 16."""


def helpers(*elements: ElementType) -> str:
    """What kernels on slots of ``elements`` call, as LLVM IR for `emit.prim_func`."""
    quads = any(isinstance(e, Quantised) for e in elements)
    return (PAIRS if BFLOAT16 in elements else "") + (QUADS if quads else "")


def parts(element: ElementType, slot: Expr, lanes: int) -> list[Expr]:
    """The float32 vectors of the channels in a vector of slots."""
    if element == FLOAT32:
        return [slot]
    kind = f"{FLOAT32.name}x{lanes}"
    if isinstance(element, Quantised):
        zero, scale = (emit.const(float(v), lanes) for v in (element.zero_point, element.scale))
        from_zero = [v - zero if element.zero_point else v for v in levels(slot, lanes)]
        return [v * scale if element.scale != 1.0 else v for v in from_zero]
    if element != BFLOAT16:
        raise ValueError(f"no kernel reads slots of {element}")
    high = emit.splat(tirx.const(-65536, "int32"), lanes)  # the upper half's bits
    sixteen = emit.splat(tirx.const(16, "int32"), lanes)
    return [
        tirx.reinterpret(kind, tirx.shift_left(slot, sixteen)),
        tirx.reinterpret(kind, tirx.bitwise_and(slot, high)),
    ]


def levels(slot: Expr, lanes: int) -> list[Expr]:
    """The levels of the four channels in a vector of slots, as float32 vectors."""
    byte = emit.splat(tirx.const(255, "int32"), lanes)
    slot = T.bind(slot)
    shifted = [
        slot,
        *(tirx.shift_right(slot, emit.splat(tirx.const(8 * i, "int32"), lanes)) for i in (1, 2, 3)),
    ]
    return [tirx.Cast(f"{FLOAT32.name}x{lanes}", tirx.bitwise_and(v, byte)) for v in shifted]


def level(slot: Expr, channel: Expr, lanes: int) -> Expr:
    """The levels of one channel in a vector of slots, as a float32 vector."""
    shifted = tirx.shift_right(slot, emit.splat(channel * 8, lanes))
    return tirx.Cast(
        f"{FLOAT32.name}x{lanes}", tirx.bitwise_and(shifted, emit.splat(tirx.const(255, "int32"), lanes))
    )


def joined(element: ElementType, values: Sequence[Expr], lanes: int) -> Expr:
    """The inverse of `parts`, rounded; missing channels are zeros."""
    if element == FLOAT32:
        return values[0]
    if isinstance(element, Quantised):
        by, zero = (emit.const(v, lanes) for v in (1.0 / element.scale, float(element.zero_point)))
        return from_levels(
            [*(v * by + zero for v in values), *[zero] * (element.per_slot - len(values))], lanes
        )
    low, high = [*values, emit.const(0.0, lanes)][:2]
    return T.call_extern(f"int32x{lanes}", "sparseflow_pair_bfloat16", low, high)


def from_levels(values: Sequence[Expr], lanes: int) -> Expr:
    """The slots of four float32 vectors of levels: each rounded to the nearest, ties to even, and saturated."""
    return T.call_extern(f"int32x{lanes}", "sparseflow_quad_uint8", *values)


def larger(lanes: int, a: Expr, b: Expr) -> Expr:
    """Vectors of slots of levels with the larger of each channel."""
    as_bytes = (tirx.reinterpret(f"{UINT8.storage}x{lanes * UINT8.per_slot}", v) for v in (a, b))
    return tirx.reinterpret(f"int32x{lanes}", tirx.max(*as_bytes))


def dot(element: ElementType, total: Expr, x: Expr, weight: Expr, lanes: int) -> Expr:
    """``total`` plus the products of the channels in ``x`` and ``weight``, both vectors of slots."""
    if element == FLOAT32:
        return total + weight * x
    name = element.name
    return T.call_extern(f"{element.accumulator}x{lanes}", f"sparseflow_dot_{name}", total, x, weight)


def expanded(data: Any, at: Expr, mask: Expr) -> Expr:
    """A vector of 16 slots with the bytes from byte ``at`` of ``data`` on where ``mask`` has ones; needs `EXPAND`."""
    return T.call_extern("int32x16", "sparseflow_expand_int8", T.address_of(data[0]), at, mask)


def decoded(data: Any, at: Expr, mask: Expr, table: Expr) -> Expr:
    """The same with codes from byte ``at`` on; ``table`` holds its 16 bytes four times; needs `DECODE`."""
    return T.call_extern("int32x16", "sparseflow_decode_int8", T.address_of(data[0]), at, mask, table)


def rounded(value: Expr, inverse: Expr, zero: Expr, lanes: int) -> Expr:
    """The nearest levels of a float32 vector, ties to even, saturated, as uint8; NaN is level 0."""
    low, high, whole = (emit.const(v, lanes) for v in (0.0, 255.0, 2.0**23))
    level = T.bind(value * emit.splat(inverse, lanes) + emit.splat(zero, lanes))
    level = T.bind(emit.at_most(emit.at_least(level, low), high))
    suffix = f"x{lanes}" if lanes > 1 else ""
    bits = tirx.reinterpret(f"int32{suffix}", level + whole)  # the sum's last bits are the level
    return tirx.Cast(f"{UINT8.storage}{suffix}", tirx.bitwise_and(bits, emit.splat(T.int32(255), lanes)))
