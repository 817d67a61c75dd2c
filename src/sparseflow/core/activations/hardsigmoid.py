"""The `HardSigmoid` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, register
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
