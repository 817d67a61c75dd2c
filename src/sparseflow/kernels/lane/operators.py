"""Pooling, layer norm, element-wise operators and concatenation on lane layouts: a map need not leave its layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import Quantised
from sparseflow.kernels.ir import emit, slots
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.workload import Array

Expr = Any
BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "maximum": tirx.max,
    "minimum": tirx.min,
}


@dataclass(frozen=True)
class Pool:
    """A pooling window."""

    kind: str
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    count_include_pad: bool = False


def pool_scale(pool: Pool, source: LaneLayout, out: LaneLayout) -> Array:
    """What an average pool multiplies each window's sum by; float32, shape (block positions * lanes,)."""
    interior = out.with_halo((0, 0, 0, 0))
    h, w = (c[: interior.rows * interior.cols] for c in interior.coordinates())

    def covered(position: Array, axis: int, size: int) -> Array:
        low = position * pool.stride[axis] - pool.padding[axis]
        high = np.minimum(low + pool.kernel_size[axis], size + pool.padding[axis + 2])
        if not pool.count_include_pad:
            low, high = np.maximum(low, 0), np.minimum(high, size)
        return np.asarray(np.maximum(high - low, 1))

    count = covered(h, 0, source.height) * covered(w, 1, source.width)
    return np.asarray((1.0 / count).reshape(-1), np.float32)


def pool(
    window: Pool, batch: int, source: LaneLayout, out: LaneLayout, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x, [scale,] y)`` of a max or average pool; the scale only for the average."""
    lanes = out.lanes
    (kh, kw), (sh, sw) = window.kernel_size, window.stride
    with emit.prim_func(name, slots.helpers(out.lanes, out.element)) as finish:
        x = _arg("x", batch, source)
        mean = window.kind == "avg"
        levels = isinstance(out.element, Quantised) and not mean  # the larger level is the larger number
        larger = partial(slots.larger, lanes) if levels else tirx.max
        scale = emit.arg("scale", (out.block[0] * out.block[1] * lanes,)) if mean else None
        y = _arg("y", batch, out)
        with emit.channel_loop(out.slots, threads) as c, emit.loop(batch) as n:
            with emit.loop(out.block[0]) as row, emit.loop(out.block[1]) as col:
                values: list[Expr] = []
                for ky in range(kh):
                    for kx in range(kw):
                        at = row * sh + ky - window.padding[0], col * sw + kx - window.padding[1]
                        items = [_slot(x, n, c, *at, source)] if levels else _get(x, n, c, *at, source)
                        both = zip(values or items, items, strict=True)
                        values = items if not values else [v + i if mean else larger(v, i) for v, i in both]
                if scale is not None:
                    by = scale[emit.ramp((row * out.block[1] + col) * lanes, lanes)]
                    values = [value * by for value in values]
                if levels:
                    _store(y, n, c, row, col, emit.outside_filled(values[0], out, row, col), out)
                else:
                    _put(y, n, c, row, col, values, out)
            _halo(y, n, c, out)
    return finish()


def global_mean(batch: int, source: LaneLayout, threads: int, name: str) -> tirx.PrimFunc:
    """Kernel ``(x, y (batch, channels) float32)``: the mean of each channel."""
    lanes, (rows, cols), per = source.lanes, source.block, source.element.per_slot
    with emit.prim_func(name) as finish:
        x = _arg("x", batch, source)
        y = emit.arg("y", (batch, source.channels))
        share = 1.0 / (source.height * source.width)

        def mean(n: Expr, c: Expr, channels: int) -> None:
            sums = [emit.Accumulators(1, lanes) for _ in range(channels)]
            for acc in sums:
                acc[0] = emit.const(0.0, lanes)
            with emit.loop(rows) as r, emit.loop(cols) as k:
                for acc, value in zip(sums, _get(x, n, c, r, k, source), strict=False):
                    acc[0] = acc[0] + value
            for i, acc in enumerate(sums):
                T.buffer_store(y, acc.total() * T.float32(share), [n, c * per + i])

        full, rest = divmod(source.channels, per)
        with emit.channel_loop(full, threads) as c, emit.loop(batch) as n:
            mean(n, c, per)
        if rest:
            with emit.loop(batch) as n:
                mean(n, full, rest)
    return finish()


def elementwise(
    function: str, batch: int, sources: Sequence[LaneLayout], out: LaneLayout, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x0, [x1,] y)`` of an operator of `BINARY` or an activation on maps with the same blocks."""
    with emit.prim_func(name, slots.helpers(out.lanes, out.element)) as finish:
        inputs = [_arg(f"x{i}", batch, s) for i, s in enumerate(sources)]
        y = _arg("y", batch, out)
        with emit.channel_loop(out.slots, threads) as c, emit.loop(batch) as n:
            with emit.loop(out.block[0]) as row, emit.loop(out.block[1]) as col:
                found = [_get(x, n, c, row, col, s) for x, s in zip(inputs, sources, strict=True)]
                values = [
                    BINARY[function](*operands)
                    if len(operands) == 2
                    else emit.activate(function, operands[0], out.lanes)
                    for operands in zip(*found, strict=True)
                ]
                _put(y, n, c, row, col, values, out)
            _halo(y, n, c, out)
    return finish()


