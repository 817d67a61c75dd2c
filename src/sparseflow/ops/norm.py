"""Layer norm over the features of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sparseflow.core.arrays import Array
from sparseflow.core.element_type import ElementType, Quantised
from sparseflow.kernels.lane import operators as on_lanes
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.ops.expressions import op_name, shape_of
from sparseflow.ops.operator import ROWS, Make, Operator, Setting, register

Call = Any
Expr = Any


@register
@dataclass(frozen=True)
class LayerNorm(Operator):
    """Each row less its mean, over its standard deviation, times gamma plus beta.

    Attributes
    ----------
    epsilon : float
        Added to the variance.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization" (2016), equation 4.
    """

    epsilon: float

    kind = "layer_norm"
    views = ROWS

    @classmethod
    def of(cls, call: Call) -> LayerNorm | None:
        if op_name(call) != "relax.nn.layer_norm":
            return None
        rank = len(shape_of(call.args[0]))
        last = [int(a) % rank for a in call.attrs.axes] == [rank - 1]
        return cls(float(call.attrs.epsilon)) if last else None

    def tensors(self, call: Call) -> list[Expr]:
        return list(call.args[1:3])

    def numpy(self, *operands: Array) -> Array:
        x, gamma, beta = operands
        away = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(away).mean(axis=-1, keepdims=True)
        return np.asarray(away / np.sqrt(variance + self.epsilon) * gamma + beta)

    def takes(self, element: ElementType, channels: Sequence[int]) -> bool:
        return channels[0] % element.per_slot == 0 and not isinstance(element, Quantised)

    def on_lanes(self, sources: Sequence[LaneLayout], out: LaneLayout, where: Setting) -> Make:
        return partial(on_lanes.layer_norm, where.batch, sources[0], out, self.epsilon, where.threads)
