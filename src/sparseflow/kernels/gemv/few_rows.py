"""Linear layers of a few rows (a classifier at batch 1): bound by reading the weights, so lanes are output features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.formats import TapList
from sparseflow.kernels.ir import emit
from sparseflow.kernels.ir.elements import widened
from sparseflow.kernels.template import Candidate, KernelTemplate, register
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import DENSEST, Array, Layouts, Workload

Expr = Any
AHEAD, GROUPS_AHEAD = (32, 0), (64, 0)
"""How many inputs, or groups of taps, ahead weights are asked for; 0: only the processor's own prefetching."""
LINE = 64  # bytes of a cache line
BYTES_PER_CYCLE = 6.0  # what one core streams from memory, with the L3 cache's help


class FewRows(KernelTemplate):
    """Common to the dense and the sparse kernel of few rows."""

    layout = "rows"
    narrow = True

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        if workload.op != "linear":
            return "it computes linear layers only"
        if workload.width >= 32:
            return f"{workload.width} rows reuse each weight so often that lanes should be rows"
        return None

    def _arguments(self, workload: Workload) -> tuple[Any, Any, Any]:
        shape = (workload.width, workload.filters)
        bias = emit.arg("bias", (workload.filters,)) if workload.bias else None
        residual = emit.arg("residual", shape) if workload.residual else None
        return bias, residual, emit.arg("y", shape)

    def _store(
        self, workload: Workload, epilogue: tuple[Any, Any, Any], at: tuple[Expr, Expr], value: Expr
    ) -> None:
        """Stores a vector of outputs of row ``at[0]`` from feature ``at[1]`` on; fewer if there are not so many."""
        lanes = workload.vectors.lanes
        bias, residual, y = epilogue
        if workload.filters < lanes:
            self._store_few(workload, epilogue, at[0], value)
            return
        where = emit.ramp(at[1], lanes)
        if bias is not None:
            value = value + bias[where]
        if residual is not None:
            value = value + residual[at[0], where]
        T.buffer_store(
            y, emit.activate(workload.activation, value, lanes, workload.parameter), [at[0], where]
        )

    def _store_few(self, workload: Workload, epilogue: tuple[Any, Any, Any], row: Expr, value: Expr) -> None:
        """Stores one element after the other: a vector would end outside the tensors."""
        lanes = workload.vectors.lanes
        bias, residual, y = epilogue
        sums = T.alloc_buffer((lanes,), workload.sums.storage)
        T.buffer_store(sums, value, [emit.ramp(0, lanes)])
        for f in range(workload.filters):
            one = sums[f]
            if bias is not None:
                one = one + bias[f]
            if residual is not None:
                one = one + residual[row, f]
            T.buffer_store(y, emit.activate(workload.activation, one, 1, workload.parameter), [row, f])