def layer_norm(
    batch: int, source: LaneLayout, out: LaneLayout, epsilon: float, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x, gamma, beta, y)``: each position normalised over its channels, with no step across lanes.

    The mean, summed as distances from the first channel so that a large mean costs no digits, then the mean of squared
    distances from it; threads share the positions.
    """
    channels, (rows, cols) = out.channels, out.block
    width = min(8 // out.element.per_slot, max(1, cols // threads))
    with emit.prim_func(name, slots.helpers(out.lanes, out.element)) as finish:
        x = _arg("x", batch, source)
        gamma, beta = emit.arg("gamma", (channels,)), emit.arg("beta", (channels,))
        y = _arg("y", batch, out)
        for part in emit.segments(cols, width):
            parts = emit.loop(part.count, parallel=threads > 1)
            with parts as i, emit.loop(batch) as n, emit.loop(rows) as row:
                _normalise(
                    (x, gamma, beta, y),
                    (source, out),
                    (n, row, part.start + i * part.size),
                    part.size,
                    epsilon,
                )
    return finish()


def _normalise(
    tensors: tuple[Any, Any, Any, Any],
    layouts: tuple[LaneLayout, LaneLayout],
    place: tuple[Expr, Expr, Expr],
    width: int,
    epsilon: float,
) -> None:
    """``width`` vectors from block position ``place`` (image, row, column) on, all channels."""
    (x, gamma, beta, y), (source, out), (n, row, col) = tensors, layouts, place
    lanes, share = out.lanes, emit.const(1.0 / out.channels, out.lanes)
    mean, scale = emit.Accumulators(width, lanes), emit.Accumulators(width, lanes)

    def over_channels(total: emit.Accumulators, term: Callable[[Expr, int], Expr]) -> None:
        for i in range(width):
            total[i] = emit.const(0.0, lanes)
        with emit.loop(out.slots) as c:
            for i in range(width):
                for value in _get(x, n, c, row, col + i, source):
                    total[i] = total[i] + term(value, i)
        for i in range(width):
            total[i] = total[i] * share

    def squared(value: Expr, i: int) -> Expr:
        away = T.bind(value - mean[i])
        return away * away

    def first(i: int) -> Expr:
        return _get(x, n, 0, row, col + i, source)[0]

    over_channels(mean, lambda value, i: value - first(i))
    for i in range(width):
        mean[i] = mean[i] + first(i)
    over_channels(scale, squared)
    for i in range(width):
        scale[i] = emit.const(1.0, lanes) / tirx.sqrt(scale[i] + emit.const(epsilon, lanes))
    per = out.element.per_slot
    with emit.loop(out.slots) as c:
        for i in range(width):
            values = []
            for j, value in enumerate(_get(x, n, c, row, col + i, source)):
                by, to = (emit.splat(p[c * per + j], lanes) for p in (gamma, beta))
                values.append((value - mean[i]) * scale[i] * by + to)
            _put(y, n, c, row, col + i, values, out)


def concatenate(
    batch: int, sources: Sequence[LaneLayout], out: LaneLayout, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x0, x1, …, y)``: the channels of all sources in turn, which fill whole slots but for the last's."""
    with emit.prim_func(name, slots.helpers(out.lanes, out.element)) as finish:
        inputs = [_arg(f"x{i}", batch, s) for i, s in enumerate(sources)]
        y = _arg("y", batch, out)
        first = 0
        for x, source in zip(inputs, sources, strict=True):
            with emit.channel_loop(source.slots, threads) as c, emit.loop(batch) as n:
                with emit.loop(out.block[0]) as row, emit.loop(out.block[1]) as col:
                    _put(y, n, first + c, row, col, _get(x, n, c, row, col, source), out)
                _halo(y, n, first + c, out)
            first += source.slots
    return finish()


def _arg(name: str, batch: int, layout: LaneLayout) -> Any:
    return emit.arg(name, (batch, layout.size), layout.element.slot)


def _get(x: Any, n: Expr, c: Expr, row: Expr, col: Expr, layout: LaneLayout) -> list[Expr]:
    """The channels of plane ``c`` at a block position, as float32 vectors."""
    return slots.parts(layout.element, _slot(x, n, c, row, col, layout), layout.lanes)


def _slot(x: Any, n: Expr, c: Expr, row: Expr, col: Expr, layout: LaneLayout) -> Expr:
    """The vector of slots of plane ``c`` at a block position."""
    return x[n, emit.ramp((c * layout.plane + layout.position(row, col)) * layout.lanes, layout.lanes)]


def _put(y: Any, n: Expr, c: Expr, row: Expr, col: Expr, values: Sequence[Expr], layout: LaneLayout) -> None:
    done = [emit.finish(value, "none", layout, row, col) for value in values]
    _store(y, n, c, row, col, slots.joined(layout.element, done, layout.lanes), layout)


def _store(y: Any, n: Expr, c: Expr, row: Expr, col: Expr, slot: Expr, layout: LaneLayout) -> None:
    at = (c * layout.plane + layout.position(row, col)) * layout.lanes
    T.buffer_store(y, slot, [n, emit.ramp(at, layout.lanes)])


def _halo(y: Any, n: Expr, c: Expr, layout: LaneLayout) -> None:
    if any(layout.halo):
        emit.fill_halo(y, n, c * (layout.plane * layout.lanes), layout)
