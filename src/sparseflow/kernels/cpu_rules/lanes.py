"""Partial results held in the lanes of registers, and how they become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir.prim import expr as prim

from .access import Nest
from .expr import Expr, const, dtype_of
from .loops import Place, loop, sequence, value_at, vector
from .program import Axis

SIDE_BY_SIDE = 4
"""Registers that are summed in turn, so that none waits for itself; a power of two."""


class LaneSums:
    """Partial results of a reduction along lanes: whole vectors in ``acc``, what is left in ``tail``."""

    def __init__(
        self, nest: Nest, axis: Axis, lanes: int, combine: Callable[[Expr, Expr], Expr], neutral: Expr
    ) -> None:
        self.nest, self.axis, self.lanes = nest, axis, lanes
        self.combine, self.neutral = combine, neutral
        whole, self.left = divmod(axis.extent, lanes)
        self.vectors = min(SIDE_BY_SIDE, 1 << (whole.bit_length() - 1)) if whole else 0
        self.rounds, self.extra = divmod(whole, self.vectors) if whole else (0, 0)

    def buffers(self) -> list[Any]:
        """New accumulators."""
        dtype = dtype_of(self.nest.value)
        sizes = (("acc", self.vectors * self.lanes), ("tail", self.left))
        return [tirx.decl_buffer((n,), dtype, name) for name, n in sizes if n]

    def _split(self, buffers: list[Any]) -> tuple[Any, Any]:
        return (buffers[0] if self.vectors else None), (buffers[-1] if self.left else None)

    def start(self, buffers: list[Any]) -> list[Any]:
        """Statements that set the accumulators to what changes nothing."""
        acc, tail = self._split(buffers)
        index = self.nest.index_dtype
        done = []
        for v in range(self.vectors):
            done.append(self._each(self.lanes, lambda i, v=v: (acc, i + v * self.lanes, self.neutral)))  # type: ignore[misc]
        if tail is not None:
            done.append(self._each(self.left, lambda i: (tail, i, self.neutral)))
        return done or [tirx.Evaluate(const(0, index))]

    def _each(self, width: int, make: Callable[[Expr], tuple[Any, Expr, Expr]]) -> Any:
        def lane(i: Expr) -> Any:
            buffer, slot, value = make(i)
            return tirx.BufferStore(buffer, value, [slot])

        return vector(width, lane, self.nest.index_dtype)

    def _add(self, buffer: Any, slot: int, width: int, here: Place, base: Expr | int) -> Any:
        def make(i: Expr) -> tuple[Any, Expr, Expr]:
            new = value_at(self.nest.value, {**here, self.axis.var: i + base}, i)
            return buffer, i + slot, self.combine(tirx.BufferLoad(buffer, [i + slot]), new)

        return self._each(width, make)

    def update(self, buffers: list[Any], here: Place) -> Any:
        """The whole axis added to the accumulators."""
        acc, tail = self._split(buffers)
        lanes, vectors, dtype = self.lanes, self.vectors, self.nest.index_dtype

        def several(i: Expr) -> Any:
            width = vectors * lanes
            return sequence(
                self._add(acc, v * lanes, lanes, here, i * width + v * lanes) for v in range(vectors)
            )

        done = [loop(self.rounds, several, dtype)] if self.rounds else []
        begun = self.rounds * vectors * lanes
        for v in range(self.extra):
            done.append(self._add(acc, v * lanes, lanes, here, begun + v * lanes))
        if tail is not None:
            done.append(self._add(tail, 0, self.left, here, self.axis.extent - self.left))
        return sequence(done)

    def folded(self, buffers: list[Any]) -> Expr:
        """One scalar from all accumulators."""
        acc, tail = self._split(buffers)
        dtype = self.nest.index_dtype
        parts = [self._register(acc, v * self.lanes, self.lanes, dtype) for v in range(self.vectors)]
        if tail is not None:
            rest = self._register(tail, 0, self.left, dtype)
            missing = self.lanes - self.left
            fill = self.neutral if missing == 1 else prim.Broadcast(self.neutral, missing)
            parts.append(prim.Shuffle([rest, fill], list(range(self.lanes))))
        while len(parts) > 1:
            parts = [self.combine(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)] + (
                parts[-1:] if len(parts) % 2 else []
            )
        return self._halved(parts[0], self.lanes)

    @staticmethod
    def _register(buffer: Any, start: int, width: int, dtype: str) -> Expr:
        first = const(start, dtype)
        return tirx.BufferLoad(buffer, [first if width == 1 else prim.Ramp(first, const(1, dtype), width)])

    def _halved(self, value: Expr, width: int) -> Expr:
        if width == 1:
            return value
        var = tirx.Var("lanes", value.ty)
        half = width // 2

        def part(start: int) -> Expr:
            return prim.Shuffle([var], list(range(start, start + half)))

        return prim.Let(var, value, self._halved(self.combine(part(0), part(half)), half))
