"""The exponential as arithmetic and bit moves, in vectors of any width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir.prim import expr as prim

from sparseflow.core.element_type import FLOAT32

Expr = Any
F32 = FLOAT32.name
"""The type that this arithmetic and its constants are made for."""
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LOG2E, LN2_HIGH, LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4


def vector(value: Any, lanes: int) -> Expr:
    """A vector of equal elements; for one lane the element itself."""
    return prim.Broadcast(value, lanes) if lanes > 1 else value


def exp(x: Expr, lanes: int, once: Callable[[Expr], Expr]) -> Expr:
    """e**x = 2**n · e**r with r in ±ln(2)/2, to 2e-7 relative.

    Clipped so that 2**(n-1), made from bits, is zero at the low and infinity at the high end; any number of NaN. Each
    value is read as seldom as can be: TVM writes out variables where they are read.

    Parameters
    ----------
    x : Expr
        float32.
    lanes : int
        How many elements it has.
    once : callable
        Puts a value into a variable.

    References
    ----------
    S. L. Moshier, *Cephes Mathematical Library*, single precision: ``expf`` (coefficients, Cody-Waite reduction).
    """

    def number(value: float) -> Expr:
        return vector(tirx.const(value, F32), lanes)

    def integer(value: int) -> Expr:
        return vector(tirx.const(value, "int32"), lanes)

    width = f"x{lanes}" if lanes > 1 else ""
    x = once(tirx.max(tirx.min(x, number(89.4)), number(-87.3)))
    # not nearbyint, which TVM does not vectorise
    n = once(tirx.floor(x * number(LOG2E) + number(0.5)))
    r = once(x - n * number(LN2_HIGH) - n * number(LN2_LOW))
    series = number(EXP[0])
    for c in EXP[1:]:
        series = series * r + number(c)
    series = series * (r * r) + r + number(1.0)
    bits = (prim.Cast(f"int32{width}", n) + integer(126)) << integer(23)
    return series * tirx.reinterpret(f"{F32}{width}", bits) * number(2.0)
