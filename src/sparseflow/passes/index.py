"""Phase 3: every weight with zeros becomes its index, a tuple of tensors in the IR.

What was found is noted beside it.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from sparseflow.core.detect import detect
from sparseflow.core.formats import TapList
from sparseflow.kernels.workload import Array
from sparseflow.passes.graph import Rebuild
from sparseflow.passes.ops import INDEX_ARRAYS, LayerAttrs, constant, is_layer, layer_call, weight_of

Expr = Any
DENSE_ABOVE = 0.9  # no kernel takes a sparse weight above this density


@tvm.transform.module_pass(opt_level=0, name="sparseflow.Index")
class Index:
    """Detects each weight's structure in its zeros and attaches the kernel index.

    Before: ``sparseflow.conv2d(x, (w,), …)``. After: ``sparseflow.conv2d(x, (indptr, indices, data), …)`` with format
    ``tap-list`` where the weight has enough zeros; the structure stands in the attribute ``detection``.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """See the class."""
        return Rebuild(mod).run(_visit)


def _visit(rebuild: Rebuild, _var: Expr, value: Expr) -> Any:
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
    tensors = value.args[1]
    if attrs.detection["density"] <= DENSE_ABOVE:
        attrs = attrs.with_(format="tap-list")
        tensors = relax.Tuple(index_constants(weight, attrs.name))
    x, bias, residual = (rebuild.old(value.args[i]) for i in (0, 2, 3))
    return layer_call(attrs, x, tensors, bias, residual)


def index_constants(weight: Array, name: str) -> list[Any]:
    """The arrays of the weight's tap list as Relax constants."""
    arrays = TapList(rows=1).encode(weight).arrays
    return [constant(arrays[a], f"{name}.{a}") for a in INDEX_ARRAYS]
