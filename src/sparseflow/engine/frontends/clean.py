"""What the frontends give → clean high-level operators, the same whichever format they came from.

After `clean` a linear layer is ``matmul(x, permute_dims(W))`` with a named (out, in) constant, a global
average pool is ``mean`` over the last two axes, ReLU6 is ``clip``, ``x·sigmoid(x)`` is ``silu``, the error
function's product is ``gelu``; what changes nothing is gone, and everything that depends on constants alone
is a constant, the weights excepted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparseflow.engine.frontends.constants import constant_name, named_constant

_SAME_IF_SAME_SHAPE = ("relax.reshape", "relax.broadcast_to", "relax.nn.adaptive_avg_pool2d", "relax.flatten")
_WEIGHT_OPERAND = {
    "relax.nn.conv1d": 1, "relax.nn.conv2d": 1, "relax.nn.conv3d": 1, "relax.nn.conv2d_transpose": 1,
    "relax.matmul": 1, "relax.permute_dims": 0, "relax.take": 0,
}  # fmt: skip


def clean(mod: Any) -> Any:
    """A new module whose ``main`` computes the same, in the forms that this file's docstring names."""
    mod = relax.transform.CanonicalizeBindings()(mod)
    mod = _rewritten(mod, _Simplify)
    lifted, weights = _lift_weights(mod)
    lifted = relax.transform.FoldConstant()(lifted)
    main = lifted["main"].bind_params(weights) if weights else lifted["main"]
    mod = tvm.IRModule({"main": main})
    mod = relax.transform.CanonicalizeBindings()(mod)
    return relax.transform.DeadCodeElimination()(mod)


def static_shape(expr: Any) -> tuple[int, ...] | None:
    """The shape of an expression's type; None if it is not a tensor of known sizes."""
    shape = getattr(expr.ty, "shape", None)
    if shape is None or not isinstance(shape, relax.ShapeExpr):
        return None
    values = [getattr(v, "value", v) for v in shape.values]
    return tuple(int(v) for v in values) if all(isinstance(v, int) for v in values) else None


def _rewritten(mod: Any, mutator: Any) -> Any:
    out = tvm.IRModule(mod.functions)
    out["main"] = mutator(out).visit_expr(mod["main"])
    return out


def op_name(call: Any) -> str:
    """The operator's name of a call (``relax.nn.conv2d``), or ``""``."""
    return str(call.op.name) if isinstance(getattr(call, "op", None), tvm.ir.Op) else ""


def _scalar(expr: Any) -> float | None:
    """The value of a constant of one element, else None."""
    if not isinstance(expr, tvm.ir.GenericConst) or expr.value.numpy().size != 1:
        return None
    return float(expr.value.numpy().reshape(()))


