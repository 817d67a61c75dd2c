"""Kept maps: what a stream remembers of every map, and the operators that it recomputes pixel by pixel.

A map is kept as pixels with all their channels, ``(rows, cols, channels)``, with a margin of zeros; beside it a byte
for each pixel says whether the last frame changed it. An operator recomputes the pixels whose window holds a changed
one, and marks those of its own that came out different.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.kernels.ir import emit
from sparseflow.kernels.lane.operators import BINARY, Pool
from sparseflow.kernels.workload import Array

Expr = Any
MASK_VECTOR = 64  # bytes of a mask that are joined at once; a mask has as many to spare at its end
EVERY = -1.0  # a limit that every difference exceeds: all pixels count as changed
LINEAR_VECTORS = 16
"""Of results summed at once on any target, as packing knows none; AVX2, which holds 14 sums, spills two."""


@dataclass(frozen=True)
class KeptLayout:
    """A kept map.

    Attributes
    ----------
    channels, height, width : int
    margin : (int, int, int, int)
        Rows or columns of zeros: top, left, bottom, right.
    lanes : int
        The channels are rounded up to a multiple of it.
    """

    channels: int
    height: int
    width: int
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)
    lanes: int = field(kw_only=True)

    @property
    def depth(self) -> int:
        """Elements of a pixel."""
        return -(-self.channels // self.lanes) * self.lanes

    @property
    def rows(self) -> int:
        """Rows, margin included."""
        return self.height + self.margin[0] + self.margin[2]

    @property
    def cols(self) -> int:
        """Columns, margin included."""
        return self.width + self.margin[1] + self.margin[3]

    @property
    def size(self) -> int:
        """Elements of the map."""
        return self.rows * self.cols * self.depth

    @property
    def mask_size(self) -> int:
        """Bytes of the mask."""
        return self.rows * self.cols + MASK_VECTOR

    def pixel(self, row: Expr, col: Expr) -> Expr:
        """Number of the pixel at ``(row, col)`` of the map, which may lie in the margin."""
        return (row + self.margin[0]) * self.cols + col + self.margin[1]


@dataclass(frozen=True)
class Window:
    """The part of an input map that one output position reads.

    Attributes
    ----------
    reach : (int, int)
        Rows and columns that one output position reads.
    stride, offset : (int, int)
        From one position to the next, and of the first: minus the padding.
    """

    reach: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)


def accept(target: KeptLayout, name: str) -> tirx.PrimFunc:
    """Kernel ``(x NCHW, limit, map, mask)``: a frame into its map, and which of its pixels differ."""
    with emit.prim_func(name) as finish:
        x = emit.arg("x", (1, target.channels, target.height, target.width))
        limit = T.arg("limit", T.float32())
        y, mask = emit.arg("y", (target.size,)), emit.arg("mask", (target.mask_size,), "int8")
        fresh = T.alloc_buffer((target.depth,), y.dtype)
        with emit.loop(target.depth) as c:
            T.buffer_store(fresh, T.float32(0), [c])
        with emit.loop(target.height) as row, emit.loop(target.width) as col:
            with emit.loop(target.channels) as c:
                T.buffer_store(fresh, x[0, c, row, col], [c])
            settle((fresh, 0), (y, mask), target, target.pixel(row, col), limit)
    return finish()


def pool(window: Pool, source: KeptLayout, target: KeptLayout, name: str) -> tirx.PrimFunc:
    """Kernel ``(map, mask, limit, out, out_mask)`` of a max or average pool where its window changed."""
    lanes, mean = target.lanes, window.kind == "avg"
    (kh, kw), (sh, sw), (pt, pl, pb, pr) = window.kernel_size, window.stride, window.padding

    def span(at: Expr, stride: int, low: int, high: int, reach: int, size: int) -> tuple[Expr, Expr, Expr]:
        """First and last position inside the map, and how many an average counts."""
        begin = T.bind(at * stride - low)
        first = T.bind(tirx.max(begin, T.int32(0)))
        last = T.bind(tirx.min(begin + reach, T.int32(size)))
        counted = tirx.min(begin + reach, T.int32(size + high)) - begin
        return first, last, counted if window.count_include_pad else last - first

    def value(pixel: tuple[Expr, Expr], x: Any, store: Callable[[Expr, Expr], None]) -> None:
        top, bottom, rows = span(pixel[0], sh, pt, pb, kh, source.height)
        left, right, cols = span(pixel[1], sw, pl, pr, kw, source.width)
        scale = T.bind(T.float32(1) / tirx.Cast(x.dtype, rows * cols))
        with emit.loop(source.depth // lanes) as block:
            acc = emit.Accumulators(1, lanes)
            acc[0] = emit.const(0.0 if mean else float("-inf"), lanes)
            with emit.loop(bottom - top) as r, emit.loop(right - left) as c:
                at = source.pixel(top + r, left + c) * source.depth + block * lanes
                item = x[emit.ramp(at, lanes)]
                acc[0] = acc[0] + item if mean else tirx.max(acc[0], item)
            store(block, acc[0] * emit.splat(scale, lanes) if mean else acc[0])

    reach = Window((kh, kw), (sh, sw), (-pt, -pl))
    return _pixelwise(
        [(source, reach)], target, lambda pixel, maps, store: value(pixel, maps[0], store), name
    )


def elementwise(function: str, sources: Sequence[KeptLayout], target: KeptLayout, name: str) -> tirx.PrimFunc:
    """Kernel ``(map, mask, …, limit, out, out_mask)`` of an activation or a function of two maps."""
    lanes = target.lanes

    def value(pixel: tuple[Expr, Expr], maps: list[Any], store: Callable[[Expr, Expr], None]) -> None:
        with emit.loop(target.depth // lanes) as block:
            values = [
                x[emit.ramp(m.pixel(*pixel) * m.depth + block * lanes, lanes)]
                for x, m in zip(maps, sources, strict=True)
            ]
            two = len(values) == 2
            store(block, BINARY[function](*values) if two else emit.activate(function, values[0], lanes))

    return _pixelwise([(m, Window()) for m in sources], target, value, name)


def concatenate(sources: Sequence[KeptLayout], target: KeptLayout, name: str) -> tirx.PrimFunc:
    """Kernel ``(map, mask, …, limit, out, out_mask)``: the channels of all sources in turn."""

    def value(pixel: tuple[Expr, Expr], maps: list[Any], store: Callable[[Expr, Expr], None]) -> None:
        first = 0
        for x, m in zip(maps, sources, strict=True):
            with emit.loop(m.channels) as c:
                store(first + c, x[m.pixel(*pixel) * m.depth + c])
            first += m.channels

    return _pixelwise([(m, Window()) for m in sources], target, value, name, lanes=1)


def _pixelwise(
    sources: Sequence[tuple[KeptLayout, Window]], target: KeptLayout,
    value: Callable[[tuple[Expr, Expr], list[Any], Callable[[Expr, Expr], None]], None], name: str, lanes: int = 0,
) -> tirx.PrimFunc:  # fmt: skip
    """A kernel that computes the pixels whose window holds a changed one; ``value`` stores vectors of ``lanes``."""
    lanes = lanes or target.lanes
    with emit.prim_func(name) as finish:
        maps, masks = [], []
        for i, (source, _) in enumerate(sources):
            maps.append(emit.arg(f"x{i}", (source.size,)))
            masks.append(emit.arg(f"mask{i}", (source.mask_size,), "int8"))
        limit = T.arg("limit", T.float32())
        y, marks = emit.arg("y", (target.size,)), emit.arg("mask", (target.mask_size,), "int8")
        fresh = T.alloc_buffer((target.depth,), y.dtype)
        with emit.loop(target.depth) as c:
            T.buffer_store(fresh, T.float32(0), [c])
        with emit.loop(target.height) as row, emit.loop(target.width) as col:
            hit = emit.cell(T.int8(0), "int8")
            for (source, w), mask in zip(sources, masks, strict=True):
                with emit.loop(w.reach[0]) as i, emit.loop(w.reach[1]) as j:
                    at = source.pixel(
                        row * w.stride[0] + i + w.offset[0], col * w.stride[1] + j + w.offset[1]
                    )
                    T.buffer_store(hit, hit[0] | mask[at], [0])
            with T.If(hit[0] != T.int8(0)), T.Then():
                value(
                    (row, col),
                    maps,
                    lambda at, item: T.buffer_store(fresh, item, [emit.ramp(at * lanes, lanes)]),
                )
                settle((fresh, 0), (y, marks), target, target.pixel(row, col), limit)
    return finish()


def settle(
    fresh: tuple[Any, Expr], kept: tuple[Any, Any], target: KeptLayout, pixel: Expr, limit: Expr
) -> None:
    """Writes and marks a pixel if a channel of it differs from the kept one by more than ``limit``, or is no number."""
    (values, first), (y, mask), lanes = fresh, kept, target.lanes
    first, pixel = T.bind(T.int32(0) + first), T.bind(pixel)
    zero, one = (emit.splat(T.int32(v), lanes) for v in (0, 1))
    differs = T.alloc_buffer((lanes,), "int32")
    every = emit.ramp(0, lanes)
    T.buffer_store(differs, zero, [every])
    with emit.loop(target.depth // lanes) as block:
        new = values[emit.ramp(first + block * lanes, lanes)]
        old = y[emit.ramp(pixel * target.depth + block * lanes, lanes)]
        near = tirx.abs(new - old) <= emit.splat(limit, lanes)
        T.buffer_store(differs, differs[every] | tirx.Select(near, zero, one), [every])
    any_lane = tirx.call_llvm_pure_intrin("int32", "llvm.vector.reduce.or", differs[every])
    with T.If(any_lane != 0), T.Then():
        T.buffer_store(mask, T.int8(1), [pixel])
        with emit.loop(target.depth // lanes) as block:
            value = values[emit.ramp(first + block * lanes, lanes)]
            T.buffer_store(y, value, [emit.ramp(pixel * target.depth + block * lanes, lanes)])


def linear(source: KeptLayout, target: KeptLayout, activation: tuple[str, float], name: str) -> tirx.PrimFunc:
    """Kernel ``(map, mask, data, bias, sums, limit, out, out_mask)`` of a linear layer on a whole map.

    The sum over the channels of each pixel is kept in ``sums`` (pixels, results), so that only the weights of changed
    pixels are read, and the total is that of a full computation bit by bit.
    ``activation`` is its name and its parameter.
    """
    lanes, depth, pixels = target.lanes, target.depth, source.height * source.width
    with emit.prim_func(name) as finish:
        x, mask = emit.arg("x", (source.size,)), emit.arg("mask0", (source.mask_size,), "int8")
        data = emit.arg("data", (pixels * source.channels * depth,))
        bias, sums = emit.arg("bias", (depth,)), emit.arg("sums", (pixels * depth,))
        limit = T.arg("limit", T.float32())
        y, marks = emit.arg("y", (target.size,)), emit.arg("mask", (target.mask_size,), "int8")
        fresh = T.alloc_buffer((depth,), y.dtype)
        with emit.loop(source.height) as row, emit.loop(source.width) as col:
            changed = mask[source.pixel(row, col)] != T.int8(0)
            with T.If(changed), T.Then():
                pixel = T.bind(row * source.width + col)
                _pixel_sum(source, target, (x, data, sums), pixel, source.pixel(row, col))
        with emit.loop(depth // lanes) as block:
            total = emit.Accumulators(1, lanes)
            total[0] = bias[emit.ramp(block * lanes, lanes)]
            with emit.loop(pixels) as p:
                total[0] = total[0] + sums[emit.ramp(p * depth + block * lanes, lanes)]
            value = emit.activate(activation[0], total[0], lanes, activation[1])
            T.buffer_store(fresh, value, [emit.ramp(block * lanes, lanes)])
        settle((fresh, 0), (y, marks), target, target.pixel(0, 0), limit)
    return finish()


def _pixel_sum(
    source: KeptLayout, target: KeptLayout, tensors: tuple[Any, Any, Any], pixel: Expr, place: Expr
) -> None:
    """The part of every result that comes from one pixel, the ``pixel``-th, kept at ``place``."""
    (x, data, sums), lanes, depth = tensors, target.lanes, target.depth
    first, weights = T.bind(place * source.depth), T.bind(pixel * (source.channels * depth))
    for part in emit.segments(depth // lanes, LINEAR_VECTORS):
        with emit.loop(part.count) as block:
            start = T.bind((part.start + block * part.size) * lanes)
            acc = emit.Accumulators(part.size, lanes)
            for i in range(part.size):
                acc[i] = emit.const(0.0, lanes)
            with emit.loop(source.channels) as c:
                value = emit.splat(T.bind(x[first + c]), lanes)
                at = T.bind(weights + start * source.channels + c * (part.size * lanes))
                for i in range(part.size):
                    acc[i] = acc[i] + value * data[emit.ramp(at + i * lanes, lanes)]
            for i in range(part.size):
                T.buffer_store(sums, acc[i], [emit.ramp(pixel * depth + start + i * lanes, lanes)])


def pack_linear(weight: Array, source: KeptLayout, target: KeptLayout) -> Array:
    """The weight (results, channels * height * width) in the order in which `linear` reads it, results padded."""
    lanes, depth, pixels = target.lanes, target.depth, source.height * source.width
    padded = np.zeros((depth, source.channels, pixels), np.float32)
    padded[: len(weight)] = weight.reshape(len(weight), source.channels, pixels)
    by_pixel = padded.transpose(2, 1, 0)
    blocks = [
        by_pixel[:, :, first : first + part.size * lanes].reshape(pixels, -1)
        for part in emit.segments(depth // lanes, LINEAR_VECTORS)
        for first in range(
            part.start * lanes, (part.start + part.count * part.size) * lanes, part.size * lanes
        )
    ]
    return np.concatenate(blocks, axis=1).reshape(-1)
