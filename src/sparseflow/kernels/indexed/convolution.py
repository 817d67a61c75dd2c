"""Convolutions on maps that carry their index: the zeros of the input are never multiplied.

for each band of output rows, in parallel:
  for each block of VB vectors of filters:
    for each word of 64 input channels, group of kernel positions:    # its weights stay in the L1 cache
      for each pixel of the band:
        acc[VB] = bias, or the partial sums so far
        for each kernel position of the group:
          for each set bit c of the pixel's word (and the weights' word):
            acc[VB] += x[c] * weight[c][VB]
        epilogue after the last group, then store; the bits of the result are made from the registers

References
----------
Skipping the zeros of a ReLU's output with dense weights is SparseTrain's idea (Gong et al., PACT 2020); there each
value is tested, here the producer's bitmap is walked, whose bits one `cttz` each finds. Intersecting two bitmaps is
SparTen's inner join (Gondimalla et al., MICRO 2019) in software.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.kernels.indexed import emit as pixel_emit
from sparseflow.kernels.indexed.cost import pixel_candidates, pixel_cycles
from sparseflow.kernels.ir import emit
from sparseflow.kernels.layouts.indexed import WORD
from sparseflow.kernels.template import Candidate, KernelTemplate, register
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array, Layouts, Workload

Expr = Any
DENSEST_MAP = 0.7


@dataclass(frozen=True)
class Spot:
    """One pixel's part of the work: output ``(row, col)`` of ``image``, a block of filters, a step of the reduction.

    ``vector`` is the block's first vector, ``vectors`` their number.
    """

    image: Expr
    row: Expr
    col: Expr
    block: Expr
    vector: Expr
    vectors: int
    word: Expr
    group: Expr


@dataclass(frozen=True)
class Read:
    """What a spot reads at one kernel position: the bits that meet a weight, and where the word's values begin."""

    tap: Expr
    word: Expr
    values: Expr


class PixelConvolution(KernelTemplate):
    """A convolution template on indexed maps; subclasses say how the weights of a block are stored and found."""

    layout = "pixels"
    sparse_input = True

    @abstractmethod
    def arguments(self, kernel: PixelBody) -> list[Any]:
        """Declares the packed constants as buffers, in the order of `pack`."""

    @abstractmethod
    def kept(self, workload: Workload, vectors: int) -> float:
        """The fraction of weights that blocks of so many vectors of filters store."""

    def meet(self, kernel: PixelBody, spot: Spot, tap: Expr, word: Expr) -> Expr:
        """The bits of the input's ``word`` that have weights at kernel position ``tap``."""
        return word

    @abstractmethod
    def walk(self, kernel: PixelBody, spot: Spot, read: Read, add: Callable[[Expr, Expr], None]) -> None:
        """For each set bit of the read word: ``add(channel of the word, offset of its weights)``."""

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        if workload.map_density >= 1.0:
            return "no zeros of its input are known: it holds none, or nothing was calibrated"
        if workload.map_density > DENSEST_MAP:
            return f"map density {workload.map_density:.2f} is above {DENSEST_MAP}: too few zeros to skip"
        if workload.op != "conv2d":
            return "it computes convolutions only"
        if workload.groups > 1:
            return "groups share no input pixel's bits"
        return None

    def candidates(self, workload: Workload) -> list[Candidate]:
        """Blocks of 1 to 8 vectors and groups of kernel positions whose weights fit the L1 cache."""
        choices = pixel_candidates(workload, lambda vectors: self.kept(workload, vectors))
        found = [Candidate(self.name, p) for p in choices]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        return pixel_cycles(workload, candidate, self.kept(workload, candidate.parameters["VB"]))

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        with emit.prim_func(name) as finish:
            PixelBody(self, workload, candidate, layouts).write()
        return finish()


