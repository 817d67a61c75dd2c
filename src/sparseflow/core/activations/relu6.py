"""The `Relu6` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array


@register
class Relu6(Activation):
    """min(max(x, 0), 6)."""

    name = "relu6"
    forms = ("clip(x, 0, 6)",)
    replaced = ("nn.relu6(x)",)
    torch = ("relu6",)
    whole = True
    monotone = True
    clamps = True
    non_negative = True

    def numpy(self, x: Array, t: float) -> Array:
        return np.clip(x, 0.0, 6.0)

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        return v.at_most(v.at_least(x, v.number(0.0)), v.number(6.0))