@relax.expr_functor.mutator
class _Simplify(relax.PyExprMutator):
    """Drops what changes nothing and gives each layer its one form."""

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        name = op_name(call)
        if name in _SAME_IF_SAME_SHAPE:
            shape = static_shape(call)
            if shape is not None and shape == static_shape(call.args[0]):
                return call.args[0]
        if name == "relax.astype" and call.ty.dtype == call.args[0].ty.dtype:
            return call.args[0]
        if name == "relax.take" and call.attrs.mode == "fast":  # which reads out of bounds for a wrong index
            return relax.op.take(*call.args, axis=call.attrs.axis, mode="clip")
        if name == "relax.nn.relu6":
            return relax.op.clip(call.args[0], 0.0, 6.0)
        if name == "relax.nn.adaptive_avg_pool2d" and (static_shape(call) or ())[-2:] == (1, 1):
            return relax.op.mean(call.args[0], axis=[2, 3], keepdims=True)
        if name == "relax.matmul" and isinstance(call.args[1], tvm.ir.GenericConst):
            return self._transposed_weight(call)
        if name == "relax.multiply":
            found = self._silu(call)
            found = self._gelu(call) if found is None else found
            return call if found is None else found
        return call

    def _silu(self, call: Any) -> Any:
        """``silu(x)`` if the product is ``x · sigmoid(x)``, else None."""
        for x, gate in (call.args, list(call.args)[::-1]):
            bound = self._value(gate)
            if op_name(bound) == "relax.sigmoid" and bound.args[0].same_as(x):
                return relax.op.nn.silu(x)
        return None

    def _gelu(self, call: Any) -> Any:
        """``gelu(x)`` if the product is ``x · 0.5 · (1 + erf(x / √2))`` in any order, else None."""
        x = next((x for f in self._factors(call, None) if (x := self._erf_operand(f)) is not None), None)
        if x is None:
            return None
        factors = self._factors(call, x)
        rest = [f for f in factors if _scalar(f) is None]
        scale = math.prod(c for f in factors if (c := _scalar(f)) is not None)
        exact = len(rest) == 2 and any(f.same_as(x) for f in rest)
        return relax.op.nn.gelu(x) if exact and math.isclose(scale, 0.5, rel_tol=1e-4) else None

    def _erf_operand(self, gate: Any) -> Any:
        """The ``x`` of ``1 + erf(x / √2)``, or None."""
        gate = self._value(gate)
        if op_name(gate) != "relax.add" or not any(_scalar(a) == 1.0 for a in gate.args):
            return None
        erf = next((v for a in gate.args if op_name(v := self._value(a)) == "relax.erf"), None)
        inner = self._value(erf.args[0]) if erf is not None else None
        if inner is None or op_name(inner) not in ("relax.divide", "relax.multiply"):
            return None
        wanted = math.sqrt(2.0) if op_name(inner) == "relax.divide" else math.sqrt(0.5)
        return inner.args[0] if math.isclose(_scalar(inner.args[1]) or 0.0, wanted, rel_tol=1e-4) else None

    def _value(self, expr: Any) -> Any:
        bound = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        return expr if bound is None else bound

    def _factors(self, expr: Any, stop: Any) -> list[Any]:
        """The factors of nested products, those inside of ``stop`` left together."""
        value = self._value(expr)
        if op_name(value) != "relax.multiply" or (stop is not None and expr.same_as(stop)):
            return [expr]
        return [f for arg in value.args for f in self._factors(arg, stop)]

    def _transposed_weight(self, call: Any) -> Any:
        weight = call.args[1]
        if len(weight.ty.shape) != 2:
            return call
        turned = named_constant(weight.value.numpy().T, constant_name(weight))
        operand = self.builder_.emit(relax.op.permute_dims(turned))
        return relax.op.matmul(call.args[0], operand, out_dtype="float32")


def _lift_weights(mod: Any) -> tuple[Any, dict[Any, Any]]:
    """The module with its layers' weights as parameters, safe from folding, and their values."""
    weights: dict[Any, Any] = {}
    seen: dict[int, Any] = {}

    @relax.expr_functor.mutator
    class Lift(relax.PyExprMutator):
        def visit_call_(self, call: Any) -> Any:
            call = super().visit_call_(call)
            position = _WEIGHT_OPERAND.get(op_name(call))
            if position is None or not isinstance(call.args[position], tvm.ir.GenericConst):
                return call
            if op_name(call) == "relax.take" and isinstance(call.args[1], tvm.ir.GenericConst):
                return call
            constant = call.args[position]
            key = int(np.from_dlpack(constant.value).ctypes.data)
            if key not in seen:
                seen[key] = relax.Var(f"weight{len(seen)}", constant.ty)
                weights[seen[key]] = constant
            args = [seen[key] if i == position else arg for i, arg in enumerate(call.args)]
            return tvm.ir.Call(call.op, args, call.attrs, call.ty_args, ret_ty=call.ty)

    main = Lift(mod).visit_expr(mod["main"])
    params = [*main.params, *weights]
    lifted = relax.Function(params, main.body, main.ret_ty, main.is_pure, main.attrs)
    return tvm.IRModule({"main": lifted}), weights
