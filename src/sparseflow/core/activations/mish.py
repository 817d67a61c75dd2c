"""The `Mish` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array


@register
class Mish(Activation):
    """x tanh(ln(1 + e**x)).

    References
    ----------
    D. Misra, *Mish: A Self Regularized Non-Monotonic Activation Function*, BMVC 2020, equation 1.
    """

    name = "mish"
    forms = (
        "x * tanh(where(x > 20, x, log(1 + exp(x))))",
        "x * tanh(maximum(x, 0) + log(1 + exp(-abs(x))))",
    )
    torch = ("mish",)

    def numpy(self, x: Array, t: float) -> Array:
        with np.errstate(invalid="ignore"):
            return np.asarray(x * np.tanh(np.logaddexp(0.0, x)))

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        """With n = e**x (e**x + 2) the tangent is n / (n + 2); past 20 it rounds to 1."""
        x = v.once(x)
        power = v.once(v.exp(v.smaller(x, v.number(20.0))))
        n = v.once(power * (power + v.number(2.0)))
        return x * (n / (n + v.number(2.0)))
