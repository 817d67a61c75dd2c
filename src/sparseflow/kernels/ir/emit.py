"""Pieces of TIR shared by the kernel templates: vectors, tiles, epilogues, halos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import ir, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from sparseflow.core.activations import ACTIVATIONS
from sparseflow.core.element_type import FLOAT32, ElementType
from sparseflow.kernels.ir.math import exp
from sparseflow.kernels.layouts.lane import LaneLayout

Expr = Any  # TVM's expressions carry no static types


def ramp(base: Expr, lanes: int) -> Expr:
    """``lanes`` consecutive indices from ``base``; for one lane the index itself."""
    return T.Ramp(base, 1, lanes) if lanes > 1 else base


def splat(value: Expr, lanes: int) -> Expr:
    """A vector of equal elements."""
    return T.Broadcast(value, lanes) if lanes > 1 else value


def const(value: float, lanes: int = 1) -> Expr:
    """A float32 constant, as a vector when ``lanes`` > 1."""
    scalar = T.float32(value)
    return splat(scalar, lanes) if lanes > 1 else scalar


def slot_of(element: ElementType, value: float) -> Expr:
    """A slot in which every element is ``value``."""
    found = element.joined(np.full(element.per_slot, value), 0)
    return tirx.const(found[0].item(), element.slot)


_GIVEN: ContextVar[list[Any] | None] = ContextVar(
    "buffers of the function that is written into", default=None
)


@contextmanager
def prim_func(name: str, code: str = "") -> Iterator[Callable[[], tirx.PrimFunc]]:
    """Opens a PrimFunc; the yielded function returns it after the ``with`` block.

    ``code`` is LLVM IR of functions that it calls. Inside of `spliced` no function is opened: what follows is written
    into the one that is open.
    """
    if _GIVEN.get() is not None:
        yield lambda: None
        return
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name, "tirx.is_scheduled": True})
        yield lambda: _rooted(builder.get(), code)


def _rooted(function: tirx.PrimFunc, code: str) -> tirx.PrimFunc:
    """The function with its body in a root block, which Relax's analyses expect."""
    body = function.body
    if code:
        body = tirx.AttrStmt(T.int32(0), "pragma_import_llvm", ir.StringImm(code), body)
    block = s_tir.SBlock([], [], [], "root", body)
    return function.with_body(s_tir.SBlockRealize([], True, block))


@contextmanager
def spliced(buffers: Sequence[Any]) -> Iterator[None]:
    """Whole kernels become parts of an open function: what they declare as parameters is ``buffers`` in turn.

    Raises
    ------
    ValueError
        If a kernel declares fewer parameters than there are buffers, or more.
    """
    left = list(buffers)
    token = _GIVEN.set(left)
    try:
        yield
    finally:
        _GIVEN.reset(token)
    if left:
        raise ValueError(f"{len(left)} of {len(buffers)} buffers are no parameters of the spliced kernel")


def arg(name: str, shape: tuple[Any, ...], dtype: str = FLOAT32.name) -> Any:
    """A buffer parameter; a None in ``shape`` is a size known at run time only. See `spliced`."""
    given = _GIVEN.get()
    if given is not None:
        if not given:
            raise ValueError(f"the spliced kernel's parameter {name} has no buffer")
        return given.pop(0)
    return T.arg(name, T.buffer(tuple(T.int32() if s is None else s for s in shape), dtype))


def loop(extent: Expr, *, parallel: bool = False) -> Any:
    """A serial or parallel loop as a context manager that yields its variable."""
    return T.parallel(extent) if parallel else T.serial(extent)


@dataclass(frozen=True)
class Segment:
    """``count`` tiles of ``size`` positions from ``start`` on."""

    start: int
    count: int
    size: int


def segments(extent: int, tile: int) -> list[Segment]:
    """Covers ``extent`` with whole tiles and one smaller for the rest."""
    tile = min(tile, extent)
    full, rest = divmod(extent, tile)
    found = [Segment(0, full, tile)]
    if rest:
        found.append(Segment(full * tile, 1, rest))
    return found


