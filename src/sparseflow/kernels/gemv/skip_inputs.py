"""Linear layers of a few rows whose inputs are mostly zero: the weights of a zero input are not read.

Such a layer is bound by memory, so its time follows the density of the input. The non-zeros of a row are listed once,
without a branch; then the weights of U listed inputs at a time, each one long run of memory, are added to all outputs.
A row without zeros costs the list more than the dense kernel, a few percent, so it needs no dense copy beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import ElementType
from sparseflow.kernels.gemv.few_rows import BYTES_PER_CYCLE, FewRows
from sparseflow.kernels.ir import emit
from sparseflow.kernels.ir.elements import widened
from sparseflow.kernels.template import Candidate, register
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array, Layouts, Workload

Expr = Any
DENSEST_INPUT = 0.8
MOST_ROWS = 4
LIST_CYCLES = 2.0  # for each input, to put it into the list or not


@register
class FewRowsSkip(FewRows):
    """Dense weights as (in, out); only the rows of inputs that are not zero are read."""

    name = "few-rows-skip"
    format = "dense"
    sparse_input = True

    def rejects(self, workload: Workload) -> str | None:
        """See `KernelTemplate.rejects`."""
        if workload.op == "linear" and workload.width > MOST_ROWS:
            return f"{workload.width} rows, more than {MOST_ROWS}: each has zeros of its own, so weights are read again"
        if workload.map_density >= 1.0:
            return "no zeros of its input are known: it holds none, or nothing was calibrated"
        if workload.map_density > DENSEST_INPUT:
            return f"input density {workload.map_density:.2f} is above {DENSEST_INPUT}: too few zeros to skip"
        return super().rejects(workload)

    def candidates(self, workload: Workload) -> list[Candidate]:
        """4, 8 or 16 inputs at a time."""
        most = workload.vectors.registers - 4
        found = [
            c
            for u in (8, 4, 16)
            if u <= most
            for c in self.in_types(workload, Candidate(self.name, {"U": u}))
        ]
        return sorted(found, key=lambda c: self.predict_cycles(workload, c))

    def predict_cycles(self, workload: Workload, candidate: Candidate) -> float:
        """See `KernelTemplate.predict_cycles`."""
        u, lanes = candidate.parameters["U"], workload.vectors.lanes
        read = workload.channels * workload.map_density + u / 2
        stream = workload.filters * read * self.stored(workload, candidate).nbytes / BYTES_PER_CYCLE
        work = workload.filters / lanes * (read * 1.1 + read / u * 2.0)
        shared = max(stream, work) / workload.threads
        return workload.width * (workload.channels * LIST_CYCLES + shared)

    def pack(
        self, workload: Workload, candidate: Candidate, weight: LayerWeight, layouts: Layouts
    ) -> dict[str, Array]:
        """(in, out), the outputs filled up to whole vectors."""
        matrix = weight.dense.reshape(workload.filters, workload.channels)
        spare = _stored(workload) - workload.filters
        rows = np.ascontiguousarray(np.pad(matrix, ((0, spare), (0, 0))).T)
        return {"data": self.stored(workload, candidate).encode(rows).reshape(-1)}

    def build(self, workload: Workload, candidate: Candidate, layouts: Layouts, name: str) -> tirx.PrimFunc:
        """See `KernelTemplate.build`."""
        stored, u = _stored(workload), candidate.parameters["U"]
        with emit.prim_func(name) as finish:
            x = emit.arg("x", (workload.width, workload.channels))
            element = self.stored(workload, candidate)
            data = emit.arg("data", (workload.channels * stored,), element.storage)
            epilogue = self._arguments(workload)
            sums = T.alloc_buffer((stored,), workload.sums.storage)
            starts = T.alloc_buffer((workload.channels + u,), "int32")
            values = T.alloc_buffer((workload.channels + u,), workload.maps.storage)
            with emit.loop(workload.width) as row:
                number = _list_inputs(workload, (x, row), (starts, values), u)
                with emit.share(stored // workload.vectors.lanes, workload.threads) as part:
                    groups = (number + (u - 1)) // u, u
                    _add_rows(workload, element, part, (data, sums, starts, values), groups)
                self._finish_row(workload, epilogue, row, sums)
        return finish()

    def _finish_row(self, workload: Workload, epilogue: tuple[Any, Any, Any], row: Expr, sums: Any) -> None:
        """Bias, residual and activation; the last vector overlaps the one before it if outputs end within it."""
        lanes, filters = workload.vectors.lanes, workload.filters
        with emit.loop(filters // lanes) as v:
            at = v * lanes
            self._store(workload, epilogue, (row, at), sums[emit.ramp(at, lanes)])
        if filters % lanes:
            at = max(0, filters - lanes)
            self._store(workload, epilogue, (row, at), sums[emit.ramp(at, lanes)])


def _stored(workload: Workload) -> int:
    lanes = workload.vectors.lanes
    return -(-workload.filters // lanes) * lanes


def _list_inputs(workload: Workload, source: tuple[Any, Expr], lists: tuple[Any, Any], u: int) -> Expr:
    """Lists a row's non-zeros, first weight and value, with ``u`` zeros behind them; returns their number."""
    (x, row), (starts, values), stored = source, lists, _stored(workload)
    count = T.alloc_buffer((1,), "int32")
    T.buffer_store(count, T.int32(0), [0])
    with emit.loop(workload.channels) as c:
        value, slot = T.bind(x[row, c]), T.bind(count[0])
        T.buffer_store(starts, c * stored, [slot])
        T.buffer_store(values, value, [slot])
        T.buffer_store(count, slot + tirx.Select(value == T.float32(0), T.int32(0), T.int32(1)), [0])
    number = T.bind(count[0])
    for i in range(u):
        T.buffer_store(starts, T.int32(0), [number + i])
        T.buffer_store(values, T.float32(0), [number + i])
    return number


def _add_rows(
    workload: Workload,
    element: ElementType,
    part: tuple[Expr, Expr],
    tensors: tuple[Any, Any, Any, Any],
    listed: tuple[Expr, int],
) -> None:
    """Sums the ``listed`` groups of rows of weights over a ``part`` of the output vectors, one group at a time."""
    (first, count), (data, sums, starts, values), (groups, u) = part, tensors, listed
    lanes = workload.vectors.lanes
    with emit.loop(count) as v:
        T.buffer_store(sums, emit.const(0.0, lanes), [emit.ramp((first + v) * lanes, lanes)])
    with emit.loop(groups) as g:
        rows = [T.bind(starts[g * u + i]) for i in range(u)]
        scales = [T.bind(values[g * u + i]) for i in range(u)]
        with emit.loop(count) as v:
            at = T.bind((first + v) * lanes)
            total = sums[emit.ramp(at, lanes)]
            for start, scale in zip(rows, scales, strict=True):
                weight = widened(element, data[emit.ramp(start + at, lanes)], lanes)
                total = total + emit.splat(scale, lanes) * weight
            T.buffer_store(sums, total, [emit.ramp(at, lanes)])
