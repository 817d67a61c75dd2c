"""Markers of models that are quantised already: what the levels of a map stand for, read off the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import ir, relax

from sparseflow.core.calibrated_ranges import Range
from sparseflow.ops.activations import single_activation
from sparseflow.ops.expressions import is_constant, op_name
from sparseflow.ops.operator import operator_of
from sparseflow.passes.graph import Graph, Rebuild

Expr = Any

LEVELS = "sparseflow.levels"
_SAME_VALUES = ("relax.reshape", "relax.flatten", "relax.permute_dims", "relax.expand_dims", "relax.squeeze")
_KEEP_SIGN = ("relax.add", "relax.multiply", "relax.divide")
_LEVELS = 255
"""Steps between the first and the last."""


def levels(x: Expr, low: float, high: float) -> relax.Call:
    """``x`` rounded to 256 levels, the first of which stands for ``low`` and the last for ``high``."""
    return relax.Call(ir.Op.get(LEVELS), [x], ir.make_node("ir.DictAttrs", low=low, high=high))


def has_levels(mod: tvm.IRModule) -> bool:
    """Whether the model of an imported module is quantised."""
    return any(op_name(b.value) == LEVELS for block in mod["main"].body.blocks for b in block.bindings)


def read_levels(mod: tvm.IRModule) -> tuple[tvm.IRModule, dict[Expr, Range]]:
    """``mod`` without its markers, and the ranges of its tensors: those marked, and those that follow from them.

    Rounding to levels also cuts off what lies beyond the last, and quantisers drop a ReLU in front of a marker from
    zero on. It is written again where negative numbers may come; a ReLU6 where the last level stands for 6. The
    model's own inputs are taken to lie in their ranges.
    """
    reader = _Reader(mod)
    return Rebuild(mod).run(reader.visit), reader.ranges


class _Reader:
    """What is known of the new module's tensors so far."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self.ranges: dict[Expr, Range] = {}
        self.marked: set[Expr] = set()
        self.non_negative: set[Expr] = set(mod["main"].params)
        self.clamped: dict[Expr, Expr] = {}

    def visit(self, rebuild: Rebuild, var: Expr, value: Expr) -> Expr:
        """The new variable of a binding."""
        new = rebuild.old(value)
        if op_name(value) == LEVELS:
            x, found = new.args[0], Range(float(new.attrs["low"]), float(new.attrs["high"]))
            cuts = found.low >= 0.0 and x not in self.non_negative and not _clamped_later(rebuild.graph, var)
            return self._mark(self._clamp(rebuild, x, found.high) if cuts else x, found)
        made = new if isinstance(new, ir.Var) else rebuild.emit(new)
        if made is not new:
            self._derive(made, new)
        return made

    def _clamp(self, rebuild: Rebuild, x: Expr, high: float) -> Expr:
        if x not in self.clamped:
            six = abs(high - 6.0) < high / _LEVELS
            self.clamped[x] = rebuild.emit(relax.op.clip(x, 0.0, 6.0) if six else relax.op.nn.relu(x))
            self.non_negative.add(self.clamped[x])
        return self.clamped[x]

    def _mark(self, x: Expr, found: Range) -> Expr:
        if x not in self.marked:  # of two in a row the first is nearer to what computes the map
            self.marked.add(x)
            self.ranges[x] = found
        return x

    def _derive(self, var: Expr, value: Expr) -> None:
        """What follows for a result from what is known of the operands."""
        if not isinstance(value, relax.Call) or getattr(var.ty, "shape", None) is None:
            return
        if op_name(value) in _SAME_VALUES:
            (x,) = value.args[:1]
            if x in self.ranges:
                self.ranges[var] = self.ranges[x]
            if x in self.non_negative:
                self.non_negative.add(var)
            return
        if op_name(value) in _KEEP_SIGN and all(self._not_below_zero(a) for a in value.args):
            self.non_negative.add(var)
        found, operator = single_activation(value), operator_of(value)
        if op_name(value) == "relax.nn.softmax" or (found is not None and found[0].non_negative):
            self.non_negative.add(var)
        if operator is None:
            return
        operands = operator.operands(value)
        if operator.non_negative([x in self.non_negative for x in operands]):
            self.non_negative.add(var)
        if operands and all(x in self.ranges for x in operands):
            result = operator.range([(self.ranges[x].low, self.ranges[x].high) for x in operands])
            if result is not None:
                self.ranges[var] = Range(*result)

    def _not_below_zero(self, x: Expr) -> bool:
        return bool(np.all(x.value.numpy() >= 0.0)) if is_constant(x) else x in self.non_negative


def _clamped_later(graph: Graph, var: Expr) -> bool:
    """Whether everything that reads a marker begins at 0 itself."""
    found = [single_activation(graph.definition[user]) for user in graph.consumers.get(var, [])]
    ends = [a is not None and a[0].clamps and a[0].non_negative for a in found]
    return bool(ends) and all(ends) and graph.uses[var] == len(ends)


def _infer(call: relax.Call, _builder: Any) -> Any:
    return call.args[0].ty


ir.register_op_attr(LEVELS, "FPurity", True)
ir.register_op_attr(LEVELS, "FInferType", _infer)