@register
class FewRowsDense(FewRows):
    """Dense weights, each read once for all rows of a part, with a stream of memory for each of B feature vectors.

    The layer waits for memory. One stream is fetched page by page, each beginning anew; several run on while one
    begins, and ``ahead`` asks for lines so many inputs early.
    """

    name = "few-rows"
    format = "dense"

    def candidates(self, workload: Workload) -> list[Candidate]:
        """1, 2, 4 or 8 vectors of features at a time."""
        rows, most = min(workload.width, 8), min(16, workload.vectors.accumulators)
        sizes = [b for b in (8, 4, 2, 1) if b * rows <= most]
        blocks = [
            Candidate(self.name, {"B": b, "ahead": ahead}) for b in sizes for ahead in AHEAD if b > 1 or ahead
        ]
        found = [c for block in blocks for c in self.in_types(workload, block)]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        b, rows = candidate.parameters["B"], min(workload.width, 8)
        nbytes = workload.filters * workload.channels * self.stored(workload, candidate).nbytes
        stream = nbytes / BYTES_PER_CYCLE * math.ceil(workload.width / 8)
        latency = max(1.0, 4.0 / (b * rows))
        return max(stream, workload.macs / workload.vectors.lanes * latency) / workload.threads

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """(vectors, in, lanes), the last vector overlaps the one before, or ends in zeros if alone."""
        lanes = workload.vectors.lanes
        matrix = weight.dense.reshape(workload.filters, workload.channels)
        full = workload.filters // lanes
        parts = [
            matrix[: full * lanes].reshape(full, lanes, workload.channels).transpose(0, 2, 1).reshape(-1)
        ]
        if workload.filters % lanes:
            last = np.pad(matrix[-lanes:], ((0, max(0, lanes - workload.filters)), (0, 0)))
            parts.append(last.T.reshape(-1))
        return {"data": self.stored(workload, candidate).encode(np.concatenate(parts))}

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        k, b, lanes = workload.channels, candidate.parameters["B"], workload.vectors.lanes
        full = workload.filters // lanes
        whole, rest = divmod(full, b)
        tail = 1 if workload.filters % lanes else 0
        with emit.prim_func(name) as finish:
            x = emit.arg("x", (workload.width, k))
            element, ahead = self.stored(workload, candidate), candidate.parameters["ahead"]
            data = emit.arg("data", ((full + tail) * lanes * k,), element.storage)
            epilogue = self._arguments(workload)
            for part in emit.segments(workload.width, 8):
                with emit.loop(part.count) as i:
                    row = part.start + i * part.size

                    def block(
                        start: Expr, feature: Expr, count: int, row: Expr = row, rows: int = part.size
                    ) -> None:
                        self._block(
                            workload,
                            (x, (data, element, ahead), epilogue),
                            (row, rows),
                            (start, feature, count),
                        )

                    with emit.channel_loop(whole, workload.threads) as g:
                        block(g * (b * lanes * k), g * (b * lanes), b)
                    if rest:
                        block(whole * b * lanes * k, whole * b * lanes, rest)
                    if tail:
                        block(full * lanes * k, max(0, workload.filters - lanes), 1)
        return finish()

    def _block(
        self, workload: Workload, tensors: Any, rows: tuple[Expr, int], block: tuple[Expr, Expr, int]
    ) -> None:
        x, (data, element, ahead), epilogue = tensors
        (row, height), (start, feature, count) = rows, block
        lanes = workload.vectors.lanes
        acc = emit.Accumulators(height * count, lanes)
        for i in range(height * count):
            acc[i] = emit.const(0.0, lanes)
        with emit.loop(workload.channels) as k:
            for v in range(count):
                at = start + (v * workload.channels + k) * lanes
                if ahead:
                    emit.prefetch(data, at + ahead * lanes)
                weight = widened(element, data[emit.ramp(at, lanes)], lanes)
                for r in range(height):
                    acc[r * count + v] = acc[r * count + v] + emit.splat(x[row + r, k], lanes) * weight
        for r in range(height):
            for v in range(count):
                self._store(workload, epilogue, (row + r, feature + v * lanes), acc[r * count + v])


