"""The `Sigmoid` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, register
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
