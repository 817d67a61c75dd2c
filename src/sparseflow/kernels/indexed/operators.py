"""Feature maps to and from their indexed form, and operators without weights on indexed maps.

Between lanes and channels-last lies a transposition of tiles of lanes x lanes numbers, done in registers by a network
of two-operand shuffles. Every kernel that writes an indexed map makes bits and count while the values are in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.kernels.indexed import emit as pixel_emit
from sparseflow.kernels.ir import emit
from sparseflow.kernels.ir.transpose import transposed
from sparseflow.kernels.lane.conversions import Strides
from sparseflow.kernels.lane.operators import BINARY, Pool
from sparseflow.kernels.layouts.indexed import ALIGNED, WORD, PixelLayout
from sparseflow.kernels.layouts.lane import LaneLayout

Expr = Any


def to_pixels(
    batch: int, source: LaneLayout | Strides, out: PixelLayout, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x, y, y_bits, count)``: a plain map with its index; `Strides` are those of an NCHW tensor."""
    lanes = source.lanes if isinstance(source, LaneLayout) else ALIGNED
    with emit.prim_func(name) as finish:
        x = emit.arg("x", (batch, _size(source, out)))
        y, bits, count = pixel_emit.output_args(out, batch)
        pixel_emit.clear_halo(bits, out, batch)
        _clear_spare(y, out, batch, -(-out.channels // lanes) * lanes)

        def put(n: Expr, group: Expr, vector: Expr, row: Expr, col: Expr) -> None:
            value = T.bind(vector)
            T.buffer_store(y, value, [n, emit.ramp(out.pixel(row, col) + group * lanes, lanes)])
            piece = pixel_emit.nonzero_bits(value, lanes)
            pixel_emit.put_pieces(bits, (n, T.bind(out.word(row, col))), group, [piece], lanes)

        def put_all(n: Expr, group: Expr, rows: Sequence[Expr], places: Sequence[_Place]) -> None:
            columns = transposed([T.bind(row) for row in rows])
            for i, place in enumerate(places):
                place(partial(put, n, group, columns[i]))

        def tile(n: Expr, at: Callable[[Expr], Expr], places: Sequence[_Place]) -> None:
            full, rest = divmod(out.channels, lanes)
            with emit.loop(full) as group:
                rows = [x[n, emit.ramp(at(group * lanes + i), lanes)] for i in range(lanes)]
                put_all(n, group, rows, places)
            if rest:
                rows = [x[n, emit.ramp(at(full * lanes + i), lanes)] for i in range(rest)]
                rows += [emit.const(0.0, lanes)] * (lanes - rest)
                put_all(n, full, rows, places)

        if isinstance(source, LaneLayout):
            _over_lanes(batch, source, out, threads, tile)
        elif out.height * out.width < lanes:
            _one_by_one(
                batch, out, lambda n, c, q: T.buffer_store(y, x[n, c * _area(out) + q], _at(out, n, c, q))
            )
            _clear_spare(y, out, batch, out.channels)
            _index_values(y, bits, out, batch, 1)
        else:
            _over_pixels(batch, out, threads, tile)
        pixel_emit.count_bits(bits, count, out, batch)
    return finish()


def from_pixels(
    batch: int, source: PixelLayout, out: LaneLayout | Strides, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x, y)``: the values of an indexed map as a plain one, halo included."""
    lanes = out.lanes if isinstance(out, LaneLayout) else ALIGNED
    with emit.prim_func(name) as finish:
        x = emit.arg("x", source.tensors(batch)[0][0])
        y = emit.arg("y", (batch, _size(out, source)))

        def tile(n: Expr, at: Callable[[Expr], Expr], places: Sequence[_Place]) -> None:
            full, rest = divmod(source.channels, lanes)

            def group(number: Expr, kept: int) -> None:
                found = []
                for place in places:
                    base = source.pixel(place.row, place.col) + number * lanes
                    value = x[n, emit.ramp(base, lanes)]
                    fill = out.fill if isinstance(out, LaneLayout) else 0.0
                    found.append(place.inside_or(value, fill, lanes))

                for i, value in enumerate(transposed([T.bind(v) for v in found])[:kept]):
                    T.buffer_store(y, value, [n, emit.ramp(at(number * lanes + i), lanes)])

            with emit.loop(full) as number:
                group(number, lanes)
            if rest:
                group(full, rest)

        if isinstance(out, LaneLayout):
            _over_lanes(batch, out, source, threads, tile)
            if any(out.halo):
                with emit.channel_loop(out.channels, threads) as c, emit.loop(batch) as n:
                    emit.fill_halo(y, n, T.bind(c * (out.plane * lanes)), out)
        elif _area(source) < lanes:
            _one_by_one(
                batch,
                source,
                lambda n, c, q: T.buffer_store(y, x[*_at(source, n, c, q)], [n, c * _area(source) + q]),
            )
        else:
            _over_pixels(batch, source, threads, tile)
    return finish()


def elementwise(
    function: str, batch: int, sources: Sequence[PixelLayout], out: PixelLayout, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x0, [x1,] y, y_bits, count)`` of an operator of `BINARY` or an activation on the maps' values."""
    with emit.prim_func(name) as finish:
        inputs = [emit.arg(f"x{i}", s.tensors(batch)[0][0]) for i, s in enumerate(sources)]

        def value(n: Expr, row: Expr, col: Expr, vector: Expr) -> Expr:
            where = [n, emit.ramp(out.pixel(row, col) + vector * ALIGNED, ALIGNED)]
            values = [x[*where] for x in inputs]
            if len(values) == 2:
                return BINARY[function](*values)
            return emit.activate(function, values[0], ALIGNED)

        _write(batch, out, threads, value)
    return finish()


def pool(
    window: Pool, batch: int, source: PixelLayout, out: PixelLayout, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x, y, y_bits, count)`` of a max pool.

    A position outside the map reads the nearest inside, which lies in the window too: no branch, no padding.
    """
    (kh, kw), (sh, sw), (top, left) = window.kernel_size, window.stride, window.padding[:2]
    with emit.prim_func(name) as finish:
        x = emit.arg("x", source.tensors(batch)[0][0])

        def value(n: Expr, row: Expr, col: Expr, vector: Expr) -> Expr:
            best = None
            for ky in range(kh):
                h = T.bind(_clamped(row * sh + ky - top, source.height))
                for kx in range(kw):
                    w = _clamped(col * sw + kx - left, source.width)
                    item = x[n, emit.ramp(source.pixel(h, w) + vector * ALIGNED, ALIGNED)]
                    best = item if best is None else tirx.max(best, item)
            return best

        _write(batch, out, threads, value)
    return finish()


def global_mean(batch: int, source: PixelLayout, threads: int, name: str) -> tirx.PrimFunc:
    """Kernel ``(x, y (batch, channels))``: the mean of each channel."""
    share = emit.const(1.0 / _area(source), ALIGNED)
    with emit.prim_func(name) as finish:
        x = emit.arg("x", source.tensors(batch)[0][0])
        y = emit.arg("y", (batch, source.channels))

        def vector(n: Expr, number: Expr, kept: int) -> None:
            acc = emit.Accumulators(1, ALIGNED)
            acc[0] = emit.const(0.0, ALIGNED)
            with emit.loop(_area(source)) as q:
                acc[0] = acc[0] + x[n, emit.ramp(q * source.stored + number * ALIGNED, ALIGNED)]
            if kept == ALIGNED:
                T.buffer_store(y, acc[0] * share, [n, emit.ramp(number * ALIGNED, ALIGNED)])
                return
            rest = T.alloc_buffer((ALIGNED,), x.dtype)
            T.buffer_store(rest, acc[0] * share, [emit.ramp(0, ALIGNED)])
            for i in range(kept):
                T.buffer_store(y, rest[i], [n, number * ALIGNED + i])

        full, rest = divmod(source.channels, ALIGNED)
        with emit.loop(batch) as n:
            with emit.channel_loop(full, threads) as number:
                vector(n, number, ALIGNED)
            if rest:
                vector(n, full, rest)
    return finish()


def concatenate(
    batch: int, sources: Sequence[PixelLayout], out: PixelLayout, threads: int, name: str
) -> tirx.PrimFunc:
    """Kernel ``(x0, x1, …, y, y_bits, count)``: the channels of all sources in turn."""
    with emit.prim_func(name) as finish:
        inputs = [emit.arg(f"x{i}", s.tensors(batch)[0][0]) for i, s in enumerate(sources)]
        y, bits, count = pixel_emit.output_args(out, batch)
        pixel_emit.clear_halo(bits, out, batch)
        with emit.channel_loop(_area(out), threads) as q, emit.loop(batch) as n:
            first = 0
            for x, source in zip(inputs, sources, strict=True):
                with emit.loop(source.channels) as c:
                    T.buffer_store(y, x[n, q * source.stored + c], [n, q * out.stored + first + c])
                first += source.channels
        _clear_spare(y, out, batch, out.channels)
        _index_values(y, bits, out, batch, threads)
        pixel_emit.count_bits(bits, count, out, batch)
    return finish()


class _Place:
    """One pixel of a tile: where it is, and what tells whether it lies inside of the map (None: it does)."""

    def __init__(self, row: Expr, col: Expr, inside: Expr | None) -> None:
        self.row, self.col, self.inside = row, col, inside

    def __call__(self, body: Callable[[Expr, Expr], None]) -> None:
        """Emits ``body(row, col)`` where the pixel lies inside."""
        if self.inside is None:
            body(self.row, self.col)
            return
        with T.If(self.inside), T.Then():
            body(self.row, self.col)

    def inside_or(self, value: Expr, fill: float, lanes: int) -> Expr:
        """``value``, or ``fill`` without reading it if the pixel lies outside."""
        if self.inside is None:
            return value
        return tirx.if_then_else(self.inside, value, emit.const(fill, lanes))


Tile = Callable[[Expr, Callable[[Expr], Expr], Sequence[_Place]], None]


def _over_lanes(batch: int, lanes: LaneLayout, pixels: PixelLayout, threads: int, tile: Tile) -> None:
    """``tile(image, offset of a channel, places)`` for each vector of a plane."""
    (bh, bw), (_, gw) = lanes.block, lanes.grid
    plane = lanes.plane * lanes.lanes
    with emit.channel_loop(bh, threads) as row, emit.loop(batch) as n, emit.loop(bw) as col:
        places = []
        for lane in range(lanes.lanes):
            (by, bx), inside = divmod(lane, gw), None
            h, w = T.bind(row + by * bh), T.bind(col + bx * bw)
            if (by + 1) * bh > lanes.height:
                inside = h < lanes.height
            if (bx + 1) * bw > lanes.width:
                inside = w < lanes.width if inside is None else tirx.all(inside, w < lanes.width)
            places.append(_Place(h, w, inside))
        start = T.bind(lanes.position(row, col) * lanes.lanes)
        tile(n, lambda c: c * plane + start, places)


def _over_pixels(batch: int, pixels: PixelLayout, threads: int, tile: Tile) -> None:
    """``tile(image, offset of a channel in NCHW, places)`` for each vector of pixels; the last may overlap."""
    area, width = _area(pixels), pixels.width
    full = area // ALIGNED

    def one(n: Expr, first: Expr) -> None:
        start = T.bind(T.int32(0) + first)
        places = [_Place((start + i) // width, (start + i) % width, None) for i in range(ALIGNED)]
        tile(n, lambda c: c * area + start, places)

    with emit.loop(batch) as n:
        with emit.channel_loop(full, threads) as i:
            one(n, i * ALIGNED)
        if area % ALIGNED:
            one(n, area - ALIGNED)


def _one_by_one(batch: int, layout: PixelLayout, body: Callable[[Expr, Expr, Expr], None]) -> None:
    """``body(image, channel, pixel)`` for each value of a small map."""
    with emit.loop(batch) as n, emit.loop(layout.channels) as c, emit.loop(_area(layout)) as q:
        body(n, c, q)


def _write(
    batch: int, out: PixelLayout, threads: int, value: Callable[[Expr, Expr, Expr, Expr], Expr]
) -> None:
    """Declares and writes an indexed map whose vectors are ``value(image, row, col, vector)``."""
    y, bits, count = pixel_emit.output_args(out, batch)
    pixel_emit.clear_halo(bits, out, batch)
    each, vectors = WORD // ALIGNED, out.stored // ALIGNED
    with (
        emit.channel_loop(out.height, threads) as row,
        emit.loop(batch) as n,
        emit.loop(out.width) as col,
    ):
        base = T.bind(out.pixel(row, col))
        at = (n, T.bind(out.word(row, col)))
        for part in emit.segments(vectors, each):
            with emit.loop(part.count) as word:
                first, pieces = part.start + word * part.size, []
                for i in range(part.size):
                    found = T.bind(value(n, row, col, first + i))
                    T.buffer_store(y, found, [n, emit.ramp(base + (first + i) * ALIGNED, ALIGNED)])
                    pieces.append(pixel_emit.nonzero_bits(found, ALIGNED))
                pixel_emit.put_pieces(bits, at, first, pieces, ALIGNED)
    pixel_emit.count_bits(bits, count, out, batch)


def _index_values(y: Any, bits: Any, out: PixelLayout, batch: int, threads: int) -> None:
    """Writes the bits of values that are in memory."""
    vectors = out.stored // ALIGNED
    with emit.channel_loop(out.height, threads) as row, emit.loop(batch) as n, emit.loop(out.width) as col:
        at, base = (n, T.bind(out.word(row, col))), T.bind(out.pixel(row, col))
        for part in emit.segments(vectors, WORD // ALIGNED):
            with emit.loop(part.count) as word:
                first = part.start + word * part.size
                places = [emit.ramp(base + (first + i) * ALIGNED, ALIGNED) for i in range(part.size)]
                pieces = [pixel_emit.nonzero_bits(y[n, place], ALIGNED) for place in places]
                pixel_emit.put_pieces(bits, at, first, pieces, ALIGNED)


def _clear_spare(y: Any, out: PixelLayout, batch: int, first: int) -> None:
    """Zeroes the stored channels of each pixel from ``first`` on."""
    if out.stored == first:
        return
    with emit.loop(batch) as n, emit.loop(_area(out)) as q, emit.loop(out.stored - first) as c:
        T.buffer_store(y, T.float32(0), [n, q * out.stored + first + c])


def _clamped(position: Expr, size: int) -> Expr:
    return tirx.min(tirx.max(T.int32(0) + position, T.int32(0)), T.int32(size - 1))


def _area(layout: PixelLayout) -> int:
    return layout.height * layout.width


def _size(plain: LaneLayout | Strides, pixels: PixelLayout) -> int:
    return plain.size if isinstance(plain, LaneLayout) else pixels.channels * _area(pixels)


def _at(layout: PixelLayout, n: Expr, c: Expr, q: Expr) -> list[Expr]:
    return [n, q * layout.stored + c]
