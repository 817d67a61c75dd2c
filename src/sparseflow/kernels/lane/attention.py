"""Multi-head attention on lane layouts: ``softmax(Q Kᵀ · scale + mask) V`` of each head, nothing transposed.

Lanes are queries. With tokens along the lanes a linear layer leaves Q, K and V as [feature][token], so both products
are outer products of a vector of queries and a splatted number, and the softmax runs over *rows*:

for each image and head, in parallel; for each V vectors of queries:
  Sᵀ[key][query] = scale · Σ_c K[c][key] Q[c][query] + mask         (R keys by V vectors in registers)
  Pᵀ = exp(Sᵀ - its maximum over the rows), and the sums of its rows
  O[c][query] = Σ_key V[c][key] Pᵀ[key][query] / sum                (R features by V vectors)

Of maps in pairs of bfloat16 both products multiply pairs: of features in the first, in the second of keys a vector
apart, for which the values of a head are put side by side once.

Keys are walked in the order in which they lie in memory, those beyond the last token left out, so a length that is no
multiple of the vector's enters neither maximum nor sum.

References
----------
Vaswani et al., "Attention Is All You Need" (2017), section 3.2. M. Milakov, N. Gimelshein, "Online normalizer
calculation for softmax" (2018): here a tile of queries keeps its whole rows, so no rescaling is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import FLOAT32
from sparseflow.kernels.ir import emit, slots
from sparseflow.kernels.layouts.lane import LaneLayout

Expr = Any
ROWS = 4
"""Keys, and later features, of a register tile."""
LOWEST = -3.0e38


@dataclass(frozen=True)
class Attention:
    """One attention operator.

    Attributes
    ----------
    batch, heads, size : int
        Images, heads, features of a head.
    queries, keys : int
        Tokens that ask, tokens that answer.
    scale : float
        Meets the scores before the mask.
    first : (int, int, int)
        The first feature of queries, keys and values in their tensors, which may hold more than one of the three.
    mask : tuple of int
        Shape (N, H, queries, keys) of the additive mask, 1 where it is repeated; empty if there is none.
    """

    batch: int
    heads: int
    size: int
    queries: int
    keys: int
    scale: float
    first: tuple[int, int, int] = (0, 0, 0)
    mask: tuple[int, ...] = ()


@dataclass(frozen=True)
class Walk:
    """Keys in memory order: ``count`` vectors from ``vector`` on, of which the first ``inner`` elements are tokens."""

    vector: int
    count: int
    inner: int


def walks(layout: LaneLayout) -> list[Walk]:
    """All tokens of a 1 x T map. Token t lies in lane t // block, so vector v holds ceil((T - v) / block) of them."""
    block, tokens = layout.block[1], layout.width
    if tokens == block * layout.lanes and layout.plane == block:
        return [Walk(0, 1, tokens)]
    each, longer = divmod(tokens, block)
    found = [Walk(0, longer, each + 1), Walk(longer, block - longer, each)]
    return [w for w in found if w.count and w.inner]


@dataclass(frozen=True)
class Pairs:
    """Vectors of keys two by two: ``count`` of them from number ``first`` on. Of the first vector of each so many
    elements are tokens, of the second so many."""

    first: int
    count: int
    low: int
    high: int


