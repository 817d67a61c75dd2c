"""The `HardSigmoid` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array


@register
class HardSigmoid(Activation):
    """min(max(x + 3, 0), 6) / 6."""

    name = "hardsigmoid"
    forms = ("clip(x + 3, 0, 6) / 6",)
    torch = ("hardsigmoid",)
    whole = True
    monotone = True
    non_negative = True

    def numpy(self, x: Array, t: float) -> Array:
        return np.asarray(np.clip(x + 3.0, 0.0, 6.0) / 6.0)

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        return v.at_most(v.at_least(x + v.number(3.0), v.number(0.0)), v.number(6.0)) * v.number(1.0 / 6.0)
