"""The pieces that loops are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tvm import ir, tirx
from tvm.tirx import ForKind

from .expr import Expr, const, substitute
from .fast_math import fast_math
from .program import Axis
from .registers import Registers

Body = Callable[[Expr], Any]
"""Makes the statement for one value of an index."""
Place = dict[Any, Expr]
"""The values of the axes that loops have been made for."""


def loop(extent: Expr | int, body: Body, dtype: str, kind: ForKind = ForKind.SERIAL, name: str = "i") -> Any:
    """A loop from zero; none at all for a single iteration."""
    if isinstance(extent, int) and extent == 1 and kind != ForKind.PARALLEL:
        return body(const(0, dtype))
    var = tirx.Var(name, dtype)
    bound = const(extent, dtype) if isinstance(extent, int) else extent
    return tirx.For(var, const(0, dtype), bound, kind, body(var))


def shared_loop(extent: int, threads: int, body: Body, dtype: str) -> Any:
    """A loop in ``threads`` equal, contiguous parts that run at once."""
    part = -(-extent // max(threads, 1))
    count = -(-extent // part)
    if count == 1:
        return loop(extent, body, dtype)

    def run(t: Expr) -> Any:
        size = const(part, dtype) if extent % part == 0 else tirx.min(part, extent - t * part)
        return loop(size, lambda i: body(t * part + i), dtype)

    return loop(count, run, dtype, ForKind.PARALLEL, "part")


def sequence(statements: Iterable[Any]) -> Any:
    """Statements in order, as one."""
    done = list(statements)
    return done[0] if len(done) == 1 else tirx.SeqStmt(done)


def vector(lanes: int, body: Body, dtype: str) -> Any:
    """The store that ``body`` makes, for each lane at once; its lets become registers."""
    registers = Registers(lanes)
    kind = ForKind.VECTORIZED if lanes > 1 else ForKind.SERIAL
    whole = loop(lanes, lambda i: sequence(registers.store(body(i), i)), dtype, kind, "lane")
    return sequence([*registers.allocations(), whole])


def over(axes: list[Axis], threads: int, body: Callable[[Place, int], Any], dtype: str) -> Any:
    """Loops over spatial axes, the first shared by the threads; ``body`` gets the threads left."""

    def nested(left: list[Axis], at: Place) -> Any:
        share = threads if not at else 1
        if not left:
            return body(at, share)
        head, rest = left[0], left[1:]
        return shared_loop(head.extent, share, lambda i: nested(rest, {**at, head.var: i}), dtype)

    return nested(axes, {})


def value_at(value: Expr, where: Place, lane: Expr) -> Expr:
    """A stage's value at one index; each call makes variables of its own, as TVM wants them unique."""
    return fast_math(substitute(value, where), {lane} if isinstance(lane, ir.Var) else ())
