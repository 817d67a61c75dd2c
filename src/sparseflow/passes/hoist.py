"""Constants out of the code: they become parameters of ``main``, so that weights are data beside the machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparseflow.ops.expressions import is_constant, op_name
from sparseflow.passes.graph import Graph
from sparseflow.passes.ops import constant_name

Expr = Any
SMALL = 16  # elements; smaller constants may stay in the code


def hoist_constants(mod: tvm.IRModule) -> tuple[tvm.IRModule, dict[str, Any]]:
    """A module whose ``main`` takes its large constants as further parameters, and their tensors by parameter name."""
    found: dict[str, Any] = {}
    variables: list[Any] = []
    known: dict[Any, Any] = {}

    def lift(expr: Expr) -> Expr:
        if is_constant(expr):
            if int(np.prod(expr.value.shape)) <= SMALL:
                return expr
            if expr not in known:
                label = constant_name(expr) or "constant"
                name = f"{label.replace('.', '_')}__{len(found)}"
                known[expr] = relax.Var(name, expr.ty)
                variables.append(known[expr])
                found[name] = expr.value
            return known[expr]
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([lift(item) for item in expr.fields])
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, [lift(a) for a in expr.args], expr.attrs, expr.ty_args)
        return expr

    graph = Graph(mod)
    bindings = [relax.VarBinding(b.var, lift(b.value)) for b in graph.bindings]
    function = graph.function
    blocks = [relax.DataflowBlock(bindings)] if bindings else []
    main = relax.Function(
        [*function.params, *variables],
        relax.SeqExpr(blocks, lift(graph.output)),
        function.ret_ty,
        function.is_pure,
        function.attrs,
    )
    main = main.with_attr("num_input", len(function.params)).with_attr("global_symbol", "main")
    out = tvm.IRModule({g: f for g, f in mod.functions_items() if g.name_hint != "main"}, attrs=mod.attrs)
    out["main"] = main
    return relax.transform.Normalize()(out), found


def kernel_calls(mod: tvm.IRModule) -> list[Expr]:
    """The calls of kernels in ``main``, in order."""
    return [b.value for b in Graph(mod).bindings if op_name(b.value) == "relax.call_tir"]


def call_labels(mod: tvm.IRModule) -> list[tuple[str, str]]:
    """(kernel, what it computes) of each call in ``main`` in order; a layer's name stands in its constants' names."""
    labels = []
    for call in kernel_calls(mod):
        kernel = str(call.args[0].name_hint)
        names = [constant_name(a) for a in call.args[1].fields if is_constant(a)]
        data = [n.removesuffix(".data") for n in names if n.endswith(".data")]
        labels.append((kernel, data[0] if data else kernel))
    return labels
