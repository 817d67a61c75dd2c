"""The `LeakyRelu` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array


@register
class LeakyRelu(Activation):
    """x where it is positive, else t x, with t not negative."""

    name = "leaky_relu"
    forms = ("nn.leakyrelu(x, alpha=t)",)
    torch = ("leaky_relu",)
    whole = True
    monotone = True
    has_parameter = True

    def numpy(self, x: Array, t: float) -> Array:
        return np.where(x > 0.0, x, t * x)

    def allows(self, t: float) -> bool:
        return t >= 0.0

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        x = v.once(x)
        return v.where(x > v.number(0.0), x, x * v.number(t))
