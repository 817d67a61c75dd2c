"""The operators between the layers, timed alone like the layers' candidates, so that a plan says what a call takes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.relax.analysis import has_reshape_pattern

from sparseflow.core.plan import RestTime
from sparseflow.kernels.tuning.selector import Selector, time_interleaved
from sparseflow.ops.expressions import is_constant
from sparseflow.passes.hoist import call_labels, kernel_calls

Expr = Any


@dataclass
class _Kernel:
    """One kernel of a built module with operands of its shapes."""

    library: Any
    name: str
    arguments: list[Any]
    device: Any

    def seconds(self, number: int) -> float:
        """Mean time of ``number`` calls in a row."""
        timer = self.library.time_evaluator(self.name, self.device, number=number, repeat=1)
        return float(timer(*self.arguments).mean)


def rest_times(
    mod: tvm.IRModule, executable: Any, layers: Set[str], selector: Selector
) -> tuple[RestTime, ...]:
    """The kernels that are not of ``layers``, with how often a call runs each and its median seconds.

    Times are kept where the selector keeps its own.

    Parameters
    ----------
    mod : tvm.IRModule
        After all phases, constants in place.
    executable : VMExecutable
        What was built from it.
    layers : set of str
        Names of the layers, as `call_labels` gives them.
    selector : Selector
    """
    examples: dict[str, Expr] = {}
    counts: Counter[str] = Counter()
    for call, (kernel, label) in zip(kernel_calls(mod), call_labels(mod), strict=True):
        if label not in layers and not has_reshape_pattern(mod[kernel]):  # TVM makes views of reshapes
            counts[kernel] += 1
            examples.setdefault(kernel, call)
    if not examples:
        return ()
    code = "".join(mod[name].script() for name in examples)
    key = selector.key_of(f"rest {hashlib.sha256(code.encode()).hexdigest()}")
    found = selector.kept(key)
    if found is None:
        library = executable.mod.imports[0]
        kernels = [
            _Kernel(library, name, _operands(call), selector.target.device) for name, call in examples.items()
        ]
        found = {"times_s": time_interleaved(kernels)}
        selector.keep(key, found)
    return tuple(RestTime(n, counts[n], float(t)) for n, t in zip(examples, found["times_s"], strict=True))


def _operands(call: Expr) -> list[Any]:
    """The constants of a call as they are, operands for its variables, and room for its results."""
    results = call.ty_args[0]
    fields = getattr(results, "fields", None)
    inputs = [a.value if is_constant(a) else _tensor(a.ty) for a in call.args[1].fields]
    return [*inputs, *(_tensor(t) for t in (fields if fields is not None else [results]))]


def _tensor(of: Any) -> Any:
    """Random numbers, or zeros where they may be indices."""
    shape, dtype = tuple(int(n) for n in of.shape.values), str(of.dtype)
    values = np.zeros(shape) if not dtype.startswith("float") else np.random.default_rng(0).random(shape)
    out = tvm.runtime.empty(shape, dtype)
    out.copyfrom(values.astype(dtype))
    return out
