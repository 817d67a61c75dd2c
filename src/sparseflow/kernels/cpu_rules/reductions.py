"""Loops for a stage that sums, multiplies or takes the largest or smallest along some of its axes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from tvm import ir, tirx
from tvm.ir.prim import expr as prim
from tvm.tirx import ForKind

from .access import Nest, coefficient
from .expr import Expr, const, dtype_of, loads, substitute
from .lanes import LaneSums
from .loops import Place, loop, over, sequence, shared_loop, value_at, vector
from .program import Axis

UNROLLED = 9
"""Longest reduction that is written out, a 3×3 window."""
TILE = 4
"""Vectors that are summed side by side."""
ROWS = 4
"""Results that are computed from one load, as the channels of a convolution."""


class ReductionLoops:
    """Vectors along a spatial axis if that is contiguous, each lane one result; else along a reduced axis.

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
        if self.axis is None:
            return vector(1, self._single, self.dtype)
        if any(self.axis is a for a in self.nest.spatial):
            return self._across(self.axis)
        return self._along(self.axis)

    def _single(self, lane: Expr) -> Any:
        """The one result of a stage whose axes all have one element."""
        result = self._combine(self.nest.init, value_at(self.nest.value, {}, lane))
        return tirx.BufferStore(self.nest.out, result, [self.nest.offset])

    def _combine(self, a: Expr, b: Expr) -> Expr:
        kinds = {"add": prim.Add, "mul": prim.Mul, "max": prim.Max, "min": prim.Min}
        return kinds[str(self.nest.stage.combine)](a, b)

    def _neutral(self) -> Expr:
        """A value that changes no result."""
        init = self.nest.init
        neutral = {"add": 0, "mul": 1}.get(str(self.nest.stage.combine))
        return init if neutral is None else const(neutral, dtype_of(init))

    def _reduced(self, axes: list[Axis], at: Place, body: Callable[[Place], Any]) -> Any:
        """Loops over reduced axes, written out when they are short."""
        short = prod(a.extent for a in axes) <= UNROLLED
        kind = ForKind.UNROLLED if short else ForKind.SERIAL

        def nested(left: list[Axis], here: Place) -> Any:
            if not left:
                return body(here)
            head, rest = left[0], left[1:]
            return loop(head.extent, lambda i: nested(rest, {**here, head.var: i}), self.dtype, kind)

        return nested(axes, at)

    def _along(self, axis: Axis) -> Any:
        """Lanes hold partial results, which are combined at the end."""
        nest = self.nest
        sums = LaneSums(nest, axis, self.lanes, self._combine, self._neutral())
        outer = [a for a in nest.reduce if a is not axis]

        def body(at: Place, _: int) -> Any:
            buffers = sums.buffers()
            sweep = self._reduced(outer, at, lambda here: sums.update(buffers, here))
            result = self._combine(nest.init, sums.folded(buffers))
            store = tirx.BufferStore(nest.out, result, [substitute(nest.offset, at)])
            return sequence([*map(tirx.AllocBuffer, buffers), *sums.start(buffers), sweep, store])

        return over(list(nest.spatial), self.threads, body, self.dtype)

    def _reused(self, axis: Axis) -> Axis | None:
        """A spatial axis along which contiguous loads stand still, so that one serves several results."""
        steady = [n.indices[0] for n in loads(self.nest.value) if coefficient(n.indices[0], axis) == 1]
        for other in self.nest.spatial:
            if other is not axis and steady and all(coefficient(s, other) == 0 for s in steady):
                return None if self.nest.is_loose(other) else other
        return None

    def _across(self, axis: Axis) -> Any:
        """Each lane is one result; tiles of several vectors, and of several rows that can share loads."""
        nest, lanes, dtype = self.nest, self.lanes, self.dtype
        row_axis = self._reused(axis)
        vectors = max(1, min(TILE, axis.extent // lanes))
        width = lanes * vectors
        whole, left = divmod(axis.extent, width)
        rest = [lanes] * (left // lanes) + ([left % lanes] if left % lanes else [])

        def columns(rows: list[Place], threads: int) -> Any:
            done = []
            if whole:
                step = lambda i: self._tile(axis, rows, i * width, [lanes] * vectors)  # noqa: E731
                done.append(shared_loop(whole, threads, step, dtype))
            if left:
                done.append(self._tile(axis, rows, const(axis.extent - left, dtype), rest))
            return sequence(done)

        def body(at: Place, threads: int) -> Any:
            if row_axis is None:
                return columns([at], threads)
            blocks, over_rows = divmod(row_axis.extent, ROWS)
            done = []

            def block(first: Expr, count: int, share: int) -> Any:
                return columns([{**at, row_axis.var: first + r} for r in range(count)], share)

            if blocks:
                done.append(shared_loop(blocks, threads, lambda b: block(b * ROWS, ROWS, 1), dtype))
            if over_rows:
                done.append(block(const(blocks * ROWS, dtype), over_rows, threads))
            return sequence(done)

        outer = [a for a in nest.spatial if a is not axis and a is not row_axis]
        return over(outer, self.threads, body, dtype)

    def _tile(self, axis: Axis, rows: list[Place], base: Expr | int, widths: list[int]) -> Any:
        """The results of some rows and vectors, summed in registers."""
        nest, lanes, value = self.nest, self.lanes, self.nest.value
        dtype = dtype_of(value)
        accs = [tirx.decl_buffer((lanes * len(widths),), dtype, f"acc{r}") for r in range(len(rows))]
        strided = isinstance(value, ir.TensorLoad) and coefficient(value.indices[0], axis) == 2

        def each(make: Callable[[int, Expr, Expr, Expr], Any]) -> list[Any]:
            def at_lane(r: int, i: Expr, v: int) -> Any:
                return make(r, i + v * lanes, i + v * lanes + base, i)

            return [
                vector(w, lambda i, r=r, v=v: at_lane(r, i, v), self.dtype)  # type: ignore[misc]
                for r in range(len(rows))
                for v, w in enumerate(widths)
            ]

        def begin(r: int, slot: Expr, *_: Expr) -> Any:
            return tirx.BufferStore(accs[r], nest.init, [slot])

        def finish(r: int, slot: Expr, place: Expr, _: Expr) -> Any:
            offset = substitute(nest.offset, {**rows[r], axis.var: place})
            return tirx.BufferStore(nest.out, tirx.BufferLoad(accs[r], [slot]), [offset])

        def update(here: Place) -> Any:
            def one(r: int, slot: Expr, place: Expr, lane: Expr) -> Any:
                new = value_at(value, {**rows[r], **here, axis.var: place}, lane)
                return tirx.BufferStore(accs[r], self._combine(tirx.BufferLoad(accs[r], [slot]), new), [slot])

            if strided:
                return sequence(
                    self._skipping(axis, acc, {**row, **here}, base, widths)
                    for acc, row in zip(accs, rows, strict=True)
                )
            return sequence(each(one))

        sums = [tirx.AllocBuffer(acc) for acc in accs]
        return sequence([*sums, *each(begin), self._reduced(nest.reduce, {}, update), *each(finish)])

    def _skipping(self, axis: Axis, acc: Any, here: Place, base: Expr | int, widths: list[int]) -> Any:
        """Each second element combined into ``acc``: two loads and a shuffle; TVM would load lane by lane."""
        nest, one = self.nest, const(1, self.dtype)
        done = []
        for v, width in enumerate(widths):
            first = const(v * self.lanes, self.dtype)
            offset = substitute(nest.value.indices[0], {**here, axis.var: first + base})
            if width == 1:
                slot, new = first, tirx.BufferLoad(nest.value.source, [offset])
            else:
                # the second load ends with the last element needed, so that nothing past it is read
                halves = [
                    tirx.BufferLoad(nest.value.source, [prim.Ramp(start, one, width)])
                    for start in (offset, offset + (width - 1))
                ]
                picks = [2 * k if 2 * k < width else 2 * k + 1 for k in range(width)]
                slot, new = prim.Ramp(first, one, width), prim.Shuffle(halves, picks)
            done.append(tirx.BufferStore(acc, self._combine(tirx.BufferLoad(acc, [slot]), new), [slot]))
        return sequence(done)