@register
class PixelDense(PixelConvolution):
    """Dense weights, sparse map."""

    name = "pixel-dense"
    format = "dense"

    def kept(self, workload: Workload, vectors: int) -> float:
        """See `PixelConvolution.kept`."""
        return 1.0

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """(blocks, words, kernel positions, channels of the word, vectors of the block, lanes), flattened."""
        parts = [
            rows[:, first : first + WORD].reshape(-1)
            for rows in weight_rows(workload, candidate, weight.dense)
            for first in range(0, workload.channels, WORD)
        ]
        return {"data": np.concatenate(parts)}

    def arguments(self, kernel: PixelBody) -> list[Any]:
        """See `PixelConvolution.arguments`."""
        return [emit.arg("data", (kernel.positions * kernel.workload.channels * kernel.output.stored,))]

    def walk(self, kernel: PixelBody, spot: Spot, read: Read, add: Callable[[Expr, Expr], None]) -> None:
        """See `PixelConvolution.walk`."""
        channels, size = kernel.workload.channels, spot.vectors * kernel.lanes
        length = T.int32(min(WORD, channels))
        if channels % WORD and kernel.input.words > 1:
            length = tirx.min(T.int32(WORD), channels - spot.word * WORD)
        before = spot.vector * (kernel.positions * channels * kernel.lanes)
        base = T.bind(before + (spot.word * (WORD * kernel.positions) + read.tap * length) * size)
        with pixel_emit.set_bits(read.word) as (channel, _):
            add(channel, base + channel * size)


def weight_rows(workload: Workload, candidate: Candidate, weight: Array) -> list[Array]:
    """For each block of filters its weights (kernel positions, channels, filters of the block), float32.

    Filters are filled up with zeros to what a pixel stores.
    """
    output = workload.pixel_layouts().in_pixels("a block")[1]
    matrix = np.pad(weight, ((0, output.stored - workload.filters), (0, 0), (0, 0), (0, 0)))
    rows = np.ascontiguousarray(matrix.reshape(*matrix.shape[:2], -1).transpose(2, 1, 0), np.float32)
    size = candidate.parameters["VB"] * workload.vectors.lanes
    return [rows[:, :, first : first + size] for first in range(0, output.stored, size)]


