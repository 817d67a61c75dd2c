"""The `Tanh` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array

NEAR = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
END = 0.625


@register
class Tanh(Activation):
    """The hyperbolic tangent.

    References
    ----------
    S. L. Moshier, *Cephes Mathematical Library*, ``tanhf``: the coefficients and where they end.
    """

    name = "tanh"
    forms = ("tanh(x)",)
    torch = ("tanh",)
    monotone = True

    def numpy(self, x: Array, t: float) -> Array:
        return np.tanh(x)

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        """An odd polynomial where abs(x) is below 0.625, else 1 - 2 / (e**2abs(x) + 1)."""
        x, zero, one = v.once(x), v.number(0.0), v.number(1.0)
        a = v.once(v.larger(x, zero - x))
        far = v.once(one - v.number(2.0) / (v.exp(a + a) + one))
        square = v.once(x * x)
        series = v.number(NEAR[0])
        for c in NEAR[1:]:
            series = series * square + v.number(c)
        near = series * square * x + x
        return v.where(a >= v.number(END), v.where(x < zero, zero - far, far), near)
