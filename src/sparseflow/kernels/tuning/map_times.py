"""What it costs to carry an index along a map: conversions, operators without weights, layers on dense maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm

from sparseflow.kernels.target.base import Target
from sparseflow.kernels.template import TEMPLATES, Candidate
from sparseflow.kernels.tuning.selector import Selector, time_interleaved, trials
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Workload

BYTES_PER_CYCLE = 4.0  # what a change of layout moves, read and written, when nothing is measured


@dataclass
class MapTimes:
    """Times of single kernels, measured as the selector measures candidates, and kept where it keeps them.

    Parameters
    ----------
    selector : Selector
        Its target, machine and folder; if it does not measure, times are predicted.
    threads : int
    """

    selector: Selector
    threads: int = 1

    def kernel(self, key: str, build: Callable[[str], Any]) -> float:
        """Seconds of the kernel that ``build(name)`` makes, on zeros; ``key`` names it completely."""

        def measured() -> float:
            return time_interleaved([_Alone(self.selector.target, build("kernel"))])[0]

        if not self.selector.measure:
            return _moved(build("kernel")) / BYTES_PER_CYCLE / self.selector.target.clock_hz
        return self._kept(key, measured)

    def layer(self, workload: Workload, candidate: Candidate, weight: LayerWeight, density: float) -> float:
        """Seconds of a layer's kernel on a map of another density than the workload's."""
        dense = replace(workload, map_density=density)
        if not self.selector.measure:
            return (
                TEMPLATES[candidate.template].predict_cycles(dense, candidate) / self.selector.target.clock_hz
            )

        def measured() -> float:
            return time_interleaved(
                trials(self.selector.target, dense, [candidate], weight, self.selector.between)
            )[0]

        return self._kept(dense.key() + candidate.to_json(), measured)

    def _kept(self, key: str, measured: Callable[[], float]) -> float:
        complete = self.selector.key_of(key)
        found = self.selector.kept(complete)
        time_s = float(found["time_s"]) if found is not None else measured()
        if found is None:
            self.selector.keep(complete, {"time_s": time_s})
        return time_s


class _Alone:
    """A kernel with zeros for operands."""

    def __init__(self, target: Target, function: Any) -> None:
        self.module = tvm.compile(tvm.IRModule({"kernel": function}), target=target.tvm)
        self.device = target.device
        self.arguments = [tvm.runtime.tensor(np.zeros(*spec)) for spec in parameters_of(function)]

    def seconds(self, number: int) -> float:
        """Mean time of ``number`` calls in a row."""
        timer = self.module.mod.time_evaluator("kernel", self.device, number=number, repeat=1)
        return float(timer(*self.arguments).mean)


def parameters_of(function: Any) -> list[tuple[tuple[int, ...], str]]:
    """Shape and type of each parameter of a PrimFunc."""
    types = [p.ty for p in function.params]
    return [(tuple(int(n) for n in t.shape), str(t.dtype)) for t in types]


def _moved(function: Any) -> float:
    """Bytes of all parameters."""
    return float(sum(math.prod(s) * np.dtype(d).itemsize for s, d in parameters_of(function)))
