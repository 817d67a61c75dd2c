"""Operators that compare, as loops in which NaN stays NaN, as in torch; TVM's own lose it.

``max(x, 0)`` compiles to ``x > 0 ? x : 0``, which is 0 for NaN. With the operands the other way round
NaN is kept, at the same cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

Expr = Any


def _unary(value: Callable[[Any, Expr], Expr]) -> Callable[[Any, Any], Expr]:
    def legalize(builder: Any, call: Any) -> Expr:
        def compute(x: Any) -> Any:
            return te.compute(x.shape, lambda *i: value(call, x(*i)))

        return builder.call_te(compute, call.args[0])

    return legalize


def _relu(_call: Any, x: Expr) -> Expr:
    return tirx.max(tirx.const(0, x.ty.dtype), x)


def _clip(call: Any, x: Expr) -> Expr:
    low, high = (tirx.const(getattr(a, "value", a), x.ty.dtype) for a in call.args[1:3])
    return tirx.min(high, tirx.max(low, x))


KEEP_NAN = {
    "relax.nn.relu": _unary(_relu),
    "relax.clip": _unary(_clip),
}
"""Relax operator → its legalisation."""
