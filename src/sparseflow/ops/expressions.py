"""Reading Relax expressions."""

from __future__ import annotations

from typing import Any

from tvm import ir, relax

Expr = Any


def op_name(expr: Expr) -> str:
    """The operator's name of a call (``relax.nn.relu``), or ``""``."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, ir.Op):
        return str(expr.op.name)
    return ""


def is_constant(expr: Expr) -> bool:
    """True for a tensor literal."""
    return isinstance(expr, ir.GenericConst)


def scalar(expr: Expr) -> float | None:
    """The value of a constant of one element, else None."""
    if not is_constant(expr) or expr.value.numpy().size != 1:
        return None
    return float(expr.value.numpy().reshape(()))


def shape_of(expr: Expr) -> tuple[int, ...]:
    """The static shape of a tensor expression."""
    return tuple(int(v) for v in expr.ty.shape.values)


def inputs_of(expr: Expr) -> list[Expr]:
    """The variables that an expression reads, repeated as often as it reads them."""
    if isinstance(expr, ir.Var):
        return [expr]
    if isinstance(expr, relax.Tuple):
        return [v for item in expr.fields for v in inputs_of(item)]
    if isinstance(expr, relax.TupleGetItem):
        return inputs_of(expr.tuple_value)
    if isinstance(expr, relax.Call):
        return [v for item in expr.args for v in inputs_of(item)]
    return []
