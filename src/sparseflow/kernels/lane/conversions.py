"""Changes of layout: row-major tensors to lanes, lanes to row-major, lanes to other lanes.

All are gathers by a table of source offsets that the compiler computes: no index arithmetic at run time. A row-major
tensor is described by `Strides`, so that NCHW maps and (rows, features) matrices need no code of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import ElementType
from sparseflow.kernels.ir import emit, slots
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.workload import Array

Expr = Any


@dataclass(frozen=True)
class Strides:
    """Element strides of a row-major tensor over (channel, height, width)."""

    channel: int
    height: int
    width: int

    @classmethod
    def nchw(cls, height: int, width: int) -> Strides:
        """Of an (N, C, H, W) map."""
        return cls(height * width, width, 1)

    @classmethod
    def matrix(cls, features: int) -> Strides:
        """Of a (rows, features) matrix: a channel is a feature, a column of the 1 x rows map is a row."""
        return cls(1, 0, features)


def lane_table(layout: LaneLayout, source: Strides | LaneLayout, step: tuple[int, int] = (1, 1)) -> Array:
    """int32 (plane * lanes,): offset in the source's channel of each element; -1 outside the map.

    With ``step`` the layout holds every so many-th row and column of the source's map only.
    """
    h, w = (np.where(c >= 0, c * s, -1) for c, s in zip(layout.coordinates(), step, strict=True))
    offsets = h * source.height + w * source.width if isinstance(source, Strides) else _element(source, h, w)
    return np.asarray(np.where(h >= 0, offsets, -1).reshape(-1), np.int32)


def plain_table(layout: LaneLayout) -> Array:
    """int32 (height * width,): offset in a channel of ``layout`` of each pixel."""
    h, w = np.divmod(np.arange(layout.height * layout.width), layout.width)
    return _element(layout, h, w).astype(np.int32)


def _element(layout: LaneLayout, h: Array, w: Array) -> Array:
    by, row = np.divmod(np.maximum(h, 0), layout.block[0])
    bx, col = np.divmod(np.maximum(w, 0), layout.block[1])
    vector = (row + layout.halo[0]) * layout.cols + col + layout.halo[1]
    return np.asarray(vector * layout.lanes + by * layout.grid[1] + bx)


def to_lanes(
    batch: int, source: Strides | LaneLayout, layout: LaneLayout, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x (batch, size), table, y (batch, layout.size))``: both of one element type, row-major in float32."""
    channels, lanes, dtype = layout.slots, layout.lanes, layout.element.slot
    if isinstance(source, LaneLayout):
        stride, size = source.plane * source.lanes, source.size
    else:
        stride, size = source.channel, channels * layout.height * layout.width
    fill = emit.slot_of(layout.element, layout.fill)
    with emit.prim_func(name) as finish:
        x = emit.arg("x", (batch, size), dtype)
        table = emit.arg("table", (layout.plane * lanes,), "int32")
        y = emit.arg("y", (batch, layout.size), dtype)
        with emit.channel_loop(channels, threads) as c, emit.loop(batch) as n, emit.loop(layout.plane) as p:
            for lane in range(lanes):
                offset = T.bind(table[p * lanes + lane])
                value = x[n, c * stride + tirx.max(offset, T.int32(0))]
                value = tirx.Select(offset >= 0, value, fill)
                T.buffer_store(y, value, [n, (c * layout.plane + p) * lanes + lane])
    return finish()


def from_lanes(batch: int, layout: LaneLayout, strides: Strides, threads: int, name: str) -> tirx.PrimFunc:
    """Kernel ``(x (batch, layout.size), table, y (batch, channels * height * width))`` of a float32 layout."""
    channels, pixels = layout.channels, layout.height * layout.width
    plane = layout.plane * layout.lanes
    with emit.prim_func(name) as finish:
        x = emit.arg("x", (batch, layout.size), layout.element.storage)
        table = emit.arg("table", (pixels,), "int32")
        y = emit.arg("y", (batch, channels * pixels), layout.element.storage)
        if strides.channel != 1:
            with emit.channel_loop(channels, threads) as c, emit.loop(batch) as n, emit.loop(pixels) as q:
                T.buffer_store(y, x[n, c * plane + table[q]], [n, c * strides.channel + q])
        else:
            for part in emit.segments(channels, 16):
                blocks = emit.channel_loop(part.count, threads)
                with blocks as block, emit.loop(batch) as n, emit.loop(pixels) as q:
                    offset = T.bind(table[q])
                    for i in range(part.size):
                        c = part.start + block * part.size + i
                        T.buffer_store(y, x[n, c * plane + offset], [n, q * strides.width + c])
    return finish()


def retype(batch: int, source: LaneLayout, element: ElementType, threads: int, name: str) -> tirx.PrimFunc:
    """Kernel ``(x, y)``: all of a map, halo included, in the same layout of another element type."""
    out = replace(source, element=element)
    each = max(source.element.per_slot, element.per_slot)
    plane = source.plane * source.lanes
    with emit.prim_func(name, slots.helpers(source.lanes, source.element, element)) as finish:
        x = emit.arg("x", (batch, source.size), source.element.slot)
        y = emit.arg("y", (batch, out.size), element.slot)

        def change(n: Expr, group: Expr, channels: int, vector: Expr) -> None:
            values: list[Expr] = []
            for i in range(-(-channels // source.element.per_slot)):
                at = (group * (each // source.element.per_slot) + i) * plane + vector * source.lanes
                values += slots.parts(source.element, T.bind(x[n, emit.ramp(at, source.lanes)]), source.lanes)
            for i in range(-(-channels // element.per_slot)):
                kept = values[i * element.per_slot : (i + 1) * element.per_slot]
                at = (group * (each // element.per_slot) + i) * plane + vector * source.lanes
                T.buffer_store(y, slots.joined(element, kept, source.lanes), [n, emit.ramp(at, source.lanes)])

        full, rest = divmod(source.channels, each)
        with emit.loop(batch) as n:
            with emit.channel_loop(full, threads) as group, emit.loop(source.plane) as vector:
                change(n, group, each, vector)
            if rest:
                with emit.loop(source.plane) as vector:
                    change(n, full, rest, vector)
    return finish()