class PixelBody:
    """Emits one convolution kernel."""

    def __init__(
        self, template: PixelConvolution, workload: Workload, candidate: Candidate, layouts: Layouts
    ) -> None:
        self.template, self.workload = template, workload
        self.input, self.output, self.residual = layouts.in_pixels(template.name)
        self.lanes = workload.vectors.lanes
        p = candidate.parameters
        self.VB, self.band, self.group = p["VB"], p["band"], p["taps"]
        self.positions = workload.kernel_size[0] * workload.kernel_size[1]
        self.groups = self.positions // self.group
        self.steps = self.groups * self.input.words

    def write(self) -> None:
        """The whole kernel."""
        w = self.workload
        self.x, self.x_bits = pixel_emit.map_args("x", self.input, w.batch)
        self.packed = self.template.arguments(self)
        bias = emit.arg("bias", (w.filters,)) if w.bias else None
        self.other: Any = emit.arg("residual", (w.batch, self.residual.size)) if self.residual else None
        self.y, self.y_bits, count = pixel_emit.output_args(self.output, w.batch)
        self.bias = self._whole_vectors(bias)
        pixel_emit.clear_halo(self.y_bits, self.output, w.batch)
        bands = -(-self.output.height // self.band)
        with emit.share(w.batch * bands, w.threads) as (first, number), emit.loop(number) as i:
            item = T.bind(T.int32(0) + first + i)
            image = T.bind(item // bands) if w.batch > 1 else 0
            start = T.bind(item % bands * self.band)
            self._band(image, start, tirx.min(T.int32(self.band), self.output.height - start))
        pixel_emit.count_bits(self.y_bits, count, self.output, w.batch)

    def _whole_vectors(self, bias: Any) -> Any:
        """The bias, filled up with zeros if a vector of it would end outside."""
        if bias is None or self.workload.filters == self.output.stored:
            return bias
        filled = T.alloc_buffer((self.output.stored,), bias.dtype)
        with emit.loop(self.output.stored) as f:
            inside = f < self.workload.filters
            T.buffer_store(filled, tirx.if_then_else(inside, bias[f], T.float32(0)), [f])
        return filled

    def _band(self, image: Expr, start: Expr, rows: Expr) -> None:
        for s in emit.segments(self.output.stored // self.lanes, self.VB):
            with (
                emit.loop(s.count) as block,
                emit.loop(self.input.words) as word,
                emit.loop(self.groups) as group,
                emit.loop(rows) as row,
                emit.loop(self.output.width) as col,
            ):
                vector = s.start + block * s.size
                at = s.start // self.VB + block
                self._spot(Spot(image, start + row, col, at, vector, s.size, word, group))

    def _spot(self, spot: Spot) -> None:
        reads = [self._read(spot, spot.group * self.group + i) for i in range(self.group)]
        if self.steps == 1:
            self._add(spot, reads, None)
            return
        step = T.bind(spot.word * self.groups + spot.group)
        edge = tirx.Or(step == 0, step == self.steps - 1)
        left = reads[0].word
        for read in reads[1:]:
            left = left | read.word
        with T.If(tirx.Or(left != T.uint64(0), edge)), T.Then():
            self._add(spot, reads, step)

    def _add(self, spot: Spot, reads: list[Read], step: Expr) -> None:
        """One step of a spot's reduction: nothing is left out when all its words are zero, so that it can be skipped
        unless it is the first or the last."""
        acc = emit.Accumulators(spot.vectors, self.lanes)
        place = T.bind(self.output.pixel(spot.row, spot.col) + spot.vector * self.lanes)
        _either(self.steps, step == 0, lambda first: self._initialise(spot, place, acc, first))
        for read in reads:
            self._multiply(spot, read, acc)
        _either(self.steps, step == self.steps - 1, lambda last: self._store(spot, place, acc, last))

    def _read(self, spot: Spot, tap: Expr) -> Read:
        (sh, sw), (dh, dw), kw = self.workload.stride, self.workload.dilation, self.workload.kernel_size[1]
        top, left = self.workload.padding[:2]
        row = T.bind(spot.row * sh + tap // kw * dh - top)
        col = T.bind(spot.col * sw + tap % kw * dw - left)
        word = T.bind(self.x_bits[spot.image, self.input.word(row, col) + spot.word])
        met = T.bind(self.template.meet(self, spot, tap, word))
        return Read(tap, met, T.bind(self.input.pixel(row, col) + spot.word * WORD))

    def _multiply(self, spot: Spot, read: Read, acc: emit.Accumulators) -> None:
        data = self.packed[0]

        def add(channel: Expr, offset: Expr) -> None:
            value = emit.splat(self.x[spot.image, read.values + channel], self.lanes)
            for v in range(spot.vectors):
                acc[v] = acc[v] + value * data[emit.ramp(offset + v * self.lanes, self.lanes)]

        self.template.walk(self, spot, read, add)

    def _initialise(self, spot: Spot, place: Expr, acc: emit.Accumulators, first: bool) -> None:
        for v in range(spot.vectors):
            if not first:
                acc[v] = self.y[spot.image, emit.ramp(place + v * self.lanes, self.lanes)]
            elif self.bias is None:
                acc[v] = emit.const(0.0, self.lanes)
            else:
                acc[v] = self.bias[emit.ramp((spot.vector + v) * self.lanes, self.lanes)]

    def _store(self, spot: Spot, place: Expr, acc: emit.Accumulators, last: bool) -> None:
        pieces = []
        for v in range(spot.vectors):
            where = [spot.image, emit.ramp(place + v * self.lanes, self.lanes)]
            value = acc[v]
            if last:
                if self.other is not None:
                    value = value + self.other[*where]
                w = self.workload
                value = T.bind(emit.activate(w.activation, value, self.lanes, w.parameter))
                pieces.append(pixel_emit.nonzero_bits(value, self.lanes))
            T.buffer_store(self.y, value, where)
        if last:
            at = (spot.image, self.output.word(spot.row, spot.col))
            pixel_emit.put_pieces(self.y_bits, at, spot.vector, pieces, self.lanes)


def _either(steps: int, condition: Expr, body: Callable[[bool], None]) -> None:
    """``body(True)`` where the condition holds, else ``body(False)``; it always holds in a single step."""
    if steps == 1:
        body(True)
        return
    with T.If(condition):
        with T.Then():
            body(True)
        with T.Else():
            body(False)
