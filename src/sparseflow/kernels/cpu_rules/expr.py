"""Walking and rewriting of scalar TIR expressions, which TVM 0.27 offers in C++ only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.ir.prim import expr as prim

Expr = Any
"""A scalar TIR expression."""


def dtype_of(expr: Expr) -> str:
    """The data type of an expression as TVM spells it, e.g. ``float32``."""
    return str(expr.ty.dtype)


def const(value: float, dtype: str) -> Expr:
    """A literal of the given data type."""
    return tirx.const(value, dtype)


def operands(expr: Expr) -> tuple[Expr, ...]:
    """The direct operands of an expression, in order; empty for literals and variables."""
    if isinstance(expr, ir.TensorLoad):
        return tuple(expr.indices)
    if isinstance(expr, ir.Call):
        return tuple(expr.args)
    if isinstance(expr, prim.Cast | prim.Broadcast):
        return (expr.value,)
    if isinstance(expr, prim.Select):
        return (expr.condition, expr.true_value, expr.false_value)
    if isinstance(expr, prim.Let):
        return (expr.value, expr.body)
    if isinstance(expr, prim.Ramp):
        return (expr.base, expr.stride)
    if isinstance(expr, prim.Shuffle):
        return tuple(expr.vectors)
    if isinstance(expr, prim.Not | prim.BitwiseNot):
        return (expr.a,)
    if hasattr(expr, "a") and hasattr(expr, "b"):
        return (expr.a, expr.b)
    return ()


def rebuild(expr: Expr, parts: tuple[Expr, ...]) -> Expr:
    """The same expression over other operands."""
    if isinstance(expr, ir.TensorLoad):
        return tirx.BufferLoad(expr.source, list(parts))
    if isinstance(expr, ir.Call):
        return ir.Call(expr.op, list(parts), expr.attrs, expr.ty_args, expr.span, expr.ty)
    if isinstance(expr, prim.Cast):
        return prim.Cast(expr.ty, parts[0])
    if isinstance(expr, prim.Broadcast):
        return prim.Broadcast(parts[0], expr.lanes)
    if isinstance(expr, prim.Let):
        return prim.Let(expr.var, *parts)
    if isinstance(expr, prim.Ramp):
        return prim.Ramp(parts[0], parts[1], expr.lanes)
    if isinstance(expr, prim.Shuffle):
        return prim.Shuffle(list(parts), expr.indices)
    return type(expr)(*parts)


def rewrite(expr: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """``expr`` with every node passed, operands first, through ``change`` (``None`` keeps it)."""
    parts = operands(expr)
    done = tuple(rewrite(p, change) for p in parts)
    if any(not a.same_as(b) for a, b in zip(parts, done, strict=True)):
        expr = rebuild(expr, done)
    changed = change(expr)
    return expr if changed is None else changed


def substitute(expr: Expr, mapping: Mapping[Any, Expr]) -> Expr:
    """``expr`` with variables replaced."""

    def change(node: Expr) -> Expr | None:
        return mapping.get(node) if isinstance(node, ir.Var) else None

    return rewrite(expr, change) if mapping else expr


def walk(expr: Expr) -> Iterator[Expr]:
    """All nodes of an expression, parents first."""
    left = [expr]
    while left:
        node = left.pop()
        yield node
        left.extend(reversed(operands(node)))


def depth(expr: Expr) -> int:
    """Length of the longest path from an expression to an operand without operands."""
    deepest, left = 0, [(expr, 0)]
    while left:
        node, level = left.pop()
        deepest = max(deepest, level)
        left.extend((part, level + 1) for part in operands(node))
    return deepest


def loads(expr: Expr) -> list[Expr]:
    """All buffer loads in an expression, those in indices included."""
    return [node for node in walk(expr) if isinstance(node, ir.TensorLoad)]


def uses(expr: Expr, var: Any) -> bool:
    """Whether a variable occurs in an expression."""
    return any(isinstance(node, ir.Var) and node.same_as(var) for node in walk(expr))


def calls(expr: Expr) -> set[str]:
    """The names of the operators called in an expression."""
    return {n.op.name for n in walk(expr) if isinstance(n, ir.Call) and isinstance(n.op, ir.Op)}


def equal(a: Expr, b: Expr) -> bool:
    """Whether two expressions are structurally the same."""
    return bool(tvm_ffi.structural_equal(a, b))


def int_value(expr: Expr) -> int | None:
    """The value of an integer literal, else ``None``."""
    return int(expr) if isinstance(expr, prim.IntImm) else None
