"""The limits of one core, measured with generated kernels: multiply-adds, and loads from each level of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.tirx.script import builder as T

from sparseflow.core.element_type import UINT8
from sparseflow.core.kernel_speed import GIGA, Limits
from sparseflow.engine.target.machine import cache_bytes, machine_name
from sparseflow.kernels.ir import emit, slots
from sparseflow.kernels.target.base import Target, VectorUnit
from sparseflow.kernels.tuning.selector import time_interleaved

_FMA_STEPS = 20_000
_READ_BYTES = 1 << 21  # of one call from a cache, so that the call itself costs nothing


@dataclass
class Probe:
    """A kernel that does a known amount of work: FLOPs or bytes."""

    module: Any
    name: str
    arguments: list[Any]
    work: float
    device: Any

    def seconds(self, number: int) -> float:
        """Mean time of ``number`` calls in a row."""
        timer = self.module.mod.time_evaluator(self.name, self.device, number=number, repeat=1)
        return float(timer(*self.arguments).mean)


def fma_probe(target: Target) -> Probe:
    """As many independent chains of multiply-adds as the registers hold; nothing is loaded in the loop."""
    unit = target.vectors
    lanes, chains = unit.lanes, min(unit.accumulators, 16 * unit.per_cycle)
    with emit.prim_func("fma") as finish:
        x = emit.arg("x", (2 * lanes,))
        y = emit.arg("y", (chains * lanes,))
        acc = emit.Accumulators(chains, lanes)
        for i in range(chains):
            acc[i] = x[emit.ramp(0, lanes)]
        factor, add = T.bind(x[emit.ramp(0, lanes)]), T.bind(x[emit.ramp(lanes, lanes)])
        with emit.loop(_FMA_STEPS):
            for i in range(chains):
                acc[i] = acc[i] * factor + add
        for i in range(chains):
            T.buffer_store(y, acc[i], [emit.ramp(i * lanes, lanes)])
    values = np.concatenate([np.full(lanes, 0.5), np.full(lanes, 0.25)]).astype(np.float32)
    flops = 2.0 * _FMA_STEPS * chains * lanes
    return _probe(target, "fma", finish(), [values, np.zeros(chains * lanes, np.float32)], flops)


def dot_probe(target: Target) -> Probe:
    """The same of products of four bytes each, added up in 32 bits: `slots.dot`."""
    unit = target.vectors
    lanes, chains = unit.lanes, min(unit.accumulators, 16 * unit.per_cycle)
    code = slots.helpers(lanes, UINT8, features=target.instruction_sets)
    with emit.prim_func("dot", code) as finish:
        x = emit.arg("x", (2 * lanes,), "int32")
        y = emit.arg("y", (chains * lanes,), "int32")
        acc = emit.Accumulators(chains, lanes, "int32")
        map_, weight = T.bind(x[emit.ramp(0, lanes)]), T.bind(x[emit.ramp(lanes, lanes)])
        for i in range(chains):
            acc[i] = emit.splat(tirx.const(i, "int32"), lanes)
        with emit.loop(_FMA_STEPS):
            for i in range(chains):
                acc[i] = slots.dot(UINT8, acc[i], map_, weight, lanes)
        for i in range(chains):
            T.buffer_store(y, acc[i], [emit.ramp(i * lanes, lanes)])
    values = np.full(2 * lanes, 0x01020304, np.int32)
    work = 2.0 * UINT8.per_slot * _FMA_STEPS * chains * lanes
    return _probe(target, "dot", finish(), [values, np.zeros(chains * lanes, np.int32)], work)


def read_probe(target: Target, nbytes: int) -> Probe:
    """Sums a buffer of about ``nbytes`` vector by vector, again and again."""
    unit = target.vectors
    lanes, sums = unit.lanes, _sums(unit)
    steps = max(1, nbytes // (unit.bits // 8 * sums))
    passes = max(1, _READ_BYTES // (steps * unit.bits // 8 * sums))
    with emit.prim_func("read") as finish:
        x = emit.arg("x", (steps * sums * lanes,))
        y = emit.arg("y", (sums * lanes,))
        acc = emit.Accumulators(sums, lanes)
        for i in range(sums):
            acc[i] = emit.const(0.0, lanes)
        with emit.loop(passes), emit.loop(steps) as step:
            for i in range(sums):
                acc[i] = acc[i] + x[emit.ramp((step * sums + i) * lanes, lanes)]
        for i in range(sums):
            T.buffer_store(y, acc[i], [emit.ramp(i * lanes, lanes)])
    data = np.ones(steps * sums * lanes, np.float32)
    work = float(passes * steps * sums * unit.bits // 8)
    return _probe(target, "read", finish(), [data, np.zeros(sums * lanes, np.float32)], work)


def measure_limits(target: Target) -> Limits:
    """The limits of one core: half of each cache is read, and four times the last one for DRAM (at most 256 MB)."""
    sizes = cache_bytes(target.caches)
    reads = [size // 2 for size in sizes] + [min(4 * sizes[-1], 256 << 20)]
    probes = [fma_probe(target), *(read_probe(target, n) for n in reads)]
    times = time_interleaved(probes)
    fma, l1, l2, l3, dram = (p.work / t * GIGA for p, t in zip(probes, times, strict=True))
    return Limits(machine_name(), fma, l1, l2, l3, dram, sizes)


def _sums(unit: VectorUnit) -> int:
    return 8 if unit.accumulators >= 16 else 6


def _probe(target: Target, name: str, kernel: Any, arrays: list[np.ndarray[Any, Any]], work: float) -> Probe:
    tensors = []
    for array in arrays:
        tensors.append(tvm.runtime.empty(array.shape, str(array.dtype)))
        tensors[-1].copyfrom(array)
    module = tvm.compile(tvm.IRModule({name: kernel}), target=target.tvm)
    return Probe(module, name, tensors, work, target.device)
