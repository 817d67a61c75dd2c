"""The weights of the layers from phase to phase: what is decoded or packed once stays at hand."""

from __future__ import annotations

from typing import Any

from sparseflow.kernels.weight import LayerWeight
from sparseflow.passes.ops import LayerAttrs, stored_weight


class Weights:
    """`LayerWeight` of each layer call, found by the constant that its first weight tensor is.

    The passes of one run share one, so that the index phase's own index is what kernels are packed from.
    """

    def __init__(self) -> None:
        self._found: dict[Any, LayerWeight] = {}

    def of(self, call: Any) -> LayerWeight:
        """The weight of a layer call."""
        key = call.args[1].fields[0]
        if key not in self._found:
            self._found[key] = LayerWeight(stored_weight(call), LayerAttrs.of(call).workload.weight_shape)
        return self._found[key]

    def put(self, call: Any, weight: LayerWeight) -> None:
        """Notes the weight of a layer call that was just made."""
        self._found[call.args[1].fields[0]] = weight
