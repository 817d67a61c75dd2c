"""Pieces of TIR for maps that carry their index: bits of vectors, loops over set bits, halos, counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.kernels.ir import emit
from sparseflow.kernels.layouts.indexed import WORD, PixelLayout

Expr = Any


def map_args(name: str, layout: PixelLayout, batch: int) -> tuple[Any, Any]:
    """Declares values and bits of a map as parameters."""
    values, bits, _ = layout.tensors(batch)
    return emit.arg(name, *values), emit.arg(f"{name}_bits", *bits)


def output_args(layout: PixelLayout, batch: int) -> tuple[Any, Any, Any]:
    """Declares values, bits and count of the map that a kernel writes as parameters."""
    _, _, count = layout.tensors(batch)
    return (*map_args("y", layout, batch), emit.arg("count", *count))


def nonzero_bits(value: Expr, lanes: int) -> Expr:
    """Which of up to 64 ``lanes`` are not zero, lane 0 in the lowest bit of a uint64; NaN is not zero.

    A boolean vector that becomes an integer bit by bit is one instruction on AVX-512 and AVX2 (`kmov`, `vmovmskps`).
    """
    different = tirx.Not(value == emit.const(0.0, lanes))
    return tirx.Cast("uint64", tirx.reinterpret(f"uint{lanes}", tirx.Cast(f"uint1x{lanes}", different)))


@contextmanager
def set_bits(word: Expr) -> Iterator[tuple[Expr, Expr]]:
    """A loop over the set bits of a uint64, lowest first: yields the bit's number and the bits that are left."""
    left = T.alloc_buffer((1,), "uint64")
    T.buffer_store(left, word, [0])
    with T.While(left[0] != T.uint64(0)):
        now = T.bind(left[0])
        zeros = T.call_llvm_pure_intrin("uint64", "llvm.cttz.i64", now, T.bool(True))
        yield T.bind(tirx.Cast("int32", zeros)), now
        T.buffer_store(left, now & (now - T.uint64(1)), [0])


def popcount(word: Expr) -> Expr:
    """The number of set bits of a uint64, as int32."""
    return tirx.Cast("int32", T.call_llvm_pure_intrin("uint64", "llvm.ctpop.i64", word))


def clear_halo(bits: Any, layout: PixelLayout, batch: int) -> None:
    """Zeroes the words around the map, so that a kernel position outside it has nothing to multiply."""
    top, left, bottom, right = layout.halo
    if not any(layout.halo):
        return
    zero = T.uint64(0)
    line = layout.cols * layout.words
    with emit.loop(batch) as n:
        for first, rows in ((0, top), (top + layout.height, bottom)):
            if rows:
                with emit.loop(rows * line) as i:
                    T.buffer_store(bits, zero, [n, first * line + i])
        for first, cols in ((0, left), (left + layout.width, right)):
            if cols:
                with emit.loop(layout.height) as row, emit.loop(cols * layout.words) as i:
                    T.buffer_store(bits, zero, [n, (top + row) * line + first * layout.words + i])


def count_bits(bits: Any, count: Any, layout: PixelLayout, batch: int) -> None:
    """Writes how many channels of all pixels are not zero."""
    total = T.alloc_buffer((1,), "int32")
    T.buffer_store(total, T.int32(0), [0])
    with emit.loop(batch) as n, emit.loop(layout.bits_size) as i:
        T.buffer_store(total, total[0] + popcount(bits[n, i]), [0])
    T.buffer_store(count, total[0], [0])


def put_pieces(bits: Any, at: tuple[Expr, Expr], vector: Expr, pieces: list[Expr], lanes: int) -> None:
    """Writes the bits of consecutive vectors of one pixel.

    Parameters
    ----------
    bits : buffer
    at : (image, word)
        The pixel's first word.
    vector : Expr
        Number of the first vector; ``len(pieces) * lanes`` is a multiple of 64, or divides it and ``vector``'s lanes.
        Otherwise the pixel ends with these pieces and they start a word.
    pieces : list of Expr
        `nonzero_bits` of each vector.
    lanes : int
        Vectors come in ascending order: the first of a word replaces what the word held.
    """
    image, word = at
    start = T.bind(T.int32(0) + vector * lanes)
    each = WORD // lanes
    whole = len(pieces) >= each
    for first in range(0, len(pieces), each):
        value = pieces[first]
        for i, piece in enumerate(pieces[first + 1 : first + each], 1):
            value = value | T.shift_left(piece, T.uint64(i * lanes))
        place = [image, word + start // WORD + first // each]
        if not whole:
            shift = T.bind(start % WORD)
            before = tirx.Select(shift == 0, T.uint64(0), bits[*place])
            value = before | T.shift_left(value, tirx.Cast("uint64", shift))
        T.buffer_store(bits, value, place)
