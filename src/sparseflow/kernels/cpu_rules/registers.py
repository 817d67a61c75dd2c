"""Named intermediate values as registers, because TVM writes out a ``Let`` wherever its variable is used.

TVM's code generator binds the variable of each ``Let`` in an analyzer that replaces it by its value before it
simplifies. Nested lets so cost time exponential in their depth: the 25 of tanh(softplus(x)) stand for an expression
of 10⁸ nodes. An element of a small buffer is opaque to the analyzer, and LLVM keeps such a buffer in a register.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, tirx
from tvm.ir.prim import expr as prim

from .expr import Expr, dtype_of, operands, rebuild, substitute
from .program import Unsuitable

MAX_WRITTEN_OUT = 20_000
"""Largest size of an expression with its lets written out; TVM takes about 10 µs for each node."""


def written_out(expr: Expr) -> int:
    """The number of nodes of an expression in which each let's variable is replaced by its value."""
    sizes: dict[Any, int] = {}

    def size(node: Expr) -> int:
        if isinstance(node, prim.Let):
            sizes[node.var] = size(node.value)
            return size(node.body)
        if isinstance(node, ir.Var):
            return sizes.get(node, 1)
        return 1 + sum(size(part) for part in operands(node))

    return size(expr)


class Registers:
    """The lets of a vector loop's body, one buffer each.

    Parameters
    ----------
    lanes : int
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._buffers: list[Any] = []

    def allocations(self) -> list[Any]:
        """The statements that make the buffers."""
        return [tirx.AllocBuffer(buffer) for buffer in self._buffers]

    def store(self, store: Any, lane: Expr) -> list[Any]:
        """The statements of one lane that do what ``store`` does, without lets.

        The branches of an ``if_then_else`` keep theirs: what they load may only exist under the condition.

        Raises
        ------
        Unsuitable
            If the lets of a branch stand for an expression that is too large.
        """
        statements: list[Any] = []
        held: dict[Any, Expr] = {}

        def plain(node: Expr) -> Expr:
            if isinstance(node, prim.Let):
                buffer = tirx.decl_buffer((self._lanes,), dtype_of(node.value), node.var.name)
                statements.append(tirx.BufferStore(buffer, plain(node.value), [lane]))
                self._buffers.append(buffer)
                held[node.var] = tirx.BufferLoad(buffer, [lane])
                return plain(node.body)
            if isinstance(node, ir.Var):
                return held.get(node, node)
            if isinstance(node, ir.Call) and getattr(node.op, "name", "") == "prim.if_then_else":
                size = written_out(node)
                if size > MAX_WRITTEN_OUT:
                    raise Unsuitable(
                        f"a condition guards functions of {size} terms; {MAX_WRITTEN_OUT} are allowed"
                    )
                return substitute(node, held)
            old = operands(node)
            new = tuple(plain(part) for part in old)
            return node if all(a.same_as(b) for a, b in zip(old, new, strict=True)) else rebuild(node, new)

        value = plain(store.value)
        return [*statements, tirx.BufferStore(store.buffer, value, list(store.indices))]
