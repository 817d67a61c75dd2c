"""Transcendental functions as polynomials, so that a loop over them stays in vector registers.

LLVM turns ``exp`` of a vector into one library call per lane. The expressions here hold only arithmetic,
comparisons and bit moves. Largest errors over all finite float32 inputs, held by ``tests/passes``:

========= ==================================== =====================================================
function  error                                outside the range
========= ==================================== =====================================================
exp       2e-7 relative for x >= -86.9         0 below -87 and of -infinity; infinity above 88.7
tanh      3e-7 relative                        ±1 of ±infinity
sigmoid   3e-7 relative for x >= -86.9         0 and 1 of ±infinity
erf       4e-7 relative and absolute           ±1 of ±infinity
log       2e-7 relative to max(|log x|, 1e-2)  of 0 -infinity, of negative numbers NaN; -88 of denormals
========= ==================================== =====================================================

NaN stays NaN in all of them, so that softplus, SiLU, GELU and Mish, which are made of them, keep it as torch does.

References
----------
S. L. Moshier, *Cephes Mathematical Library*, single precision: ``expf``, ``tanhf``, ``logf`` (coefficients,
range reduction). The quotient for erf is a least-squares fit on Chebyshev nodes of [0, 3.83], reweighted
towards the largest error (J. Sanathanan, C. Koerner, *Transfer function synthesis as a ratio of two complex
polynomials*, IEEE Trans. Automatic Control 8(1), 1963).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from tvm import ir, tirx
from tvm.ir.prim import expr as prim

from sparseflow.core.activations.tanh import END, NEAR
from sparseflow.kernels.ir.math import F32, LN2_HIGH, LN2_LOW
from sparseflow.kernels.ir.math import exp as vector_exp

from .expr import Expr, const, dtype_of, rewrite, walk


def _f(value: float) -> Expr:
    return const(value, F32)


def _let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """``body`` of ``value`` computed once; `Registers` keeps TVM from writing it out."""
    var = tirx.Var("t", dtype_of(value))
    return prim.Let(var, value, body(var))


def horner(coefficients: Sequence[float], x: Expr) -> Expr:
    """The polynomial with the given coefficients, highest power first."""
    total = _f(coefficients[0])
    for c in coefficients[1:]:
        total = total * x + _f(c)
    return total


def exp(x: Expr) -> Expr:
    """e**x of one element; see `sparseflow.kernels.ir.math.exp`. NaN passes."""
    bound: list[tuple[Any, Expr]] = []

    def once(value: Expr) -> Expr:
        bound.append((tirx.Var("t", dtype_of(value)), value))
        return bound[-1][0]

    x = once(x)
    result = vector_exp(x, 1, once)
    result = prim.Select(x <= _f(float("inf")), result, x)
    for var, value in reversed(bound):
        result = prim.Let(var, value, result)
    return result


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e**-x)."""
    return _f(1.0) / (_f(1.0) + exp(_f(0.0) - x))


def tanh(x: Expr) -> Expr:
    """See `sparseflow.core.activations.tanh`."""

    def both(v: Expr) -> Expr:
        def chosen(a: Expr) -> Expr:
            far = _f(1.0) - _f(2.0) / (exp(a + a) + _f(1.0))
            near = _let(v * v, lambda z: horner(NEAR, z) * z * v + v)
            signed = _let(far, lambda f: prim.Select(v < _f(0.0), _f(0.0) - f, f))
            return prim.Select(a < _f(END), near, signed)

        return _let(prim.Select(v < _f(0.0), _f(0.0) - v, v), chosen)

    return _let(x, both)


