"""Loops for a stage whose elements do not depend on each other."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from tvm import ir, sym, tirx
from tvm.ir.prim import expr as prim

from .access import Nest, coefficient
from .expr import Expr, const, dtype_of, int_value, rewrite, substitute, walk
from .loops import Place, loop, over, sequence, shared_loop, value_at, vector
from .program import Axis

SEGMENTS = 27
"""Most pieces into which padding may cut a loop nest."""


class InjectiveLoops:
    """Vectors along one axis, whole ones first; where padding begins and ends, the loops are cut.

    Parameters
    ----------
    nest : Nest
    axis : Axis or None
        The axis for the lanes.
    lanes : int
        Elements of a vector register.
    threads : int
        Parts of the outermost loop that may run at once.
    """

    def __init__(self, nest: Nest, axis: Axis | None, lanes: int, threads: int) -> None:
        self.nest, self.axis, self.lanes, self.threads = nest, axis, lanes, threads
        self.dtype = nest.index_dtype

    def statement(self) -> Any:
        """The whole stage."""
        nest = self.nest
        axis = self.axis
        if axis is None:
            return vector(
                1,
                lambda i: tirx.BufferStore(nest.out, value_at(nest.value, {}, i), [nest.offset]),
                self.dtype,
            )
        outer = [a for a in nest.spatial if a is not axis]
        tiled = self._tiled(axis, outer)
        if tiled is not None:
            return self._transposed(axis, tiled, [a for a in outer if a is not tiled])
        pieces = {a.var: _pieces(nest.value, a) for a in (*outer, axis)}
        count = 1
        for a in (axis, *reversed(outer)):
            if count * (len(pieces[a.var]) - 1) > SEGMENTS:
                pieces[a.var] = [0, a.extent]
            count *= len(pieces[a.var]) - 1
        return self._segments(outer, axis, pieces, {}, {})

    def _segments(
        self,
        outer: list[Axis],
        axis: Axis,
        pieces: dict[Any, list[int]],
        at: Place,
        ranges: dict[Any, tuple[int, int]],
    ) -> Any:
        """Loops over ``outer``, cut where a condition changes, with vectors along ``axis`` inside."""
        threads = self.threads if not at else 1
        if not outer:
            return sequence(
                self._vectors(axis, low, high, at, {**ranges, axis.var: (low, high)}, threads)
                for low, high in pairwise(pieces[axis.var])
            )
        head, rest = outer[0], outer[1:]

        def piece(low: int, high: int) -> Any:
            def body(i: Expr) -> Any:
                here = {**at, head.var: i + low if low else i}
                return self._segments(rest, axis, pieces, here, {**ranges, head.var: (low, high)})

            return shared_loop(high - low, threads, body, self.dtype)

        return sequence(piece(low, high) for low, high in pairwise(pieces[head.var]))

    def _vectors(
        self,
        axis: Axis,
        low: int,
        high: int,
        at: Place,
        ranges: dict[Any, tuple[int, int]],
        threads: int,
    ) -> Any:
        """``out = value`` for ``axis`` from ``low`` to ``high``."""
        nest, lanes = self.nest, self.lanes
        value = _decided(nest, ranges)

        def block(base: Expr | int, width: int) -> Any:
            def lane(i: Expr) -> Any:
                where = {**at, axis.var: i + base}
                return tirx.BufferStore(nest.out, value_at(value, where, i), [substitute(nest.offset, where)])

            return vector(width, lane, self.dtype)

        whole, left = divmod(high - low, lanes)
        done = []
        if whole:
            done.append(shared_loop(whole, threads, lambda i: block(i * lanes + low, lanes), self.dtype))
        if left:
            done.append(block(const(high - left, self.dtype), left))
        return sequence(done)

    def _tiled(self, axis: Axis, outer: list[Axis]) -> Axis | None:
        """The axis along which the loads that jump along ``axis`` are contiguous, if there is one."""
        for access in self.nest.accesses()[1:]:
            step = coefficient(access, axis)
            if step is not None and step > 1:
                for other in outer:
                    free = not self.nest.is_loose(other) and not self.nest.is_loose(axis)
                    if coefficient(access, other) == 1 and free:
                        return other
        return None

    def _transposed(self, axis: Axis, other: Axis, outer: list[Axis]) -> Any:
        """Square tiles over two axes, so that each cache line loaded is used while it is near."""
        lanes, dtype = self.lanes, self.dtype

        def tiles(at: Place, threads: int) -> Any:
            def tile(b: Expr) -> Any:
                start = b * lanes
                size: Expr | int = lanes
                if other.extent % lanes:
                    size = tirx.min(const(lanes, dtype), const(other.extent, dtype) - start)

                def columns(low: Expr | int, width: int) -> Any:
                    def row(i: Expr) -> Any:
                        here = {**at, other.var: start + i}
                        return self._store(here, axis, low, width)

                    return loop(size, row, dtype)

                whole, left = divmod(axis.extent, lanes)
                done = []
                if whole:
                    done.append(loop(whole, lambda j: columns(j * lanes, lanes), dtype))
                if left:
                    done.append(columns(const(whole * lanes, dtype), left))
                return sequence(done)

            return shared_loop(-(-other.extent // lanes), threads, tile, dtype)

        return over(outer, self.threads, tiles, dtype)

    def _store(self, at: Place, axis: Axis, base: Expr | int, width: int) -> Any:
        nest = self.nest
        value = nest.value

        def lane(i: Expr) -> Any:
            where = {**at, axis.var: i + base}
            return tirx.BufferStore(nest.out, value_at(value, where, i), [substitute(nest.offset, where)])

        return vector(width, lane, self.dtype)


def _pieces(value: Expr, axis: Axis) -> list[int]:
    """Where along an axis a condition of ``value`` may change, with both ends."""
    cuts = {0, axis.extent}
    for node in walk(value):
        if isinstance(node, ir.Call) and getattr(node.op, "name", "") == "prim.if_then_else":
            for test in walk(node.args[0]):
                if isinstance(test, prim.CmpExpr):
                    cuts |= {c for c in _turns(test, axis) if 0 < c < axis.extent}
    return sorted(cuts)


def _turns(test: Expr, axis: Axis) -> set[int]:
    """The indices at which a comparison, linear in the axis, takes another value."""
    step = coefficient(test.a - test.b, axis)
    rest = substitute(test.a - test.b, {axis.var: const(0, dtype_of(axis.var))})
    known = int_value(sym.Analyzer().simplify(rest))
    if not step or known is None:
        return set()
    down = -(known // step)  # the root, rounded up
    over = -known // step + 1  # the first index past the root
    if isinstance(test, prim.EQ | prim.NE):
        return {down, over}
    return {down} if isinstance(test, prim.LT | prim.GE) == (step > 0) else {over}


def _decided(nest: Nest, ranges: dict[Any, tuple[int, int]]) -> Expr:
    """``nest.value`` without the conditions that hold, or fail, everywhere in ``ranges``."""
    known = sym.Analyzer()
    for var, (low, high) in ranges.items():
        known.bind(var, ir.Range(const(low, nest.index_dtype), const(high, nest.index_dtype)))

    def change(node: Expr) -> Expr | None:
        if not isinstance(node, ir.Call) or getattr(node.op, "name", "") != "prim.if_then_else":
            return None
        verdict = int_value(known.simplify(node.args[0]))
        return None if verdict is None else node.args[1 if verdict else 2]

    return rewrite(nest.value, change)
