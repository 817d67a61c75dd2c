"""The skeleton of every convolution on lane layouts: tiles, partial sums, epilogue, halo.

for each group of filter blocks, in parallel:
  for each image:
    for each chunk of input channels, tile of rows x V vectors of the output, block of R filters (in one of `ORDERS`):
      acc[R][rows][V] = bias, or the partial sums of the chunks before
      the taps (left to the template)
      epilogue after the last chunk, then store
    fill the halo of the group's filters
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

from sparseflow.core.element_type import BFLOAT16, FLOAT32, INT8, UINT8, Quantised
from sparseflow.kernels.ir import emit, slots
from sparseflow.kernels.ir.elements import widened
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.rescale import rescale_size, saturates
from sparseflow.kernels.template import Candidate, KernelTemplate
from sparseflow.kernels.workload import Array, Layouts, Workload

Expr = Any

# Loop orders, outermost first; a candidate's ``order`` is the number. The first keeps a tile's planes in the L1 cache
# for all filters; the second reads weights that are larger than the map once; the third keeps the partial sums of a
# band of rows in the L2 cache when the map is larger.
ORDERS = (
    ("chunk", "row", "col", "block"),
    ("chunk", "block", "row", "col"),
    ("row", "chunk", "col", "block"),
)
MULTIPLIED = {BFLOAT16.name: BFLOAT16, UINT8.name: INT8}
"""By the type of maps whose channels share slots: the type of weights that they are multiplied with."""


@dataclass(frozen=True)
class Tile:
    """One output tile: ``rows x cols`` vectors from block position ``(row, col)``, for filter block ``block``."""

    rows: int
    cols: int
    row: Expr
    col: Expr
    block: Expr
    chunk: Expr
    image: Expr


class LaneConvolution(KernelTemplate):
    """A convolution template on lane layouts; subclasses say how the taps of a block are stored and walked."""

    layout = "lanes"
    unions = True

    @abstractmethod
    def arguments(self, kernel: ConvBody) -> list[Any]:
        """Declares the packed constants as buffers, in the order of `pack`."""

    @abstractmethod
    def taps(self, kernel: ConvBody, tile: Tile, add: Callable[[Expr, Callable[[int], Expr]], None]) -> None:
        """Walks the taps of ``tile``: for each, ``add(offset of the input element, value of filter r)``."""

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        if workload.op == "linear" and workload.width < 8:
            return f"{workload.width} rows leave most vector lanes empty"
        return narrow_refusal(workload) if workload.maps.per_slot > 1 else None

    def in_slots(self, workload: Workload) -> bool:
        """Whether weights are stored by slots of the map: where a slot's channels are multiplied together, and levels.

        Of a depthwise filter on levels all but its own channel's are zeros.
        """
        return workload.slotted or workload.quantised

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        target, kinds = workload.target, (workload.maps, workload.result)
        code = slots.helpers(target.vectors.lanes, *kinds, features=target.instruction_sets)
        with emit.prim_func(name, code) as finish:
            ConvBody(self, workload, candidate, layouts).write()
        return finish()

    def storage(self, workload: Workload, candidate: Candidate) -> str:
        """The type of the array that holds the weights: slots where the channels of one are multiplied together."""
        return workload.maps.slot if self.in_slots(workload) else self.stored(workload, candidate).storage

    def written(self, workload: Workload, candidate: Candidate, values: Array) -> Array:
        """Weights, or slots of `LayerWeight.joined`, as that array; of each tap those of all filters of a block."""
        if workload.quantised and not workload.slotted:
            place = 8 * (np.arange(values.size) % candidate.parameters["R"] % workload.maps.per_slot)
            return (workload.weights.encode(values).view(np.uint8).astype(np.uint32) << place).astype(
                np.int32
            )
        return values if workload.slotted else self.stored(workload, candidate).encode(values)

    def read(self, kernel: ConvBody, stored: Expr) -> Expr:
        """One of that array's elements as it is multiplied."""
        w = kernel.workload
        return stored if self.in_slots(w) else widened(self.stored(w, kernel.candidate), stored)

    def in_types(self, workload: Workload, candidate: Candidate) -> list[Candidate]:
        """See `KernelTemplate.in_types`; weights that are multiplied in slots are stored so."""
        found = super().in_types(workload, candidate)
        return found[:1] if self.in_slots(workload) else found

    def partition(self, workload: Workload, candidate: Candidate, work: Array) -> dict[str, Array]:
        """Boundaries that split the filter blocks into ``threads`` groups of about equal ``work``; empty for one."""
        if workload.threads == 1:
            return {}
        total = np.concatenate([[0], np.cumsum(work, dtype=np.float64)])
        shares = np.linspace(0, total[-1], workload.threads + 1)[1:-1]
        cuts = np.searchsorted(total, shares)
        return {"bounds": np.concatenate([[0], cuts, [len(work)]]).astype(np.int32)}


