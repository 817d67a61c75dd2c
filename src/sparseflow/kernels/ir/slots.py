"""Slots of 32 bits that hold a float32, or neighbouring channels in a narrower type: reading, writing, multiplying."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import BFLOAT16, FLOAT32, UINT8, ElementType, Quantised
from sparseflow.kernels.ir import emit, llvm

Expr = Any


def helpers(lanes: int, *elements: ElementType, features: Collection[str] = (), turned: bool = False) -> str:
    """What kernels on slots of ``elements`` call, as LLVM IR for `emit.prim_func`.

    ``features`` are the instruction sets of the target of a kernel that multiplies; ``turned`` adds `llvm.turned`.
    """
    found = [llvm.PAIRS] if BFLOAT16 in elements else []
    if any(isinstance(e, Quantised) for e in elements):
        found.append(llvm.quads(lanes, features))
    return "".join([*found, llvm.turned(lanes)] if turned else found)


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
