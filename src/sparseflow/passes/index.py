"""Phase 3: every weight with zeros becomes its index, a tuple of tensors in the IR.

What was found is noted beside it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import tvm
from tvm import relax

from sparseflow.core.detect import detect
from sparseflow.core.formats import TapList
from sparseflow.kernels.weight import LayerWeight
from sparseflow.kernels.workload import DENSEST_SHARED
from sparseflow.passes.graph import Rebuild
from sparseflow.passes.ops import INDEX_ARRAYS, LayerAttrs, constant, is_layer, layer_call, weight_of
from sparseflow.passes.weights import Weights

Expr = Any


@tvm.transform.module_pass(opt_level=0, name="sparseflow.Index")
class Index:
    """Detects each weight's structure in its zeros and attaches the kernel index.

    Before: ``sparseflow.conv2d(x, (w,), …)``. After: ``sparseflow.conv2d(x, (indptr, indices, data), …)`` with format
    ``tap-list`` where the weight has enough zeros; the structure stands in the attribute ``detection``.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        self.weights = weights or Weights()

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class."""
        return Rebuild(mod).run(partial(_visit, self.weights))


def _visit(weights: Weights, rebuild: Rebuild, _var: Expr, value: Expr) -> Any:
    if not is_layer(value):
        return None
    attrs = LayerAttrs.of(value)
    weight = weight_of(value)
    live = weight[: attrs.workload.live or None]  # what a residual passes has no structure to find
    found = detect(live)
    # what is left without dead filters and channels says more, unless they are all there is to find
    structure = (found.live and found.live.structure) or found.structure
    attrs = attrs.with_(
        detection={
            "structure": "Dense" if structure is None else structure.brief,
            "density": float((live != 0).mean()),
        }
    )
    tensors, kept = value.args[1], LayerWeight(weight, attrs.workload.weight_shape)
    if attrs.detection["density"] <= DENSEST_SHARED:
        attrs = attrs.with_(format=TapList.name)
        index = kept.index(TapList())
        tensors = relax.Tuple([constant(index.arrays[a], f"{attrs.name}.{a}") for a in INDEX_ARRAYS])
    x, bias, residual = (rebuild.old(value.args[i]) for i in (0, 2, 3))
    call = layer_call(attrs, x, tensors, bias, residual)
    weights.put(call, kept)
    return call