def pairs(layout: LaneLayout) -> list[Pairs]:
    """All tokens of a 1 x T map, in pairs of elements a vector apart; the last vector may stand alone."""
    block, tokens = layout.block[1], layout.width
    held = [max(0, -(-(tokens - v) // block)) for v in range(block)] + [0]
    found: list[Pairs] = []
    for m in range(-(-block // 2)):
        low, high = held[2 * m], held[2 * m + 1]
        if found and (found[-1].low, found[-1].high) == (low, high):
            found[-1] = replace(found[-1], count=found[-1].count + 1)
        elif low:
            found.append(Pairs(m, 1, low, high))
    return found


def attention(
    shape: Attention,
    layouts: tuple[LaneLayout, LaneLayout, LaneLayout, LaneLayout],
    threads: int,
    name: str,
    accumulators: int,
) -> tirx.PrimFunc:
    """Kernel ``(q, k, v, [mask,] y)``; ``layouts`` are those of q, k, v and y, with one image a batch item.

    Parameters
    ----------
    shape : Attention
    layouts : four of LaneLayout
        1 x tokens maps without halo.
    threads : int
        Share the heads of all images.
    accumulators : int
        Sums that fit the registers.
    """
    with emit.prim_func(name, slots.helpers(layouts[0].lanes, layouts[0].element)) as finish:
        _Body(shape, layouts, accumulators).write(threads)
    return finish()


class _Body:
    """Emits one kernel."""

    def __init__(
        self,
        shape: Attention,
        layouts: tuple[LaneLayout, LaneLayout, LaneLayout, LaneLayout],
        accumulators: int,
    ) -> None:
        self.shape, self.lanes, self.element = shape, layouts[0].lanes, layouts[0].element
        self.per = self.element.per_slot
        self.q_layout, self.k_layout, self.v_layout, self.y_layout = layouts
        block = self.q_layout.block[1]
        most = max(1, min(4, accumulators // (ROWS + 2)))  # the maxima live beside the sums
        self.V = math.ceil(block / math.ceil(block / most))

    def write(self, threads: int) -> None:
        """The whole kernel."""
        s, batch = self.shape, self.shape.batch
        kind = self.element.slot
        self.q = emit.arg("q", (batch, self.q_layout.size), kind)
        self.k = emit.arg("k", (batch, self.k_layout.size), kind)
        self.v = emit.arg("v", (batch, self.v_layout.size), kind)
        self.mask = emit.arg("mask", (math.prod(s.mask),)) if s.mask else None
        self.y = emit.arg("y", (batch, self.y_layout.size), kind)
        with emit.channel_loop(batch * s.heads, threads) as item:
            self.n = T.bind(tirx.floordiv(item, T.int32(s.heads)))
            self.h = T.bind(tirx.floormod(item, T.int32(s.heads)))
            rows = self.k_layout.block[1] * self.lanes
            self.scores = T.alloc_buffer((rows * self.V * self.lanes,), FLOAT32.name)
            if self.per > 1:
                self._pair_values()
            for part in emit.segments(self.q_layout.block[1], self.V):
                with emit.loop(part.count) as i:
                    self._queries(part.start + i * part.size, part.size)

    def _queries(self, column: Expr, width: int) -> None:
        """``width`` vectors of queries from vector ``column`` on."""
        top = emit.Accumulators(width, self.lanes)
        for i in range(width):
            top[i] = emit.const(LOWEST, self.lanes)
        for walk in walks(self.k_layout):
            with emit.loop(walk.count) as j:
                vector = walk.vector + j
                for part in emit.segments(walk.inner, ROWS):
                    with emit.loop(part.count) as r:
                        self._dot(
                            column, width, vector * self.lanes + part.start + r * part.size, part.size, top
                        )
        total = self._exponentials(width, top)
        first = self.h * self.shape.size
        for part in emit.segments(self.shape.size, ROWS):
            with emit.loop(part.count) as c:
                self._mix(column, width, first + part.start + c * part.size, part.size, total)

    def _feature(self, layout: LaneLayout, which: int, feature: Expr) -> Expr:
        """Slot offset of a feature of queries (0), keys (1) or values (2), the first of its slot."""
        slot = tirx.floordiv(self.shape.first[which] + feature, T.int32(self.per))
        return slot * (layout.plane * self.lanes)

    def _dot(self, column: Expr, width: int, key: Expr, count: int, top: emit.Accumulators) -> None:
        """Scores of ``count`` keys that lie side by side from element ``key`` on."""
        lanes, s = self.lanes, self.shape
        acc = emit.Accumulators(count * width, lanes)
        for a in range(count * width):
            acc[a] = emit.const(0.0, lanes)
        with emit.loop(s.size // self.per) as c:
            feature = self.h * s.size + c * self.per
            q = T.bind(self._feature(self.q_layout, 0, feature) + column * lanes)
            k = T.bind(self._feature(self.k_layout, 1, feature) + key)
            for r in range(count):
                weight = emit.splat(self.k[self.n, k + r], lanes)
                for i in range(width):
                    x = self.q[self.n, emit.ramp(q + i * lanes, lanes)]
                    acc[r * width + i] = slots.dot(self.element, acc[r * width + i], x, weight, lanes)
        for r in range(count):
            for i in range(width):
                value = acc[r * width + i] * emit.const(s.scale, lanes)
                if self.mask is not None:
                    value = value + self._masked(key + r, column + i)
                value = T.bind(value)
                T.buffer_store(self.scores, value, [self._score(key + r, width, i)])
                top[i] = tirx.max(top[i], value)

    def _score(self, row: Expr, width: int, i: int) -> Expr:
        return emit.ramp((row * width + i) * self.lanes, self.lanes)

    def _masked(self, row: Expr, column: Expr) -> Expr:
        """The mask of the key at element ``row`` for a vector of queries."""
        images, heads, queries, keys = self.shape.mask
        lanes = T.int32(self.lanes)
        token = tirx.floormod(row, lanes) * self.k_layout.block[1] + tirx.floordiv(row, lanes)
        base: Expr = T.int32(0) + (self.n if images > 1 else 0)
        base = base * heads + (self.h if heads > 1 else 0)
        base = base * (queries * keys) + token
        if queries == 1:
            return emit.splat(self.mask[base], self.lanes)  # type: ignore[index]

        def each(value: Expr) -> Expr:
            return emit.splat(T.int32(0) + value, self.lanes)

        query = emit.lane_numbers(self.lanes) * each(self.q_layout.block[1]) + each(column)
        query = tirx.min(query, each(queries - 1))  # lanes beyond the last token read something of their own
        return self.mask[query * each(keys) + each(base)]  # type: ignore[index]

    @contextmanager
    def _over(self, walk: Walk) -> Iterator[Expr]:
        """A loop over the keys of a walk, by their elements."""
        with emit.loop(walk.count) as j, emit.loop(walk.inner) as r:
            yield (walk.vector + j) * self.lanes + r

    def _exponentials(self, width: int, top: emit.Accumulators) -> emit.Accumulators:
        """Turns the scores into numerators; gives the reciprocals of their sums."""
        lanes = self.lanes
        total = emit.Accumulators(width, lanes)
        for i in range(width):
            total[i] = emit.const(0.0, lanes)

        def exponential(row: Expr, i: int) -> Expr:
            value = T.bind(emit.exp_vector(self.scores[self._score(row, width, i)] - top[i], lanes))
            total[i] = total[i] + value
            return value

        for walk in walks(self.k_layout) if self.per == 1 else []:
            with self._over(walk) as row:
                for i in range(width):
                    T.buffer_store(self.scores, exponential(row, i), [self._score(row, width, i)])
        for part in pairs(self.k_layout) if self.per > 1 else []:
            for first, last, count in ((0, part.high, 2), (part.high, part.low, 1)):
                with emit.loop(part.count) as m, emit.loop(last - first) as r:
                    pair, lane = part.first + m, first + r
                    rows = [(pair * 2 + j) * lanes + lane for j in range(count)]
                    for i in range(width):
                        slot = slots.joined(self.element, [exponential(row, i) for row in rows], lanes)
                        T.buffer_store(self.weights, slot, [self._score(pair * lanes + lane, width, i)])
        for i in range(width):
            total[i] = emit.const(1.0, lanes) / total[i]
        return total

    def _mix(self, column: Expr, width: int, feature: Expr, count: int, total: emit.Accumulators) -> None:
        """``count`` features of the result."""
        lanes = self.lanes
        acc = emit.Accumulators(count * width, lanes)
        for a in range(count * width):
            acc[a] = emit.const(0.0, lanes)

        def add(row: Expr, weights: Any, value: Callable[[int], Expr]) -> None:
            for r in range(count):
                splat = emit.splat(value(r), lanes)
                for i in range(width):
                    weight = weights[self._score(row, width, i)]
                    acc[r * width + i] = slots.dot(self.element, acc[r * width + i], weight, splat, lanes)

        if self.per == 1:
            base = T.bind(self._feature(self.v_layout, 2, feature))
            stride = self.v_layout.plane * lanes
            for walk in walks(self.k_layout):
                with self._over(walk) as row:
                    add(row, self.scores, lambda r: self.v[self.n, base + r * stride + row])
        else:
            own = T.bind(feature - self.h * self.shape.size)
            for part in pairs(self.k_layout):
                with emit.loop(part.count) as m, emit.loop(part.low) as r:
                    row = (part.first + m) * lanes + r
                    add(row, self.weights, lambda r: self.values[(own + r) * self.paired + row])  # noqa: B023
        layout = self.y_layout
        for r in range(0, count, self.per):
            for i in range(width):
                found = [acc[(r + j) * width + i] * total[i] for j in range(self.per)]
                slot = emit.outside_filled(slots.joined(self.element, found, lanes), layout, 0, column + i)
                at = tirx.floordiv(feature + r, T.int32(self.per)) * layout.plane + layout.position(
                    0, column + i
                )
                T.buffer_store(self.y, slot, [self.n, emit.ramp(at * lanes, lanes)])

    def _pair_values(self) -> None:
        """Room for the numerators in pairs of keys, and the values of a head so: (features, pairs of keys)."""
        lanes, layout, size = self.lanes, self.v_layout, self.shape.size
        vectors = layout.block[1]
        self.paired = -(-vectors // 2) * lanes
        self.weights = T.alloc_buffer((self.paired * self.V * lanes,), self.element.slot)
        self.values = T.alloc_buffer((size * self.paired,), self.element.slot)
        sixteen, low = (emit.splat(tirx.const(v, "int32"), lanes) for v in (16, 0xFFFF))
        zero, high = (emit.splat(tirx.const(v, "int32"), lanes) for v in (0, -65536))

        def pair(c: Expr, base: Expr, m: Expr, alone: bool) -> None:
            a = T.bind(self.v[self.n, emit.ramp(base + m * 2 * lanes, lanes)])
            b = zero if alone else T.bind(self.v[self.n, emit.ramp(base + (m * 2 + 1) * lanes, lanes)])
            first = tirx.bitwise_or(tirx.bitwise_and(a, low), tirx.shift_left(b, sixteen))
            upper = tirx.bitwise_and(tirx.shift_right(a, sixteen), low)
            for j, value in enumerate((first, tirx.bitwise_or(upper, tirx.bitwise_and(b, high)))):
                at = (c * 2 + j) * self.paired + m * lanes
                T.buffer_store(self.values, value, [emit.ramp(at, lanes)])

        with emit.loop(size // 2) as c:
            base = T.bind(self._feature(layout, 2, self.h * size + c * 2))
            with emit.loop(vectors // 2) as m:
                pair(c, base, m, alone=False)
            if vectors % 2:
                pair(c, base, T.int32(vectors // 2), alone=True)
