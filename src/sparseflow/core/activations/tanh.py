"""The `Tanh` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, register
from sparseflow.core.arrays import Array


@register
class Tanh(Activation):
    """The hyperbolic tangent."""

    name = "tanh"
    forms = ("tanh(x)",)
    torch = ("tanh",)
    monotone = True

    def numpy(self, x: Array, t: float) -> Array:
        return np.tanh(x)
