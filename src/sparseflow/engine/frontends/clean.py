"""What the frontends give → clean high-level operators, the same whichever format they came from.

After `clean` a linear layer is ``matmul(x, permute_dims(W))`` with a named (out, in) constant, a global
average pool is ``mean`` over the last two axes, activations are one operator where Relax has one
(`Activation.replaced`); what changes nothing is gone, and everything that depends on constants alone is a constant,
the weights excepted.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from sparseflow.engine.frontends.common import address
from sparseflow.ops.activations import replacement
from sparseflow.ops.expressions import op_name
from sparseflow.passes.levels import LEVELS
from sparseflow.passes.ops import constant, constant_name

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
        if name == "relax.nn.adaptive_avg_pool2d" and (static_shape(call) or ())[-2:] == (1, 1):
            return relax.op.mean(call.args[0], axis=[2, 3], keepdims=True)
        if name == "relax.matmul" and isinstance(call.args[1], tvm.ir.GenericConst):
            return self._transposed_weight(call)
        found = replacement(call, self._value)
        return call if found is None else found

    def _value(self, expr: Any) -> Any:
        """What a variable is bound to, through markers of levels."""
        bound = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        if bound is None:
            return expr
        return self._value(bound.args[0]) if op_name(bound) == LEVELS else bound

    def _transposed_weight(self, call: Any) -> Any:
        weight = call.args[1]
        if len(weight.ty.shape) != 2:
            return call
        turned = constant(weight.value.numpy().T, constant_name(weight))
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
            key = address(constant)
            if key not in seen:
                seen[key] = relax.Var(f"weight{len(seen)}", constant.ty)
                weights[seen[key]] = constant
            args = [seen[key] if i == position else arg for i, arg in enumerate(call.args)]
            return tvm.ir.Call(call.op, args, call.attrs, call.ty_args, ret_ty=call.ty)

    main = Lift(mod).visit_expr(mod["main"])
    params = [*main.params, *weights]
    lifted = relax.Function(params, main.body, main.ret_ty, main.is_pure, main.attrs)
    return tvm.IRModule({"main": lifted}), weights
