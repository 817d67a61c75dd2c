"""The `Sigmoid` activation."""

from __future__ import annotations

import math

import numpy as np

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array


@register
class Sigmoid(Activation):
    """1 / (1 + e**-x)."""

    name = "sigmoid"
    forms = ("sigmoid(x)",)
    torch = ("sigmoid",)
    monotone = True
    non_negative = True

    def numpy(self, x: Array, t: float) -> Array:
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-x)))

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        x = v.once(x)
        known = x <= v.number(math.inf)  # not NaN
        return v.where(known, v.number(1.0) / (v.number(1.0) + v.exp(v.number(0.0) - x)), x)
