"""The pass that writes operators as others which schedule well on a CPU.

========================== ==========================================================================
attention (B, S, H, D)     permute, matmul, softmax, matmul; the scale meets the queries, which are smaller
matmul · scalar            the scalar meets the smaller operand, where it joins the loops that make it
========================== ==========================================================================
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from sparseflow.kernels.template import computed
from sparseflow.ops.expressions import op_name, scalar

ATTENTION = ("relax.nn.attention", "relax.nn.attention_bias")


@tvm.transform.module_pass(opt_level=0, name="Decompose")
class Decompose:
    """Rewrites attention and scaled products; all else is kept."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """A new module with the same results to rounding."""
        done = {}
        for name, func in mod.functions_items():
            rewritten = func
            if isinstance(func, relax.Function):
                rewritten = _Rewrite(mod, _uses(func)).visit_expr(func)
                rewritten = relax.analysis.remove_all_unused(rewritten)
            done[name] = rewritten
        return tvm.IRModule(done, attrs=mod.attrs, global_infos=mod.global_infos)


@mutator
class _Rewrite(PyExprMutator):
    """One function's rewriting; each method gives ``None`` for what it leaves as it is."""

    def __init__(self, mod: tvm.IRModule, uses: dict[Any, int]) -> None:
        super().__init__(mod)
        self._uses = uses

    def visit_call_(self, call: Any) -> Any:
        shared = any(self._uses.get(a, 0) > 1 for a in call.args)
        call = super().visit_call_(call)
        name = op_name(call)
        done = None
        if name in ATTENTION:
            done = self._attention(call)
        elif name in ("relax.multiply", "relax.divide") and not shared:
            done = self._scaled(call, name)
        return call if done is None else done

    def _attention(self, call: Any) -> Any:
        """softmax(Q Kᵀ · scale + bias) V of (B, S, H, D) operands."""
        sizes = [s for s in map(_sizes, call.args) if s is not None]
        if call.attrs.window_size is not None or len(sizes) < len(call.args):
            return None
        emit = self.builder_.emit
        query, key, value = call.args[:3]
        tokens, keys = sizes[0][1], sizes[1][1]
        scale = 1.0 / math.sqrt(sizes[0][3]) if call.attrs.scale is None else float(call.attrs.scale)
        dtype = str(query.ty.dtype)
        query = emit(relax.op.multiply(query, relax.const(scale, dtype)))
        query = emit(relax.op.permute_dims(query, [0, 2, 1, 3]))
        key = emit(relax.op.permute_dims(key, [0, 2, 3, 1]))
        value = emit(relax.op.permute_dims(value, [0, 2, 1, 3]))
        scores = emit(relax.op.matmul(query, key))
        if len(call.args) > 3:
            scores = emit(relax.op.add(scores, call.args[3]))
        if call.attrs.causal_mask is not None:
            offset = abs(tokens - keys) if call.attrs.causal_mask == "BottomRight" else 0
            seen = np.tri(tokens, keys, offset, dtype=bool)
            mask = np.where(seen, 0.0, np.finfo(dtype).min / 2).astype(dtype)
            scores = emit(relax.op.add(scores, relax.const(mask, dtype)))
        mixed = emit(relax.op.matmul(emit(relax.op.nn.softmax(scores, axis=-1)), value))
        return relax.op.permute_dims(mixed, [0, 2, 1, 3])

    def _scaled(self, call: Any, name: str) -> Any:
        """``matmul(a, b) * c`` with the scalar on the smaller of two computed operands."""
        product, factor = call.args
        if name == "relax.multiply" and isinstance(product, tvm.ir.GenericConst):
            product, factor = factor, product
        number = scalar(factor)
        made = self.lookup_binding(product) if isinstance(product, tvm.ir.Var) else None
        if number is None or number == 0.0 or made is None or op_name(made) != "relax.matmul":
            return None
        operands = list(made.args)
        count = [math.prod(s) for s in map(_sizes, (*operands, product)) if s is not None]
        if len(count) < 3 or any(isinstance(a, tvm.ir.GenericConst) for a in operands):
            return None
        side = 0 if count[0] <= count[1] else 1
        if count[side] >= count[2] or computed(product.ty.dtype) is None:
            return None
        value = number if name == "relax.multiply" else 1.0 / number
        scaled = relax.op.multiply(operands[side], relax.const(value, str(product.ty.dtype)))
        operands[side] = self.builder_.emit(scaled)
        return relax.op.matmul(*operands, out_dtype=made.attrs.out_dtype)


def _uses(func: relax.Function) -> dict[Any, int]:
    """How often each variable is an operand or a result."""
    count: dict[Any, int] = {}

    def visit(node: Any) -> None:
        parts = [*getattr(node, "args", ()), *getattr(node, "fields", ())]
        if isinstance(node, relax.SeqExpr):
            parts.append(node.body)
        for part in parts:
            if isinstance(part, tvm.ir.Var):
                count[part] = count.get(part, 0) + 1

    relax.analysis.post_order_visit(func, visit)
    return count


def _sizes(expr: Any) -> tuple[int, ...] | None:
    """A tensor's shape if all of it is known."""
    shape = getattr(expr.ty, "shape", None)
    if shape is None or not all(isinstance(d, tvm.tirx.IntImm) for d in shape):
        return None
    return tuple(int(d) for d in shape)
