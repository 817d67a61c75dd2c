"""Linear layers of a few rows (a classifier at batch 1): bound by reading the weights, so lanes are output features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.formats import TapList
from sparseflow.kernels import emit
from sparseflow.kernels.workload import Array, Candidate, KernelTemplate, Layouts, Workload, register

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
        T.buffer_store(y, emit.activate(workload.activation, value, lanes), [at[0], where])

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
            T.buffer_store(y, emit.activate(workload.activation, one, 1), [row, f])


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
    """Rows of non-zeros padded to whole vectors; lanes are non-zeros, gathered from the input."""

    name = "few-rows-taps"
    format = "tap-list"

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        if workload.density() > 0.4:
            return f"density {workload.density():.2f} is above 0.4: gathers cost more than the zeros save"
        return super().rejects(workload)

    def candidates(self, workload: Workload) -> list[Candidate]:
        """It has no parameters."""
        return [Candidate(self.name)]

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        kept = workload.filters * (workload.density() * workload.channels + workload.vectors.lanes / 2)
        return workload.width * kept * max(1.3, 8 / BYTES_PER_CYCLE / workload.width) / workload.threads

    def pack(
        self, workload: Workload, candidate: Candidate, weight: Array, layouts: Layouts
    ) -> dict[str, Array]:
        """The tap list with each filter's taps padded to a multiple of the lanes by zeros at column 0."""
        lanes = workload.vectors.lanes
        index = TapList(rows=1).encode(weight.reshape(workload.filters, workload.channels)).arrays
        counts = np.diff(index["indptr"])
        padded = -(-counts // lanes) * lanes
        start = np.concatenate([[0], np.cumsum(padded)])
        at = np.repeat(start[:-1] - index["indptr"][:-1], counts) + np.arange(len(index["indices"]))
        indices = np.zeros(max(int(start[-1]), lanes), np.int32)
        data = np.zeros(len(indices), np.float32)
        indices[at], data[at] = index["indices"], index["data"].reshape(-1)
        return {"indptr": start.astype(np.int32), "indices": indices, "data": data}

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        lanes = workload.vectors.lanes
        with emit.prim_func(name) as finish:
            x = emit.arg("x", (workload.width, workload.channels))
            indptr = emit.arg("indptr", (workload.filters + 1,), "int32")
            indices = emit.arg("indices", (None,), "int32")
            data = emit.arg("data", (None,))
            bias, residual, y = self._arguments(workload)
            with emit.channel_loop(workload.filters, workload.threads) as f, emit.loop(workload.width) as row:
                acc = emit.Accumulators(1, lanes)
                acc[0] = emit.const(0.0, lanes)
                first = T.bind(indptr[f])
                with emit.loop(tirx.floordiv(indptr[f + 1] - first, T.int32(lanes))) as j:
                    at = emit.ramp(first + j * lanes, lanes)
                    acc[0] = acc[0] + data[at] * x[row, indices[at]]
                value = acc.total()
                if bias is not None:
                    value = value + bias[f]
                if residual is not None:
                    value = value + residual[row, f]
                T.buffer_store(y, emit.activate(workload.activation, value, 1), [row, f])
        return finish()
