"""Linear layers of a few rows on levels of 8 bits: rows come and go in float32, weights are read as quads of int8.

    levels = the rows, rounded by the kernel itself
    for each block of B vectors of 16 outputs, in parallel:
      for each quad of inputs:
        for each vector: sums[rows] += the quad's four levels of each row x 64 weights, expanded once for all rows
      bias, factor, residual and activation, in float32

Sums are exact, so the result is rounded once, see `kernels.rescale`. The layer waits for its weights: a quarter of the
bytes that float32 takes, and less where zeros are left out.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import FLOAT32, INT8, UINT8, ElementType
from sparseflow.kernels.gemv.few_rows import BYTES_PER_CYCLE, LINE
from sparseflow.kernels.ir import emit, llvm, slots
from sparseflow.kernels.rescale import TAIL, rescale_size
from sparseflow.kernels.template import Candidate, KernelTemplate, register
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array, Layouts, Workload

Expr = Any
Add = Callable[[Expr], None]
Read = Callable[[Expr, int, Add], None]
MOST_ROWS = 7
AHEAD = (64, 0)
"""How many cache lines ahead weights are asked for; 0: only the processor's own prefetching."""
SUMS = 16
"""Vectors of sums that a block keeps at most."""
LATENCY = 4.0  # cycles from one sum to the next


@dataclass(frozen=True)
class Block:
    """``count`` vectors of outputs from vector ``first`` on."""

    number: Expr
    first: Expr
    count: int


class FewRowsLevels(KernelTemplate):
    """Common to the dense kernel and those with a bitmap, which say how 64 weights are read."""

    layout = "rows"
    maps = (UINT8,)
    code = llvm.quads(16, ("avx512vnni",))

    @abstractmethod
    def arguments(self, body: FewRowsBody) -> Any:
        """Declares the packed constants as buffers, in the order of `pack`."""

    @abstractmethod
    def reader(self, body: FewRowsBody, packed: Any, block: Block) -> Read:
        """How a block's weights are read, quad after quad: ``read(quad, vector, add)`` calls ``add(64 weights)``."""

    def stored(self, workload: Workload, candidate: Candidate) -> ElementType:
        """See `KernelTemplate.stored`."""
        return workload.weights

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        w = workload
        if w.op != "linear":
            return "it computes linear layers only"
        if not w.target.multiplies(w.maps):
            return f"the target multiplies no {w.maps}"
        if w.vectors.bits != 512:
            return "it is written for AVX-512"
        if w.weights != INT8 or w.result != FLOAT32:
            return f"it multiplies int8 and writes float32, not {w.weights} and {w.result}"
        if w.width > MOST_ROWS:
            return f"{w.width} rows, more than {MOST_ROWS}, are for lanes"
        return None

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        with emit.prim_func(name, self.code) as finish:
            FewRowsBody(self, workload, candidate).write()
        return finish()

    def blocked(self, workload: Workload, candidate: Candidate, weight: LayerWeight) -> list[Array]:
        """The quads of each block, int32 (quads, vectors, lanes), with zeros for missing outputs."""
        lanes = workload.vectors.lanes
        quads = weight.joined(workload).dense.reshape(workload.filters, workload.depth)
        quads = np.pad(quads, ((0, -workload.filters % lanes), (0, 0)))
        vectors = quads.reshape(-1, lanes, workload.depth).transpose(2, 0, 1)
        whole, rest = blocks_of(workload, candidate)
        sizes = [candidate.parameters["B"]] * whole + [rest] * (rest > 0)
        return np.split(vectors, np.cumsum(sizes)[:-1], axis=1)


def vectors_of(workload: Workload) -> int:
    """Vectors of outputs, the last filled up."""
    return math.ceil(workload.filters / workload.vectors.lanes)


def blocks_of(workload: Workload, candidate: Candidate) -> tuple[int, int]:
    """How many blocks hold B vectors of existing outputs, and how many vectors the last block holds."""
    b = candidate.parameters["B"]
    whole = workload.filters // workload.vectors.lanes // b
    return whole, vectors_of(workload) - whole * b


