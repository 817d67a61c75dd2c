"""Multi-head attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sparseflow.core.arrays import Array
from sparseflow.core.codec import loads
from sparseflow.core.element_type import BFLOAT16, FLOAT32, ElementType
from sparseflow.kernels.lane.attention import Attention, attention
from sparseflow.kernels.layouts.lane import LaneLayout
from sparseflow.ops.expressions import op_name
from sparseflow.ops.operator import ROWS, Make, Operator, Setting, register

Call = Any
Expr = Any
ATTENTION = "sparseflow.attention"


@register
@dataclass(frozen=True)
class MultiHeadAttention(Operator):
    """softmax(Q Kᵀ · scale + mask) V of each head, on (batch, tokens, features) tensors.

    References
    ----------
    Vaswani et al., "Attention Is All You Need" (2017), section 3.2.
    """

    shape: Attention

    kind = "attention"
    views = ROWS
    reads_anything = True

    @classmethod
    def of(cls, call: Call) -> MultiHeadAttention | None:
        return cls(loads(Attention, str(call.attrs["shape"]))) if op_name(call) == ATTENTION else None

    def operands(self, call: Call) -> list[Expr]:
        return list(call.args[:3])

    def tensors(self, call: Call) -> list[Expr]:
        return list(call.args[3].fields)

    def numpy(self, *operands: Array) -> Array:
        s = self.shape
        queries, keys, values = (
            x[..., first : first + s.heads * s.size].reshape(s.batch, -1, s.heads, s.size).swapaxes(1, 2)
            for x, first in zip(operands[:3], s.first, strict=True)
        )
        scores = queries @ keys.swapaxes(2, 3) * s.scale + (operands[3].reshape(s.mask) if s.mask else 0.0)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        found = weights / weights.sum(axis=-1, keepdims=True) @ values
        return np.asarray(found.swapaxes(1, 2).reshape(s.batch, s.queries, s.heads * s.size))

    def takes(self, element: ElementType, channels: Sequence[int]) -> bool:
        if element == BFLOAT16:
            return not any(n % element.per_slot for n in (self.shape.size, *self.shape.first, *channels))
        return element == FLOAT32

    def on_lanes(self, sources: Sequence[LaneLayout], out: LaneLayout, where: Setting) -> Make:
        q, k, v = sources
        return partial(
            attention, self.shape, (q, k, v, out), where.threads, accumulators=where.vectors.accumulators
        )