@register
class FewRowsSparse(FewRows):
    """R filters that share taps; each tap is one input value, splatted over the R lanes of its weights.

    There is no gather: an index, an input value and R weights are three loads, which a core starts in one or two
    cycles. ``U`` taps at a time have accumulators of their own, so that no sum waits for the one before it. Cache lines
    are asked for ``ahead`` groups of U taps early: the processor's own prefetching stops at each end of a page.
    """

    name = "few-rows-taps"
    format = "tap-list"

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        if workload.density() > DENSEST:
            return (
                f"density {workload.density():.2f} is above {DENSEST}: indices cost more than the zeros save"
            )
        return super().rejects(workload)

    def candidates(self, workload: Workload) -> list[Candidate]:
        """Block heights whose cover adds few zeros."""
        useful, lanes = workload.density(), workload.vectors.lanes
        heights = [
            r
            for r in (1, 2, 4, 8, 16)
            if r <= lanes
            and workload.filters % r == 0
            and workload.density(r) <= useful * (1.0 + 0.6 * r / 2)
        ]
        shapes = [
            Candidate(self.name, {"R": r, "U": u, "ahead": ahead})
            for r in heights
            for u in (8, 4)
            for ahead in GROUPS_AHEAD
        ]
        found = [c for shape in shapes for c in self.in_types(workload, shape)]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        r, u = candidate.parameters["R"], candidate.parameters["U"]
        blocks = workload.filters / r
        taps = workload.density(r) * workload.channels + u / 2
        index = 2 if workload.channels <= 1 << 16 else 4
        stream = blocks * taps * (self.stored(workload, candidate).nbytes * r + index) / BYTES_PER_CYCLE
        work = blocks * (taps * 1.2 * workload.width + 6 * u * workload.width)
        return max(stream, work) / workload.threads

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """The tap list with each block's taps padded to a multiple of U by zeros at column 0."""
        r, u = candidate.parameters["R"], candidate.parameters["U"]
        index = weight.index(TapList(rows=r)).arrays
        counts = np.diff(index["indptr"])
        padded = -(-counts // u) * u
        start = np.concatenate([[0], np.cumsum(padded)])
        at = np.repeat(start[:-1] - index["indptr"][:-1], counts) + np.arange(len(index["indices"]))
        indices = np.zeros(max(int(start[-1]), 1), _index_type(workload))
        element = self.stored(workload, candidate)
        data = np.zeros((len(indices), r), element.dtype)
        indices[at], data[at] = index["indices"], element.encode(index["data"])
        return {"indptr": start.astype(np.int32), "indices": indices, "data": data.reshape(-1)}

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        r, u, ahead = (candidate.parameters[name] for name in ("R", "U", "ahead"))
        blocks = workload.filters // r
        with emit.prim_func(name) as finish:
            x = emit.arg("x", (workload.width, workload.channels))
            indptr = emit.arg("indptr", (blocks + 1,), "int32")
            indices = emit.arg("indices", (None,), _index_type(workload))
            element = self.stored(workload, candidate)
            data = emit.arg("data", (None,), element.storage)
            bias, residual, y = self._arguments(workload)
            with emit.channel_loop(blocks, workload.threads) as b:
                first = T.bind(indptr[b])
                groups = T.bind(tirx.floordiv(indptr[b + 1] - first, T.int32(u)))
                for part in emit.segments(workload.width, 2):
                    with emit.loop(part.count) as i:
                        row, rows = part.start + i * part.size, part.size
                        acc = emit.Accumulators(rows * u, r)
                        for k in range(rows * u):
                            acc[k] = emit.const(0.0, r)
                        with emit.loop(groups) as g:
                            if ahead:
                                early = first + (g + ahead) * u
                                emit.prefetch(indices, early)
                                for line in range(0, u * r * element.nbytes, LINE):
                                    emit.prefetch(data, early * r + line // element.nbytes)
                            for j in range(u):
                                tap = first + g * u + j
                                column = T.bind(tirx.Cast("int32", indices[tap]))
                                weight = widened(element, data[emit.ramp(tap * r, r)], r)
                                for k in range(rows):
                                    value = emit.splat(x[row + k, column], r)
                                    acc[k * u + j] = acc[k * u + j] + weight * value
                        for k in range(rows):
                            value = acc[k * u]
                            for j in range(1, u):
                                value = value + acc[k * u + j]
                            where = emit.ramp(b * r, r)
                            if bias is not None:
                                value = value + bias[where]
                            if residual is not None:
                                value = value + residual[row + k, where]
                            value = emit.activate(workload.activation, value, r, workload.parameter)
                            T.buffer_store(y, value, [row + k, where])
        return finish()


def _index_type(workload: Workload) -> str:
    return "uint16" if workload.channels <= 1 << 16 else "int32"
