"""Layers whose products are made in a narrower type: their maps and weights, where a kernel for it takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax

from sparseflow.core.element_type import FLOAT32, ElementType
from sparseflow.errors import CompileError, ElementTypeError
from sparseflow.kernels.template import TEMPLATES
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import Array
from sparseflow.passes.graph import Rebuild
from sparseflow.passes.ops import LayerAttrs, constant, is_layer, layer_call, weight_of

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="sparseflow.Precision")
class Precision:
    """Every layer that a kernel computes in ``element`` gets weights rounded to it and maps stored in it.

    The other layers stay in float32, and so does what lies between them; where neighbours differ, lowering converts.

    Parameters
    ----------
    element : ElementType
    """

    def __init__(self, element: ElementType) -> None:
        self.element = element

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class."""

        def visit(rebuild: Rebuild, _var: Expr, value: Expr) -> Any:
            if not is_layer(value):
                return None
            attrs = LayerAttrs.of(value)
            if attrs.workload.quantised:
                return None
            weight = self._rounded(attrs.name, weight_of(value))
            workload = replace(attrs.workload, maps=self.element, result=self.element, weights=self.element)
            workload = workload.with_zeros_of(weight.reshape(workload.weight_shape))
            if all(t.refusal(workload) is not None for t in TEMPLATES.values()):
                return None
            x, bias, residual = (rebuild.old(value.args[i]) for i in (0, 2, 3))
            named = relax.Tuple([constant(weight, attrs.name)])
            return layer_call(attrs.with_(workload=workload), x, named, bias, residual)

        return Rebuild(mod).run(visit)

    def _rounded(self, name: str, weight: Array) -> Array:
        try:
            return self.element.rounded(weight)
        except ElementTypeError as error:
            raise CompileError(f"layer {name}: {error}") from error


@dataclass(frozen=True)
class RealLayer:
    """A layer in float32: its attributes, its weight, and its bias or none."""

    attrs: LayerAttrs
    weight: LayerWeight
    bias: list[Array]


def real_layer(attrs: LayerAttrs, weight: LayerWeight, bias: Expr) -> RealLayer:
    """A layer on maps of another type as one in float32, with the same weights: levels times their step."""
    given = [field.value.numpy() for field in bias.fields]
    if attrs.workload.quantised:
        given, step = given[:1], given[1]
        weight = LayerWeight(weight.dense * step[:, None, None, None], weight.shape)
    workload = replace(attrs.workload, maps=FLOAT32, result=FLOAT32, weights=FLOAT32)
    attrs = attrs.with_(workload=workload.with_zeros_of(weight.dense), format="dense", ranges="")
    return RealLayer(attrs, weight, given)