class FewRowsBody:
    """Emits one kernel."""

    def __init__(self, template: FewRowsLevels, workload: Workload, candidate: Candidate) -> None:
        self.template, self.workload, self.candidate = template, workload, candidate
        self.lanes = workload.vectors.lanes

    def write(self) -> None:
        """The whole kernel."""
        w, b = self.workload, self.candidate.parameters["B"]
        shape = (w.width, w.filters)
        self.x = emit.arg("x", (w.width, w.channels))
        self.packed = self.template.arguments(self)
        self.start = emit.arg("start", (w.filters,), UINT8.accumulator)
        self.rescale = emit.arg("rescale", (rescale_size(w),))
        self.residual: Any = emit.arg("residual", shape) if w.residual else None
        self.y = emit.arg("y", shape)
        self._round()
        whole, rest = blocks_of(w, self.candidate)
        if whole:
            with emit.channel_loop(whole, w.threads) as i:
                self._block(Block(i, i * b, b))
        if rest:
            self._block(Block(whole, whole * b, rest))

    def _round(self) -> None:
        """The rows as levels, in whole quads."""
        w, lanes, size = self.workload, self.lanes, self.workload.depth * UINT8.per_slot
        self.levels = T.alloc_buffer((w.width, size), UINT8.storage)
        inverse, zero = (
            T.bind(self.rescale[w.padded + TAIL.index(f"source {n}")]) for n in ("inverse", "zero")
        )

        def put(row: Expr, at: Expr, count: int) -> None:
            where = emit.ramp(at, count)
            level = slots.rounded(self.x[row, where], inverse, zero, count)
            T.buffer_store(self.levels, level, [row, where])

        with emit.loop(w.width) as row:
            with emit.loop(w.channels // lanes) as i:
                put(row, i * lanes, lanes)
            with emit.loop(w.channels % lanes) as i:
                put(row, w.channels // lanes * lanes + i, 1)
            for i in range(w.channels, size):
                T.buffer_store(self.levels, tirx.const(0, UINT8.storage), [row, i])

    def _block(self, block: Block) -> None:
        w, lanes, count = self.workload, self.lanes, block.count
        acc = emit.Accumulators(w.width * count, lanes, UINT8.accumulator)
        for i in range(w.width * count):
            acc[i] = emit.splat(T.int32(0), lanes)
        read = self.template.reader(self, self.packed, block)
        with emit.loop(w.depth) as quad:
            four = emit.ramp(quad * UINT8.per_slot, UINT8.per_slot)
            levels = [tirx.reinterpret(UINT8.slot, self.levels[r, four]) for r in range(w.width)]
            inputs = [T.bind(emit.splat(four, lanes)) for four in levels]
            for v in range(count):

                def add(weights: Expr, v: int = v) -> None:
                    for r, x in enumerate(inputs):
                        acc[r * count + v] = slots.dot(UINT8, acc[r * count + v], x, weights, lanes)

                read(quad, v, add)
        for r in range(w.width):
            for v in range(count):
                self._store(r, (block.first + v) * lanes, acc[r * count + v])

    def _store(self, row: int, at: Expr, sums: Expr) -> None:
        """A vector of outputs; one element after the other if they end within it, as the last block's may."""
        w, lanes = self.workload, self.lanes
        if not isinstance(at, int) or at + lanes <= w.filters:
            self._finish(row, emit.ramp(at, lanes), sums, lanes)
            return
        few = T.alloc_buffer((lanes,), UINT8.accumulator)
        T.buffer_store(few, sums, [emit.ramp(0, lanes)])
        with emit.loop(w.filters - at) as i:
            self._finish(row, at + i, few[i], 1)

    def _finish(self, row: int, where: Expr, sums: Expr, lanes: int) -> None:
        """Bias, factor, residual, activation."""
        w = self.workload
        kind = f"{FLOAT32.name}x{lanes}" if lanes > 1 else FLOAT32.name
        value = tirx.Cast(kind, sums + self.start[where]) * self.rescale[where]
        if self.residual is not None:
            value = value + self.residual[row, where]
        T.buffer_store(self.y, emit.activate(w.activation, value, lanes, w.parameter), [row, where])


@register
class FewRowsInt8(FewRowsLevels):
    """Dense weights, each block one run of memory."""

    name = "few-rows-int8"
    format = "dense"

    def candidates(self, workload: Workload) -> list[Candidate]:
        """1, 2, 4 or 8 vectors of outputs at a time."""
        found = [
            Candidate(self.name, {"B": b, "ahead": ahead}) for b in sizes_of(workload) for ahead in AHEAD
        ]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        latency = max(1.0, LATENCY / (candidate.parameters["B"] * workload.width))
        work = max(LINE / BYTES_PER_CYCLE, workload.width * latency)
        return workload.depth * vectors_of(workload) * work / workload.threads

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """(blocks, quads, vectors of the block, lanes)."""
        return {"data": np.concatenate([b.reshape(-1) for b in self.blocked(workload, candidate, weight)])}

    def arguments(self, body: FewRowsBody) -> Any:
        """See `FewRowsLevels.arguments`."""
        w = body.workload
        return emit.arg("data", (vectors_of(w) * w.depth * body.lanes,), UINT8.slot)

    def reader(self, body: FewRowsBody, packed: Any, block: Block) -> Read:
        """See `FewRowsLevels.reader`."""
        lanes, ahead = body.lanes, body.candidate.parameters["ahead"]

        def read(quad: Expr, v: int, add: Add) -> None:
            at = (block.first * body.workload.depth + quad * block.count + v) * lanes
            if ahead:
                emit.prefetch(packed, at + ahead * lanes)
            add(T.bind(packed[emit.ramp(at, lanes)]))

        return read


def sizes_of(workload: Workload) -> list[int]:
    """Vectors of outputs that a block may have."""
    return [b for b in (8, 4, 2, 1) if b * workload.width <= SUMS]