def narrow_refusal(workload: Workload) -> str | None:
    """Why maps whose channels share slots are not for a convolution; None if they are."""
    w, per, name = workload, workload.maps.per_slot, workload.maps.name
    written = w.result.per_slot
    if not w.target.multiplies(w.maps):
        return f"the target multiplies no {name}"
    if w.weights != MULTIPLIED[w.maps.name]:
        return f"weights of {w.weights} are not multiplied with maps of {name}"
    if w.joins and w.groups > 1 and (w.channels // w.groups % per or w.filters // w.groups % written):
        return f"{name} maps need channels and filters of a group in multiples of {per}"
    if w.filters % written and not w.quantised:
        return f"{name} maps need filters in multiples of {written}"
    if w.depthwise and (w.filters != w.channels or written != per):
        return (
            f"{name} maps need one filter for each channel of a depthwise layer, which writes what it reads"
        )
    if w.residual_channels and written > 1 and not isinstance(w.result, Quantised):
        return "a residual whose channels an index picks is not read in pairs"
    return None


class ConvBody:
    """Emits one convolution kernel."""

    def __init__(
        self, template: LaneConvolution, workload: Workload, candidate: Candidate, layouts: Layouts
    ) -> None:
        self.template, self.workload, self.candidate = template, workload, candidate
        self.input, self.output, self.residual = layouts.in_lanes(template.name)
        self.lanes, self.element, self.result = self.output.lanes, workload.maps, workload.result
        p = candidate.parameters
        self.R, self.rows, self.V = p["R"], p["rows"], p["V"]
        self.chunk = p.get("chunk", 0) or workload.depth
        self.chunks = math.ceil(workload.depth / self.chunk)
        self.blocks = workload.blocks(self.R)

    def write(self) -> None:
        """The whole kernel."""
        w = self.workload
        self.x = emit.arg("x", (w.batch, self.input.size), self.element.slot)
        self.packed = self.template.arguments(self)
        self.bounds = emit.arg("bounds", (w.threads + 1,), "int32") if w.threads > 1 else None
        self.bias = emit.arg("bias", (w.padded,), w.sums.storage) if w.bias else None
        self.rescale: Any = emit.arg("rescale", (rescale_size(w),)) if w.quantised else None
        self.picks: Any = emit.arg("residual_index", (w.padded,), "int32") if w.residual_channels else None
        self.other: Any = (
            emit.arg("residual", (w.batch, self.residual.size), self.result.slot) if self.residual else None
        )
        self.y = emit.arg("y", (w.batch, self.output.size), self.result.slot)
        if self.bounds is None:
            self._group(0, self.blocks)
        else:
            with emit.loop(w.threads, parallel=True) as g:
                self._group(T.bind(self.bounds[g]), T.bind(self.bounds[g + 1]))
        self._pass()

    def _group(self, first: Expr, last: Expr) -> None:
        order = ORDERS[self.candidate.parameters.get("order", 0)]
        with emit.loop(self.workload.batch) as n:
            self._loops(order, (first, last), {"image": n})
            if any(self.output.halo):
                planes = self.R // self.result.per_slot
                with emit.loop((last - first) * planes) as f:
                    base = T.bind((first * planes + f) * (self.output.plane * self.lanes))
                    emit.fill_halo(self.y, n, base, self.output)

    def _pass(self) -> None:
        """The channels behind the blocks, without weights: bias and residual."""
        per = self.result.per_slot
        first = self.blocks * self.R // per
        if first >= self.output.slots:
            return
        with emit.channel_loop(self.output.slots - first, self.workload.threads) as c:
            f = first + c
            bias = [self._first(f * per + i) for i in range(per)]
            with emit.loop(self.workload.batch) as n:
                with emit.loop(self.output.block[0]) as row, emit.loop(self.output.block[1]) as col:
                    value = self._finish(n, (f, row, col), [emit.splat(b, self.lanes) for b in bias])
                    T.buffer_store(self.y, value, [n, self._vector(self.output, f, row, col)])
                if any(self.output.halo):
                    emit.fill_halo(self.y, n, T.bind(f * (self.output.plane * self.lanes)), self.output)

    def _loops(self, order: tuple[str, ...], group: tuple[Expr, Expr], at: dict[str, Any]) -> None:
        """The loops named by ``order``, outermost first, around one tile."""
        if not order:
            self._block(Tile(**at))
            return
        name, rest = order[0], order[1:]
        if name == "chunk" and self.chunks == 1:
            self._loops(rest, group, at | {"chunk": 0})
        elif name == "chunk":
            with emit.loop(self.chunks) as chunk:
                self._loops(rest, group, at | {"chunk": chunk})
        elif name == "block":
            with emit.loop(group[1] - group[0]) as b:
                self._loops(rest, group, at | {"block": group[0] + b})
        else:
            extent, size = (
                (self.output.block[0], self.rows) if name == "row" else (self.output.block[1], self.V)
            )
            for s in emit.segments(extent, size):
                with emit.loop(s.count) as t:
                    self._loops(rest, group, at | {name: s.start + t * s.size, name + "s": s.size})

    def _block(self, tile: Tile) -> None:
        spots = tile.rows * tile.cols
        acc = emit.Accumulators(self.R * spots, self.lanes, self.workload.sums.storage)
        self._initialise(tile, acc)
        start = self.x_base(tile)

        def add(offset: Expr, value: Callable[[int], Expr]) -> None:
            offset = T.bind(offset + start)
            for r in range(self.R):
                weight = emit.splat(value(r), self.lanes)
                for i in range(spots):
                    x = self.x[tile.image, emit.ramp(offset + self.x_step(tile, i), self.lanes)]
                    acc[r * spots + i] = self._sum(acc[r * spots + i], x, weight, r)

        self.template.taps(self, tile, add)
        if self.chunks == 1:
            self._store(tile, acc, last=True)
        else:
            with T.If(tile.chunk == self.chunks - 1):
                with T.Then():
                    self._store(tile, acc, last=True)
                with T.Else():
                    self._store(tile, acc, last=False)

    def _sum(self, total: Expr, x: Expr, weight: Expr, r: int) -> Expr:
        """``total`` of filter ``r`` of a block plus a tap; a depthwise filter reads its own channel of a slot."""
        if self.template.in_slots(self.workload) or self.element.per_slot == 1:
            return slots.dot(self.element, total, x, weight, self.lanes)
        return total + weight * slots.parts(self.element, x, self.lanes)[r]

    def x_base(self, tile: Tile) -> Expr:
        """Slot offset of the tile's first input vector for a tap at kernel position (0, 0) of plane 0."""
        (sh, sw), (pt, pl) = self.workload.stride, self.workload.padding[:2]
        vector = (tile.row * sh + self.input.halo[0] - pt) * self.input.cols
        return T.bind((vector + tile.col * sw + self.input.halo[1] - pl) * self.lanes)

    def x_step(self, tile: Tile, i: int) -> int:
        """Slot offset of the tile's ``i``-th vector from its first."""
        row, col = divmod(i, tile.cols)
        sh, sw = self.workload.stride
        return (row * sh * self.input.cols + col * sw) * self.lanes

    def tap_offset(self, plane: Expr, ky: Expr, kx: Expr) -> Expr:
        """Slot offset of tap ``(plane, ky, kx)``."""
        dh, dw = self.workload.dilation
        return (plane * self.input.plane + ky * (dh * self.input.cols) + kx * dw) * self.lanes

    def _vector(self, layout: LaneLayout, plane: Expr, row: Expr, col: Expr) -> Expr:
        """The indices of the vector at block position ``(row, col)``."""
        return emit.ramp((plane * layout.plane + layout.position(row, col)) * self.lanes, self.lanes)

    def _place(self, tile: Tile, r: int, i: int) -> tuple[Expr, Expr, Expr]:
        """Plane, row and column of the ``i``-th vector of a block's plane ``r``."""
        row, col = divmod(i, tile.cols)
        return tile.block * (self.R // self.result.per_slot) + r, tile.row + row, tile.col + col

    def _first(self, filter: Expr) -> Expr:
        """What the sums of a filter begin with."""
        return tirx.const(0, self.workload.sums.storage) if self.bias is None else self.bias[filter]

    def _initialise(self, tile: Tile, acc: emit.Accumulators) -> None:
        spots = tile.rows * tile.cols

        def fresh() -> None:
            for r in range(self.R):
                bias = self._first(tile.block * self.R + r)
                for i in range(spots):
                    acc[r * spots + i] = emit.splat(bias, self.lanes)

        if self.chunks == 1:
            fresh()
            return
        with T.If(tile.chunk == 0):
            with T.Then():
                fresh()
            with T.Else():
                for r in range(self.R):
                    for i in range(spots):
                        acc[r * spots + i] = self.y[
                            tile.image, self._vector(self.output, *self._place(tile, r, i))
                        ]

    def _store(self, tile: Tile, acc: emit.Accumulators, last: bool) -> None:
        spots, per = tile.rows * tile.cols, self.result.per_slot
        for r in range(self.R // per):
            for i in range(spots):
                place, value = self._place(tile, r, i), acc[r * per * spots + i]
                if last:
                    sums = [value, *(acc[(r * per + j) * spots + i] for j in range(1, per))]
                    value = self._finish(tile.image, place, sums)
                T.buffer_store(self.y, value, [tile.image, self._vector(self.output, *place)])

    def _finish(self, image: Expr, place: tuple[Expr, Expr, Expr], sums: list[Expr]) -> Expr:
        """The epilogue of one vector of slots: residual, activation, and the fill outside the map."""
        _plane, row, col = place
        if self.workload.quantised:
            return self._from_sums(image, place, sums)
        if self.other is not None and self.residual is not None:
            sums = self._add_residual(image, place, sums, self.residual)
        w = self.workload
        done = [emit.finish(value, w.activation, self.output, row, col, w.parameter) for value in sums]
        return slots.joined(self.element, done, self.lanes)

    def _from_sums(self, image: Expr, place: tuple[Expr, Expr, Expr], sums: list[Expr]) -> Expr:
        """The same of sums of products of levels: see `kernels.rescale` for the numbers of the operand."""
        w, lanes, per = self.workload, self.lanes, self.result.per_slot
        plane, row, col = place

        def number(i: Expr) -> Expr:
            return emit.splat(self.rescale[i], lanes)

        worth, shift, inverse, zero = (number(w.padded + i) for i in range(4))
        more: list[Expr | None] = [None] * per
        if self.other is not None and self.residual is not None:
            more = [value * worth + shift for value in self._stored(image, place, self.residual)]
            if self.picks is not None:
                rest = zero if saturates(w) else emit.const(0.0, lanes)
                picked = [emit.splat(self.picks[plane * per + j] >= 0, lanes) for j in range(per)]
                more = [tirx.Select(is_, value, rest) for is_, value in zip(picked, more, strict=True)]
        elif saturates(w):
            more = [shift] * per
        done = []
        for j, (total, added) in enumerate(zip(sums, more, strict=True)):
            value = tirx.Cast(f"{FLOAT32.name}x{lanes}", total) * number(plane * per + j)
            done.append(value if added is None else value + added)
        if not isinstance(self.result, Quantised):
            done = [emit.finish(value, w.activation, self.output, row, col, w.parameter) for value in done]
            return slots.joined(self.result, done, lanes)
        if not saturates(w):
            done = [emit.activate(w.activation, value, lanes, w.parameter) * inverse + zero for value in done]
        return emit.outside_filled(slots.from_levels(done, lanes), self.output, row, col)

    def _stored(self, image: Expr, place: tuple[Expr, Expr, Expr], layout: LaneLayout) -> list[Expr]:
        """What the residual holds for the channels of a slot: levels, or numbers, as float32 vectors."""
        plane, row, col = place
        per = self.result.per_slot

        def found(channel: Expr) -> Expr:
            return self.other[image, self._vector(layout, channel, row, col)]

        if self.picks is None:
            slot = found(plane)
            levels = isinstance(self.result, Quantised)
            return slots.levels(slot, self.lanes) if levels else slots.parts(self.result, slot, self.lanes)
        values = []
        for j in range(per):
            channel = T.bind(tirx.max(self.picks[plane * per + j], T.int32(0)))
            if per == 1:
                values.append(found(channel))
            else:
                values.append(slots.level(found(channel // per), channel % per, self.lanes))
        return values

    def _add_residual(
        self, image: Expr, place: tuple[Expr, Expr, Expr], sums: list[Expr], layout: LaneLayout
    ) -> list[Expr]:
        plane, row, col = place
        if self.picks is None:
            other = self.other[image, self._vector(layout, plane, row, col)]
            added = slots.parts(self.element, other, self.lanes)
            return [value + more for value, more in zip(sums, added, strict=True)]
        picked = T.bind(self.picks[plane])
        more = self.other[image, self._vector(layout, tirx.max(picked, T.int32(0)), row, col)]
        return [tirx.Select(emit.splat(picked >= 0, self.lanes), sums[0] + more, sums[0])]
