"""Tiles of kept maps: those that changed go to vector lanes, their results back, with what changed in them.

A convolution recomputes the tiles whose window holds a changed pixel. Tiles lie anywhere in the map; ``lanes`` of them
make a `LaneLayout` of which each lane's block is one tile with its own halo, so the kernels of whole maps compute them
without knowing. The step between both orders is a transposition of ``lanes x lanes`` values in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.kernels.incremental.operators import MASK_VECTOR, KeptLayout, Window, settle
from sparseflow.kernels.ir import emit
from sparseflow.kernels.ir.transpose import transposed
from sparseflow.kernels.layouts.lane import LaneLayout

Expr = Any


@dataclass(frozen=True)
class Tiles:
    """A tile size for an output map.

    Attributes
    ----------
    height, width : int
        The output map.
    tile : (int, int)
        Rows and columns of a tile; it may be larger than a small map.
    """

    height: int
    width: int
    tile: tuple[int, int]

    @property
    def count(self) -> int:
        """Tiles that cover the map."""
        return -(-self.height // self.tile[0]) * -(-self.width // self.tile[1])

    def margin(self, source: KeptLayout, window: Window) -> tuple[int, int, int, int]:
        """What the tiles' windows read around the input map."""
        low = tuple(max(0, -o) for o in window.offset)
        high = []
        for i, (out, size) in enumerate(
            zip((self.height, self.width), (source.height, source.width), strict=True)
        ):
            last = max(out, self.tile[i]) - 1
            high.append(max(0, last * window.stride[i] + window.offset[i] + window.reach[i] - size))
        return low[0], low[1], high[0], high[1]


def reach(target: KeptLayout, sources: Sequence[tuple[KeptLayout, Window]], name: str) -> tirx.PrimFunc:
    """Kernel ``(mask…, need, rows)``: the pixels of ``target`` of which a window holds a changed pixel, and their rows.

    ``need`` is a mask of the target's layout, ``rows`` int8 (height,).
    """
    with emit.prim_func(name) as finish:
        masks = [emit.arg(f"mask{i}", (m.mask_size,), "int8") for i, (m, _) in enumerate(sources)]
        need = emit.arg("need", (target.mask_size,), "int8")
        rows = emit.arg("rows", (target.height,), "int8")
        bands = [T.alloc_buffer((m.cols + 2 * MASK_VECTOR,), "int8") for m, _ in sources]
        with emit.loop(target.height) as row:
            T.buffer_store(rows, T.int8(0), [row])
            for (source, w), mask, band in zip(sources, masks, bands, strict=True):
                _join(source, row * w.stride[0] + w.offset[0], w.reach[0], mask, band)
            with emit.loop(target.width) as col:
                hit = emit.cell(T.int8(0), "int8")
                for (source, w), band in zip(sources, bands, strict=True):
                    for k in range(w.reach[1]):
                        at = col * w.stride[1] + (k + w.offset[1] + source.margin[1])
                        T.buffer_store(hit, hit[0] | band[at], [0])
                T.buffer_store(need, hit[0], [target.pixel(row, col)])
                T.buffer_store(rows, rows[row] | hit[0], [row])
    return finish()


def find(target: KeptLayout, tiles: Tiles, slots: int, name: str) -> tirx.PrimFunc:
    """Kernel ``(need, rows, list, count)``: tiles that cover the needed pixels, by the number of their first pixel.

    Tiles start where a needed row, and in a band of rows a needed column, is not covered yet; at the map's end they
    move back into it. ``list`` is int32 (slots,); behind the found ones the last stands again: lanes need no test.
    """
    last = tuple(max(0, size - t) for size, t in zip((tiles.height, tiles.width), tiles.tile, strict=True))
    with emit.prim_func(name) as finish:
        need = emit.arg("need", (target.mask_size,), "int8")
        rows = emit.arg("rows", (target.height,), "int8")
        found, count = emit.arg("list", (slots,), "int32"), emit.arg("count", (1,), "int32")
        band = T.alloc_buffer((target.cols + 2 * MASK_VECTOR,), "int8")
        T.buffer_store(count, T.int32(0), [0])
        next_row = emit.cell(T.int32(0), "int32")
        with emit.loop(tiles.height) as row, T.If(tirx.all(row >= next_row[0], rows[row] != 0)), T.Then():
            T.buffer_store(next_row, row + tiles.tile[0], [0])
            top = T.bind(tirx.min(row, T.int32(last[0])))
            _join(target, top, min(tiles.tile[0], tiles.height), need, band)
            next_col = emit.cell(T.int32(0), "int32")
            with emit.loop(tiles.width) as col:
                hit = band[col + target.margin[1]] != T.int8(0)
                with T.If(tirx.all(col >= next_col[0], hit)), T.Then():
                    T.buffer_store(next_col, col + tiles.tile[1], [0])
                    left = tirx.min(col, T.int32(last[1]))
                    T.buffer_store(found, top * tiles.width + left, [count[0]])
                    T.buffer_store(count, count[0] + 1, [0])
        with T.If(count[0] > 0), T.Then(), emit.loop(slots - count[0]) as i:
            T.buffer_store(found, found[count[0] - 1], [count[0] + i])
    return finish()


