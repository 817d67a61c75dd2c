"""Linear layers of a few rows (a classifier at batch 1): bound by reading the weights, so lanes are output features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.formats import TapList
from sparseflow.kernels.ir import emit
from sparseflow.kernels.template import Candidate, KernelTemplate, register
from sparseflow.kernels.workload import Array, Layouts, Workload

Expr = Any
BYTES_PER_CYCLE = 6.0  # what one core streams from memory, with the L3 cache's help


class FewRows(KernelTemplate):
    """Common to the dense and the sparse kernel of few rows."""

    layout = "rows"

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
        sums = T.alloc_buffer((lanes,), "float32")
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
    """Dense weights as (feature vectors, in, lanes); each weight is read once for all rows of a part."""

    name = "few-rows"
    format = "dense"

    def candidates(self, workload: Workload) -> list[Candidate]:
        """1, 2, 4 or 8 vectors of features at a time."""
        rows, most = min(workload.width, 8), min(16, workload.vectors.accumulators)
        found = [Candidate(self.name, {"B": b}) for b in (8, 4, 2, 1) if b * rows <= most]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        b, rows = candidate.parameters["B"], min(workload.width, 8)
        stream = workload.filters * workload.channels * 4 / BYTES_PER_CYCLE * math.ceil(workload.width / 8)
        latency = max(1.0, 4.0 / (b * rows))
        return max(stream, workload.macs / workload.vectors.lanes * latency) / workload.threads

    def pack(
        self, workload: Workload, candidate: Candidate, weight: Array, layouts: Layouts
    ) -> dict[str, Array]:
        """(vectors / B, in, B, lanes), the last vector behind them: it overlaps, or ends in zeros if alone."""
        lanes = workload.vectors.lanes
        matrix, b = weight.reshape(workload.filters, workload.channels), candidate.parameters["B"]
        full = workload.filters // lanes
        parts = []
        for first, count in _groups(full, b):
            rows = matrix[first * lanes : (first + count) * lanes]
            parts.append(rows.reshape(count, lanes, -1).transpose(2, 0, 1).reshape(-1))
        if workload.filters % lanes:
            last = np.pad(matrix[-lanes:], ((0, max(0, lanes - workload.filters)), (0, 0)))
            parts.append(last.T.reshape(-1))
        return {"data": np.concatenate(parts).astype(np.float32)}

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        k, b, lanes = workload.channels, candidate.parameters["B"], workload.vectors.lanes
        full = workload.filters // lanes
        whole, rest = divmod(full, b)
        tail = 1 if workload.filters % lanes else 0
        with emit.prim_func(name) as finish:
            x = emit.arg("x", (workload.width, k))
            data = emit.arg("data", ((full + tail) * lanes * k,))
            epilogue = self._arguments(workload)
            for part in emit.segments(workload.width, 8):
                with emit.loop(part.count) as i:
                    row = part.start + i * part.size

                    def block(
                        start: Expr, feature: Expr, count: int, row: Expr = row, rows: int = part.size
                    ) -> None:
                        self._block(workload, (x, data, epilogue), (row, rows), (start, feature, count))

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
        x, data, epilogue = tensors
        (row, height), (start, feature, count) = rows, block
        lanes = workload.vectors.lanes
        acc = emit.Accumulators(height * count, lanes)
        for i in range(height * count):
            acc[i] = emit.const(0.0, lanes)
        with emit.loop(workload.channels) as k:
            for v in range(count):
                weight = data[emit.ramp(start + (k * count + v) * lanes, lanes)]
                for r in range(height):
                    acc[r * count + v] = acc[r * count + v] + emit.splat(x[row + r, k], lanes) * weight
        for r in range(height):
            for v in range(count):
                self._store(workload, epilogue, (row + r, feature + v * lanes), acc[r * count + v])


def _groups(total: int, size: int) -> list[tuple[int, int]]:
    found = [(i, size) for i in range(0, total - size + 1, size)]
    done = len(found) * size
    return [*found, (done, total - done)] if done < total else found


@register
class FewRowsSparse(FewRows):
    """R filters that share taps; each tap is one input value, splatted over the R lanes of its weights.

    There is no gather: an index, an input value and R weights are three loads, which a core starts in one or two
    cycles. ``U`` taps at a time have accumulators of their own, so that no sum waits for the one before it.
    """

    name = "few-rows-taps"
    format = "tap-list"

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        if workload.density() > 0.7:
            return f"density {workload.density():.2f} is above 0.7: indices cost more than the zeros save"
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
        found = [Candidate(self.name, {"R": r, "U": u}) for r in heights for u in (8, 4)]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        r, u = candidate.parameters["R"], candidate.parameters["U"]
        blocks = workload.filters / r
        taps = workload.density(r) * workload.channels + u / 2
        index = 2 if workload.channels <= 1 << 16 else 4
        stream = blocks * taps * (4 * r + index) / BYTES_PER_CYCLE
        work = blocks * (taps * 1.2 * workload.width + 6 * u * workload.width)
        return max(stream, work) / workload.threads

    def pack(
        self, workload: Workload, candidate: Candidate, weight: Array, layouts: Layouts
    ) -> dict[str, Array]:
        """The tap list with each block's taps padded to a multiple of U by zeros at column 0."""
        r, u = candidate.parameters["R"], candidate.parameters["U"]
        index = TapList(rows=r).encode(weight.reshape(workload.filters, workload.channels)).arrays
        counts = np.diff(index["indptr"])
        padded = -(-counts // u) * u
        start = np.concatenate([[0], np.cumsum(padded)])
        at = np.repeat(start[:-1] - index["indptr"][:-1], counts) + np.arange(len(index["indices"]))
        indices = np.zeros(max(int(start[-1]), 1), _index_type(workload))
        data = np.zeros((len(indices), r), np.float32)
        indices[at], data[at] = index["indices"], index["data"]
        return {"indptr": start.astype(np.int32), "indices": indices, "data": data.reshape(-1)}

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        r, u = candidate.parameters["R"], candidate.parameters["U"]
        blocks = workload.filters // r
        with emit.prim_func(name) as finish:
            x = emit.arg("x", (workload.width, workload.channels))
            indptr = emit.arg("indptr", (blocks + 1,), "int32")
            indices = emit.arg("indices", (None,), _index_type(workload))
            data = emit.arg("data", (None,))
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
                            for j in range(u):
                                tap = first + g * u + j
                                column = T.bind(tirx.Cast("int32", indices[tap]))
                                for k in range(rows):
                                    value = emit.splat(x[row + k, column], r)
                                    acc[k * u + j] = acc[k * u + j] + data[emit.ramp(tap * r, r)] * value
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
