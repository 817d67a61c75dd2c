"""Operators that compare, as loops in which NaN stays NaN, as in torch; TVM's own lose it.

``max(x, 0)`` compiles to ``x > 0 ? x : 0``, which is 0 for NaN. Written the other way round it costs the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx, topi

Expr = Any


def _unary(value: Callable[[Any, Expr], Expr]) -> Callable[[Any, Any], Expr]:
    def legalize(builder: Any, call: Any) -> Expr:
        def compute(x: Any) -> Any:
            return te.compute(x.shape, lambda *i: value(call, x(*i)))

        return builder.call_te(compute, call.args[0])

    return legalize


def _relu(_call: Any, x: Expr) -> Expr:
    zero = tirx.const(0, x.ty.dtype)
    return tirx.Select(x < zero, zero, x)


def _clip(call: Any, x: Expr) -> Expr:
    low, high = (tirx.const(getattr(a, "value", a), x.ty.dtype) for a in call.args[1:3])
    raised = tirx.Select(x < low, low, x)
    return tirx.Select(raised > high, high, raised)


def _binary(chosen: Callable[[Expr, Expr], Expr]) -> Callable[[Any, Any], Expr]:
    def legalize(builder: Any, call: Any) -> Expr:
        if not str(call.ty.dtype.dtype).startswith("float"):
            return call
        shape = list(call.ty.shape)

        def compute(a: Any, b: Any) -> Any:
            a, b = topi.broadcast_to(a, shape), topi.broadcast_to(b, shape)
            return te.compute(shape, lambda *i: tirx.Select(a(*i) != a(*i), a(*i), chosen(a(*i), b(*i))))

        return builder.call_te(compute, *call.args)

    return legalize


KEEP_NAN = {
    "relax.nn.relu": _unary(_relu),
    "relax.clip": _unary(_clip),
    "relax.maximum": _binary(lambda a, b: tirx.Select(a > b, a, b)),
    "relax.minimum": _binary(lambda a, b: tirx.Select(a < b, a, b)),
}
"""Relax operator → its legalisation."""