_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def log(x: Expr) -> Expr:
    """ln(x) from the exponent and a polynomial of the mantissa in [sqrt(1/2), sqrt(2))."""

    def of_mantissa(bits: Expr, v: Expr) -> Expr:
        mantissa = tirx.reinterpret(F32, (bits & const(0x7FFFFF, "int32")) | const(0x3F000000, "int32"))
        exponent = prim.Cast(F32, (bits >> const(23, "int32")) - const(126, "int32"))

        def series(m: Expr, e: Expr) -> Expr:
            z = m * m
            body = horner(_LOG, m) * z * m + e * _f(LN2_LOW) - _f(0.5) * z
            special = prim.Select(v > _f(0.0), v, _f(float("nan")))
            special = prim.Select(tirx.EQ(v, _f(0.0)), _f(float("-inf")), special)
            finite = tirx.And(v > _f(0.0), v < _f(float("inf")))
            return prim.Select(finite, m + body + e * _f(LN2_HIGH), special)

        def halved(m: Expr) -> Expr:
            small = m < _f(0.707106781186547524)
            shifted = prim.Select(small, m + m, m) - _f(1.0)
            return _let(
                shifted,
                lambda s: _let(prim.Select(small, exponent - _f(1.0), exponent), lambda e: series(s, e)),
            )

        return _let(mantissa, halved)

    return _let(x, lambda v: _let(tirx.reinterpret("int32", v), lambda b: of_mantissa(b, v)))


_ERF_P = (
    2.3250006779562682e-4,
    3.537884447723627e-3,
    5.135645344853401e-2,
    0.18819653987884521,
    1.128378987312317,
)
_ERF_Q = (
    -1.1652956999341768e-7,
    2.361815859330818e-5,
    1.0501830838620663e-3,
    1.4329408295452595e-2,
    0.11222608387470245,
    0.5001162886619568,
    1.0,
)


def erf(x: Expr) -> Expr:
    """x·P(x²)/Q(x²), with x clipped to where erf rounds to one."""

    def quotient(c: Expr) -> Expr:
        return _let(c * c, lambda z: c * horner(_ERF_P, z) / horner(_ERF_Q, z))

    def clipped(v: Expr) -> Expr:
        low, high = _f(-3.83), _f(3.83)
        return _let(prim.Select(v > high, high, prim.Select(v < low, low, v)), quotient)

    return _let(x, clipped)


def _quotient(a: Expr, b: Expr, varying: Collection[Any]) -> Expr | None:
    """``a / b`` as a product if 1/b is the same in all lanes; one rounding more, 6e-8 relative."""
    if isinstance(b, prim.FloatImm):
        return a * _f(1.0 / float(b.value)) if float(b.value) else None
    if any(isinstance(n, ir.Var) and n in varying for n in walk(b)):
        return None
    return a * (_f(1.0) / b)


def _power(base: Expr, exponent: Expr) -> Expr | None:
    """``base`` to a literal power among 2, 3 and 1/2, else ``None``."""
    value = float(exponent.value) if isinstance(exponent, prim.FloatImm) else None
    if value == 2.0:
        return _let(base, lambda v: v * v)
    if value == 3.0:
        return _let(base, lambda v: v * v * v)
    if value == 0.5:
        return tirx.sqrt(base)
    return None


UNARY: dict[str, Callable[[Expr], Expr]] = {
    "tirx.exp": exp,
    "tirx.sigmoid": sigmoid,
    "tirx.tanh": tanh,
    "tirx.erf": erf,
    "tirx.log": log,
}


def fast_math(expr: Expr, varying: Collection[Any] = ()) -> Expr:
    """``expr`` with every float32 call that has a polynomial above replaced by it.

    Parameters
    ----------
    expr : Expr
    varying : collection of tvm.ir.Var
        The variables that differ between lanes; quotients by what does not become products.
    """

    def change(node: Expr) -> Expr | None:
        if isinstance(node, prim.Div) and dtype_of(node) == F32:
            return _quotient(node.a, node.b, varying)
        if not isinstance(node, ir.Call) or not isinstance(node.op, ir.Op) or dtype_of(node) != F32:
            return None
        if node.op.name == "tirx.pow":
            return _power(*node.args)
        known = UNARY.get(node.op.name)
        return None if known is None else known(node.args[0])

    return rewrite(expr, change)
