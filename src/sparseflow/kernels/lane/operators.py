"""Pooling, layer norm, element-wise operators and concatenation on lane layouts: a map need not leave its layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.kernels.ir import emit
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
    with emit.prim_func(name) as finish:
        x = emit.arg("x", (batch, source.size))
        mean = window.kind == "avg"
        scale = emit.arg("scale", (out.block[0] * out.block[1] * lanes,)) if mean else None
        y = emit.arg("y", (batch, out.size))
        with emit.channel_loop(out.channels, threads) as c, emit.loop(batch) as n:
            with emit.loop(out.block[0]) as row, emit.loop(out.block[1]) as col:
                value = None
                for ky in range(kh):
                    for kx in range(kw):
                        at = source.position(
                            row * sh + ky - window.padding[0], col * sw + kx - window.padding[1]
                        )
                        item = x[n, emit.ramp((c * source.plane + at) * lanes, lanes)]
                        value = item if value is None else (value + item if mean else tirx.max(value, item))
                if scale is not None:
                    value = value * scale[emit.ramp((row * out.block[1] + col) * lanes, lanes)]
                _put(y, n, c, row, col, value, out)
            _halo(y, n, c, out)
    return finish()


def global_mean(batch: int, source: LaneLayout, threads: int, name: str) -> tirx.PrimFunc:
    """Kernel ``(x, y (batch, channels))``: the mean of each channel."""
    lanes, (rows, cols) = source.lanes, source.block
    with emit.prim_func(name) as finish:
        x = emit.arg("x", (batch, source.size))
        y = emit.arg("y", (batch, source.channels))
        with emit.channel_loop(source.channels, threads) as c, emit.loop(batch) as n:
            acc = emit.Accumulators(1, lanes)
            acc[0] = emit.const(0.0, lanes)
            with emit.loop(rows) as r, emit.loop(cols) as k:
                at = (c * source.plane + source.position(r, k)) * lanes
                acc[0] = acc[0] + x[n, emit.ramp(at, lanes)]
            value = acc.total()
            T.buffer_store(y, value * T.float32(1.0 / (source.height * source.width)), [n, c])
    return finish()


def elementwise(
    function: str, batch: int, sources: Sequence[LaneLayout], out: LaneLayout, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x0, [x1,] y)`` of an operator of `BINARY` or an activation on maps with the same blocks."""
    with emit.prim_func(name) as finish:
        inputs = [emit.arg(f"x{i}", (batch, s.size)) for i, s in enumerate(sources)]
        y = emit.arg("y", (batch, out.size))
        with emit.channel_loop(out.channels, threads) as c, emit.loop(batch) as n:
            with emit.loop(out.block[0]) as row, emit.loop(out.block[1]) as col:
                values = [_get(x, n, c, row, col, s) for x, s in zip(inputs, sources, strict=True)]
                value = (
                    BINARY[function](*values)
                    if len(values) == 2
                    else emit.activate(function, values[0], out.lanes)
                )
                _put(y, n, c, row, col, value, out)
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
    width = min(8, max(1, cols // threads))
    with emit.prim_func(name) as finish:
        x = emit.arg("x", (batch, source.size))
        gamma, beta = emit.arg("gamma", (channels,)), emit.arg("beta", (channels,))
        y = emit.arg("y", (batch, out.size))
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
        with emit.loop(out.channels) as c:
            for i in range(width):
                total[i] = total[i] + term(_get(x, n, c, row, col + i, source), i)
        for i in range(width):
            total[i] = total[i] * share

    def squared(value: Expr, i: int) -> Expr:
        away = T.bind(value - mean[i])
        return away * away

    def away_from_first(value: Expr, i: int) -> Expr:
        return value - _get(x, n, 0, row, col + i, source)

    over_channels(mean, away_from_first)
    for i in range(width):
        mean[i] = mean[i] + _get(x, n, 0, row, col + i, source)
    over_channels(scale, squared)
    for i in range(width):
        scale[i] = emit.const(1.0, lanes) / tirx.sqrt(scale[i] + emit.const(epsilon, lanes))
    with emit.loop(out.channels) as c:
        for i in range(width):
            value = (_get(x, n, c, row, col + i, source) - mean[i]) * scale[i]
            value = value * emit.splat(gamma[c], lanes) + emit.splat(beta[c], lanes)
            _put(y, n, c, row, col + i, value, out)


def concatenate(
    batch: int, sources: Sequence[LaneLayout], out: LaneLayout, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x0, x1, …, y)``: the channels of all sources in turn."""
    with emit.prim_func(name) as finish:
        inputs = [emit.arg(f"x{i}", (batch, s.size)) for i, s in enumerate(sources)]
        y = emit.arg("y", (batch, out.size))
        first = 0
        for x, source in zip(inputs, sources, strict=True):
            with emit.channel_loop(source.channels, threads) as c, emit.loop(batch) as n:
                with emit.loop(out.block[0]) as row, emit.loop(out.block[1]) as col:
                    _put(y, n, first + c, row, col, _get(x, n, c, row, col, source), out)
                _halo(y, n, first + c, out)
            first += source.channels
    return finish()


def _get(x: Any, n: Expr, c: Expr, row: Expr, col: Expr, layout: LaneLayout) -> Expr:
    return x[n, emit.ramp((c * layout.plane + layout.position(row, col)) * layout.lanes, layout.lanes)]


def _put(y: Any, n: Expr, c: Expr, row: Expr, col: Expr, value: Expr, layout: LaneLayout) -> None:
    value = emit.finish(value, "none", layout, row, col)
    at = (c * layout.plane + layout.position(row, col)) * layout.lanes
    T.buffer_store(y, value, [n, emit.ramp(at, layout.lanes)])


def _halo(y: Any, n: Expr, c: Expr, layout: LaneLayout) -> None:
    if any(layout.halo):
        emit.fill_halo(y, n, c * (layout.plane * layout.lanes), layout)
