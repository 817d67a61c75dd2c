"""The `HardTanh` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array


@register
class HardTanh(Activation):
    """min(max(x, -1), 1)."""

    name = "hardtanh"
    forms = ("clip(x, -1, 1)",)
    torch = ("hardtanh",)
    monotone = True
    clamps = True

    def numpy(self, x: Array, t: float) -> Array:
        return np.clip(x, -1.0, 1.0)

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        return v.at_most(v.at_least(x, v.number(-1.0)), v.number(1.0))
