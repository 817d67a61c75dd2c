"""The `Silu` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array


@register
class Silu(Activation):
    """x / (1 + e**-x)."""

    name = "silu"
    forms = ("nn.silu(x)",)
    replaced = ("x * sigmoid(x)",)
    torch = ("silu",)
    whole = True

    def numpy(self, x: Array, t: float) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(x / (1.0 + np.exp(-x)))

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        return x / (v.number(1.0) + v.exp(v.number(0.0) - x))
