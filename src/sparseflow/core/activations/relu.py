"""The `Relu` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array


@register
class Relu(Activation):
    """max(x, 0)."""

    name = "relu"
    forms = ("nn.relu(x)", "where(x > 0, x, 0)", "where(x <= 0, 0, x)", "x * (x > 0)")
    torch = ("relu",)
    monotone = True
    clamps = True
    non_negative = True

    def numpy(self, x: Array, t: float) -> Array:
        return np.maximum(x, 0.0)

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        return v.at_least(x, v.number(0.0))
