"""Winograd's minimal filtering for dense 3x3 convolutions with stride 1: fewer products, a little more rounding.

An output tile of mh x mw pixels comes from (mh+2)(mw+2) multiplications a channel instead of 9 mh mw. In the lane
layout each lane holds its own block with its own halo, so a tile is a set of whole vectors and every transform a sum
of vectors, without a shuffle:

for each group of T tiles (of one vector of lanes each):
  V[position][channel][T] = B'xB, the transformed input; channels in parallel
  for each position and block of R filters, the blocks in parallel:
    M[position][filter][T] = sum over channels of U[position][block][channel][R] * V    (acc[R][T] in registers)
  y = A'MA, then bias, residual, activation; filters in parallel
fill the halo

The last tile of a row or column that mh or mw does not divide overlaps the one before it.

Error: ``max |y - exact| <= error_bound(mh, mw) * max over outputs of sum |w||x|``, with exact in float64 and all
values in float32. It is what random operands give, with a margin (tests/kernels/test_winograd.py); the proven bounds
of Barabasz et al. hold for all operands and are wider.

References
----------
Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4: the algorithm. Barabasz,
Anderson, Soodhalter & Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural
Networks", ACM TOMS 46(4), 2020: how the choice of points decides the error. The matrices are Toom-Cook's from `POINTS`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.kernels import emit
from sparseflow.kernels.cost import L1_BYTES, L2_BYTES
from sparseflow.kernels.lanes import LaneLayout
from sparseflow.kernels.workload import Array, Candidate, KernelTemplate, Layouts, Workload, register

Expr = Any

# The finite points of F(m, 3) beside infinity. Pairs of opposite sign halve the work of a transform; of those, dyadic
# numbers that kept the error small in a search (0, 1, -1, 2, -2 has four times the error at m = 4).
POINTS: dict[int, tuple[float, ...]] = {
    2: (0.0, 1.0, -1.0),
    3: (0.0, 0.75, -0.75, 1.5),
    4: (0.0, 0.75, -0.75, 1.5, -1.5),
    5: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0),
    6: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0),
}
SIZES = (1, *POINTS)
ERRORS = {1: 3e-7, 2: 3e-7, 3: 1e-6, 4: 2e-6, 5: 6e-6, 6: 8e-6}  # of F(m x m); the larger m of a tile decides
LEAST_CHANNELS = 8
SUMS = {1: 0, 2: 4, 3: 9, 4: 12, 5: 20, 6: 24}  # vector operations of a transform along one axis, about
L3_BYTES = 8 << 20  # one core's part of the L3 cache


@dataclass(frozen=True)
class Matrices:
    """F(m, 3): outputs = A'[(G w) * (B' x)] for a filter w of 3 and an input x of m + 2 values.

    Attributes
    ----------
    outputs : float64 array (m, m + 2)
        A'.
    weights : float64 array (m + 2, 3)
        G.
    inputs : float64 array (m + 2, m + 2)
        B'.
    """

    outputs: Array
    weights: Array
    inputs: Array


@functools.cache
def matrices(m: int) -> Matrices:
    """The matrices of F(m, 3); for m = 1 the three products themselves."""
    if m == 1:
        return Matrices(np.ones((1, 3)), np.eye(3), np.eye(3))
    points, n = np.array(POINTS[m]), m + 2
    outputs, weights, inputs = np.zeros((m, n)), np.zeros((n, 3)), np.zeros((n, n))
    for j, point in enumerate(points):
        others = np.delete(points, j)
        outputs[:, j] = point ** np.arange(m)
        weights[j] = point ** np.arange(3) / np.prod(point - others)
        inputs[j, :-1] = np.poly(others)[::-1]
    outputs[-1, -1] = weights[-1, -1] = 1.0
    inputs[-1] = np.poly(points)[::-1]
    return Matrices(outputs, weights, inputs)


def error_bound(mh: int, mw: int) -> float:
    """The largest error to expect of tiles of mh x mw, relative to the largest sum of |w||x| of an output."""
    return max(ERRORS[mh], ERRORS[mw])


@register
class Winograd(KernelTemplate):
    """Dense 3x3 convolution with stride 1 by Winograd's algorithm."""

    name = "winograd"
    layout = "lanes"
    format = "dense"
    exact = False

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        w = workload
        if w.op != "conv2d" or w.kernel_size != (3, 3):
            return "Winograd is for 3x3 convolutions"
        if w.stride != (1, 1) or w.dilation != (1, 1):
            return f"stride {w.stride} and dilation {w.dilation}: Winograd needs 1 and 1"
        if w.groups != 1:
            return f"{w.groups} groups: Winograd shares transforms among all channels"
        if min(w.channels, w.filters) < LEAST_CHANNELS:
            few = min(w.channels, w.filters)
            return f"{few} channels: fewer than {LEAST_CHANNELS} do not pay for the transforms"
        bh, bw = w.output_layout.block
        if bh * bw == 1:
            return "one pixel in a lane: a tile would save no multiplication"
        return None

    def candidates(self, workload: Workload) -> list[Candidate]:
        """The tile sizes with the fewest predicted cycles, each with some shapes of the register block."""
        bh, bw = workload.output_layout.block
        most, found = workload.vectors.accumulators, []
        for mh in _sizes(bh):
            for mw in _sizes(bw):
                tiles = workload.batch * math.ceil(bh / mh) * math.ceil(bw / mw)
                shapes = {(r, _even(tiles, most // r)) for r in (4, 6, 8, 12)} | {(8, 1), (8, 2)}
                found += [
                    Candidate("winograd", {"mh": mh, "mw": mw, "R": r, "T": t})
                    for r, t in sorted(shapes)
                    if t <= tiles and r <= workload.filters and r * t <= most
                ]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """Multiply-adds and vector loads, the sums of the transforms, and the weights read once for each group."""
        w, p = workload, candidate.parameters
        mh, mw, r, t = p["mh"], p["mw"], p["R"], p["T"]
        bh, bw = w.output_layout.block
        rate = w.vectors.per_cycle
        groups = math.ceil(w.batch * math.ceil(bh / mh) * math.ceil(bw / mw) / t)
        positions, blocks = (mh + 2) * (mw + 2), math.ceil(w.filters / r)
        load = 1.0 if w.channels * t * w.vectors.lanes * 4 <= L1_BYTES else 2.0
        per_channel = max(1.03 * r * t / rate, t * load / rate + 0.5 * r, 4.2)
        product = positions * blocks * (w.channels * per_channel + 2 * r * t / rate + 12)
        sums = 2.2 * positions + (mh + 2) * SUMS[mw] + (mw + 2) * SUMS[mh]
        transforms = t * (w.channels + w.filters) * sums / rate
        return groups * (product + transforms + _stream(positions * blocks * r * w.channels * 4)) / w.threads

    def pack(
        self, workload: Workload, candidate: Candidate, weight: Array, layouts: Layouts
    ) -> dict[str, Array]:
        """U = G w G' in float64, rounded once: (positions, blocks, channels, R) flattened, padded with zero filters."""
        p = candidate.parameters
        r, (gh, gw) = p["R"], (matrices(p["mh"]).weights, matrices(p["mw"]).weights)
        filters, channels = weight.shape[:2]
        blocks = math.ceil(filters / r)
        u = np.zeros((len(gh), len(gw), blocks * r, channels), np.float32)
        for i, row in enumerate(gh):
            partial = np.tensordot(weight.astype(np.float64), row, axes=(2, 0))
            for j, column in enumerate(gw):
                u[i, j, :filters] = partial @ column
        u = u.reshape(-1, blocks, r, channels).transpose(0, 1, 3, 2)
        return {"data": np.ascontiguousarray(u).reshape(-1)}

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        with emit.prim_func(name) as finish:
            _Body(workload, candidate, *layouts.in_lanes(self.name)).write()
        return finish()


def _sizes(extent: int) -> list[int]:
    """Tile sizes for a block of ``extent``: of those with equally many tiles only the smallest."""
    return sorted(
        {
            min(m for m in SIZES if math.ceil(extent / m) == math.ceil(extent / top))
            for top in SIZES
            if top <= extent
        }
    )


def _even(tiles: int, most: int) -> int:
    """The size of groups that are as equal as can be, none above ``most``."""
    return math.ceil(tiles / math.ceil(tiles / max(1, most)))


def _stream(nbytes: int) -> float:
    """Cycles lost to reading the transformed weights once: none from L2, and a part of the time from L3 or memory."""
    if nbytes <= L2_BYTES:
        return 0.0
    return nbytes / (16.0 if nbytes <= L3_BYTES else 7.0)


class _Body:
    """Emits one kernel."""

    def __init__(
        self, workload: Workload, candidate: Candidate, source: LaneLayout, output: LaneLayout,
        residual: LaneLayout | None,
    ) -> None:  # fmt: skip
        self.workload, self.input, self.output, self.residual = workload, source, output, residual
        self.lanes = output.lanes
        p = candidate.parameters
        self.size, self.R, self.T = (p["mh"], p["mw"]), p["R"], p["T"]
        self.grid = (math.ceil(output.block[0] / p["mh"]), math.ceil(output.block[1] / p["mw"]))
        self.positions = (p["mh"] + 2) * (p["mw"] + 2)
        self.blocks = math.ceil(workload.filters / self.R)
        self.v_plane = _odd(workload.channels * self.T, self.lanes) * self.lanes
        self.m_plane = _odd(self.blocks * self.R * self.T, self.lanes) * self.lanes

    def write(self) -> None:
        """The whole kernel."""
        w = self.workload
        self.x = emit.arg("x", (w.batch, self.input.size))
        self.u = emit.arg("data", (self.positions * self.blocks * w.channels * self.R,))
        self.bias = emit.arg("bias", (w.filters,)) if w.bias else None
        self.other = emit.arg("residual", (w.batch, self.residual.size)) if self.residual else None
        self.y = emit.arg("y", (w.batch, self.output.size))
        self.v = T.alloc_buffer((self.positions * self.v_plane,), "float32")
        self.m = T.alloc_buffer((self.positions * self.m_plane,), "float32")
        for part in emit.segments(w.batch * self.grid[0] * self.grid[1], self.T):
            with emit.loop(part.count) as g:
                self._group(part.start + g * part.size, part.size)
        if any(self.output.halo):
            with emit.channel_loop(w.filters, w.threads) as f, emit.loop(w.batch) as n:
                emit.fill_halo(self.y, n, f * (self.output.plane * self.lanes), self.output)

    def _group(self, first: Expr, count: int) -> None:
        w = self.workload
        with emit.channel_loop(w.channels, w.threads) as c, emit.loop(count) as t:
            self._transform_input(c, t, first + t, count)
        with (  # all blocks of a thread for a position, so that its V stays in the L1 or L2 cache
            emit.share(self.blocks, w.threads) as (start, blocks),
            emit.loop(self.positions) as p,
            emit.loop(blocks) as b,
        ):
            self._product(start + b, p, count)
        with emit.channel_loop(w.filters, w.threads) as f, emit.loop(count) as t:
            self._transform_output(f, t, first + t, count)

    def _place(self, tile: Expr) -> tuple[Expr, Expr, Expr]:
        """Image, first row and first column in the block of a tile; the last ones are moved back into the block."""
        rows, cols = self.grid
        where = []
        for axis, index in (
            (0, tirx.floordiv(tirx.floormod(tile, rows * cols), cols)),
            (1, tirx.floormod(tile, cols)),
        ):
            last = self.output.block[axis] - self.size[axis]
            where.append(T.bind(tirx.min(index * self.size[axis], T.int32(last))))
        return T.bind(tirx.floordiv(tile, rows * cols)), where[0], where[1]

    def _transform_input(self, c: Expr, t: Expr, tile: Expr, count: int) -> None:
        n, row, col = self._place(T.bind(T.int32(0) + tile))
        top, left = (self.input.halo[i] - self.workload.padding[i] for i in (0, 1))
        base = T.bind((c * self.input.plane + (row + top) * self.input.cols + col + left) * self.lanes)
        out = T.bind((c * count + t) * self.lanes)
        (mh, mw), lanes = self.size, self.lanes

        def load(i: int, j: int) -> Expr:
            return T.bind(self.x[n, emit.ramp(base + (i * self.input.cols + j) * lanes, lanes)])

        columns = [
            _by_rows(matrices(mh).inputs, [load(i, j) for i in range(mh + 2)], lanes) for j in range(mw + 2)
        ]
        for i in range(mh + 2):
            for j, value in enumerate(
                _by_rows(matrices(mw).inputs, [column[i] for column in columns], lanes)
            ):
                place = out + (i * (mw + 2) + j) * self.v_plane
                T.buffer_store(self.v, value, [emit.ramp(place, lanes)])

    def _product(self, block: Expr, position: Expr, count: int) -> None:
        w, lanes = self.workload, self.lanes
        acc = emit.Accumulators(self.R * count, lanes)
        for i in range(self.R * count):
            acc[i] = emit.const(0.0, lanes)
        weights = T.bind((position * self.blocks + block) * (w.channels * self.R))
        values = T.bind(position * self.v_plane)
        with emit.loop(w.channels) as c:
            x = [T.bind(self.v[emit.ramp(values + (c * count + t) * lanes, lanes)]) for t in range(count)]
            for r in range(self.R):
                weight = emit.splat(self.u[weights + c * self.R + r], lanes)
                for t in range(count):
                    acc[r * count + t] = acc[r * count + t] + weight * x[t]
        out = T.bind(position * self.m_plane + block * (self.R * count * lanes))
        for i in range(self.R * count):
            T.buffer_store(self.m, acc[i], [emit.ramp(out + i * lanes, lanes)])

    def _transform_output(self, f: Expr, t: Expr, tile: Expr, count: int) -> None:
        n, row, col = self._place(T.bind(T.int32(0) + tile))
        base = T.bind((f * count + t) * self.lanes)
        (mh, mw), lanes, w = self.size, self.lanes, self.workload

        def load(i: int, j: int) -> Expr:
            return T.bind(self.m[emit.ramp(base + (i * (mw + 2) + j) * self.m_plane, lanes)])

        columns = [
            _by_columns(matrices(mh).outputs, [load(i, j) for i in range(mh + 2)], lanes)
            for j in range(mw + 2)
        ]
        bias = T.bind(emit.splat(self.bias[f], lanes)) if self.bias is not None else None
        for i in range(mh):
            for j, value in enumerate(
                _by_columns(matrices(mw).outputs, [column[i] for column in columns], lanes)
            ):
                value = value if bias is None else value + bias
                if self.other is not None and self.residual is not None:
                    value = value + self.other[n, self._at(self.residual, f, row + i, col + j)]
                value = emit.finish(value, w.activation, self.output, row + i, col + j, w.threshold)
                T.buffer_store(self.y, value, [n, self._at(self.output, f, row + i, col + j)])

    def _at(self, layout: LaneLayout, f: Expr, row: Expr, col: Expr) -> Expr:
        return emit.ramp((f * layout.plane + layout.position(row, col)) * self.lanes, self.lanes)


def _odd(vectors: int, lanes: int) -> int:
    """One vector more where a multiple of 4,096 bytes would put all positions into the same set of the L1 cache."""
    return vectors + 1 if vectors * lanes * 4 % 4096 == 0 else vectors


def _combine(terms: Sequence[tuple[float, Expr]], lanes: int) -> Expr:
    """The sum of factor * vector; at least one factor is not zero."""
    total: Expr = None
    for factor, x in sorted((term for term in terms if term[0] != 0.0), key=lambda term: abs(term[0]) != 1.0):
        if total is None:
            total = x if factor == 1.0 else emit.const(factor, lanes) * x
        elif abs(factor) == 1.0:
            total = total + x if factor > 0 else total - x
        else:
            total = total + emit.const(factor, lanes) * x
    return T.bind(total)


def _by_rows(matrix: Array, x: Sequence[Expr], lanes: int) -> list[Expr]:
    """``matrix`` times the vectors ``x``; two rows that differ in signs only share their even and odd parts."""
    out: list[Expr] = [None] * len(matrix)
    for i, row in enumerate(matrix):
        if out[i] is not None:
            continue
        twin = next((k for k in range(i + 1, len(matrix)) if (abs(matrix[k]) == abs(row)).all()), None)
        if twin is None:
            out[i] = _combine(list(zip(row, x, strict=True)), lanes)
            continue
        same = matrix[twin] == row
        even = _combine([(a, v) for a, v, s in zip(row, x, same, strict=True) if s], lanes)
        odd = _combine([(a, v) for a, v, s in zip(row, x, same, strict=True) if not s], lanes)
        out[i], out[twin] = T.bind(even + odd), T.bind(even - odd)
    return out


def _by_columns(matrix: Array, x: Sequence[Expr], lanes: int) -> list[Expr]:
    """``matrix`` times the vectors ``x``; two columns that differ in signs only are added and subtracted first."""
    terms: list[list[tuple[float, Expr]]] = [[] for _ in matrix]
    done: set[int] = set()
    for j, column in enumerate(matrix.T):
        if j in done:
            continue
        twins = (
            k
            for k in range(j + 1, matrix.shape[1])
            if k not in done and (abs(matrix[:, k]) == abs(column)).all()
        )
        twin = next(twins, None)
        if twin is None:
            for term, factor in zip(terms, column, strict=True):
                term.append((factor, x[j]))
            continue
        done.add(twin)
        plus, minus = T.bind(x[j] + x[twin]), T.bind(x[j] - x[twin])
        for term, factor, other in zip(terms, column, matrix[:, twin], strict=True):
            term.append((factor, plus if factor == other else minus))
    return [_combine(term, lanes) for term in terms]
