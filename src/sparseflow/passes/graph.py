"""Reading and rebuilding the one dataflow block of an imported module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, relax

from sparseflow.errors import CompileError, FormatError, StructureError
from sparseflow.ops.expressions import inputs_of

Expr = Any

for _error in (CompileError, FormatError, StructureError):
    tvm_ffi.register_error(
        _error
    )  # a pass runs inside TVM, which would turn an unknown class into RuntimeError


class Graph:
    """``main`` of a module as a list of bindings with their definitions and uses.

    Raises
    ------
    CompileError
        If ``main`` has control flow.
    """

    def __init__(self, mod: tvm.IRModule) -> None:
        self.mod = mod
        self.function = mod["main"]
        body = self.function.body
        if not isinstance(body, relax.SeqExpr) or any(
            not isinstance(b, relax.VarBinding) for block in body.blocks for b in block.bindings
        ):
            raise CompileError(
                "main: control flow or match_cast found; only straight-line models are supported"
            )
        self.bindings = [b for block in body.blocks for b in block.bindings]
        self.output = body.body
        self.definition: dict[Expr, Expr] = {b.var: b.value for b in self.bindings}
        self.uses: Counter[Expr] = Counter()
        self.consumers: dict[Expr, list[Expr]] = {}
        for b in self.bindings:
            for used in inputs_of(b.value):
                self.uses[used] += 1
                self.consumers.setdefault(used, []).append(b.var)
        for used in inputs_of(self.output):
            self.uses[used] += 1

    def value(self, expr: Expr) -> Expr:
        """What a variable is bound to; the expression itself if it is no bound variable."""
        return self.definition.get(expr, expr) if isinstance(expr, ir.Var) else expr

    def only_user(self, var: Expr) -> Expr | None:
        """The one binding that reads ``var``, once; None if there are more, or if it is a result."""
        users = self.consumers.get(var, [])
        return users[0] if len(users) == 1 and self.uses[var] == 1 else None

    def resolve(self, var: Expr) -> Expr:
        """Follows bindings of a variable to another variable."""
        while isinstance(self.value(var), ir.Var) and self.value(var) is not var:
            following = self.definition.get(var)
            if following is None:
                return var
            var = following
        return var


class Rebuild:
    """Builds a new ``main`` binding by binding; the input module is not changed.

    ``visit(rebuild, var, value)`` returns the new value for a binding, None to copy it, or `DROP` to leave it out.
    """

    DROP = object()

    def __init__(self, mod: tvm.IRModule) -> None:
        self.graph = Graph(mod)
        self.builder = relax.BlockBuilder(
            tvm.IRModule({k: f for k, f in mod.functions.items() if k.name_hint != "main"})
        )
        self.env: dict[Expr, Expr] = {}

    def run(self, visit: Callable[[Rebuild, Expr, Expr], Any]) -> tvm.IRModule:
        """The rebuilt module."""
        function = self.graph.function
        with self.builder.function("main", list(function.params), attrs=dict(function.attrs or {})):
            with self.builder.dataflow():
                for binding in self.graph.bindings:
                    new = visit(self, binding.var, binding.value)
                    if new is Rebuild.DROP:
                        continue
                    value = self.old(binding.value) if new is None else new
                    self.env[binding.var] = value if isinstance(value, ir.Var) else self.emit(value)
                out = self.builder.emit_output(self.old(self.graph.output))
            self.builder.emit_func_output(out)
        mod = self.builder.finalize()
        return mod.with_attrs(dict(self.graph.mod.attrs)) if self.graph.mod.attrs else mod

    def emit(self, value: Expr) -> Expr:
        """Binds ``value`` (in new variables) and returns its variable."""
        return self.builder.emit(value)

    def old(self, expr: Expr) -> Expr:
        """An expression of the old function in the new one's variables."""
        if isinstance(expr, ir.Var):
            return self.env.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.old(item) for item in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self.old(expr.tuple_value), expr.index)
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, [self.old(a) for a in expr.args], expr.attrs, expr.ty_args)
        return expr
