"""Max pooling moved behind what commutes with it, so that batch norm and activation join the convolution before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparseflow.ops.activations import activation_of
from sparseflow.ops.expressions import is_constant, op_name
from sparseflow.passes.graph import Graph, Rebuild
from sparseflow.passes.levels import LEVELS

Expr = Any


@dataclass(frozen=True)
class _Pooled:
    """A max pool of the new module: what it reads, and its call."""

    source: Expr
    call: Expr


@tvm.transform.module_pass(opt_level=0, name="sparseflow.PoolLast")
class PoolLast:
    """``conv2d → max_pool → batch_norm → relu`` becomes ``conv2d → batch_norm → relu → max_pool``; so do markers.

    This holds where the batch norm scales no channel by a negative number and the activation never falls. Both are then
    part of the convolution's epilogue; applied to all positions that pooling drops, they still cost less than a pass of
    their own over the pooled map.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class."""
        graph = Graph(mod)
        pooled: dict[Expr, _Pooled] = {}

        def visit(rebuild: Rebuild, var: Expr, value: Expr) -> Any:
            if op_name(value) == "relax.nn.max_pool2d" and _follows_conv(graph, value.args[0]):
                pooled[var] = _Pooled(rebuild.old(value.args[0]), value)
                return None
            chain = _commuting(graph, pooled, var)
            if chain is None:
                return None
            start, steps = chain
            pool, replaced = pooled[start], dict(rebuild.env)
            rebuild.env[start] = pool.source
            for step in steps:
                rebuild.env[step] = rebuild.emit(rebuild.old(graph.definition[step]))
            inner = rebuild.env[var]
            rebuild.env.clear()
            rebuild.env.update(replaced)
            pooled[var] = _Pooled(inner, pool.call)
            return relax.Call(pool.call.op, [inner], pool.call.attrs)

        return relax.transform.DeadCodeElimination()(Rebuild(mod).run(visit))


def _follows_conv(graph: Graph, x: Expr) -> bool:
    """Whether ``x`` is a convolution's result, a bias added or not, that nothing else reads."""
    value = graph.value(x)
    if graph.uses[x] != 1:
        return False
    if op_name(value) == LEVELS:
        return _follows_conv(graph, value.args[0])
    if op_name(value) == "relax.add" and any(is_constant(graph.value(a)) for a in value.args):
        (before,) = [a for a in value.args if not is_constant(graph.value(a))] or [None]
        return before is not None and _follows_conv(graph, before)
    return op_name(value) == "relax.nn.conv2d"


def _commuting(graph: Graph, pooled: dict[Expr, _Pooled], var: Expr) -> tuple[Expr, list[Expr]] | None:
    """The pooled tensor that ``var`` is made of and the bindings on the way, if pooling may come after them."""
    value = graph.definition[var]
    if isinstance(value, relax.TupleGetItem) and value.index == 0:
        norm = graph.value(value.tuple_value)
        start = norm.args[0] if op_name(norm) == "relax.nn.batch_norm" else None
        fits = start in pooled and graph.uses[start] == 1 and _rises(graph, norm)
        return (start, [value.tuple_value, var]) if fits else None
    for start in _operands(value):
        if start not in pooled:
            continue
        if op_name(value) == LEVELS and graph.uses[start] == 1:
            return start, [var]
        found = activation_of(graph, start)
        if found is not None and found.result == var and found.activation.monotone:
            return start, [*found.inside[1:], var]
    return None


def _operands(value: Expr) -> list[Expr]:
    return list(value.args) if isinstance(value, relax.Call) else []


def _rises(graph: Graph, norm: Expr) -> bool:
    """Whether a batch norm over channels in inference scales none of them by a negative number."""
    gamma = graph.value(norm.args[1])
    over_channels = int(norm.attrs.axis) == 1 and not bool(norm.attrs.training)
    if not over_channels or not all(is_constant(graph.value(a)) for a in norm.args[1:5]):
        return False
    return not norm.attrs.scale or bool(np.all(gamma.value.numpy() >= 0.0))
