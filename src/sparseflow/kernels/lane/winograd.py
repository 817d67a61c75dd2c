"""Winograd's minimal filtering for dense convolutions: fewer products, a little more rounding.

An output tile of mh x mw pixels under a kernel of r x r comes from (mh+r-1)(mw+r-1) multiplications a channel instead
of r r mh mw. A convolution with stride s is a sum of s x s convolutions with stride 1, one for each phase of its input
(every s-th row and column), with ceil(k/s) taps: each phase counts as a channel, and all share the output's transform.
In the lane layout each lane holds its own block with its own halo, so a tile is a set of whole vectors and every
transform a sum of vectors, without a shuffle:

for each group of T tiles (of one vector of lanes each):
  V[position][channel][T] = B'xB, the transformed input of each phase; channels in parallel
  for each position and block of R filters, the blocks in parallel:
    M[position][filter][T] = sum over channels of U[position][block][channel][R] * V    (acc[R][T] in registers)
  y = A'MA, then bias, residual, activation; filters in parallel
fill the halo

The last tile of a row or column that mh or mw does not divide overlaps the one before it.

Error: ``max |y - exact| <= error_bound((mh, rh), (mw, rw)) * max over outputs of sum |w||x|``, with exact in float64
and all values in float32. It is what random operands give, with a margin (tests/kernels/test_winograd.py); the proven
bounds of Barabasz et al. (`toom_cook`) hold for all operands and are wider.

References
----------
Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4: the algorithm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.kernels.ir import emit
from sparseflow.kernels.lane.toom_cook import SIZES, SUMS, TAPS, matrices
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.kernels.target.base import Caches
from sparseflow.kernels.template import Candidate, KernelTemplate, register
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array, Layouts, Workload

Expr = Any

LEAST_CHANNELS, LEAST_FILTERS = 3, 8  # phases count as channels


def phase_taps(workload: Workload) -> tuple[int, int]:
    """Taps along height and width of the phase that has the most: ceil(kernel / stride)."""
    (kh, kw), (sh, sw) = workload.kernel_size, workload.stride
    return math.ceil(kh / sh), math.ceil(kw / sw)


@register
class Winograd(KernelTemplate):
    """Dense convolution by Winograd's algorithm, a strided one phase by phase."""

    name = "winograd"
    layout = "lanes"
    format = "dense"
    exact = False

    def unit(self, candidate: Candidate) -> tuple[int, int]:
        """A tile."""
        return candidate.parameters["mh"], candidate.parameters["mw"]

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        w = workload
        if w.op != "conv2d" or not set(phase_taps(w)) <= set(TAPS):
            (kh, kw), (sh, sw) = w.kernel_size, w.stride
            taps = f"{TAPS[0]} or {TAPS[-1]} taps in a stride's phase"
            return f"Winograd takes {taps}, not {kh}x{kw} with stride {sh}x{sw}"
        if w.dilation != (1, 1):
            return f"dilation {w.dilation}: Winograd needs 1"
        if w.groups != 1:
            return f"{w.groups} groups: Winograd shares transforms among all channels"
        if (channels := w.channels * math.prod(w.stride)) < LEAST_CHANNELS:
            return f"{channels} channels: fewer than {LEAST_CHANNELS} do not pay for the transforms"
        if w.filters < LEAST_FILTERS:
            return f"{w.filters} filters: fewer than {LEAST_FILTERS} do not pay for the transforms"
        bh, bw = w.output_layout.block
        if bh * bw == 1:
            return "one pixel in a lane: a tile would save no multiplication"
        return None

    def candidates(self, workload: Workload) -> list[Candidate]:
        """The tile sizes with the fewest predicted cycles, each with some shapes of the register block."""
        bh, bw = workload.output_layout.block
        most, found = workload.vectors.accumulators, []
        rh, rw = phase_taps(workload)
        for mh in _sizes(bh, rh):
            for mw in _sizes(bw, rw):
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
        (bh, bw), (rh, rw) = w.output_layout.block, phase_taps(w)
        (nh, nw), channels = (mh + rh - 1, mw + rw - 1), w.channels * math.prod(w.stride)
        rate, caches = w.vectors.per_cycle, w.target.caches
        groups = math.ceil(w.batch * math.ceil(bh / mh) * math.ceil(bw / mw) / t)
        positions, blocks = nh * nw, math.ceil(w.filters / r)
        load = 1.0 if channels * t * w.vectors.lanes * w.sums.nbytes <= caches.l1 else 2.0
        per_channel = max(1.03 * r * t / rate, t * load / rate + 0.5 * r, 4.2)
        product = positions * blocks * (channels * per_channel + 2 * r * t / rate + 12)
        sums = 2.2 * positions + nh * _sums(mw, nw) + nw * _sums(mh, nh)
        transforms = t * (channels + w.filters) * sums / rate
        between = positions * (channels + w.filters) * t * w.vectors.lanes * w.sums.nbytes  # V and M
        transforms += max(0, between - caches.l2 // 2) / 16
        streamed = _stream(positions * blocks * r * channels * w.sums.nbytes, caches)
        return groups * (product + transforms + streamed) / w.threads

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """U = G w G' in float64, rounded once: (positions, blocks, channels, R) flattened, padded with zero filters.

        A phase is a channel; phases with fewer taps are padded with zeros.
        """
        p, (rh, rw), (sh, sw) = candidate.parameters, phase_taps(workload), workload.stride
        r, (gh, gw) = p["R"], (matrices(p["mh"], rh).weights, matrices(p["mw"], rw).weights)
        missing = [(0, rh * sh - weight.shape[2]), (0, rw * sw - weight.shape[3])]
        taps = np.pad(weight.dense, [(0, 0), (0, 0), *missing])
        taps = taps.reshape(*taps.shape[:2], rh, sh, rw, sw).transpose(0, 1, 3, 5, 2, 4)
        taps = taps.reshape(len(taps), -1, rh, rw)
        filters, channels = taps.shape[:2]
        blocks = math.ceil(filters / r)
        u = np.zeros((len(gh), len(gw), blocks * r, channels), np.float32)
        for i, row in enumerate(gh):
            partial = np.tensordot(taps.astype(np.float64), row, axes=(2, 0))
            for j, column in enumerate(gw):
                u[i, j, :filters] = partial @ column
        u = u.reshape(-1, blocks, r, channels).transpose(0, 1, 3, 2)
        return {"data": np.ascontiguousarray(u).reshape(-1)}

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        with emit.prim_func(name) as finish:
            _Body(workload, candidate, *layouts.in_lanes(self.name)).write()
        return finish()


def _sizes(extent: int, taps: int) -> list[int]:
    """Tile sizes for a block of ``extent``: of those with equally many tiles only the smallest."""
    return sorted(
        {
            min(m for m in SIZES[taps] if math.ceil(extent / m) == math.ceil(extent / top))
            for top in SIZES[taps]
            if top <= extent
        }
    )


def _sums(m: int, n: int) -> int:
    """Vector operations of a transform along one axis, about."""
    return 0 if m == 1 else SUMS[n]


def _even(tiles: int, most: int) -> int:
    """The size of groups that are as equal as can be, none above ``most``."""
    return math.ceil(tiles / math.ceil(tiles / max(1, most)))


def _stream(nbytes: int, caches: Caches) -> float:
    """Cycles lost to reading the transformed weights once: none from L2, and a part of the time from L3 or memory."""
    if nbytes <= caches.l2:
        return 0.0
    return nbytes / (16.0 if nbytes <= caches.l3 else 7.0)


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
        taps = phase_taps(workload)
        self.matrices = [matrices(m, r) for m, r in zip(self.size, taps, strict=True)]
        self.n = (self.size[0] + taps[0] - 1, self.size[1] + taps[1] - 1)
        self.channels = workload.channels * math.prod(workload.stride)
        self.grid = (math.ceil(output.block[0] / p["mh"]), math.ceil(output.block[1] / p["mw"]))
        self.positions = self.n[0] * self.n[1]
        self.blocks = math.ceil(workload.filters / self.R)
        nbytes = self.lanes * workload.sums.nbytes
        self.v_plane = _odd(self.channels * self.T, nbytes) * self.lanes
        self.m_plane = _odd(self.blocks * self.R * self.T, nbytes) * self.lanes

    def write(self) -> None:
        """The whole kernel."""
        w = self.workload
        self.x = emit.arg("x", (w.batch, self.input.size))
        self.u = emit.arg("data", (self.positions * self.blocks * self.channels * self.R,))
        self.bias = emit.arg("bias", (w.filters,)) if w.bias else None
        self.other = emit.arg("residual", (w.batch, self.residual.size)) if self.residual else None
        self.y = emit.arg("y", (w.batch, self.output.size))
        self.v = T.alloc_buffer((self.positions * self.v_plane,), w.sums.storage)
        self.m = T.alloc_buffer((self.positions * self.m_plane,), w.sums.storage)
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
        w, lanes = self.workload, self.lanes
        (sh, sw), (kh, kw) = w.stride, w.kernel_size
        top, left = (self.input.halo[i] - w.padding[i] for i in (0, 1))
        place = (row * sh + top) * self.input.cols + col * sw + left
        base = T.bind((c * self.input.plane + place) * lanes)
        for phase, (ph, pw) in enumerate(itertools.product(range(sh), range(sw))):
            rows = (
                self.size[0] + len(range(ph, kh, sh)) - 1
            )  # the phase's last tap may be missing: its weight is zero
            cols = self.size[1] + len(range(pw, kw, sw)) - 1

            def load(i: int, j: int, ph: int = ph, pw: int = pw) -> Expr:
                at = base + ((i * sh + ph) * self.input.cols + j * sw + pw) * lanes
                return T.bind(self.x[n, emit.ramp(at, lanes)])

            columns = [
                _by_rows(self.matrices[0].inputs, [load(i, j) for i in range(rows)], lanes)
                for j in range(cols)
            ]
            out = T.bind(((c * (sh * sw) + phase) * count + t) * lanes)
            for i in range(self.n[0]):
                values = _by_rows(self.matrices[1].inputs, [column[i] for column in columns], lanes)
                for j, value in enumerate(values):
                    spot = out + (i * self.n[1] + j) * self.v_plane
                    T.buffer_store(self.v, value, [emit.ramp(spot, lanes)])

    def _product(self, block: Expr, position: Expr, count: int) -> None:
        lanes = self.lanes
        acc = emit.Accumulators(self.R * count, lanes)
        for i in range(self.R * count):
            acc[i] = emit.const(0.0, lanes)
        weights = T.bind((position * self.blocks + block) * (self.channels * self.R))
        values = T.bind(position * self.v_plane)
        with emit.loop(self.channels) as c:
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
        lanes, w = self.lanes, self.workload

        def load(i: int, j: int) -> Expr:
            return T.bind(self.m[emit.ramp(base + (i * self.n[1] + j) * self.m_plane, lanes)])

        columns = [
            _by_columns(self.matrices[0].outputs, [load(i, j) for i in range(self.n[0])], lanes)
            for j in range(self.n[1])
        ]
        bias = T.bind(emit.splat(self.bias[f], lanes)) if self.bias is not None else None
        for i in range(self.size[0]):
            for j, value in enumerate(
                _by_columns(self.matrices[1].outputs, [column[i] for column in columns], lanes)
            ):
                value = value if bias is None else value + bias
                if self.other is not None and self.residual is not None:
                    value = value + self.other[n, self._at(self.residual, f, row + i, col + j)]
                value = emit.finish(value, w.activation, self.output, row + i, col + j, w.parameter)
                T.buffer_store(self.y, value, [n, self._at(self.output, f, row + i, col + j)])

    def _at(self, layout: LaneLayout, f: Expr, row: Expr, col: Expr) -> Expr:
        return emit.ramp((f * layout.plane + layout.position(row, col)) * self.lanes, self.lanes)


def _odd(vectors: int, nbytes: int) -> int:
    """One vector more where a multiple of 4,096 bytes would put all positions into the same set of the L1 cache."""
    return vectors + 1 if vectors * nbytes % 4096 == 0 else vectors


def _combine(terms: Sequence[tuple[float, Expr]], lanes: int) -> Expr:
    """The sum of factor * vector; zero if no factor is left."""
    total: Expr = None
    for factor, x in sorted((term for term in terms if term[0] != 0.0), key=lambda term: abs(term[0]) != 1.0):
        if total is None:
            total = x if factor == 1.0 else emit.const(factor, lanes) * x
        elif abs(factor) == 1.0:
            total = total + x if factor > 0 else total - x
        else:
            total = total + emit.const(factor, lanes) * x
    return emit.const(0.0, lanes) if total is None else T.bind(total)


def _by_rows(matrix: Array, x: Sequence[Expr], lanes: int) -> list[Expr]:
    """``matrix`` times the vectors ``x``, those that are missing at the end being zero.

    Two rows that differ in signs only share their even and odd parts.
    """
    matrix = matrix[:, : len(x)]
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
