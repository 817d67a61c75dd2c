"""No activation."""

from __future__ import annotations

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array


@register
class Identity(Activation):
    """x."""

    name = "none"
    monotone = True
    clamps = True

    def numpy(self, x: Array, t: float) -> Array:
        return x

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        return x
