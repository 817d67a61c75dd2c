"""The `FatRelu` activation."""

from __future__ import annotations

import numpy as np

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array


@register
class FatRelu(Activation):
    """x where it is larger than the threshold t > 0, else 0; also for NaN.

    References
    ----------
    M. Kurtz et al., *Inducing and Exploiting Activation Sparsity for Fast Inference on Deep Neural Networks*, ICML
    2020, section 3.
    """

    name = "fatrelu"
    forms = ("where(x > t, x, 0)", "where(x <= t, 0, x)", "x * (x > t)")
    monotone = True
    non_negative = True
    has_parameter = True

    def numpy(self, x: Array, t: float) -> Array:
        return np.where(x > np.float32(t), x, 0.0)

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        return v.where(x > v.number(t), x, v.number(0.0))

    def allows(self, t: float) -> bool:
        return t > 0.0