def _join(layout: KeptLayout, row: Expr, rows: int, mask: Any, band: Any) -> None:
    """Which columns of ``rows`` rows from ``row`` on hold a marked pixel."""
    first = T.bind((row + layout.margin[0]) * layout.cols)
    every = emit.ramp(0, MASK_VECTOR)
    with emit.loop(-(-layout.cols // MASK_VECTOR)) as v:
        acc = T.alloc_buffer((MASK_VECTOR,), "int8")
        T.buffer_store(acc, emit.splat(T.int8(0), MASK_VECTOR), [every])
        with emit.loop(rows) as r:
            at = first + r * layout.cols + v * MASK_VECTOR
            T.buffer_store(acc, acc[every] | mask[emit.ramp(at, MASK_VECTOR)], [every])
        T.buffer_store(band, acc[every], [emit.ramp(v * MASK_VECTOR, MASK_VECTOR)])


def gather(
    source: KeptLayout, window: Window, tiles: Tiles, layout: LaneLayout, batch: int, slots: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(map, list, first, y (batch, layout.size))``: the windows of ``batch * lanes`` tiles of the list."""
    lanes = layout.lanes
    with emit.prim_func(name) as finish:
        x = emit.arg("x", (source.size,))
        found = emit.arg("list", (slots,), "int32")
        first = T.arg("first", T.int32())
        y = emit.arg("y", (batch, layout.size))
        bases = T.alloc_buffer((lanes,), "int32")
        with emit.loop(batch) as n:
            with emit.loop(lanes) as lane:
                tile = T.bind(found[first + n * lanes + lane])
                row = tirx.floordiv(tile, tiles.width) * window.stride[0] + window.offset[0]
                col = tirx.floormod(tile, tiles.width) * window.stride[1] + window.offset[1]
                T.buffer_store(bases, source.pixel(row, col) * source.depth, [lane])
            for part in emit.segments(source.channels, lanes):
                with emit.loop(part.count) as block, emit.loop(layout.rows) as r, emit.loop(layout.cols) as c:
                    channel = part.start + block * lanes
                    at = T.bind((r * source.cols + c) * source.depth + channel)
                    pixels = [T.bind(x[emit.ramp(bases[i] + at, lanes)]) for i in range(lanes)]
                    for i, value in enumerate(transposed(pixels)[: part.size]):
                        to = ((channel + i) * layout.plane + r * layout.cols + c) * lanes
                        T.buffer_store(y, value, [n, emit.ramp(to, lanes)])
    return finish()


def scatter(
    target: KeptLayout, tiles: Tiles, layout: LaneLayout, batch: int, slots: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x (batch, layout.size), list, need, first, limit, map, mask)``: results of tiles into their map.

    A needed pixel of which a channel differs by more than ``limit`` is written and marked; others stay as they are.
    """
    lanes = layout.lanes
    with emit.prim_func(name) as finish:
        x = emit.arg("x", (batch, layout.size))
        found = emit.arg("list", (slots,), "int32")
        need = emit.arg("need", (target.mask_size,), "int8")
        first, limit = T.arg("first", T.int32()), T.arg("limit", T.float32())
        y, mask = emit.arg("y", (target.size,)), emit.arg("mask", (target.mask_size,), "int8")
        fresh = T.alloc_buffer((lanes * target.depth,), x.dtype)
        with emit.loop(batch) as n, emit.loop(layout.block[0]) as r, emit.loop(layout.block[1]) as c:
            for part in emit.segments(target.channels, lanes):
                with emit.loop(part.count) as block:
                    channel = part.start + block * lanes
                    at = T.bind((channel * layout.plane + layout.position(r, c)) * lanes)
                    values = [
                        T.bind(x[n, emit.ramp(at + i * (layout.plane * lanes), lanes)])
                        for i in range(part.size)
                    ]
                    values += [emit.const(0.0, lanes)] * (lanes - part.size)
                    for i, value in enumerate(transposed(values)):
                        T.buffer_store(fresh, value, [emit.ramp(i * target.depth + channel, lanes)])
            with emit.loop(lanes) as lane:
                tile = T.bind(found[first + n * lanes + lane])
                row = T.bind(tirx.floordiv(tile, tiles.width) + r)
                col = T.bind(tirx.floormod(tile, tiles.width) + c)
                pixel = T.bind(target.pixel(row, col))
                inside = tirx.all(row < target.height, col < target.width)
                with T.If(inside), T.Then(), T.If(need[pixel] != T.int8(0)), T.Then():
                    settle((fresh, lane * target.depth), (y, mask), target, pixel, limit)
    return finish()
