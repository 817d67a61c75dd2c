"""Depthwise convolution on levels: the rows of a kernel's column are multiplied in one instruction.

A slot holds four channels, of which a depthwise filter reads one, so the instruction that multiplies the bytes of a
slot would waste three of them. Here four vectors of slots, one below the other, are turned in registers: of each four
lanes the first of the new vectors holds the first lane's four channels, and in each of these the four rows. One such
column serves all outputs that read it, to its left and above too, and rounding brings the lanes back in order.

for each slot of channels, in parallel; for each image:
  for each tile of rows x V vectors of the output:
    for each column of the input that the tile reads:
      turn its four rows (or eight)
      for each output column and row that reads it: sums += turned * weights
      round and store the output columns that are done
  fill the halo of the slot
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import FLOAT32, UINT8
from sparseflow.kernels.ir import emit, slots
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.rescale import TAIL, rescale_size, saturates
from sparseflow.kernels.template import Candidate, KernelTemplate, register
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array, Layouts, Workload

Expr = Any
QUAD = 4
WIDEST = 16
"""Columns of a tile whose code is written out."""
ROUNDING = 18.0
"""Cycles in which a vector of slots is scaled, rounded and stored."""


@register
class Depthwise(KernelTemplate):
    """Depthwise convolution of maps in levels."""

    name = "depthwise-quads"
    layout = "lanes"
    format = "dense"
    narrow = True
    maps = (UINT8,)

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        w = workload
        if not w.depthwise or w.filters != w.channels:
            return "it computes one filter for each channel"
        if not w.target.multiplies(w.maps):
            return f"the target multiplies no {w.maps}"
        if w.residual or w.result != w.maps:
            return "it adds no residual and writes levels only"
        if not _tile_rows(w):
            return (
                f"a kernel of {w.kernel_size[0]}x{w.kernel_size[1]} needs more sums than there are registers"
            )
        return None

    def candidates(self, workload: Workload) -> list[Candidate]:
        """All rows that share what is turned, or one; tiles as wide as the block or a part of it."""
        width = workload.output_layout.block[1]
        found = [
            Candidate(self.name, {"rows": rows, "V": math.ceil(width / parts), "bits": 8})
            for rows in dict.fromkeys((_tile_rows(workload), 1))
            for parts in range(math.ceil(width / WIDEST), width + 1)
            if parts in (math.ceil(width / WIDEST), math.ceil(width / 7), math.ceil(width / 4))
        ]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        w, p = workload, candidate.parameters
        kw, quads = w.kernel_size[1], _quads(w)
        bh, bw = w.output_layout.block
        columns = p["V"] * w.stride[1] + _reach(w, 1) - w.stride[1]
        turned = 8.0 * quads * columns / (p["V"] * p["rows"])
        vector = turned + QUAD * quads * kw * w.target.operations(w.maps) + ROUNDING
        vectors = math.ceil(w.filters / QUAD) * bh * bw * w.batch
        return vectors * vector / w.vectors.per_cycle / w.threads

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """(slots, kw, output rows, quads, channels of a slot, rows of a quad), int8, as int32 of a quad."""
        w, rows, quads = workload, candidate.parameters["rows"], _quads(workload)
        kh, kw = w.kernel_size
        dense = weight.joined(workload).dense.reshape(-1, QUAD, kh, kw)
        data = np.zeros((len(dense), kw, rows, quads * QUAD, QUAD), np.int8)
        for row in range(rows):
            for ky in range(kh):
                data[:, :, row, row * w.stride[0] + ky * w.dilation[0]] = dense[:, :, ky].transpose(0, 2, 1)
        by_quad = data.reshape(len(dense), kw, rows, quads, QUAD, QUAD).swapaxes(-1, -2)
        return {"data": np.ascontiguousarray(by_quad).view(np.int32).reshape(-1)}

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        target = workload.target
        code = slots.helpers(target.vectors.lanes, UINT8, features=target.instruction_sets, turned=True)
        with emit.prim_func(name, code) as finish:
            _Body(workload, candidate, layouts.in_lanes(self.name)[:2]).write()
        return finish()


def _reach(workload: Workload, axis: int) -> int:
    return workload.dilation[axis] * (workload.kernel_size[axis] - 1) + 1


def _quads(workload: Workload) -> int:
    """Quads of input rows that one output row reads, or several."""
    return math.ceil(_reach(workload, 0) / QUAD)


def _tile_rows(workload: Workload) -> int:
    """Output rows that read the same quads and whose sums stay in registers; 0 if there is none."""
    open_columns = math.ceil(_reach(workload, 1) / workload.stride[1])
    sharing = (QUAD * _quads(workload) - _reach(workload, 0)) // workload.stride[0] + 1
    return min(
        sharing, workload.vectors.accumulators // (QUAD * open_columns), workload.output_layout.block[0]
    )


class _Body:
    """Emits one kernel."""

    def __init__(
        self, workload: Workload, candidate: Candidate, layouts: tuple[LaneLayout, LaneLayout]
    ) -> None:
        self.w, (self.input, self.output) = workload, layouts
        self.rows, self.V = candidate.parameters["rows"], candidate.parameters["V"]
        self.lanes, self.quads = self.output.lanes, _quads(workload)
        self.open = math.ceil(_reach(workload, 1) / workload.stride[1])

    def write(self) -> None:
        """The whole kernel."""
        w, kw = self.w, self.w.kernel_size[1]
        count = self.output.slots * kw * self.rows * self.quads * QUAD
        self.x = emit.arg("x", (w.batch, self.input.size), "int32")
        self.data = emit.arg("data", (count,), "int32")
        self.start = emit.arg("bias", (w.padded,), "int32") if w.bias else None
        self.rescale = emit.arg("rescale", (rescale_size(w),))
        self.y = emit.arg("y", (w.batch, self.output.size), "int32")
        with emit.channel_loop(self.output.slots, w.threads) as c, emit.loop(w.batch) as n:
            for down in emit.segments(self.output.block[0], self.rows):
                for across in emit.segments(self.output.block[1], self.V):
                    with emit.loop(down.count) as i, emit.loop(across.count) as j:
                        place = down.start + i * down.size, across.start + j * across.size
                        self._tile(n, c, place, down.size, across.size)
            if any(self.output.halo):
                emit.fill_halo(self.y, n, T.bind(c * (self.output.plane * self.lanes)), self.output)

    def _tile(self, n: Expr, c: Expr, place: tuple[Expr, Expr], rows: int, width: int) -> None:
        w = self.w
        sums = emit.Accumulators(rows * self.open * QUAD, self.lanes, "int32")
        for column in range((width - 1) * w.stride[1] + _reach(w, 1)):
            outputs = [
                (kx, out)
                for kx in range(w.kernel_size[1])
                for out in range(width)
                if out * w.stride[1] + kx * w.dilation[1] == column
            ]
            for kx, out in outputs:
                if kx == 0:
                    self._begin(c, sums, rows, out)
            for quad in range(self.quads if outputs else 0):
                turned = self._turned(n, c, place, quad, column, rows)
                for kx, out in outputs:
                    for row in range(rows):
                        self._add(c, sums, turned, (kx, out, row, quad), rows)
            for kx, out in outputs:
                if kx == w.kernel_size[1] - 1:
                    for row in range(rows):
                        self._store(n, c, sums, (place[0] + row, place[1] + out), self._at(rows, row, out))

    def _at(self, rows: int, row: int, out: int) -> int:
        """The first of the sums of an output, whose place is free again when it is stored."""
        return (out % self.open * rows + row) * QUAD

    def _quad(self, buffer: Any, at: Expr) -> Expr:
        """Four numbers of 32 bits, repeated to a vector."""
        return T.call_extern(f"int32x{self.lanes}", "sparseflow_repeated", T.address_of(buffer[at]))

    def _begin(self, c: Expr, sums: emit.Accumulators, rows: int, out: int) -> None:
        zero = emit.splat(tirx.const(0, "int32"), self.lanes)
        first = zero if self.start is None else T.bind(self._quad(self.start, c * QUAD))
        for row in range(rows):
            for lane in range(QUAD):
                sums[self._at(rows, row, out) + lane] = first

    def _turned(
        self, n: Expr, c: Expr, place: tuple[Expr, Expr], quad: int, column: int, rows: int
    ) -> list[Expr]:
        """The four vectors of a column's quad of rows; rows that nobody reads are zeros."""
        w, (top, left) = self.w, self.w.padding[:2]
        first = place[0] * w.stride[0] + self.input.halo[0] - top
        col = place[1] * w.stride[1] + self.input.halo[1] - left + column
        read = (rows - 1) * w.stride[0] + _reach(w, 0)
        vectors: list[Expr] = []
        for i in range(quad * QUAD, (quad + 1) * QUAD):
            at = (c * self.input.plane + (first + i) * self.input.cols + col) * self.lanes
            inside = i < read
            zero = emit.splat(tirx.const(0, "int32"), self.lanes)
            vectors.append(T.bind(self.x[n, emit.ramp(at, self.lanes)]) if inside else zero)
        kind = f"int32x{self.lanes}"
        return [T.bind(T.call_extern(kind, f"sparseflow_turned_{lane}", *vectors)) for lane in range(QUAD)]

    def _add(
        self, c: Expr, sums: emit.Accumulators, turned: list[Expr], use: tuple[int, int, int, int], rows: int
    ) -> None:
        kx, out, row, quad = use
        w = self.w
        low = row * w.stride[0]
        if not any(
            quad * QUAD <= low + ky * w.dilation[0] < (quad + 1) * QUAD for ky in range(w.kernel_size[0])
        ):
            return
        at = ((c * w.kernel_size[1] + kx) * self.rows + row) * self.quads + quad
        weight = T.bind(self._quad(self.data, at * QUAD))
        for lane in range(QUAD):
            i = self._at(rows, row, out) + lane
            sums[i] = slots.dot(UINT8, sums[i], turned[lane], weight, self.lanes)

    def _store(self, n: Expr, c: Expr, sums: emit.Accumulators, place: tuple[Expr, Expr], first: int) -> None:
        w, lanes = self.w, self.lanes
        floats = f"{FLOAT32.name}x{lanes}"
        factor = T.bind(tirx.reinterpret(floats, self._quad(self.rescale, c * QUAD)))
        places = (w.padded + TAIL.index(name) for name in ("shift", "inverse", "zero"))
        shift, inverse, zero = (emit.splat(self.rescale[i], lanes) for i in places)
        values = [tirx.Cast(floats, sums[first + lane]) * factor for lane in range(QUAD)]
        if saturates(w):
            values = [value + shift for value in values]
        else:
            values = [emit.activate(w.activation, v, lanes, w.parameter) * inverse + zero for v in values]
        slot = T.call_extern(f"int32x{lanes}", "sparseflow_turned_back", *values)
        at = (c * self.output.plane + self.output.position(*place)) * lanes
        T.buffer_store(self.y, emit.outside_filled(slot, self.output, *place), [n, emit.ramp(at, lanes)])