class Accumulators:
    """Vectors that live in registers.

    TVM puts a buffer on the stack, where LLVM makes registers of it, only if it has the default scope and is small; a
    larger one would be allocated on the heap at each call and travel through memory. So they come in small buffers.
    """

    EACH = 8  # vectors of a buffer: 512 bytes

    def __init__(self, count: int, lanes: int, dtype: str = FLOAT32.name) -> None:
        self.lanes = lanes
        sizes = [min(self.EACH, count - i) for i in range(0, count, self.EACH)]
        self._buffers = [T.alloc_buffer((size * lanes,), dtype) for size in sizes]

    def _place(self, i: int) -> tuple[Any, Expr]:
        return self._buffers[i // self.EACH], ramp(i % self.EACH * self.lanes, self.lanes)

    def __getitem__(self, i: int) -> Expr:
        buffer, place = self._place(i)
        return buffer[place]

    def __setitem__(self, i: int, value: Expr) -> None:
        buffer, place = self._place(i)
        T.buffer_store(buffer, value, [place])

    def total(self) -> Expr:
        """The sum over the lanes of the first vector."""
        value = self._buffers[0][0]
        for lane in range(1, self.lanes):
            value = value + self._buffers[0][lane]
        return value


def cell(value: Expr, dtype: str) -> Any:
    """A variable: a buffer of one element that holds ``value``."""
    buffer = T.alloc_buffer((1,), dtype)
    T.buffer_store(buffer, value, [0])
    return buffer


def prefetch(buffer: Any, at: Expr) -> None:
    """Asks for the cache line of element ``at``, which may lie behind the end: nothing is read then."""
    line = T.address_of(buffer[at])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch.p0", line, T.int32(0), T.int32(3), T.int32(1)))


def at_least(x: Expr, low: Expr) -> Expr:
    """max(x, low), and NaN where ``x`` is NaN: one instruction on x86, whose maximum gives its second operand then."""
    return tirx.Select(x < low, low, x)


def at_most(x: Expr, high: Expr) -> Expr:
    """min(x, high), and NaN where ``x`` is NaN."""
    return tirx.Select(x > high, high, x)


@dataclass(frozen=True)
class Vectors:
    """What the vector code of an activation is made of: `sparseflow.core.activations.Vectors` on TIR's expressions."""

    lanes: int

    def number(self, value: float) -> Expr:
        """See `const`."""
        return const(value, self.lanes)

    def at_least(self, x: Expr, low: Expr) -> Expr:
        """See `at_least`."""
        return at_least(x, low)

    def at_most(self, x: Expr, high: Expr) -> Expr:
        """See `at_most`."""
        return at_most(x, high)

    def larger(self, a: Expr, b: Expr) -> Expr:
        """The larger of two; either where one of them is NaN."""
        return tirx.max(a, b)

    def smaller(self, a: Expr, b: Expr) -> Expr:
        """The smaller of two; either where one of them is NaN."""
        return tirx.min(a, b)

    def where(self, condition: Expr, a: Expr, b: Expr) -> Expr:
        """``a`` where the condition holds, else ``b``."""
        return tirx.Select(condition, a, b)

    def exp(self, x: Expr) -> Expr:
        """See `exp_vector`."""
        return exp_vector(x, self.lanes)

    def once(self, value: Expr) -> Expr:
        """``value`` in a variable."""
        return T.bind(value)


def activate(kind: str, x: Expr, lanes: int, parameter: float = 0.0) -> Expr:
    """The activation ``kind`` of a float32 vector."""
    return ACTIVATIONS[kind].vector(x, Vectors(lanes), parameter)


def finish(
    value: Expr, activation: str, layout: LaneLayout, row: Expr, col: Expr, parameter: float = 0.0
) -> Expr:
    """The end of an epilogue: the activation, and the fill value in the lanes whose pixel lies outside the map."""
    value = activate(activation, value, layout.lanes, parameter)
    if not layout.ragged:
        return value
    return tirx.Select(inside_map(layout, row, col), value, const(layout.fill, layout.lanes))


def outside_filled(slot: Expr, layout: LaneLayout, row: Expr, col: Expr) -> Expr:
    """A vector of slots, with the fill value in the lanes whose pixel lies outside the map."""
    if not layout.ragged:
        return slot
    fill = splat(slot_of(layout.element, layout.fill), layout.lanes)
    return tirx.Select(inside_map(layout, row, col), slot, fill)


def exp_vector(x: Expr, lanes: int) -> Expr:
    """See `math.exp`."""
    return exp(x, lanes, T.bind)


def lane_numbers(lanes: int) -> Expr:
    """The vector 0, 1, …, lanes - 1 (int32)."""
    return T.Ramp(T.int32(0), 1, lanes)


def inside_map(layout: LaneLayout, row: Expr, col: Expr) -> Expr:
    """Which lanes of block position ``(row, col)`` lie inside the map, as a boolean vector."""
    lanes = layout.lanes

    def below(limit: int, block: int, position: Expr, per_row: bool) -> Expr:
        lane = lane_numbers(lanes)
        width = splat(T.int32(layout.grid[1]), lanes)
        coordinate = tirx.floordiv(lane, width) if per_row else tirx.floormod(lane, width)
        return coordinate * splat(T.int32(block), lanes) + splat(T.int32(0) + position, lanes) < splat(
            T.int32(limit), lanes
        )

    rows = below(layout.height, layout.block[0], row, True)
    return tirx.Select(rows, below(layout.width, layout.block[1], col, False), splat(T.bool(False), lanes))


def fill_halo(buffer: Any, image: Expr, channel_base: Expr, layout: LaneLayout) -> None:
    """Writes the halo of one plane from the neighbour lanes' blocks.

    A neighbour's value is the same vector read one lane (or one grid row of lanes) to the side: an unaligned load and a
    select. Rows first, then columns over all rows, which settles the corners.
    """
    top, left, bottom, right = layout.halo
    (bh, bw), (gh, gw), lanes = layout.block, layout.grid, layout.lanes
    fill = splat(slot_of(layout.element, layout.fill), lanes)
    lane = lane_numbers(lanes)

    def copy(dst: Expr, src: Expr, shift: int, valid: Expr) -> None:
        base = channel_base + src * lanes + shift
        value = buffer[image, ramp(base, lanes)]
        T.buffer_store(
            buffer, tirx.Select(valid, value, fill), [image, ramp(channel_base + dst * lanes, lanes)]
        )

    def at(row: Expr, col: Expr) -> Expr:
        return (row + top) * layout.cols + col + left

    above = lane >= splat(T.int32(gw), lanes)
    below = lane < splat(T.int32((gh - 1) * gw), lanes)
    column = tirx.floormod(lane, splat(T.int32(gw), lanes))
    for i in range(top):
        with loop(bw) as c:
            copy(at(i - top, c), at(bh - top + i, c), -gw, above)
    for i in range(bottom):
        with loop(bw) as c:
            copy(at(bh + i, c), at(i, c), gw, below)
    if left or right:
        with loop(layout.rows) as r:
            for i in range(left):
                copy(at(r - top, i - left), at(r - top, bw - left + i), -1, column > splat(T.int32(0), lanes))
            for i in range(right):
                last = splat(T.int32(gw - 1), lanes)
                copy(at(r - top, bw + i), at(r - top, i), 1, column < last)


@contextmanager
def share(extent: int, threads: int) -> Iterator[tuple[Expr, Expr]]:
    """Pieces of work in contiguous parts over ``threads``: yields a part's first piece and their number."""
    if threads == 1 or extent < threads:
        yield T.int32(0), T.int32(extent)
        return
    part = -(-extent // threads)
    with T.parallel(threads) as t:
        yield t * part, tirx.min(T.int32(part), T.int32(extent) - t * part)


@contextmanager
def channel_loop(channels: int, threads: int) -> Iterator[Expr]:
    """A loop over channels, in contiguous parts over ``threads``."""
    with share(channels, threads) as (first, count), T.serial(count) as i:
        yield first + i
