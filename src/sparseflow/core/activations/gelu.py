"""The `Gelu` activation."""

from __future__ import annotations

import math

import numpy as np

from sparseflow.core.activations.base import Activation, Expr, Vectors, register
from sparseflow.core.arrays import Array

END = 5.2
HALF_ERFC = (
    -0.0034960464,
    0.0055793696,
    0.015093837,
    -0.035393275,
    -0.0116116805,
    0.09100958,
    -0.06630229,
    -0.083273925,
    0.19043526,
    -0.1048148,
    -0.10962902,
    0.25286537,
    -0.22917333,
    0.11936575,
    -0.035315923,
    0.004661198,
)


@register
class Gelu(Activation):
    """x (1 + erf(x / sqrt 2)) / 2."""

    name = "gelu"
    forms = ("nn.gelu(x)",)
    replaced = ("0.5 * x * (1 + erf(x * 0.70710678))",)
    torch = ("gelu",)

    def numpy(self, x: Array, t: float) -> Array:
        return np.asarray(0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2.0))))

    def vector(self, x: Expr, v: Vectors, t: float) -> Expr:
        """gelu(x) to 5e-7 absolute, without exponential or division: max(x, 0) - a h(a) with a = min(abs(x), 5.2).

        h(a) = erfc(a / sqrt 2) / 2 is a polynomial of degree 15 in 2a / 5.2 - 1: a least-squares fit on Chebyshev
        nodes, weighted by a and reweighted towards the largest error. Past 5.2 the product stays below 4e-7.
        """
        x = v.once(x)
        zero = v.number(0.0)
        a = v.once(v.smaller(v.larger(x, zero - x), v.number(END)))
        place = v.once(a * v.number(2.0 / END) - v.number(1.0))
        series = v.number(HALF_ERFC[0])
        for c in HALF_ERFC[1:]:
            series = series * place + v.number(c)
        return v.at_least(x, zero) - a * series
